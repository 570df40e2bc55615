"""KL and margins of one study's cells in few bits, with the means of given groups of images kept: what `packed` stores.

An image's number is rounded to a step. What rounding moved the mean of a group by is stored once a group and cell, and put
back on reading: so the mean of a group, and of any union of groups, is the original's to about seven digits. No torch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
KL_STEPS = 1023
# A group's factor: at most so far from 1, unless all its KL are small (of codes below the second number); then from 0 to the third.
_FACTOR, _SMALL, _MOST = 1 / 16, 8, 3.0
# Codes of what is no number.
_NAN, _INFINITE, _MINUS_INFINITE = 65535, 65534, 65533


@dataclass(frozen=True)
class Rounded:
    """Numbers of C cells and N images of G groups.

    Attributes:
        codes: uint16 [C, N].
        scale: float32 [C]: of `round_kl` the greatest KL of the cell, of `round_shifts` the step.
        mend: float32 [C, G]: of `round_kl` a factor, of `round_shifts` a summand.
    """

    codes: npt.NDArray[np.uint16]
    scale: npt.NDArray[np.float32]
    mend: npt.NDArray[np.float32]


def round_kl(kl: npt.NDArray[np.float32], groups: npt.NDArray[np.uint8]) -> Rounded:
    """KL of each image, float32 [C, N], none below 0, in steps of its square root: 1/1023 of the root of the cell's greatest.

    An image's KL comes back within kl/16 + sqrt(kl x greatest)/960 + greatest/7000; what is not finite comes back as it was.
    The first and last terms are the most that the group's factor may change it by; without it, the error is at most half a step:
    sqrt(kl x greatest)/1023 + greatest/3,000,000.

    Args:
        kl: of every cell.
        groups: uint8 [N], the group of each image, counted from 0.
    """
    values, finite = _finite(kl)
    greatest = values.max(axis=1, initial=0.0).astype(np.float32)
    roots = np.sqrt(values / np.where(greatest > 0, greatest, 1.0)[:, None])
    codes = np.rint(KL_STEPS * roots).clip(0, KL_STEPS).astype(np.uint16)
    true, found = _sums(values, groups), _sums(_kl_values(codes, greatest) * finite, groups)
    factor = np.divide(true, found, out=np.ones_like(true), where=found > 0)
    large = _sums((codes >= _SMALL).astype(np.float64), groups) > 0
    factor = np.where(large, factor.clip(1 - _FACTOR, 1 + _FACTOR), factor.clip(0, _MOST))
    return Rounded(_with_marks(codes, kl), greatest, factor.astype(np.float32))


def kl_of(rounded: Rounded, groups: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What `round_kl` kept, float32 [C, N]."""
    values = _kl_values(rounded.codes, rounded.scale) * rounded.mend.astype(np.float64)[:, groups]
    return _without_marks(values, rounded.codes)


def round_shifts(shifts: npt.NDArray[np.float64], groups: npt.NDArray[np.uint8]) -> Rounded:
    """Numbers around 0, float64 [C, N], in steps of half the cell's root mean square; they come back within one step.

    What is not finite comes back as it was.
    """
    values, finite = _finite(shifts)
    step = (np.sqrt((values**2).mean(axis=1)) / 2).astype(np.float32)
    # Of N numbers none is beyond sqrt(N) times their root mean square: signed codes fit for any N below 2^27.
    signed = np.rint(values / np.where(step > 0, step, 1.0)[:, None]) * (step > 0)[:, None]
    left = values - signed * step[:, None] * finite
    counts = np.maximum(_sums(finite.astype(np.float64), groups), 1)
    mend = (_sums(left, groups) / counts).astype(np.float32)
    codes = np.where(signed < 0, -2 * signed - 1, 2 * signed).astype(np.uint16)
    return Rounded(_with_marks(codes, shifts), step, mend)


def shifts_of(rounded: Rounded, groups: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What `round_shifts` kept, float64 [C, N]."""
    codes = rounded.codes.astype(np.int64)
    signed = np.where(codes % 2 == 1, -(codes + 1) // 2, codes // 2)
    values = signed * rounded.scale.astype(np.float64)[:, None] + rounded.mend.astype(np.float64)[:, groups]
    return _without_marks(values, rounded.codes).astype(np.float64)


def _kl_values(codes: npt.NDArray[np.uint16], greatest: npt.NDArray[np.float32]) -> Floats:
    """What a step holds on average: the mean square of roots spread evenly over it."""
    squares = (codes.astype(np.float64) ** 2 + 1 / 12) / KL_STEPS**2
    found: Floats = squares * greatest.astype(np.float64)[:, None]
    return found


def _finite(values: npt.NDArray[np.floating]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The values with 0 for what is not finite, and which are finite."""
    finite: npt.NDArray[np.bool_] = np.isfinite(values)
    return np.where(finite, values, 0.0).astype(np.float64), finite


def _sums(values: Floats, groups: npt.NDArray[np.uint8]) -> Floats:
    """Of each group, [C, G]."""
    return np.stack([np.bincount(groups, weights=row, minlength=int(groups.max()) + 1) for row in values])


def _with_marks(codes: npt.NDArray[np.uint16], values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    marked = codes.copy()
    marked[np.isnan(values)] = _NAN
    marked[np.isposinf(values)] = _INFINITE
    marked[np.isneginf(values)] = _MINUS_INFINITE
    return marked


def _without_marks(values: Floats, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    found = values.astype(np.float32)
    found[codes == _NAN], found[codes == _INFINITE], found[codes == _MINUS_INFINITE] = np.nan, np.inf, -np.inf
    return found
