"""Raw values of results as four tidy frames; the tables of the variants study are joins, filters and group-bys of these.

Sizes are in MiB (2^20 bytes): the paper's "MB" are MiB, as its 1157.4 for 303,406,182 fp32 parameters shows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import COMPARISON, compare_counts, wilson
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.metrics import disturbance
from lowbit_vit.schema.record import Energy, MeasurementResult, Memory

MIB = 2**20

IDENTITY = ("order", "arm", "paper_row", "weights", "compute_dtype", "attention", "qkv", "adaptation", "execution", "device")
ACCURACY = ("images", "top1", "top1_low", "top1_high", "top5", "macro_f1")
INVARIANCE = ("first_batch", "second_batch", "invariance_images", "flips", "max_abs_logit_difference", "bit_equal")
PROCESSES = ("processes", "process_medians_ms", "host_bound", "disturbed")
LATENCY = ("mean_ms", "p50_ms", "p50_low_ms", "p50_high_ms", "p95_ms", "p99_ms", "samples", "images_per_s", *PROCESSES)
ENERGY = ("joules_per_image", "images_per_kwh", "busy_images_per_s", "watts", "sampled_watts", "idle_watts_before", "idle_watts_after")
KERNELS = ("kernel_us", "attention_us", "idle_us", "wall_us", "launches", "host_syncs")
_MEMORY = ("before_bytes", "workspace_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes")
_ROOFLINE = ("flop", "least_bytes", "matmul_flops_per_s", "copy_bytes_per_s")

_TYPES: dict[DataTypeClass, tuple[str, ...]] = {  # of the columns that are not Float64
    pl.Int64: (
        *("trial", "reference", "order", "paper_row", "seed", "attempts", "images", "weight_bytes", "batch_size", "samples", *_MEMORY),
        *("processes", "disturbed", "first_batch", "second_batch", "invariance_images", "flips", "launches", "host_syncs"),
        *("lost", "gained", "least_bytes"),
    ),
    pl.String: (
        *(*IDENTITY[3:], "arm", "study", "status", "reason", "trial_id", "memory_is", "class", "settings_differ", "accuracy_test"),
        *("timing", "process_medians_ms", "metric", "expected", "found", "tolerance", "verdict", "because"),
    ),
    pl.Boolean: ("bit_equal", "same_weights", "host_bound"),
}
_TYPE = {name: kind for kind, names in _TYPES.items() for name in names}


def typed(rows: Iterable[Mapping[str, Any]], *names: str) -> pl.DataFrame:
    """A frame of these columns, in their types also where there are no rows; a row without one of them has null there."""
    found = list(rows)
    return pl.DataFrame(
        {name: pl.Series(name, [row.get(name) for row in found], _TYPE.get(name.removesuffix("_b"), pl.Float64)) for name in names}
    )


@dataclass(frozen=True)
class Frames:
    """Results as tidy frames, each made when it is first asked for; their key `trial` is a result's place among the results.

    Attributes:
        results: of one or several studies.
        arms: labels in the profile's order; `order` is an arm's place among them, and their number for any other.
    """

    results: Sequence[Result]
    arms: Sequence[str] = ()

    @cached_property
    def trials(self) -> pl.DataFrame:
        """One row a trial: what it is, its status, sizes, accuracy on the whole test split and on the report half, batch invariance."""
        places = {label: place for place, label in enumerate(self.arms)}
        rows = (
            {"trial": number, "order": places.get(result.record.trial.label, len(places))} | trial_row(result)
            for number, result in enumerate(self.results)
        )
        state = ("study", "seed", "status", "reason", "attempts", "file_mib", "weight_mib", "weight_bytes")
        return typed(rows, "trial", *IDENTITY, *state, *ACCURACY, "report_top1", *INVARIANCE, "trial_id")

    @cached_property
    def timings(self) -> pl.DataFrame:
        """One row a trial and batch size: latency with `samples_ms`, memory in bytes, kernel time, and what its roofline follows from.

        `cpu_mean_ms` is the mean latency of a trial on a CPU. `memory_is` says of which kind `peak_memory_mib` is. `process_medians_ms`
        has a median for each process in the order of the rounds, with blanks between, a dash for one that is not there;
        `disturbed` counts those beside which others used the CPUs.
        """
        rows = [
            {"trial": number} | row
            for number, result in enumerate(self.results)
            if result.record.measurement is not None
            for row in _timings(result, result.record.measurement)
        ]
        names = (*LATENCY, *ENERGY, "cpu_mean_ms", "peak_memory_mib", "memory_is", *KERNELS, *_MEMORY, *_ROOFLINE)
        samples = pl.Series("samples_ms", [row["samples_ms"] for row in rows], pl.List(pl.Float64))
        return typed(rows, "trial", "batch_size", *names).with_columns(samples)

    @cached_property
    def kernels(self) -> pl.DataFrame:
        """One row a trial, batch size and class of kernels: microseconds of one forward, `idle` among the classes on a GPU."""
        rows = (
            {"trial": number, "batch_size": kernels.batch_size, "class": name, "us": microseconds}
            for number, result in enumerate(self.results)
            for kernels in (result.record.measurement.kernels if result.record.measurement else ())
            for name, microseconds in (kernels.by_class_us | {"idle": result.idle_us(kernels)}).items()
            if microseconds is not None
        )
        return typed(rows, "trial", "batch_size", "class", "us")

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """One row a trial and test image: label, most likely class (`best`), and whether it is right."""
        schema = {"trial": pl.Int64, "image": pl.UInt32, "label": pl.UInt16, "best": pl.UInt16}
        found = [
            pl.DataFrame({"label": result.predictions.label, "best": result.predictions.best})
            .with_row_index("image")
            .select(pl.lit(number, pl.Int64).alias("trial"), "image", "label", "best")
            for number, result in enumerate(self.results)
            if result.predictions is not None
        ]
        return pl.concat([pl.DataFrame(schema=schema), *found]).with_columns((pl.col("label") == pl.col("best")).alias("right"))

    @cached_property
    def class_names(self) -> pl.DataFrame:
        """Columns `label` and `class`; the names are the same in all records."""
        names = next((result.record.evaluation.class_names for result in self.results if result.record.evaluation is not None), ())
        return pl.DataFrame({"label": range(len(names)), "class": names}, schema={"label": pl.UInt16, "class": pl.String})

    @cached_property
    def baselines(self) -> pl.DataFrame:
        """Columns `trial` and `reference`: each trial with predictions beside that of the baseline, the first arm, with the same seed."""
        done = self.trials.drop_nulls("images")
        baselines = done.filter(pl.col("arm").is_in(list(self.arms[:1]))).unique("seed", keep="last").select("seed", reference="trial")
        return done.join(baselines, on="seed").filter(pl.col("trial") != pl.col("reference")).select("trial", "reference")

    def changes(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Count the images on which trials differ from a reference, for distinct pairs of columns `trial` and `reference`.

        Returns:
            The pairs of which both have predictions, with `images`, `lost` (only the reference is right), `gained` (only the trial
            is), and `flips` (their most likely classes differ).
        """
        theirs = self.predictions.select("image", reference="trial", best_reference="best", right_reference="right")
        both = pairs.join(self.predictions, on="trial").join(theirs, on=["reference", "image"])
        right, before = pl.col("right"), pl.col("right_reference")
        counted = both.group_by("trial", "reference").agg(
            images=pl.len(),
            lost=(before & ~right).sum(),
            gained=(~before & right).sum(),
            flips=(pl.col("best") != pl.col("best_reference")).sum(),
        )
        return counted.cast(pl.Int64)

    def comparisons(self, pairs: pl.DataFrame, *, margin: float | None) -> pl.DataFrame:
        """Test Top-1 of trials against that of a reference, image by image.

        Args:
            pairs: as `changes` takes them.
            margin: loss of Top-1, as a share, that counts as none; without it `p_inferior` and `p_equivalent` are null.

        Returns:
            One row a pair of which both have predictions: `trial`, `reference` and `COMPARISON`.
        """
        rows = self.changes(pairs).to_dicts()
        tested = (compare_counts(row["lost"], row["gained"], images=row["images"]).columns(margin) for row in rows)
        return typed((row | test for row, test in zip(rows, tested, strict=True)), "trial", "reference", *COMPARISON)


def average_over_seeds(
    frame: pl.DataFrame, keys: Sequence[str], values: Sequence[str], *others: pl.Expr, spread: Sequence[str] = ()
) -> pl.DataFrame:
    """One row for each combination of `keys`: the means of `values`, and `records`, the trial ids that were averaged.

    Args:
        frame: one row a trial for each combination, with `trial_id`.
        keys: columns.
        values: columns.
        others: further aggregations.
        spread: of the values, those that get a column `<name>_spread`: greatest minus least, null for a single value.
    """
    several = {name: pl.when(pl.col(name).count() > 1).then(pl.col(name).max() - pl.col(name).min()).first() for name in spread}
    means, ranges = pl.col(*values).mean(), (value.alias(f"{name}_spread") for name, value in several.items())
    return frame.group_by(*keys, maintain_order=True).agg(means, *ranges, *others, pl.col("trial_id").str.join(" ").alias("records"))


def weights_name(trial: Trial) -> str:
    """`none` for a model that stays floating point, else the quantized format, such as nf4-dq or int8-6."""
    names = list(dict.fromkeys(rule.weights.name for rule in trial.plan.rules))
    return "none" if not names else names[0] if len(names) == 1 else "mixed"


def trial_row(result: Result) -> dict[str, Any]:
    """Columns of `Frames.trials`, those of them that are known, and others."""
    record, trial, measured = result.record, result.record.trial, result.record.measurement
    row = dict(trial) | {"arm": trial.label, "weights": weights_name(trial), "compute_dtype": trial.plan.compute_dtype}
    row |= {"status": record.status, "reason": record.reason, "attempts": record.attempts, "trial_id": record.trial_id}
    if record.model is not None:
        size = record.model.weight_bytes
        row |= {"file_mib": record.model.file_bytes / MIB, "weight_mib": size / MIB, "weight_bytes": size}
    if measured is not None and measured.invariance is not None:
        first, second = measured.invariance.batch_sizes
        row |= dict(measured.invariance) | {"first_batch": first, "second_batch": second, "invariance_images": measured.invariance.images}
    row["images"] = None  # those of batch invariance
    whole, report = result.whole, result.report
    if whole is not None and report is not None:
        interval = wilson(round(whole.top1 * whole.images), whole.images)
        row |= dict(whole) | {"top1_low": interval.low, "top1_high": interval.high, "report_top1": report.top1}
    return row


def _timings(result: Result, measured: MeasurementResult) -> Iterator[dict[str, Any]]:
    memories = {item.batch_size: item for item in measured.memory}
    work = {item.batch_size: dict(item) for item in measured.work}
    kernels = {item.batch_size: item for item in measured.kernels}
    energy = {item.batch_size: item for item in measured.energy}
    for batch, latency in result.latency.items():
        medians = [latency.medians_ms.get(process) for process in range(max(latency.medians_ms) + 1)]
        row = vars(latency) | {"samples": len(latency.samples_ms), "processes": latency.processes}
        row |= {"process_medians_ms": " ".join("-" if ms is None else f"{ms:.7g}" for ms in medians)}
        row |= {"host_bound": result.is_host_bound(batch), "disturbed": sum(disturbance(record) is not None for record in result.records)}
        if latency.p50_ci_ms is not None:
            row |= {"p50_low_ms": latency.p50_ci_ms.low, "p50_high_ms": latency.p50_ci_ms.high}
        if result.record.trial.device == "cpu":
            row["cpu_mean_ms"] = latency.mean_ms
        if batch in memories:
            row |= dict(memories[batch]) | _peak(memories[batch])
        if batch in work and measured.ceilings is not None:
            row |= work[batch] | dict(measured.ceilings)
        if batch in energy:
            row |= _energy(energy[batch])
        if batch in kernels:
            traced = kernels[batch]
            row |= {
                "kernel_us": sum(traced.by_class_us.values()),
                "attention_us": traced.by_class_us.get("attention", 0.0),
                "idle_us": result.idle_us(traced),
                "wall_us": result.wall_us(traced),
                "launches": traced.launches,
                "host_syncs": traced.host_syncs,
            }
        yield row


def _energy(counted: Energy) -> dict[str, Any]:
    """Per image and per kWh; `watts` are the counter's, `sampled_watts` a second opinion; images a second of calls back to back."""
    return dict(counted) | {
        "joules_per_image": counted.joules / counted.images,
        "images_per_kwh": 3.6e6 * counted.images / counted.joules,
        "busy_images_per_s": counted.images / counted.seconds,
        "watts": counted.joules / counted.seconds,
    }


def _peak(memory: Memory) -> dict[str, Any]:
    """The peak, and which of the two very different things it is."""
    if memory.peak_allocated_bytes is not None:
        return {"peak_memory_mib": memory.peak_allocated_bytes / MIB, "memory_is": "CUDA allocator"}
    if memory.peak_resident_bytes is not None:
        return {"peak_memory_mib": memory.peak_resident_bytes / MIB, "memory_is": "resident set"}
    return {}
