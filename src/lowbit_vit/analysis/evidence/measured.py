"""Checks on latency, kernels, memory and size: a cell against its arm, an arm against its twin, where extra time goes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from lowbit_vit.analysis.evidence.grounds import Grounds, Need, Outcome, printed_number, record_ids
from lowbit_vit.analysis.evidence.printed import bounds
from lowbit_vit.analysis.frames import MIB
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.claim import Cell, Measured, Verdict
from lowbit_vit.schema.claim_checks import Arms, CellCheck, Quantity, RatioCheck, RunsCheck, ShareCheck
from lowbit_vit.schema.metrics import Interval, LatencySummary
from lowbit_vit.schema.record import KernelTime

# Throughput times latency is one image in the paper's rows, so that is the batch its cells are held against.
PAPER_BATCH = 1
_OF_SIZE = ("file_mib", "weight_mib")
QUANTITY_WORDS: dict[Quantity, str] = {
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


@dataclass(frozen=True)
class _Column:
    """What a heading of the paper's table is in a record.

    Attributes:
        name: of a quantity below, or of a latency's or accuracy's field.
        unit: behind the number.
        digits: to print.
        needs: without which our number is not comparable.
        rate: a share of images: its tolerance is absolute.
    """

    name: str
    unit: str
    digits: int
    needs: tuple[Need, ...]
    rate: bool = False


_TIMED: tuple[Need, ...] = ("vit_l_16", "a100")
_RATED: tuple[Need, ...] = ("vit_l_16", "flowers102", "pretrained")
COLUMNS: dict[str, _Column] = {
    "Model Size (MB)": _Column("file_mib", "MiB", 1, ("vit_l_16",)),
    "Latency (ms)": _Column("mean_ms", "ms", 2, _TIMED),
    "Latency P50 (ms)": _Column("p50_ms", "ms", 2, _TIMED),
    "Latency P95 (ms)": _Column("p95_ms", "ms", 2, _TIMED),
    "Latency P99 (ms)": _Column("p99_ms", "ms", 2, _TIMED),
    "Throughput (Img/s)": _Column("images_per_s", "images/s", 2, _TIMED),
    "Peak VRAM (MB)": _Column("peak_mib", "MiB", 1, ("vit_l_16", "cuda")),
    "CPU Latency (ms)": _Column("cpu_ms", "ms", 1, _TIMED),
    "Top-1 Acc": _Column("top1", "", 4, _RATED, rate=True),
    "Top-5 Acc": _Column("top5", "", 4, _RATED, rate=True),
    "F1 Score": _Column("macro_f1", "", 4, _RATED, rate=True),
    "Total CUDA Kernel Time (us)": _Column("kernel_us", "us", 1, _TIMED),
    "Attention Kernel Time (us)": _Column("attention_us", "us", 1, _TIMED),
}


# ------------------------------------------------------------------------------------------------------------ one cell


def cell(check: CellCheck, place: Cell, grounds: Grounds) -> Outcome:
    """The cell against the mean over seeds of the same row's arm at batch 1."""
    column, printed = COLUMNS[place.column], printed_number(grounds, place.row, place.column)
    arms = Arms(paper_row=place.row)
    found = [(result, value) for result in grounds.select(arms) if (value := _cell_value(result, column.name)) is not None]
    records = tuple(result.record.trial_id for result, _ in found)
    ours = _cell_ours(found, column) if found else None
    obstacle = grounds.obstacle(*column.needs, ours=ours, records=records)
    if obstacle is not None:
        return obstacle if found else replace(obstacle, words=f"{obstacle.words} Nor is there a result of this row's arm.")
    if ours is None or ours.value is None:
        if column.name == "cpu_ms" and grounds.select(arms):
            return Outcome("not run", "No profile runs ViT-L/16 on a CPU.", because="a profile with ViT-L/16 and device: cpu")
        return grounds.missing_arms(arms)
    off = abs(ours.value - printed) if column.rate else abs(ours.value / printed - 1) if printed else float("inf")
    allowed = f"{100 * check.within:g} {'points' if column.rate else '%'}"
    words = f"Printed {printed:g}, ours {ours.text}; allowed {allowed}."
    return Outcome("reproduced" if off <= check.within else "not reproduced", words, ours=ours, records=records)


def _cell_ours(found: Sequence[tuple[Result, float]], column: _Column) -> Measured:
    mean = fmean(value for _, value in found)
    seeds = f" (mean of {len(found)} seeds)" if len(found) > 1 else ""
    interval = _p50_interval(found[0][0], PAPER_BATCH) if column.name == "p50_ms" and len(found) == 1 else None
    text = f"{mean:,.{column.digits}f} {column.unit}".strip() + seeds
    return Measured(text=text, value=mean, unit=column.unit or None, interval=interval)


def _cell_value(result: Result, name: str) -> float | None:
    if name in ("top1", "top5", "macro_f1"):
        return None if result.whole is None else float(getattr(result.whole, name))
    latency = _latency(result, PAPER_BATCH)
    if name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "images_per_s"):
        return None if latency is None else getattr(latency, name)
    if name == "cpu_ms":
        return latency.mean_ms if latency is not None and result.record.trial.device == "cpu" else None
    return value_of(result, _QUANTITIES[name], PAPER_BATCH)


_QUANTITIES: dict[str, Quantity] = {
    "file_mib": "file_mib",
    "peak_mib": "peak_mib",
    "kernel_us": "kernel_us",
    "attention_us": "attention_us",
}


# -------------------------------------------------------------------------------------------------------- arm over twin


def ratio(check: RatioCheck, grounds: Grounds) -> Outcome:
    """`reproduced` where every pair of twins lies in the bounds, interval and all; an interval across a bound is `underpowered`."""
    found = [(pair, ratio) for pair in grounds.twins(check.of, check.to) if (ratio := _ratio(pair, check)) is not None]
    pairs, ratios = [pair for pair, _ in found], [ratio for _, ratio in found]
    ours = _ratios_ours(ratios) if ratios else None
    needs: tuple[Need, ...] = ("vit_l_16",) if check.quantity in _OF_SIZE else ("vit_l_16", "cuda")
    obstacle = grounds.obstacle(*needs, ours=ours, records=record_ids(pairs))
    if obstacle is not None:
        return obstacle
    if ours is None:
        return grounds.missing_arms(check.of, check.to)
    states = [_place(value, interval, check.at_least, check.at_most) for value, interval in ratios]
    verdict: Verdict = "not reproduced" if "out" in states else "underpowered" if "across" in states else "reproduced"
    batch = f" at batch {check.batch}" if check.batch is not None else ""
    name = QUANTITY_WORDS[check.quantity].capitalize()
    words = f"{name}{batch}: ours {ours.text} in {pair_words(len(pairs))}; expected {bounds(check.at_least, check.at_most)}."
    return Outcome(verdict, words, ours=ours, records=record_ids(pairs))


def _ratio(pair: tuple[Result, Result], check: RatioCheck) -> tuple[float, Interval | None] | None:
    """The quotient, and for a median latency the widest one that the two 95 % intervals allow; None where one was not measured."""
    one, other = (value_of(result, check.quantity, check.batch) for result in pair)
    if one is None or other is None:
        return None
    value = one / other if other else float("inf")
    if check.quantity != "p50_ms" or check.batch is None:
        return value, None
    mine, its = (_p50_interval(result, check.batch) for result in pair)
    return value, None if mine is None or its is None else Interval(low=mine.low / its.high, high=mine.high / its.low)


def _place(value: float, interval: Interval | None, at_least: float | None, at_most: float | None) -> str:
    low, high = (interval.low, interval.high) if interval is not None else (value, value)
    least, most = at_least if at_least is not None else float("-inf"), at_most if at_most is not None else float("inf")
    if low >= least and high <= most:
        return "in"
    return "out" if high < least or low > most else "across"


def _ratios_ours(ratios: Sequence[tuple[float, Interval | None]]) -> Measured:
    values = [value for value, _ in ratios]
    if len(ratios) == 1:
        value, interval = ratios[0]
        between = f" ({interval.low:.2f} to {interval.high:.2f})" if interval is not None else ""
        return Measured(text=f"{value:.2f} x{between}", value=value, unit="x", interval=interval)
    return Measured(text=f"{min(values):.2f} to {max(values):.2f} x", value=median(values), unit="x")


def pair_words(count: int) -> str:
    """`1 pair` or `n pairs`."""
    return "1 pair" if count == 1 else f"{count} pairs"


# --------------------------------------------------------------------------------------------------- where it is spent


def share(check: ShareCheck, grounds: Grounds) -> Outcome:
    """Of what the forward takes longer than its twin's, how much the named kernels take longer."""
    found = [(pair, share) for pair in grounds.twins(check.of, check.to) if (share := _share(pair, check)) is not None]
    pairs, shares = [pair for pair, _ in found], [share for _, share in found]
    ours = None
    if shares:
        text = " to ".join(f"{100 * value:.0f} %" for value in dict.fromkeys((min(shares), max(shares))))
        ours = Measured(text=f"{text} of the extra time", value=100 * median(shares), unit="%")
    obstacle = grounds.obstacle("vit_l_16", "cuda", ours=ours, records=record_ids(pairs))
    if obstacle is not None:
        return obstacle
    if ours is None:
        return grounds.missing_arms(check.of, check.to)
    enough = [value >= check.at_least for value in shares]
    waits = "; ".join(_waiting(pair, check.batch) for pair in pairs)
    words = f"{', '.join(check.classes)} kernels at batch {check.batch}: {ours.text}, expected {100 * check.at_least:g} % or more; {waits}."
    return Outcome("reproduced" if all(enough) else "not reproduced", words[0].upper() + words[1:], ours=ours, records=record_ids(pairs))


def _share(pair: tuple[Result, Result], check: ShareCheck) -> float | None:
    one, other = (_kernels(result, check.batch) for result in pair)
    if one is None or other is None:
        return None
    extra = pair[0].wall_us(one) - pair[1].wall_us(other)
    spent = sum(one.by_class_us.get(name, 0.0) - other.by_class_us.get(name, 0.0) for name in check.classes)
    return spent / extra if extra > 0 else 0.0


def _waiting(pair: tuple[Result, Result], batch: int) -> str:
    """How long each of the two takes, how long its kernels run, and what it launches and waits for."""
    parts = []
    for result in pair:
        kernels = _kernels(result, batch)
        if kernels is None:
            continue
        busy = sum(kernels.by_class_us.values()) / 1e3
        counts = f", {kernels.launches} launches, {kernels.host_syncs} host syncs" if kernels.launches is not None else ""
        parts.append(f"{result.record.trial.label} {result.wall_us(kernels) / 1e3:.1f} ms, kernels {busy:.1f} ms{counts}")
    return " against ".join(parts)


def runs(check: RunsCheck, grounds: Grounds) -> Outcome:
    """Whether some such arm succeeded on the device; any size of model shows that the code is there."""
    found = [result for result in grounds.select(check.of) if result.record.trial.device == check.device]
    if not found:
        return Outcome("not run", f"No such arm ran on {check.device} here.", because="lowbit-vit variants demo")
    labels = ", ".join(dict.fromkeys(result.record.trial.label for result in found))
    ran = Measured(text=f"{len(found)} arms run on {check.device}", value=float(len(found)), unit="arms")
    verdict: Verdict = "reproduced" if check.expects == "runs" else "not reproduced"
    return Outcome(verdict, f"On {check.device} ran: {labels}.", ours=ran, records=tuple(result.record.trial_id for result in found))


# ------------------------------------------------------------------------------------------------ values of one record


def value_of(result: Result, quantity: Quantity, batch: int | None) -> float | None:
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


def _of_kernels(result: Result, kernels: KernelTime, quantity: Quantity) -> float | None:
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
