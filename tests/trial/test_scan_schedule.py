from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_vit.trial.scan_schedule import Path, Step, schedule

DEPTH = 24
HIGH, LOW = ("high",) * DEPTH, ("nf4",) * DEPTH


def with_blocks(path: Path, blocks: tuple[int, ...], other: str) -> Path:
    return tuple(other if index in blocks else block for index, block in enumerate(path))


ONLY = [with_blocks(HIGH, (block,), "nf4") for block in range(DEPTH)]
ALL_BUT = [with_blocks(LOW, (block,), "high") for block in range(DEPTH)]
SPARED = [with_blocks(LOW, pair, "high") for pair in list(combinations(range(DEPTH), 2))[::12]]


def passes(steps: list[Step]) -> float:
    return sum(step.blocks for step in steps) / DEPTH


def least_passes(paths: list[Path]) -> float:
    return len({path[:stop] for path in paths for stop in range(1, DEPTH + 1)}) / DEPTH


def walk(steps: list[Step], paths: list[Path], *, room: int) -> list[Path]:
    """Follow the steps with names in place of activations: what is finished, in order; every source must hold what it claims."""
    kept: dict[int, Path] = {}
    finished = []
    for step in steps:
        if step.source is not None:
            assert kept[step.source] == step.path[: step.start]
            if step.last_use:
                del kept[step.source]
        else:
            assert step.start == 0
        for boundary, slot in step.keep:
            assert step.start <= boundary <= step.stop
            assert slot not in kept
            assert 0 <= slot < room
            kept[slot] = step.path[:boundary]
        if step.finishes:
            finished.append(step.path)
    assert not kept, "activations outlive their last use"
    assert sorted(finished) == sorted(set(paths))
    return finished


@pytest.mark.parametrize(("room", "most"), [(2, 27.8), (4, 27.75), (12, 27.4), (26, 26.8)])
def test_forty_eight_block_cells_cost_about_27_passes(room: int, most: float) -> None:
    steps = schedule([*ONLY, *ALL_BUT], first=HIGH, room=room)
    walk(steps, [HIGH, *ONLY, *ALL_BUT], room=room)
    assert passes(steps) <= most


def test_with_room_for_every_boundary_no_block_is_computed_twice() -> None:
    for cells in (ONLY, ALL_BUT, [*ONLY, *ALL_BUT, LOW], SPARED):
        steps = schedule(cells, first=HIGH, room=DEPTH + 2)
        assert passes(steps) == pytest.approx(least_passes([HIGH, *cells]))


def test_without_room_every_path_is_computed_alone() -> None:
    assert passes(schedule([*ONLY, *ALL_BUT], first=HIGH, room=0)) == 49


def test_sparing_pairs_shares_the_low_bit_prefix() -> None:
    steps = schedule(SPARED, first=HIGH, room=4)
    walk(steps, [HIGH, *SPARED], room=4)
    assert passes(steps) <= 1.02 * least_passes([HIGH, *SPARED]) < 0.75 * (len(SPARED) + 1)


PATHS = st.lists(st.tuples(*[st.sampled_from("ab")] * 5), min_size=1, max_size=12)


@given(PATHS, st.one_of(st.none(), st.tuples(*[st.sampled_from("ab")] * 5)), st.integers(0, 8))
def test_every_path_is_finished_once_from_what_is_kept_and_the_first_one_first(paths: list[Path], first: Path | None, room: int) -> None:
    steps = schedule(paths, first=first, room=room)
    finished = walk(steps, paths if first is None else [*paths, first], room=room)
    if first is not None:
        assert finished[0] == first
    assert sum(step.blocks for step in steps) <= 5 * len(finished)
