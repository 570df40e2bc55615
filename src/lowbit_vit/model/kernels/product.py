"""Products of 8-bit codes with everything that follows them in the epilogue: scales, bias, GELU, residual, the next quantization.

One kernel for int8 (sums in int32, exact) and e4m3 (sums in fp32). What it saves is traffic: int32 sums, GELU's input and GELU's
result in 16 bits never reach memory.

The MLP's second product needs GELU's result in 8 bits, and no program sees a whole row of it. Three ways were weighed, in bytes a
value of GELU's result, the product's own reading left aside: a pass of its own takes 2 + 2 + 1 (written, read, written again);
a row maximum kept by atomics, with the second product quantizing as it loads, takes 2, makes it read 2 for each tile of columns
instead of 1, and puts a conversion into its main loop; a scale for each GROUP columns, which one tile knows by itself, takes 1.
The last is used: the second product then scales its sums once each GROUP columns, and the finer scales are nearer to the values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.model.kernels import arguments, tiles
from lowbit_vit.model.kernels.arguments import GROUP, LARGEST, SIXTEEN_BIT, Coded, require_coded, require_device, require_matrix
from lowbit_vit.model.kernels.rounding import codes_of, scale_of

_HALF_ROOT = tl.constexpr(0.7071067811865476)
_STRIPE = 8  # tiles of rows that share their weights' tiles in the second-level cache
_INTERPRETED = 6  # stands for a card's multiprocessors under the interpreter


@triton.jit
def product_kernel(
    a_ptr, a_scales_ptr, w_ptr, w_scales_ptr, bias_ptr, residual_ptr, out_ptr, out_scales_ptr, rows, columns, depth,
    GROUPED: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, QUANTIZE: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STRIPE: tl.constexpr, GROUP: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One tile of a w^T with its epilogue: a [rows, depth] and w [columns, depth] in codes; the constants say which parts it has."""
    # Programs go down a stripe of row tiles before they go to the next tile of columns.
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    stripe = tl.program_id(0) // (STRIPE * across)
    height = min(down - stripe * STRIPE, STRIPE)
    within = tl.program_id(0) % (STRIPE * across)
    row = (stripe * STRIPE + within % height) * ROWS + tl.arange(0, ROWS)
    column = (within // height) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)

    # Past the last row or column the first ones are read again; the result is not stored. int64: rows x columns may pass 2^31.
    a_ptrs = a_ptr + (row % rows).to(tl.int64)[:, None] * depth + k[None, :]
    w_ptrs = w_ptr + (column % columns).to(tl.int64)[None, :] * depth + k[:, None]
    integer: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    if GROUPED:
        groups = tl.cdiv(depth, GROUP)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    else:
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if integer else tl.float32)
    for step in range(tl.cdiv(depth, DEPTH)):
        if EVEN:
            a, w = tl.load(a_ptrs), tl.load(w_ptrs)
        else:
            left = depth - step * DEPTH
            a, w = tl.load(a_ptrs, mask=k[None, :] < left, other=0.0), tl.load(w_ptrs, mask=k[:, None] < left, other=0.0)
        if GROUPED:
            part = tl.dot(a, w, out_dtype=tl.int32 if integer else tl.float32)
            a_scales = tl.load(a_scales_ptr + (row % rows) * groups + step)
            sums += part.to(tl.float32) * a_scales[:, None]
        else:
            sums = tl.dot(a, w, acc=sums, out_dtype=tl.int32 if integer else tl.float32)
        a_ptrs += DEPTH
        w_ptrs += DEPTH

    x = sums.to(tl.float32)
    if not GROUPED:
        x = x * tl.load(a_scales_ptr + row % rows)[:, None]
    x = x * tl.load(w_scales_ptr + column % columns)[None, :] + tl.load(bias_ptr + column % columns).to(tl.float32)[None, :]
    if GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * _HALF_ROOT))
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    if RESIDUAL:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if QUANTIZE:
        x = tl.where((column < columns)[None, :], x, 0.0)
        spans: tl.constexpr = COLUMNS // GROUP
        parts = tl.reshape(x, (ROWS, spans, GROUP))
        scales = scale_of(tl.max(tl.abs(parts), axis=2), tl.sum(parts - parts, axis=2), LARGEST)
        codes = tl.reshape(codes_of(parts, scales[:, :, None], LARGEST, out_ptr.dtype.element_ty), (ROWS, COLUMNS))
        tl.store(out_ptr + place, codes, mask=inside)
        groups_out = tl.cdiv(columns, GROUP)
        span = (within // height) * spans + tl.arange(0, spans)
        known = (row < rows)[:, None] & (span < groups_out)[None, :]
        tl.store(out_scales_ptr + row[:, None] * groups_out + span[None, :], scales, mask=known)
    else:
        tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), mask=inside)


def multiply(
    a: Coded,
    w: Coded,
    bias: Tensor,
    *,
    dtype: torch.dtype,
    gelu: bool = False,
    residual: Tensor | None = None,
    tile: tiles.Tile | None = None,
) -> Tensor:
    """The product a w^T + bias, then GELU (exact, with erf), then + residual; in fp32 from the sums on, rounded once.

    Args:
        a: codes [M, K]; scales [M] or [M, ceil(K / GROUP)].
        w: codes [N, K] of the same dtype; scales [N].
        bias: fp16, bf16 or fp32, [N].
        dtype: of the result, fp16 or bf16.
        gelu: whether GELU follows.
        residual: fp16 or bf16, [M, N].
        tile: None: chosen by shape.

    Returns:
        [M, N].

    Raises:
        ValueError: arguments that do not fit each other.
        Unavailable: no CUDA device, or fp8 on one without it.
    """
    if dtype not in SIXTEEN_BIT:
        raise ValueError(f"dtype: {dtype} asked for, allowed: float16, bfloat16")
    out = torch.empty(len(a.codes), len(w.codes), dtype=dtype, device=a.codes.device)
    if residual is not None:
        require_matrix("residual", residual, dtypes=SIXTEEN_BIT, shape=tuple(out.shape), device=out.device)
    _launch(a, w, bias, out, None, gelu=gelu, residual=residual, tile=tile)
    return out


def multiply_to_codes(a: Coded, w: Coded, bias: Tensor, *, gelu: bool = False, tile: tiles.Tile | None = None) -> Coded:
    """As `multiply`, with the result quantized in the epilogue, one scale for each GROUP columns of a row.

    Returns:
        Codes [M, N] of the dtype of `a`, scales [M, ceil(N / GROUP)].

    Raises:
        ValueError, Unavailable: as `multiply`.
    """
    rows, columns = len(a.codes), len(w.codes)
    out = torch.empty(rows, columns, dtype=a.codes.dtype, device=a.codes.device)
    scales = torch.empty(rows, triton.cdiv(columns, GROUP), dtype=torch.float32, device=out.device)
    _launch(a, w, bias, out, scales, gelu=gelu, residual=None, tile=tile)
    return Coded(out, scales)


def _launch(
    a: Coded,
    w: Coded,
    bias: Tensor,
    out: Tensor,
    out_scales: Tensor | None,
    *,
    gelu: bool,
    residual: Tensor | None,
    tile: tiles.Tile | None,
) -> None:
    rows, columns = out.shape
    depth, device = a.codes.shape[-1], a.codes.device
    require_coded("a", a, depth=depth, device=device, grouped=True)
    require_coded("w", w, depth=depth, device=device, grouped=False)
    if w.codes.dtype != a.codes.dtype:
        raise ValueError(f"w.codes: {w.codes.dtype} given, a.codes are {a.codes.dtype}")
    require_matrix("bias", bias, dtypes=(*SIXTEEN_BIT, torch.float32), shape=(columns,), device=device)
    require_device(device, a.codes.dtype)
    if rows == 0:
        return
    grouped, quantize = a.scales.ndim == 2, out_scales is not None
    if tile is None:
        count = _INTERPRETED if arguments.INTERPRETED else multiprocessors(device)
        tile = tiles.tile_for(tiles.EIGHT_BIT, rows=rows, columns=columns, multiprocessors=count, multiple=GROUP if quantize else 1)
    if (grouped and tile.depth != GROUP) or (quantize and tile.columns % GROUP):
        raise ValueError(f"tile: {tile} does not fit scales of {GROUP} columns")
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    product_kernel[grid](
        a.codes, a.scales, w.codes, w.scales, bias, out if residual is None else residual,
        out, a.scales if out_scales is None else out_scales, rows, columns, depth,
        GROUPED=grouped, GELU=gelu, RESIDUAL=residual is not None, QUANTIZE=quantize, EVEN=depth % tile.depth == 0,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, STRIPE=_STRIPE, GROUP=GROUP, LARGEST=LARGEST[a.codes.dtype],
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def multiprocessors(device: torch.device) -> int:
    """Of this card."""
    return torch.cuda.get_device_properties(device).multi_processor_count
