"""GEMMs of 8-bit codes over many rows on Hopper, with the waits written out (Gluon); what it computes is what `gemm` says.

Triton waits for every int8 product before it loads on, for only sums in fp32 may be left running; and it keeps one buffer for the two
parts of a tall tile's result. Here a product runs while the next tiles arrive, whatever its type: one stage of the ring is filled as soon
as the products of the step before have ended.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.9 knows them by their new names alone, 3.6 by the old ones.
bring = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
take = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

_TYPES = {
    torch.int8: gl.int8,
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.float16: gl.float16,
    torch.bfloat16: gl.bfloat16,
}


def tiles_of(matrix: Tensor, rows: int, columns: int) -> Any:
    """How the copy engine moves tiles of a matrix."""
    shape = [rows, columns]
    return TensorDescriptor.from_tensor(matrix, shape, gl.NVMMASharedLayout.get_default_for(shape, _TYPES[matrix.dtype]))


@gluon.jit
def corner_of_tile(M, N, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, GROUP_M: gl.constexpr):
    """As `gemm.corner_of_tile`."""
    down, across = gl.cdiv(M, ROWS), gl.cdiv(N, BLOCK_N)
    group = gl.program_id(0) // (GROUP_M * across)
    height = min(down - group * GROUP_M, GROUP_M)
    within = gl.program_id(0) % (GROUP_M * across)
    return (group * GROUP_M + within % height) * ROWS, (within // height) * BLOCK_N


@gluon.jit
def load_step(
    step,
    a_tiles,
    a_below,
    w_tiles,
    a_ring,
    below_ring,
    w_ring,
    full,  # mbarriers, one a stage
    top,
    left,
    inside,  # whether there is such a step
    BELOW_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Let the copy engine fill a stage with what a step of the main loop multiplies."""
    block_m: gl.constexpr = a_tiles.block_type.shape[0]
    block_k: gl.constexpr = a_tiles.block_type.shape[1]
    stage = step % STAGES
    bar = full.index(stage)
    if BELOW_M > 0:
        mbarrier.expect(bar, a_tiles.block_type.nbytes + a_below.block_type.nbytes + w_tiles.block_type.nbytes, inside)
        bring(a_below, [top + block_m, step * block_k], bar, below_ring.index(stage), inside)
    else:
        mbarrier.expect(bar, a_tiles.block_type.nbytes + w_tiles.block_type.nbytes, inside)
    bring(a_tiles, [top, step * block_k], bar, a_ring.index(stage), inside)
    bring(w_tiles, [left, step * block_k], bar, w_ring.index(stage), inside)


@gluon.jit
def gelu_for_codes(x):
    """As `gelu.gelu_for_codes`."""
    a = gl.abs(x)
    p = a * -0.00033270983840338886 + 0.005947839468717575
    p = p * a - 0.04864365980029106
    p = p * a - 0.46358174085617065
    p = p * a - 1.1494088172912598
    p = p * a - 1.0001107454299927
    return gl.maximum(x, 0.0) - a * gl.exp2(p)


@gluon.jit
def store_tile(
    sums,
    top,
    left,
    M,
    N,
    a_scales_ptr,
    w_scales_ptr,
    bias_ptr,
    out_scales_ptr,
    out_tiles,
    out,  # a place for the result in shared memory, with the residual if RESIDUAL
    RESIDUAL: gl.constexpr,
    GELU_CODES: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """As `gemm.finish_tile`; the copy engine may still read when this returns."""
    m = (top + gl.arange(0, out_tiles.block_type.shape[0], layout=gl.SliceLayout(1, LAYOUT))) % M
    n = (left + gl.arange(0, out_tiles.block_type.shape[1], layout=gl.SliceLayout(0, LAYOUT))) % N
    x = sums.to(gl.float32) * gl.expand_dims(gl.load(a_scales_ptr + m), 1)
    x = x * gl.expand_dims(gl.load(w_scales_ptr + n), 0) + gl.expand_dims(gl.load(bias_ptr + n).to(gl.float32), 0)
    if RESIDUAL:
        x += out.load(LAYOUT).to(gl.float32)
    if GELU_CODES:
        x = gelu_for_codes(x) * gl.expand_dims(1.0 / gl.load(out_scales_ptr + m), 1)
    out.store(x.to(out_tiles.dtype))
    fence_async_shared()
    take(out_tiles, [top, left], out)


@gluon.jit
def eight_bit_gemm_wgmma_kernel(  # noqa: C901, PLR0912
    a_tiles,  # codes [M, K], tiles [BLOCK_M, BLOCK_K]
    a_below,  # the same in tiles [64, BLOCK_K], if BEBELOW_M
    a_scales_ptr,  # fp32 [M]
    w_tiles,  # codes [N, K], tiles [BLOCK_N, BLOCK_K]
    w_scales_ptr,  # fp32 [N]
    bias_ptr,  # fp16, bf16 or fp32 [N]
    residual_tiles,  # fp16 or bf16 [M, N], tiles [BLOCK_M, BLOCK_N], if RESIDUAL
    residual_below,  # the same in tiles [64, BLOCK_N], if BEBELOW_M
    out_tiles,  # fp16 or bf16 [M, N], tiles [BLOCK_M, BLOCK_N]; codes if GELU_CODES
    out_below,  # the same in tiles [64, BLOCK_N], if BEBELOW_M
    out_scales_ptr,  # fp32 [M], if GELU_CODES
    M,
    N,
    K: gl.constexpr,
    INTEGER: gl.constexpr,  # the codes are int8
    RESIDUAL: gl.constexpr,
    GELU_CODES: gl.constexpr,
    PDL: gl.constexpr,
    BELOW_M: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    num_warps: gl.constexpr,
):
    """One tile of a w^T with its epilogue, of BLOCK_M + BELOW_M rows. What lies outside a matrix is read as zeros and is not stored."""
    block_m: gl.constexpr = a_tiles.block_type.shape[0]
    block_n: gl.constexpr = w_tiles.block_type.shape[0]
    block_k: gl.constexpr = a_tiles.block_type.shape[1]
    kind: gl.constexpr = gl.int32 if INTEGER else gl.float32
    steps: gl.constexpr = (K + block_k - 1) // block_k
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, block_n, 32])
    top, left = corner_of_tile(M, N, block_m + BELOW_M, block_n, GROUP_M)
    a_ring = gl.allocate_shared_memory(a_tiles.dtype, [STAGES] + a_tiles.block_type.shape, a_tiles.layout)  # noqa: RUF005
    below_ring = a_ring
    if BELOW_M > 0:
        below_ring = gl.allocate_shared_memory(a_below.dtype, [STAGES] + a_below.block_type.shape, a_below.layout)  # noqa: RUF005
    w_ring = gl.allocate_shared_memory(w_tiles.dtype, [STAGES] + w_tiles.block_type.shape, w_tiles.layout)  # noqa: RUF005
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for first in gl.static_range(STAGES):
        mbarrier.init(full.index(first), count=1)
    if PDL:  # as `pdl.wait`
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for first in gl.static_range(STAGES - 1):
        load_step(first, a_tiles, a_below, w_tiles, a_ring, below_ring, w_ring, full, top, left, first < steps, BELOW_M, STAGES)
    sums = gl.zeros((block_m, block_n), kind, layout)
    low = gl.zeros((64, block_n), kind, layout)
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(full.index(stage), (step // STAGES) & 1)
        w = w_ring.index(stage).permute((1, 0))
        sums = warpgroup_mma(a_ring.index(stage), w, sums, is_async=True)
        # Once the products of the step before have ended, their stage is free.
        if BELOW_M > 0:
            low = warpgroup_mma(below_ring.index(stage), w, low, is_async=True)
            sums, low = warpgroup_mma_wait(num_outstanding=2, deps=(sums, low))
        else:
            sums = warpgroup_mma_wait(num_outstanding=1, deps=(sums,))
        coming = step + STAGES - 1
        load_step(coming, a_tiles, a_below, w_tiles, a_ring, below_ring, w_ring, full, top, left, coming < steps, BELOW_M, STAGES)
    if BELOW_M > 0:
        sums, low = warpgroup_mma_wait(num_outstanding=0, deps=(sums, low))
    else:
        sums = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
    for last in gl.static_range(STAGES):
        mbarrier.invalidate(full.index(last))

    # The results take the ring's place, the low rows beside the others: the copy engine reads both until the end.
    out = gl.allocate_shared_memory(out_tiles.dtype, out_tiles.block_type.shape, out_tiles.layout)
    below = out
    if BELOW_M > 0:
        below = gl.allocate_shared_memory(out_below.dtype, out_below.block_type.shape, out_below.layout)
    if RESIDUAL:
        arrived = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(arrived, count=1)
        if BELOW_M > 0:
            mbarrier.expect(arrived, residual_tiles.block_type.nbytes + residual_below.block_type.nbytes)
            bring(residual_below, [top + block_m, left], arrived, below)
        else:
            mbarrier.expect(arrived, residual_tiles.block_type.nbytes)
        bring(residual_tiles, [top, left], arrived, out)
        mbarrier.wait(arrived, 0)
        mbarrier.invalidate(arrived)
    if BELOW_M > 0:  # first, so that their registers are free for the others
        store_tile(
            low, top + block_m, left, M, N, a_scales_ptr, w_scales_ptr, bias_ptr, out_scales_ptr, out_below, below,
            RESIDUAL, GELU_CODES, layout,
        )  # fmt: skip
    store_tile(sums, top, left, M, N, a_scales_ptr, w_scales_ptr, bias_ptr, out_scales_ptr, out_tiles, out, RESIDUAL, GELU_CODES, layout)
    tma.store_wait(pendings=0)
    below._keep_alive()  # noqa: SLF001  (else its memory may be used for something else while the copy engine reads it)
