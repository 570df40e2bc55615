"""Where to cut a study's cells into scans of about the same length.

A scan computes blocks that its cells share once, so its length is not the number of its cells: one block alone in another format costs
what follows that block. Cells are in an order in which neighbours begin alike; a scan takes consecutive ones, and begins with the
high-precision path, whatever cells it has.
"""

from collections.abc import Sequence
from itertools import pairwise

from lowbit_vit.schema.plan import HighPrecision, Weights

# What one block costs in a format, in blocks of 16 bits: kernels of a ViT-L/16 at batch 32 on an H200, eager, int8 with threshold 0
# (reports/reference/h200). Elsewhere the ratios differ, and scans are a little less equal.
_OF_FORMAT = {"high": 1.0, "nf4": 1.0, "int8": 2.2}
_OF_CELL = 1.0  # what every cell costs beside its blocks: conversions, the head, sums over the images

Path = tuple[tuple[Weights, ...], ...]  # of each block, the weights of its linears


def cut(paths: Sequence[Path], *, chunks: int, most: int) -> list[int]:
    """Cut consecutive cells so that the most expensive chunk costs as little as it can, to a thousandth.

    Args:
        paths: of each cell, all of one depth, in the order in which they are scanned.
        chunks: how many at most.
        most: cells of a chunk, at most; `chunks` times `most` is enough for all.

    Returns:
        The bounds: chunk i holds the cells bounds[i] up to bounds[i + 1].
    """
    begun, going_on = _costs(paths)
    low, high = 0.0, sum(begun)
    while high - low > high / 1000:
        middle = (low + high) / 2
        if len(_fill(begun, going_on, most=most, budget=middle)) - 1 <= chunks:
            high = middle
        else:
            low = middle
    return _fill(begun, going_on, most=most, budget=high)


def cost(paths: Sequence[Path]) -> float:
    """Of one scan of these cells, in this order, in blocks of 16 bits; beside the high-precision path."""
    begun, going_on = _costs(paths)
    return begun[0] + sum(going_on)


def _costs(paths: Sequence[Path]) -> tuple[list[float], list[float]]:
    """What each cell costs as a scan's first, and what it costs after the one before it (of the very first: nothing)."""
    high_precision = tuple(tuple(HighPrecision() for _ in block) for block in paths[0])
    begun = [_cost(path, _shared(high_precision, path)) for path in paths]
    after_another = [_cost(path, _shared(before, path)) for before, path in pairwise(paths)]
    return begun, [0.0, *map(min, begun[1:], after_another)]


def _fill(begun: Sequence[float], going_on: Sequence[float], *, most: int, budget: float) -> list[int]:
    """Bounds of chunks that each take cells as long as the budget lasts; a cell that is over it has a chunk to itself."""
    bounds, cost = [0], begun[0]
    for index in range(1, len(begun)):
        cost += going_on[index]
        if cost > budget or index - bounds[-1] == most:
            bounds.append(index)
            cost = begun[index]
    return [*bounds, len(begun)]


def _shared(first: Path, second: Path) -> int:
    """How many blocks two paths begin with alike."""
    for boundary, (one, other) in enumerate(zip(first, second, strict=True)):
        if one != other:
            return boundary
    return len(first)


def _cost(path: Path, start: int) -> float:
    """Of a cell whose blocks before `start` are there already."""
    return _OF_CELL + sum(_OF_FORMAT.get(weights.format, 1.0) / len(block) for block in path[start:] for weights in block)
