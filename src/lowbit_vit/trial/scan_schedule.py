"""In which order a scan runs its cells, so that blocks which several of them share are computed once.

A cell is a path: one entry for each block, equal entries standing for equal blocks. Cells that begin alike need the same
activations up to the block where they part; those are kept at a boundary between blocks and used again. The high-precision
path goes first, for every other cell is measured from it; the boundaries that others branch off from are kept on the way, as
many as there is room for, evenly spread. Then each fork gives its smaller branches away before it advances along the largest
one, so that few boundaries are kept at a time. Where there is no room for one, the blocks are computed again.

With k blocks, each block alone in another format takes (k + 1) / 2 passes and one for the path itself; perfect reuse of both
directions takes k + 3 passes for 2k cells. Here a pass is k block evaluations. No torch: what is kept and when is decided
before anything runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lowbit_vit.schema.plan import shared_blocks

Path = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """All images through consecutive blocks.

    Attributes:
        path: the blocks `start` up to `stop` of it are run.
        start: boundary at which it begins: the number of blocks behind it.
        stop: boundary at which it ends; the length of the path: the head follows, and logits come out.
        source: slot that holds the activations at `start`; None: it begins with the images.
        last_use: nothing reads that slot after this step, which may release it as it goes.
        keep: boundaries on the way, ends included, whose activations are kept, and the slot of each.
    """

    path: Path
    start: int
    stop: int
    source: int | None
    last_use: bool
    keep: tuple[tuple[int, int], ...] = ()

    @property
    def blocks(self) -> int:
        """Block evaluations that it costs."""
        return self.stop - self.start

    @property
    def finishes(self) -> bool:
        """Whether logits of its path come out."""
        return self.stop == len(self.path)


def schedule(paths: Sequence[Path], *, first: Path | None, room: int) -> list[Step]:
    """Order the steps; every path is finished exactly once.

    Args:
        paths: of the cells, all of one length; repeated ones count once.
        first: the path that is to be finished before any other, among `paths` or not; None: any.
        room: how many boundaries may be kept at a time.
    """
    ahead = sorted(set(paths) - {first})
    free = list(reversed(range(room)))
    if first is None:
        return list(_visit(ahead, free, source=None, at=0, own=False))
    # Two are left for what forks off the path: the boundary that advances, and one that a fork of a fork needs.
    kept = _spread(sorted({shared_blocks(path, first) for path in ahead}), max(0, room - 2))
    places = {boundary: free.pop() for boundary in kept}
    steps = [Step(first, 0, len(first), source=None, last_use=False, keep=tuple(places.items()))]
    for boundary in reversed(kept):
        branches = [path for path in ahead if shared_blocks(path, first) >= boundary]
        ahead = [path for path in ahead if shared_blocks(path, first) < boundary]
        steps += _visit(branches, free, source=places[boundary], at=boundary, own=True)
    return steps + list(_visit(ahead, free, source=None, at=0, own=False))


def _visit(paths: list[Path], free: list[int], *, source: int | None, at: int, own: bool) -> Iterator[Step]:
    """Finish paths that are alike up to the boundary `at`, whose activations are in `source`; `own`: no other path needs them.

    `free` are the slots that hold nothing; each takes the activations at one boundary.
    """
    while len(paths) > 1:
        fork = min(shared_blocks(paths[0], path) for path in paths[1:])
        if fork > at or source is None:
            if not own and not free:
                for path in paths:
                    yield Step(path, at, len(path), source, last_use=False)
                return
            slot = source if own and source is not None else free.pop()
            yield Step(paths[0], at, fork, source, last_use=own, keep=((fork, slot),))
            source, at, own = slot, fork, True
        by_block = [list(group) for _, group in groupby(paths, key=lambda path: path[fork])]  # sorted, and alike up to the fork
        branches = sorted(by_block, key=lambda branch: _evaluations(branch, fork))
        for branch in branches[:-1]:
            yield from _visit(branch, free, source=source, at=at, own=False)
        paths = branches[-1]
    if paths:
        yield Step(paths[0], at, len(paths[0]), source, last_use=own)
    if own and source is not None:
        free.append(source)


def _evaluations(paths: Sequence[Path], at: int) -> int:
    """Block evaluations that finishing these paths from the boundary `at` takes at least."""
    return len({path[:stop] for path in paths for stop in range(at + 1, len(path) + 1)})


def _spread(boundaries: Sequence[int], room: int) -> list[int]:
    """Evenly chosen ones, the first of each share, at most `room`."""
    count = min(room, len(boundaries))
    return [boundaries[index * len(boundaries) // count] for index in range(count)]
