"""Runs the test images through the blocks of a resident model, step by step, with activations kept at boundaries.

Batches are those of `predict`: the same images together, the last batch filled up. So every block sees the very tensors that it
would see in a process of its own, and logits are equal bit for bit, LLM.int8's threshold included, whose outlier columns come
from the whole batch.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import Trial
from lowbit_vit.trial.evaluate import Logits, finite_logits, full_batches
from lowbit_vit.trial.scan_model import ScanModel
from lowbit_vit.trial.scan_schedule import Step

log = logging.getLogger(__name__)

# Of a GPU's free memory; two scans share one. Of the host memory that the profile allows a process.
_SHARE_OF_GPU = 0.4
_SHARE_OF_HOST = 0.25


class ScanRun:
    """Runs the steps of a schedule on one test set.

    Args:
        model: with all blocks that the steps name.
        images: N test images.
        trial: of any cell: batch size, views, device, limits.
    """

    def __init__(self, model: ScanModel, images: ImageSet, trial: Trial) -> None:
        self.block_evaluations = 0
        self._model = model
        self._images = images
        self._trial = trial
        self._count = len(images.labels)
        self._batch_size = min(trial.evaluation.batch_size, self._count)
        self._kept: dict[int, list[Tensor | None] | Exception] = {}

    @property
    def batches(self) -> int:
        """Calls of each block in one pass."""
        return -(-self._count // self._batch_size)

    def room(self) -> int:
        """How many boundaries' activations may be kept in memory at a time: a share of what is free."""
        sizes = self._model.ends.architecture
        boundary = self.batches * self._batch_size * sizes.tokens * sizes.width * self._model.dtype.itemsize
        if self._trial.device == "cuda":
            allowed = torch.cuda.mem_get_info()[0] * _SHARE_OF_GPU
        else:
            allowed = self._trial.limits.memory_gib * 2**30 * _SHARE_OF_HOST
        # One for each boundary and two for what forks off: more are of no use.
        room = min(int(allowed // boundary), sizes.depth + 2)
        log.info("activations between two blocks take %.2f GiB; room for %d of them", boundary / 2**30, room)
        return room

    @torch.inference_mode()
    def run(self, step: Step) -> Logits | None:
        """Run one step; float32 [N, C] if it finishes its path.

        Raises:
            ConfigError: a block cannot be converted.
            LowbitVitError: a logit is infinite or NaN.
            Exception: what the blocks raise, or raised in the step that was to keep this one's source.
        """
        try:
            logits = self._run(step)
        except Exception as error:
            self._kept.update(dict.fromkeys([slot for _, slot in step.keep], error))
            raise
        self.block_evaluations += step.blocks
        return logits

    def _run(self, step: Step) -> Logits | None:
        blocks = self._model.blocks(step.path, step.start, step.stop)
        ends = self._model.ends
        keep: dict[int, list[Tensor | None]] = {boundary: [] for boundary, _ in step.keep}
        rows: list[Tensor] = []
        for first_BNW in self._begin(step):
            x_BNW = first_BNW
            for boundary in range(step.start, step.stop + 1):
                if boundary > step.start:
                    x_BNW = blocks[boundary - step.start - 1](x_BNW)
                if boundary in keep:
                    keep[boundary].append(x_BNW)
            if step.finishes:
                rows.append(ends.head(ends.norm(x_BNW[:, 0])).to(torch.float32))
        if step.last_use and step.source is not None:
            self._kept.pop(step.source, None)
        self._kept.update({slot: keep[boundary] for boundary, slot in step.keep})
        return finite_logits(rows, count=self._count, title="scan") if step.finishes else None

    def _begin(self, step: Step) -> Iterator[Tensor]:
        """Activations at the step's first boundary, batch by batch."""
        if step.source is None:
            trial = self._trial
            for full in full_batches(
                self._images, trial.data.views, batch_size=self._batch_size, device=trial.device, dtype=self._model.dtype
            ):
                yield self._model.ends.embed(full)
            return
        kept = self._kept[step.source]
        if isinstance(kept, Exception):
            raise kept
        for batch, x_BNW in enumerate(kept):
            if x_BNW is None:
                raise LowbitVitError(f"scan: activations at boundary {step.start} were released before their last use")
            if step.last_use:
                kept[batch] = None
            yield x_BNW
