"""A recommended model in one sentence, what it rests on, and the command that exports it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lowbit_vit.analysis.programme import MIB, Budget
from lowbit_vit.analysis.recommendation import Recommendation
from lowbit_vit.report.figures.style import FORMAT_NAMES
from lowbit_vit.report.number_format import milliseconds, number, points, probability
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


def sentence(model: Recommendation) -> str:
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
    assert model.result is not None and model.result.predictions is not None  # noqa: S101, PT018
    trial, half = model.result.record.trial, int(model.result.predictions.selection.sum())
    if budget.quantity == "flips":
        asked = f"the fewest bytes of those that change at most {budget.limit / 10:g} % of predictions"
    else:
        asked = f"the fewest changed predictions within {budget.words}"
    chosen = f"of the models that were run, {asked}, on the selection half of the test images ({half}): {100 * model.selected:.1f} % there."
    export = f"lowbit-vit export {profile.name} {trial.trial_id} exported"
    if trial.execution != "eager":
        export = f"first an eager arm like {trial.label} in profiles/{profile.name}.yaml and lowbit-vit variants {profile.name}"
    return [Sentence("Chosen", chosen), _reported(profile, model), Sentence("Export", export)]


def planned_evidence(profile: Profile, plan: PlanFile, path: str, model: Recommendation) -> list[Sentence]:
    """What a recommended plan of `allocate` rests on, which may not have been run, and the command that exports it."""
    optimum = "" if plan.optimum is None else f", proven to a gap of {plan.optimum.gap:.2g}"
    what = "fewest bytes" if plan.optimum is not None and plan.optimum.minimized == "weight_bytes" else "least KL"
    chosen = f"{what} within {plan.budget}, by what each unit alone costs on the selection half of the test images{optimum}."
    predicted = (
        f"not run: this is predicted from the selection half. To see the other half, put mixed.plans: [{path}] into "
        f"profiles/{profile.name}.yaml and run lowbit-vit mixed {profile.name}.{_speed_words(profile, model)} {_BRACKETS}"
    )
    reported = Sentence("Reported", predicted) if model.result is None else _reported(profile, model)
    return [Sentence("Chosen", chosen), reported, Sentence("Export", f"lowbit-vit export {profile.name} {path} exported")]


def _reported(profile: Profile, model: Recommendation) -> Sentence:
    test, reference = model.top1, model.reference.record
    assert test is not None and reference.model is not None  # noqa: S101, PT018  (both were run)
    return Sentence(
        "Reported",
        f"on the other half {round(model.changed * test.images)} of {test.images} predictions are not those of "
        f"{reference.trial.label} ({_size(reference.model.weight_bytes)} MiB, {reference.trial.plan.compute_dtype}); Top-1 differs by "
        f"{points(test.difference)} points ({points(test.interval.low)} to {points(test.interval.high)}), McNemar's p "
        f"{probability(test.p_value)}.{_speed_words(profile, model)} {_BRACKETS}",
    )


def _speed_words(profile: Profile, model: Recommendation) -> str:
    speed = model.speed
    if speed is None:
        return f" Not timed at this batch size and execution: lowbit-vit variants {profile.name} times arms, profile key mixed.timed plans."
    theirs = speed.ms * speed.faster.value
    several = "one process" if speed.processes == 1 else f"{speed.processes} processes"
    how = "predicted from the arms of one format throughout" if speed.predicted else f"each timed in {several}"
    return (
        f" Median of a batch of {speed.batch_size}, {speed.execution.replace('_', ' ')}: {milliseconds(speed.ms)} ms, of high precision "
        f"{milliseconds(theirs)} ms, {how}; of two runs, medians within a factor of {profile.statistics.latency_factor:g} count as equal."
    )


def without_mixed(profile: Profile) -> Sentence:
    """Where the sensitivity study has not been run."""
    return Sentence(
        "Mixed precision", f"was not measured; lowbit-vit sensitivity {profile.name} does, then lowbit-vit mixed {profile.name}"
    )


def why_none(profile: Profile) -> str:
    """Why no model can be recommended, and the command that makes the records for it."""
    return (
        "nothing yet: it takes a finished eager arm in high precision and one in low bits of the same weights (adaptation ptq, or none "
        f"without lora): lowbit-vit variants {profile.name}; for mixed precision then lowbit-vit sensitivity {profile.name} and "
        f"lowbit-vit mixed {profile.name}"
    )
