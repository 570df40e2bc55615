"""One resident model for many cells: the fp32 weights, the blocks converted from them, and the model that blocks are put into.

A cell's path names each of its blocks by the formats of its linears: equal names are one converted block, bit for bit that of
`apply_plan`. A block is converted when a cell first needs it and dropped when the last one is done.
"""

import copy
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model.precision import apply_plan, audit, compute_dtype, convert_block
from lowbit_vit.model.vit import VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import Plan, Weights
from lowbit_vit.trial.scan_schedule import Path

Formats = dict[str, Weights]


class ScanModel:
    """Converted blocks of one set of weights in one compute dtype.

    Args:
        model: fp32, on its device; never changed.
        plan: of any cell; its compute dtype holds for all.
    """

    def __init__(self, model: VisionTransformer, plan: Plan) -> None:
        self.depth = len(model.blocks)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.dtype: torch.dtype = compute_dtype(plan)
        self.converting_s = 0.0
        self._source = model
        self._ends = copy.deepcopy(model)
        apply_plan(self._ends, Plan(compute_dtype=plan.compute_dtype))
        self._ends.blocks = nn.ModuleList()  # every path brings its own
        self._formats: dict[tuple[int, str], Formats] = {}
        self._converted: dict[tuple[int, str], nn.Module] = {}
        self._needed: Counter[tuple[int, str]] = Counter()

    @property
    def ends(self) -> VisionTransformer:
        """The model whose embedding, last norm and head every cell shares."""
        return self._ends

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
        """Say which paths will be run and then released, so that their blocks are kept until then."""
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
        return [self._block(index, path[index]) for index in range(start, stop)]

    def _block(self, index: int, name: str) -> nn.Module:
        if (index, name) not in self._converted:
            started = time.perf_counter()
            block = convert_block(self._source.blocks[index], self._formats[index, name], self.dtype)
            self._converted[index, name] = block.eval()  # bitsandbytes' new layers start in training mode
            self.converting_s += time.perf_counter() - started
        return self._converted[index, name]

    def model(self, path: Path, plan: Plan) -> VisionTransformer:
        """The whole model of a path, sharing every module with others; for counting and for calls, not to be changed.

        Raises:
            LowbitVitError: the model does not hold what the plan says.
        """
        model = copy.copy(self._ends)
        vars(model)["_modules"] = dict(vars(model)["_modules"])  # else the new blocks would be put into the model that is copied
        model.blocks = nn.ModuleList(self.blocks(path, 0, len(path)))
        found = audit(model).by_format
        expected = Counter(weights.name for weights in plan.resolve(encoder_linears(self._source)).values())
        if found != expected:
            raise LowbitVitError(f"plan {plan.name}: the model holds {found}, the plan says {dict(expected)}")
        return model.eval()
