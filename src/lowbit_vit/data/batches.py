"""Decoded images -> the model's batches, in evaluation and in training.

Pixels stay uint8 until the batch is on the device, which crops, resizes, mirrors and normalizes the whole batch at once. Batches
are float [B, 3, H, W] in channels_last memory order, the order of the arrays: nothing is transposed.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.schema.config import Augmentation, Views

log = logging.getLogger(__name__)

ATTEMPTS = 10  # to draw a crop, as in torchvision


@dataclass(frozen=True)
class PlacedImages:
    """Image sets where batches are made of them, moved once for many epochs.

    Attributes:
        pixels: uint8 [N, H, W, 3], on the device if they take at most half of its free memory, else on the host.
        labels: int64 [N], on the device.
        device: where batches go.
    """

    pixels: Tensor
    labels: Tensor
    device: torch.device


def place(sets: Sequence[ImageSet], device: str) -> PlacedImages:
    """Concatenate image sets and move them to the device. On the CPU a single set stays memory-mapped."""
    target = torch.device(device)
    arrays = [images.images for images in sets]
    pixels = torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    labels = torch.from_numpy(np.concatenate([images.labels for images in sets])).to(target)
    if _fits(pixels, target):
        pixels = pixels.to(target)
    return PlacedImages(pixels, labels, target)


def _fits(pixels: Tensor, target: torch.device) -> bool:
    """Whether images go to a GPU as a whole; on the CPU they stay memory-mapped."""
    if target.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(target)
    resident = pixels.numel() <= free // 2
    log.info("%.2f GiB of images %s", pixels.numel() / 2**30, "put on the GPU" if resident else "left in host memory: they do not fit")
    return resident


def eval_batches(
    images: ImageSet, views: Views, *, batch_size: int, device: str, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order; the last batch holds what is left.

    Args:
        images: an evaluation view.
        views: mean and std.
        batch_size: images a batch.
        device: where the batches are made.
        dtype: of the images; the arithmetic is fp32 in any case.

    Yields:
        images [B, 3, H, W] in `dtype`, channels_last; labels int64 [B].
    """
    target = torch.device(device)
    scale, shift = _normalization(views, images.images.shape[2], target)
    pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels).to(target)
    # One copy for all batches: the host would wait for the device in every copy.
    if len(labels) > batch_size and _fits(pixels, target):
        pixels = pixels.to(target)
    for first in range(0, len(labels), batch_size):
        rows = slice(first, first + batch_size)
        yield _normalize(pixels[rows].to(target), scale, shift).to(dtype), labels[rows]


def train_batches(
    sets: Sequence[ImageSet] | PlacedImages,
    views: Views,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    device: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in a random order, each as a random crop, in ceil(images / batch_size) batches.

    Args:
        sets: training views, or what `place` made of them (saves the move to the device in every epoch).
        views: image_size, mean and std.
        augmentation: of crops and flips.
        batch_size: images a batch.
        seed: of the run.
        epoch: 0 up.
        device: where the batches are made.

    Yields:
        images fp32 [B, 3, image_size, image_size], channels_last; labels int64 [B].
    """
    placed = sets if isinstance(sets, PlacedImages) else place(sets, device)
    count, side = placed.pixels.shape[:2]
    choices = draw_epoch(count, side, augmentation, seed=seed, epoch=epoch)
    scale, shift = _normalization(views, views.image_size, placed.device)
    # One copy for the epoch: the host would wait for the device in every copy.
    order, boxes, flips = [torch.from_numpy(array).to(placed.device) for array in (choices.order, choices.boxes, choices.flips)]
    for first in range(0, count, batch_size):
        rows = order[first : first + batch_size]
        if placed.device.type == "cpu":
            pixels = _crop_on_cpu(placed, rows.numpy(), choices, views.image_size)
        else:
            # Images in host memory are indexed there, by choices that are there already.
            where = rows if placed.pixels.is_cuda else torch.from_numpy(choices.order[first : first + batch_size])
            pixels = _crop_on_gpu(placed.pixels[where].to(placed.device), boxes[rows], flips[rows], views.image_size)
        yield _normalize(pixels, scale, shift), placed.labels[rows]


@dataclass(frozen=True)
class Epoch:
    """The random choices of one epoch over N images.

    Attributes:
        order: int64 [N], a permutation: the image at each place of the epoch.
        boxes: int64 [N, 4], each image's crop as top, left, height, width, px; indexed by image, not by place.
        flips: bool [N], whether the image is mirrored; indexed by image.
    """

    order: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]
    flips: npt.NDArray[np.bool_]


def draw_epoch(images: int, side: int, augmentation: Augmentation, *, seed: int, epoch: int) -> Epoch:
    """Draw order, crops and flips from (seed, epoch) alone: batch size, device and threads change no image.

    Crops follow torchvision's `RandomResizedCrop.get_params` on a square of `side` px: the area is uniform in crop_scale, the
    aspect ratio log-uniform in crop_ratio, ten attempts, then the central square with the ratio held in range.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(images)
    flips = generator.random(images) < 0.5
    area = generator.uniform(*augmentation.crop_scale, size=(images, ATTEMPTS)) * side**2
    low, high = augmentation.crop_ratio
    ratio = np.exp(generator.uniform(math.log(low), math.log(high), size=(images, ATTEMPTS)))
    position = generator.random((images, 2))
    # [N, ATTEMPTS, 2]: height, width
    sizes = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=2))).astype(np.int64)
    fits = np.all((sizes >= 1) & (sizes <= side), axis=2)
    none_fits = ~np.any(fits, axis=1)
    chosen = sizes[np.arange(images), np.argmax(fits, axis=1)]
    chosen[none_fits] = _central_size(side, augmentation.crop_ratio)
    corners = np.floor(position * (side - chosen + 1)).astype(np.int64)
    corners[none_fits] = (side - chosen[none_fits]) // 2
    boxes = np.concatenate([corners, chosen], axis=1)
    return Epoch(order, boxes, flips if augmentation.flip else np.zeros(images, dtype=np.bool_))


def _central_size(side: int, crop_ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest centred box whose aspect ratio (width / height) is in range."""
    low, high = crop_ratio
    if low > 1:
        return round(side / low), side
    if high < 1:
        return side, round(side * high)
    return side, side


def _normalization(views: Views, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(pixel / 255 - mean) / std as pixel * scale + shift; fp32 [width * 3] each, one image row's worth.

    A whole row: torch does not vectorize broadcasting of three channels along the innermost dimension.
    """
    mean, std = torch.tensor(views.mean, dtype=torch.float64), torch.tensor(views.std, dtype=torch.float64)
    scale, shift = 1 / (255 * std), -mean / std
    return scale.float().repeat(width).to(device), shift.float().repeat(width).to(device)


def _normalize(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """[B, H, W, 3] of 0..255 -> fp32 [B, 3, H, W], channels_last."""
    count, height, width, channels = pixels.shape
    rows = pixels.reshape(count, height, width * channels)
    normalized = _empty(rows.shape, rows.device).copy_(rows).mul_(scale).add_(shift)
    return normalized.view(count, height, width, channels).permute(0, 3, 1, 2)


def _empty(shape: torch.Size, device: torch.device) -> Tensor:
    """An fp32 tensor without values. On the CPU numpy allocates it, in huge pages.

    Faulting in 4-KiB pages took 0.4 of the 0.5 ms of CPU time that normalizing one 224-px image cost with torch's allocator.
    """
    return torch.from_numpy(np.empty(shape, dtype=np.float32)) if device.type == "cpu" else torch.empty(shape, device=device)


def _crop_on_cpu(placed: PlacedImages, rows: npt.NDArray[np.int64], choices: Epoch, side: int) -> Tensor:
    """Crop, resize, flip: uint8 [B, side, side, 3].

    One image at a time, since crops differ in size; torch's uint8 kernel takes 0.2 ms for 180 x 200 -> 224 x 224. numpy makes the
    copies around it: torch would split each over its threads, which costs milliseconds on a busy machine.
    """
    pixels = placed.pixels.numpy()
    batch = np.empty((len(rows), side, side, 3), dtype=np.uint8)
    for position, row in enumerate(rows.tolist()):
        top, left, height, width = choices.boxes[row].tolist()
        crop = torch.from_numpy(np.ascontiguousarray(pixels[row, top : top + height, left : left + width]))
        resized = functional.interpolate(crop.permute(2, 0, 1)[None], size=(side, side), mode="bilinear", antialias=True)
        image = resized[0].permute(1, 2, 0).numpy()
        batch[position] = image[:, ::-1] if choices.flips[row] else image
    return torch.from_numpy(batch)


def _crop_on_gpu(pixels: Tensor, boxes: Tensor, flips: Tensor, side: int) -> Tensor:
    """Crop, resize, flip: fp32 [B, side, side, 3] of 0..255, within one grey level of `_crop_on_cpu` (which rounds).

    Takes uint8 [B, H, W, 3], int64 [B, 4] and bool [B], all on one device. Two matrix products for the whole batch,
    [side, H] @ [H, W] @ [W, side], whose matrices hold crop, filter and flip: kernel launches would bound a loop over images.
    """
    vertical = _resize_matrices(boxes[:, 0], boxes[:, 2], side, pixels.shape[1])
    horizontal = _resize_matrices(boxes[:, 1], boxes[:, 3], side, pixels.shape[2])
    horizontal = torch.where(flips[:, None, None], horizontal.flip(1), horizontal)
    with torch.autocast(pixels.device.type, enabled=False):
        channels = pixels.permute(0, 3, 1, 2).float()
        return (vertical[:, None] @ channels @ horizontal[:, None].mT).permute(0, 2, 3, 1)


def _resize_matrices(start: Tensor, extent: Tensor, side: int, length: int) -> Tensor:
    """Matrices that cut [start, start + extent) out of `length` pixels and resize it to `side`: fp32 [B, side, length].

    Bilinear with antialiasing: the triangle filter is as wide as the output pixel where it shrinks, as in Pillow and torch
    (https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c, precompute_coeffs).
    """
    scale = (extent / side)[:, None, None]
    centre = start[:, None, None] + (torch.arange(side, device=start.device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(length, device=start.device)[None, None, :]
    inside = (pixel >= start[:, None, None]) & (pixel < (start + extent)[:, None, None])
    weight = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0) * inside
    return weight / weight.sum(dim=2, keepdim=True)
