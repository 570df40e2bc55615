"""The tables of the mixed study: what sparing k blocks gives back, who wins at equal bytes, and how pairs of blocks interact.

Plans are chosen on the selection half of the test images, so accuracy, KL and flips are of the report half; the pairs alone are of the
selection half, so that `allocate` may use what they say.
"""

import math
from typing import Final

import numpy as np
import polars as pl

from lowbit_vit.analysis.block_cells import OUTCOME, BlockCells, cell_rows
from lowbit_vit.analysis.intervals import simultaneous_intervals
from lowbit_vit.analysis.programme import PairTerm
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import compare, detectable_paired, holm
from lowbit_vit.schema.cell_role import BlockPair, CellRole, Chosen, GivenPlan, NoneSpared, Reference, label_of, unit_role
from lowbit_vit.schema.plan import linear_names, spared_blocks

METRICS = ("top1", "kl", "flips_per_1000")
HEURISTIC: Final = "first+last"
STRATEGIES = {"none": "fully quantized", "reference": "high precision"}
KINDS = ("none", "first+last", "last", "most sensitive", "gradient", "milp", "random", "plan", "reference")  # in the order of the rows


def mixed(cells: BlockCells, *, depth: int) -> pl.DataFrame:
    """One row for each part that a cell plays; the difference is from the fully quantized model, paired, on the report half.

    Flips, in 1,000 images of the report half, are from the high-precision model; null without it.
    """
    none = next((role for role in cells.place if isinstance(role, NoneSpared)), None)
    strategies = [label_of(role) if isinstance(role, GivenPlan) else STRATEGIES.get(role.kind, role.kind) for role, _ in cells.parts]
    spared = [_blocks(role, result, depth) for role, result in cells.parts]
    return (
        cell_rows(cells, against=none)
        .with_columns(
            pl.Series("strategy", strategies, dtype=pl.String),
            pl.Series("blocks", spared, dtype=pl.String),
            (1000 * (pl.col("flips") / pl.col("images"))).alias("flips_per_1000"),
        )
        .filter(pl.col("kind") != "pair")
        .sort(pl.col("k").fill_null(0), pl.col("kind").cast(pl.Enum(KINDS)), pl.col("index").fill_null(0), maintain_order=True)
        .select("k", "strategy", "index", "blocks", *OUTCOME, "flips_per_1000")
    )


def _blocks(role: CellRole, result: Result, depth: int) -> str:
    if role.kind in STRATEGIES:
        return "all" if role.kind == "reference" else "none"
    plan = result.record.trial.plan
    spared = " ".join(str(block) for block in spared_blocks(plan, depth))
    used = {weights.name for weights in plan.resolve(linear_names(depth)).values()}
    return spared if len(used) <= 2 else f"{spared or 'none'}, of {', '.join(sorted(used))}"


def random_bands(frame: pl.DataFrame) -> pl.DataFrame:
    """Least, quartiles and greatest of the random plans for each k: Top-1 in percent, KL in nats, flips in 1,000 images."""
    random = frame.filter(strategy="random").with_columns(pl.col("top1") * 100)
    quantiles = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "greatest": 1.0}
    return (
        random.unpivot(index="k", on=list(METRICS), variable_name="metric")
        .drop_nulls("value")
        .group_by("k", "metric")
        .agg(
            pl.len().cast(pl.Int64).alias("plans"),
            *(pl.col("value").quantile(level, interpolation="linear").alias(name) for name, level in quantiles.items()),
        )
        .sort("k", pl.col("metric").cast(pl.Enum(METRICS)))
    )


def beats_random(frame: pl.DataFrame) -> pl.DataFrame:
    """For each chosen plan: how many random plans of the same k its Top-1 and its KL beat (a tie counts half)."""
    plans = frame.drop_nulls(["k", "top1"]).select("k", "strategy", "top1", loss="kl")
    random = plans.filter(strategy="random").select("k", top1_random="top1", loss_random="loss")

    def beaten(more: str, less: str) -> pl.Expr:
        return (pl.col(more) > pl.col(less)).sum() + (pl.col(more) == pl.col(less)).sum() / 2

    return (
        plans.filter(pl.col("strategy") != "random")
        .join(random, on="k", how="left", maintain_order="left")
        .group_by("k", "strategy", maintain_order=True)
        .agg(
            random_plans=pl.col("top1_random").count().cast(pl.Int64),
            beaten_top1=beaten("top1", "top1_random"),
            beaten_kl=beaten("loss_random", "loss"),
        )
    )


# ---------------------------------------------------------------------------------------------------------- at equal bytes


def equal_bytes(cells: BlockCells, *, depth: int) -> pl.DataFrame:
    """Who wins at equal bytes: one row for each k and each choice but the random ones; nothing without the high-precision model.

    A flip is an image whose Top-1 class is not the high-precision model's. Against random plans the rank decides: its p value is
    (1 + random plans that are at least as good) / (1 + random plans), so 39 of them are needed for 1/40. Where the random plans are all
    that there are (a small model), the choice is one of them if it spares k blocks, and the p value is the share that is at least as
    good, with nothing added. The columns against the heuristic, which spares the first and last blocks, are null in its own row.

    `depth` is the model's number of blocks: it says whether the random plans are all that there are.
    """
    rows = cell_rows(cells).drop_nulls(["flips", "k"]).select("k", "images", "flips", "kl", "trial_id", strategy="kind")
    random = rows.filter(strategy="random").select("k", "flips", "kl", "trial_id")
    plans, among = pl.col("flips_random").count(), (pl.col("trial_id") == pl.col("trial_id_random")).any()
    own = 1 - (among & (plans == pl.col("all_plans").first())).cast(pl.Int64)

    def rank_p(name: str) -> pl.Expr:
        return (own + (pl.col(f"{name}_random") <= pl.col(name)).sum()) / (own + plans)

    return (
        rows.filter(pl.col("strategy") != "random")
        .with_columns(all_plans=pl.col("k").map_elements(lambda k: math.comb(depth, k), return_dtype=pl.Int64))
        .join(random, on="k", how="left", suffix="_random")
        .group_by("k", "strategy")
        .agg(
            pl.col("images", "flips", "kl", "trial_id").first(),
            random_plans=plans.cast(pl.Int64),
            random_median_flips=pl.col("flips_random").median(),
            random_median_kl=pl.col("kl_random").median(),
            rank_p_flips=rank_p("flips"),
            rank_p_kl=rank_p("kl"),
        )
        .join(_against_heuristic(cells), on=["k", "strategy"], how="left")
        .sort("k", "strategy")
        .select(pl.exclude("trial_id"), "trial_id")
    )


def _against_heuristic(cells: BlockCells) -> pl.DataFrame:
    """Image by image: McNemar's test of the flips, adjusted by Holm over all contests, and the mean difference of KL.

    The intervals of the differences hold for all contests together.
    """
    heuristic = {role.k: place for role, place in cells.place.items() if isinstance(role, Chosen) and role.kind == HEURISTIC}
    roles = [role for role in cells.place if isinstance(role, Chosen) and role.kind != HEURISTIC and role.k in heuristic]
    roles = sorted(roles if Reference() in cells.place else [], key=lambda role: (role.k, role.kind))
    ours, theirs = [cells.place[role] for role in roles], [heuristic[role.k] for role in roles]
    flips, kl = cells.report.flips, cells.report.kl
    counts, difference = flips[theirs].sum(axis=1), kl[ours] - kl[theirs]
    low, high = simultaneous_intervals(difference).T
    tests = [compare(second == 0, first == 0) for first, second in zip(flips[ours], flips[theirs], strict=True)]
    p_values = [test.p_value for test in tests]
    detectable = [detectable_paired(test.discordance, images=test.images) for test in tests]
    columns: dict[str, object] = {
        "k": [role.k for role in roles],
        "strategy": [role.kind for role in roles],
        "heuristic_flips": counts.astype(np.int64),
        "heuristic_kl": kl[theirs].mean(axis=1),
        "flips_ratio": np.divide(flips[ours].sum(axis=1), counts, out=np.full(len(roles), np.nan), where=counts > 0),
        "p_flips": p_values,
        "p_flips_holm": holm(p_values),
        "detectable_flips": [None if share is None else share * test.images for share, test in zip(detectable, tests, strict=True)],
        "kl_difference": difference.mean(axis=1),
        "kl_difference_low": low,
        "kl_difference_high": high,
    }
    lists = dict.fromkeys(("p_flips", "p_flips_holm", "detectable_flips"), pl.Float64)
    return pl.DataFrame(columns, schema_overrides={"k": pl.Int64, "strategy": pl.String, **lists}).fill_nan(None)


# ---------------------------------------------------------------------------------------------------------- pairs of blocks


def block_interactions(mixed: BlockCells, sensitivity: BlockCells) -> pl.DataFrame:
    """What two blocks quantized together cost beyond the sum of what each costs alone, KL in nats on the selection half.

    One row a pair (of the most sensitive blocks: profile key mixed.pairs) whose blocks were measured alone as well, with the same
    attention and compute dtype. Intervals are of the mean over the images and hold for all pairs together.
    """
    ran = {role: result.record.trial for role, result in (*mixed.parts, *sensitivity.parts)}
    pairs = []
    for both in mixed.place:
        if isinstance(both, BlockPair):
            first, second = (unit_role("only", both.weights, f"blocks.{block}") for block in both.blocks)
            known = {first, second} <= sensitivity.place.keys()
            if known and len({(ran[role].attention, ran[role].plan.compute_dtype) for role in (both, first, second)}) == 1:
                pairs.append((both, sensitivity.place[first], sensitivity.place[second]))
    kl, alone = mixed.selection.kl[[mixed.place[both] for both, _, _ in pairs]], sensitivity.selection.kl
    summed = alone[[first for _, first, _ in pairs]] + alone[[second for _, _, second in pairs]]
    low, high = simultaneous_intervals(kl - summed).T
    columns: dict[str, object] = {
        "weights": [both.weights for both, _, _ in pairs],
        "first": [both.blocks[0] for both, _, _ in pairs],
        "second": [both.blocks[1] for both, _, _ in pairs],
        "summed_kl": summed.mean(axis=1),
        "kl": kl.mean(axis=1),
        "interaction": (kl - summed).mean(axis=1),
        "interaction_low": low,
        "interaction_high": high,
        "images": [kl.shape[1]] * len(pairs),
        "trial_id": [ran[both].trial_id for both, _, _ in pairs],
    }
    types = {"weights": pl.String, "first": pl.Int64, "second": pl.Int64, "images": pl.Int64, "trial_id": pl.String}
    return pl.DataFrame(columns, schema_overrides=types).sort("weights", "first", "second")


def pair_terms(frame: pl.DataFrame) -> tuple[PairTerm, ...]:
    """The interactions as `programme` takes them, all that were measured: what is within noise is small."""
    return tuple(
        PairTerm(units=(f"blocks.{row['first']}", f"blocks.{row['second']}"), weights=row["weights"], kl=row["interaction"])
        for row in frame.to_dicts()
    )
