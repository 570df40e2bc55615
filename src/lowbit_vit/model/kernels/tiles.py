"""Which tile a product is cut into: a small table of candidates, and the choice by shape.

The choice is a rule and not a search at start-up, so that every process runs the same kernel and gives the same numbers.
`benchmarks/fast_path.py --tiles` times every candidate at the real shapes of a ViT-L/16 and writes what it found; the rule's
numbers are to be set from that record.
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


# Products of 8-bit codes. The depth is GROUP where scales come for each GROUP columns; columns are a multiple of GROUP where the
# epilogue quantizes. Largest first.
EIGHT_BIT = (
    Tile(128, 256, 128, 8, 3),
    Tile(128, 128, 128, 8, 4),
    Tile(128, 128, 128, 4, 3),
    Tile(64, 256, 128, 8, 3),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 64, 128, 4, 4),
    Tile(32, 128, 128, 4, 4),
    Tile(32, 64, 128, 4, 5),
    Tile(16, 64, 128, 4, 5),
)
# NF4 codes decoded in the main loop, a block of 64 weights of each row at a time.
NF4 = (
    Tile(64, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(32, 64, 64, 4, 4),
    Tile(16, 64, 64, 4, 4),
)


def tile_for(candidates: tuple[Tile, ...], *, rows: int, columns: int, programs: int, multiple: int = 1) -> Tile:
    """The largest candidate that cuts the result into at least `programs` pieces; where none does, the one with most pieces.

    Args:
        candidates: largest first.
        rows: of the result.
        columns: of the result.
        programs: pieces that are wanted: the card's multiprocessors.
        multiple: of which the tile's columns must be a multiple.
    """
    fitting = [tile for tile in candidates if tile.columns % multiple == 0]

    def pieces(tile: Tile) -> int:
        return int(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns))

    return next((tile for tile in fitting if pieces(tile) >= programs), max(fitting, key=pieces))
