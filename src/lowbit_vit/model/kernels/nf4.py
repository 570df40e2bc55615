"""Products with NF4 weights as bitsandbytes packs them, and the decoding alone; every decoded weight is bitsandbytes' to the bit.

Few rows: the weights are decoded in the product's main loop and no decoded weight reaches memory; what a row of tiles decodes, the
next one decodes again. Many rows: decoded once into memory that the next layer uses again, then an ordinary product. `FEW_ROWS`
is where one ends and the other begins.

The same codes can also be turned into 8-bit codes, for `product`: 4 bits in memory, 8 in the arithmetic.

Format: byte i holds weight 2i in its upper and weight 2i + 1 in its lower four bits; 64 weights of a row share one absmax. With
double quantization an absmax is a byte: one of 256 levels, times a second-level scale of 256 such bytes, plus one mean a layer.
Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314, section 3.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from lowbit_vit.model.kernels import arguments, tiles
from lowbit_vit.model.kernels.arguments import CODES, LARGEST, SIXTEEN_BIT, Coded, require_device, require_matrix
from lowbit_vit.model.kernels.product import multiprocessors
from lowbit_vit.model.kernels.rounding import codes_of

BLOCK = 64  # weights that share one absmax
NESTED_BLOCK = 256  # absmax bytes that share one second-level scale
LEVELS = 256  # that an absmax byte can stand for
# Up to so many rows of activations the weights are decoded in the main loop. One image of ViT-L/16 has 197. Not measured yet.
FEW_ROWS = 256
_BYTES = 1024  # of codes that one program decodes
_INTERPRETED_PROGRAMS = 4


class NF4Weights(NamedTuple):
    """A layer's codes and constants, in bitsandbytes' own layout.

    Attributes:
        codes: uint8, [N, K / 2].
        levels: fp32, [16]: what each code stands for.
        absmax: [N, K / 64]; fp32, or uint8 with double quantization.
        nested_levels: fp32, [256]; with double quantization, as the next two.
        nested_scales: fp32, [ceil(N K / 64 / 256)].
        nested_mean: fp32, [1].
    """

    codes: Tensor
    levels: Tensor
    absmax: Tensor
    nested_levels: Tensor | None = None
    nested_scales: Tensor | None = None
    nested_mean: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.codes.shape[0], 2 * self.codes.shape[1]


@triton.jit
def absmax_of(block, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr):
    """The absmax of blocks in fp32: loaded, or with double quantization level x scale + mean."""
    absmax = tl.load(absmax_ptr + block)
    if NESTED:
        level = tl.load(nested_levels_ptr + absmax.to(tl.int32))
        absmax = level * tl.load(nested_scales_ptr + block // NESTED_BLOCK) + tl.load(nested_mean_ptr)
    return absmax


@triton.jit
def decode_kernel(
    codes_ptr, levels_ptr, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, row_scales_ptr, out_ptr, count, depth,
    NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr, TO_CODES: tl.constexpr, LARGEST: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Decode BYTES of `count` bytes into twice as many weights; `depth` and the row scales serve 8-bit codes alone."""
    start = tl.program_id(0).to(tl.int64) * BYTES
    byte = start + tl.arange(0, BYTES)
    packed = tl.load(codes_ptr + byte, mask=byte < count, other=0).to(tl.int32)
    block = tl.minimum(byte, count - 1) // 32  # a byte holds 2 of a block's 64 weights
    absmax = absmax_of(block, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED, NESTED_BLOCK)
    first = tl.load(levels_ptr + (packed >> 4)) * absmax
    second = tl.load(levels_ptr + (packed & 15)) * absmax
    if TO_CODES:
        scales = tl.load(row_scales_ptr + tl.minimum(byte, count - 1) * 2 // depth)
        first = codes_of(first, scales, LARGEST, out_ptr.dtype.element_ty)
        second = codes_of(second, scales, LARGEST, out_ptr.dtype.element_ty)
    else:
        first, second = first.to(out_ptr.dtype.element_ty), second.to(out_ptr.dtype.element_ty)
    place = start * 2 + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + place, tl.interleave(first, second), mask=place < 2 * count)


@triton.jit
def nf4_product_kernel(
    x_ptr, codes_ptr, levels_ptr, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, bias_ptr, out_ptr,
    rows, columns, depth,
    NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of x w^T + bias: x [rows, depth], w [columns, depth] decoded a block at a time, DEPTH of each row; sums in fp32."""
    # The result is made transposed: a Hopper card takes the left side of a product from registers, where the weights are decoded.
    across = tl.cdiv(columns, COLUMNS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    x_ptrs = x_ptr + (row % rows).to(tl.int64)[None, :] * depth + tl.arange(0, DEPTH)[:, None]
    code_ptrs = codes_ptr + (column % columns).to(tl.int64)[:, None] * (depth // 2) + tl.arange(0, DEPTH // 2)[None, :]
    block = (column % columns) * (depth // DEPTH)
    sums = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    for step in range(depth // DEPTH):
        packed = tl.load(code_ptrs).to(tl.int32)
        absmax = absmax_of(block + step, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED, NESTED_BLOCK)[:, None]
        first = (tl.load(levels_ptr + (packed >> 4)) * absmax).to(x_ptr.dtype.element_ty)
        second = (tl.load(levels_ptr + (packed & 15)) * absmax).to(x_ptr.dtype.element_ty)
        sums = tl.dot(tl.interleave(first, second), tl.load(x_ptrs), acc=sums)
        x_ptrs += DEPTH
        code_ptrs += DEPTH // 2
    sums += tl.load(bias_ptr + column % columns).to(tl.float32)[:, None]
    place = row.to(tl.int64)[None, :] * columns + column[:, None]
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=(column < columns)[:, None] & (row < rows)[None, :])


def decode(w: NF4Weights, dtype: torch.dtype) -> Tensor:
    """The weights [N, K] in fp16, bf16 or fp32: level x absmax in fp32, rounded once.

    Raises:
        ValueError: tensors that do not fit each other, or another dtype.
        Unavailable: no CUDA device.
    """
    if dtype not in (*SIXTEEN_BIT, torch.float32):
        raise ValueError(f"dtype: {dtype} asked for, allowed: float16, bfloat16, float32")
    _require(w)
    out = torch.empty(w.shape, dtype=dtype, device=w.codes.device)
    _decode(w, out, None)
    return out


def decode_to_codes(w: NF4Weights, scales: Tensor, *, codes: torch.dtype) -> Coded:
    """The weights as 8-bit codes, code = weight / scale of its row, rounded to nearest even.

    Args:
        w: the weights.
        scales: fp32, [N]: the largest absmax of each row / 127 (int8) or / 448 (e4m3).
        codes: int8 or float8_e4m3fn.

    Raises:
        ValueError, Unavailable: as `decode`.
    """
    if codes not in CODES:
        raise ValueError(f"codes: {codes} asked for, allowed: {', '.join(map(str, CODES))}")
    _require(w)
    require_matrix("scales", scales, dtypes=(torch.float32,), shape=(w.shape[0],), device=w.codes.device)
    require_device(w.codes.device, codes)
    out = torch.empty(w.shape, dtype=codes, device=w.codes.device)
    _decode(w, out, scales)
    return Coded(out, scales)


def multiply_nf4(x: Tensor, w: NF4Weights, bias: Tensor, *, tile: tiles.Tile | None = None, few_rows: int = FEW_ROWS) -> Tensor:
    """The product x w^T + bias, decoded in the main loop where x has few rows, else decoded first.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        w: the weights [N, K].
        bias: of x's dtype, [N].
        tile: of the main loop; None: chosen by shape.
        few_rows: up to so many the main loop decodes.

    Returns:
        [M, N] in x's dtype.

    Raises:
        ValueError, Unavailable: as `decode`.
    """
    _require(w)
    columns, depth = w.shape
    if x.ndim != 2:
        raise ValueError(f"x: shape {list(x.shape)} given, needed [rows, {depth}]")
    require_matrix("x", x, dtypes=SIXTEEN_BIT, shape=(len(x), depth), device=w.codes.device)
    require_matrix("bias", bias, dtypes=(x.dtype,), shape=(columns,), device=w.codes.device)
    if len(x) > few_rows:
        # Freed when this returns, so the allocator gives the next layer the same memory, inside a captured graph as well.
        return functional.linear(x, decode(w, x.dtype), bias)
    out = torch.empty(len(x), columns, dtype=x.dtype, device=x.device)
    if len(x) == 0:
        return out
    if tile is None:
        programs = _INTERPRETED_PROGRAMS if arguments.INTERPRETED else multiprocessors(x.device)
        tile = tiles.tile_for(tiles.NF4, rows=len(x), columns=columns, programs=programs)
    if tile.depth != BLOCK:
        raise ValueError(f"tile: {tile} has another depth than a block, {BLOCK}")
    grid = (triton.cdiv(len(x), tile.rows) * triton.cdiv(columns, tile.columns),)
    nf4_product_kernel[grid](
        x, w.codes, w.levels, w.absmax, *_nested(w), bias, out, len(x), columns, depth,
        NESTED=w.nested_levels is not None, NESTED_BLOCK=NESTED_BLOCK, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _decode(w: NF4Weights, out: Tensor, scales: Tensor | None) -> None:
    count = w.codes.numel()
    decode_kernel[triton.cdiv(count, _BYTES),](
        w.codes, w.levels, w.absmax, *_nested(w), w.levels if scales is None else scales, out, count, w.shape[1],
        NESTED=w.nested_levels is not None, NESTED_BLOCK=NESTED_BLOCK, TO_CODES=scales is not None,
        LARGEST=LARGEST.get(out.dtype, 0.0), BYTES=_BYTES, num_warps=4,
        enable_fp_fusion=False,  # level x scale + mean is rounded twice in bitsandbytes
    )  # fmt: skip


def _nested(w: NF4Weights) -> tuple[Tensor, Tensor, Tensor]:
    """The constants of double quantization; without it, something that is not read."""
    if w.nested_levels is None or w.nested_scales is None or w.nested_mean is None:
        return w.levels, w.levels, w.levels
    return w.nested_levels, w.nested_scales, w.nested_mean


def _require(w: NF4Weights) -> None:
    device = w.codes.device
    if w.codes.ndim != 2 or w.shape[1] % BLOCK or not w.codes.numel():
        raise ValueError(f"w.codes: shape {list(w.codes.shape)} given, needed [N, K / 2] with K a multiple of {BLOCK}")
    columns, depth = w.shape
    require_matrix("w.codes", w.codes, dtypes=(torch.uint8,), shape=(columns, depth // 2), device=device)
    require_matrix("w.levels", w.levels, dtypes=(torch.float32,), shape=(16,), device=device)
    nested = [part is not None for part in (w.nested_levels, w.nested_scales, w.nested_mean)]
    if any(nested) != all(nested):
        raise ValueError("w: double quantization needs nested_levels, nested_scales and nested_mean, or none of them")
    dtype = torch.uint8 if all(nested) else torch.float32
    require_matrix("w.absmax", w.absmax, dtypes=(dtype,), shape=(columns, depth // BLOCK), device=device)
    if all(nested):
        sizes = {"levels": LEVELS, "scales": triton.cdiv(w.absmax.numel(), NESTED_BLOCK), "mean": 1}
        for (name, size), part in zip(sizes.items(), _nested(w), strict=True):
            require_matrix(f"w.nested_{name}", part, dtypes=(torch.float32,), shape=(size,), device=device)
    require_device(device)
