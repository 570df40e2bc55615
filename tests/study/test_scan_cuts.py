"""Scans of one study end at about the same time: cut by the blocks that each computes, not by its number of cells."""

import math
from itertools import pairwise
from typing import Any

import pytest

from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Weights
from lowbit_vit.study.units import BlockFormats, cost, cut

DEPTH = 24
HIGH = HighPrecision()
FORMATS: tuple[Weights, ...] = (NF4(format="nf4", double_quantization=False), Int8(format="int8", threshold=0.0))
COST = {"high": 1.0, "nf4": 1.0, "int8": 2.2}  # passes of a 16-bit block


def one_other(block: int, inside: Weights, outside: Weights) -> BlockFormats:
    return tuple((inside if index == block else outside,) * 6 for index in range(DEPTH))


def study_of_blocks() -> list[BlockFormats]:
    """Each block alone in each format, each block alone spared, and the three uniform ones."""
    only = [one_other(block, weights, HIGH) for weights in FORMATS for block in range(DEPTH)]
    spared = [one_other(block, HIGH, weights) for weights in FORMATS for block in range(DEPTH)]
    uniform = [one_other(0, weights, weights) for weights in (HIGH, *FORMATS)]
    return sorted([*only, *spared, *uniform], key=lambda path: [[weights.name for weights in block] for block in path])


def cost_of_scan(paths: list[BlockFormats]) -> float:
    """Counted anew: every beginning that is computed, once, the high-precision path's too, and a share for each cell."""
    computed = {path[:stop] for path in (*paths, one_other(0, HIGH, HIGH)) for stop in range(1, DEPTH + 1)}
    return sum(COST[beginning[-1][0].format] for beginning in computed) + len(paths)


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_scans_of_the_study_of_blocks_cost_about_the_same(chunks: int) -> None:
    paths = study_of_blocks()
    bounds = cut(paths, chunks=chunks, most=99)
    costs = [cost_of_scan(paths[start:stop]) for start, stop in pairwise(bounds)]
    assert [cost(paths[start:stop]) + DEPTH for start, stop in pairwise(bounds)] == pytest.approx(costs)  # and the high-precision path
    assert (bounds[0], bounds[-1], len(costs)) == (0, len(paths), chunks)
    assert max(costs) <= 1.12 * sum(costs) / chunks
    by_number = [len(paths) * index // chunks for index in range(chunks + 1)]
    assert max(costs) <= max(cost_of_scan(paths[start:stop]) for start, stop in pairwise(by_number))


@pytest.mark.parametrize("most", [13, 25, 64])
def test_no_scan_has_more_cells_than_it_may(most: int) -> None:
    paths = study_of_blocks()
    sizes = [stop - start for start, stop in pairwise(cut(paths, chunks=math.ceil(len(paths) / most), most=most))]
    assert max(sizes) <= most
    assert sum(sizes) == len(paths)


def test_cells_that_are_alike_but_for_what_is_no_format_are_shared_out_too() -> None:
    alike: list[Any] = [one_other(3, FORMATS[0], HIGH)] * 40
    assert cut(alike, chunks=4, most=64) == [0, 10, 20, 30, 40]
    assert cut(alike[:1], chunks=1, most=1) == [0, 1]
