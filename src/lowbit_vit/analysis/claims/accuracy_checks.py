"""Checks on per-image predictions: an arm's accuracy against its twin's, flips, the frontier, and somebody's Top-1.

Everything is paired: twins saw the same images, or they are not compared. The p values of all accuracy comparisons of the
ledger are one family, adjusted by Holm's method before any is read (`family`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from lowbit_vit.analysis.claims.context import Arms, Check, ClaimContext, Need, Outcome, TwinCheck, record_ids, spread_of
from lowbit_vit.analysis.claims.performance_checks import QUANTITY_WORDS, Quantity, pair_words, value_of
from lowbit_vit.analysis.intervals import macro_f1_difference
from lowbit_vit.analysis.pareto import undominated
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import Comparison, compare, detectable_paired, holm, margin_test, wilson
from lowbit_vit.schema.claim import Cell, Measured, Verdict
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.predictions import Predictions

ALPHA = 0.05
Metric = Literal["top1", "top5", "macro_f1"]
METRIC_WORDS: dict[Metric, str] = {"top1": "Top-1", "top5": "Top-5", "macro_f1": "Macro-F1"}
_ON_THESE_IMAGES: tuple[Need, ...] = ("model", "images")


def _verdict(verdicts: Sequence[Verdict]) -> Verdict:
    return next((verdict for verdict in ("not reproduced", "underpowered") if verdict in verdicts), "reproduced")


def _both(one: Result, other: Result) -> tuple[Predictions, Predictions] | None:
    """The predictions of both on the same images, or None."""
    if one.predictions is None or other.predictions is None:
        return None
    return one.predictions, other.predictions


def percent_interval(interval: Interval) -> Interval:
    """An interval of rates, in percent."""
    return Interval(low=100 * interval.low, high=100 * interval.high)


# ------------------------------------------------------------------------------------------------------- paired accuracy


@dataclass(frozen=True)
class _Compared:
    """One arm less its twin. `p_value` is of what the check expects, after Holm; `comparison` and it are of Top-1 and Top-5 only."""

    pair: tuple[Result, Result]
    difference: float
    interval: Interval
    comparison: Comparison | None = None
    p_value: float = 1.0


class PairedCheck(TwinCheck):
    """Accuracy of an arm less that of its twin, image by image."""

    needs: ClassVar[tuple[Need, ...]] = _ON_THESE_IMAGES
    check: Literal["paired"]
    metric: Metric = "top1"
    expects: Literal["not worse", "worse", "same"]
    margin: float = Field(gt=0, description="not worse, same: may lie off by this much; worse: loses at most this much")

    def measure(self, context: ClaimContext) -> Outcome | None:
        """`reproduced` or `not reproduced` where the test decides for every pair, `underpowered` where it decides for none against."""
        compared = self.compare(context)
        if not compared:
            return None
        ours = spread_of([(100 * item.difference, percent_interval(item.interval)) for item in compared], "points", sign="+")
        details = "; ".join(_details(item.comparison, item.p_value) for item in compared if item.comparison is not None)
        words = f" in {pair_words(len(compared))}; {details}." if details else ", BCa interval."
        records = record_ids(*(result for item in compared for result in item.pair))
        verdict = _verdict([self._decide(item) for item in compared])
        return Outcome(verdict, f"{METRIC_WORDS[self.metric]}: {ours.text}{words}", ours=ours, records=records)

    def compare(self, context: ClaimContext) -> list[_Compared]:
        """Every pair of twins that saw the same images."""
        compared = []
        for one, other in context.twins(self.of, self.to):
            predictions = _both(one, other)
            if predictions is None:
                continue
            mine, its = predictions
            if self.metric == "macro_f1":
                f1 = macro_f1_difference(mine.label, its.best, mine.best)
                compared.append(_Compared((one, other), f1.difference, f1.interval))
                continue
            right, other_right = (answers.right if self.metric == "top1" else answers.among5 for answers in predictions)
            comparison = compare(other_right, right)
            p_value = context.adjusted.get(self.family_key(one, other), self._p_value(comparison))
            compared.append(_Compared((one, other), comparison.difference, comparison.interval, comparison, p_value))
        return compared

    def family_key(self, one: Result, other: Result) -> tuple[str, str, str]:
        """What one comparison of the family is called."""
        return one.record.trial_id, other.record.trial_id, f"{self.metric} {self.expects} {self.margin}"

    def _p_value(self, comparison: Comparison) -> float:
        if self.expects == "worse":
            return comparison.p_value
        test = margin_test(comparison.lost, comparison.gained, images=comparison.images, margin=self.margin)
        return test.p_inferior if self.expects == "not worse" else test.p_equivalent

    def _decide(self, item: _Compared) -> Verdict:
        """By the p value; of Macro-F1, which has none, by the interval."""
        low, high, margin = item.interval.low, item.interval.high, self.margin
        tested, significant = item.comparison is not None, item.p_value < ALPHA
        match self.expects:
            case "not worse":
                agrees, fails = significant if tested else low > -margin, high < -margin
            case "same":
                agrees, fails = significant if tested else low > -margin and high < margin, high < -margin or low > margin
            case "worse":
                agrees, fails = significant and item.difference <= -margin if tested else high < -margin, low > -margin
        return "reproduced" if agrees else "not reproduced" if fails else "underpowered"


def _details(comparison: Comparison, p_value: float) -> str:
    least = detectable_paired(comparison.discordance, images=comparison.images)
    could = f", {100 * least:.2f} points could have been detected" if least is not None else ""
    counts = f"{comparison.lost:,} lost and {comparison.gained:,} gained of {comparison.images:,} images"
    return f"{counts}, {'p < 0.001' if p_value < 0.001 else f'p = {p_value:.3f}'} after Holm{could}"


def family(checks: Iterable[Check], context: ClaimContext) -> Mapping[tuple[str, str, str], float]:
    """Holm's adjusted p value of every Top-1 and Top-5 comparison that the ledger makes on these records, each counted once."""
    raw: dict[tuple[str, str, str], float] = {}
    for check in checks:
        if isinstance(check, PairedCheck) and check.metric != "macro_f1":
            raw |= {check.family_key(*item.pair): item.p_value for item in check.compare(context)}
    adjusted = holm(list(raw.values()))
    return {key: p_value for key, p_value in zip(raw, adjusted, strict=True) if p_value is not None}


# ---------------------------------------------------------------------------------------------------------------- flips


class FlipsCheck(TwinCheck):
    """The share of images whose class an arm and its twin tell differently."""

    needs: ClassVar[tuple[Need, ...]] = _ON_THESE_IMAGES
    check: Literal["flips"]
    at_most: float = Field(gt=0, lt=1)

    def measure(self, context: ClaimContext) -> Outcome | None:
        """The share with Wilson's interval, against the most that is allowed."""
        found = [(pair, both) for pair in context.twins(self.of, self.to) if (both := _both(*pair)) is not None]
        if not found:
            return None
        counts = [(int(np.count_nonzero(one.best != other.best)), len(one.label)) for _, (one, other) in found]
        intervals, most = [wilson(changed, images) for changed, images in counts], self.at_most
        verdict = _verdict(
            ["reproduced" if item.high <= most else "not reproduced" if item.low > most else "underpowered" for item in intervals]
        )
        rates = [(100 * changed / images, percent_interval(item)) for (changed, images), item in zip(counts, intervals, strict=True)]
        ours = spread_of(rates, "%")
        words = f"{ours.text} of the images change their class; allowed {100 * most:g} %."
        return Outcome(verdict, words, ours=ours, records=record_ids(*(result for pair, _ in found for result in pair)))


# ---------------------------------------------------------------------------------------------------- frontier, accuracy


class FrontierCheck(Check):
    """Whether some arm of `of` is undominated among all successful arms in accuracy (more) and `costs` (less)."""

    check: Literal["frontier"]
    of: Arms
    costs: tuple[Quantity, ...] = Field(min_length=1)
    batch: int | None = None

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`reproduced` where some arm of the selector is undominated among all arms; needs another arm to compare with."""
        points: list[tuple[Result, tuple[float, ...]]] = []
        for result in context.results["variants"]:
            costs = [value_of(context, result, quantity, self.batch) for quantity in self.costs]
            if result.whole is not None and None not in costs:
                known = tuple(cost for cost in costs if cost is not None)
                points.append((result, (*known, -result.whole.top1)))
        picked = record_ids(*context.select(self.of))
        members = [(result, point) for result, point in points if result.record.trial_id in picked]
        front = undominated(point for _, point in points)
        best = [result for result, point in members if point in front]
        text = f"{len(best)} of {len(members)} on the front"
        ours = Measured(text=text, value=float(len(best)), unit="arms") if members else None
        names = ", ".join(dict.fromkeys(result.record.trial.label for result in best))
        costs_words = " and ".join(QUANTITY_WORDS[cost] for cost in self.costs)
        costs_words += f" at batch {self.batch}" if self.batch is not None else ""
        words = f"Top-1 against {costs_words}, {len(points)} arms: {text}{': ' + names if names else ''}."
        records = record_ids(*(result for result, _ in points))
        outcome = Outcome("reproduced" if best else "not reproduced", words, ours=ours, records=records)
        obstacle = context.obstacle(("model", "images", "cuda"), outcome)
        if obstacle is not None:
            return obstacle
        labels = {result.record.trial.label for result, _ in points}
        absent = [arm.label for arm in context.profile.variants.arms if arm.label not in labels]
        if not members or len(members) == len(points) or absent:
            # Any arm that is missing may dominate, or be the undominated one.
            missing = context.missing_arms(self.of)
            return replace(missing, words=_absent(absent), ours=ours) if points else missing
        return outcome


def _absent(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    return f"The front needs every arm; without a result: {shown}."


class AccuracyCheck(Check):
    """Somebody's Top-1 against ours on the same images, model and weights."""

    check: Literal["accuracy"]
    images: str = Field(min_length=1, description="a profile's data.source, or a name that no profile has yet")
    architecture: str
    weights: str = Field(description="scratch, torchvision, or a name that no profile has yet")
    top1: float = Field(gt=0, le=1)
    within: float = Field(gt=0)

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """Our best Top-1 of the same images, model and weights; without one, our best of any, which is not comparable."""
        rates = [(result, result.whole.top1) for result in context.results["variants"] if result.whole is not None]
        same = [
            (result, rate)
            for result, rate in rates
            if result.record.trial.data.source == self.images
            and result.record.trial.backbone.architecture == self.architecture
            and result.record.trial.backbone.weights == self.weights
        ]
        if not rates:
            return context.missing_arms()
        best, rate = max(same or rates, key=lambda found: found[1])
        percent = 100 * rate
        if not same:
            trial = best.record.trial
            ours = Measured(text=f"{percent:.2f} % ({trial.label})", value=percent, unit="%")
            own = f"{trial.backbone.weights} weights on {trial.data.source}"
            words = f"Ours are {own}; the number is of {self.weights} weights on {self.images}."
            return Outcome("not comparable", words, because="weights", ours=ours, records=record_ids(best))
        ours = Measured(text=f"{percent:.2f} % at best", value=percent, unit="%")
        words = f"Theirs {100 * self.top1:.2f} %, ours {ours.text}; allowed {100 * self.within:g} points."
        verdict: Verdict = "reproduced" if abs(rate - self.top1) <= self.within else "not reproduced"
        return Outcome(verdict, words, ours=ours, records=record_ids(*(result for result, _ in same)))


PredictionCheck = PairedCheck | FlipsCheck | FrontierCheck | AccuracyCheck
