"""Rows of activations to 8-bit codes with one scale a row, with the LayerNorm or the GELU before them where there is one.

One program takes a row or two, which stay in registers: a value is read once in 16 bits and written once in 8. The memory delivers a
value every few instructions of the GPU, so a value must not take many more: a row's scale is inverted once, its NaN are found by its
maximum, and GELU is a polynomial.

A pass may also compute a scale that is large enough for the row of the GEMM that follows, before that runs: by Cauchy and Schwarz no
value of it is larger than the row's length times the greatest length of a row of the weights, plus the greatest bias. For random numbers
such a scale is some nine times as large as it would have to be. e4m3, a floating-point format with denormal numbers, loses nothing that
matters by that; int8 would lose three of its bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from lowbit_vit.model.kernels import coded, pdl
from lowbit_vit.model.kernels.coded import CODES, LARGEST, SIXTEEN_BIT, Coded
from lowbit_vit.model.kernels.gelu import gelu
from lowbit_vit.model.kernels.pdl import launch_dependents, wait
from lowbit_vit.model.kernels.validation import require_device, require_matrix

WIDEST = 16384  # columns that one program's registers can hold
NORM_COLUMNS = 512  # of one warp, where there is a norm
ROWS_TOGETHER = 2  # of one program with a norm, where there are many
SMALLEST = tl.constexpr(coded.SMALLEST)
# Adding 1.5 x 2^23 to an fp32 number below 2^22 rounds it to the nearest integer, ties to even, as torch.round does; the integer's
# two's complement is then in the low bits.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def codes_of(
    scaled,  # fp32, of int8 in +-127 but for a last bit
    CODES: tl.constexpr,
):
    """8-bit codes, to nearest even. What e4m3 has no code for becomes its largest, and NaN its NaN; int8 has none, only the row's scale."""
    if CODES == tl.int8:  # noqa: SIM300  (the first is not a constant to Python)
        codes = (scaled + _ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        codes = scaled.to(CODES, fp_downcast_rounding="rtne")  # cvt.rn.satfinite
    return codes


@triton.jit
def quantize_kernel(
    x_ptr,  # fp16 or bf16 [M, K]
    gain_ptr,  # fp16, bf16 or fp32 [K], if NORM
    shift_ptr,  # as gain
    codes_ptr,  # int8 or e4m3 [M, K]
    scales_ptr,  # fp32 [M]
    reach_ptr,  # fp32 [2], if NEXT
    next_scales_ptr,  # fp32 [M], if NEXT
    rows,  # M
    columns,  # K
    eps,
    NORM: tl.constexpr,  # LayerNorm before the codes
    GELU: tl.constexpr,  # GELU before the codes
    NEXT: tl.constexpr,  # scales of the GEMM that follows, too
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
    LARGEST: tl.constexpr,  # code
    ROWS: tl.constexpr,  # of one program
    WIDTH: tl.constexpr,  # a power of two, K or more
):
    """ROWS rows of x in fp32 to codes and scales."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    within, inside = row < rows, (row < rows)[:, None] & (column < columns)[None, :]
    place = row[:, None] * columns + column[None, :]
    if EARLY:
        launch_dependents()
    if PDL:
        wait()
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        x = tl.where(inside, x - (tl.sum(x, axis=1) / columns)[:, None], 0.0)
        gain = tl.load(gain_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        x = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / columns + eps))[:, None] * gain[None, :] + shift[None, :]
    if GELU:
        x = gelu(x)
    # As integers, magnitudes have the order that they have as numbers, and NaN comes after infinity: it is not lost in a maximum.
    magnitude = tl.max(tl.abs(x).to(tl.int32, bitcast=True), axis=1).to(tl.float32, bitcast=True)
    known = tl.maximum(magnitude, SMALLEST)
    # No code says that a value was NaN or infinite, so the scale does, and the row's results are NaN: infinity less infinity is.
    scale = known / LARGEST + (magnitude - magnitude)
    tl.store(scales_ptr + row, scale, mask=within)
    codes = codes_of(x * (LARGEST / known)[:, None], codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + place, codes, mask=inside)
    if NEXT:
        kept = tl.where(inside, codes.to(tl.float32), 0.0)
        bound = tl.sqrt(tl.sum(kept * kept, axis=1)) * scale * tl.load(reach_ptr) + tl.load(reach_ptr + 1)
        tl.store(next_scales_ptr + row, tl.maximum(bound, SMALLEST) / LARGEST + (bound - bound), mask=within)


def quantize_rows(x: Tensor, *, codes: torch.dtype) -> Coded:
    """Codes of each row: scale = the row's largest magnitude / 127 (int8) or / 448 (e4m3), code = value / scale, rounded to nearest even.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        codes: int8 or float8_e4m3fn.

    Returns:
        Codes [M, K] and scales [M]. A row of zeros is zeros; a row with a NaN or an infinity has a NaN for its scale.

    Raises:
        ValueError: another dtype, shape or stride.
        Unavailable: no CUDA device, or fp8 on one without it.
    """
    return _quantize(x, codes)


def gelu_rows(x: Tensor, *, codes: torch.dtype) -> Coded:
    """As `quantize_rows`, of the exact GELU of each value, which is computed in fp32 and never rounded to 16 bits.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        codes: int8 or float8_e4m3fn.

    Raises:
        ValueError, Unavailable: as `quantize_rows`.
    """
    return _quantize(x, codes, gelu=True)


def reach_of(w: Coded, bias: Tensor) -> Tensor:
    """What bounds a GEMM with these weights: the greatest length of a row of w, and the greatest magnitude of a bias; fp32, [2]."""
    lengths = w.codes.float().square().sum(dim=1).sqrt() * w.scales
    return torch.stack([lengths.max(), bias.abs().max().float()])


def normalize_rows_towards(x: Tensor, norm: nn.LayerNorm, reach: Tensor, *, codes: torch.dtype) -> tuple[Coded, Tensor]:
    """As `normalize_rows`, with scales that are large enough for the GEMM that follows.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        norm: over K columns, with weight and bias.
        reach: of that GEMM, as `reach_of`.
        codes: int8 or float8_e4m3fn.

    Returns:
        The codes, and fp32 [M]: of each row of the GEMM's result a scale under which none of its values is above the largest code. NaN
        where the row's own scale is.

    Raises:
        ValueError, Unavailable: as `quantize_rows`.
    """
    require_matrix("reach", reach, dtypes=(torch.float32,), shape=(2,), device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    return _quantize(x, codes, norm=norm, following=(reach, scales)), scales


def normalize_rows(x: Tensor, norm: nn.LayerNorm, *, codes: torch.dtype) -> Coded:
    """As `quantize_rows`, of the LayerNorm of each row, which is computed in fp32 and never rounded to 16 bits.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        norm: over K columns, with weight and bias.
        codes: int8 or float8_e4m3fn.

    Raises:
        ValueError, Unavailable: as `quantize_rows`.
    """
    return _quantize(x, codes, norm=norm)


def _quantize(
    x: Tensor, codes: torch.dtype, *, norm: nn.LayerNorm | None = None, gelu: bool = False, following: tuple[Tensor, Tensor] | None = None
) -> Coded:
    if x.ndim != 2 or not 0 < x.shape[1] <= WIDEST:
        raise ValueError(f"x: shape {list(x.shape)} given, needed [rows, columns] with 1 to {WIDEST} columns")
    if codes not in CODES:
        raise ValueError(f"codes: {codes} given, allowed: {', '.join(map(str, CODES))}")
    rows, columns = x.shape
    require_matrix("x", x, dtypes=SIXTEEN_BIT, shape=(rows, columns), device=x.device)
    if norm is not None:
        for name, tensor in (("norm.weight", norm.weight), ("norm.bias", norm.bias)):
            require_matrix(name, tensor, dtypes=(*SIXTEEN_BIT, torch.float32), shape=(columns,), device=x.device)
    require_device(x.device, codes)
    made = Coded(torch.empty_like(x, dtype=codes), torch.empty(rows, dtype=torch.float32, device=x.device))
    if rows == 0:
        return made
    width = triton.next_power_of_2(columns)
    gain, shift = (x, x) if norm is None else (norm.weight, norm.bias)  # not read without a norm
    reach, next_scales = following or (made.scales, made.scales)  # the same
    together = norm is not None and rows > pdl.MOST_ROWS and width <= 8 * NORM_COLUMNS
    of_program = ROWS_TOGETHER if together else 1
    quantize_kernel[triton.cdiv(rows, of_program),](
        x, gain, shift, made.codes, made.scales, reach, next_scales, rows, columns, 0.0 if norm is None else norm.eps,
        NORM=norm is not None, GELU=gelu, NEXT=following is not None, LARGEST=LARGEST[codes], ROWS=of_program, WIDTH=width,
        num_warps=max(1, min(8, width // (1024 if norm is None else NORM_COLUMNS))), enable_fp_fusion=True, **pdl.options(x.device, rows),
    )  # fmt: skip
    return made
