"""Rotary positions of q and k, in place in the result of the qkv GEMM.

PyTorch writes rotated copies of q and k, and attention then gives its heads in the copies' order, which costs a third copy. In place, q
and k are read and written once, and everything keeps the order of the GEMM's result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.model.kernels import pdl
from lowbit_vit.model.kernels.coded import SIXTEEN_BIT
from lowbit_vit.model.kernels.pdl import launch_dependents, wait
from lowbit_vit.model.kernels.validation import require_device, require_matrix


@triton.jit
def rotate_kernel(
    qkv_ptr,  # fp16 or bf16 [B, N, 3 H D]
    tables_ptr,  # fp16, bf16 or fp32 [N - prefix, 2 D]
    tokens,  # N
    prefix,
    width,  # H D
    INTERLEAVED: tl.constexpr,  # pairs are neighbours; else the halves of a head
    PAIRS: tl.constexpr,  # D / 2
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two, H D / 2 or more
):
    """Q or k of one token: a pair (a, b) of a head becomes (a cos - b sin, b cos + a sin), in fp32, each with its own column's table."""
    place = tl.program_id(0).to(tl.int64)
    patch = place % (tokens - prefix)
    token = place // (tokens - prefix) * tokens + prefix + patch
    pair = tl.arange(0, BLOCK)
    inside = pair < width // 2
    head, within = pair // PAIRS * (2 * PAIRS), pair % PAIRS
    if INTERLEAVED:
        first = 2 * within
        second = first + 1
    else:
        first = within
        second = within + PAIRS
    sines = tables_ptr + patch * (4 * PAIRS)
    cosines = sines + 2 * PAIRS
    if EARLY:
        launch_dependents()
    if PDL:
        wait()
    start = qkv_ptr + token * (3 * width) + tl.program_id(1) * width + head
    a = tl.load(start + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + second, mask=inside, other=0.0).to(tl.float32)
    turned_a = a * tl.load(cosines + first).to(tl.float32) - b * tl.load(sines + first).to(tl.float32)
    turned_b = b * tl.load(cosines + second).to(tl.float32) + a * tl.load(sines + second).to(tl.float32)
    tl.store(start + first, turned_a.to(qkv_ptr.dtype.element_ty), mask=inside)
    tl.store(start + second, turned_b.to(qkv_ptr.dtype.element_ty), mask=inside)


def rotate_in_place(qkv: Tensor, tables: Tensor, *, heads: int, interleaved: bool) -> None:
    """Turn q and k of all tokens after the prefix; v stays.

    Args:
        qkv: fp16 or bf16, [B, N, 3 H D], contiguous; rows q, k, v.
        tables: fp16, bf16 or fp32, [N - prefix, 2 D], contiguous: sines, then cosines, of each column of a head.
        heads: H.
        interleaved: whether columns 2 i and 2 i + 1 are a pair; else i and i + D / 2.

    Raises:
        ValueError: another dtype, shape or stride.
        Unavailable: no CUDA device.
    """
    if qkv.ndim != 3 or qkv.shape[2] % (6 * heads) or tables.ndim != 2 or not 0 < len(tables) <= qkv.shape[1]:
        shapes = f"{list(qkv.shape)} and {list(tables.shape)}"
        raise ValueError(f"qkv and tables: shapes {shapes} given, needed [B, N, 3 H D] with {heads} heads of even width and [up to N, 2 D]")
    images, tokens, columns = qkv.shape
    width = columns // 3
    require_matrix("qkv", qkv, dtypes=SIXTEEN_BIT, shape=(images, tokens, columns), device=qkv.device)
    floats = (*SIXTEEN_BIT, torch.float32)
    require_matrix("tables", tables, dtypes=floats, shape=(len(tables), 2 * width // heads), device=qkv.device)
    require_device(qkv.device)
    rotate_kernel[images * len(tables), 2](
        qkv, tables, tokens, tokens - len(tables), width, INTERLEAVED=interleaved, PAIRS=width // heads // 2,
        BLOCK=triton.next_power_of_2(width // 2), num_warps=4, **pdl.options(qkv.device, images * tokens),
    )  # fmt: skip
