"""Each statistic gives the published values of its source or of a textbook example."""

import numpy as np
import pytest

from lowbit_vit.analysis.statistics import agreement, compare, kendall, mcnemar, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998_table_1(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_ends_exactly_at_0_and_1() -> None:
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        wilson(successes, trials)


def test_mcnemar_gives_the_exact_p_of_fay_2010() -> None:
    # exact2x2's example: 2 and 9 discordant pairs, p = 0.06543.
    assert mcnemar(2, 9) == pytest.approx(0.06543, abs=5e-6)
    assert mcnemar(9, 2) == mcnemar(2, 9)


def test_mcnemar_is_1_when_nothing_changed_or_all_is_even() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0


def test_compare_counts_images_that_only_one_model_gets_right() -> None:
    first = np.array([True] * 80 + [False] * 20)
    second = first.copy()
    second[:9] = False
    second[80:82] = True
    result = compare(first, second)
    assert (result.images, result.lost, result.gained) == (100, 9, 2)
    assert result.difference == pytest.approx(-0.07)
    assert result.p_value == pytest.approx(0.06543, abs=5e-6)
    # By hand: centre -7/102, half width 1.96 sqrt(12 - 49/102)/102.
    assert result.interval.low == pytest.approx(-7 / 102 - 1.959964 * (12 - 49 / 102) ** 0.5 / 102, abs=1e-6)
    assert result.interval.high == pytest.approx(-7 / 102 + 1.959964 * (12 - 49 / 102) ** 0.5 / 102, abs=1e-6)


def test_the_paired_interval_covers_the_true_difference_about_95_percent_of_the_time() -> None:
    random = np.random.default_rng(0)
    cells = random.choice(4, p=[0.80, 0.06, 0.04, 0.10], size=(2000, 300))  # both, only first, only second, none
    covered = 0
    for row in cells:
        result = compare((row == 0) | (row == 1), (row == 0) | (row == 2))
        covered += result.interval.low <= -0.02 <= result.interval.high
    assert 0.935 <= covered / 2000 <= 0.975


def test_compare_refuses_other_images() -> None:
    with pytest.raises(ValueError, match="not the same images"):
        compare(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_kendall_gives_tau_of_hollander_and_wolfe() -> None:
    lightness = [44.4, 45.9, 41.9, 53.3, 44.7, 44.1, 50.7, 45.2, 60.1]
    quality = [2.6, 3.1, 2.5, 5.0, 3.6, 4.0, 5.2, 2.8, 3.8]
    assert kendall(lightness, quality) == pytest.approx(0.4444, abs=5e-5)


def test_kendall_has_no_value_for_a_ranking_of_ties() -> None:
    assert kendall([1, 1, 1], [1, 2, 3]) is None
    assert agreement([[1, 1, 1], [1, 2, 3]]) is None


def test_agreement_averages_over_all_pairs() -> None:
    assert agreement([[1, 2, 3], [1, 2, 3], [3, 2, 1]]) == pytest.approx((1 - 1 - 1) / 3)
