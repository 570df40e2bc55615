"""What no side of `fast_path.py` can beat: the rates of a block's products, its attention, its passes; and every tile at every shape.

The bound is the products at their best rates at the model's shapes and the attention, nothing else. A product is timed over the weights
of all layers in turn, for in a model each layer's weights come from memory.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from fast_path_sides import ARCH, CLASSES
from lowbit_vit.model import precision
from lowbit_vit.model.attention import attend
from lowbit_vit.model.flops import forward_flop
from lowbit_vit.model.kernels import attention as own_attention
from lowbit_vit.model.kernels import gemm, nf4, quantize
from lowbit_vit.model.kernels.validation import multiprocessors
from lowbit_vit.schema.plan import FusedNF4
from lowbit_vit.trial.measure import call_ms

TILES = (  # what the package has, and what was tried beside
    *gemm.TILES,
    gemm.TMA_TILE,
    gemm.TALL_TILE,
    gemm.TMA_TILE._replace(gluon=True),
    gemm.TALL_TILE._replace(gluon=True),
    gemm.SHARED_TILE,
    gemm.SPLIT_TILE,
    gemm.Tile(64, 128, 256, 4, 3),
    gemm.Tile(128, 64, 128, 4, 4),
    gemm.Tile(128, 256, 128, 8, 3, tma=True),
    gemm.Tile(128, 128, 128, 4, 4, tma=True),
    gemm.Tile(128, 256, 128, 8, 3),
    gemm.Tile(128, 128, 128, 8, 4),
    gemm.Tile(64, 256, 128, 8, 3),
    gemm.Tile(64, 64, 128, 4, 4),
    gemm.Tile(64, 64, 128, 4, 8),
    gemm.Tile(64, 32, 256, 4, 4),
)
SHAPES = {"qkv": (3072, 1024), "out": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}  # columns, depth


def ceilings(batch: int, reference_ms: float) -> dict[str, object]:
    """Rates of the products at the model's shapes, the bound that they set, and how near the reference comes to the large cube's rate."""
    rows = batch * ARCH.tokens
    rates = {"bf16, 8192 cube": cube()} | products(rows)
    attention = attention_ms(batch)
    flop = forward_flop(ARCH, num_classes=CLASSES, batch_size=batch)
    kinds = [kind for kind in ("bf16", "int8", "fp8") if f"{kind}, qkv" in rates]
    return {
        "tera_operations_per_s": rates,
        "attention_ms": round(attention, 4),
        "attention_us": {f"{tokens} tokens": attention_us(batch, tokens) for tokens in (50, ARCH.tokens, 257)},
        "passes_of_a_block_us": {kind: passes_us(rows, codes) for kind, codes in code_types().items()},
        "bound_ms": {kind: round(bound_ms(rates, kind, batch) + attention, 3) for kind in kinds},
        "reference_share_of_cube": round(flop / (reference_ms / 1e3) / (rates["bf16, 8192 cube"] * 1e12), 3),
    }


def replayed_ms(call: Callable[[], object], *, repeats: int = 20) -> float:
    """Median milliseconds of one call among `repeats` in a CUDA graph: no launch is waited for."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return median(call_ms("cuda", graph.replay) for _ in range(30)) / repeats


def by_layers_ms(call: Callable[[Any], object], layers: list[Any]) -> float:
    """Median milliseconds of one call among one for each layer's weights, in a CUDA graph."""
    return replayed_ms(lambda: [call(w) for w in layers], repeats=1) / len(layers)


def rate(operations: float, milliseconds: float) -> float:
    """Tera-operations a second."""
    return round(operations / milliseconds / 1e9, 1)


def cube() -> float:
    """The rate of one large bf16 product."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return rate(2 * 8192**3, replayed_ms(lambda: torch.mm(left, right), repeats=3))


def products(rows: int) -> dict[str, float]:
    """Rates of the four products of a block: cuBLAS in bf16; ours in 8 bits with the best tile and with the package's."""
    found: dict[str, float] = {}
    for name, (columns, depth) in SHAPES.items():
        operations = 2 * rows * columns * depth
        x, bias = drawn(rows, depth), torch.zeros(columns, device="cuda", dtype=torch.bfloat16)
        layers = [drawn(columns, depth) for _ in range(ARCH.depth)]
        found[f"bf16, {name}"] = rate(operations, by_layers_ms(lambda w, x=x, bias=bias: nn.functional.linear(x, w, bias), layers))  # type: ignore[misc]
        for kind, codes in code_types().items():
            times = tile_times(rows, columns, depth, codes)
            found[f"{kind}, {name}"] = rate(operations, min(times.values()))
            found[f"{kind}, {name}, by the rule"] = rate(operations, times[chosen(rows, columns, depth, codes)])
    return found


def drawn(rows: int, columns: int) -> Tensor:
    """Random bf16 on the GPU."""
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def code_types() -> dict[str, torch.dtype]:
    """The 8-bit codes that this GPU multiplies."""
    fp8 = {"fp8": torch.float8_e4m3fn} if torch.cuda.get_device_capability() >= (8, 9) else {}
    return {"int8": torch.int8, **fp8}


def chosen(rows: int, columns: int, depth: int, codes: torch.dtype) -> str:
    """The tile that the package takes where the depth may be in parts."""
    device = torch.device("cuda")
    count, tma = multiprocessors(device), gemm.uses_tma(device, rows)
    tall = codes == torch.float8_e4m3fn
    return label(gemm.tile_for(rows=rows, columns=columns, depth=depth, multiprocessors=count, split_k=True, tma=tma, tall=tall))


def label(tile: gemm.Tile) -> str:
    """Its numbers: rows x columns x depth, warps, stages, and parts of the depth."""
    in_parts = f", {tile.split_k} parts" if tile.split_k > 1 else ""
    in_bulk = ", in bulk by Gluon" if tile.gluon else ", in bulk" if tile.tma else ""
    return f"{tile.rows}x{tile.block_n}x{tile.block_k}, {tile.num_warps} warps, {tile.num_stages} stages{in_parts}{in_bulk}"


def tile_times(rows: int, columns: int, depth: int, codes: torch.dtype) -> dict[str, float]:
    """Milliseconds of each candidate; of those in parts only where they do not make too many tiles."""
    a = quantize.quantize_rows(drawn(rows, depth), codes=codes)
    layers = [quantize.quantize_rows(drawn(columns, depth), codes=codes) for _ in range(ARCH.depth)]
    bias, arrivals = torch.zeros(columns, device="cuda"), torch.zeros(gemm.ARRIVALS, dtype=torch.int32, device="cuda")
    engine = torch.cuda.get_device_capability() >= gemm.TMA_FROM
    usable = [tile for tile in TILES if engine or not tile.tma]
    usable = [tile for tile in usable if codes != torch.int8 or tile.gluon or not tile.below_m]  # not used, and spills
    fitting = [tile for tile in usable if tile.split_k == 1 or -(-rows // tile.block_m) * -(-columns // tile.block_n) <= gemm.ARRIVALS]
    return {
        label(tile): by_layers_ms(
            lambda w, tile=tile: gemm.multiply(a, w, bias, dtype=torch.bfloat16, arrivals=arrivals, tile=tile),  # type: ignore[misc]
            layers,
        )
        for tile in fitting
    }


def bound_ms(rates: dict[str, float], kind: str, batch: int) -> float:
    """Milliseconds of all products of the encoder at their best rates."""
    rows = batch * ARCH.tokens
    return sum(ARCH.depth * 2 * rows * columns * depth / rates[f"{kind}, {name}"] / 1e9 for name, (columns, depth) in SHAPES.items())


def attention_ms(batch: int) -> float:
    """Milliseconds of all blocks' attention by the pinned kernel."""
    q, k, v = (torch.randn(batch, ARCH.tokens, ARCH.heads, ARCH.head_width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    return ARCH.depth * replayed_ms(lambda: attend(q, k, v, "cudnn"))


def attention_us(batch: int, tokens: int) -> dict[str, float]:
    """Microseconds of a block's attention: the pinned kernel, with the pass of codes after it, and ours in both forms; all over one qkv."""
    qkv = torch.randn(batch, tokens, 3 * ARCH.width, device="cuda").bfloat16()
    bounds = torch.full((batch * tokens,), 0.02, device="cuda")

    def pinned() -> Tensor:
        q, k, v = qkv.view(batch, tokens, 3, ARCH.heads, ARCH.head_width).unbind(2)
        return attend(q, k, v, "cudnn").flatten(2).flatten(0, 1)

    calls: dict[str, Callable[[], object]] = {"cuDNN": pinned, "ours, 16-bit": lambda: own_attention.attend(qkv, heads=ARCH.heads)}
    if "fp8" in code_types():
        calls["cuDNN and codes"] = lambda: quantize.quantize_rows(pinned().contiguous(), codes=torch.float8_e4m3fn)
        calls["ours, codes"] = lambda: own_attention.attend_to_codes(qkv, bounds, heads=ARCH.heads)
    return {name: round(1e3 * replayed_ms(call), 2) for name, call in calls.items()}


def passes_us(rows: int, codes: torch.dtype) -> dict[str, float]:
    """Microseconds of the passes that make codes: after the norms, of the attention's result, after GELU."""
    narrow, wide = (torch.randn(rows, width, device="cuda").bfloat16() for width in (ARCH.width, ARCH.mlp_width))
    norm = nn.LayerNorm(ARCH.width, device="cuda", dtype=torch.bfloat16)
    calls = {
        "norm": lambda: quantize.normalize_rows(narrow, norm, codes=codes),
        "plain": lambda: quantize.quantize_rows(narrow, codes=codes),
        "GELU": lambda: quantize.gelu_rows(wide, codes=codes),
    }
    return {name: round(1e3 * replayed_ms(call), 2) for name, call in calls.items()}


def all_tiles(batches: Sequence[int]) -> dict[str, object]:
    """Milliseconds of every candidate at every shape, and of NF4's products beside those of 16-bit weights."""
    found: dict[str, object] = {}
    for rows in (*(batch * ARCH.tokens for batch in batches), 257, 577):  # the last of one image with patches of 14, at 224 and 336 px
        for name, (columns, depth) in track(SHAPES.items(), f"tiles, {rows} rows"):
            for kind, codes in code_types().items():
                times = tile_times(rows, columns, depth, codes)
                found[f"{kind}, {name}, {rows} rows"] = {"rule": chosen(rows, columns, depth, codes)} | {
                    tile: round(ms, 5) for tile, ms in times.items()
                }
    for rows in (1, 64, 197, 394, 788, 1576, 6304):
        found[f"NF4, {rows} rows"] = {name: nf4_times(rows, *shape) for name, shape in SHAPES.items()}
    return {"ms": found}


def nf4_times(rows: int, columns: int, depth: int) -> dict[str, float]:
    """Milliseconds of the decoding, of the NF4 product with it, and of the product of 16-bit weights."""
    layer = precision.convert_linear(
        nn.Linear(depth, columns, device="cuda"),
        FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit"),
        torch.bfloat16,
        name="",
    )
    w, bias = layer.stored(), torch.zeros(columns, device="cuda", dtype=torch.bfloat16)  # type: ignore[operator]
    x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    plain = nf4.decode(w, torch.bfloat16)
    four = torch.empty(4 * plain.numel(), device="cuda", dtype=torch.bfloat16)
    calls = {
        "decoding": lambda: nf4.decode_into(w, plain),
        "decoding, four times together": lambda: nf4.decode_together([w] * 4, four),
        "NF4": lambda: nf4.multiply_nf4(x, w, bias),
        "bf16": lambda: nn.functional.linear(x, plain, bias),
    }
    return {name: round(replayed_ms(call), 5) for name, call in calls.items()}
