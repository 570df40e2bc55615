"""Batches: the same pixels as torchvision's transforms, fixed by (seed, epoch), nothing dropped."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import PlacedImages, _crop_on_cpu, _crop_on_gpu, draw_epoch, eval_batches, place, train_batches
from lowbit_vit.schema.config import Augmentation, Views

VIEWS = Views(image_size=24, eval_resize=28, train_resize=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
AUGMENTATION = Augmentation(crop_scale=(0.2, 1.0), flip=True)
WHOLE = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)


def image_set(count: int, side: int, seed: int = 0) -> ImageSet:
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.integers(0, 256, (count, 3, 8, 8)).astype(np.float32))
    smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
    labels = generator.integers(0, 5, count).astype(np.int64)
    return ImageSet(smooth.round().to(torch.uint8).numpy(), labels, tuple(f"image_{index}" for index in range(count)))


def epoch_of(images: ImageSet, *, batch_size: int = 7, seed: int = 0, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(train_batches([images], VIEWS, AUGMENTATION, batch_size=batch_size, seed=seed, epoch=epoch, device="cpu"))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_evaluation_yields_every_image_in_order_normalized_with_the_last_batch_partial(dtype: torch.dtype) -> None:
    images = image_set(23, 24)
    batches = list(eval_batches(images, VIEWS, batch_size=10, device="cpu", dtype=dtype))
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels.tolist()
    pixels = torch.cat([pixels for pixels, _ in batches])
    expected = (torch.from_numpy(images.images).double() / 255 - torch.tensor(VIEWS.mean)) / torch.tensor(VIEWS.std)
    assert pixels.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps * 3
    torch.testing.assert_close(pixels.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=tolerance)


def test_every_training_image_comes_once_an_epoch() -> None:
    images = image_set(23, 32)
    marked = ImageSet(images.images, np.arange(23), images.ids)
    assert sorted(epoch_of(marked)[1].tolist()) == list(range(23))


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    images = image_set(23, 32)
    first = epoch_of(images)
    for again in (epoch_of(images), epoch_of(images, batch_size=23), epoch_of(images, batch_size=1)):
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], epoch_of(images, epoch=1)[0])
    assert not torch.equal(first[0], epoch_of(images, seed=1)[0])


def test_the_number_of_threads_changes_no_pixel() -> None:
    images = image_set(23, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = epoch_of(images)
        torch.set_num_threads(2)
        double = epoch_of(images)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(single[0], double[0])


def test_sets_are_joined_in_their_order_and_placing_once_changes_nothing() -> None:
    sets = [image_set(9, 32), image_set(8, 32, seed=1)]
    placed = place(sets, "cpu")
    assert placed.labels.tolist() == [*sets[0].labels.tolist(), *sets[1].labels.tolist()]
    arguments = {"batch_size": 4, "seed": 3, "epoch": 2, "device": "cpu"}
    once = [pixels for pixels, _ in train_batches(placed, VIEWS, AUGMENTATION, **arguments)]  # type: ignore[arg-type]
    each_time = [pixels for pixels, _ in train_batches(sets, VIEWS, AUGMENTATION, **arguments)]  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(once, each_time, strict=True))


def test_without_crop_and_flip_training_sees_the_whole_view() -> None:
    images = image_set(5, 24)
    whole, labels = next(train_batches([images], VIEWS, WHOLE, batch_size=5, seed=0, epoch=0, device="cpu"))
    ordered, _ = next(eval_batches(images, VIEWS, batch_size=5, device="cpu"))
    order = torch.from_numpy(draw_epoch(5, 24, WHOLE, seed=0, epoch=0).order)
    torch.testing.assert_close(whole, ordered[order])
    assert labels.tolist() == images.labels[order.numpy()].tolist()


@pytest.mark.parametrize("side", [12, 24, 48], ids=["shrinking", "near", "growing"])
def test_the_gpu_formula_gives_the_cpu_kernels_pixels_within_rounding(side: int) -> None:
    placed: PlacedImages = place([image_set(40, 32)], "cpu")
    choices = draw_epoch(40, 32, AUGMENTATION, seed=5, epoch=0)
    rows = torch.from_numpy(choices.order)
    exact = _crop_on_gpu(placed.pixels[rows], torch.from_numpy(choices.boxes)[rows], torch.from_numpy(choices.flips)[rows], side)
    rounded = _crop_on_cpu(placed, choices.order, choices, side)
    assert choices.flips.any()
    difference = (exact - rounded.float()).abs()
    # The CPU kernel rounds twice, after each of the two passes, and its weights have 16 bits.
    assert difference.max() <= 1.1
    assert difference.mean() <= 0.35
