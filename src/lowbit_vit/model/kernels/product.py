"""Products of 8-bit codes with what follows them in the epilogue: scales, bias and residual sum, or GELU and its result's codes.

One kernel for int8 (sums in int32, exact) and e4m3 (sums in fp32). What it saves is traffic: int32 sums never reach memory, and neither
does a product's result before the residual is added, or in fp8 GELU's before it is coded.

The MLP's second product needs GELU's result in 8 bits, and no program sees a whole row of it. A first version gave each 128 columns a
scale of their own, by which the second product scaled its sums every 128 columns. It moved the fewest bytes and was slow
(docs/fast-path.md): two sets of sums do not fit a program's registers. Now e4m3 has its scales before the product
(`quantize.normalize_rows_towards`). int8 cannot: its product writes 16 bits, and a pass makes the codes (`quantize.gelu_rows`).

Many rows on a card with a copy engine for tiles have a kernel of their own (`bulk`), with the same epilogue.

One image gives too few tiles to fill a card. So a long depth can be cut in parts: each program sums its part, and the last to arrive at
a tile adds them up, always in the same order, and does the epilogue.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.model.kernels import arguments, bulk, tiles
from lowbit_vit.model.kernels.arguments import LARGEST, SIXTEEN_BIT, Coded, require_coded, require_device, require_matrix
from lowbit_vit.model.kernels.early import early_options, prefetch_rows, release_the_next, wait_for_the_last
from lowbit_vit.model.kernels.epilogue import corner_of_tile, gelu_codes, scaled

ARRIVALS = 1024  # tiles that a depth in parts may have
_INTERPRETED = 6  # stands for a card's multiprocessors under the interpreter


@triton.jit
def product_kernel(
    a_ptr, a_scales_ptr, w_ptr, w_scales_ptr, bias_ptr, residual_ptr, out_ptr, out_scales_ptr, sums_ptr, arrivals_ptr,
    rows, columns, depth,
    RESIDUAL: tl.constexpr, GELU_CODES: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STRIPE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One tile of a w^T with its epilogue: a [rows, depth] and w [columns, depth] in codes; the constants say which parts it has."""
    top, left = corner_of_tile(rows, columns, ROWS, COLUMNS, STRIPE)
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    part_steps = tl.cdiv(tl.cdiv(depth, DEPTH), PARTS)
    first = tl.program_id(1) * part_steps * DEPTH  # of the depth that this program sums
    k = first + tl.arange(0, DEPTH)

    if EARLY:
        release_the_next()
        if EVEN and top % (STRIPE * ROWS) == 0:  # of the programs of a stripe that read the same weights, one
            prefetch_rows(w_ptr + first, (column % columns).to(tl.int64) * depth, part_steps * DEPTH)
        wait_for_the_last()

    # Past the last row or column the first ones are read again; the result is not stored. int64: rows x columns may pass 2^31.
    a_ptrs = a_ptr + (row % rows).to(tl.int64)[:, None] * depth + k[None, :]
    w_ptrs = w_ptr + (column % columns).to(tl.int64)[None, :] * depth + k[:, None]
    integer: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if integer else tl.float32)
    for step in range(part_steps):
        if EVEN:
            a, w = tl.load(a_ptrs), tl.load(w_ptrs)
        else:
            left = depth - step * DEPTH
            a, w = tl.load(a_ptrs, mask=k[None, :] < left, other=0.0), tl.load(w_ptrs, mask=k[:, None] < left, other=0.0)
        sums = tl.dot(a, w, acc=sums, out_dtype=tl.int32 if integer else tl.float32)
        a_ptrs += DEPTH
        w_ptrs += DEPTH

    if PARTS > 1:
        own = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        of_tile = sums_ptr + tl.program_id(0).to(tl.int64) * (PARTS * ROWS * COLUMNS) + own
        tl.store(of_tile + tl.program_id(1) * (ROWS * COLUMNS), sums)
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(arrivals_ptr + tl.program_id(0), 1, sem="acq_rel") < PARTS - 1:
            return
        tl.store(arrivals_ptr + tl.program_id(0), 0)  # for the next launch
        sums = tl.load(of_tile, cache_modifier=".cg")
        for part in tl.static_range(1, PARTS):
            sums += tl.load(of_tile + part * (ROWS * COLUMNS), cache_modifier=".cg")

    x = scaled(sums, row, column, rows, columns, a_scales_ptr, w_scales_ptr, bias_ptr)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    if RESIDUAL:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if GELU_CODES:
        tl.store(out_ptr + place, gelu_codes(x, row, rows, out_scales_ptr, LARGEST, out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), mask=inside)


def multiply(
    a: Coded,
    w: Coded,
    bias: Tensor,
    *,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    arrivals: Tensor | None = None,
    tile: tiles.Tile | None = None,
) -> Tensor:
    """The product a w^T + bias + residual; in fp32 from the sums on, rounded once.

    Args:
        a: codes [M, K] and scales [M].
        w: codes [N, K] of the same dtype and scales [N].
        bias: fp16, bf16 or fp32, [N].
        dtype: of the result, fp16 or bf16.
        residual: fp16 or bf16, [M, N].
        arrivals: int32 [ARRIVALS], zeros, and zeros again afterwards; with it a long depth may be cut in parts. Two products that
            use the same must not run at the same time.
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


def multiply_to_gelu_codes(a: Coded, w: Coded, bias: Tensor, out_scales: Tensor, *, tile: tiles.Tile | None = None) -> Coded:
    """Codes of the exact GELU of a w^T + bias, in fp32 from the sums on.

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
        raise ValueError(f"a.codes: {a.codes.dtype} given; only float8_e4m3fn can do with scales that are known before the product")
    require_matrix("out_scales", out_scales, dtypes=(torch.float32,), shape=(rows,), device=bias.device)
    out = torch.empty(rows, columns, dtype=a.codes.dtype, device=bias.device)
    _launch(a, w, bias, out, residual=None, out_scales=out_scales, arrivals=None, tile=tile)
    return Coded(out, out_scales)


def _require(a: Coded, w: Coded, bias: Tensor) -> tuple[int, int]:
    """Rows and columns of the product."""
    (rows, depth), columns, device = a.codes.shape, len(w.codes), a.codes.device
    require_coded("a", a, depth=depth, device=device)
    require_coded("w", w, depth=depth, device=device)
    if w.codes.dtype != a.codes.dtype:
        raise ValueError(f"w.codes: {w.codes.dtype} given, a.codes are {a.codes.dtype}")
    require_matrix("bias", bias, dtypes=(*SIXTEEN_BIT, torch.float32), shape=(columns,), device=device)
    require_device(device, a.codes.dtype)
    return rows, columns


def _launch(
    a: Coded,
    w: Coded,
    bias: Tensor,
    out: Tensor,
    *,
    residual: Tensor | None,
    out_scales: Tensor | None,
    arrivals: Tensor | None,
    tile: tiles.Tile | None,
) -> None:
    (rows, columns), depth = out.shape, a.codes.shape[1]
    if rows == 0:
        return
    if tile is None:
        count = _INTERPRETED if arguments.INTERPRETED else multiprocessors(out.device)
        in_bulk = columns % bulk.ALIGNED == 0 and arguments.copies_in_bulk(out.device, rows)
        in_parts = arrivals is not None
        tile = tiles.tile_for(rows=rows, columns=columns, depth=depth, multiprocessors=count, in_parts=in_parts, in_bulk=in_bulk)
    if tile.bulk:
        if columns % bulk.ALIGNED:
            raise ValueError(f"tile: {columns} columns are no multiple of {bulk.ALIGNED}, which tiles that are moved in bulk need")
        bulk.launch(a, w, bias, out, residual=residual, out_scales=out_scales, tile=tile)
        return
    pieces = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    sums = a.scales  # not read where the depth is whole
    if tile.parts > 1:
        if arrivals is None or pieces > ARRIVALS:
            raise ValueError(f"tile: {tile.parts} parts given; they need arrivals, and at most {ARRIVALS} tiles; there are {pieces}")
        dtype = torch.int32 if a.codes.dtype == torch.int8 else torch.float32
        sums = torch.empty(pieces * tile.parts * tile.rows * tile.columns, dtype=dtype, device=out.device)
    early = arguments.starts_early(out.device, rows)
    product_kernel[pieces, tile.parts](
        a.codes, a.scales, w.codes, w.scales, bias, out if residual is None else residual, out,
        a.scales if out_scales is None else out_scales, sums, a.scales if arrivals is None else arrivals, rows, columns, depth,
        RESIDUAL=residual is not None, GELU_CODES=out_scales is not None, EVEN=depth % (tile.parts * tile.depth) == 0, EARLY=early,
        PARTS=tile.parts, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, STRIPE=tiles.STRIPE, LARGEST=LARGEST[a.codes.dtype],
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True, **early_options(early=early),
    )  # fmt: skip


def multiprocessors(device: torch.device) -> int:
    """Of this card."""
    return torch.cuda.get_device_properties(device).multi_processor_count
