"""The same product where the card's copy engine brings and stores whole tiles (TMA; compute capability 9.0 and up).

Addresses are then a matter of two numbers and not of a register for each vector, and the result leaves through shared memory in whole
lines. So a multiprocessor holds two programs of the largest tile, and one's epilogue runs under the other's main loop. What it saves,
and that a larger tile saves nothing, is in benchmarks/records/fast_tiles.json.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lowbit_vit.model.kernels.arguments import LARGEST, Coded
from lowbit_vit.model.kernels.epilogue import corner_of_tile, gelu_codes, scaled
from lowbit_vit.model.kernels.tiles import STRIPE, Tile

ALIGNED = 16  # columns: rows of a result must start at a multiple of 16 bytes, in 8 bits as well


@triton.jit
def bulk_product_kernel(
    a_tiles, a_scales_ptr, w_tiles, w_scales_ptr, bias_ptr, residual_tiles, out_tiles, out_scales_ptr, rows, columns, depth,
    INTEGER: tl.constexpr, RESIDUAL: tl.constexpr, GELU_CODES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STRIPE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One tile of a w^T with its epilogue. What lies outside a matrix is read as zeros and is not stored."""
    top, left = corner_of_tile(rows, columns, ROWS, COLUMNS, STRIPE)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if INTEGER else tl.float32)
    for k in range(0, depth, DEPTH):
        sums = tl.dot(a_tiles.load([top, k]), w_tiles.load([left, k]).T, acc=sums, out_dtype=tl.int32 if INTEGER else tl.float32)
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    x = scaled(sums, row, column, rows, columns, a_scales_ptr, w_scales_ptr, bias_ptr)
    if RESIDUAL:
        x += residual_tiles.load([top, left]).to(tl.float32)
    if GELU_CODES:
        out_tiles.store([top, left], gelu_codes(x, row, rows, out_scales_ptr, LARGEST, out_tiles.dtype))
    else:
        out_tiles.store([top, left], x.to(out_tiles.dtype))


def launch(a: Coded, w: Coded, bias: Tensor, out: Tensor, *, residual: Tensor | None, out_scales: Tensor | None, tile: Tile) -> None:
    """As `product` asks, with arguments that it has looked at; the columns are a multiple of ALIGNED."""
    (rows, columns), depth = out.shape, a.codes.shape[1]
    of_result = [tile.rows, tile.columns]
    bulk_product_kernel[triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),](
        TensorDescriptor.from_tensor(a.codes, [tile.rows, tile.depth]), a.scales,
        TensorDescriptor.from_tensor(w.codes, [tile.columns, tile.depth]), w.scales, bias,
        TensorDescriptor.from_tensor(out if residual is None else residual, of_result), TensorDescriptor.from_tensor(out, of_result),
        a.scales if out_scales is None else out_scales, rows, columns, depth,
        INTEGER=not a.codes.is_floating_point(), RESIDUAL=residual is not None, GELU_CODES=out_scales is not None,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, STRIPE=STRIPE, LARGEST=LARGEST[a.codes.dtype],
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
