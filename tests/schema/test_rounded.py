"""Rounded numbers: the error stays within what is promised, and the means of groups are those of the originals."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit_vit.schema.rounded import kl_of, round_kl, round_shifts, shifts_of

CELLS, IMAGES, GROUPS = 3, 40, 4
GROUP = (np.arange(IMAGES) % GROUPS).astype(np.uint8)
of_any_size = st.one_of(st.just(0.0), st.floats(-12, 2).map(lambda power: 10.0**power))


def bound(kl: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """As the docstring and the packed file's header say; and what float32 itself takes."""
    greatest = kl.max(axis=1, keepdims=True)
    most: npt.NDArray[np.float64] = kl / 16 + np.sqrt(kl * greatest) / 960 + greatest / 7000
    return most * (1 + 1e-6) + 1e-37


@given(arrays(np.float32, (CELLS, IMAGES), elements=of_any_size.map(lambda value: float(np.float32(value)))))
def test_each_kl_comes_back_within_the_bound_and_none_below_zero(kl: npt.NDArray[np.float32]) -> None:
    found = kl_of(round_kl(kl, GROUP), GROUP)
    exact = kl.astype(np.float64)
    assert (np.abs(found - exact) <= bound(exact)).all()
    assert (found >= 0).all()
    assert (found[kl.max(axis=1) == 0] == 0).all()


@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_the_mean_kl_of_each_group_and_union_of_groups_is_kept(spread: float) -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 33, 6000).astype(np.uint8)
    kl = np.exp(random.normal(-8, spread, (5, 6000))).astype(np.float32)
    rounded = round_kl(kl, groups)
    found = kl_of(rounded, groups)
    for part in [groups == group for group in range(33)] + [groups % 2 == 0, groups > 0]:
        np.testing.assert_allclose(found[:, part].mean(axis=1, dtype=np.float64), kl[:, part].mean(axis=1, dtype=np.float64), rtol=1e-6)
    # Else the check above would hold for no rounding at all.
    assert len(np.unique(rounded.codes)) <= 1024
    assert np.abs(found - kl).max() > 0


@given(arrays(np.float64, (CELLS, IMAGES), elements=st.floats(-1e3, 1e3, width=32)))
def test_each_shift_comes_back_within_a_step_and_group_means_are_kept(shifts: npt.NDArray[np.float64]) -> None:
    found = shifts_of(round_shifts(shifts, GROUP), GROUP)
    step = np.sqrt((shifts**2).mean(axis=1, keepdims=True)) / 2
    assert (np.abs(found - shifts) <= step * (1 + 1e-5) + 1e-30).all()
    for group in range(GROUPS):
        part = np.equal(GROUP, group)
        np.testing.assert_allclose(found[:, part].mean(axis=1), shifts[:, part].mean(axis=1), rtol=1e-5, atol=1e-5 * step.max() + 1e-30)


def test_what_is_not_finite_stays_so_and_hurts_no_other() -> None:
    kl = np.linspace(0, 1, IMAGES, dtype=np.float32)[None].repeat(2, axis=0)
    kl[0, 3], kl[0, 7] = np.nan, np.inf
    found = kl_of(round_kl(kl, GROUP), GROUP)
    assert np.isnan(found[0, 3])
    assert np.isposinf(found[0, 7])
    fine = np.isfinite(kl)
    np.testing.assert_allclose(found[fine], kl[fine], atol=2e-3)
    shifts = kl.astype(np.float64)
    shifts[1, 5] = -np.inf
    back = shifts_of(round_shifts(shifts, GROUP), GROUP)
    assert (np.isfinite(back) == np.isfinite(shifts)).all()
    assert np.isneginf(back[1, 5])
