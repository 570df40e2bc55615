"""Batches made on the GPU are the CPU's: the same order, the same crops, pixels within the CPU kernel's rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import eval_batches, place, train_batches
from lowbit_vit.schema.config import Augmentation, Views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

VIEWS = Views(image_size=224, eval_resize=242, train_resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
AUGMENTATION = Augmentation(crop_scale=(0.2, 1.0), flip=True)
GREY_LEVEL = 1 / 255 / min(VIEWS.std)  # after normalization


def image_set(count: int, side: int) -> ImageSet:
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.integers(0, 256, (count, 3, 16, 16)).astype(np.float32))
    smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
    labels = generator.integers(0, 5, count).astype(np.int64)
    return ImageSet(smooth.round().to(torch.uint8).contiguous().numpy(), labels, tuple(str(index) for index in range(count)))


def test_training_batches_are_the_cpus_within_rounding() -> None:
    images = image_set(50, VIEWS.train_resize)
    placed = place([images], "cuda")
    assert placed.pixels.is_cuda
    for epoch in range(2):
        ours = list(train_batches(placed, VIEWS, AUGMENTATION, batch_size=16, seed=1, epoch=epoch, device="cuda"))
        cpus = list(train_batches([images], VIEWS, AUGMENTATION, batch_size=16, seed=1, epoch=epoch, device="cpu"))
        assert [len(labels) for _, labels in ours] == [16, 16, 16, 2]
        for (pixels, labels), (expected, expected_labels) in zip(ours, cpus, strict=True):
            assert pixels.is_cuda
            assert pixels.is_contiguous(memory_format=torch.channels_last)
            assert labels.tolist() == expected_labels.tolist()
            torch.testing.assert_close(pixels.cpu(), expected, rtol=0, atol=1.1 * GREY_LEVEL)


def test_images_left_on_the_host_give_the_same_batches() -> None:
    resident = place([image_set(20, VIEWS.train_resize)], "cuda")
    on_host = replace(resident, pixels=resident.pixels.cpu())
    arguments = {"batch_size": 8, "seed": 0, "epoch": 0, "device": "cuda"}
    one = [pixels for pixels, _ in train_batches(resident, VIEWS, AUGMENTATION, **arguments)]  # type: ignore[arg-type]
    other = [pixels for pixels, _ in train_batches(on_host, VIEWS, AUGMENTATION, **arguments)]  # type: ignore[arg-type]
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_evaluation_batches_are_the_cpus(dtype: torch.dtype) -> None:
    images = image_set(20, VIEWS.image_size)
    ours = list(eval_batches(images, VIEWS, batch_size=8, device="cuda", dtype=dtype))
    cpus = list(eval_batches(images, VIEWS, batch_size=8, device="cpu", dtype=dtype))
    for (pixels, labels), (expected, expected_labels) in zip(ours, cpus, strict=True):
        assert labels.tolist() == expected_labels.tolist()
        torch.testing.assert_close(pixels.cpu(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
