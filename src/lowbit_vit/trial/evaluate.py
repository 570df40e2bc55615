"""Accuracy, image by image: logits of the whole test split, its two seeded halves, and what is kept of each image.

Whatever is chosen from data (which blocks to spare) is chosen on the selection half and reported on the other. Predictions
are kept for every image, so that later comparisons are paired.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from lowbit_vit.data.arrays import Dataset, ImageSet
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model.precision import compute_dtype
from lowbit_vit.schema.config import Device, Trial, Views
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import EvaluationResult

Logits = npt.NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


def evaluate(
    prepare: Callable[[Tensor], Forward], dataset: Dataset, trial: Trial, *, reference_logits: Logits | None
) -> tuple[EvaluationResult, bytes]:
    """Evaluate one trial's model on the test split.

    Args:
        prepare: as for `predict`.
        dataset: its test images are used, all of them.
        trial: batch size, device, compute dtype, selection seed, label.
        reference_logits: the high-precision model's, float32 [N, C], or None.

    Returns:
        What is recorded of the pass, and the bytes of the predictions file.

    Raises:
        LowbitVitError: a logit is infinite or NaN.
    """
    started = time.perf_counter()
    logits = predict_test(prepare, dataset, trial, title=f"evaluate {trial.label}")
    return assess(logits, dataset, trial, seconds=time.perf_counter() - started, reference_logits=reference_logits)


def assess(
    logits: Logits,
    dataset: Dataset,
    trial: Trial,
    *,
    seconds: float,
    reference_logits: Logits | None,
    block_evaluations: int | None = None,
) -> tuple[EvaluationResult, bytes]:
    """Turn the test images' logits, float32 [N, C], into what is recorded; other arguments and results as of `evaluate`.

    `seconds` and `block_evaluations` are the cost of the logits; the second only where a scan shared blocks.
    """
    images = dataset.eval_views["test"]
    selection = selection_mask(len(images.labels), trial.selection_seed)
    predictions = predictions_of_logits(logits, images.labels, selection=selection, reference_logits=reference_logits)
    result = EvaluationResult(
        split="test",
        seconds=seconds,
        predictions_sha256=predictions.sha256(),
        class_names=dataset.class_names,
        block_evaluations=block_evaluations,
    )
    return result, predictions.to_bytes()


def predict_test(prepare: Callable[[Tensor], Forward], dataset: Dataset, trial: Trial, *, title: str) -> Logits:
    """Logits of every test image, float32 [N, C], in the trial's batch size and compute dtype; see `predict`."""
    return predict(
        prepare,
        dataset.eval_views["test"],
        trial.data.views,
        batch_size=trial.evaluation.batch_size,
        device=trial.device,
        dtype=compute_dtype(trial.plan),
        title=title,
    )


def predict(
    prepare: Callable[[Tensor], Forward],
    images: ImageSet,
    views: Views,
    *,
    batch_size: int,
    device: Device,
    dtype: torch.dtype,
    title: str,
) -> Logits:
    """Logits of every image, in order, float32 [N, C].

    Every call has the same shape: the last batch is filled up with its own first image, and those rows are dropped. Kernels
    are chosen by shape, and a captured CUDA graph knows one shape only. (With LLM.int8's threshold a prediction depends on
    its batch-mates; a repeated image adds no new outlier column.)

    Args:
        prepare: given the first batch, returns what maps images [batch_size, 3, S, S] of `dtype` to logits [batch_size, C]
            without gradients: `model.execution.prepare` of a model in evaluation mode.
        images: N images.
        views: how pixels are normalized.
        batch_size: images a call; at most N are used.
        device: where the model is.
        dtype: of the images given to `forward`.
        title: shown by the progress bar.

    Raises:
        LowbitVitError: a logit is infinite or NaN.
    """
    count = len(images.labels)
    batch_size = min(batch_size, count)
    rows: list[Tensor] = []
    forward: Forward | None = None
    with progress_bar(title, count, "images") as bar:
        for full in full_batches(images, views, batch_size=batch_size, device=device, dtype=dtype):
            forward = forward or prepare(full)
            # A copy, because a captured graph writes into the same memory; left on the device, so that no batch waits for it.
            rows.append(forward(full).to(torch.float32, copy=True))
            bar.advance(min(batch_size, count - (len(rows) - 1) * batch_size))
    return finite_logits(rows, count=count, title=title)


def full_batches(images: ImageSet, views: Views, *, batch_size: int, device: Device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Every image in order, in batches [batch_size, 3, S, S] of `dtype`; the last is filled up with its own first image."""
    for pixels, _ in eval_batches(images, views, batch_size=batch_size, device=device, dtype=dtype):
        missing = batch_size - len(pixels)
        yield torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)]) if missing else pixels


def finite_logits(rows: list[Tensor], *, count: int, title: str) -> Logits:
    """The first `count` rows of all batches' logits, on the host.

    Raises:
        LowbitVitError: one is infinite or NaN; `title` says of what.
    """
    logits: Logits = torch.cat(rows)[:count].cpu().numpy()
    broken = int(np.count_nonzero(~np.isfinite(logits).all(axis=1)))
    if broken:
        raise LowbitVitError(f"{title}: {broken} of {count} images have infinite or NaN logits; use compute_dtype bf16 or fp32")
    return logits


def spread_rows(total: int, count: int) -> npt.NDArray[np.int64]:
    """`count` rows at equal distances of `total`, in order, int64; all of them if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def selection_mask(n: int, seed: int) -> npt.NDArray[np.bool_]:
    """True for the n // 2 images of the selection half, drawn without replacement; bool [n]."""
    mask = np.zeros(n, dtype=np.bool_)
    mask[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
    return mask


def predictions_of_logits(
    logits: Logits,
    labels: npt.NDArray[np.int64],
    *,
    selection: npt.NDArray[np.bool_],
    reference_logits: Logits | None = None,
) -> Predictions:
    """What is kept of each image. Of equal logits the smaller class number is the more likely one.

    Args:
        logits: float32 [N, C].
        labels: int64 [N].
        selection: bool [N], true in the selection half.
        reference_logits: the high-precision model's, float32 [N, C]; adds KL(high precision || this) of each image in nats.
    """
    five = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return Predictions(
        label=labels.astype(np.uint16),
        best=five[:, 0].astype(np.uint16),
        among5=(five == labels[:, None]).any(axis=1),
        margin=logits[rows, labels] - others.max(axis=1),
        selection=selection,
        kl=None if reference_logits is None else _kl(reference_logits, logits),
    )


def _kl(reference_logits: Logits, logits: Logits) -> npt.NDArray[np.float32]:
    reference, log_p = reference_logits.astype(np.float64), log_softmax(logits.astype(np.float64), axis=1)
    divergence = (softmax(reference, axis=1) * (log_softmax(reference, axis=1) - log_p)).sum(axis=1)
    # Never negative in exact arithmetic; rounding can give -1e-17.
    kl: npt.NDArray[np.float32] = np.maximum(divergence, 0.0).astype(np.float32)
    return kl
