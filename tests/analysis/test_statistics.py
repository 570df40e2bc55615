"""Each statistic gives the published values of its source, keeps its symmetries, and its 95 % intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from lowbit_vit.analysis.statistics import (
    compare,
    compare_counts,
    compare_unpaired,
    holm,
    margin_test,
    mcnemar,
    mcnemar_mid_p,
    paired_interval,
    paired_score,
    wilson,
)

# Both right or both wrong, only the first right, only the second right.
COUNTS = st.tuples(st.integers(0, 400), st.integers(0, 60), st.integers(0, 60)).filter(lambda cells: sum(cells) > 0)


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
    assert result.discordance == pytest.approx(0.11)
    assert result == compare_counts(9, 2, images=100)


def test_compare_refuses_other_images() -> None:
    with pytest.raises(ValueError, match="not the same images"):
        compare(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize(
    ("lost", "gained", "images", "exact", "mid"),
    # Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables", 2017, chapter 8: Cavo et al. 2012.
    [(6, 16, 161, 0.052479, 0.034690)],
)
def test_mcnemar_gives_the_p_values_of_fagerland_2017(lost: int, gained: int, images: int, exact: float, mid: float) -> None:
    result = compare_counts(lost, gained, images=images)
    assert result.p_value == pytest.approx(exact, abs=5e-7)
    assert result.p_mid == pytest.approx(mid, abs=5e-7)


def test_the_mid_p_value_counts_half_of_an_even_outcome() -> None:
    assert mcnemar_mid_p(0, 0) == 1.0
    assert mcnemar_mid_p(1, 1) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("counts", "confidence", "expected", "rounded"),
    [
        ((16, 6, 161), 0.95, (-0.1240, -0.0054), 5e-5),  # Fagerland 2017, chapter 8: Cavo et al. 2012
        ((7, 1, 21), 0.95, (-0.517, -0.026), 5e-4),  # the same: Bentur et al. 2009
        ((25, 28, 618), 0.90, (-0.0148, 0.0247), 5e-5),  # R's PropCIs: scoreci.mp(25, 28, 618, 0.90)
    ],
)
def test_the_paired_interval_is_tangos(
    counts: tuple[int, int, int], confidence: float, expected: tuple[float, float], rounded: float
) -> None:
    interval = paired_interval(counts[0], counts[1], images=counts[2], confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=rounded)


def test_the_margin_test_gives_the_z_and_p_of_tango_1998() -> None:
    # Crossover trial of soft contact lenses, margin 10 %: of 44 pairs one is discordant; Z = 1.709, p = 0.044.
    assert float(paired_score(1, 0, images=44, difference=-0.1)) == pytest.approx(1.709, abs=5e-4)
    result = margin_test(1, 0, images=44, margin=0.1)
    assert result.p_inferior == pytest.approx(0.044, abs=5e-4)
    assert result.interval.low > -0.1


def test_at_no_difference_the_paired_score_is_mcnemars_chi() -> None:
    assert float(paired_score(16, 6, images=161, difference=0.0)) == pytest.approx((6 - 16) / (6 + 16) ** 0.5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10; ours is the second minus the first.
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((0, 10), (10, 10), 0.6075, 1.0),
    ],
)
def test_the_unpaired_interval_is_newcombes(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    found = compare_unpaired(first, second)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=5e-5)


def test_the_unpaired_p_value_is_fishers() -> None:
    # Fisher's tea: 3 of 4 cups right each way, two-sided p = 0.4857.
    assert compare_unpaired((1, 4), (3, 4)).p_value == pytest.approx(0.4857, abs=5e-5)


def test_holm_gives_the_textbooks_adjusted_values_and_leaves_out_what_is_no_test() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    adjusted = holm([0.01, None, 0.04, 0.03, 0.005])
    assert adjusted[1] is None
    assert [p for p in adjusted if p is not None] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([None]) == [None]
    with pytest.raises(ValueError, match="not all p values"):
        holm([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 10**6))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float], seed: int) -> None:
    adjusted = [p for p in holm(p_values) if p is not None]
    assert len(adjusted) == len(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    assert max(adjusted) <= min(1.0, max(p_values) * len(p_values) + 1e-12)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [after for _, after in pairs] == sorted(adjusted)
    moved = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    assert holm([before for before, _ in moved]) == [after for _, after in moved]


@given(COUNTS, st.integers(0, 10**6))
def test_the_order_of_the_images_does_not_matter(cells: tuple[int, int, int], seed: int) -> None:
    both, lost, gained = cells
    first = np.repeat([True, True, False], [both, lost, gained])
    second = np.repeat([True, False, True], [both, lost, gained])
    order = np.random.default_rng(seed).permutation(len(first))
    assert compare(first, second) == compare(first[order], second[order])


@given(COUNTS)
def test_swapping_the_models_mirrors_the_comparison(cells: tuple[int, int, int]) -> None:
    _, lost, gained = cells
    there, back = (compare_counts(*counts, images=sum(cells)) for counts in ((lost, gained), (gained, lost)))
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert back.p_mid == pytest.approx(there.p_mid)
    assert (back.interval.low, back.interval.high) == pytest.approx((-there.interval.high, -there.interval.low), abs=1e-9)
    assert there.interval.low <= there.difference <= there.interval.high
    ours, theirs = (margin_test(*counts, images=sum(cells), margin=0.02) for counts in ((lost, gained), (gained, lost)))
    assert ours.p_equivalent == pytest.approx(theirs.p_equivalent, abs=1e-9)


@given(COUNTS, st.floats(0.5, 0.98))
def test_more_confidence_makes_wider_intervals(cells: tuple[int, int, int], confidence: float) -> None:
    _, lost, gained = cells
    images = sum(cells)
    for narrow, wide in (
        (wilson(lost, images, confidence=confidence), wilson(lost, images, confidence=confidence + 0.01)),
        (
            paired_interval(lost, gained, images=images, confidence=confidence),
            paired_interval(lost, gained, images=images, confidence=confidence + 0.01),
        ),
    ):
        assert wide.low <= narrow.low + 1e-9
        assert narrow.high <= wide.high + 1e-9


@given(COUNTS, st.integers(2, 5))
def test_the_same_shares_of_more_images_make_narrower_intervals(cells: tuple[int, int, int], times: int) -> None:
    _, lost, gained = cells
    images = sum(cells)
    for few, many in (
        (wilson(lost, images), wilson(times * lost, times * images)),
        (paired_interval(lost, gained, images=images), paired_interval(times * lost, times * gained, images=times * images)),
    ):
        assert many.high - many.low < few.high - few.low


@given(COUNTS, st.floats(0.001, 0.2))
def test_a_wider_margin_is_easier_to_keep(cells: tuple[int, int, int], margin: float) -> None:
    _, lost, gained = cells
    narrow, wide = (margin_test(lost, gained, images=sum(cells), margin=size) for size in (margin, margin + 0.05))
    assert wide.p_inferior <= narrow.p_inferior + 1e-12
    assert wide.p_equivalent <= narrow.p_equivalent + 1e-12


@given(COUNTS, st.floats(0.005, 0.3))
def test_the_margin_test_and_its_interval_say_the_same(cells: tuple[int, int, int], margin: float) -> None:
    _, lost, gained = cells
    result = margin_test(lost, gained, images=sum(cells), margin=margin)
    if abs(result.interval.low + margin) > 1e-6:
        assert (result.p_inferior < 0.05) == (result.interval.low > -margin)


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01])
def test_a_margin_is_a_share(margin: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        margin_test(1, 2, images=100, margin=margin)


@pytest.mark.parametrize(("lost", "gained", "images"), [(1, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(lost: int, gained: int, images: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        paired_interval(lost, gained, images=images)


@pytest.mark.parametrize("trials", [50, 599, 6149])
def test_wilson_covers_95_percent_on_average_though_it_dips_at_some_rates(trials: int) -> None:
    """Exact coverage, by summing over all outcomes: Wilson's is known to dip near rates of 0 and 1 (Brown, Cai, DasGupta 2001)."""
    counts = np.arange(trials + 1)
    intervals = [wilson(int(count), trials) for count in counts]
    low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    rates = np.linspace(0.02, 0.98, 97)
    coverage = [float(binom.pmf(counts, trials, rate)[(low <= rate) & (rate <= high)].sum()) for rate in rates]
    said = f"mean {np.mean(coverage):.4f}, least {min(coverage):.4f} at {rates[int(np.argmin(coverage))]:.2f}"
    assert np.mean(coverage) >= 0.945, said
    assert min(coverage) >= (0.90 if trials == 50 else 0.93), said


@pytest.mark.parametrize("images", [300, 599, 6149])
@pytest.mark.parametrize("discordance", [0.02, 0.1, 0.3])
def test_the_paired_interval_covers_the_true_difference_at_least_94_percent_of_the_time(images: int, discordance: float) -> None:
    """The interval holds a difference exactly where the score test keeps it, which is quick to simulate."""
    random = np.random.default_rng(0)
    coverage = {}
    for share in (0.5, 0.6, 0.8):
        lost, gained = discordance * share, discordance * (1 - share)
        counts = random.multinomial(images, [lost, gained, 1 - discordance], size=20_000)
        # A difference of exactly 0 is 0/0 where nothing changed sides: step off it.
        score = paired_score(counts[:, 0], counts[:, 1], images=images, difference=gained - lost or 1e-12)
        coverage[share] = float(np.mean(np.abs(score) <= norm.ppf(0.975)))
    assert min(coverage.values()) >= 0.94, coverage


def test_the_unpaired_interval_covers_the_true_difference_at_least_94_percent_of_the_time() -> None:
    random = np.random.default_rng(0)
    coverage = {}
    for first, second in ((0.57, 0.55), (0.985, 0.98), (0.9, 0.7)):
        drawn = zip(random.binomial(300, first, 600), random.binomial(599, second, 600), strict=True)
        found = [compare_unpaired((int(one), 300), (int(two), 599)).interval for one, two in drawn]
        coverage[first, second] = float(np.mean([interval.low <= second - first <= interval.high for interval in found]))
    # 600 draws each: the standard error is 0.9 points.
    assert min(coverage.values()) >= 0.94, coverage
