"""GEMMs of 8-bit codes with what follows them in the epilogue: scales, bias and residual sum, or GELU and its result's codes.

One arithmetic for int8 (sums in int32, exact) and e4m3 (sums in fp32). What it saves is traffic: int32 sums never reach memory, and
neither does a GEMM's result before the residual is added, or in fp8 GELU's before it is coded.

The MLP's second GEMM needs GELU's result in 8 bits, and no program sees a whole row of it. e4m3 has its scales before the GEMM
(`quantize.normalize_rows_towards`). int8 cannot: its GEMM writes 16 bits, and a pass makes the codes (`quantize.gelu_rows`). A scale for
every 128 columns instead moves the fewest bytes and is slow (docs/fast-path.md): two sets of sums do not fit a program's registers.

Two kernels have that epilogue. Many rows on a GPU with a copy engine for tiles (TMA; compute capability 9.0 and up) go to the one that
loads and stores whole tiles: addresses are two numbers and not a register for each vector, and the result leaves through shared memory in
whole lines. So a multiprocessor holds two programs of the largest tile, and one's epilogue runs under the other's main loop
(benchmarks/records/fast_tiles.json). Everything else goes to the one with loads of its own. One image gives too few tiles to fill a GPU,
so there K can be split: each program sums its part, and the last to arrive at a tile adds them up, always in the same order, and does the
epilogue.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lowbit_vit.model.kernels import pdl, wgmma
from lowbit_vit.model.kernels.coded import SIXTEEN_BIT, Coded
from lowbit_vit.model.kernels.gelu import gelu_for_codes
from lowbit_vit.model.kernels.pdl import launch_dependents, prefetch_rows, wait
from lowbit_vit.model.kernels.quantize import codes_of
from lowbit_vit.model.kernels.validation import INTERPRETED, multiprocessors, require_coded, require_device, require_matrix

ARRIVALS = 1024  # tiles that a split K may have
TMA_FROM = (9, 0)  # compute capability
TMA_COLUMNS = 16  # rows of a result must start at a multiple of 16 bytes, in 8 bits as well


# ---------------------------------------------------------------------------------------------------------------- tiles


class Tile(NamedTuple):
    """One program's share of a GEMM.

    Attributes:
        block_m: rows of the result.
        block_n: columns of the result.
        block_k: taken at once in the main loop.
        num_warps: of the program.
        num_stages: loads in flight.
        split_k: parts of K, a program for each.
        tma: whether the copy engine moves it; then K is not split.
        below_m: more rows of the result, under the others, with sums of their own: a power of two, as block_m; with TMA alone.
        gluon: whether it is `wgmma`'s kernel; with TMA alone.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    tma: bool = False
    below_m: int = 0
    gluon: bool = False

    @property
    def rows(self) -> int:
        """Of the result."""
        return self.block_m + self.below_m


GROUP_M = 8  # tiles of rows that share their weights' tiles in the L2 cache
# Largest first. At one image the weights come from memory, and it is the loads in flight that count: the small tiles have as many as fit.
TILES = (
    Tile(128, 128, 128, 4, 3),
    Tile(64, 128, 128, 4, 6),
    Tile(64, 64, 256, 4, 3),
)
TMA_TILE = TILES[0]._replace(tma=True)
TALL_TILE = Tile(128, 128, 64, 4, 5, tma=True, below_m=64)  # reads less for a sum; two programs fit a multiprocessor as well
TALL_FROM = 1.0  # of the time that the other tile takes, by rows and turns
BY_GLUON: tuple[torch.dtype, ...] = ()  # codes whose tiles that the copy engine moves are `wgmma`'s
SHARED_TILE = TILES[1]._replace(num_stages=4)  # two share a multiprocessor
SHARED_ROWS = 640  # up to which it was seen to be faster than larger tiles
SPLIT_TILE = Tile(64, 64, 128, 4, 8, split_k=2)
LONG_K = 2048  # from which adding up two parts costs less than it saves


def tile_for(*, rows: int, columns: int, depth: int, multiprocessors: int, split_k: bool, tma: bool, tall: bool = False) -> Tile:
    """The largest tile that gives two thirds of the multiprocessors a piece; where none does, the one with most pieces.

    A rule and not a search at start-up, so that every process runs the same kernel and gives the same numbers. Candidates and rule come
    from benchmarks/records/fast_tiles.json (`benchmarks/fast_path.py --tiles`), which times them at the shapes of a ViT-L/16 at batch 1
    and 32; at 257 and 577 rows from benchmarks/records/fast_tiles-few.json. Two thirds: at 197 rows, large tiles on 96 of 132
    multiprocessors were faster than small ones on all, on 64 they were not. At 257, 96 of 128 rows were slower than 160 of 64, two on a
    multiprocessor, and a K in parts than a whole one, since 160 parts do not run at once.

    Args:
        rows: M of the result.
        columns: N of the result.
        depth: K.
        multiprocessors: of the GPU.
        split_k: whether a long K may be split where no tile gives so many pieces.
        tma: whether the largest tile may be moved by the copy engine.
        tall: whether it may then have rows below: where that leaves less of the last turn idle. Two programs share a multiprocessor, so
            a turn has twice as many tiles.
    """

    def pieces(tile: Tile) -> int:
        return int(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.block_n))

    def turns(tile: Tile) -> int:
        return int(triton.cdiv(pieces(tile), 2 * multiprocessors))

    filling = next((tile for tile in TILES if 3 * pieces(tile) >= 2 * multiprocessors), None)
    if filling is None and split_k and depth >= LONG_K and SPLIT_TILE.split_k * pieces(SPLIT_TILE) <= multiprocessors:
        return SPLIT_TILE
    if filling == TILES[0] and rows <= SHARED_ROWS and pieces(SHARED_TILE) <= 2 * multiprocessors:
        return SHARED_TILE
    if filling == TILES[0] and tma:
        return TALL_TILE if tall and turns(TALL_TILE) * TALL_TILE.rows <= TALL_FROM * turns(TMA_TILE) * TMA_TILE.rows else TMA_TILE
    return filling or max(TILES, key=pieces)


def uses_tma(device: torch.device, rows: int) -> bool:
    """Whether the copy engine moves the tiles of GEMMs over so many rows: where there is one and it pays."""
    return not INTERPRETED and rows > pdl.MOST_ROWS and torch.cuda.get_device_capability(device) >= TMA_FROM


# -------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def corner_of_tile(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of this program's tile. Programs go down a group of row tiles before they go to the next tile of columns."""
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (GROUP_M * across)
    height = min(down - group * GROUP_M, GROUP_M)
    within = tl.program_id(0) % (GROUP_M * across)
    return (group * GROUP_M + within % height) * BLOCK_M, (within // height) * BLOCK_N


@triton.jit
def scaled(
    sums,  # int32 or fp32 [BLOCK_M, BLOCK_N]
    m,  # int32 [BLOCK_M], rows of the tile
    n,  # int32 [BLOCK_N], its columns
    M,
    N,
    a_scales_ptr,  # fp32 [M]
    w_scales_ptr,  # fp32 [N]
    bias_ptr,  # fp16, bf16 or fp32 [N]
):
    """The GEMM in fp32: sums x both scales + bias. Past the last row or column the first ones are read again."""
    x = sums.to(tl.float32) * tl.load(a_scales_ptr + m % M)[:, None]
    return x * tl.load(w_scales_ptr + n % N)[None, :] + tl.load(bias_ptr + n % N).to(tl.float32)[None, :]


@triton.jit
def gelu_codes(
    x,  # fp32 [BLOCK_M, BLOCK_N]
    m,  # int32 [BLOCK_M], rows of the tile
    M,
    out_scales_ptr,  # fp32 [M]
    CODES: tl.constexpr,
):
    """Codes of GELU by scales that are known."""
    inverse = 1.0 / tl.load(out_scales_ptr + m % M)
    return codes_of(gelu_for_codes(x) * inverse[:, None], CODES)


@triton.jit
def eight_bit_gemm_kernel(
    a_ptr,  # codes [M, K]
    a_scales_ptr,  # fp32 [M]
    w_ptr,  # codes [N, K]
    w_scales_ptr,  # fp32 [N]
    bias_ptr,  # fp16, bf16 or fp32 [N]
    residual_ptr,  # fp16 or bf16 [M, N], if RESIDUAL
    out_ptr,  # fp16 or bf16 [M, N]; codes if GELU_CODES
    out_scales_ptr,  # fp32 [M], if GELU_CODES
    sums_ptr,  # int32 or fp32 [tiles, SPLIT_K, BLOCK_M, BLOCK_N], if SPLIT_K > 1
    arrivals_ptr,  # int32 [tiles], zeros before and after, if SPLIT_K > 1
    M,
    N,
    K,
    RESIDUAL: tl.constexpr,
    GELU_CODES: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of SPLIT_K x BLOCK_K
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of a w^T with its epilogue."""
    top, left = corner_of_tile(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m, n = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    first = tl.program_id(1) * steps * BLOCK_K  # of the part of K that this program sums
    k = first + tl.arange(0, BLOCK_K)

    if EARLY:
        launch_dependents()
        if EVEN_K and top % (GROUP_M * BLOCK_M) == 0:  # of the programs of a group that read the same weights, one
            prefetch_rows(w_ptr + first, (n % N).to(tl.int64) * K, steps * BLOCK_K)
    if PDL:
        wait()

    # Past the last row or column the first ones are read again; the result is not stored. int64: M x N may pass 2^31.
    a_ptrs = a_ptr + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    w_ptrs = w_ptr + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    integer: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if integer else tl.float32)
    for step in range(steps):
        if EVEN_K:
            a, w = tl.load(a_ptrs), tl.load(w_ptrs)
        else:
            rest = K - step * BLOCK_K
            a, w = tl.load(a_ptrs, mask=k[None, :] < rest, other=0.0), tl.load(w_ptrs, mask=k[:, None] < rest, other=0.0)
        sums = tl.dot(a, w, acc=sums, out_dtype=tl.int32 if integer else tl.float32)
        a_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    if SPLIT_K > 1:
        own = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        of_tile = sums_ptr + tl.program_id(0).to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N) + own
        tl.store(of_tile + tl.program_id(1) * (BLOCK_M * BLOCK_N), sums)
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(arrivals_ptr + tl.program_id(0), 1, sem="acq_rel") < SPLIT_K - 1:
            return
        tl.store(arrivals_ptr + tl.program_id(0), 0)  # for the next launch
        sums = tl.load(of_tile, cache_modifier=".cg")
        for part in tl.static_range(1, SPLIT_K):
            sums += tl.load(of_tile + part * (BLOCK_M * BLOCK_N), cache_modifier=".cg")

    x = scaled(sums, m, n, M, N, a_scales_ptr, w_scales_ptr, bias_ptr)
    inside = (m < M)[:, None] & (n < N)[None, :]
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    if RESIDUAL:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if GELU_CODES:
        tl.store(out_ptr + place, gelu_codes(x, m, M, out_scales_ptr, out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def eight_bit_gemm_tma_kernel(
    a_tiles,  # codes [M, K], tiles [BLOCK_M, BLOCK_K]
    a_below,  # the same in tiles [BELOW_M, BLOCK_K], if BELOW_M
    a_scales_ptr,  # fp32 [M]
    w_tiles,  # codes [N, K], tiles [BLOCK_N, BLOCK_K]
    w_scales_ptr,  # fp32 [N]
    bias_ptr,  # fp16, bf16 or fp32 [N]
    residual_tiles,  # fp16 or bf16 [M, N], tiles [BLOCK_M, BLOCK_N], if RESIDUAL
    residual_below,  # the same in tiles [BELOW_M, BLOCK_N], if BELOW_M
    out_tiles,  # fp16 or bf16 [M, N], tiles [BLOCK_M, BLOCK_N]; codes if GELU_CODES
    out_below,  # the same in tiles [BELOW_M, BLOCK_N], if BELOW_M
    out_scales_ptr,  # fp32 [M], if GELU_CODES
    M,
    N,
    K: tl.constexpr,  # known: ptxas overlaps products of large tiles with loads only where the number of steps is
    INTEGER: tl.constexpr,  # the codes are int8
    RESIDUAL: tl.constexpr,
    GELU_CODES: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BELOW_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of a w^T with its epilogue. What lies outside a matrix is read as zeros and is not stored."""
    top, left = corner_of_tile(M, N, BLOCK_M + BELOW_M, BLOCK_N, GROUP_M)
    kind: tl.constexpr = tl.int32 if INTEGER else tl.float32
    if EARLY:
        launch_dependents()
    if PDL:
        wait()
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=kind)
    if BELOW_M > 0:
        sums_below = tl.zeros((BELOW_M, BLOCK_N), dtype=kind)
        for k in range(0, K, BLOCK_K):
            w = w_tiles.load([left, k]).T
            sums = tl.dot(a_tiles.load([top, k]), w, acc=sums, out_dtype=kind)
            sums_below = tl.dot(a_below.load([top + BLOCK_M, k]), w, acc=sums_below, out_dtype=kind)
        finish_tile(
            sums, top, left, M, N, a_scales_ptr, w_scales_ptr, bias_ptr, residual_tiles, out_tiles, out_scales_ptr,
            RESIDUAL, GELU_CODES, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        finish_tile(
            sums_below, top + BLOCK_M, left, M, N, a_scales_ptr, w_scales_ptr, bias_ptr, residual_below, out_below, out_scales_ptr,
            RESIDUAL, GELU_CODES, BELOW_M, BLOCK_N,
        )  # fmt: skip
    else:
        for k in range(0, K, BLOCK_K):
            sums = tl.dot(a_tiles.load([top, k]), w_tiles.load([left, k]).T, acc=sums, out_dtype=kind)
        finish_tile(
            sums, top, left, M, N, a_scales_ptr, w_scales_ptr, bias_ptr, residual_tiles, out_tiles, out_scales_ptr,
            RESIDUAL, GELU_CODES, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def finish_tile(
    sums,  # int32 or fp32 [ROWS, COLUMNS]
    top,
    left,
    M,
    N,
    a_scales_ptr,  # fp32 [M]
    w_scales_ptr,  # fp32 [N]
    bias_ptr,  # fp16, bf16 or fp32 [N]
    residual_tiles,  # fp16 or bf16 [M, N], tiles [ROWS, COLUMNS], if RESIDUAL
    out_tiles,  # fp16 or bf16 [M, N], tiles [ROWS, COLUMNS]; codes if GELU_CODES
    out_scales_ptr,  # fp32 [M], if GELU_CODES
    RESIDUAL: tl.constexpr,
    GELU_CODES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The epilogue of a tile that the copy engine moves."""
    m, n = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    x = scaled(sums, m, n, M, N, a_scales_ptr, w_scales_ptr, bias_ptr)
    if RESIDUAL:
        x += residual_tiles.load([top, left]).to(tl.float32)
    if GELU_CODES:
        out_tiles.store([top, left], gelu_codes(x, m, M, out_scales_ptr, out_tiles.dtype))
    else:
        out_tiles.store([top, left], x.to(out_tiles.dtype))


# ------------------------------------------------------------------------------------------------------------- launches


def multiply(
    a: Coded,
    w: Coded,
    bias: Tensor,
    *,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    arrivals: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """A w^T + bias + residual; in fp32 from the sums on, rounded once.

    Args:
        a: codes [M, K] and scales [M].
        w: codes [N, K] of the same dtype and scales [N].
        bias: fp16, bf16 or fp32, [N].
        dtype: of the result, fp16 or bf16.
        residual: fp16 or bf16, [M, N].
        arrivals: int32 [ARRIVALS], zeros, and zeros again afterwards; with it a long K may be split. Two GEMMs that use the same must
            not run at the same time.
        tile: None: chosen by shape.

    Returns:
        [M, N].

    Raises:
        ValueError: arguments that do not fit each other.
        Unavailable: no CUDA device, or fp8 on one without it.
    """
    if dtype not in SIXTEEN_BIT:
        raise ValueError(f"dtype: {dtype} asked for, allowed: float16, bfloat16")
    rows, columns = _require(a, w, bias)
    if residual is not None:
        require_matrix("residual", residual, dtypes=SIXTEEN_BIT, shape=(rows, columns), device=bias.device)
    out = torch.empty(rows, columns, dtype=dtype, device=bias.device)
    if arrivals is not None:
        require_matrix("arrivals", arrivals, dtypes=(torch.int32,), shape=(ARRIVALS,), device=bias.device)
    _launch(a, w, bias, out, residual=residual, out_scales=None, arrivals=arrivals, tile=tile)
    return out


def multiply_to_gelu_codes(a: Coded, w: Coded, bias: Tensor, out_scales: Tensor, *, tile: Tile | None = None) -> Coded:
    """Codes of the GELU of a w^T + bias, in fp32 from the sums on; the exact GELU to within 1.1e-5, `gelu.gelu_for_codes`.

    Args:
        a: e4m3 codes [M, K] and scales [M].
        w: e4m3 codes [N, K] and scales [N].
        bias: fp16, bf16 or fp32, [N].
        out_scales: fp32, [M], of the result, large enough for it: what is above the largest code becomes the largest code.
        tile: None: chosen by shape.

    Returns:
        Codes [M, N] with these scales.

    Raises:
        ValueError, Unavailable: as `multiply`; other codes than e4m3.
    """
    rows, columns = _require(a, w, bias)
    if a.codes.dtype != torch.float8_e4m3fn:
        raise ValueError(f"a.codes: {a.codes.dtype} given; only float8_e4m3fn can do with scales that are known before the GEMM")
    require_matrix("out_scales", out_scales, dtypes=(torch.float32,), shape=(rows,), device=bias.device)
    out = torch.empty(rows, columns, dtype=a.codes.dtype, device=bias.device)
    _launch(a, w, bias, out, residual=None, out_scales=out_scales, arrivals=None, tile=tile)
    return Coded(out, out_scales)


def _require(a: Coded, w: Coded, bias: Tensor) -> tuple[int, int]:
    """M and N."""
    (rows, depth), columns, device = a.codes.shape, len(w.codes), a.codes.device
    require_coded("a", a, depth=depth, device=device)
    require_coded("w", w, depth=depth, device=device)
    if w.codes.dtype != a.codes.dtype:
        raise ValueError(f"w.codes: {w.codes.dtype} given, a.codes are {a.codes.dtype}")
    require_matrix("bias", bias, dtypes=(*SIXTEEN_BIT, torch.float32), shape=(columns,), device=device)
    require_device(device, a.codes.dtype)
    return rows, columns


def _tiles_of(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """How the copy engine moves tiles of a matrix."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _launch(
    a: Coded,
    w: Coded,
    bias: Tensor,
    out: Tensor,
    *,
    residual: Tensor | None,
    out_scales: Tensor | None,
    arrivals: Tensor | None,
    tile: Tile | None,
) -> None:
    (rows, columns), depth = out.shape, a.codes.shape[1]
    if rows == 0:
        return
    if tile is None:
        count = multiprocessors(out.device)
        tma = columns % TMA_COLUMNS == 0 and uses_tma(out.device, rows)
        gluon = a.codes.dtype in BY_GLUON
        tall = (
            gluon or a.codes.dtype == torch.float8_e4m3fn
        )  # Triton does not overlap products of int8 with loads, in tall tiles still less
        tile = tile_for(rows=rows, columns=columns, depth=depth, multiprocessors=count, split_k=arrivals is not None, tma=tma, tall=tall)
        tile = tile._replace(gluon=tile.tma and gluon)
    pieces = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.block_n)
    residual_ptr, out_scales_ptr = out if residual is None else residual, a.scales if out_scales is None else out_scales  # or not read
    constants: dict[str, Any] = {
        "RESIDUAL": residual is not None,
        "GELU_CODES": out_scales is not None,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP_M": GROUP_M,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
        **pdl.options(out.device, rows),
    }
    if tile.tma:
        if columns % TMA_COLUMNS:
            raise ValueError(f"tile: {columns} columns are no multiple of {TMA_COLUMNS}, which tiles that the copy engine moves need")
        tiles_of = wgmma.tiles_of if tile.gluon else _tiles_of
        parts = tile.block_m, tile.below_m or tile.block_m
        arguments = (
            *(tiles_of(a.codes, part, tile.block_k) for part in parts), a.scales,
            tiles_of(w.codes, tile.block_n, tile.block_k), w.scales, bias,
            *(tiles_of(matrix, part, tile.block_n) for matrix in (residual_ptr, out) for part in parts), out_scales_ptr,
            rows, columns, depth,
        )  # fmt: skip
        constants |= {"INTEGER": a.codes.dtype == torch.int8, "BELOW_M": tile.below_m}
        if tile.gluon:
            of_tiles = ("EARLY", "BLOCK_M", "BLOCK_N", "BLOCK_K", "num_stages")  # known from the tiles, or written out
            kept = {name: value for name, value in constants.items() if name not in of_tiles}
            wgmma.eight_bit_gemm_wgmma_kernel[pieces,](*arguments, STAGES=tile.num_stages, **kept)
        else:
            eight_bit_gemm_tma_kernel[pieces,](*arguments, **constants)
        return
    sums = a.scales  # not read where K is whole
    if tile.split_k > 1:
        if arrivals is None or pieces > ARRIVALS:
            raise ValueError(f"tile: {tile.split_k} parts of K given; they need arrivals, and at most {ARRIVALS} tiles; there are {pieces}")
        dtype = torch.int32 if a.codes.dtype == torch.int8 else torch.float32
        sums = torch.empty(pieces * tile.split_k * tile.block_m * tile.block_n, dtype=dtype, device=out.device)
    eight_bit_gemm_kernel[pieces, tile.split_k](
        a.codes, a.scales, w.codes, w.scales, bias, residual_ptr, out, out_scales_ptr, sums, a.scales if arrivals is None else arrivals,
        rows, columns, depth, EVEN_K=depth % (tile.split_k * tile.block_k) == 0, SPLIT_K=tile.split_k, **constants,
    )  # fmt: skip
