"""Attention over few tokens whose result leaves as e4m3 codes for the next GEMM.

One program holds all keys and values of a head, so softmax needs no second look at a row. A mean of values is no larger than the largest
of them, so the scale of an image's codes is known before: the greatest of the bounds that the pass before the qkv GEMM computed for the
rows of v (`quantize.normalize_rows_towards`). The result in 16 bits never reaches memory, and no pass over it makes the codes.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.attention import CODED_HEAD_WIDTH as HEAD_WIDTH
from lowbit_vit.model.attention import MOST_CODED_TOKENS as MOST_TOKENS
from lowbit_vit.model.kernels import pdl
from lowbit_vit.model.kernels.coded import LARGEST, SIXTEEN_BIT, Coded
from lowbit_vit.model.kernels.pdl import launch_dependents, wait
from lowbit_vit.model.kernels.quantize import codes_of
from lowbit_vit.model.kernels.validation import require_device, require_matrix

# Keys come in three pieces, since a piece's length is a power of two: 128, one of these, and 16 (197 tokens are 128 + 64 + 5).
SECOND = (64, 128)
# Query rows of a program, how many such it takes in turn, warps. Of the few tokens of one image (4.3 us of 197 and 6.1 of 257 on an H200,
# cuDNN with a pass for the codes 8.9 and 10.2), and of many by the second piece: with 128 keys in it two turns spill.
FEW = (64, 1, 4)
MANY = {64: (64, 2, 4), 128: (64, 1, 4)}


@triton.jit
def rows_at(
    ptr,  # fp16 or bf16, [R, D], pointers
    place,  # int32 [R]
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,  # all places are tokens
):
    """Rows; zeros past the last token."""
    if WHOLE:
        rows = tl.load(ptr)
    else:
        rows = tl.load(ptr, mask=(place < TOKENS)[:, None], other=0.0)
    return rows


@triton.jit
def scores_of(
    q,  # fp16 or bf16 [ROWS, D]
    key,  # [R, D]
    place,  # int32 [R]
    TO_LOG2: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Scaled scores in units of log2; what is no token has none."""
    scores = tl.dot(q, key.T) * TO_LOG2
    if not WHOLE:
        scores = tl.where((place < TOKENS)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def attend_to_codes_kernel(
    qkv_ptr,  # fp16 or bf16 [B, N, 3 H D]
    bounds_ptr,  # fp32 [B, N]
    codes_ptr,  # e4m3 [B, N, H D]
    scales_ptr,  # fp32 [B, N]
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,  # D
    SECOND: tl.constexpr,  # keys of the second piece
    TOKENS_2: tl.constexpr,  # a power of two, TOKENS or more
    TO_LOG2: tl.constexpr,  # log2(e) / sqrt(D)
    ROWS: tl.constexpr,
    REPEAT: tl.constexpr,
    PDL: tl.constexpr,
    LARGEST: tl.constexpr,  # code
):
    """ROWS x REPEAT queries of one head of one image."""
    line: tl.constexpr = 3 * HEADS * WIDTH
    whole_1: tl.constexpr = TOKENS >= 128
    whole_2: tl.constexpr = TOKENS >= 128 + SECOND
    image, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    column = tl.arange(0, WIDTH)
    place_1, place_2, place_3 = tl.arange(0, 128), 128 + tl.arange(0, SECOND), 128 + SECOND + tl.arange(0, 16)
    first = qkv_ptr + image.to(tl.int64) * (TOKENS * line) + head * WIDTH
    keys = first + HEADS * WIDTH + column[None, :]
    values = keys + HEADS * WIDTH
    if PDL:
        launch_dependents()
        wait()
    token = tl.arange(0, TOKENS_2)
    bounds = tl.load(bounds_ptr + image * TOKENS + token, mask=token < TOKENS, other=0.0)
    # As integers, NaN comes after infinity: it is not lost in a maximum, and makes the image's results NaN.
    scale = tl.max(bounds.to(tl.int32, bitcast=True), axis=0).to(tl.float32, bitcast=True)
    key_1 = rows_at(keys + place_1[:, None] * line, place_1, TOKENS, whole_1)
    key_2 = rows_at(keys + place_2[:, None] * line, place_2, TOKENS, whole_2)
    key_3 = rows_at(keys + place_3[:, None] * line, place_3, TOKENS, WHOLE=False)
    value_1 = rows_at(values + place_1[:, None] * line, place_1, TOKENS, whole_1)
    value_2 = rows_at(values + place_2[:, None] * line, place_2, TOKENS, whole_2)
    value_3 = rows_at(values + place_3[:, None] * line, place_3, TOKENS, WHOLE=False)
    for turn in range(REPEAT):
        row = (tl.program_id(1) * REPEAT + turn) * ROWS + tl.arange(0, ROWS)
        inside = (row < TOKENS)[:, None]
        q = tl.load(first + row[:, None] * line + column[None, :], mask=inside, other=0.0)
        scores_1 = scores_of(q, key_1, place_1, TO_LOG2, TOKENS, whole_1)
        scores_2 = scores_of(q, key_2, place_2, TO_LOG2, TOKENS, whole_2)
        scores_3 = scores_of(q, key_3, place_3, TO_LOG2, TOKENS, WHOLE=False)
        most = tl.maximum(tl.maximum(tl.max(scores_1, axis=1), tl.max(scores_2, axis=1)), tl.max(scores_3, axis=1))
        weights_1 = tl.exp2(scores_1 - most[:, None])
        weights_2 = tl.exp2(scores_2 - most[:, None])
        weights_3 = tl.exp2(scores_3 - most[:, None])
        total = tl.sum(weights_1, axis=1) + tl.sum(weights_2, axis=1) + tl.sum(weights_3, axis=1)
        kind = qkv_ptr.dtype.element_ty
        mixed = tl.dot(weights_1.to(kind), value_1)
        mixed = tl.dot(weights_2.to(kind), value_2, acc=mixed)
        mixed = tl.dot(weights_3.to(kind), value_3, acc=mixed)
        codes = codes_of(mixed * (1.0 / (total * scale))[:, None], LARGEST, codes_ptr.dtype.element_ty)
        at = image.to(tl.int64) * TOKENS + row
        tl.store(codes_ptr + at[:, None] * (HEADS * WIDTH) + head * WIDTH + column[None, :], codes, mask=inside)
        if head == 0:
            tl.store(scales_ptr + at, tl.zeros((ROWS,), tl.float32) + scale, mask=row < TOKENS)


def attend_to_codes(qkv: Tensor, bounds: Tensor, *, heads: int) -> Coded:
    """Softmax(q k^T / sqrt(D)) v for each head, heads side by side, as e4m3 codes.

    Products are in 16 bits, sums and softmax in fp32; the weights of the values are rounded to 16 bits, the result once, to the codes.

    Args:
        qkv: fp16 or bf16, [B, N, 3 H D], contiguous; D is 64, N at most 272.
        bounds: fp32, [B N]: of each token a scale under which no value of v is above the largest code, as `normalize_rows_towards` gives.
        heads: H.

    Returns:
        Codes [B N, H D] and scales [B N], one scale for all tokens of an image; NaN where a bound of it is.

    Raises:
        ValueError: another dtype, shape or stride.
        Unavailable: no CUDA device with fp8, or more tokens.
    """
    if qkv.ndim != 3 or qkv.shape[2] != 3 * heads * HEAD_WIDTH:
        raise ValueError(f"qkv: shape {list(qkv.shape)} given, needed [B, N, {3 * heads * HEAD_WIDTH}]: {heads} heads of {HEAD_WIDTH}")
    images, tokens, columns = qkv.shape
    if tokens > MOST_TOKENS:
        raise Unavailable(f"attention coded holds {MOST_TOKENS} tokens, an image has {tokens}; use cudnn")
    require_matrix("qkv", qkv, dtypes=SIXTEEN_BIT, shape=(images, tokens, columns), device=qkv.device)
    require_matrix("bounds", bounds, dtypes=(torch.float32,), shape=(images * tokens,), device=qkv.device)
    require_device(qkv.device, torch.float8_e4m3fn)
    rows = images * tokens
    made = Coded(
        torch.empty(rows, columns // 3, dtype=torch.float8_e4m3fn, device=qkv.device),
        torch.empty(rows, dtype=torch.float32, device=qkv.device),
    )
    early = pdl.uses_pdl(qkv.device, rows)
    second = SECOND[tokens > 128 + SECOND[0] + 16]
    queries, repeat, warps = FEW if rows <= pdl.MOST_ROWS else MANY[second]
    attend_to_codes_kernel[images * heads, triton.cdiv(tokens, queries * repeat)](
        qkv, bounds, made.codes, made.scales, HEADS=heads, TOKENS=tokens, WIDTH=HEAD_WIDTH,
        SECOND=second, TOKENS_2=triton.next_power_of_2(tokens),
        TO_LOG2=math.log2(math.e) / math.sqrt(HEAD_WIDTH), ROWS=queries, REPEAT=repeat, PDL=early,
        LARGEST=LARGEST[torch.float8_e4m3fn], num_warps=warps, num_stages=2, **pdl.launch_options(pdl=early),
    )  # fmt: skip
    return made
