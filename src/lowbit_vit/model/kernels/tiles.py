"""Which tile a product is cut into: a few candidates, and the choice by shape.

The choice is a rule and not a search at start-up, so that every process runs the same kernel and gives the same numbers. Candidates
and rule come from benchmarks/records/fast_tiles.json (`benchmarks/fast_path.py --tiles`): on an H100, of nine tiles at the eight
shapes of a ViT-L/16 at batch 1 and 32, each of these was the fastest somewhere and no other was by more than 3 %.
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
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Products of 8-bit codes. Largest first.
EIGHT_BIT = (
    Tile(128, 128, 128, 4, 3),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 64, 128, 4, 4),
)


def tile_for(candidates: tuple[Tile, ...], *, rows: int, columns: int, multiprocessors: int) -> Tile:
    """The largest candidate that gives two thirds of the multiprocessors a piece; where none does, the one with most pieces.

    Two thirds: at one image, large tiles on 96 of 132 multiprocessors were faster than small ones on all, on 64 they were not.

    Args:
        candidates: largest first.
        rows: of the result.
        columns: of the result.
        multiprocessors: of the card.
    """

    def pieces(tile: Tile) -> int:
        return int(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns))

    return next((tile for tile in candidates if 3 * pieces(tile) >= 2 * multiprocessors), max(candidates, key=pieces))
