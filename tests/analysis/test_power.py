"""Power gives the published sample sizes, and the least detectable difference is where the power is reached."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_vit.analysis.statistics import detectable_paired, mcnemar, power_paired


def test_paired_power_needs_connors_sample_size() -> None:
    # Connor 1987: n = ((z_a sqrt(psi) + z_b sqrt(psi - d^2)) / d)^2, here 154.0...: 155 pairs.
    assert power_paired(0.15, discordance=0.45, images=154) < 0.8 + 1.1e-3
    assert power_paired(0.15, discordance=0.45, images=155) >= 0.8
    assert power_paired(0.4, discordance=0.5, images=22) < 0.8 <= power_paired(0.4, discordance=0.5, images=23)


def test_paired_power_is_near_the_simulated_power_of_the_exact_test() -> None:
    random = np.random.default_rng(0)
    counts = random.multinomial(2000, [0.03, 0.05, 0.92], size=1500)
    found = np.mean([mcnemar(int(lost), int(gained)) < 0.05 for lost, gained, _ in counts])
    assert power_paired(0.02, discordance=0.08, images=2000) == pytest.approx(found, abs=0.03)


@given(st.floats(0.001, 1.0), st.integers(20, 10_000))
def test_a_paired_difference_that_is_detectable_is_detected_with_just_that_power(discordance: float, images: int) -> None:
    difference = detectable_paired(discordance, images=images)
    if difference is None:
        assert power_paired(discordance, discordance=discordance, images=images) < 0.8
    else:
        assert power_paired(difference, discordance=discordance, images=images) == pytest.approx(0.8, abs=1e-6)


@given(st.floats(0.01, 1.0), st.integers(100, 5_000))
def test_more_images_detect_less(discordance: float, images: int) -> None:
    few, many = detectable_paired(discordance, images=images), detectable_paired(discordance, images=2 * images)
    assert few is None or (many is not None and many < few)


def test_nothing_can_be_detected_where_too_few_images_changed_sides() -> None:
    # 599 images of which 3 changed sides: even if all three were lost, the test would hardly ever see it.
    assert detectable_paired(0.005, images=599) is None
    assert detectable_paired(0.0, images=599) is None


def test_a_difference_beyond_the_discordance_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot come from a discordance"):
        power_paired(0.1, discordance=0.05, images=100)
