"""Random resized crops and flips of one epoch: drawn before it starts, from (seed, epoch) alone.

So neither the batch size, nor the device, nor the number of threads changes what an image looks like in an epoch.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowbit_vit.schema.config import Augmentation

ATTEMPTS = 10  # as in torchvision


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
    """Draw order, crops and flips.

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
