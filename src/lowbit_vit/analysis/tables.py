"""Records of a profile -> every table of the report, written as CSV; nothing but the records and the profile is read."""

from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

from lowbit_vit.analysis import mixed, sensitivity, variants
from lowbit_vit.analysis.additivity import additivity, additivity_fits
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.cuda_graph_speedup import cuda_graph_speedup
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.pareto import pareto_fronts
from lowbit_vit.analysis.results import Result, load_all_results
from lowbit_vit.analysis.timed_plans import timed_plans
from lowbit_vit.schema.config import STUDIES, Prices, Profile, Study
from lowbit_vit.schema.plan import HighPrecision, family_of
from lowbit_vit.schema.record import Record, write_atomic
from lowbit_vit.schema.stage_documents import read_estimates
from lowbit_vit.schema.workspace import Workspace


@dataclass(frozen=True)
class Tables:
    """Tidy frames; each is written as `tables/<field>.csv`."""

    paper_table: pl.DataFrame  # one row an arm and batch size: all columns of the paper's table, seeds averaged
    variants: pl.DataFrame  # one row a trial and batch size
    kernel_classes: pl.DataFrame  # microseconds of each kernel class for each arm and batch size
    graphs: pl.DataFrame  # arms in CUDA graphs against 16 bits with compiled blocks in one
    rooflines: pl.DataFrame  # latency over what the device's own ceilings allow, for each arm and batch size
    memory_parts: pl.DataFrame  # what the peak of device memory is made of, for each arm and batch size
    invariance: pl.DataFrame  # whether predictions depend on the size of the batch, for each arm
    classes: pl.DataFrame  # one row an arm and class of images: accuracy, images lost against the baseline, and to which class
    sensitivity: pl.DataFrame  # one row a cell of the sensitivity study
    units: pl.DataFrame  # each block and linear with its intervals, and whether it is called sensitive
    draw_agreement: pl.DataFrame  # Kendall's tau between draws
    estimators: pl.DataFrame  # Kendall's tau of each cheap estimator with what was measured
    mixed: pl.DataFrame  # one row for each part that a cell of the mixed study plays
    additivity: pl.DataFrame  # what the sum over blocks predicts of each mixed plan, beside what was measured
    additivity_fits: pl.DataFrame  # how well it predicts
    pairs: pl.DataFrame  # how the most sensitive blocks interact, two by two
    timed_plans: pl.DataFrame  # plans that were timed, beside the arms of one format throughout
    contests: pl.DataFrame  # each choice at equal bytes against the random plans and the heuristic
    random_bands: pl.DataFrame  # range and quartiles of the random plans
    beats_random: pl.DataFrame  # how many random plans each chosen plan beats
    fronts: pl.DataFrame  # Pareto fronts of the arms and of the mixed plans, dominated points included
    not_successful: pl.DataFrame  # every trial without a result, and why


@dataclass(frozen=True)
class Findings:
    """All that the report shows: the results by study, and the tables made of them."""

    results: dict[Study, list[Result]]
    tables: Tables

    @property
    def records(self) -> dict[Study, list[Record]]:
        """The records by study."""
        return {study: [result.record for result in results] for study, results in self.results.items()}

    @property
    def all_results(self) -> list[Result]:
        """The results of every study."""
        return [result for study in STUDIES for result in self.results[study]]

    @property
    def all_records(self) -> list[Record]:
        """The records of every study and process."""
        return [record for result in self.all_results for record in result.records]


def find(profile: Profile, workspace: Workspace) -> Findings:
    """Read every record of a profile and make the tables.

    Raises:
        DataError: a record or predictions file is damaged.
    """
    results = load_all_results(workspace)
    frames = Frames(results["variants"], arms=[arm.label for arm in profile.variants.arms])
    trials = variants.variants(frames, margin=profile.statistics.margin)
    alone, plans, depth = gather_cells(results["sensitivity"]), gather_cells(results["mixed"]), profile.backbone.depth
    scored = sensitivity.scores_if_complete(alone, profile)
    estimates = read_estimates(workspace.estimates, profile=profile.name) if workspace.estimates.exists() else None
    mixed_table = mixed.mixed(plans, depth=depth)
    added = additivity(plans, alone, scored, profile, variants=results["variants"])
    timed = timed_plans(results["mixed"], results["variants"], profile)
    table = _with_family(_with_rows(with_cost(variants.paper_table(trials), profile.prices)))
    tables = Tables(
        paper_table=table,
        variants=trials,
        kernel_classes=_with_rows(variants.kernel_classes(frames)),
        graphs=cuda_graph_speedup(frames),
        rooflines=variants.rooflines(frames),
        memory_parts=variants.memory_breakdown(frames),
        invariance=variants.invariances(frames),
        classes=_with_rows(variants.per_class(frames)),
        sensitivity=_with_family(sensitivity.sensitivity(alone, scored)),
        units=sensitivity.units(scored),
        draw_agreement=sensitivity.draw_agreement(scored),
        estimators=sensitivity.estimator_agreement(estimates, scored),
        mixed=mixed_table,
        additivity=added,
        additivity_fits=additivity_fits(added),
        pairs=mixed.block_interactions(plans, alone),
        timed_plans=timed,
        contests=mixed.equal_bytes(plans, depth=depth),
        random_bands=mixed.random_bands(mixed_table),
        beats_random=mixed.beats_random(mixed_table),
        fronts=pareto_fronts(table, mixed_table, timed),
        not_successful=_not_successful(results),
    )
    return Findings(results=results, tables=tables)


def with_cost(frame: pl.DataFrame, prices: Prices | None) -> pl.DataFrame:
    """Add `cost_per_million` images and its `currency` for GPUs that ran back to back, where there are prices and energy was counted."""
    if prices is None or "joules_per_image" not in frame.columns:
        return frame
    cost = pl.when(pl.col("device") == "cuda").then(1e6 / pl.col("busy_images_per_s") * prices.gpu_hour / 3600)
    return frame.with_columns(cost.alias("cost_per_million"), pl.lit(prices.currency).alias("currency"))


def _with_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `number` (1-based place of the arm, as on the figures) and `row` (`3. 8-bit + SDPA`)."""
    number = pl.col("order") + 1
    return frame.with_columns(number.alias("number"), pl.format("{}. {}", number, "arm").alias("row"))


def _with_family(frame: pl.DataFrame) -> pl.DataFrame:
    families = {name: family_of(name) for name in frame["weights"].unique().drop_nulls()} | {"none": HighPrecision.family}
    return frame.with_columns(pl.col("weights").fill_null("none").replace(families).alias("weights_family"))


def _not_successful(results: dict[Study, list[Result]]) -> pl.DataFrame:
    every = [result for study in STUDIES for result in results[study]]
    failed = [result for result in every if result.record.status != "success"]
    # A trial without a first process has no repeats either.
    failed += [Result(repeat, None) for result in every if result not in failed for repeat in result.repeats if repeat.status != "success"]
    trials = Frames(failed).trials
    return trials.select("study", pl.col("arm").alias("label"), "seed", "status", "reason", "attempts", "trial_id")


def write_tables(tables: Tables, folder: Path) -> None:
    """Write every frame as `<folder>/<field>.csv`; equal records give equal bytes."""
    for field in fields(tables):
        frame: pl.DataFrame = getattr(tables, field.name)
        # Seven significant digits: more would be noise, and would differ between machines.
        write_atomic(folder / f"{field.name}.csv", frame.with_columns(pl.col(pl.Float64).round_sig_figs(7)).write_csv().encode())
