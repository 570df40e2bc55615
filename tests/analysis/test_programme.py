"""The programme's plan is the best of all plans, found by trying every one; ties and budgets out of reach are settled in words."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_vit.analysis.programme import MIB, Budget, Choice, PairTerm, Problem, solve
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8

FORMATS = (HighPrecision(), Int8(format="int8", threshold=0.0), NF4(format="nf4", double_quantization=False))
BASE = 100 * MIB


def problem(units: int, seed: int, *, ms: bool = False) -> Problem:
    random = np.random.default_rng(seed)
    choices = []
    for unit in range(units):
        choices.append(Choice(unit=f"blocks.{unit}", weights=FORMATS[0], weight_bytes=0, kl=0.0, flips=0.0))
        for weights, share in ((FORMATS[1], 0.5), (FORMATS[2], 0.72)):
            choices.append(
                Choice(
                    unit=f"blocks.{unit}",
                    weights=weights,
                    weight_bytes=-int(share * 10 * MIB),
                    kl=float(random.lognormal(-8, 1)) * share,
                    flips=float(random.integers(0, 4)),
                    ms=-0.01 if ms else 0.0,
                )
            )
    return Problem(choices=tuple(choices), base_bytes=BASE, base_ms=10.0 if ms else None)


def every_plan(given: Problem) -> list[list[Choice]]:
    by_unit: dict[str, list[Choice]] = {}
    for choice in given.choices:
        by_unit.setdefault(choice.unit, []).append(choice)
    return [list(plan) for plan in product(*by_unit.values())]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.floats(0, 1))
def test_no_plan_within_the_bytes_has_less_kl(units: int, seed: int, share: float) -> None:
    given_problem = problem(units, seed)
    least = given_problem.least("weight_bytes")
    budget = Budget("weight_bytes", least + share * (BASE - least))
    chosen, optimum = solve(given_problem, budget, minimize="kl")
    possible = [plan for plan in every_plan(given_problem) if given_problem.total(plan, "weight_bytes") <= budget.limit]
    best = min(given_problem.total(plan, "kl") for plan in possible)
    assert given_problem.total(chosen, "weight_bytes") <= budget.limit
    assert given_problem.total(chosen, "kl") == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert optimum.value == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert optimum.gap == 0
    assert [choice.unit for choice in chosen] == [f"blocks.{unit}" for unit in range(units)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000), st.integers(0, 8))
def test_no_plan_within_the_flips_is_smaller(units: int, seed: int, flips: int) -> None:
    given_problem = problem(units, seed)
    chosen, optimum = solve(given_problem, Budget("flips", flips), minimize="weight_bytes")
    possible = [plan for plan in every_plan(given_problem) if given_problem.total(plan, "flips") <= flips]
    assert given_problem.total(chosen, "weight_bytes") == min(given_problem.total(plan, "weight_bytes") for plan in possible)
    assert optimum.value == given_problem.total(chosen, "weight_bytes")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0, 1))
def test_with_pair_terms_too_no_plan_within_the_bytes_has_less_kl(units: int, seed: int, share: float) -> None:
    """Terms of either sign, large enough to change the choice, of every two units in both formats."""
    random = np.random.default_rng(seed)
    places = [(first, second) for first in range(units) for second in range(first + 1, units)]
    terms = tuple(
        PairTerm(units=(f"blocks.{first}", f"blocks.{second}"), weights=weights.name, kl=float(random.normal(0, 3e-4)))
        for first, second in places
        for weights in FORMATS[1:]
    )
    given_problem = replace(problem(units, seed), pairs=terms)
    low = given_problem.least("weight_bytes")
    budget = Budget("weight_bytes", low + share * (BASE - low))
    chosen, optimum = solve(given_problem, budget, minimize="kl")
    possible = [plan for plan in every_plan(given_problem) if given_problem.total(plan, "weight_bytes") <= budget.limit]
    best = min(given_problem.total(plan, "kl") for plan in possible)
    assert given_problem.total(chosen, "kl") == pytest.approx(best, rel=1e-6, abs=1e-11)
    assert optimum.value == pytest.approx(best, rel=1e-6, abs=1e-11)


def far_apart(seed: int, decades: int, *, pairs: bool) -> Problem:
    """Five units whose losses span so many decades; some are equal, some 0."""
    random = np.random.default_rng(seed)
    losses = 10.0 ** random.uniform(-decades, 0, size=4)
    drawn = problem(5, seed)
    choices = [
        choice
        if choice.weights == FORMATS[0]
        else replace(choice, kl=float(random.choice([0.0, *losses, 10 ** random.uniform(-decades, 0)])))
        for choice in drawn.choices
    ]
    linked = combinations([f"blocks.{unit}" for unit in (0, 2, 3)], 2) if pairs else ()
    terms = [PairTerm(units=both, weights="nf4", kl=float(random.choice([-1, 1]) * random.choice(losses))) for both in linked]
    return Problem(tuple(choices), drawn.base_bytes, None, tuple(terms))


def exact(given: Problem, plan: list[Choice]) -> tuple[Fraction, int]:
    """KL and bytes without rounding."""
    taken = {(choice.unit, choice.weights.name) for choice in plan}
    terms = [pair.kl for pair in given.pairs if {(unit, pair.weights) for unit in pair.units} <= taken]
    return sum(map(Fraction, [*(choice.kl for choice in plan), *terms]), Fraction()), sum(choice.weight_bytes for choice in plan)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("decades", [3, 8, 12])
def test_the_best_of_all_plans_is_found_exactly_however_far_apart_losses_lie(decades: int, pairs: bool) -> None:
    for seed in range(12):
        given_problem = far_apart(seed, decades, pairs=pairs)
        plans = [
            (*exact(given_problem, plan), tuple(given_problem.choices.index(choice) for choice in plan))
            for plan in every_plan(given_problem)
        ]
        for share in (0.2, 0.5, 0.9):
            room = given_problem.least("weight_bytes") + share * (BASE - given_problem.least("weight_bytes"))
            chosen, optimum = solve(given_problem, Budget("weight_bytes", room), minimize="kl")
            best = min(plan for plan in plans if plan[1] <= room - BASE)
            assert tuple(map(given_problem.choices.index, chosen)) == best[2]
            assert (optimum.value, optimum.bound, optimum.gap) == (given_problem.total(chosen, "kl"), optimum.value, 0)
        for kl in (0.0, float(sorted(plans)[len(plans) // 2][0])):
            chosen, _ = solve(given_problem, Budget("kl", kl), minimize="weight_bytes")
            _, _, best_choices = min((size, loss, choices) for loss, size, choices in plans if loss <= kl)
            assert tuple(map(given_problem.choices.index, chosen)) == best_choices


def test_a_pair_that_costs_more_together_is_parted() -> None:
    alike = [
        Choice(unit=f"blocks.{unit}", weights=weights, weight_bytes=-size, kl=kl, flips=0.0)
        for unit in range(3)
        for weights, size, kl in ((FORMATS[0], 0, 0.0), (FORMATS[2], MIB, 0.001 * (3 - unit)))
    ]
    budget = Budget("weight_bytes", BASE - 2 * MIB)
    apart, _ = solve(Problem(tuple(alike), BASE, None), budget, minimize="kl")
    term = PairTerm(units=("blocks.1", "blocks.2"), weights="nf4", kl=0.005)
    parted, optimum = solve(Problem(tuple(alike), BASE, None, (term,)), budget, minimize="kl")
    assert [choice.weights.name for choice in apart] == ["high", "nf4", "nf4"]
    assert [choice.weights.name for choice in parted] == ["nf4", "high", "nf4"]
    assert optimum.value == pytest.approx(0.004)


def test_pairs_of_more_units_than_can_be_tried_are_refused() -> None:
    terms = tuple(PairTerm(units=both, weights="nf4", kl=1.0) for both in combinations([f"blocks.{unit}" for unit in range(11)], 2))
    with pytest.raises(ConfigError, match=r"pairs link 11 units, 177,147 plans, at most 100,000 are tried; give one --format"):
        solve(replace(problem(12, 0), pairs=terms), Budget("weight_bytes", BASE), minimize="kl")


def test_of_equal_plans_the_earlier_units_stay_in_high_precision_whatever_the_order_of_solving() -> None:
    alike = [
        Choice(unit=f"blocks.{unit}", weights=weights, weight_bytes=-size, kl=kl, flips=0.0)
        for unit in range(6)
        for weights, size, kl in ((FORMATS[0], 0, 0.0), (FORMATS[2], MIB, 0.001))
    ]
    chosen, _ = solve(Problem(tuple(alike), BASE, None), Budget("weight_bytes", BASE - 3 * MIB), minimize="kl")
    assert [choice.weights.name for choice in chosen] == ["high"] * 3 + ["nf4"] * 3


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("weight_bytes", 10 * MIB), r"within 10\.0000 MiB; the nearest budget that one does is 78\.4001 MiB"),
        (Budget("weight_bytes", 0.0), r"a budget of 0\.0000 MiB is none"),
        (Budget("ms", 0.0), r"a budget of 0\.0000 ms is none"),
        (Budget("ms", float("nan")), "is none"),
        (Budget("weight_bytes", float("inf")), "a budget of inf MiB is none; give a positive number"),
        (Budget("ms", 9.9), r"within 9\.9000 ms; the nearest budget that one does is 9\.9700 ms"),
        (Budget("flips", -1), "a budget of -1 flips in 1,000 images is none"),
        (Budget("flips", float("nan")), "a budget of nan flips in 1,000 images is none"),
        (Budget("weight_bytes", float("nan")), "a budget of nan MiB is none"),
    ],
)
def test_a_budget_out_of_reach_is_told_the_nearest_one_that_is_not(budget: Budget, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        solve(problem(3, 0, ms=True), budget, minimize="kl")
    assert "\n" not in str(caught.value)


def test_the_nearest_budget_is_one_that_a_plan_keeps() -> None:
    given_problem = problem(3, 0, ms=True)
    nearest = np.ceil(given_problem.least("weight_bytes") / MIB * 1e4) / 1e4
    chosen, _ = solve(given_problem, Budget("weight_bytes", nearest * MIB), minimize="kl")
    assert {choice.weights.name for choice in chosen} == {"nf4"}
