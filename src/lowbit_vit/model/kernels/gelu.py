"""GELU inside a kernel, in few instructions, and a pass of it over the result of a GEMM."""

import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.model.kernels.coded import SIXTEEN_BIT
from lowbit_vit.model.kernels.validation import require_device, require_matrix

_VALUES = 1024  # of one program


@triton.jit
def gelu(x):
    """The exact GELU, x Phi(x), in fp32, within 1.1e-7 of the larger of 1 and |x|, in some eleven instructions; libdevice's erf takes more.

    x Phi(x) = max(x, 0) - |x| Phi(-|x|), and log2 Phi(-a) is smooth: a polynomial of degree 8, fitted on [0, 6] to least weighted error
    (the weight: what it moves the result), falls on after 6, where Phi is below 1e-9.
    """
    a = tl.abs(x)
    p = a * -1.1658878520393046e-06 + 1.847926432674285e-05
    p = p * a - 8.092736970866099e-05
    p = p * a - 0.0004119878285564482
    p = p * a + 0.007464728783816099
    p = p * a - 0.052823543548583984
    p = p * a - 0.4590669870376587
    p = p * a - 1.1511331796646118
    p = p * a - 0.9999982118606567
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def gelu_for_codes(x):
    """As `gelu`, by a polynomial of degree 5: within 1.1e-5, and within 1e-4 of itself where it is above 1e-3.

    An e4m3 code is up to a sixteenth away from its value; in the epilogue of a GEMM three instructions of some fifteen count.
    """
    a = tl.abs(x)
    p = a * -0.00033270983840338886 + 0.005947839468717575
    p = p * a - 0.04864365980029106
    p = p * a - 0.46358174085617065
    p = p * a - 1.1494088172912598
    p = p * a - 1.0001107454299927
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def gelu_kernel(
    x_ptr,  # fp16 or bf16 [count]
    count,
    VALUES: tl.constexpr,  # of one program
):
    """X becomes its GELU. Programs go from the end to the start: what was written last is still in the L2 cache."""
    place = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = place < count
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_ptr + place, gelu(x).to(x_ptr.dtype.element_ty), mask=inside)


def gelu_in_place(x: Tensor) -> None:
    """Each value becomes its exact GELU, computed in fp32 and rounded once; fp16 or bf16, [M, N], contiguous.

    Right after the GEMM that wrote x, it finds the end of it in the L2 cache (docs/fast-path.md has the times).

    Raises:
        ValueError: another dtype, shape or stride.
        Unavailable: no CUDA device.
    """
    if x.ndim != 2:
        raise ValueError(f"x: shape {list(x.shape)} given, needed [rows, columns]")
    require_matrix("x", x, dtypes=SIXTEEN_BIT, shape=tuple(x.shape), device=x.device)
    require_device(x.device)
    if x.numel():
        gelu_kernel[triton.cdiv(x.numel(), _VALUES),](x, x.numel(), VALUES=_VALUES, num_warps=4)
