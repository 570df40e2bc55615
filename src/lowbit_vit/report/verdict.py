"""What came out, in a headline, a few sentences and the sections' headings, every number in them from the records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.programme import MIB, Budget
from lowbit_vit.analysis.recommendation import Recommendation
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import compare
from lowbit_vit.analysis.tables import Findings, Tables
from lowbit_vit.report.figures.style import FORMAT_NAMES
from lowbit_vit.report.ledger import TONE_WORDS, tone_counts
from lowbit_vit.report.number_format import milliseconds, number, percent, points, probability
from lowbit_vit.schema.allocation import PlanFile
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import Plan, linear_names

_BRACKETS = "In brackets: 95 % intervals."
_FEW_LINEARS = 6  # more are counted, not named


@dataclass(frozen=True)
class Sentence:
    """One of them; `about` is its first word, set apart."""

    about: str
    text: str


@dataclass(frozen=True)
class Trio:
    """The arms that the verdict compares: one in high precision, one in 4 bit, one in 8 bit, as far as they finished."""

    high: dict[str, Any] | None
    low: tuple[dict[str, Any], ...]


def headline(judged: Sequence[Judged], recommended: Recommendation | None) -> str:
    """How the paper's statements fare, or without a paper the recommendation; empty where there is neither."""
    if not judged:
        return "" if recommended is None else recommendation(recommended)
    tones = tone_counts(judged)
    decided = tones["agrees"] + tones["fails"]
    return f"Of {len(judged)} statements, {tones['agrees']} agree, {tones['fails']} fail, {len(judged) - decided} stay undecided"


def sentences(profile: Profile, findings: Findings, judged: Sequence[Judged], recommended: Recommendation | None) -> list[Sentence]:
    """Claims where there is a paper, else the recommendation's evidence; accuracy, speed. What is missing is said in its sentence."""
    trio = pick_arms(findings.tables.paper_table)
    if judged:
        first = [Sentence("Claims", _claims(judged))]
    elif recommended is None:
        first = [Sentence("Recommended", why_none(profile))]
    else:
        first = evidence(profile, recommended, Budget("flips", 1000 * profile.statistics.margin))
    return [*first, Sentence("Accuracy", _accuracy(trio, findings.results["variants"])), Sentence("Speed", _speed(trio))]


def recommendation(model: Recommendation) -> str:
    """The model in one sentence: its formats, size, the predictions that it changes and its speed, the last two with 95 % intervals."""
    low, high = (100 * end for end in (model.interval.low, model.interval.high))
    predicted = "" if model.result is not None else "predicted; "
    changed = f"{100 * model.changed:.1f} % of predictions change ({predicted}{low:.1f} to {high:.1f})"
    parts = [f"{_size(model.weight_bytes)} MiB", *([changed] if model.low_bit else []), *_faster(model)]
    return f"{plan_words(model.plan, model.depth)}: {', '.join(parts)}"


def plan_words(plan: Plan, depth: int) -> str:
    """`int8 in blocks 0-5, NF4 elsewhere`; high precision by the name of its dtype, `elsewhere` what most linears have."""
    names = {name: _format_name(weights.name, plan) for name, weights in plan.resolve(linear_names(depth)).items()}
    (most, _), *others = Counter(names.values()).most_common()
    places: dict[str, list[str]] = {name: [] for name, _ in others}
    for form, found in places.items():
        own = [{names[f"blocks.{block}.{linear.removeprefix('blocks.0.')}"] for linear in linear_names(1)} for block in range(depth)]
        whole = [block for block in range(depth) if own[block] == {form}]
        if whole:
            found.append(f"block{'s' if len(whole) > 1 else ''} {_ranges(whole)}")
        linears = [name.removeprefix("blocks.") for name, its in names.items() if its == form and int(name.split(".")[1]) not in whole]
        if linears:
            found.append(", ".join(linears) if len(linears) <= _FEW_LINEARS else f"{len(linears)} linears")
    low = [f"{form} in {' and '.join(found)}" for form, found in places.items()]
    if most == plan.compute_dtype and not low:
        return f"{most} in all blocks, nothing quantized"
    return ", ".join([*low, f"{most} elsewhere"]) if low else f"{most} in all blocks"


def _format_name(name: str, plan: Plan) -> str:
    first, _, setting = FORMAT_NAMES.get(name, name).partition(", ")
    return plan.compute_dtype if name == "high" else f"{first} ({setting})" if setting else first


def _ranges(blocks: Sequence[int]) -> str:
    """`0-5, 7` of ascending numbers."""
    runs = [list(run) for _, run in groupby(enumerate(blocks), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)


def _size(size: int) -> str:
    mib = size / MIB
    return number(mib, 0 if mib >= 100 else 1 if mib >= 10 else 2)


def _faster(model: Recommendation) -> list[str]:
    """A ratio whose interval holds 1 is neither."""
    if model.speed is None or not model.low_bit:
        return []
    speed, interval = model.speed.faster.value, model.speed.faster.interval
    if interval is not None and interval.low <= 1 <= interval.high:
        return [f"as fast ({interval.low:.2f}x to {interval.high:.2f}x)"]
    ratio, word = (speed, "faster") if speed >= 1 else (1 / speed, "slower")
    if interval is None:
        return [f"{ratio:.2f}x {word} ({'predicted' if model.speed.predicted else 'too few samples for an interval'})"]
    ends = sorted((interval.low, interval.high) if speed >= 1 else (1 / interval.low, 1 / interval.high))
    return [f"{ratio:.2f}x {word} ({ends[0]:.2f} to {ends[1]:.2f})"]


def evidence(profile: Profile, model: Recommendation, budget: Budget) -> list[Sentence]:
    """What a recommended model that was run rests on, and the command that exports it."""
    assert model.result is not None and model.result.predictions is not None and model.top1 is not None  # noqa: S101, PT018
    reference, trial, half = model.reference, model.result.record.trial, int(model.result.predictions.selection.sum())
    if budget.quantity == "flips":
        asked = f"the fewest bytes of those that change at most {budget.limit / 10:g} % of predictions"
    else:
        asked = f"the fewest changed predictions within {budget.words}"
    chosen = f"of the models that were run, {asked}, on the selection half of the test images ({half}): {100 * model.selected:.1f} % there."
    size = _size(0 if reference.record.model is None else reference.record.model.weight_bytes)
    test = model.top1
    report = (
        f"on the other half {round(model.changed * test.images)} of {test.images} predictions are not those of "
        f"{reference.record.trial.label} ({size} MiB, {reference.record.trial.plan.compute_dtype}); Top-1 differs by "
        f"{points(test.difference)} points ({points(test.interval.low)} to {points(test.interval.high)}), McNemar's p "
        f"{probability(test.p_value)}.{_speed_words(profile, model)} {_BRACKETS}"
    )
    export = f"lowbit-vit export {profile.name} {trial.trial_id} exported"
    if trial.execution != "eager":
        export = f"first an eager arm like {trial.label} in profiles/{profile.name}.yaml and lowbit-vit variants {profile.name}"
    return [Sentence("Chosen", chosen), Sentence("Reported", report), Sentence("Export", export)]


def planned_evidence(profile: Profile, plan: PlanFile, path: str, model: Recommendation) -> list[Sentence]:
    """What a recommended plan of `allocate` rests on, which may not have been run, and the command that exports it."""
    optimum = "" if plan.optimum is None else f", proven to a gap of {plan.optimum.gap:.2g}"
    what = "fewest bytes" if plan.optimum is not None and plan.optimum.minimized == "weight_bytes" else "least KL"
    chosen = f"{what} within {plan.budget}, by what each unit alone costs on the selection half of the test images{optimum}."
    if model.result is not None:
        _, reported, _ = evidence(profile, model, Budget("flips", 0))
    else:
        reported = Sentence(
            "Reported",
            f"not run: this is predicted from the selection half. On the other half: mixed.plans: [{path}] in "
            f"profiles/{profile.name}.yaml, then lowbit-vit mixed {profile.name}.{_speed_words(profile, model)} {_BRACKETS}",
        )
    return [Sentence("Chosen", chosen), reported, Sentence("Export", f"lowbit-vit export {profile.name} {path} exported")]


def _speed_words(profile: Profile, model: Recommendation) -> str:
    speed = model.speed
    if speed is None:
        return f" Not timed so: lowbit-vit variants {profile.name} times arms, profile key mixed.timed plans."
    theirs = speed.ms * speed.faster.value
    how = "predicted from the arms of one format throughout" if speed.predicted else "each timed in a process of its own"
    return (
        f" Median of a batch of {speed.batch_size}, {speed.execution.replace('_', ' ')}: {milliseconds(speed.ms)} ms, of high precision "
        f"{milliseconds(theirs)} ms, {how}; of two runs, medians within a factor of {profile.statistics.latency_factor:g} count as equal."
    )


def why_none(profile: Profile) -> str:
    """Why no model can be recommended, and the command that makes the records for it."""
    return (
        "nothing yet: it takes a finished eager arm in high precision and one in low bits of the same weights (adaptation ptq, or none "
        f"without lora): lowbit-vit variants {profile.name}; for mixed precision then lowbit-vit sensitivity {profile.name} and "
        f"lowbit-vit mixed {profile.name}"
    )


def pick_arms(table: pl.DataFrame) -> Trio:
    """Of each family of weights the first finished eager arm, those that repeat a row of the paper's table first.

    Each arm is given by its row at the smallest batch size.
    """
    good = table.filter((pl.col("status") == "success") & (pl.col("execution") == "eager"))
    good = good.sort("paper_row", "order", "batch_size", nulls_last=True)

    def first(family: str) -> dict[str, Any] | None:
        return next(good.filter(pl.col("weights_family") == family).iter_rows(named=True), None)

    low = (first("NF4"), first("int8"))
    return Trio(high=first("floating point"), low=tuple(row for row in low if row is not None))


def _claims(judged: Sequence[Judged]) -> str:
    tones = tone_counts(judged)
    parts = [f"{count} {TONE_WORDS[tone]}" for tone, count in tones.items()]
    return f"of the {len(judged)} checkable statements, {_listed(parts)}."


def _accuracy(trio: Trio, results: Sequence[Result]) -> str:
    if trio.high is None or not trio.low:
        return _missing(trio)
    parts = []
    for row in trio.low:
        outcome = _paired(trio.high["arm"], row["arm"], results)
        if outcome is None:
            parts.append(f"{row['arm']} has {percent(row['top1'])} % (not the same images: no paired test)")
        else:
            difference, low, high = outcome
            parts.append(f"{row['arm']} differs by {points(difference)} points (95 % interval {points(low)} to {points(high)})")
    sizes = _listed([f"{row['file_mib'] / trio.high['file_mib']:.2f}" for row in trio.low])
    head = f"against {trio.high['arm']}, {percent(trio.high['top1'])} % of {trio.high['images']:,} test images, {_listed(parts)}"
    return f"{head}, at {sizes} times the file size."


def _paired(first: str, second: str, results: Sequence[Result]) -> tuple[float, float, float] | None:
    """Difference in Top-1 of the first seed that both arms have, with its 95 % interval; None where no seed has both."""
    found = {(result.record.trial.label, result.record.trial.seed): result for result in results if result.predictions is not None}
    for seed in sorted({seed for label, seed in found if label == first}):
        pair = [found.get((label, seed)) for label in (first, second)]
        arrays = [result.predictions for result in pair if result is not None and result.predictions is not None]
        if len(arrays) == 2:
            right = [predictions.right for predictions in arrays]
            outcome = compare(right[0], right[1])
            return outcome.difference, outcome.interval.low, outcome.interval.high
    return None


def _speed(trio: Trio) -> str:
    if trio.high is None or not trio.low:
        return _missing(trio)
    timed = [row for row in trio.low if row["p50_ms"] is not None]
    if trio.high["p50_ms"] is None or not timed:
        return "no latency was measured."
    ratios = [f"{row['arm']} takes {row['p50_ms'] / trio.high['p50_ms']:.2f}" for row in timed]
    text = f"at batch {trio.high['batch_size']}, {_listed(ratios)} times the median latency of {trio.high['arm']}"
    waiting = [row for row in timed if row["idle_us"] is not None]
    if waiting and trio.high["kernel_us"]:
        kernels = _listed([f"{row['kernel_us'] / trio.high['kernel_us']:.2f}" for row in waiting])
        idle = _listed([f"{100 * row['idle_us'] / row['wall_us']:.0f}" for row in waiting])
        text += f", while the kernels take {kernels} times as long and the card is idle for {idle} % of the forward"
    return f"{text}."


def _missing(trio: Trio) -> str:
    what = "no arm in high precision" if trio.high is None else "no arm with low-bit weights"
    return f"{what} has finished, so there is nothing to compare."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def headings(tables: Tables, *, arms: int) -> dict[str, str]:
    """Each section's heading says what the section found, or names its subject where there is nothing to find it in.

    `arms` is how many the profile declares.
    """
    return {
        "arms": _arms_heading(tables.paper_table, arms),
        "time": _time_heading(tables),
        "fronts": _fronts_heading(tables.fronts),
        "blocks": _blocks_heading(tables.sensitivity),
        "mixed": _mixed_heading(tables.beats_random),
    }


def _arms_heading(table: pl.DataFrame, arms: int) -> str:
    done = table.filter(pl.col("status") == "success").get_column("row").n_unique()
    return f"Every arm: {done} of {arms} finished"


def _time_heading(tables: Tables) -> str:
    rows = [row for row in pick_arms(tables.paper_table).low if row["wall_us"]]
    if not rows:
        return "Where the time goes"
    row = rows[0]
    if row["idle_us"] is not None:
        return f"The card waits for {100 * row['idle_us'] / row['wall_us']:.0f} % of {row['arm']} at batch {row['batch_size']}"
    same = (pl.col("arm") == row["arm"]) & (pl.col("batch_size") == row["batch_size"])
    spent = tables.kernel_classes.filter(same & (pl.col("class") == "quantize")).get_column("us").sum()
    share = 100 * spent / row["kernel_us"] if row["kernel_us"] else 0
    return f"Quantizing and dequantizing take {share:.0f} % of {row['arm']} at batch {row['batch_size']}"


def _fronts_heading(frame: pl.DataFrame) -> str:
    panels = frame.filter(pl.col("panel").str.starts_with("arms:") & pl.col("panel").str.contains("latency"))
    if panels.is_empty():
        return "Pareto fronts"
    first = panels.filter(pl.col("panel") == panels.item(0, "panel"))
    kept = first.filter(pl.col("state") == "on the front").height
    batch = panels.item(0, "panel").rpartition(" ")[2]
    return f"{kept} of {first.height} arms {'is' if kept == 1 else 'are'} on the front of accuracy and latency at batch {batch}"


def _blocks_heading(frame: pl.DataFrame) -> str:
    alone = frame.filter((pl.col("direction") == "only") & pl.col("kl_mean").is_not_null())
    worst = alone.sort("kl_mean", descending=True).unique("weights", keep="first", maintain_order=True)
    if worst.is_empty():
        return "Which blocks are sensitive"
    parts = [f"block {row['block']} to {FORMAT_NAMES.get(row['weights'], row['weights'])}" for row in worst.to_dicts()]
    return f"Most sensitive: {', '.join(parts)}"


def _mixed_heading(frame: pl.DataFrame) -> str:
    chosen = frame.filter((pl.col("strategy") == "first+last") & pl.col("beaten_kl").is_not_null()).sort("k")
    if chosen.is_empty():
        return "Which blocks to spare"
    row = chosen.row(0, named=True)
    return f"Sparing first and last beats {row['beaten_kl']:g} of {row['random_plans']} random plans (KL, k = {row['k']})"
