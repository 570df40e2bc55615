"""What both product kernels do alike: which tile a program has, and what becomes of its sums."""

import triton
import triton.language as tl

from lowbit_vit.model.kernels.gelu import gelu
from lowbit_vit.model.kernels.rounding import codes_of


@triton.jit
def corner_of_tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIPE: tl.constexpr):
    """First row and column of this program's tile. Programs go down a stripe of row tiles before they go to the next tile of columns."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    stripe = tl.program_id(0) // (STRIPE * across)
    height = min(down - stripe * STRIPE, STRIPE)
    within = tl.program_id(0) % (STRIPE * across)
    return (stripe * STRIPE + within % height) * ROWS, (within // height) * COLUMNS


@triton.jit
def scaled(sums, row, column, rows, columns, a_scales_ptr, w_scales_ptr, bias_ptr):
    """The product in fp32: sums x both scales + bias. Past the last row or column the first ones are read again."""
    x = sums.to(tl.float32) * tl.load(a_scales_ptr + row % rows)[:, None]
    return x * tl.load(w_scales_ptr + column % columns)[None, :] + tl.load(bias_ptr + column % columns).to(tl.float32)[None, :]


@triton.jit
def gelu_codes(x, row, rows, out_scales_ptr, LARGEST: tl.constexpr, CODES: tl.constexpr):
    """Codes of GELU by scales that are known."""
    inverse = 1.0 / tl.load(out_scales_ptr + row % rows)
    return codes_of(gelu(x) * inverse[:, None], LARGEST, CODES)
