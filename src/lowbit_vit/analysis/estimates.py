"""How well cheap estimates rank what was measured: Kendall's tau of each estimator with the sensitivity study, and its interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from lowbit_vit.analysis.ranks import kendall, kendall_interval
from lowbit_vit.errors import DataError
from lowbit_vit.schema.plan import BlockScore, SensitivityScores
from lowbit_vit.schema.stage_documents import ESTIMATORS, Estimates

ESTIMATORS_SCHEMA: dict[str, Any] = {
    "weights": pl.String,
    "direction": pl.String,
    "units": pl.String,
    "estimator": pl.String,
    "number": pl.Int64,
    "kendall_tau": pl.Float64,
    "tau_low": pl.Float64,
    "tau_high": pl.Float64,
}


def measured_costs(score: SensitivityScores, units: Sequence[BlockScore]) -> list[float]:
    """What each unit costs: mean KL over the draws; of a spared unit its negative, for it costs what sparing it saves."""
    sign = 1.0 if score.direction == "only" else -1.0
    return [sign * float(np.mean(unit.kl)) for unit in units]


def estimator_agreement(estimates: Estimates | None, scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """One row for each format, direction, kind of unit and estimator; nothing where there are no estimates.

    Raises:
        DataError: the estimates are of other weights than the scores, or leave out what was scored.
    """
    rows = []
    if estimates is None:
        return pl.DataFrame(schema=ESTIMATORS_SCHEMA)
    for score in scores:
        if estimates.backbone_sha256 != score.backbone_sha256:
            raise DataError(
                f"estimates.json of {estimates.profile}: of other weights than the sensitivity study's; "
                f"run lowbit-vit estimate {estimates.profile} again"
            )
        for kind, units in (("blocks", score.blocks), ("modules", score.modules)):
            for estimator in ESTIMATORS if len(units) > 1 else ():
                if kind == "blocks":
                    by_block = estimates.of_blocks(score.weights.name, estimator)
                    found = [by_block.get(unit.block) for unit in units]
                else:
                    by_name = estimates.of_linears(score.weights.name, estimator)
                    found = [by_name.get(unit.name) for unit in units]
                guessed = [value for value in found if value is not None]
                if len(guessed) < len(units):
                    raise DataError(
                        f"estimates.json of {estimates.profile}: nothing on {score.weights.name}, {units[found.index(None)].name}; "
                        f"run lowbit-vit estimate {estimates.profile} again"
                    )
                measured = measured_costs(score, units)
                interval = kendall_interval(guessed, measured)
                rows.append(
                    {
                        "weights": score.weights.name,
                        "direction": score.direction,
                        "units": kind,
                        "estimator": estimator.replace("_", " "),
                        "number": len(units),
                        "kendall_tau": kendall(guessed, measured),
                        "tau_low": None if interval is None else interval.low,
                        "tau_high": None if interval is None else interval.high,
                    }
                )
    return pl.DataFrame(rows, schema=ESTIMATORS_SCHEMA)
