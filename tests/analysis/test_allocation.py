"""The problem that is solved holds what was measured; plans of the mixed study keep within the heuristic's bytes."""

import pytest

import synthetic
from lowbit_vit.analysis.allocation import allocate_within, asked_budget, build_problem, measured_latencies, study_plans
from lowbit_vit.analysis.block_cells import BlockCells, gather_cells
from lowbit_vit.analysis.plan_predictions import flip_curve
from lowbit_vit.analysis.programme import MIB
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.sensitivity import scores
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.cell_role import Chosen
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells

Study = tuple[Profile, Workspace, BlockCells, list[SensitivityScores]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("allocation") / "root", studies=("sensitivity", "variants"))
    alone = gather_cells(load_results(workspace, "sensitivity"))
    return profile, workspace, alone, scores(alone, profile)


def test_the_bytes_are_the_records_and_the_losses_the_scores(study: Study) -> None:
    profile, _, alone, found = study
    problem = build_problem(profile, found, alone, units="blocks")
    assert len(problem.choices) == 8 * 3
    assert problem.base_bytes == 8 * 200_000
    nf4 = [choice for choice in problem.choices if choice.weights.name == "nf4"]
    assert [choice.weight_bytes for choice in nf4] == [28_000 - 200_000] * 8
    only = next(score for score in found if score.weights.name == "nf4" and score.direction == "only")
    assert [choice.kl for choice in nf4] == pytest.approx([sum(block.kl) / 5 for block in only.blocks])
    assert [choice.flips for choice in nf4] == pytest.approx([1000 * sum(block.flips) / 5 / only.images for block in only.blocks])


def test_the_studys_plans_keep_within_the_heuristics_bytes_and_run_as_cells(study: Study) -> None:
    profile, _, alone, found = study
    plans = study_plans(profile, found, alone, synthetic.estimates_of(profile, found))
    assert [(plan.name, plan.k) for plan in plans] == [("milp-k2", 2), ("gradient-k2", 2), ("milp-k4", 4), ("gradient-k4", 4)]
    for plan in plans:
        assert plan.predicted is not None
        assert plan.predicted.weight_bytes <= 8 * 200_000 - (8 - (plan.k or 0)) * 172_000
        assert plan.optimum is not None
        assert plan.optimum.gap == 0
    milp, gradient = plans[0], plans[1]
    assert milp.predicted is not None
    assert gradient.predicted is not None
    assert milp.predicted.kl < gradient.predicted.kl
    trials = cells(profile, "mixed", scores=found, plans=plans)
    roles = {role for trial in trials for role in trial.roles}
    assert {Chosen(kind="milp", k=2), Chosen(kind="gradient", k=4)} <= roles
    assert len({trial.trial_id for trial in trials}) == len(trials)


def test_a_plan_of_other_weights_another_dtype_or_a_name_twice_is_refused(study: Study) -> None:
    profile, _, alone, found = study
    plan = study_plans(profile, found, alone, None)[0]
    with pytest.raises(DataError, match="milp-k2: was made from other weights"):
        cells(profile, "mixed", scores=found, plans=[plan.model_copy(update={"backbone_sha256": "0" * 64})])
    with pytest.raises(ConfigError, match="milp-k2: compute_dtype bf16, but mixed has fp32"):
        cells(profile, "mixed", scores=found, plans=[plan.model_copy(update={"compute_dtype": "bf16"})])
    with pytest.raises(ConfigError, match="milp-k2: another plan has this name"):
        cells(profile, "mixed", scores=found, plans=[plan, plan])


def test_latency_is_that_of_the_arms_in_one_format_shared_out_over_the_blocks(study: Study) -> None:
    profile, workspace, alone, found = study
    timed = load_results(workspace, "variants")
    with pytest.raises(DataError, match="no timing of high"):
        measured_latencies(profile, timed, ["nf4"], batch_size=1, execution="eager")
    flash = profile.model_copy(update={"sensitivity": profile.sensitivity.model_copy(update={"attention": "math"})})
    plain = [result for result in timed if result.record.trial.label == "fp32, math attention"]
    nf4 = [result for result in timed if result.record.trial.label == "NF4 after training"]
    (alike,) = [
        Result(result.record.model_copy(update={"trial": result.record.trial.model_copy(update={"attention": "math"})}), result.predictions)
        for result in nf4
    ]
    latencies = measured_latencies(flash, [*plain, alike], ["nf4"], batch_size=1, execution="eager")
    problem = build_problem(flash, found, alone, units="blocks", formats=["nf4"], latencies=latencies)
    every = [choice for choice in problem.choices if choice.weights.name == "nf4"]
    assert problem.total(every, "ms") == pytest.approx(latencies["nf4"])
    budget = asked_budget(mib=None, ms=max(latencies.values()), flips=None)
    assert budget is not None
    plan = allocate_within(budget, flash, found, alone, timed=[*plain, alike], units="blocks", formats=["nf4"], batch=1, execution="eager")
    assert plan.predicted is not None
    assert plan.predicted.ms is not None
    assert plan.predicted.ms <= max(latencies.values()) * (1 + 1e-9)


@pytest.mark.parametrize("flips", [0.0, 20.0, 60.0, 1000.0])
def test_a_budget_of_flips_is_spent_as_kl_and_the_plan_says_what_to_expect(study: Study, flips: float) -> None:
    profile, _, alone, found = study
    budget = asked_budget(mib=None, ms=None, flips=flips)
    assert budget is not None
    plan = allocate_within(budget, profile, found, alone, timed=[], units="blocks", formats=None, batch=None, execution="eager")
    predicted, curve = plan.predicted, flip_curve(alone, found)
    assert predicted is not None
    assert predicted.flips_interval is not None
    assert curve is not None
    assert predicted.flips_per_1000 == curve.expected(predicted.kl) <= flips + 1e-9
    assert predicted.flips_interval[0] <= predicted.flips_per_1000 <= predicted.flips_interval[1]
    assert (predicted.flips_per_1000 == 0) == (flips == 0)
    assert (predicted.weight_bytes == 8 * 28_000) == (flips == 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["fp8"]}, "format fp8 was not measured; sensitivity.formats has: int8-0, nf4"),
        ({"units": "modules"}, r"modules were not measured; put sensitivity\.units: \[blocks, modules\] into profiles/demo\.yaml"),
        ({"units": "modules", "latencies": {"high": 1.0}}, "latency is measured of whole blocks"),
    ],
)
def test_what_was_not_measured_is_named(study: Study, options: dict[str, object], message: str) -> None:
    profile, _, alone, found = study
    with pytest.raises(ConfigError, match=message):
        build_problem(profile, found, alone, **{"units": "blocks", **options})  # type: ignore[arg-type]


def test_scores_of_other_weights_than_the_records_are_refused(study: Study) -> None:
    profile, _, alone, found = study
    other = [score.model_copy(update={"backbone_sha256": "0" * 64}) for score in found]
    with pytest.raises(DataError, match=r"of other weights than the records; run lowbit-vit sensitivity demo again"):
        build_problem(profile, other, alone, units="blocks")


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        asked_budget(mib=1, ms=2, flips=None)
    budget = asked_budget(mib=2, ms=None, flips=None)
    assert budget is not None
    assert budget.limit == 2 * MIB
