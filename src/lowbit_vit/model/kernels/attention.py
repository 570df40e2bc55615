"""Attention over few tokens, straight from the fused qkv GEMM's result to the codes that the out GEMM takes.

A program holds all keys and values of one head of one image in shared memory, so a softmax needs no running maximum: scores, one
maximum, exponentials, sum. What it saves beside a general kernel is the result in 16 bits, the pass that makes codes of it, and, at one
image, the launch that a general kernel cannot overlap with its neighbours.

No program sees a whole row of the result, so codes need a scale that is known before: a value of attention is an average of the image's
values (softmax's weights are positive and sum to 1), so none is larger than the largest of them, and that has a bound by Cauchy and
Schwarz (`quantize`). So all rows of an image share one scale. e4m3 can do with one so loose; int8 cannot, and takes 16 bits.
"""

from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.attention import CODED_HEAD_WIDTH as HEAD_WIDTH
from lowbit_vit.model.attention import MOST_CODED_TOKENS as MOST_TOKENS
from lowbit_vit.model.kernels import pdl
from lowbit_vit.model.kernels.coded import SIXTEEN_BIT, Coded
from lowbit_vit.model.kernels.pdl import launch_dependents, wait
from lowbit_vit.model.kernels.validation import multiprocessors, require_device, require_matrix

_PIECES = (16, 32, 64, 128, 256)  # of the keys: sizes that Triton has, of which three hold any count with few left over
_ROWS = 64  # queries that a program takes at once
FILLED = 1.5  # heads a multiprocessor from which a program takes all queries of one
TAILS = (16, 32)  # the same for the last few, where the program takes all queries


class Shares(NamedTuple):
    """How the queries of one head are shared out.

    Attributes:
        programs: for each head of each image.
        tiles: of _ROWS queries, for each program.
        tail: queries after these, 0, 16 or 32; then there is one program.
    """

    programs: int
    tiles: int
    tail: int


def pieces_of(tokens: int) -> tuple[int, int, int]:
    """Three powers of two, or fewer and zeros, that hold so many keys: the least sum, then the fewest; only the last has room to spare."""
    possible = (pieces for count in (1, 2, 3) for pieces in combinations_with_replacement(_PIECES[::-1], count) if sum(pieces) >= tokens)
    first, second, third, *_ = (*min(possible, key=lambda pieces: (sum(pieces), len(pieces))), 0, 0)
    return first, second, third


def shares_of(*, tokens: int, heads: int, multiprocessors: int) -> Shares:
    """One program a head where these fill the GPU one and a half times, for it loads the keys once; else one for each tile of queries.

    Args:
        tokens: of an image.
        heads: of all images.
        multiprocessors: of the GPU.
    """
    if heads < FILLED * multiprocessors:
        return Shares(triton.cdiv(tokens, _ROWS), 1, 0)
    rest = tokens % _ROWS
    tail = next((tail for tail in TAILS if 0 < rest <= tail), 0)
    return Shares(1, tokens // _ROWS if tail else triton.cdiv(tokens, _ROWS), tail)


@triton.jit
def loaded(
    ptr,  # fp16 or bf16, of a head: its first token's 64 keys, values or queries
    start,
    TOKENS: tl.constexpr,
    LINE: tl.constexpr,  # from one token to the next
    COUNT: tl.constexpr,
    D: tl.constexpr,
    WHOLE: tl.constexpr,  # all are tokens
):
    """COUNT rows from one on, [COUNT, D]; zeros past the last token."""
    token = start + tl.arange(0, COUNT)
    place = ptr + token[:, None] * LINE + tl.arange(0, D)[None, :]
    if WHOLE:
        rows = tl.load(place)
    else:
        rows = tl.load(place, mask=(token < TOKENS)[:, None], other=0.0)
    return rows


@triton.jit
def all_pieces(
    ptr,  # as of `loaded`
    TOKENS: tl.constexpr,
    LINE: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    D: tl.constexpr,
):
    """All keys or values of a head in three pieces; one of no size is the first again."""
    first = loaded(ptr, 0, TOKENS, LINE, K0, D, K0 <= TOKENS)
    second, third = first, first
    if K1 > 0:
        second = loaded(ptr, K0, TOKENS, LINE, K1, D, K0 + K1 <= TOKENS)
    if K2 > 0:
        third = loaded(ptr, K0 + K1, TOKENS, LINE, K2, D, K0 + K1 + K2 <= TOKENS)
    return first, second, third


@triton.jit
def scores(
    q,  # fp16 or bf16 [ROWS, D]
    keys,  # the same [COUNT, D]
    START: tl.constexpr,  # of the keys
    COUNT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Products of queries and keys in fp32, [ROWS, COUNT]; minus infinity past the last key."""
    s = tl.dot(q, keys.T)
    if START + COUNT > TOKENS:
        s = tl.where((START + tl.arange(0, COUNT) < TOKENS)[None, :], s, float("-inf"))
    return s


@triton.jit
def attend_rows(
    qkv_ptr,  # of the head's first query
    out_ptr,
    out_row,  # int64, of the image's first token
    head,
    row,  # the first of these queries
    inverse,  # of the codes' scale
    k0, k1, k2, v0, v1, v2,  # [K0, D], [K1, D], [K2, D]; anything where the size is 0
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    CODED: tl.constexpr,
    ROWS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Attention of ROWS queries over all keys."""
    kind: tl.constexpr = qkv_ptr.dtype.element_ty
    factor: tl.constexpr = 1.4426950408889634 / D**0.5  # exp(x) = exp2(x log2 e)
    q = loaded(qkv_ptr, row, TOKENS, 3 * HEADS * D, ROWS, D, WHOLE=False)
    s0 = scores(q, k0, 0, K0, TOKENS)
    most = tl.max(s0, axis=1)
    if K1 > 0:
        s1 = scores(q, k1, K0, K1, TOKENS)
        most = tl.maximum(most, tl.max(s1, axis=1))
    if K2 > 0:
        s2 = scores(q, k2, K0 + K1, K2, TOKENS)
        most = tl.maximum(most, tl.max(s2, axis=1))
    most = (most * factor)[:, None]
    p0 = tl.exp2(s0 * factor - most)
    total = tl.sum(p0, axis=1)
    o = tl.dot(p0.to(kind), v0)
    if K1 > 0:
        p1 = tl.exp2(s1 * factor - most)
        total += tl.sum(p1, axis=1)
        o = tl.dot(p1.to(kind), v1, acc=o)
    if K2 > 0:
        p2 = tl.exp2(s2 * factor - most)
        total += tl.sum(p2, axis=1)
        o = tl.dot(p2.to(kind), v2, acc=o)
    o = o * (inverse / total)[:, None]
    if CODED:
        # Infinity would become the largest code. Whatever is not finite becomes NaN, and so does its row of the next GEMM.
        o = tl.where(tl.abs(o) < float("inf"), o, float("nan"))
    token = row + tl.arange(0, ROWS)
    place = (out_row + token)[:, None] * (HEADS * D) + head * D + tl.arange(0, D)[None, :]
    tl.store(out_ptr + place, o.to(out_ptr.dtype.element_ty, fp_downcast_rounding="rtne"), mask=(token < TOKENS)[:, None])


@triton.jit
def attend_whole_kernel(
    qkv_ptr,  # fp16 or bf16 [B, TOKENS, 3, HEADS, D]
    bounds_ptr,  # fp32 [B, TOKENS], if CODED: of each token, what its largest value is below, as a scale
    out_ptr,  # e4m3 if CODED, else as qkv; [B, TOKENS, HEADS, D]
    scales_ptr,  # fp32 [B, TOKENS], if CODED
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    CODED: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
    SLOTS: tl.constexpr,  # a power of two, TOKENS or more
    TILES: tl.constexpr,  # of ROWS queries
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    D: tl.constexpr,
):
    """Softmax(q k^T / sqrt(D)) v of TILES x ROWS + TAIL queries of one head of one image."""
    image, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start = image.to(tl.int64) * TOKENS
    line: tl.constexpr = 3 * HEADS * D
    queries = qkv_ptr + start * line + head * D
    keys, values = queries + HEADS * D, queries + 2 * HEADS * D
    if EARLY:
        launch_dependents()
    if PDL:
        wait()
    inverse = 1.0
    if CODED:
        slot = tl.arange(0, SLOTS)
        bound = tl.abs(tl.load(bounds_ptr + start + slot, mask=slot < TOKENS, other=0.0))
        # As integers, as in `quantize_kernel`: NaN is not lost in the maximum.
        scale = tl.max(bound.to(tl.int32, bitcast=True), axis=0).to(tl.float32, bitcast=True)
        inverse = 1.0 / scale
        if head + tl.program_id(1) == 0:
            tl.store(scales_ptr + start + slot, tl.zeros((SLOTS,), tl.float32) + scale, mask=slot < TOKENS)
    k0, k1, k2 = all_pieces(keys, TOKENS, line, K0, K1, K2, D)
    v0, v1, v2 = all_pieces(values, TOKENS, line, K0, K1, K2, D)
    first = tl.program_id(1) * (TILES * ROWS)
    for tile in range(TILES):
        attend_rows(
            queries, out_ptr, start, head, first + tile * ROWS, inverse, k0, k1, k2, v0, v1, v2,
            TOKENS, HEADS, CODED, ROWS, K0, K1, K2, D,
        )  # fmt: skip
    if TAIL > 0:
        # Loaded again, from the L2 cache: kept for these few rows in another layout, they take registers until some spill.
        k0, k1, k2 = all_pieces(keys, TOKENS, line, K0, K1, K2, D)
        v0, v1, v2 = all_pieces(values, TOKENS, line, K0, K1, K2, D)
        attend_rows(
            queries, out_ptr, start, head, TILES * ROWS, inverse, k0, k1, k2, v0, v1, v2,
            TOKENS, HEADS, CODED, TAIL, K0, K1, K2, D,
        )  # fmt: skip


def attend_to_codes(qkv_BNX: Tensor, bounds: Tensor, *, heads: int, shares: Shares | None = None) -> Coded:
    """Attention in e4m3 codes with one scale an image, the largest of its tokens' bounds.

    Args:
        qkv_BNX: fp16 or bf16, [B, N, 3 H 64], contiguous: q, k and v as one GEMM gives them.
        bounds: fp32, [B N]: of each token a scale under which none of its values in v is above the largest code
            (`quantize.normalize_rows_towards`). A NaN makes its image NaN.
        heads: H.
        shares: None: chosen by shape.

    Returns:
        Codes [B N, H 64] and scales [B N]. A result that is not finite has the code NaN.

    Raises:
        ValueError: arguments that do not fit each other or the kernel.
        Unavailable: no CUDA device, one without fp8, or more tokens.
    """
    rows, width = _require(qkv_BNX, heads)
    require_matrix("bounds", bounds, dtypes=(torch.float32,), shape=(rows,), device=qkv_BNX.device)
    require_device(qkv_BNX.device, torch.float8_e4m3fn)
    made = Coded(torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=qkv_BNX.device), torch.empty_like(bounds))
    _launch(qkv_BNX, bounds, made.codes, made.scales, heads=heads, shares=shares)
    return made


def attend(qkv_BNX: Tensor, *, heads: int, shares: Shares | None = None) -> Tensor:
    """Attention in 16 bits, [B N, H 64] in qkv's dtype; arguments and errors as of `attend_to_codes`."""
    rows, width = _require(qkv_BNX, heads)
    require_device(qkv_BNX.device)
    out = torch.empty(rows, width, dtype=qkv_BNX.dtype, device=qkv_BNX.device)
    _launch(qkv_BNX, None, out, out, heads=heads, shares=shares)
    return out


def _require(qkv_BNX: Tensor, heads: int) -> tuple[int, int]:
    """Rows and columns of the result."""
    if qkv_BNX.ndim != 3:
        raise ValueError(f"qkv: shape {list(qkv_BNX.shape)} given, needed [images, tokens, 3 x heads x {HEAD_WIDTH}]")
    images, tokens, _ = qkv_BNX.shape
    require_matrix("qkv", qkv_BNX, dtypes=SIXTEEN_BIT, shape=(images, tokens, 3 * heads * HEAD_WIDTH), device=qkv_BNX.device)
    if tokens > MOST_TOKENS:
        raise Unavailable(f"attention coded holds {MOST_TOKENS} tokens, an image has {tokens}; use cudnn")
    return images * tokens, heads * HEAD_WIDTH


def _launch(qkv_BNX: Tensor, bounds: Tensor | None, out: Tensor, scales: Tensor, *, heads: int, shares: Shares | None) -> None:
    images, tokens, _ = qkv_BNX.shape
    if not qkv_BNX.numel():
        return
    taken = shares or shares_of(tokens=tokens, heads=images * heads, multiprocessors=multiprocessors(out.device))
    k0, k1, k2 = pieces_of(tokens)
    attend_whole_kernel[images * heads, taken.programs](
        qkv_BNX, scales if bounds is None else bounds, out, scales,
        TOKENS=tokens, HEADS=heads, CODED=bounds is not None, SLOTS=triton.next_power_of_2(tokens),
        TILES=taken.tiles, ROWS=_ROWS, TAIL=taken.tail, K0=k0, K1=k1, K2=k2, D=HEAD_WIDTH,
        num_warps=4, num_stages=2, enable_fp_fusion=True, **pdl.options(out.device, images * tokens),
    )  # fmt: skip
