"""Checks on blocks: which suffer most from quantization, how stable that is, and what sparing some of them gives.

A statement on blocks 20-23 is about a model of 24 blocks; on another it cannot be tested. What was chosen on the selection
half of the test images is compared on the report half alone.
"""

from itertools import combinations

from lowbit_vit.analysis import mixed
from lowbit_vit.analysis.evidence.grounds import Grounds, Outcome
from lowbit_vit.analysis.evidence.printed import bounds
from lowbit_vit.analysis.rank_correlation import agreement, kendall
from lowbit_vit.analysis.statistics import compare, detectable_paired
from lowbit_vit.schema.cell_role import Chosen, NoneSpared
from lowbit_vit.schema.claim import Measured, Verdict
from lowbit_vit.schema.claim_checks import BlocksCheck, RandomCheck, SparedCheck, StabilityCheck
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import SensitivityScores


def most_sensitive(check: BlocksCheck, grounds: Grounds) -> Outcome:
    """Whether enough of the top blocks are the named ones, in every draw."""
    records = _records(grounds, "sensitivity")
    scored = _scores(grounds, check.weights, check.direction)
    ours = None
    if scored is not None:
        mean = scored.most_sensitive(len(check.blocks)) if len(check.blocks) <= len(scored.blocks) else ()
        ours = Measured(text=f"blocks {', '.join(map(str, mean))}")
    obstacle = _other_depth(check.depth, grounds, ours, records)
    if obstacle is not None:
        return obstacle
    if ours is None or scored is None:
        return _missing(grounds, "sensitivity")
    tops = [scored.most_sensitive(len(check.blocks), draw=draw) for draw in range(len(scored.blocks[0].kl))]
    hits = [len(set(top) & set(check.blocks)) for top in tops]
    verdict: Verdict = "reproduced" if min(hits) >= check.at_least else "not reproduced"
    named = ", ".join(map(str, check.blocks))
    words = (
        f"Most KL from {check.weights} ({check.direction}): {ours.text}; of {named}, {min(hits)} to {max(hits)} are among the top "
        f"{len(check.blocks)} over {len(tops)} draws, {check.at_least} expected."
    )
    return Outcome(verdict, words, ours=ours, records=records)


def stability(check: StabilityCheck, grounds: Grounds) -> Outcome:
    """Whether the blocks rank alike over draws of images."""
    records = _records(grounds, "sensitivity")
    scored = _scores(grounds, check.weights, check.direction)
    rankings = list(zip(*(block.kl for block in scored.blocks), strict=True)) if scored is not None else []
    tau = agreement(rankings) if len(rankings) > 1 else None
    ours = None
    if tau is not None:
        taus = [value for pair in combinations(rankings, 2) if (value := kendall(*pair)) is not None]
        ours = Measured(text=f"tau {tau:.2f} ({min(taus):.2f} to {max(taus):.2f} over pairs of draws)", value=tau)
    obstacle = _other_depth(check.depth, grounds, ours, records)
    if obstacle is not None:
        return obstacle
    if ours is None or tau is None:
        return _missing(grounds, "sensitivity")
    which = f"{len(rankings)} draws, {check.weights} ({check.direction})"
    words = f"Mean Kendall's tau between {which}: {ours.text}; at least {check.at_least:g}."
    return Outcome("reproduced" if tau >= check.at_least else "not reproduced", words, ours=ours, records=records)


def spared(check: SparedCheck, grounds: Grounds) -> Outcome:
    """The paired gain of one choice of blocks over another or over none, its interval against the expected gain."""
    cells, one = grounds.mixed, Chosen(kind=check.strategy, k=check.k)
    none = [role for role in cells.place if isinstance(role, NoneSpared)]
    others = none if check.over == "fully quantized" else [Chosen(kind=check.over, k=check.k)]
    pair, results = [role for role in (one, *others) if role in cells.place], dict(cells.parts)
    ours, records = None, tuple(results[role].record.trial_id for role in pair)
    if len(pair) == 2:
        own, other = (cells.report.right[cells.place[role]] for role in pair)
        comparison = compare(other, own)
        points = Interval(low=100 * comparison.interval.low, high=100 * comparison.interval.high)
        text = f"{100 * comparison.difference:+.2f} points ({points.low:+.2f} to {points.high:+.2f})"
        ours = Measured(text=text, value=100 * comparison.difference, unit="points", interval=points)
    obstacle = _other_depth(check.depth, grounds, ours, records)
    if obstacle is not None:
        return obstacle
    if ours is None:
        return _missing(grounds, "mixed")
    least = detectable_paired(comparison.discordance, images=comparison.images)
    could = f"; {100 * least:.2f} points could have been detected" if least is not None else "; too few images change sides to detect any"
    words = (
        f"Sparing {check.strategy}, k = {check.k}, against {check.over}: {ours.text} on {comparison.images:,} images, expected "
        f"{check.expects} than {100 * check.gain:g}{could}."
    )
    return Outcome(_decide(check, comparison.interval), words, ours=ours, records=records)


def _decide(check: SparedCheck, interval: Interval) -> Verdict:
    below, above = interval.high < check.gain, interval.low > check.gain
    if not below and not above:
        return "underpowered"
    return "reproduced" if below == (check.expects == "less") else "not reproduced"


def beats_random(check: RandomCheck, grounds: Grounds) -> Outcome:
    """Against random choices of as many blocks: the share of them that lie farther from the high-precision outputs (KL)."""
    depth = grounds.profile.backbone.depth
    table = mixed.beats_random(mixed.mixed(grounds.mixed, depth=depth)).filter(strategy=check.strategy, k=check.k).drop_nulls("beaten_kl")
    records = _records(grounds, "mixed")
    ours = None
    for row in table.to_dicts():
        share = row["beaten_kl"] / row["random_plans"]
        ours = Measured(text=f"beats {row['beaten_kl']:g} of {row['random_plans']} random plans", value=100 * share, unit="%")
    obstacle = _other_depth(check.depth, grounds, ours, records)
    if obstacle is not None:
        return obstacle
    if ours is None or ours.value is None:
        return _missing(grounds, "mixed")
    words = f"Sparing {check.strategy}, k = {check.k}, {ours.text} by KL; expected share: {bounds(check.at_least, check.at_most)}."
    inside = (check.at_least or 0) <= ours.value / 100 <= (1 if check.at_most is None else check.at_most)
    return Outcome("reproduced" if inside else "not reproduced", words, ours=ours, records=records)


# ------------------------------------------------------------------------------------------------------------- the cells


def _other_depth(depth: int, grounds: Grounds, ours: Measured | None, records: tuple[str, ...]) -> Outcome | None:
    found = grounds.profile.backbone.depth
    if found != depth:
        words = f"The model has {found} blocks, the statement is about one of {depth}."
        return Outcome("not comparable", words, because="weights", ours=ours, records=records)
    return grounds.obstacle("vit_l_16", "flowers102", ours=ours, records=records)


def _missing(grounds: Grounds, study: Study) -> Outcome:
    known = grounds.results[study]
    words = f"{study}: cells are missing or failed." if known else f"The study {study} has no records."
    return Outcome("not run", words, because=grounds.command(study))


def _records(grounds: Grounds, study: Study) -> tuple[str, ...]:
    return tuple(result.record.trial_id for result in grounds.results[study] if result.record.status == "success")


def _scores(grounds: Grounds, weights: str, direction: str) -> SensitivityScores | None:
    return next((item for item in grounds.scores if item.weights.name == weights and item.direction == direction), None)
