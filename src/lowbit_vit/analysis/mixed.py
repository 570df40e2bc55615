"""The tables of the mixed study: what sparing k blocks gives back, who wins at equal bytes, and how pairs of blocks interact.

Plans are chosen on the selection half of the test images, so accuracy, KL and flips are of the report half; the pairs alone are of the
selection half, so that `allocate` may use what they say.
"""

import math
from typing import Final, NamedTuple, get_type_hints

import polars as pl

from lowbit_vit.analysis.block_cells import OUTCOME, BlockCells, cell_rows
from lowbit_vit.analysis.bootstrap import simultaneous_intervals
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


class Contest(NamedTuple):
    """A choice against the heuristic's plan of the same k."""

    k: int
    strategy: str
    heuristic_flips: int
    heuristic_kl: float
    flips_ratio: float | None
    p_flips: float
    p_flips_holm: float | None
    detectable_flips: float | None
    kl_difference: float
    kl_difference_low: float
    kl_difference_high: float


def _against_heuristic(cells: BlockCells) -> pl.DataFrame:
    """Image by image: McNemar's test of the flips, adjusted by Holm over all contests, and the mean difference of KL.

    The intervals of the differences hold for all contests together.
    """
    rows: list[dict[str, object]] = []
    differences, p_values = [], []
    for role in sorted((role for role in cells.place if isinstance(role, Chosen)), key=lambda role: (role.k, role.kind)):
        heuristic = Chosen(kind=HEURISTIC, k=role.k)
        if role == heuristic or not {heuristic, Reference()} <= cells.place.keys():
            continue
        places = [cells.place[role], cells.place[heuristic]]
        (flips, theirs), kl = cells.report.flips[places], cells.report.kl[places]
        outcome = compare(theirs == 0, flips == 0)
        detectable = detectable_paired(outcome.discordance, images=outcome.images)
        differences.append(kl[0] - kl[1])
        p_values.append(outcome.p_value)
        rows.append(
            {
                "k": role.k,
                "strategy": role.kind,
                "heuristic_flips": theirs.sum(),
                "heuristic_kl": kl[1].mean(),
                "flips_ratio": flips.sum() / theirs.sum() if theirs.any() else None,
                "p_flips": outcome.p_value,
                "detectable_flips": None if detectable is None else detectable * outcome.images,
                "kl_difference": differences[-1].mean(),
            }
        )
    for row, p_value, (low, high) in zip(rows, holm(p_values), simultaneous_intervals(differences), strict=True):
        row |= {"p_flips_holm": p_value, "kl_difference_low": low, "kl_difference_high": high}
    return pl.DataFrame(rows, schema=get_type_hints(Contest))


# ---------------------------------------------------------------------------------------------------------- pairs of blocks


class Interaction(NamedTuple):
    """The columns of `block_interactions`."""

    weights: str
    first: int
    second: int
    summed_kl: float
    kl: float
    interaction: float
    interaction_low: float
    interaction_high: float
    images: int
    trial_id: str


def block_interactions(mixed: BlockCells, sensitivity: BlockCells) -> pl.DataFrame:
    """What two blocks quantized together cost beyond the sum of what each costs alone, KL in nats on the selection half.

    One row a pair (of the most sensitive blocks: profile key mixed.pairs) whose blocks were measured alone as well, with the same
    attention and compute dtype. Intervals are of the mean over the images and hold for all pairs together.
    """
    alone, interactions = dict(sensitivity.parts), []
    rows: list[dict[str, object]] = []
    for role, result in mixed.parts:
        if not isinstance(role, BlockPair) or role not in mixed.place:
            continue
        singles = [unit_role("only", role.weights, f"blocks.{block}") for block in role.blocks]
        if not all(single in sensitivity.place and _run_alike(alone[single], result) for single in singles):
            continue
        kl = mixed.selection.kl[mixed.place[role]]
        summed = sensitivity.selection.kl[[sensitivity.place[single] for single in singles]].sum(axis=0)
        interactions.append(kl - summed)
        row = {"weights": role.weights, "first": role.blocks[0], "second": role.blocks[1], "summed_kl": summed.mean(), "kl": kl.mean()}
        rows.append({**row, "interaction": (kl - summed).mean(), "images": len(kl), "trial_id": result.record.trial_id})
    for row, (low, high) in zip(rows, simultaneous_intervals(interactions), strict=True):
        row |= {"interaction_low": low, "interaction_high": high}
    return pl.DataFrame(rows, schema=get_type_hints(Interaction)).sort("weights", "first", "second")


def _run_alike(first: Result, second: Result) -> bool:
    one, two = first.record.trial, second.record.trial
    return (one.attention, one.plan.compute_dtype) == (two.attention, two.plan.compute_dtype)


def pair_terms(frame: pl.DataFrame) -> tuple[PairTerm, ...]:
    """The interactions as `programme` takes them, all that were measured: what is within noise is small."""
    return tuple(
        PairTerm(units=(f"blocks.{row['first']}", f"blocks.{row['second']}"), weights=row["weights"], kl=row["interaction"])
        for row in frame.to_dicts()
    )
