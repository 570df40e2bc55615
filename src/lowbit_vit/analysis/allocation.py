"""The best plan under a budget: which format each block or linear takes, from measured costs and measured losses.

What a unit costs and loses in a format was measured with that unit alone in it, and is added up: bytes from the sensitivity study's
records (exact), KL from its scores (an assumption, which `additivity` checks), latency from the timed arms in that format
throughout, shared out evenly over the blocks, which are all of one shape. A plan's flips are read off its KL (`flip_model`): a budget of
flips is one of KL. `programme` chooses.
"""

from collections.abc import Sequence
from typing import Literal

from lowbit_vit.analysis.block_cells import BlockCells
from lowbit_vit.analysis.plan_predictions import FlipCurve, flip_curve, uniform_latencies
from lowbit_vit.analysis.programme import MIB, Budget, Choice, Limited, PairTerm, Problem, Quantity, solve
from lowbit_vit.analysis.results import Result
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.allocation import Entry, PlanFile, Predicted
from lowbit_vit.schema.cell_role import CellRole, Reference, label_of, unit_role
from lowbit_vit.schema.config import Execution, Profile
from lowbit_vit.schema.plan import HighPrecision, SensitivityScores
from lowbit_vit.schema.record import ModelFacts
from lowbit_vit.schema.stage_documents import Estimates

Units = Literal["blocks", "modules"]


def build_problem(
    profile: Profile,
    scores: Sequence[SensitivityScores],
    cells: BlockCells,
    *,
    units: Units,
    formats: Sequence[str] | None = None,
    estimates: Estimates | None = None,
    latencies: dict[str, float] | None = None,
    pairs: Sequence[PairTerm] = (),
) -> Problem:
    """Every unit in high precision and in each format that the sensitivity study measured alone.

    Args:
        profile: the profile.
        scores: of the sensitivity study.
        cells: its cells, for the bytes.
        units: blocks, or each linear.
        formats: names of those that may be used; None: all that were measured.
        estimates: for the gradient scores; None: they are 0.
        latencies: ms of the whole model, by format's name, `high` among them; None: latency plays no part.
        pairs: how pairs of blocks interact; those of formats that may not be used are left out.

    Raises:
        ConfigError: a format was not measured, or latency is asked of linears, for which nothing is measured.
        DataError: a record is missing.
    """
    usable = _scores_of(formats, scores)
    if latencies is not None and units == "modules":
        raise ConfigError("allocate: latency is measured of whole blocks; give --units blocks, or a budget of bytes or flips")
    models = cells.models
    if {model.backbone_sha256 for model in models.values()} - {usable[0].backbone_sha256}:
        raise DataError(
            f"sensitivity.json of {profile.name}: of other weights than the records; run lowbit-vit sensitivity {profile.name} again"
        )
    base = _bytes_of(models, Reference(), profile)
    if estimates is not None and estimates.backbone_sha256 != usable[0].backbone_sha256:
        raise DataError(f"estimates.json of {profile.name}: of other weights than the scores; run lowbit-vit estimate {profile.name} again")
    names = [unit.name for unit in (usable[0].blocks if units == "blocks" else usable[0].modules)]
    if not names:
        raise ConfigError(
            f"allocate: modules were not measured; put sensitivity.units: [blocks, modules] into profiles/{profile.name}.yaml"
        )
    choices: list[Choice] = []
    for index, name in enumerate(names):
        choices.append(Choice(unit=name, weights=HighPrecision(), weight_bytes=0, kl=0.0, flips=0.0))
        for score in usable:
            unit, weights = (score.blocks if units == "blocks" else score.modules)[index], score.weights
            role = unit_role("only", weights.name, name)
            choice = Choice(
                unit=name,
                weights=weights,
                weight_bytes=_bytes_of(models, role, profile) - base,
                kl=unit.mean_kl,
                flips=score.flips_per_1000(unit),
                ms=0.0 if latencies is None else (latencies[weights.name] - latencies["high"]) / len(names),
                gradient=0.0 if estimates is None else estimates.of(name, weights.name, "gradient"),
            )
            choices.append(choice)
    terms = tuple(pair for pair in pairs if pair.weights in {score.weights.name for score in usable})
    return Problem(choices=tuple(choices), base_bytes=base, base_ms=None if latencies is None else latencies["high"], pairs=terms)


def _scores_of(formats: Sequence[str] | None, scores: Sequence[SensitivityScores]) -> list[SensitivityScores]:
    """What units cost alone in these formats; None: in all."""
    measured = [score for score in scores if score.direction == "only"]
    usable = [score for score in measured if formats is None or score.weights.name in formats]
    unknown = set(formats or ()) - {score.weights.name for score in usable} - {"high"}
    if unknown or not usable:
        known = ", ".join(sorted({score.weights.name for score in measured})) or "none"
        raise ConfigError(f"allocate: format {', '.join(sorted(unknown)) or '(any)'} was not measured; sensitivity.formats has: {known}")
    return usable


def _bytes_of(models: dict[CellRole, ModelFacts], role: CellRole, profile: Profile) -> int:
    found = models.get(role)
    if found is None:
        raise DataError(f"sensitivity: {label_of(role)}: no successful record; run lowbit-vit sensitivity {profile.name}")
    return found.weight_bytes


def measured_latencies(
    profile: Profile, results: Sequence[Result], formats: Sequence[str], *, batch_size: int, execution: Execution
) -> dict[str, float]:
    """Median latency in ms of the arms that have one format throughout, by format; as the sensitivity study is run otherwise.

    Raises:
        DataError: an arm was not timed; the message says which one the profile needs.
    """
    study = profile.sensitivity
    found = uniform_latencies(profile, results, batch_size=batch_size, execution=execution)
    missing = [name for name in ("high", *formats) if name not in found]
    if missing:
        raise DataError(
            f"variants of {profile.name}: no timing of {', '.join(missing)} with {study.compute_dtype}, {study.attention}, {execution}, "
            f"batch {batch_size}, quantized after training; add such an arm, or give another --batch or --execution"
        )
    return found


def allocate(
    profile: Profile,
    problem: Problem,
    budget: Budget,
    *,
    curve: FlipCurve,
    name: str,
    backbone_sha256: str,
    minimize: Quantity | None = None,
) -> PlanFile:
    """Solve and write down: least KL within bytes or milliseconds; least bytes within the KL that the flips asked for stand for.

    Raises:
        ConfigError: as `solve`.
    """
    budget.require_some()
    objective: Quantity = minimize or ("weight_bytes" if budget.quantity == "flips" else "kl")
    chosen, optimum = solve(problem, _limit_kl(problem, budget, curve) if budget.quantity == "flips" else budget, minimize=objective)
    kl = problem.total(chosen, "kl")
    expected = curve.interval(kl)
    predicted = Predicted(
        weight_bytes=round(problem.total(chosen, "weight_bytes")),
        kl=kl,
        flips_per_1000=curve.expected(kl),
        flips_interval=(expected.low, expected.high),
        flips_summed_per_1000=problem.total(chosen, "flips"),
        ms=None if problem.base_ms is None else problem.total(chosen, "ms"),
    )
    return PlanFile(
        name=name,
        compute_dtype=profile.sensitivity.compute_dtype,
        entries=tuple(Entry(unit=choice.unit, weights=choice.weights) for choice in chosen),
        profile=profile.name,
        backbone_sha256=backbone_sha256,
        strategy="gradient" if objective == "gradient" else "milp",
        budget=budget.words,
        predicted=predicted,
        optimum=optimum,
    )


def _limit_kl(problem: Problem, flips: Budget, curve: FlipCurve) -> Budget:
    # Above all that any plan has, a limit is none; and a root and its square do not undo each other to the last bit.
    every = sum(choice.kl for choice in problem.choices) + sum(abs(pair.kl) for pair in problem.pairs)
    return Budget("kl", min(curve.most_kl(flips.limit), every) * (1 + 1e-12))


def study_plans(profile: Profile, scores: Sequence[SensitivityScores], cells: BlockCells, estimates: Estimates | None) -> list[PlanFile]:
    """The plans of the mixed study: within the bytes of sparing the first and last k / 2 blocks, by measurement and by gradients.

    Raises:
        ConfigError: as `build_problem`.
        DataError: as `build_problem`.
    """
    problem = build_problem(profile, scores, cells, units="blocks", estimates=estimates)
    curve = _curve(profile, scores, cells, "blocks")
    low = {choice.unit: choice.weight_bytes for choice in problem.choices if choice.weights == profile.mixed.weights}
    if not low:
        raise ConfigError(f"allocate: mixed.weights {profile.mixed.weights.name} is not among sensitivity.formats; add it there")
    found = []
    for k in profile.mixed.spared:
        half, units = k // 2, list(low)
        spared = {*units[:half], *units[len(units) - half :]}
        budget = Budget("weight_bytes", problem.base_bytes + sum(size for unit, size in low.items() if unit not in spared))
        objectives: list[Quantity] = ["kl"] if estimates is None else ["kl", "gradient"]
        for objective in objectives:
            name = f"{'milp' if objective == 'kl' else objective}-k{k}"
            plan = allocate(profile, problem, budget, curve=curve, name=name, backbone_sha256=scores[0].backbone_sha256, minimize=objective)
            found.append(plan.model_copy(update={"k": k}))
    return found


def asked_budget(*, mib: float | None, ms: float | None, flips: float | None) -> Budget | None:
    """A budget in MiB, milliseconds a batch, or flips in 1,000 images; None: none was asked for.

    Raises:
        ConfigError: more than one.
    """
    asked: dict[Limited, float | None] = {"weight_bytes": None if mib is None else mib * MIB, "ms": ms, "flips": flips}
    budgets = [Budget(quantity, limit) for quantity, limit in asked.items() if limit is not None]
    if len(budgets) > 1:
        raise ConfigError("allocate: --budget-mib, --budget-ms and --max-flips: give one of them")
    return budgets[0] if budgets else None


def allocate_within(
    budget: Budget,
    profile: Profile,
    scores: Sequence[SensitivityScores],
    cells: BlockCells,
    *,
    timed: Sequence[Result],
    units: Units,
    formats: Sequence[str] | None,
    batch: int | None,
    execution: Execution,
    pairs: Sequence[PairTerm] = (),
) -> PlanFile:
    """The best plan within one budget; `timed` are the records of the variants, for a budget of milliseconds.

    Raises:
        ConfigError: the budget, a format or the units do not fit what was measured; or pairs, which are of blocks, with linears.
        DataError: a record is missing.
    """
    measured = [score.weights.name for score in scores if score.direction == "only"]
    latencies = None
    if budget.quantity == "ms":
        size = batch or max(profile.measurement.batch_sizes)
        latencies = measured_latencies(profile, timed, formats or measured, batch_size=size, execution=execution)
    if pairs and units == "modules":
        raise ConfigError("allocate: pairs were measured of whole blocks; give --units blocks, or leave --pairs out")
    problem = build_problem(profile, scores, cells, units=units, formats=formats, latencies=latencies, pairs=pairs)
    amount = budget.limit / MIB if budget.quantity == "weight_bytes" else budget.limit
    name = f"{'mib' if budget.quantity == 'weight_bytes' else budget.quantity}-{amount:g}"
    curve = _curve(profile, scores, cells, units)
    return allocate(profile, problem, budget, curve=curve, name=name, backbone_sha256=scores[0].backbone_sha256)


def _curve(profile: Profile, scores: Sequence[SensitivityScores], cells: BlockCells, units: Units) -> FlipCurve:
    curve = flip_curve(cells, scores, units=units)
    if curve is None:
        raise DataError(f"sensitivity: no high-precision reference to count flips from; run lowbit-vit sensitivity {profile.name} again")
    return curve
