"""Rows of activations to 8-bit codes with one scale a row, with the LayerNorm before them where there is one.

One program takes one row, which stays in registers: it is read once in 16 bits and written once in 8.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from lowbit_vit.model.kernels.arguments import CODES, LARGEST, SIXTEEN_BIT, Coded, require_device, require_matrix
from lowbit_vit.model.kernels.rounding import codes_of, scale_of

WIDEST = 16384  # columns that one program's registers can hold


@triton.jit
def quantize_kernel(
    x_ptr, gain_ptr, shift_ptr, codes_ptr, scales_ptr, columns, eps,
    NORM: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row of x [rows, columns] in fp32, normalized if NORM, to codes and a scale."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(x, axis=0) / columns
        x = tl.where(inside, x - mean, 0.0)
        x = x / tl.sqrt(tl.sum(x * x, axis=0) / columns + eps)
        gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x = x * gain + shift
    scale = scale_of(tl.max(tl.abs(x), axis=0), tl.sum(x - x, axis=0), LARGEST)
    tl.store(scales_ptr + row, scale)
    tl.store(codes_ptr + row * columns + column, codes_of(x, scale, LARGEST, codes_ptr.dtype.element_ty), mask=inside)


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
    return _quantize(x, None, codes)


def normalize_rows(x: Tensor, norm: nn.LayerNorm, *, codes: torch.dtype) -> Coded:
    """As `quantize_rows`, of the LayerNorm of each row, which is computed in fp32 and never rounded to 16 bits.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        norm: over K columns, with weight and bias.
        codes: int8 or float8_e4m3fn.

    Raises:
        ValueError, Unavailable: as `quantize_rows`.
    """
    return _quantize(x, norm, codes)


def _quantize(x: Tensor, norm: nn.LayerNorm | None, codes: torch.dtype) -> Coded:
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
    quantize_kernel[(rows,)](
        x, gain, shift, made.codes, made.scales, columns, 0.0 if norm is None else norm.eps,
        NORM=norm is not None, LARGEST=LARGEST[codes], WIDTH=width,
        num_warps=max(1, min(8, width // 256)), enable_fp_fusion=True,
    )  # fmt: skip
    return made
