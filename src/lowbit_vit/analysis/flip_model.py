"""How many predictions a plan changes, read off its summed KL: a rising curve through the cells of the sensitivity study.

Flips do not add up. A block changes the class of the images that lie nearest to a boundary, and the next block changes mostly the
same ones; and of noise in the logits KL grows as the square, flips as the amount itself, so flips go as the root of KL. KL does add
up. So the curve is fitted to the cells' flips over the sum of KL that their blocks have alone, which is also what is known of a plan
before it is run. `additivity` sets both predictions beside what was measured of the mixed plans, on images that the fit has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from lowbit_vit.analysis.block_cells import BlockCells
from lowbit_vit.analysis.statistics import wilson
from lowbit_vit.schema.cell_role import AllBlocks, CellRole, OneUnit, Reference
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import SensitivityScores


@dataclass(frozen=True)
class FlipCurve:
    """Expected flips in 1,000 images over summed KL in nats.

    Attributes:
        roots: square roots of the KL at the curve's corners, ascending from 0.
        flips: in 1,000 images there, never falling, from 0.
        images: of the selection half, on which both were measured.
    """

    roots: tuple[float, ...]
    flips: tuple[float, ...]
    images: int

    def expected(self, kl: float) -> float:
        """Flips in 1,000 images of a plan whose units' KL is `kl` in all: straight between corners over the root, and beyond the last."""
        root = float(np.sqrt(max(kl, 0.0)))
        if root > self.roots[-1] > 0:
            return self.flips[-1] * root / self.roots[-1]
        return float(np.interp(root, self.roots, self.flips))

    def interval(self, kl: float) -> Interval:
        """Where 95 % of counts on as many other images lie, in flips of 1,000: Wilson's interval of half as many images.

        Half, because both the curve and the count that it is held against are counts on `images`: their variances add. The cells
        share their images, so the curve counts as one of them, though many made it.
        """
        half = max(1, self.images // 2)
        found = wilson(min(half, round(self.expected(kl) * half / 1000)), half)
        return Interval(low=1000 * found.low, high=1000 * found.high)

    def most_kl(self, flips: float) -> float:
        """The greatest summed KL whose expected flips in 1,000 images are no more than `flips`; infinite where none is too much."""
        if flips >= self.flips[-1]:
            return float((self.roots[-1] * flips / self.flips[-1]) ** 2) if self.flips[-1] > 0 else float("inf")
        above = next(index for index, value in enumerate(self.flips) if value > flips)
        low, high = self.flips[above - 1], self.flips[above]
        share = (flips - low) / (high - low)
        return float((self.roots[above - 1] + share * (self.roots[above] - self.roots[above - 1])) ** 2)


def flip_curve(
    cells: BlockCells, scores: Sequence[SensitivityScores], *, units: Literal["blocks", "modules"] = "blocks"
) -> FlipCurve | None:
    """Fit the curve to every cell of the sensitivity study, all formats and both directions, each with the same weight.

    Isotonic regression of flips on the sum of KL (pool adjacent violators): that flips do not fall as KL grows is all that is assumed.

    Args:
        cells: of the sensitivity study.
        scores: what each unit costs alone; the KL of a cell is the sum over the units that it quantizes.
        units: whose scores are summed.

    Returns:
        None without the high-precision reference, or without the scores of single units.

    Source: Barlow et al., "Statistical Inference under Order Restrictions", 1972, chapter 1; scipy.optimize.isotonic_regression.
    """
    summed = {role: _summed_kl(role, scores, units) for role in cells.place}
    points = [(kl, cells.selection.flips[cells.place[role]].sum()) for role, kl in summed.items() if kl is not None]
    if Reference() not in cells.place or not points:
        return None
    images = cells.selection.flips.shape[1]
    places, where = np.unique([kl for kl, _ in points], return_inverse=True)
    weights = np.bincount(where)
    means = np.bincount(where, weights=[count for _, count in points]) / weights
    fitted = 1000 * isotonic_regression(means, weights=weights).x / images
    return FlipCurve(roots=(0.0, *map(float, np.sqrt(places))), flips=(0.0, *map(float, fitted)), images=images)


def _summed_kl(role: CellRole, scores: Sequence[SensitivityScores], units: Literal["blocks", "modules"]) -> float | None:
    """The sum over the units that a cell quantizes; None where it is no sum of whole units, or nothing was measured alone."""
    if not isinstance(role, AllBlocks | OneUnit):
        return None
    score = next((score for score in scores if score.weights.name == role.weights and score.direction == "only"), None)
    found = () if score is None else score.blocks if units == "blocks" else score.modules
    if not found or (isinstance(role, OneUnit) and role.module is not None and units == "blocks"):
        return None
    whole = sum(unit.mean_kl for unit in found)
    if isinstance(role, AllBlocks):
        return whole
    own = sum(unit.mean_kl for unit in found if unit.block == role.block and role.module in (None, unit.module))
    # Rounding must not make a spared whole negative.
    return own if role.kind == "only" else max(0.0, whole - own)
