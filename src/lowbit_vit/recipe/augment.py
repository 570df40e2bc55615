"""Colour jitter, mixup and cutmix of a training batch after its crops, on the device, for the whole batch at once.

All choices are drawn on the host before the epoch starts, from (seed, epoch) alone, and moved to the device in one copy: no step
waits, and none depends on the number of processes or threads.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowbit_vit.schema.config import Augmentation, Colour, Mixing, Views

LUMA = (0.299, 0.587, 0.114)  # grey of red, green, blue, as in Pillow (ITU-R BT.601)
Mix = Literal["none", "mixup", "cutmix"]
# Tells these draws from those of `data.batches`, which start from (seed, epoch) as well.
_COLOUR, _MIXING = 1, 2


@dataclass(frozen=True)
class ColourMaps:
    """An affine map of the channels for each of N images: z -> matrices z + of_mean (mean z) + offsets, z normalized.

    Attributes:
        matrices: fp32 [N, 3, 3].
        of_mean: fp32 [N, 3, 3], of the image's mean pixel.
        offsets: fp32 [N, 3].
    """

    matrices: Tensor
    of_mean: Tensor
    offsets: Tensor

    def __getitem__(self, rows: slice) -> "ColourMaps":
        return ColourMaps(self.matrices[rows], self.of_mean[rows], self.offsets[rows])

    def to(self, device: str) -> "ColourMaps":
        """The same maps on a device."""
        return ColourMaps(self.matrices.to(device), self.of_mean.to(device), self.offsets.to(device))


@dataclass(frozen=True)
class Choices:
    """The random choices of one epoch over N images, indexed by place in the epoch.

    Attributes:
        colour: of the images, on the device; None: colours stay.
        mixes: of each batch.
        shares: fp32 [N] on the device: an image's share in the mixed one; the rest is its partner's.
        centres: fp32 [N, 2] on the device: row and column of the middle of a pasted box, in 0..1.
    """

    colour: ColourMaps | None
    mixes: tuple[Mix, ...]
    shares: Tensor
    centres: Tensor


def draw_choices(images: int, augmentation: Augmentation, views: Views, *, batch_size: int, seed: int, epoch: int, device: str) -> Choices:
    """Draw one epoch's choices: the kind of mixing batch by batch, the rest image by image."""
    colour = None
    if augmentation.colour is not None:
        generator = np.random.default_rng([seed, epoch, _COLOUR])
        colour = colour_maps(_draw_colour(generator, images, augmentation.colour), views).to(device)
    batches = -(-images // batch_size)
    mixes, shares, centres = _draw_mixing(np.random.default_rng([seed, epoch, _MIXING]), images, batches, augmentation.mixing, batch_size)
    return Choices(colour, mixes, torch.from_numpy(shares).to(device), torch.from_numpy(centres).to(device))


def augment(pixels: Tensor, labels: Tensor, choices: Choices, *, batch: int, first: int) -> tuple[Tensor, Tensor | None]:
    """Recolour and mix one batch; an image's partner is at the mirrored place of its batch, which is as random as the order.

    Args:
        pixels: normalized, fp32 [B, 3, S, S], channels_last.
        labels: int64 [B].
        choices: of the epoch.
        batch: number of the batch in the epoch, from 0.
        first: place of the batch's first image in the epoch.

    Returns:
        The new pixels, and the share [B] of the own label in them; None if nothing was mixed.
    """
    rows = slice(first, first + len(labels))
    if choices.colour is not None:
        pixels = change_colour(pixels, choices.colour[rows])
    mix = choices.mixes[batch]
    if mix == "none":
        return pixels, None
    if mix == "mixup":
        shares = choices.shares[rows]
        return torch.lerp(pixels.flip(0), pixels, shares[:, None, None, None]), shares
    pasted = _boxes(choices.shares[rows], choices.centres[rows], pixels.shape[2])
    return torch.where(pasted, pixels.flip(0), pixels), 1 - pasted.float().mean(dim=(1, 2, 3))


def mixed_targets(labels: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Targets of mixed images, fp32 [B, classes], each row of sum 1: `shares` for the own label, the rest for the partner's."""
    own = torch.nn.functional.one_hot(labels, classes).float()
    return torch.lerp(own.flip(0), own, shares[:, None])


def colour_maps(factors: npt.NDArray[np.float64], views: Views) -> ColourMaps:
    """Brightness b, then saturation s, then contrast c, as in torchvision's ColorJitter but not clipped: one affine map an image.

    With g the grey of a pixel and m its mean over the image, on pixels x of 0..1: x -> b x; x -> s x + (1 - s) g;
    x -> c x + (1 - c) m. That is x -> A x + (1 - c) b m with A = b c (s + (1 - s) g); here it is written for normalized pixels.

    Args:
        factors: float64 [N, 3]: b, s, c.
        views: how pixels are normalized.

    Returns:
        The maps, on the host.
    """
    brightness, saturation, contrast = (factor[:, None, None] for factor in factors.T)
    mean, std, luma = np.array(views.mean), np.array(views.std), np.array(LUMA)
    matrices = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * luma)
    of_mean = (1 - contrast) * brightness * luma
    offsets = (matrices + of_mean - np.eye(3)) @ mean / std
    arrays = (matrices * std / std[:, None], of_mean * std / std[:, None], offsets)
    return ColourMaps(*(torch.from_numpy(array).float() for array in arrays))


def change_colour(pixels: Tensor, maps: ColourMaps) -> Tensor:
    """Apply one map to each image, fp32 [B, 3, S, S] -> the same, channels_last."""
    with torch.autocast(pixels.device.type, enabled=False):
        offsets = maps.offsets + (maps.of_mean @ pixels.mean(dim=(2, 3))[:, :, None])[:, :, 0]
        changed = torch.baddbmm(offsets[:, None], pixels.permute(0, 2, 3, 1).flatten(1, 2), maps.matrices.mT)
    return changed.view(len(pixels), *pixels.shape[2:], 3).permute(0, 3, 1, 2)


def _draw_colour(generator: np.random.Generator, images: int, colour: Colour) -> npt.NDArray[np.float64]:
    ranges = np.array([colour.brightness, colour.saturation, colour.contrast])
    factors = generator.uniform(1 - ranges, 1 + ranges, size=(images, 3))
    factors[generator.random(images) < colour.grey_share, 1] = 0.0
    return factors


def _draw_mixing(
    generator: np.random.Generator, images: int, batches: int, mixing: Mixing | None, batch_size: int
) -> tuple[tuple[Mix, ...], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    if mixing is None:
        none: Mix = "none"
        return (none,) * batches, np.ones(images, dtype=np.float32), np.zeros((images, 2), dtype=np.float32)
    draws = generator.random(batches)
    both = mixing.mixup_share + mixing.cutmix_share
    mixes: list[Mix] = ["mixup" if draw < mixing.mixup_share else "cutmix" if draw < both else "none" for draw in draws]
    alphas = np.repeat([mixing.mixup_alpha if mix == "mixup" else mixing.cutmix_alpha for mix in mixes], batch_size)[:images]
    return tuple(mixes), generator.beta(alphas, alphas).astype(np.float32), generator.random((images, 2)).astype(np.float32)


def _boxes(shares: Tensor, centres: Tensor, side: int) -> Tensor:
    """Where the partner is pasted: bool [B, 1, side, side], squares of area 1 - share around the centres, cut at the border."""
    half = torch.sqrt(1 - shares)[:, None] / 2
    places = (torch.arange(side, device=shares.device) + 0.5) / side
    inside = [(places - centres[:, axis, None]).abs() < half for axis in (0, 1)]
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
