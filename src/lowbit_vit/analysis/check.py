"""A run against a reference: within tolerance or not, arm by arm and number by number.

Each tolerance is declared beforehand and said in its line: counts and bytes exactly; accuracy by the profile's margin, unless
the difference is no more than chance; latency and memory on the same processor (GPU or CPU) alone. An arm that the reference has and
the run has not is a miss. A number that cannot be compared is listed as such and is no miss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import polars as pl

from lowbit_vit.analysis.bootstrap import macro_f1_difference
from lowbit_vit.analysis.frames import typed
from lowbit_vit.analysis.latencies import latency_ratio
from lowbit_vit.analysis.results import Result, require_same_labels
from lowbit_vit.analysis.runs import Pair, Run, match, timing_obstacle
from lowbit_vit.analysis.statistics import compare, compare_unpaired
from lowbit_vit.schema.config import Statistics, Study
from lowbit_vit.schema.metrics import Interval, LatencySummary
from lowbit_vit.schema.record import Record

# The allocator's peak is not exactly repeatable: libraries choose their workspaces by what they find free.
MEMORY_FACTOR = 1.05

Verdict = Literal["within", "miss", "not compared"]


@dataclass(frozen=True)
class Outcome:
    """One number compared; the functions below that make it suit any two values.

    Attributes:
        metric: what is compared.
        expected: the reference's value with its unit, as text.
        found: the run's.
        tolerance: what was allowed, and why.
        verdict: `within`, `miss` or `not compared`.
        because: in words, where the verdict needs them.
    """

    metric: str
    expected: str
    found: str
    tolerance: str
    verdict: Verdict
    because: str = ""


@dataclass(frozen=True)
class Line:
    """One number of one arm; the label is the reference's, or the run's where the reference has no such arm."""

    study: Study
    arm: str
    seed: int
    outcome: Outcome

    @property
    def name(self) -> str:
        """Of the number, in one line."""
        return f"{self.study}, {self.arm}, seed {self.seed}: {self.outcome.metric}"


def check_run(run: Run, reference: Run) -> list[Line]:
    """Compare every arm of the reference with the run's; tolerances are those of the reference's profile."""
    return [
        Line(study=pair.trial.study, arm=pair.trial.label, seed=pair.trial.seed, outcome=outcome)
        for pair in match(reference, run)
        for outcome in _outcomes(pair, reference.profile.statistics)
    ]


def misses(lines: Sequence[Line]) -> list[Line]:
    """The lines that are out of tolerance."""
    return [line for line in lines if line.outcome.verdict == "miss"]


def check_frame(lines: Sequence[Line]) -> pl.DataFrame:
    """The lines as a table, for CSV."""
    rows = [{"study": line.study, "arm": line.arm, "seed": line.seed, **asdict(line.outcome)} for line in lines]
    return typed(rows, "study", "arm", "seed", *(field.name for field in fields(Outcome)))


def _outcomes(pair: Pair, statistics: Statistics) -> Iterator[Outcome]:
    expected, found = pair.first, pair.second
    yield compare_status(None if expected is None else expected.record, None if found is None else found.record)
    if expected is None or found is None or not expected.record.status == found.record.status == "success":
        return
    yield from _sizes(expected.record, found.record)
    yield from _accuracy(expected, found, margin=statistics.margin)
    yield from _speed(expected, found, factor=statistics.latency_factor)


def compare_status(expected: Record | None, found: Record | None) -> Outcome:
    """Success must be repeated. What the reference could not run need not run, and what it has not is not asked for."""
    before, after = _status(expected, "not in the reference"), _status(found, "not in the run")
    outcome = Outcome("status", before, after, "success stays success", "within")
    if expected is None or expected.status != "success":
        reason = "" if found is None or found.status != "success" else "the reference has no result to compare with"
        return replace(outcome, verdict="within" if before == after else "not compared", because=reason)
    if found is None or found.status != "success":
        return replace(outcome, verdict="miss", because="the reference has this result, the run has not")
    return outcome


def _status(record: Record | None, absent: str) -> str:
    if record is None:
        return absent
    return record.status if record.reason is None else f"{record.status}: {record.reason}"


def compare_exactly(metric: str, expected: object, found: object) -> Outcome:
    """Two values that are counted, not measured."""
    return Outcome(metric, _text(expected), _text(found), "exact: counted, not measured", "within" if expected == found else "miss")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def compare_rates(metric: str, expected: float, found: float, *, interval: Interval, margin: float, images: str) -> Outcome:
    """Two rates in 0..1: a miss where they differ by more than the margin, and by more than chance.

    Chance is what the 95 % interval of their difference says. A difference within the margin passes whatever the interval; one
    beyond it passes where the interval holds 0: so few images cannot tell it from none, which `because` says.
    """
    difference = found - expected
    tolerance = f"{100 * margin:.2f} points (statistics.margin), or no more than chance at 95 % ({images})"
    outcome = Outcome(metric, f"{100 * expected:.2f} %", f"{100 * found:.2f} %", tolerance, "within")
    # Rounded: a difference of exactly the margin is within it, whatever floats make of it.
    if round(abs(difference) - margin, 12) <= 0:
        return outcome
    seen = f"{100 * difference:+.2f} points, 95 % interval {100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
    if interval.low <= 0 <= interval.high:
        return replace(outcome, because=f"no more than chance: {seen}")
    return replace(outcome, verdict="miss", because=seen)


def compare_latencies(metric: str, expected: LatencySummary, found: LatencySummary, *, factor: float, obstacle: str | None) -> Outcome:
    """Two median latencies: a miss where their ratio, with its 95 % interval, lies beyond the factor either way.

    Args:
        metric: its name.
        expected: the reference's.
        found: the run's.
        factor: greatest ratio that counts as equal; its inverse is the least.
        obstacle: why the two cannot be compared, or None.
    """
    ratio = latency_ratio(expected, found, one_run=False)
    before, after = (f"{latency.p50_ms:.4g} ms" for latency in (expected, found))
    counts = sorted({expected.processes, found.processes})
    of = "one process" if counts == [1] else f"{' and '.join(map(str, counts))} processes"
    tolerance = f"factor {factor:g} (statistics.latency_factor), same processor; {of}"
    if obstacle is not None:
        return Outcome(metric, before, after, tolerance, "not compared", obstacle)
    low, high = (ratio.value, ratio.value) if ratio.interval is None else (ratio.interval.low, ratio.interval.high)
    beyond = low > factor or high < 1 / factor
    because = f"{ratio.value:.3g} times, 95 % interval {low:.3g} to {high:.3g}" if beyond else ""
    return Outcome(metric, before, after, tolerance, "miss" if beyond else "within", because)


def _sizes(expected: Record, found: Record) -> Iterator[Outcome]:
    if expected.model is None or found.model is None:
        return
    for metric in ("parameters", "trainable_parameters"):
        yield compare_exactly(metric.replace("_", " "), getattr(expected.model, metric), getattr(found.model, metric))
    yield compare_exactly("weights, bytes", expected.model.weight_bytes, found.model.weight_bytes)
    yield compare_exactly("file, bytes", expected.model.file_bytes, found.model.file_bytes)
    yield compare_exactly("linears by format", expected.model.layers.by_format, found.model.layers.by_format)


def _accuracy(expected: Result, found: Result, *, margin: float) -> Iterator[Outcome]:
    one, two = expected.predictions, found.predictions
    before, after = expected.whole, found.whole
    if one is None or two is None or before is None or after is None:
        return
    if not require_same_labels(expected, found):
        counts = [(int(predictions.right.sum()), len(predictions.right)) for predictions in (one, two)]
        apart = compare_unpaired(*counts).interval
        yield compare_rates("Top-1", before.top1, after.top1, interval=apart, margin=margin, images="unpaired, other images")
        f1, after_f1 = (f"{100 * accuracy.macro_f1:.2f} %" for accuracy in (before, after))
        yield Outcome("macro-F1", f1, after_f1, "paired images", "not compared", "other images: macro-F1 has no unpaired test here")
        return
    paired = compare(one.right, two.right).interval
    yield compare_rates("Top-1", before.top1, after.top1, interval=paired, margin=margin, images="paired, same images")
    # Within the margin there is nothing to ask of chance, and thousands of resamples are saved.
    chance = Interval(low=0.0, high=0.0)
    if abs(after.macro_f1 - before.macro_f1) > margin:
        chance = macro_f1_difference(one.label, one.best, two.best).interval
    yield compare_rates("macro-F1", before.macro_f1, after.macro_f1, interval=chance, margin=margin, images="paired bootstrap")


def _speed(expected: Result, found: Result, *, factor: float) -> Iterator[Outcome]:
    obstacle = timing_obstacle(expected.record, found.record)
    for batch, latency in expected.latency.items():
        metric, theirs = f"P50 latency, batch {batch}", found.latency.get(batch)
        if theirs is None:
            yield _absent(metric, f"{latency.p50_ms:.4g} ms")
        else:
            yield compare_latencies(metric, latency, theirs, factor=factor, obstacle=obstacle)
    peaks = _peaks(found.record)
    for batch, peak in _peaks(expected.record).items():
        yield _memory(f"peak allocated bytes, batch {batch}", peak, peaks.get(batch), obstacle=obstacle)


def _peaks(record: Record) -> dict[int, int]:
    """By batch size; none on a CPU: the resident set of a process is mostly libraries and says little of the model."""
    memory = () if record.measurement is None else record.measurement.memory
    return {item.batch_size: item.peak_allocated_bytes for item in memory if item.peak_allocated_bytes is not None}


def _memory(metric: str, expected: int, found: int | None, *, obstacle: str | None) -> Outcome:
    if found is None:
        absent = _absent(metric, f"{expected:,}")
        return absent if obstacle is None else Outcome(metric, absent.expected, "none", "", "not compared", obstacle)
    tolerance = f"factor {MEMORY_FACTOR:g} (libraries' workspaces), same processor"
    outcome = Outcome(metric, f"{expected:,}", f"{found:,}", tolerance, "within")
    if obstacle is not None:
        return replace(outcome, verdict="not compared", because=obstacle)
    return outcome if expected / MEMORY_FACTOR <= found <= expected * MEMORY_FACTOR else replace(outcome, verdict="miss")


def _absent(metric: str, expected: str) -> Outcome:
    return Outcome(metric, expected, "not measured", "measured in both", "miss", "the reference has this number, the run has not")
