"""Who wins at equal bytes: each choice of a mixed plan against the random plans, and against sparing the first and last blocks.

A flip is an image of the report half whose Top-1 class is not the high-precision model's. Against random plans the rank decides: its
p value is (1 + random plans that are at least as good) / (1 + random plans), so 39 of them are needed for 1/40. Where the random plans
are all that there are (a small model), the choice is one of them if it spares k blocks, and the p value is the share that is at least
as good, with nothing added. Against the heuristic the test is paired, image by image: McNemar's of the flips, adjusted by Holm over all
contests, and an interval of the mean difference of KL that holds for all contests together.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.power import detectable_paired
from lowbit_vit.analysis.results import Result, cells_by_role
from lowbit_vit.analysis.scores import simultaneous_intervals
from lowbit_vit.analysis.statistics import compare, holm
from lowbit_vit.schema.cell_role import CellRole, Chosen, Random, Reference

HEURISTIC: Final = "first+last"
CONTESTS_SCHEMA: dict[str, Any] = {
    "k": pl.Int64,
    "strategy": pl.String,
    "images": pl.Int64,
    "flips": pl.Int64,
    "kl": pl.Float64,
    "random_plans": pl.Int64,
    "random_median_flips": pl.Float64,
    "random_median_kl": pl.Float64,
    "rank_p_flips": pl.Float64,
    "rank_p_kl": pl.Float64,
    "heuristic_flips": pl.Int64,
    "heuristic_kl": pl.Float64,
    "flips_ratio": pl.Float64,
    "p_flips": pl.Float64,
    "p_flips_holm": pl.Float64,
    "detectable_flips": pl.Float64,
    "kl_difference": pl.Float64,
    "kl_difference_low": pl.Float64,
    "kl_difference_high": pl.Float64,
    "trial_id": pl.String,
}


def contests(mixed: Sequence[Result], *, depth: int) -> pl.DataFrame:
    """One row for each k and each choice but the random ones; the columns against the heuristic are null in its own row.

    `depth` is the model's number of blocks: it says whether the random plans are all that there are.
    """
    cells = cells_by_role(mixed)
    answers = {role: result.predictions for role, result in cells.items() if result.predictions is not None}
    reference = answers.get(Reference())
    if reference is None:
        return pl.DataFrame(schema=CONTESTS_SCHEMA)
    unknown = np.full(int((~reference.selection).sum()), np.nan)
    flips = {role: found.flips(reference)[~reference.selection] for role, found in answers.items()}
    kl = {role: unknown if found.report_kl is None else found.report_kl for role, found in answers.items()}
    rows, differences = [], []
    for role in sorted((role for role in cells if isinstance(role, Chosen)), key=lambda role: (role.k, role.kind)):
        record = cells[role].record
        others = [peer for peer in cells if isinstance(peer, Random) and peer.k == role.k]
        is_one = not set(others).isdisjoint(record.trial.roles)
        own = 0 if is_one and len(others) == math.comb(depth, role.k) else 1
        rows.append({**_contest(role, others, flips, kl, own=own), "trial_id": record.trial_id})
        differences.append(kl[role] - kl.get(Chosen(kind=HEURISTIC, k=role.k), unknown))
    challengers = [index for index, row in enumerate(rows) if row["strategy"] != HEURISTIC and row["p_flips"] is not None]
    adjusted = holm([rows[index]["p_flips"] for index in challengers])
    intervals = simultaneous_intervals(np.stack([differences[index] for index in challengers])) if challengers else []
    for index, p_value, (low, high) in zip(challengers, adjusted, intervals, strict=True):
        mean = float(differences[index].mean())
        rows[index] |= {"p_flips_holm": p_value, "kl_difference": mean, "kl_difference_low": low, "kl_difference_high": high}
    return pl.DataFrame(rows, schema=CONTESTS_SCHEMA)


def _contest(
    role: Chosen,
    peers: Sequence[Random],
    all_flips: Mapping[CellRole, npt.NDArray[np.bool_]],
    all_kl: Mapping[CellRole, npt.NDArray[np.float64]],
    *,
    own: int,
) -> dict[str, Any]:
    """Flips and KL of the report half against those of `peers` and of the heuristic; `own` is added to ranks and their number."""
    flips, kl = all_flips[role], all_kl[role]
    peer_flips = [int(all_flips[peer].sum()) for peer in peers]
    peer_kl = [float(all_kl[peer].mean()) for peer in peers]
    row: dict[str, Any] = {
        "k": role.k,
        "strategy": role.kind,
        "images": len(flips),
        "flips": int(flips.sum()),
        "kl": float(kl.mean()),
        "random_plans": len(peers),
        "random_median_flips": float(np.median(peer_flips)) if peers else None,
        "random_median_kl": float(np.median(peer_kl)) if peers else None,
        "rank_p_flips": (own + sum(other <= int(flips.sum()) for other in peer_flips)) / (own + len(peers)),
        "rank_p_kl": (own + sum(other <= float(kl.mean()) for other in peer_kl)) / (own + len(peers)),
        "p_flips": None,
    }
    heuristic = Chosen(kind=HEURISTIC, k=role.k)
    if heuristic not in all_flips or role == heuristic:
        return row
    theirs = all_flips[heuristic]
    outcome = compare(~theirs, ~flips)
    detectable = detectable_paired(outcome.discordance, images=outcome.images)
    return row | {
        "heuristic_flips": int(theirs.sum()),
        "heuristic_kl": float(all_kl[heuristic].mean()),
        "flips_ratio": float(flips.sum() / theirs.sum()) if theirs.any() else None,
        "p_flips": outcome.p_value,
        "detectable_flips": None if detectable is None else detectable * outcome.images,
    }
