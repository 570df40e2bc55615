"""How pairs of blocks interact: what two blocks quantized together cost beyond the sum of what each costs alone.

The pairs are those of the most sensitive blocks (profile key mixed.pairs). All three cells are seen on the same images, those of the
selection half, so that `allocate` may use the terms. Intervals are of the mean over these images and hold for all pairs together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.programme import PairTerm
from lowbit_vit.analysis.results import Result, cells_by_role
from lowbit_vit.analysis.scores import simultaneous_intervals
from lowbit_vit.schema.cell_role import BlockPair, unit_role

PAIRS_SCHEMA: dict[str, Any] = {
    "weights": pl.String,
    "first": pl.Int64,
    "second": pl.Int64,
    "summed_kl": pl.Float64,
    "kl": pl.Float64,
    "interaction": pl.Float64,
    "interaction_low": pl.Float64,
    "interaction_high": pl.Float64,
    "images": pl.Int64,
    "trial_id": pl.String,
}
Floats = npt.NDArray[np.float64]


def pairs(mixed: Sequence[Result], sensitivity: Sequence[Result]) -> pl.DataFrame:
    """One row a pair whose blocks were measured alone as well, with the same attention and compute dtype; KL in nats."""
    alone = cells_by_role(sensitivity)
    rows, terms = [], []
    for role, result in cells_by_role(mixed).items():
        if not isinstance(role, BlockPair):
            continue
        singles = [alone.get(unit_role("only", role.weights, f"blocks.{block}")) for block in role.blocks]
        both, *ones = [_kl(cell, result) for cell in (result, *singles) if cell is not None]
        known = [one for one in ones if one is not None]
        if both is None or len(known) < 2:
            continue
        summed = known[0] + known[1]
        terms.append(both - summed)
        rows.append(
            {
                "weights": role.weights,
                "first": role.blocks[0],
                "second": role.blocks[1],
                "summed_kl": float(summed.mean()),
                "kl": float(both.mean()),
                "interaction": float((both - summed).mean()),
                "images": len(both),
                "trial_id": result.record.trial_id,
            }
        )
    intervals = simultaneous_intervals(np.stack(terms)) if terms else []
    for row, (low, high) in zip(rows, intervals, strict=True):
        row |= {"interaction_low": low, "interaction_high": high}
    return pl.DataFrame(rows, schema=PAIRS_SCHEMA).sort("weights", "first", "second")


def _kl(result: Result, of: Result) -> Floats | None:
    """Of the selection half; None without predictions, or where the cell ran otherwise than `of`."""
    trial, other = result.record.trial, of.record.trial
    if (trial.attention, trial.plan.compute_dtype) != (other.attention, other.plan.compute_dtype):
        return None
    if result.predictions is None or result.predictions.kl is None:
        return None
    return result.predictions.kl[result.predictions.selection].astype(np.float64)


def pair_terms(frame: pl.DataFrame) -> tuple[PairTerm, ...]:
    """The interactions as `programme` takes them, all that were measured: what is within noise is small."""
    return tuple(
        PairTerm(units=(f"blocks.{row['first']}", f"blocks.{row['second']}"), weights=row["weights"], kl=row["interaction"])
        for row in frame.to_dicts()
    )
