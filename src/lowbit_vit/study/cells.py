"""The cells of each study: a profile in, resolved trials out.

`variants` are the declared arms, timed. `sensitivity` and `mixed` are post-training and accuracy-only, each cell quantized
straight from the adapted high-precision model, without the fine-tuning and profiling that an arm gets: a departure from the
paper's "each trial", which makes hundreds of cells affordable. Those that `mixed.timed` names are timed as well.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.allocation import PlanFile
from lowbit_vit.schema.cell_role import (
    AllBlocks,
    BlockPair,
    CellRole,
    Chosen,
    GivenPlan,
    NoneSpared,
    Random,
    Reference,
    label_of,
    unit_role,
)
from lowbit_vit.schema.config import Arm, Measurement, MixedStudy, Profile, SensitivityStudy, Study, Trial, one_line
from lowbit_vit.schema.plan import Plan, SensitivityScores, all_but, linear_names, only, uniform
from lowbit_vit.schema.record import LEAST_SAMPLES

# Cells of sensitivity and mixed start from one model; seeds are an axis of the variants only.
CELL_SEED = 0


def cells(profile: Profile, study: Study, *, scores: Sequence[SensitivityScores] = (), plans: Sequence[PlanFile] = ()) -> list[Trial]:
    """List the trials of a study, each once.

    Args:
        profile: the profile.
        study: which study; after the first process of every trial come the rounds of those that repeat a timing.
        scores: what the sensitivity study found; `mixed` needs those of its own format, direction "only".
        plans: more plans for `mixed`.

    Raises:
        ConfigError: two arms are the same trial, or a plan does not fit the model or the study.
        DataError: `mixed` without the scores that it needs, or with a plan made from other weights.
    """
    match study:
        case "variants":
            arms = [(arm, place, seed) for arm in profile.variants.arms for place, seed in enumerate(arm.seeds)]
            # All first seeds before any second, so that a run that is cut short has every arm rather than half of them twice.
            arms.sort(key=lambda entry: entry[1])
            trials = _distinct_arms(_arm_trial(profile, arm, place, seed) for arm, place, seed in arms)
            return trials + _repeats(trials[: len(profile.variants.arms)], profile)
        case "sensitivity":
            return _cells(profile, study, _sensitivity_plans(profile.sensitivity, profile.backbone.depth))
        case "mixed":
            chosen = _choose_scores(profile, scores)
            mixed_plans = _mixed_plans(profile.mixed, profile.backbone.depth, chosen) + _given_plans(profile, plans, chosen)
            trials = [_time_if_asked(profile, trial) for trial in _cells(profile, study, mixed_plans)]
            return trials + _repeats(trials, profile)


# ------------------------------------------------------------------------------------------------------------ variants


def _arm_trial(profile: Profile, arm: Arm, place: int, seed: int) -> Trial:
    # An arm's own number of samples is for its tail latencies, which one process gives; other seeds take the profile's.
    changes = {} if arm.samples is None or place > 0 else {"samples": arm.samples}
    return Trial(
        profile=profile.name,
        study="variants",
        label=arm.label,
        data=profile.data,
        backbone=profile.backbone,
        plan=uniform(arm.weights, arm.compute_dtype),
        attention=arm.attention,
        qkv=arm.qkv,
        adaptation=arm.adaptation,
        lora=None if arm.adaptation == "none" else profile.lora,
        execution=arm.execution,
        device=arm.device or profile.device,
        evaluation=profile.evaluation,
        measurement=_share(profile.measurement.model_copy(update=changes)),
        limits=profile.limits,
        selection_seed=profile.selection_seed,
        seed=seed,
        paper_row=arm.paper_row,
    )


def _distinct_arms(trials: Iterable[Trial]) -> list[Trial]:
    """Refuse to drop a declared row: two arms of one identity are a mistake in the profile."""
    by_id: dict[str, Trial] = {}
    for trial in trials:
        twin = by_id.setdefault(trial.trial_id, trial)
        if twin is not trial:
            raise ConfigError(
                f"profiles/{trial.profile}.yaml: key variants.arms: {trial.label!r} is the same trial as {twin.label!r} "
                f"(seed {trial.seed}); remove one of them"
            )
    return list(by_id.values())


# ---------------------------------------------------------------------------------------------------------- sensitivity


def _sensitivity_plans(study: SensitivityStudy, depth: int) -> list[tuple[CellRole, Plan]]:
    dtype, linears = study.compute_dtype, linear_names(depth) if "modules" in study.units else ()
    plans: list[tuple[CellRole, Plan]] = [(Reference(), Plan(compute_dtype=dtype))]
    for weights in study.formats:
        plans.append((AllBlocks(weights=weights.name), uniform(weights, dtype)))
        for direction in study.directions:
            make = only if direction == "only" else all_but
            plans += [(unit_role(direction, weights.name, f"blocks.{block}"), make([block], weights, dtype)) for block in range(depth)]
            plans += [(unit_role(direction, weights.name, name), make([name], weights, dtype)) for name in linears]
    return plans


# ---------------------------------------------------------------------------------------------------------------- mixed


def _choose_scores(profile: Profile, scores: Sequence[SensitivityScores]) -> SensitivityScores:
    """The scores that the data-driven choice is made from: of the mixed study's format, one block quantized at a time."""
    where = f"reports/{profile.name}/sensitivity.json"
    for score in scores:
        if score.weights == profile.mixed.weights and score.direction == "only":
            if [block.block for block in score.blocks] != list(range(profile.backbone.depth)):
                raise DataError(
                    f"{where}: scores {len(score.blocks)} blocks, the backbone has {profile.backbone.depth}; "
                    f"run lowbit-vit sensitivity {profile.name} again"
                )
            return score
    found = ", ".join(f"{score.weights.name} {score.direction}" for score in scores) or "none"
    raise DataError(
        f"{where}: no scores of {profile.mixed.weights.name}, direction only, which mixed chooses from (found: {found}); "
        f"list that format in sensitivity.formats and run lowbit-vit sensitivity {profile.name}"
    )


def _mixed_plans(study: MixedStudy, depth: int, scores: SensitivityScores) -> list[tuple[CellRole, Plan]]:
    dtype = study.compute_dtype
    plans: list[tuple[CellRole, Plan]] = [
        (Reference(), Plan(compute_dtype=dtype)),
        (NoneSpared(weights=study.weights.name), uniform(study.weights, dtype)),
    ]
    for k in study.spared:
        half = k // 2
        chosen: list[tuple[CellRole, tuple[int, ...]]] = [
            (Chosen(kind="first+last", k=k), (*range(half), *range(depth - half, depth))),
            (Chosen(kind="last", k=k), tuple(range(depth - k, depth))),
            (Chosen(kind="most sensitive", k=k), scores.most_sensitive(k)),
        ]
        draws = draw_blocks(depth, k, count=min(study.random_plans, math.comb(depth, k)), seed=study.random_seed)
        chosen += [(Random(k=k, index=index), blocks) for index, blocks in enumerate(draws)]
        plans += [(role, all_but(blocks, study.weights, dtype)) for role, blocks in chosen]
    for pair in itertools.combinations(scores.most_sensitive(study.pairs) if study.pairs else (), 2):
        plans.append((BlockPair(weights=study.weights.name, blocks=pair), only(pair, study.weights, dtype)))
    return plans


def _given_plans(profile: Profile, files: Sequence[PlanFile], scores: SensitivityScores) -> list[tuple[CellRole, Plan]]:
    found: dict[CellRole, Plan] = {}
    for file in files:
        if file.compute_dtype != profile.mixed.compute_dtype:
            raise ConfigError(f"plan {file.name}: compute_dtype {file.compute_dtype}, but mixed has {profile.mixed.compute_dtype}")
        if file.backbone_sha256 not in (None, scores.backbone_sha256):
            raise DataError(f"plan {file.name}: was made from other weights than the sensitivity study's; allocate again")
        role = GivenPlan(name=file.name) if file.strategy is None or file.k is None else Chosen(kind=file.strategy, k=file.k)
        if role in found:
            raise ConfigError(f"plan {file.name}: another plan has this name already")
        found[role] = file.plan(profile.backbone.depth)
    return list(found.items())


def plan_cell(profile: Profile, file: PlanFile) -> Trial:
    """The cell that `mixed` runs for a plan file, in the plan's own compute dtype, without a timing.

    Raises:
        ConfigError: the plan does not fit the model, or cannot run in that dtype.
    """
    try:
        return _cell(profile, "mixed", [GivenPlan(name=file.name)], file.plan(profile.backbone.depth))
    except ValidationError as error:
        raise ConfigError(f"plan {file.name}: {one_line(error)}") from None


def _time_if_asked(profile: Profile, trial: Trial) -> Trial:
    """Measure a cell if one of the parts that it plays is to be timed; it stays one cell, which a scan then leaves out."""
    timed = any(role.kind in profile.mixed.timed for role in trial.roles)
    return trial.model_copy(update={"measurement": _share(profile.measurement)}) if timed else trial


def _share(measurement: Measurement) -> Measurement:
    """What one of the processes measures."""
    return measurement.model_copy(update={"samples": max(LEAST_SAMPLES, math.ceil(measurement.samples / measurement.processes))})


def _repeats(trials: Sequence[Trial], profile: Profile) -> list[Trial]:
    """The timed trials again, each in `processes` - 1 more rounds, in a drawn order: what drifts with the hours meets every variant."""
    timed = [trial for trial in trials if trial.measurement is not None]
    found: list[Trial] = []
    for process in range(1, profile.measurement.processes):
        generator = random.Random(f"{profile.selection_seed}/{process}")
        order = sorted(timed, key=lambda _: generator.random())
        found += [trial.model_copy(update={"process": process}) for trial in order]
    return found


def draw_blocks(depth: int, k: int, *, count: int, seed: int) -> list[tuple[int, ...]]:
    """Draw `count` distinct sets of k of `depth` blocks, uniformly; the same seed gives the same sets on every machine.

    The heuristics' sets may be among them: leaving them out would bias the control.
    """
    # Of all of random's methods, only random() promises the same numbers in every Python version.
    generator = random.Random(f"{seed}/{k}")
    sets: list[tuple[int, ...]] = []
    while len(sets) < count:
        shuffled = sorted(range(depth), key=lambda _: generator.random())
        blocks = tuple(sorted(shuffled[:k]))
        if blocks not in sets:
            sets.append(blocks)
    return sets


# ---------------------------------------------------------------------------------------------------------- both of them


def _cells(profile: Profile, study: Study, plans: Iterable[tuple[CellRole, Plan]]) -> list[Trial]:
    """Run a cell that plays several parts once."""
    by_plan: dict[Plan, list[CellRole]] = {}
    for role, plan in plans:
        by_plan.setdefault(plan, []).append(role)
    return [_cell(profile, study, roles, plan) for plan, roles in by_plan.items()]


def _cell(profile: Profile, study: Study, roles: Sequence[CellRole], plan: Plan) -> Trial:
    of_study = profile.sensitivity if study == "sensitivity" else profile.mixed
    return Trial(
        profile=profile.name,
        study=study,
        label=" = ".join(map(label_of, roles)),
        roles=tuple(roles),
        data=profile.data,
        backbone=profile.backbone,
        plan=plan,
        attention=of_study.attention,
        qkv="separate",
        adaptation="none" if profile.lora is None else "ptq",
        lora=profile.lora,
        execution="eager",
        device=profile.device,
        evaluation=profile.evaluation,
        measurement=None,
        limits=profile.limits,
        selection_seed=profile.selection_seed,
        seed=CELL_SEED,
    )
