"""GEMMs with NF4 weights as bitsandbytes packs them, and the decoding alone; every decoded weight is bitsandbytes' to the bit.

The weights are decoded into memory that the next layer uses again, then multiplied as any other. Decoding in the GEMM's main loop is 2.7
to 8.5 times slower at every shape of a ViT-L/16, from 1 row to 6,304 (an H100; docs/fast-path.md), since each tile of rows decodes all
weights again.

The same codes can also be turned into 8-bit codes, for `gemm`: 4 bits in memory, 8 in the arithmetic. And adapters that were trained
over the codes can be added while they are decoded, so that a layer with adapters costs one GEMM as well.

Format: byte i holds weight 2i in its upper and weight 2i + 1 in its lower four bits; 64 weights of a row share one absmax. With
double quantization an absmax is a byte: one of 256 levels, times a second-level scale of 256 such bytes, plus one mean a layer.
Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314, section 3.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from lowbit_vit.model.kernels.coded import CODES, SIXTEEN_BIT, Coded
from lowbit_vit.model.kernels.quantize import codes_of
from lowbit_vit.model.kernels.validation import require_device, require_matrix

BLOCK = 64  # weights that share one absmax
NESTED_BLOCK = 256  # absmax bytes that share one second-level scale
LEVELS = 256  # that an absmax byte can stand for
TOGETHER = 4  # layers that one launch decodes at most
_BLOCKS = 64  # that one program decodes
_BLOCKS_TOGETHER = 32  # the same where layers are decoded together
_ROWS = 64  # of one block each, that one program decodes where an update is added
_LEAST_RANK = 16  # that the tensor cores multiply


class NF4Weights(NamedTuple):
    """A layer's codes and constants, in bitsandbytes' own layout.

    Attributes:
        codes: uint8, [N, K / 2].
        levels: fp32, [16]: what each code stands for.
        absmax: [N, K / 64]; fp32, or uint8 with double quantization.
        nested_levels: fp32, [256]; with double quantization, as the next two.
        nested_scales: fp32, [ceil(N K / 64 / 256)].
        nested_mean: fp32, [1].
        up: fp16 or bf16, [N, R]; with adapters, as the next one. What is decoded is then the weights + up down.
        down: of the same dtype, [R, K].
    """

    codes: Tensor
    levels: Tensor
    absmax: Tensor
    nested_levels: Tensor | None = None
    nested_scales: Tensor | None = None
    nested_mean: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.codes.shape[0], 2 * self.codes.shape[1]


@triton.jit
def absmax_of(
    block,  # int32 [B], places of blocks in the layer
    inside,  # bool [B], whether there is such a block
    absmax_ptr,  # fp32 [blocks]; uint8 if NESTED
    nested_levels_ptr,  # fp32 [256], if NESTED
    nested_scales_ptr,  # fp32 [blocks / NESTED_BLOCK], if NESTED
    nested_mean_ptr,  # fp32 [1], if NESTED
    NESTED: tl.constexpr,  # double quantization
    NESTED_BLOCK: tl.constexpr,
):
    """The absmax of blocks in fp32, [B]: loaded, or with double quantization level x scale + mean."""
    absmax = tl.load(absmax_ptr + block, mask=inside, other=0)
    if NESTED:
        level = tl.load(nested_levels_ptr + absmax.to(tl.int32))
        absmax = level * tl.load(nested_scales_ptr + block // NESTED_BLOCK, mask=inside, other=0.0) + tl.load(nested_mean_ptr)
    return absmax


@triton.jit
def decoded_pairs(
    codes_ptr,  # uint8 [blocks, BLOCK / 2]
    levels_ptr,  # fp32 [16]
    block,  # int32 [B], places of blocks in the layer
    inside,  # bool [B], whether there is such a block
    absmax,  # fp32 [B]
    BLOCK: tl.constexpr,
):
    """The even and the odd weights of blocks in fp32, [B, BLOCK / 2] each."""
    byte = block.to(tl.int64)[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    packed = tl.load(codes_ptr + byte, mask=inside[:, None], other=0).to(tl.int32)
    return tl.load(levels_ptr + (packed >> 4)) * absmax[:, None], tl.load(levels_ptr + (packed & 15)) * absmax[:, None]


@triton.jit
def store_pairs(
    first,  # fp32 [B, BLOCK / 2], the even weights of blocks
    second,  # the odd ones
    block,  # int32 [B], their places in the layer
    inside,  # bool [B], whether there is such a block
    row_scales_ptr,  # fp32 [N], if TO_CODES
    out_ptr,  # fp16, bf16 or fp32 [N, K]; int8 or e4m3 if TO_CODES
    of_row,  # blocks of a row
    TO_CODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Decoded blocks in 16 or 32 bits, or as codes."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    if TO_CODES:
        scales = tl.load(row_scales_ptr + block // of_row, mask=inside, other=1.0)[:, None]
        first, second = codes_of(first / scales, dtype), codes_of(second / scales, dtype)
    else:
        first, second = first.to(dtype), second.to(dtype)
    place = block.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + place, tl.interleave(first, second), mask=inside[:, None])


@triton.jit
def decode_kernel(
    codes_ptr,  # uint8 [N, K / 2]
    levels_ptr,  # fp32 [16]
    absmax_ptr,  # fp32 [N, K / BLOCK]; uint8 if NESTED
    nested_levels_ptr,  # fp32 [256], if NESTED
    nested_scales_ptr,  # fp32 [blocks / NESTED_BLOCK], if NESTED
    nested_mean_ptr,  # fp32 [1], if NESTED
    row_scales_ptr,  # fp32 [N], if TO_CODES
    out_ptr,  # fp16, bf16 or fp32 [N, K]; int8 or e4m3 if TO_CODES
    count,  # blocks of the layer
    of_row,  # blocks of a row
    NESTED: tl.constexpr,  # double quantization
    NESTED_BLOCK: tl.constexpr,
    TO_CODES: tl.constexpr,
    BLOCKS: tl.constexpr,  # of one program
    BLOCK: tl.constexpr,
):
    """Decode BLOCKS blocks of weights."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < count
    absmax = absmax_of(block, inside, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED, NESTED_BLOCK)
    first, second = decoded_pairs(codes_ptr, levels_ptr, block, inside, absmax, BLOCK)
    store_pairs(first, second, block, inside, row_scales_ptr, out_ptr, of_row, TO_CODES, BLOCK)


@triton.jit
def decode_together_kernel(
    codes_0, codes_1, codes_2, codes_3,  # uint8 [N, K / 2] of each layer
    absmax_0, absmax_1, absmax_2, absmax_3,  # fp32 [N, K / BLOCK]; uint8 if NESTED
    nested_scales_0, nested_scales_1, nested_scales_2, nested_scales_3,  # fp32 [blocks / NESTED_BLOCK], if NESTED
    nested_mean_0, nested_mean_1, nested_mean_2, nested_mean_3,  # fp32 [1], if NESTED
    row_scales_0, row_scales_1, row_scales_2, row_scales_3,  # fp32 [N], if TO_CODES
    levels_ptr,  # fp32 [16]
    nested_levels_ptr,  # fp32 [256], if NESTED
    out_ptr,  # fp16, bf16 or fp32, the weights of all layers; int8 or e4m3 if TO_CODES
    count_0, count_1, count_2, count_3,  # blocks of each layer
    of_row_0, of_row_1, of_row_2, of_row_3,  # blocks of a row of each layer
    program_1, program_2, program_3,  # the first program of each layer but the first
    NESTED: tl.constexpr,  # double quantization
    NESTED_BLOCK: tl.constexpr,
    TO_CODES: tl.constexpr,
    BLOCKS: tl.constexpr,  # of one program
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Decode BLOCKS blocks of one of four layers, which lie one after another in out."""
    program = tl.program_id(0)
    codes_ptr, absmax_ptr, nested_scales_ptr, nested_mean_ptr = codes_0, absmax_0, nested_scales_0, nested_mean_0
    row_scales_ptr, of_row, first_program, count, before = row_scales_0, of_row_0, 0, count_0, 0
    if program >= program_3:
        codes_ptr, absmax_ptr, nested_scales_ptr, nested_mean_ptr = codes_3, absmax_3, nested_scales_3, nested_mean_3
        row_scales_ptr, of_row, first_program, count, before = row_scales_3, of_row_3, program_3, count_3, count_0 + count_1 + count_2
    elif program >= program_2:
        codes_ptr, absmax_ptr, nested_scales_ptr, nested_mean_ptr = codes_2, absmax_2, nested_scales_2, nested_mean_2
        row_scales_ptr, of_row, first_program, count, before = row_scales_2, of_row_2, program_2, count_2, count_0 + count_1
    elif program >= program_1:
        codes_ptr, absmax_ptr, nested_scales_ptr, nested_mean_ptr = codes_1, absmax_1, nested_scales_1, nested_mean_1
        row_scales_ptr, of_row, first_program, count, before = row_scales_1, of_row_1, program_1, count_1, count_0
    block = (program - first_program) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < count
    absmax = absmax_of(block, inside, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED, NESTED_BLOCK)
    first, second = decoded_pairs(codes_ptr, levels_ptr, block, inside, absmax, BLOCK)
    out_of_layer = out_ptr + tl.cast(before, tl.int64) * BLOCK
    store_pairs(first, second, block, inside, row_scales_ptr, out_of_layer, of_row, TO_CODES, BLOCK)


@triton.jit
def decode_adapted_kernel(
    codes_ptr,  # uint8 [N, K / 2]
    levels_ptr,  # fp32 [16]
    absmax_ptr,  # fp32 [N, K / BLOCK]; uint8 if NESTED
    nested_levels_ptr,  # fp32 [256], if NESTED
    nested_scales_ptr,  # fp32 [blocks / NESTED_BLOCK], if NESTED
    nested_mean_ptr,  # fp32 [1], if NESTED
    up_ptr,  # fp16 or bf16 [N, rank]
    down_ptr,  # as up, [rank, K]
    out_ptr,  # fp16 or bf16 [N, K]
    rows,  # N
    of_row,  # blocks of a row
    rank,
    NESTED: tl.constexpr,  # double quantization
    NESTED_BLOCK: tl.constexpr,
    RANK: tl.constexpr,  # a power of two, rank or more
    ROWS: tl.constexpr,  # of one program
    BLOCK: tl.constexpr,
):
    """Decode one block of each of ROWS rows, and add up down."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    block = row * of_row + tl.program_id(1)
    absmax = absmax_of(block, inside, absmax_ptr, nested_levels_ptr, nested_scales_ptr, nested_mean_ptr, NESTED, NESTED_BLOCK)
    first, second = decoded_pairs(codes_ptr, levels_ptr, block, inside, absmax, BLOCK)
    r = tl.arange(0, RANK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    up = tl.load(up_ptr + row[:, None] * rank + r[None, :], mask=inside[:, None] & (r < rank)[None, :], other=0.0)
    down = tl.load(down_ptr + r[:, None] * (of_row * BLOCK) + column[None, :], mask=(r < rank)[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(tl.dot(up, down), (ROWS, BLOCK // 2, 2)))
    place = block.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(out_ptr + place, tl.interleave((first + even).to(dtype), (second + odd).to(dtype)), mask=inside[:, None])


def decode(w: NF4Weights, dtype: torch.dtype) -> Tensor:
    """The weights [N, K] in fp16, bf16 or fp32: level x absmax, and what adapters add, in fp32, rounded once.

    Raises:
        ValueError: tensors that do not fit each other, or another dtype.
        Unavailable: no CUDA device.
    """
    if dtype not in (*SIXTEEN_BIT, torch.float32):
        raise ValueError(f"dtype: {dtype} asked for, allowed: float16, bfloat16, float32")
    out = torch.empty(w.shape, dtype=dtype, device=w.codes.device)
    decode_into(w, out)
    return out


def decode_into(w: NF4Weights, out: Tensor) -> None:
    """As `decode`, into memory that is there: `out` fp16, bf16 or fp32, [N, K], contiguous.

    Raises:
        ValueError, Unavailable: as `decode`.
    """
    _require(w)
    require_matrix("out", out, dtypes=(*SIXTEEN_BIT, torch.float32), shape=w.shape, device=w.codes.device)
    _decode(w, out, None)


def decode_together(layers: Sequence[NF4Weights], out: Tensor, scales: Sequence[Tensor] | None = None) -> None:
    """The weights of layers one after another, as `decode` of each, into memory that is there; in one launch for every TOGETHER layers.

    Four separate launches for a block's layers take 1.5 times as long (docs/fast-path.md).

    Args:
        layers: without adapters, all with double quantization or all without.
        out: fp16, bf16 or fp32, with a place for each weight, contiguous; with scales int8 or float8_e4m3fn.
        scales: of each layer, as of `decode_to_codes`; None: no codes are made.

    Raises:
        ValueError, Unavailable: as `decode`; or a layer with adapters, or layers of both kinds.
    """
    if any(w.up is not None for w in layers):
        raise ValueError("layers: one has adapters; decode it alone")
    if len({w.nested_levels is None for w in layers}) > 1:
        raise ValueError("layers: some have double quantization and some have not; decode them apart")
    for w in layers:
        _require(w)
    total = sum(w.shape[0] * w.shape[1] for w in layers)
    dtypes = (*SIXTEEN_BIT, torch.float32) if scales is None else CODES
    require_matrix("out", out, dtypes=dtypes, shape=(total,), device=layers[0].codes.device)
    if scales is not None:
        require_device(out.device, out.dtype)
        for w, given in zip(layers, scales, strict=True):
            require_matrix("scales", given, dtypes=(torch.float32,), shape=(w.shape[0],), device=out.device)
    done = 0
    for start in range(0, len(layers), TOGETHER):
        some = layers[start : start + TOGETHER]
        count = sum(w.shape[0] * w.shape[1] for w in some)
        _decode_some(some, out[done : done + count], None if scales is None else scales[start : start + TOGETHER])
        done += count


def decode_to_codes(w: NF4Weights, scales: Tensor, *, codes: torch.dtype) -> Coded:
    """The weights as 8-bit codes, code = weight / scale of its row, rounded to nearest even.

    Args:
        w: the weights.
        scales: fp32, [N]: the largest absmax of each row / 127 (int8) or / 448 (e4m3).
        codes: int8 or float8_e4m3fn.

    Raises:
        ValueError, Unavailable: as `decode`; or there are adapters, with which the scales would not be those of the rows.
    """
    if w.up is not None:
        raise ValueError("w.up: adapters given; only weights in 16 bits can have them added")
    if codes not in CODES:
        raise ValueError(f"codes: {codes} asked for, allowed: {', '.join(map(str, CODES))}")
    _require(w)
    require_matrix("scales", scales, dtypes=(torch.float32,), shape=(w.shape[0],), device=w.codes.device)
    require_device(w.codes.device, codes)
    out = torch.empty(w.shape, dtype=codes, device=w.codes.device)
    _decode(w, out, scales)
    return Coded(out, scales)


def multiply_nf4(x: Tensor, w: NF4Weights, bias: Tensor) -> Tensor:
    """X w^T + bias with the weights decoded before.

    Args:
        x: fp16 or bf16, [M, K], contiguous.
        w: the weights [N, K].
        bias: of x's dtype, [N].

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
    # Freed when this returns, so the allocator gives the next layer the same memory, inside a captured graph as well.
    return functional.linear(x, decode(w, x.dtype), bias)


def _decode(w: NF4Weights, out: Tensor, scales: Tensor | None) -> None:
    if w.up is not None and w.down is not None:
        rows, rank = w.up.shape
        of_row = w.shape[1] // BLOCK
        decode_adapted_kernel[triton.cdiv(rows, _ROWS), of_row](
            w.codes, w.levels, w.absmax, *_nested(w), w.up, w.down, out, rows, of_row, rank,
            NESTED=w.nested_levels is not None, NESTED_BLOCK=NESTED_BLOCK, RANK=max(_LEAST_RANK, triton.next_power_of_2(rank)),
            ROWS=_ROWS, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        return
    count = w.absmax.numel()
    decode_kernel[triton.cdiv(count, _BLOCKS),](
        w.codes, w.levels, w.absmax, *_nested(w), w.levels if scales is None else scales, out, count, w.shape[1] // BLOCK,
        NESTED=w.nested_levels is not None, NESTED_BLOCK=NESTED_BLOCK, TO_CODES=scales is not None,
        BLOCKS=_BLOCKS, BLOCK=BLOCK, num_warps=4,
        enable_fp_fusion=False,  # level x scale + mean is rounded twice in bitsandbytes
    )  # fmt: skip


def _decode_some(layers: Sequence[NF4Weights], out: Tensor, scales: Sequence[Tensor] | None) -> None:
    """At most TOGETHER layers; places that are left repeat the last layer, and no program comes to them."""
    filled = [*layers, *[layers[-1]] * (TOGETHER - len(layers))]
    counts = [w.absmax.numel() for w in filled]
    ends = list(accumulate(triton.cdiv(count, _BLOCKS_TOGETHER) for count in counts))
    nested = [_nested(w) for w in filled]
    row_scales = [w.levels for w in filled] if scales is None else [*scales, *[scales[-1]] * (TOGETHER - len(scales))]
    decode_together_kernel[ends[len(layers) - 1],](
        *(w.codes for w in filled), *(w.absmax for w in filled), *(scales for _, scales, _ in nested), *(mean for _, _, mean in nested),
        *row_scales, filled[0].levels, nested[0][0], out, *counts, *(w.shape[1] // BLOCK for w in filled), *ends[:-1],
        NESTED=filled[0].nested_levels is not None, NESTED_BLOCK=NESTED_BLOCK, TO_CODES=scales is not None,
        BLOCKS=_BLOCKS_TOGETHER, BLOCK=BLOCK, num_warps=4,
        enable_fp_fusion=False,
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
    if (w.up is None) != (w.down is None):
        raise ValueError("w: adapters need up and down, or none of them")
    if w.up is not None and w.down is not None:
        rank = len(w.down)
        require_matrix("w.up", w.up, dtypes=SIXTEEN_BIT, shape=(columns, rank), device=device)
        require_matrix("w.down", w.down, dtypes=(w.up.dtype,), shape=(rank, depth), device=device)
    require_device(device)
