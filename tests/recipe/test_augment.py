from typing import Any

import numpy as np
import pytest
import torch

from lowbit_vit.recipe.augment import LUMA, Choices, augment, change_colour, colour_maps, draw_choices, mixed_targets
from lowbit_vit.schema.config import Augmentation, Colour, Mixing, Views

VIEWS = Views(image_size=16, eval_resize=16, train_resize=16, mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
COLOUR = Colour(brightness=0.4, contrast=0.4, saturation=0.4, grey_share=0.3)


def choices(images: int = 64, batch_size: int = 16, seed: int = 0, epoch: int = 0, **keys: Any) -> Choices:
    augmentation = Augmentation(crop_scale=(0.5, 1.0), flip=True, **keys)
    return draw_choices(images, augmentation, VIEWS, batch_size=batch_size, seed=seed, epoch=epoch, device="cpu")


def mixing(mixup: float, cutmix: float) -> Mixing:
    return Mixing(mixup_share=mixup, mixup_alpha=0.8, cutmix_share=cutmix, cutmix_alpha=1.0)


def test_nothing_asked_for_changes_nothing() -> None:
    pixels, labels = torch.randn(16, 3, 16, 16), torch.arange(16)
    same, shares = augment(pixels, labels, choices(), batch=0, first=0)
    assert same is pixels
    assert shares is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_pixels_are_mixed_in_the_shares_that_their_labels_are(mixup: float, cutmix: float) -> None:
    # Image i is the constant i, so its mixture says how much of it is left.
    values = torch.arange(16.0)
    pixels = values[:, None, None, None].expand(-1, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    mixed, shares = augment(pixels, torch.arange(16), choices(mixing=mixing(mixup, cutmix)), batch=2, first=32)
    assert shares is not None
    assert 0 <= shares.min() < 0.5 < shares.max() <= 1
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares * values + (1 - shares) * values.flip(0))
    targets = mixed_targets(torch.arange(16), shares, 20)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
    torch.testing.assert_close(targets @ torch.arange(20.0), shares * values + (1 - shares) * values.flip(0))


def test_batches_are_mixed_as_often_as_asked_for() -> None:
    mixes = choices(images=4000, batch_size=1, mixing=mixing(0.5, 0.2)).mixes
    assert [round(mixes.count(mix) / 4000, 1) for mix in ("mixup", "cutmix", "none")] == [0.5, 0.2, 0.3]


def test_choices_depend_on_seed_and_epoch_alone() -> None:
    keys: dict[str, Any] = {"colour": COLOUR, "mixing": mixing(0.5, 0.3)}
    first, again = choices(seed=1, epoch=2, **keys), choices(seed=1, epoch=2, **keys)
    assert first.mixes == again.mixes
    assert torch.equal(first.shares, again.shares)
    assert first.colour is not None
    assert again.colour is not None
    assert torch.equal(first.colour.matrices, again.colour.matrices)
    for other in (choices(seed=2, epoch=2, **keys), choices(seed=1, epoch=3, **keys)):
        assert not torch.equal(first.shares, other.shares)


def test_colours_are_the_three_steps_one_after_another() -> None:
    generator = np.random.default_rng(0)
    images = generator.random((5, 3, 16, 16))
    factors = generator.uniform(0.5, 1.5, (5, 3))
    factors[0] = (1.0, 0.0, 1.0)  # grey
    mean, std = np.array(VIEWS.mean)[:, None, None], np.array(VIEWS.std)[:, None, None]
    expected = []
    for image, (brightness, saturation, contrast) in zip(images, factors, strict=True):
        bright = brightness * image
        saturated = saturation * bright + (1 - saturation) * np.einsum("c,chw->hw", np.array(LUMA), bright)
        mean_grey = np.einsum("c,chw->hw", np.array(LUMA), saturated).mean()
        expected.append((contrast * saturated + (1 - contrast) * mean_grey - mean) / std)
    pixels = torch.from_numpy((images - mean) / std).float().contiguous(memory_format=torch.channels_last)
    changed = change_colour(pixels, colour_maps(factors, VIEWS))
    assert changed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(changed, torch.from_numpy(np.stack(expected)).float(), rtol=1e-5, atol=1e-5)
