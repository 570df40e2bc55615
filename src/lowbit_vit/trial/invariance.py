"""Whether a prediction depends on how many images share its batch.

Kernels are chosen by shape, so another batch size may round otherwise; and LLM.int8 with a threshold takes its outlier columns
from the whole batch, so there an image's logits depend on its batch-mates.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.schema.config import Device, Views
from lowbit_vit.schema.record import Invariance
from lowbit_vit.trial.evaluate import Forward, Logits, predict


def measure_invariance(
    prepare: Callable[[Tensor], Forward],
    images: ImageSet,
    views: Views,
    *,
    count: int,
    batch_sizes: tuple[int, int],
    device: Device,
    dtype: torch.dtype,
) -> Invariance:
    """Predict the same images at two batch sizes.

    Args:
        prepare: as for `measure`.
        images: the test images, of which `count` are taken at equal distances (neighbours are often of one class).
        views: how pixels are normalized.
        count: at most; all images if there are fewer.
        batch_sizes: the two.
        device: where the model is.
        dtype: of the images given to the model.
    """
    chosen = spread_images(images, count)
    first, second = (
        predict(prepare, chosen, views, batch_size=size, device=device, dtype=dtype, title=f"batch invariance, batch {size}")
        for size in batch_sizes
    )
    return compare_logits(first, second, batch_sizes=batch_sizes)


def spread_images(images: ImageSet, count: int) -> ImageSet:
    """`count` images at equal distances over the whole set, in its order; all of them if there are fewer."""
    total = len(images.labels)
    rows = np.linspace(0, total - 1, min(count, total)).astype(np.int64)
    return images.take(rows)


def compare_logits(first: Logits, second: Logits, *, batch_sizes: tuple[int, int]) -> Invariance:
    """Compare logits float32 [N, K] of the same images."""
    return Invariance(
        images=len(first),
        batch_sizes=batch_sizes,
        flips=int((first.argmax(axis=1) != second.argmax(axis=1)).sum()),
        max_abs_logit_difference=float(np.abs(first - second).max()),
        bit_equal=bool(np.array_equal(first, second)),
    )
