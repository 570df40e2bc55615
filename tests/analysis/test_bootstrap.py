"""The paired bootstrap of macro-F1: scikit-learn's F1, the textbook's BCa, invariances, and coverage."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lowbit_vit.analysis.intervals import acceleration, bca_interval, macro_f1_difference

Answers = npt.NDArray[np.int64]
# Efron and Tibshirani 1993, table 14.1: spatial test, A.
SPATIAL = np.array([48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], dtype=np.float64)


def answers(seed: int, *, images: int = 300, classes: int = 5, right: float = 0.7) -> tuple[Answers, Answers, Answers]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    first = np.where(random.random(images) < right, labels, random.integers(0, classes, images))
    second = np.where(random.random(images) < 0.8, first, random.integers(0, classes, images))
    return labels, first, second


def hand_f1(labels: Answers, given_answers: Answers) -> float:
    """Mean F1 over the classes that occur, class by class."""
    scores = []
    for label in np.union1d(labels, given_answers):
        hits = np.sum((labels == label) & (given_answers == label))
        scores.append(2 * hits / (np.sum(labels == label) + np.sum(given_answers == label)))
    return float(np.mean(scores))


def test_macro_f1_is_the_mean_over_the_classes_that_occur() -> None:
    labels, first, second = answers(0)
    second[:3] = 9  # a class that no image has
    found = macro_f1_difference(labels, first, second, resamples=50)
    assert found.first == pytest.approx(hand_f1(labels, first))
    assert found.second == pytest.approx(hand_f1(labels, second))
    assert found.difference == pytest.approx(found.second - found.first)


def test_bca_gives_the_interval_of_efron_and_tibshirani() -> None:
    # Table 14.2: the variance 171.5 of spatial test A has acceleration 0.061 and a 90 % BCa interval of (115.8, 259.6), from 2,000
    # resamples; the random error of an end is about 2.
    jackknife = np.array([np.var(np.delete(SPATIAL, i)) for i in range(len(SPATIAL))])
    assert acceleration(jackknife) == pytest.approx(0.061, abs=5e-4)
    random = np.random.default_rng(0)
    resampled = np.var(random.choice(SPATIAL, (20_000, len(SPATIAL))), axis=1)
    found = bca_interval(float(np.var(SPATIAL)), resampled, acceleration=acceleration(jackknife), confidence=0.9)
    assert (found.low, found.high) == pytest.approx((115.8, 259.6), abs=4)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    theirs = bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=2)
    jackknife = np.array([np.delete(values, i).mean() for i in range(60)])
    ours = bca_interval(float(values.mean()), theirs.bootstrap_distribution, acceleration=acceleration(jackknife))
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-3)


def test_the_jackknife_over_outcomes_is_the_one_over_images() -> None:
    """Weights stand for repeated observations."""
    values = np.array([1.0, 2.0, 5.0])
    assert acceleration(values, weights=np.array([3.0, 1.0, 2.0])) == pytest.approx(acceleration(np.array([1.0, 1.0, 1.0, 2.0, 5.0, 5.0])))
    assert acceleration(np.ones(4)) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_order_of_the_images_changes_nothing(seed: int) -> None:
    arrays = answers(seed)
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    assert macro_f1_difference(*arrays, resamples=100) == macro_f1_difference(*(array[order] for array in arrays), resamples=100)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_swapping_the_models_changes_the_sign_and_nothing_else(seed: int) -> None:
    labels, first, second = answers(seed)
    found, swapped = macro_f1_difference(labels, first, second, resamples=100), macro_f1_difference(labels, second, first, resamples=100)
    if found.difference != 0:
        assert (swapped.first, swapped.second, swapped.difference) == (found.second, found.first, -found.difference)
        assert (swapped.interval.low, swapped.interval.high) == (-found.interval.high, -found.interval.low)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_more_confidence_makes_a_wider_interval(seed: int) -> None:
    narrow, wide = (macro_f1_difference(*answers(seed), resamples=200, confidence=level).interval for level in (0.8, 0.95))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_models_with_the_same_answers_differ_by_exactly_nothing() -> None:
    labels, first, _ = answers(0)
    found = macro_f1_difference(labels, first, first, resamples=100)
    assert (found.difference, found.interval.low, found.interval.high) == (0.0, 0.0, 0.0)


def test_other_images_are_refused() -> None:
    labels, first, second = answers(0)
    with pytest.raises(ValueError, match="not the same images"):
        macro_f1_difference(labels, first, second[1:])


def test_the_interval_covers_the_true_difference_at_least_94_percent_of_the_time() -> None:
    """A large population of images with known answers stands for the truth; 300 studies draw 400 images each."""
    population = answers(7, images=200_000)
    truth = hand_f1(population[0], population[2]) - hand_f1(population[0], population[1])
    random = np.random.default_rng(0)
    covered = []
    for study in range(300):
        drawn = random.integers(0, 200_000, 400)
        interval = macro_f1_difference(*(array[drawn] for array in population), resamples=400, seed=study).interval
        covered.append(interval.low <= truth <= interval.high)
    # Standard error 1.3 points; 400 resamples put about half a point of noise on top.
    assert np.mean(covered) >= 0.94, np.mean(covered)
