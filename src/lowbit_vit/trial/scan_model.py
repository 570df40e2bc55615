"""One resident model for many cells: its blocks in every format that a cell asks for, and the run of test images through them.

A cell's path names each of its blocks by the formats of its linears: equal names are one converted block, bit for bit that of
`apply_plan`. A block is converted when a cell first needs it and dropped when the last one is done.

Batches are those of `predict`: the same images together, the last batch filled up. So every block gets the same tensors as in a
process of its own, and logits are equal bit for bit, also with LLM.int8's threshold, whose outlier columns come from the whole batch.
"""

import copy
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model.precision import apply_plan, audit, compute_dtype, convert_block
from lowbit_vit.model.vit import VisionTransformer, encoder_linears
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.plan import Plan, Weights
from lowbit_vit.trial.evaluate import Logits, finite_logits, full_batches
from lowbit_vit.trial.scan_schedule import Path, Step

log = logging.getLogger(__name__)

# Of a GPU's free memory; two scans share one. Of the host memory that the profile allows a process.
_SHARE_OF_GPU = 0.4
_SHARE_OF_HOST = 0.25


class ScanModel:
    """Converted blocks of one set of weights in one compute dtype.

    Args:
        model: fp32, on its device; never changed.
        plan: of any cell; its compute dtype holds for all.

    Attributes:
        ends: the model whose embedding, last norm and head every cell shares; it has no blocks.
        parameters: of the fp32 model.
        converting_s: seconds spent on conversions so far.
    """

    def __init__(self, model: VisionTransformer, plan: Plan) -> None:
        self.depth = len(model.blocks)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.dtype: torch.dtype = compute_dtype(plan)
        self.converting_s = 0.0
        self._source = model
        self.ends = copy.deepcopy(model)
        apply_plan(self.ends, Plan(compute_dtype=plan.compute_dtype))
        self.ends.blocks = nn.ModuleList()  # every path brings its own
        self._formats: dict[tuple[int, str], dict[str, Weights]] = {}
        self._converted: dict[tuple[int, str], nn.Module] = {}
        self._needed: Counter[tuple[int, str]] = Counter()

    def path(self, plan: Plan) -> Path:
        """Name each block of a plan; two blocks of one place and one name are the same.

        Raises:
            ConfigError: a pattern of the plan matches nothing.
        """
        formats = plan.resolve(encoder_linears(self._source))
        names = []
        for index in range(self.depth):
            prefix = f"blocks.{index}."
            wanted = {name.removeprefix(prefix): weights for name, weights in formats.items() if name.startswith(prefix)}
            name = " ".join(weights.name for weights in wanted.values())
            self._formats[index, name] = wanted
            names.append(name)
        return tuple(names)

    def expect(self, paths: Sequence[Path]) -> None:
        """Keep the blocks of these paths, which will be run and then released, until the last release."""
        self._needed.update(block for path in paths for block in enumerate(path))

    def release(self, path: Path) -> None:
        """Drop the blocks that only this path still needed."""
        for block in enumerate(path):
            self._needed[block] -= 1
            if self._needed[block] <= 0:
                self._converted.pop(block, None)

    def blocks(self, path: Path, start: int, stop: int) -> list[nn.Module]:
        """The converted blocks `start` up to `stop` of a path, in evaluation mode.

        Raises:
            ConfigError: a linear cannot take its format.
        """
        chosen = [(index, path[index]) for index in range(start, stop)]
        for index, name in chosen:
            if (index, name) not in self._converted:
                started = time.perf_counter()
                block = convert_block(self._source.blocks[index], self._formats[index, name], self.dtype)
                self._converted[index, name] = block.eval()  # bitsandbytes' new layers start in training mode
                self.converting_s += time.perf_counter() - started
        return [self._converted[block] for block in chosen]

    def model(self, path: Path, plan: Plan) -> VisionTransformer:
        """The whole model of a path, sharing every module with others; for counting and for calls, not to be changed.

        Raises:
            LowbitVitError: the model does not hold what the plan says.
        """
        model = copy.copy(self.ends)
        vars(model)["_modules"] = dict(vars(model)["_modules"])  # else the new blocks would be put into the model that is copied
        model.blocks = nn.ModuleList(self.blocks(path, 0, len(path)))
        found = audit(model).by_format
        expected = Counter(weights.name for weights in plan.resolve(encoder_linears(self._source)).values())
        if found != expected:
            raise LowbitVitError(f"plan {plan.name}: the model holds {found}, the plan says {dict(expected)}")
        return model.eval()


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
        self._started = time.perf_counter()
        self._accounted = (self._started, model.converting_s, 0)

    def room(self) -> int:
        """How many boundaries' activations may be kept in memory at a time: a share of what is free."""
        sizes = self._model.ends.architecture
        images = -(-self._count // self._batch_size) * self._batch_size  # the last batch is filled up
        boundary = images * sizes.tokens * sizes.width * self._model.dtype.itemsize
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
            views, size = trial.data.views, self._batch_size
            for full in full_batches(self._images, views, batch_size=size, device=trial.device, dtype=self._model.dtype):
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

    def cost_since_last(self) -> tuple[dict[str, float], int]:
        """Seconds of conversion and of evaluation, and block evaluations, since the last call: the share of the cell that is finished."""
        time_before, converting_before, evaluations_before = self._accounted
        self._accounted = time.perf_counter(), self._model.converting_s, self.block_evaluations
        seconds, converting = self._accounted[0] - time_before, self._accounted[1] - converting_before
        return (
            {"quantize": round(converting, 4), "evaluate": round(max(seconds - converting, 1e-4), 4)},
            self._accounted[2] - evaluations_before,
        )

    def summary(self) -> str:
        """The cost of all steps, in one line."""
        passes, seconds = self.block_evaluations / self._model.depth, time.perf_counter() - self._started
        return f"{self.block_evaluations} block evaluations = {passes:.2f} passes of the plain model, in {seconds:.1f} s"
