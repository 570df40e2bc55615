"""Checks on per-image predictions: an arm's accuracy against its twin's, flips, the frontier, and somebody's Top-1.

Everything is paired: twins saw the same images, or they are not compared. The p values of all accuracy comparisons of the
ledger are one family, adjusted by Holm's method before any is read (`family`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.bootstrap import macro_f1_difference
from lowbit_vit.analysis.evidence.grounds import Grounds, Outcome, record_ids
from lowbit_vit.analysis.evidence.measured import QUANTITY_WORDS, pair_words, value_of
from lowbit_vit.analysis.pareto import undominated
from lowbit_vit.analysis.power import detectable_paired
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import Comparison, compare_counts, holm, margin_test, wilson
from lowbit_vit.schema.claim import Measured, Verdict
from lowbit_vit.schema.claim_checks import AccuracyCheck, Check, FlipsCheck, FrontierCheck, Metric, PairedCheck
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.predictions import Predictions

ALPHA = 0.05
METRIC_WORDS: dict[Metric, str] = {"top1": "Top-1", "top5": "Top-5", "macro_f1": "Macro-F1"}


@dataclass(frozen=True)
class _Compared:
    """One arm less its twin. `p_value` is of what the check expects; after Holm where it is a Top-1 comparison."""

    pair: tuple[Result, Result]
    comparison: Comparison
    p_value: float


# ------------------------------------------------------------------------------------------------------- paired accuracy


def paired(check: PairedCheck, grounds: Grounds) -> Outcome:
    """`reproduced` or `not reproduced` where the paired test decides for every pair, `underpowered` where it decides for none against."""
    if check.metric == "macro_f1":
        return _paired_f1(check, grounds)
    compared = _compare(check, grounds)
    pairs = [item.pair for item in compared]
    ours = _difference_ours([(item.comparison.difference, item.comparison.interval) for item in compared])
    obstacle = grounds.obstacle("vit_l_16", "flowers102", ours=ours, records=record_ids(pairs))
    if obstacle is not None:
        return obstacle
    if ours is None:
        return grounds.missing_arms(check.of, check.to)
    details = "; ".join(map(_details, compared))
    words = f"{METRIC_WORDS[check.metric]}: {ours.text} in {pair_words(len(pairs))}; {details}."
    return Outcome(_verdict([_decide(check, item) for item in compared]), words, ours=ours, records=record_ids(pairs))


def _compare(check: PairedCheck, grounds: Grounds) -> list[_Compared]:
    compared = []
    for one, other in grounds.twins(check.of, check.to):
        right = _both_right(one, other, check.metric)
        if right is None:
            continue
        mine, its = right
        lost, gained = int(np.count_nonzero(its & ~mine)), int(np.count_nonzero(mine & ~its))
        comparison = compare_counts(lost, gained, images=len(mine))
        raw = _p_value(check, comparison)
        key = family_key(check, one, other)
        compared.append(_Compared((one, other), comparison, grounds.adjusted.get(key, raw)))
    return compared


def _p_value(check: PairedCheck, comparison: Comparison) -> float:
    if check.expects == "worse":
        return comparison.p_value
    test = margin_test(comparison.lost, comparison.gained, images=comparison.images, margin=check.margin)
    return test.p_inferior if check.expects == "not worse" else test.p_equivalent


def _decide(check: PairedCheck, item: _Compared) -> Verdict:
    low, high = item.comparison.interval.low, item.comparison.interval.high
    match check.expects:
        case "not worse":
            return "reproduced" if item.p_value < ALPHA else "not reproduced" if high < -check.margin else "underpowered"
        case "same":
            outside = high < -check.margin or low > check.margin
            return "reproduced" if item.p_value < ALPHA else "not reproduced" if outside else "underpowered"
        case "worse":
            worse = item.p_value < ALPHA and item.comparison.difference <= -check.margin
            return "reproduced" if worse else "not reproduced" if low > -check.margin else "underpowered"


def _verdict(verdicts: Sequence[Verdict]) -> Verdict:
    return next((verdict for verdict in ("not reproduced", "underpowered") if verdict in verdicts), "reproduced")


def _details(item: _Compared) -> str:
    comparison = item.comparison
    least = detectable_paired(comparison.discordance, images=comparison.images)
    could = f", {100 * least:.2f} points could have been detected" if least is not None else ""
    counts = f"{comparison.lost:,} lost and {comparison.gained:,} gained of {comparison.images:,} images"
    p_value = "p < 0.001" if item.p_value < 0.001 else f"p = {item.p_value:.3f}"
    return f"{counts}, {p_value} after Holm{could}"


def _difference_ours(found: Sequence[tuple[float, Interval]]) -> Measured | None:
    if not found:
        return None
    if len(found) == 1:
        difference, interval = found[0]
        points = Interval(low=100 * interval.low, high=100 * interval.high)
        text = f"{100 * difference:+.2f} points ({points.low:+.2f} to {points.high:+.2f})"
        return Measured(text=text, value=100 * difference, unit="points", interval=points)
    values = [100 * difference for difference, _ in found]
    return Measured(text=f"{min(values):+.2f} to {max(values):+.2f} points", value=float(np.median(values)), unit="points")


def _paired_f1(check: PairedCheck, grounds: Grounds) -> Outcome:
    """Macro-F1 by the paired bootstrap's interval."""
    pairs, found = [], []
    for one, other in grounds.twins(check.of, check.to):
        predictions = _both(one, other)
        if predictions is not None:
            mine, its = predictions
            difference = macro_f1_difference(mine.label, its.best, mine.best)
            pairs.append((one, other))
            found.append((difference.difference, difference.interval))
    ours = _difference_ours(found)
    obstacle = grounds.obstacle("vit_l_16", "flowers102", ours=ours, records=record_ids(pairs))
    if obstacle is not None:
        return obstacle
    if ours is None:
        return grounds.missing_arms(check.of, check.to)
    verdict = _verdict([_decide_interval(check, interval) for _, interval in found])
    return Outcome(verdict, f"Macro-F1: {ours.text}, BCa interval.", ours=ours, records=record_ids(pairs))


def _decide_interval(check: PairedCheck, interval: Interval) -> Verdict:
    low, high, margin = interval.low, interval.high, check.margin
    match check.expects:
        case "not worse":
            return "reproduced" if low > -margin else "not reproduced" if high < -margin else "underpowered"
        case "same":
            inside, outside = low > -margin and high < margin, high < -margin or low > margin
            return "reproduced" if inside else "not reproduced" if outside else "underpowered"
        case "worse":
            return "reproduced" if high < -margin else "not reproduced" if low > -margin else "underpowered"


def family_key(check: PairedCheck, one: Result, other: Result) -> tuple[str, str, str]:
    """What one comparison of the family is called."""
    return one.record.trial_id, other.record.trial_id, f"{check.metric} {check.expects} {check.margin}"


def family(checks: Iterable[Check], grounds: Grounds) -> Mapping[tuple[str, str, str], float]:
    """Holm's adjusted p value of every Top-1 and Top-5 comparison that the ledger makes on these records, each counted once."""
    raw: dict[tuple[str, str, str], float] = {}
    for check in checks:
        if isinstance(check, PairedCheck) and check.metric != "macro_f1":
            for item in _compare(check, grounds):
                raw[family_key(check, *item.pair)] = item.p_value
    adjusted = holm(list(raw.values()))
    return {key: p_value for key, p_value in zip(raw, adjusted, strict=True) if p_value is not None}


# ---------------------------------------------------------------------------------------------------------------- flips


def flips(check: FlipsCheck, grounds: Grounds) -> Outcome:
    """The share of images on which twins name different classes, with Wilson's interval, against the most that is allowed."""
    found = [(pair, both) for pair in grounds.twins(check.of, check.to) if (both := _both(*pair)) is not None]
    pairs = [pair for pair, _ in found]
    counts = [(int(np.count_nonzero(one.best != other.best)), len(one.label)) for _, (one, other) in found]
    ours = _flips_ours(counts) if counts else None
    obstacle = grounds.obstacle("vit_l_16", "flowers102", ours=ours, records=record_ids(pairs))
    if obstacle is not None:
        return obstacle
    if ours is None:
        return grounds.missing_arms(check.of, check.to)
    intervals = [wilson(changed, images) for changed, images in counts]
    most = check.at_most
    states: list[Verdict] = [
        "reproduced" if item.high <= most else "not reproduced" if item.low > most else "underpowered" for item in intervals
    ]
    words = f"{ours.text} of the images change their class; allowed {100 * check.at_most:g} %."
    return Outcome(_verdict(states), words, ours=ours, records=record_ids(pairs))


def _flips_ours(counts: Sequence[tuple[int, int]]) -> Measured:
    rates = [100 * changed / images for changed, images in counts]
    if len(counts) > 1:
        return Measured(text=f"{min(rates):.2f} to {max(rates):.2f} %", value=float(np.median(rates)), unit="%")
    interval = wilson(*counts[0])
    percent = Interval(low=100 * interval.low, high=100 * interval.high)
    return Measured(text=f"{rates[0]:.2f} % ({percent.low:.2f} to {percent.high:.2f})", value=rates[0], unit="%", interval=percent)


# ---------------------------------------------------------------------------------------------------- frontier, accuracy


def frontier(check: FrontierCheck, grounds: Grounds) -> Outcome:
    """`reproduced` where some arm of the selector is undominated among all arms; needs a high-precision arm to compare with."""
    points: list[tuple[Result, tuple[float, ...]]] = []
    for result in grounds.results["variants"]:
        costs = [value_of(result, quantity, check.batch) for quantity in check.costs]
        if result.whole is not None and None not in costs:
            known = tuple(cost for cost in costs if cost is not None)
            points.append((result, (*known, -result.whole.top1)))
    picked = {result.record.trial_id for result in grounds.select(check.of)}
    members = [(result, point) for result, point in points if result.record.trial_id in picked]
    others = [result for result, _ in points if result.record.trial_id not in picked]
    front = undominated(point for _, point in points)
    kept = [result for result, point in members if point in front]
    records = tuple(result.record.trial_id for result, _ in points)
    names = ", ".join(dict.fromkeys(result.record.trial.label for result in kept))
    text = f"{len(kept)} of {len(members)} on the front"
    ours = Measured(text=text, value=float(len(kept)), unit="arms") if members else None
    obstacle = grounds.obstacle("vit_l_16", "flowers102", "cuda", ours=ours, records=records)
    if obstacle is not None:
        return obstacle
    absent = [arm.label for arm in grounds.profile.variants.arms if arm.label not in {result.record.trial.label for result, _ in points}]
    if ours is None or not others or absent:
        # Any arm that is missing may dominate, or be the undominated one.
        return grounds.missing_arms(check.of) if not points else replace(grounds.missing_arms(check.of), words=_absent(absent), ours=ours)
    costs_words = " and ".join(QUANTITY_WORDS[cost] for cost in check.costs)
    costs_words += f" at batch {check.batch}" if check.batch is not None else ""
    words = f"Top-1 against {costs_words}, {len(points)} arms: {ours.text}{': ' + names if names else ''}."
    return Outcome("reproduced" if kept else "not reproduced", words, ours=ours, records=records)


def _absent(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    return f"The front needs every arm; without a result: {shown}."


def accuracy(check: AccuracyCheck, grounds: Grounds) -> Outcome:
    """Somebody's Top-1 against ours, where images, model and weights are the same."""
    trials = [result for result in grounds.results["variants"] if result.whole is not None]
    best = max(trials, key=lambda result: result.whole.top1 if result.whole else 0.0, default=None)
    same = [
        result
        for result in trials
        if result.record.trial.data.source == check.images
        and result.record.trial.backbone.architecture == check.architecture
        and result.record.trial.backbone.weights == check.weights
    ]
    if not same and best is not None and best.whole is not None:
        trial, top1 = best.record.trial, best.whole.top1
        ours = Measured(text=f"{100 * top1:.2f} % ({trial.label})", value=100 * top1, unit="%")
        own = f"{trial.backbone.weights} weights on {trial.data.source}"
        words = f"Ours are {own}; the number is of {check.weights} weights on {check.images}."
        return Outcome("not comparable", words, because="weights", ours=ours, records=(best.record.trial_id,))
    if not same:
        return grounds.missing_arms()
    rates = [result.whole.top1 for result in same if result.whole is not None]
    ours = Measured(text=f"{100 * max(rates):.2f} % at best", value=100 * max(rates), unit="%")
    words = f"Theirs {100 * check.top1:.2f} %, ours {ours.text}; allowed {100 * check.within:g} points."
    verdict: Verdict = "reproduced" if abs(max(rates) - check.top1) <= check.within else "not reproduced"
    return Outcome(verdict, words, ours=ours, records=tuple(result.record.trial_id for result in same))


def _both(one: Result, other: Result) -> tuple[Predictions, Predictions] | None:
    """The predictions of both on the same images, or None."""
    if one.predictions is None or other.predictions is None:
        return None
    return one.predictions, other.predictions


def _both_right(one: Result, other: Result, metric: Metric) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    both = _both(one, other)
    if both is None:
        return None
    mine, its = (answers.right if metric == "top1" else answers.among5 for answers in both)
    return mine, its
