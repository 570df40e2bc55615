"""Which tile a product is cut into: a few candidates, and the choice by shape.

The choice is a rule and not a search at start-up, so that every process runs the same kernel and gives the same numbers. Candidates
and rule come from benchmarks/records/fast_tiles.json (`benchmarks/fast_path.py --tiles`), which times them at the shapes of a
ViT-L/16 at batch 1 and 32. At one image the weights come from memory, and it is the loads in flight that count: the small tiles have
as many as fit.
"""

from typing import NamedTuple

import triton


class Tile(NamedTuple):
    """One program's share of a product.

    Attributes:
        rows: of the result.
        columns: of the result.
        depth: taken at once in the main loop.
        warps: of the program.
        stages: loads in flight.
        parts: of the depth, a program for each.
        bulk: whether the card's copy engine moves it (`bulk`); then in one part.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 1
    bulk: bool = False


STRIPE = 8  # tiles of rows that share their weights' tiles in the second-level cache
# Products of 8-bit codes. Largest first.
EIGHT_BIT = (
    Tile(128, 128, 128, 4, 3),
    Tile(64, 128, 128, 4, 6),
    Tile(64, 64, 256, 4, 3),
)
BULK = EIGHT_BIT[0]._replace(bulk=True)
IN_PARTS = Tile(64, 64, 128, 4, 8, parts=2)
LONG = 2048  # a depth from which adding up two parts costs less than it saves


def tile_for(*, rows: int, columns: int, depth: int, multiprocessors: int, in_parts: bool, in_bulk: bool) -> Tile:
    """The largest tile that gives two thirds of the multiprocessors a piece; where none does, the one with most pieces.

    Two thirds: at one image, large tiles on 96 of 132 multiprocessors were faster than small ones on all, on 64 they were not.

    Args:
        rows: of the result.
        columns: of the result.
        depth: of the product.
        multiprocessors: of the card.
        in_parts: whether a long depth may be cut where no tile gives so many pieces.
        in_bulk: whether the largest tile may be moved by the copy engine.
    """

    def pieces(tile: Tile) -> int:
        return int(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns))

    filling = next((tile for tile in EIGHT_BIT if 3 * pieces(tile) >= 2 * multiprocessors), None)
    if filling is None and in_parts and depth >= LONG:
        return IN_PARTS
    if filling == EIGHT_BIT[0] and in_bulk:
        return BULK
    return filling or max(EIGHT_BIT, key=pieces)
