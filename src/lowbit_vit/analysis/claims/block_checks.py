"""Checks on blocks: which suffer most from quantization, how stable that is, and what sparing some of them gives.

A statement on blocks 20-23 is about a model of 24 blocks; on another it cannot be tested. What was chosen on the selection
half of the test images is compared on the report half alone.
"""

from itertools import combinations
from typing import ClassVar, Literal

from pydantic import Field

from lowbit_vit.analysis import mixed
from lowbit_vit.analysis.claims.accuracy_checks import percent_interval
from lowbit_vit.analysis.claims.context import ClaimContext, Need, Outcome, RunCheck, bounds, record_ids, spread_of, within
from lowbit_vit.analysis.intervals import agreement, kendall
from lowbit_vit.analysis.statistics import compare, detectable_paired
from lowbit_vit.schema.cell_role import Chosen, NoneSpared
from lowbit_vit.schema.claim import Measured, Verdict
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.plan import SensitivityScores

SparingStrategy = Literal["first+last", "last", "most sensitive"]


class BlockCheck(RunCheck):
    """A check of one of the two studies of blocks, about a model of `depth` blocks."""

    needs: ClassVar[tuple[Need, ...]] = ("model", "images")
    study: ClassVar[Study]
    depth: int

    def obstacle(self, context: ClaimContext, found: Outcome | None) -> Outcome | None:
        """Another depth comes before all else."""
        depth = context.profile.backbone.depth
        if depth == self.depth:
            return super().obstacle(context, found)
        words = f"The model has {depth} blocks, the statement is about one of {self.depth}."
        ours, records = (found.ours, found.records) if found is not None else (None, ())
        return Outcome("not comparable", words, because="weights", ours=ours, records=records)

    def missing(self, context: ClaimContext) -> Outcome:
        """Which study is missing, in whole or in part."""
        known = context.results[self.study]
        words = f"{self.study}: cells are missing or failed." if known else f"The study {self.study} has no records."
        return Outcome("not run", words, because=context.command(self.study))

    def records(self, context: ClaimContext) -> tuple[str, ...]:
        """Every successful cell of the study."""
        return record_ids(*(result for result in context.results[self.study] if result.record.status == "success"))


# -------------------------------------------------------------------------------------------------------------- sensitivity


class RankingCheck(BlockCheck):
    """A check of how blocks rank in one format and direction."""

    study: ClassVar[Study] = "sensitivity"
    weights: str
    direction: Literal["only", "all_but"]

    def scores(self, context: ClaimContext) -> SensitivityScores | None:
        """Scores of the format and direction; None unless the study is complete."""
        return next((item for item in context.scores if item.weights.name == self.weights and item.direction == self.direction), None)


class BlocksCheck(RankingCheck):
    """Which blocks suffer most: `at_least` of the top len(blocks) are these, in every draw."""

    check: Literal["blocks"]
    blocks: tuple[int, ...] = Field(min_length=1)
    at_least: int = Field(ge=1)

    def measure(self, context: ClaimContext) -> Outcome | None:
        """Whether enough of the top blocks are the named ones, in every draw."""
        scored = self.scores(context)
        if scored is None:
            return None
        k, draws = len(self.blocks), range(len(scored.blocks[0].kl))
        mean, *tops = (scored.most_sensitive(k, draw=draw) if k <= len(scored.blocks) else () for draw in (None, *draws))
        ours = Measured(text=f"blocks {', '.join(map(str, mean))}")
        hits = [len(set(top) & set(self.blocks)) for top in tops]
        verdict: Verdict = "reproduced" if min(hits) >= self.at_least else "not reproduced"
        words = (
            f"Most KL from {self.weights} ({self.direction}): {ours.text}; of {', '.join(map(str, self.blocks))}, {min(hits)} to "
            f"{max(hits)} are among the top {k} over {len(hits)} draws, {self.at_least} expected."
        )
        return Outcome(verdict, words, ours=ours, records=self.records(context))


class StabilityCheck(RankingCheck):
    """Whether the ranking of blocks is the same over draws of images: mean Kendall's tau."""

    check: Literal["stability"]
    at_least: float = Field(gt=0, le=1)

    def measure(self, context: ClaimContext) -> Outcome | None:
        """Whether the blocks rank alike over draws of images."""
        scored = self.scores(context)
        rankings = list(zip(*(block.kl for block in scored.blocks), strict=True)) if scored is not None else []
        tau = agreement(rankings) if len(rankings) > 1 else None
        if tau is None:
            return None
        taus = [value for pair in combinations(rankings, 2) if (value := kendall(*pair)) is not None]
        ours = Measured(text=f"tau {tau:.2f} ({min(taus):.2f} to {max(taus):.2f} over pairs of draws)", value=tau)
        which = f"{len(rankings)} draws, {self.weights} ({self.direction})"
        words = f"Mean Kendall's tau between {which}: {ours.text}; at least {self.at_least:g}."
        return Outcome("reproduced" if tau >= self.at_least else "not reproduced", words, ours=ours, records=self.records(context))


# -------------------------------------------------------------------------------------------------------------------- mixed


class MixedCheck(BlockCheck):
    """A check of what a strategy's choice of k blocks gives."""

    study: ClassVar[Study] = "mixed"
    strategy: SparingStrategy
    k: int


class SparedCheck(MixedCheck):
    """What sparing k blocks gives over the fully quantized model (or over another choice), on the report half."""

    check: Literal["spared"]
    over: SparingStrategy | Literal["fully quantized"]
    expects: Literal["less", "more"]
    gain: float = Field(ge=0, description="of Top-1, as a rate: the gain is expected to be less, or more, than this")

    def measure(self, context: ClaimContext) -> Outcome | None:
        """The paired gain of one choice of blocks over another or over none, its interval against the expected gain."""
        cells, results = context.mixed, dict(context.mixed.parts)
        none = [role for role in cells.place if isinstance(role, NoneSpared)]
        others = none if self.over == "fully quantized" else [Chosen(kind=self.over, k=self.k)]
        pair = [role for role in (Chosen(kind=self.strategy, k=self.k), *others) if role in cells.place]
        if len(pair) < 2:
            return None
        own, other = (cells.report.right[cells.place[role]] for role in pair)
        comparison = compare(other, own)
        ours = spread_of([(100 * comparison.difference, percent_interval(comparison.interval))], "points", sign="+")
        least = detectable_paired(comparison.discordance, images=comparison.images)
        could = f"{100 * least:.2f} points could have been detected" if least is not None else "too few images change sides to detect any"
        words = (
            f"Sparing {self.strategy}, k = {self.k}, against {self.over}: {ours.text} on {comparison.images:,} images, expected "
            f"{self.expects} than {100 * self.gain:g}; {could}."
        )
        below, above = comparison.interval.high < self.gain, comparison.interval.low > self.gain
        agrees = below if self.expects == "less" else above
        verdict: Verdict = "reproduced" if agrees else "not reproduced" if below or above else "underpowered"
        return Outcome(verdict, words, ours=ours, records=record_ids(*(results[role] for role in pair)))


class RandomCheck(MixedCheck):
    """The share of random choices of k blocks that a strategy beats, by KL on the report half (a tie counts half)."""

    check: Literal["random"]
    at_least: float | None = None
    at_most: float | None = None

    def measure(self, context: ClaimContext) -> Outcome | None:
        """Against random choices of as many blocks: the share of them that lie farther from the high-precision outputs (KL)."""
        table = mixed.beats_random(mixed.mixed(context.mixed, depth=context.profile.backbone.depth))
        found = table.filter(strategy=self.strategy, k=self.k).drop_nulls("beaten_kl").select("beaten_kl", "random_plans").rows()
        beaten, plans = found[-1] if found else (0.0, 0)
        if not plans:
            return None
        ours = Measured(text=f"beats {beaten:g} of {plans} random plans", value=100 * beaten / plans, unit="%")
        words = f"Sparing {self.strategy}, k = {self.k}, {ours.text} by KL; expected share: {bounds(self.at_least, self.at_most)}."
        inside = within(beaten / plans, self.at_least, self.at_most)
        return Outcome("reproduced" if inside else "not reproduced", words, ours=ours, records=self.records(context))


RankCheck = BlocksCheck | StabilityCheck | SparedCheck | RandomCheck
