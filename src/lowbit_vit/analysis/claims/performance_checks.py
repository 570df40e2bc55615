"""Checks on latency, kernels, memory and size: a cell against its arm, an arm against its twin, where extra time goes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import fmean, median
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from lowbit_vit.analysis.audit.headings import Quantity as Printed
from lowbit_vit.analysis.claims.context import Arms, Check, ClaimContext, Need, Outcome, TwinCheck, bounds, record_ids, spread_of, within
from lowbit_vit.analysis.frames import MIB
from lowbit_vit.analysis.latencies import latency_ratio
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.claim import Cell, Measured, Verdict
from lowbit_vit.schema.config import Device
from lowbit_vit.schema.metrics import Interval, LatencySummary
from lowbit_vit.schema.record import KernelTime

QUANTITY_WORDS = {
    "p50_ms": "median latency",
    "kernel_us": "time of all kernels",
    "attention_us": "time of attention kernels",
    "quantize_us": "time of kernels that quantize or dequantize",
    "gemm_us": "time of matrix products",
    "idle_share": "share of idle time",
    "launches": "kernel launches",
    "host_syncs": "host syncs",
    "peak_mib": "peak memory",
    "training_peak_mib": "peak memory in training",
    "file_mib": "file size",
    "weight_mib": "bytes of weights",
}


def _known(quantity: str) -> str:
    if quantity not in QUANTITY_WORDS:
        raise ValueError(f"no such quantity; there are: {', '.join(QUANTITY_WORDS)}")
    return quantity


Quantity = Annotated[str, AfterValidator(_known)]


# ------------------------------------------------------------------------------------------------------------ one cell


@dataclass(frozen=True)
class Column:
    """What a column of a paper's table is in a record.

    Attributes:
        name: of a quantity, or of a latency's or accuracy's field.
        unit: of our number.
        scale: that unit in the one of the audit's cells: ms, bytes, images/s, share of 1.
        digits: to print.
        needs: without which our number is not comparable.
        rate: a share of images: its tolerance is absolute.
    """

    name: str
    unit: str
    scale: Fraction
    digits: int
    needs: tuple[Need, ...]
    rate: bool = False


_ONE, _MIB, _US = Fraction(1), Fraction(MIB), Fraction(1, 1000)
_TIMED: tuple[Need, ...] = ("model", "gpu")
_RATED: tuple[Need, ...] = ("model", "images", "weights")
COLUMNS: dict[Printed, Column] = {
    "size": Column("file_mib", "MiB", _MIB, 1, ("model",)),
    "mean": Column("mean_ms", "ms", _ONE, 2, _TIMED),
    "p50": Column("p50_ms", "ms", _ONE, 2, _TIMED),
    "p95": Column("p95_ms", "ms", _ONE, 2, _TIMED),
    "p99": Column("p99_ms", "ms", _ONE, 2, _TIMED),
    "throughput": Column("images_per_s", "images/s", _ONE, 2, _TIMED),
    "vram": Column("peak_mib", "MiB", _MIB, 1, ("model", "cuda")),
    "cpu": Column("cpu_ms", "ms", _ONE, 1, _TIMED),
    "top1": Column("top1", "", _ONE, 4, _RATED, rate=True),
    "top5": Column("top5", "", _ONE, 4, _RATED, rate=True),
    "f1": Column("macro_f1", "", _ONE, 4, _RATED, rate=True),
    "kernel": Column("kernel_us", "us", _US, 1, _TIMED),
    "attention": Column("attention_us", "us", _US, 1, _TIMED),
}


class CellCheck(Check):
    """The claim's cell against the same arm at the paper's batch size, where GPU and weights are the paper's or do not matter."""

    check: Literal["cell"]
    within: float = Field(gt=0, description="relative, or absolute for a rate")

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome | None:
        """The cell against the mean over seeds of the same row's arm."""
        if cell is None:
            return None
        column = next(COLUMNS[quantity] for quantity, heading in context.table.headings.items() if heading == cell.column)
        printed, batch = float(context.printed(cell).exact / column.scale), context.setup.batch_size
        arms = Arms(paper_row=cell.row)
        values = [(result, _cell_value(result, column.name, batch)) for result in context.select(arms)]
        found = [(result, value) for result, value in values if value is not None]
        if not found:
            obstacle = context.obstacle(column.needs)
            if obstacle is not None:
                return replace(obstacle, words=f"{obstacle.words} Nor is there a result of this row's arm.")
            if column.name == "cpu_ms" and values:
                model = context.setup.architecture.name
                return Outcome("not run", f"No profile runs {model} on a CPU.", because=f"a profile with {model} and device: cpu")
            return context.missing_arms(arms)
        mean = fmean(value for _, value in found)
        seeds = f" (mean of {len(found)} seeds)" if len(found) > 1 else ""
        interval = _p50_interval(found[0][0], batch) if column.name == "p50_ms" and len(found) == 1 else None
        text = f"{mean:,.{column.digits}f} {column.unit}".strip() + seeds
        ours = Measured(text=text, value=mean, unit=column.unit or None, interval=interval)
        off = abs(mean - printed) if column.rate else abs(mean / printed - 1) if printed else float("inf")
        allowed = f"{100 * self.within:g} {'points' if column.rate else '%'}"
        latencies = [result.latency[batch] for result, _ in found if column.needs == _TIMED and batch in result.latency]
        of = f" ({_processes(latencies)})" if latencies else ""
        words = f"Printed {printed:g}, ours {text}{of}; allowed {allowed}."
        verdict: Verdict = "reproduced" if off <= self.within else "not reproduced"
        outcome = Outcome(verdict, words, ours=ours, records=record_ids(*(result for result, _ in found)))
        return context.obstacle(column.needs, outcome) or outcome


def _cell_value(result: Result, name: str, batch: int) -> float | None:
    if name in ("top1", "top5", "macro_f1"):
        return None if result.whole is None else float(getattr(result.whole, name))
    latency = result.latency.get(batch)
    if name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "images_per_s"):
        return None if latency is None else getattr(latency, name)
    if name == "cpu_ms":
        return latency.mean_ms if latency is not None and result.record.trial.device == "cpu" else None
    return value_of(result, name, batch)


# -------------------------------------------------------------------------------------------------------- arm over twin


class RatioCheck(TwinCheck):
    """A quantity of one arm over that of its twin."""

    check: Literal["ratio"]
    quantity: Quantity
    batch: int | None = Field(default=None, description="of latency, kernels and peak memory")
    at_least: float | None = None
    at_most: float | None = None

    def obstacle(self, context: ClaimContext, found: Outcome | None) -> Outcome | None:
        """Bytes of files and weights are the same on any device."""
        return context.obstacle(("model",) if self.quantity in ("file_mib", "weight_mib") else ("model", "cuda"), found)

    def measure(self, context: ClaimContext) -> Outcome | None:
        """`reproduced` where every pair of twins lies in the bounds, interval and all; an interval across a bound is `underpowered`."""
        found = [(pair, ratio) for pair in context.twins(self.of, self.to) if (ratio := self._ratio(pair)) is not None]
        if not found:
            return None
        ours = spread_of([ratio for _, ratio in found], "x")
        states = [self._place(value, interval) for _, (value, interval) in found]
        verdict: Verdict = "not reproduced" if "out" in states else "underpowered" if "across" in states else "reproduced"
        batch = f" at batch {self.batch}" if self.batch is not None else ""
        name = QUANTITY_WORDS[self.quantity].capitalize()
        timed = [result.latency[self.batch] for pair, _ in found for result in pair if self.quantity == "p50_ms" and self.batch is not None]
        of = f", {_processes(timed)}" if timed else ""
        words = f"{name}{batch}: ours {ours.text} in {pair_words(len(found))}{of}; expected {bounds(self.at_least, self.at_most)}."
        return Outcome(verdict, words, ours=ours, records=record_ids(*(result for pair, _ in found for result in pair)))

    def _ratio(self, pair: tuple[Result, Result]) -> tuple[float, Interval | None] | None:
        """The quotient, None where one was not measured, and for a median latency its 95 % interval.

        Paired by round; of one process the widest interval that those of the two allow.
        """
        one, other = (value_of(result, self.quantity, self.batch) for result in pair)
        if one is None or other is None:
            return None
        value = one / other if other else float("inf")
        if self.quantity != "p50_ms" or self.batch is None:
            return value, None
        ratio = latency_ratio(pair[1].latency[self.batch], pair[0].latency[self.batch], one_run=True)
        if ratio.rounds:
            return ratio.value, ratio.interval
        mine, its = (_p50_interval(result, self.batch) for result in pair)
        return value, None if mine is None or its is None else Interval(low=mine.low / its.high, high=mine.high / its.low)

    def _place(self, value: float, interval: Interval | None) -> Literal["in", "out", "across"]:
        low, high = (interval.low, interval.high) if interval is not None else (value, value)
        inside = [within(end, self.at_least, self.at_most) for end in (low, high)]
        if all(inside):
            return "in"
        beyond = (self.at_least is not None and high < self.at_least) or (self.at_most is not None and low > self.at_most)
        return "out" if beyond else "across"


def _processes(latencies: Sequence[LatencySummary]) -> str:
    """Of how many processes the fewest are: an interval within one says little of another."""
    fewest = min(latency.processes for latency in latencies)
    return "one process" if fewest == 1 else f"{fewest} processes"


def pair_words(count: int) -> str:
    """`1 pair` or `n pairs`."""
    return "1 pair" if count == 1 else f"{count} pairs"


# --------------------------------------------------------------------------------------------------- where it is spent


class ShareCheck(TwinCheck):
    """Of what an arm's forward takes longer than its twin's, the share spent in kernels of `classes`."""

    needs: ClassVar[tuple[Need, ...]] = ("model", "cuda")
    check: Literal["share"]
    classes: tuple[str, ...] = Field(min_length=1)
    batch: int
    at_least: float

    def measure(self, context: ClaimContext) -> Outcome | None:
        """How much longer the named kernels take, over how much longer the forward takes."""
        found = [(pair, share) for pair in context.twins(self.of, self.to) if (share := self._share(pair)) is not None]
        if not found:
            return None
        shares = [share for _, share in found]
        text = " to ".join(f"{100 * value:.0f} %" for value in dict.fromkeys((min(shares), max(shares))))
        ours = Measured(text=f"{text} of the extra time", value=100 * median(shares), unit="%")
        waits = "; ".join(self._waiting(pair) for pair, _ in found)
        words = (
            f"{', '.join(self.classes)} kernels at batch {self.batch}: {ours.text}, expected {100 * self.at_least:g} % or more; {waits}."
        )
        verdict: Verdict = "reproduced" if min(shares) >= self.at_least else "not reproduced"
        records = record_ids(*(result for pair, _ in found for result in pair))
        return Outcome(verdict, words[0].upper() + words[1:], ours=ours, records=records)

    def _share(self, pair: tuple[Result, Result]) -> float | None:
        one, other = (_kernels(result, self.batch) for result in pair)
        if one is None or other is None:
            return None
        extra = pair[0].wall_us(one) - pair[1].wall_us(other)
        spent = sum(one.by_class_us.get(name, 0.0) - other.by_class_us.get(name, 0.0) for name in self.classes)
        return spent / extra if extra > 0 else 0.0

    def _waiting(self, pair: tuple[Result, Result]) -> str:
        """How long each of the two takes, how long its kernels run, and what it launches and waits for."""
        parts = []
        for result in pair:
            kernels = _kernels(result, self.batch)
            if kernels is None:
                continue
            busy = sum(kernels.by_class_us.values()) / 1e3
            counts = f", {kernels.launches} launches, {kernels.host_syncs} host syncs" if kernels.launches is not None else ""
            parts.append(f"{result.record.trial.label} {result.wall_us(kernels) / 1e3:.1f} ms, kernels {busy:.1f} ms{counts}")
        return " against ".join(parts)


class NeverRunsCheck(Check):
    """That no such arm runs on a device, as a paper says that prints N/A."""

    check: Literal["never runs"]
    of: Arms
    device: Device

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """Whether some such arm succeeded on the device; any size of model shows that the code is there."""
        found = [result for result in context.select(self.of) if result.record.trial.device == self.device]
        if not found:
            return Outcome("not run", f"No such arm ran on {self.device} here.", because="lowbit-vit variants demo")
        labels = ", ".join(dict.fromkeys(result.record.trial.label for result in found))
        ran = Measured(text=f"{len(found)} arms run on {self.device}", value=float(len(found)), unit="arms")
        return Outcome("not reproduced", f"On {self.device} ran: {labels}.", ours=ran, records=record_ids(*found))


PerformanceCheck = CellCheck | RatioCheck | ShareCheck | NeverRunsCheck


# ------------------------------------------------------------------------------------------------ values of one record


def value_of(result: Result, quantity: str, batch: int | None) -> float | None:
    """A quantity of one trial, or None where it was not measured."""
    record = result.record
    match quantity:
        case "file_mib":
            return None if record.model is None else record.model.file_bytes / MIB
        case "weight_mib":
            return None if record.model is None else record.model.weight_bytes / MIB
        case "training_peak_mib":
            peak = None if record.training is None else record.training.peak_allocated_bytes
            return None if peak is None else peak / MIB
        case "peak_mib":
            memories = record.measurement.memory if record.measurement is not None else ()
            peak = next((item.peak_allocated_bytes for item in memories if item.batch_size == batch), None)
            return None if peak is None else peak / MIB
        case "p50_ms":
            latency = _latency(result, batch)
            return None if latency is None else latency.p50_ms
        case _:
            kernels = _kernels(result, batch)
            return None if kernels is None else _of_kernels(result, kernels, quantity)


def _of_kernels(result: Result, kernels: KernelTime, quantity: str) -> float | None:
    match quantity:
        case "kernel_us":
            return sum(kernels.by_class_us.values())
        case "idle_share":
            idle = result.idle_us(kernels)
            return None if idle is None else idle / result.wall_us(kernels)
        case "launches":
            return kernels.launches
        case "host_syncs":
            return kernels.host_syncs
        case _:
            return kernels.by_class_us.get(quantity.removesuffix("_us"), 0.0)


def _latency(result: Result, batch: int | None) -> LatencySummary | None:
    return None if batch is None else result.latency.get(batch)


def _kernels(result: Result, batch: int | None) -> KernelTime | None:
    items = result.record.measurement.kernels if result.record.measurement is not None else ()
    return next((item for item in items if item.batch_size == batch), None)


def _p50_interval(result: Result, batch: int) -> Interval | None:
    latency = _latency(result, batch)
    return None if latency is None else latency.p50_ci_ms
