"""A run against a reference: within tolerance or not, arm by arm and number by number.

Each tolerance is declared beforehand and said in its line: counts and bytes exactly; accuracy by the profile's margin, unless
the difference is no more than chance; latency and memory on the same kind of card alone. An arm that the reference has and
the run has not is a miss. A number that cannot be compared is listed as such and is no miss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import polars as pl

from lowbit_vit.analysis.bootstrap import macro_f1_difference
from lowbit_vit.analysis.latencies import ratio_of_medians
from lowbit_vit.analysis.results import Result, require_same_labels
from lowbit_vit.analysis.runs import Pair, Run, match, timing_obstacle
from lowbit_vit.analysis.statistics import compare, compare_unpaired
from lowbit_vit.schema.config import Statistics, Study
from lowbit_vit.schema.metrics import Interval, percentile
from lowbit_vit.schema.record import Memory, Record

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
    names = ("study", "arm", "seed", *(field.name for field in fields(Outcome)))
    return pl.DataFrame(rows, schema={name: pl.Int64 if name == "seed" else pl.String for name in names})


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


def compare_latencies(metric: str, expected: Sequence[float], found: Sequence[float], *, factor: float, obstacle: str | None) -> Outcome:
    """Medians of two samples in ms: a miss where their ratio, with its 95 % interval, lies beyond the factor either way.

    Args:
        metric: its name.
        expected: the reference's samples, in ms.
        found: the run's.
        factor: greatest ratio that counts as equal; its inverse is the least.
        obstacle: why the two cannot be compared, or None.
    """
    ratio = ratio_of_medians(expected, found)
    before, after = (f"{percentile(samples, 0.5):.4g} ms" for samples in (expected, found))
    tolerance = f"factor {factor:g} (statistics.latency_factor), same card"
    if obstacle is not None:
        return Outcome(metric, before, after, tolerance, "not compared", obstacle)
    low, high = (ratio.value, ratio.value) if ratio.interval is None else (ratio.interval.low, ratio.interval.high)
    beyond = low > factor or high < 1 / factor
    because = f"{ratio.value:.3g} times, 95 % interval {low:.3g} to {high:.3g}" if beyond else ""
    return Outcome(metric, before, after, tolerance, "miss" if beyond else "within", because)


def _sizes(expected: Record, found: Record) -> Iterator[Outcome]:
    if expected.model is None or found.model is None:
        return
    for name, metric in (
        ("parameters", "parameters"),
        ("trainable_parameters", "trainable parameters"),
        ("weight_bytes", "weights, bytes"),
        ("file_bytes", "file, bytes"),
    ):
        yield compare_exactly(metric, getattr(expected.model, name), getattr(found.model, name))
    yield compare_exactly("linears by format", expected.model.layers.by_format, found.model.layers.by_format)


def _accuracy(expected: Result, found: Result, *, margin: float) -> Iterator[Outcome]:
    one, two = expected.predictions, found.predictions
    before, after = expected.whole, found.whole
    if one is None or two is None or before is None or after is None:
        return
    paired = require_same_labels(expected, found)
    counts = [(int(predictions.right.sum()), len(predictions.right)) for predictions in (one, two)]
    interval = compare(one.right, two.right).interval if paired else compare_unpaired(*counts).interval
    images = "paired, same images" if paired else "unpaired, other images"
    yield compare_rates("Top-1", before.top1, after.top1, interval=interval, margin=margin, images=images)
    if not paired:
        because = "other images: macro-F1 has no unpaired test here"
        text, found_text = (f"{100 * accuracy.macro_f1:.2f} %" for accuracy in (before, after))
        yield Outcome("macro-F1", text, found_text, "paired images", "not compared", because)
        return
    # Within the margin there is nothing to ask of chance, and thousands of resamples are saved.
    nothing = Interval(low=0.0, high=0.0)
    if abs(after.macro_f1 - before.macro_f1) > margin:
        nothing = macro_f1_difference(one.label, one.best, two.best).interval
    yield compare_rates("macro-F1", before.macro_f1, after.macro_f1, interval=nothing, margin=margin, images="paired bootstrap")


def _speed(expected: Result, found: Result, *, factor: float) -> Iterator[Outcome]:
    if expected.record.measurement is None:
        return
    obstacle = timing_obstacle(expected.record, found.record)
    memories: dict[int, Memory] = {}
    if found.record.measurement is not None:
        memories = {memory.batch_size: memory for memory in found.record.measurement.memory}
    for latency in expected.latency.values():
        metric = f"P50 latency, batch {latency.batch_size}"
        if latency.batch_size not in found.latency:
            yield _absent(metric, f"{latency.p50_ms:.4g} ms")
            continue
        theirs = found.latency[latency.batch_size]
        yield compare_latencies(metric, latency.samples_ms, theirs.samples_ms, factor=factor, obstacle=obstacle)
    for memory in expected.record.measurement.memory:
        if memory.peak_allocated_bytes is None:
            continue  # The resident set of a CPU process is mostly libraries: it says little of the model.
        metric = f"peak allocated bytes, batch {memory.batch_size}"
        peak = memories[memory.batch_size].peak_allocated_bytes if memory.batch_size in memories else None
        yield _memory(metric, memory.peak_allocated_bytes, peak, obstacle=obstacle)


def _memory(metric: str, expected: int, found: int | None, *, obstacle: str | None) -> Outcome:
    if found is None:
        return (
            _absent(metric, f"{expected:,}") if obstacle is None else Outcome(metric, f"{expected:,}", "none", "", "not compared", obstacle)
        )
    tolerance = f"factor {MEMORY_FACTOR:g} (libraries' workspaces), same card"
    if obstacle is not None:
        return Outcome(metric, f"{expected:,}", f"{found:,}", tolerance, "not compared", obstacle)
    beyond = not expected / MEMORY_FACTOR <= found <= expected * MEMORY_FACTOR
    return Outcome(metric, f"{expected:,}", f"{found:,}", tolerance, "miss" if beyond else "within")


def _absent(metric: str, expected: str) -> Outcome:
    return Outcome(metric, expected, "not measured", "measured in both", "miss", "the reference has this number, the run has not")
