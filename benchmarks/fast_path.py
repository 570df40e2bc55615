"""The fast path against what else a user could pick, in one run on one card: ViT-L/16, batch 1 and 32, bf16, random weights.

    python benchmarks/fast_path.py                  every side, and the products' ceilings; more than 5 minutes, most of them compiling
    python benchmarks/fast_path.py --group gemlite  one group alone, into a record of its own
    python benchmarks/fast_path.py --tiles          every candidate tile at every shape instead; a minute

Sides come in groups: this package and bitsandbytes, then torchao and gemlite where they are installed; gemlite last, for it tunes its
kernels for minutes. Sides of a group are timed in turns, `ROUNDS` times, so that a slow spell of the card meets all of them, and the
reference, bf16 with compiled blocks in a CUDA graph, takes part in every group. What is said of each side is the median of all its
samples and its ratio to the reference in its group, and of one forward of ours the time of each kernel. A side that cannot run is in the
record with the reason. Speed depends on weights only through LLM.int8's outliers, which random weights hardly have, so that side is
flattered.

The bound: the products at their best rates at the model's shapes and the attention, nothing else. Beside it, what the passes that make
codes take. A product is timed over the weights of all layers in turn, for in a model each layer's weights come from memory.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # not in its __all__
from torch.profiler import ProfilerActivity, profile

from lowbit_vit.errors import Unavailable
from lowbit_vit.model import adapted_nf4, decoded_ahead, fast, lora, precision
from lowbit_vit.model.attention import attend
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.kernels import arguments, gelu, nf4, product, quantize, tiles
from lowbit_vit.model.vit import ARCHITECTURES, VisionTransformer, encoder_linears
from lowbit_vit.model.work import forward_flop
from lowbit_vit.schema.config import Execution, QkvLayout
from lowbit_vit.schema.environment import provenance
from lowbit_vit.schema.plan import FP8, NF4, W8A8, FusedNF4, HighPrecision, Int8, Plan, Weights, uniform
from lowbit_vit.trial.call_time import ms_on_card
from lowbit_vit.trial.trace import own_times

RECORDS = Path(__file__).parent / "records"
ARCH = ARCHITECTURES["vit_l_16"]
CLASSES = 102
BATCHES = (1, 32)
ROUNDS, CALLS = 5, 40  # 200 samples a side
WARMUP = 10
TILES = (  # what the package has, and what was tried beside
    *tiles.EIGHT_BIT,
    tiles.BULK,
    tiles.IN_PARTS,
    tiles.Tile(128, 256, 128, 8, 3, bulk=True),
    tiles.Tile(128, 128, 128, 4, 4, bulk=True),
    tiles.Tile(128, 256, 128, 8, 3),
    tiles.Tile(128, 128, 128, 8, 4),
    tiles.Tile(64, 256, 128, 8, 3),
    tiles.Tile(64, 128, 128, 4, 4),
    tiles.Tile(64, 64, 128, 4, 4),
    tiles.Tile(64, 64, 128, 4, 8),
    tiles.Tile(64, 32, 256, 4, 4),
)
SHAPES = {"qkv": (3072, 1024), "out": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}  # columns, depth
REFERENCE = "bf16, compiled, graph"
NAME_LENGTH = 80  # templates' names run to a thousand characters

Forward = Callable[[Tensor], Tensor]


def main() -> None:
    """Time what was asked for and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", action="store_true", help="time every candidate tile at every shape instead")
    parser.add_argument("--group", choices=GROUPS, help="time this group alone, beside the reference")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise Unavailable("benchmarks/fast_path.py needs CUDA")
    facts = provenance("python benchmarks/fast_path.py")
    machine = {"gpu": facts.gpu, "driver": facts.driver, "cuda": facts.cuda, "git_revision": facts.git_revision, "packages": packages()}
    path = RECORDS / ("fast_tiles.json" if asked.tiles else f"fast_path-{asked.group}.json" if asked.group else "fast_path.json")
    groups = {asked.group: GROUPS[asked.group]} if asked.group else GROUPS
    for found in [all_tiles()] if asked.tiles else all_sides(groups):
        path.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
    print(path.read_text())


def packages() -> dict[str, str]:
    """Versions of what takes part; of a package that was only copied, nothing says which it is."""
    names = ("torch", "triton", "bitsandbytes", "torchao", "gemlite")
    return {name: version(name) for name in names if importlib.util.find_spec(name) is not None}


def version(name: str) -> str:
    """As installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown: it has no metadata"


# --------------------------------------------------------------------------------------------------------------- sides


def ours(weights: Weights, execution: Execution) -> Callable[[Tensor], Forward]:
    """A side that this package runs: makes the callable for an example."""

    def make(example: Tensor) -> Forward:
        model = fresh()
        precision.apply_plan(model, uniform(weights, "bf16"))
        return prepare(model.eval(), execution, example)

    return make


def altered(make: Callable[[Tensor], Forward], module: ModuleType | type, name: str, value: object) -> Callable[[Tensor], Forward]:
    """A side that is made while one name of a module or class is set to something else."""

    def made(example: Tensor) -> Forward:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            return make(example)
        finally:
            setattr(module, name, before)

    return made


def adapted(execution: Execution, *, ours: bool) -> Callable[[Tensor], Forward]:
    """NF4 with LoRA of rank 16 on q and v: peft's over bitsandbytes, as training leaves it, or taken over by our layers."""

    def make(example: Tensor) -> Forward:
        model = fresh(qkv="separate")
        precision.apply_plan(model, uniform(SINGLE, "bf16"))
        lora.wrap(model, rank=16, alpha=32, dropout=0.0)
        lora.settle(model)
        if ours:
            adapted_nf4.take_over(model)
        return prepare(model.eval(), execution, example)

    return make


@torch.library.custom_op("lowbit_vit_benchmarks::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product and our pass of GELU after it: [B, N, K] -> [B, N, M]."""
    out = nn.functional.linear(x, weight, bias)
    gelu.gelu_in_place(out.view(-1, out.shape[-1]))
    return out


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(bias))


class LinearGelu(nn.Linear):
    """fc1 in 16 bits with our pass of GELU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as nn.Linear names it)
        """[B, N, K] -> [B, N, M]."""
        out: Tensor = linear_gelu(input, self.weight, self.bias)
        return out


def with_our_gelu(example: Tensor) -> Forward:
    """bf16 with compiled blocks, given the pass of GELU that our NF4 has: what of NF4's speed is not owed to its decoding."""
    model = plain()
    for block in model.blocks:
        block.mlp.fc1.__class__ = LinearGelu  # type: ignore[union-attr]
        block.mlp.activation = nn.Identity()  # type: ignore[union-attr]
    return prepare(model, "compile_graph", example)


def convolved(model: VisionTransformer, images: Tensor) -> Tensor:
    """The patch embedding as a convolution: [B, 3, S, S] -> [B, (S / P)^2, W]."""
    patches_BWYX: Tensor = model.patch_embedding(images)
    return patches_BWYX.flatten(2).transpose(1, 2)


def torchao(name: str) -> Callable[[Tensor], Forward]:
    """Its configuration on every encoder linear, with compiled blocks in a CUDA graph: its best setting as documented."""

    def make(example: Tensor) -> Forward:
        if importlib.util.find_spec("torchao") is None:
            raise Unavailable("torchao is not installed")
        quantization = importlib.import_module("torchao.quantization")
        options = {"granularity": quantization.PerRow()} if name.startswith("Float8") else {}
        model = plain()
        linears = set(map(id, encoder_linears(model).values()))
        quantization.quantize_(model, getattr(quantization, name)(**options), filter_fn=lambda module, _: id(module) in linears)
        return prepare(model, "compile_graph", example)

    return make


def gemlite(name: str) -> Callable[[Tensor], Forward]:
    """Its processor on every encoder linear, in a CUDA graph; it tunes its kernels when they first run."""

    def make(example: Tensor) -> Forward:
        if importlib.util.find_spec("gemlite") is None:
            raise Unavailable("gemlite is not installed")
        processor = getattr(importlib.import_module("gemlite.helper"), name)(device="cuda:0", dtype=torch.bfloat16)
        model = plain()
        for place, linear in encoder_linears(model).items():
            parent, _, last = place.rpartition(".")
            setattr(model.get_submodule(parent), last, processor.from_linear(linear))
        return prepare(model, "cuda_graph", example)

    return make


SINGLE = NF4(format="nf4", double_quantization=False)
W8A8_GRAPH, FP8_GRAPH = ours(W8A8(format="w8a8"), "cuda_graph"), ours(FP8(format="fp8"), "cuda_graph")
NF4_GRAPH = ours(FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit"), "compile_graph")
MORE = 1 << 40  # than there are rows or columns
NO_CARD = (99, 0)
BY_CONVOLUTION: tuple[type, str, object] = (VisionTransformer, "patches", convolved)
OURS: dict[str, Callable[[Tensor], Forward]] = {
    "bf16, graph": ours(HighPrecision(), "cuda_graph"),
    "bf16, compiled, patches by convolution, graph": altered(ours(HighPrecision(), "compile_graph"), *BY_CONVOLUTION),
    "bf16, compiled, GELU by our pass, graph": with_our_gelu,
    "bf16, eager": ours(HighPrecision(), "eager"),
    "W8A8, graph": W8A8_GRAPH,
    "fp8, graph": FP8_GRAPH,
    "W8A8, no kernel starts early, graph": altered(W8A8_GRAPH, arguments, "EARLY_ROWS", 0),
    "fp8, no kernel starts early, graph": altered(FP8_GRAPH, arguments, "EARLY_ROWS", 0),
    "fp8, every kernel starts early, graph": altered(FP8_GRAPH, arguments, "EARLY_ROWS", MORE),
    "fp8, no depth in parts, graph": altered(FP8_GRAPH, tiles, "LONG", MORE),
    "fp8, no tile in bulk, graph": altered(FP8_GRAPH, arguments, "BULK_FROM", NO_CARD),
    "W8A8, no tile in bulk, graph": altered(W8A8_GRAPH, arguments, "BULK_FROM", NO_CARD),
    "fp8, patches by convolution, graph": altered(FP8_GRAPH, *BY_CONVOLUTION),
    "NF4 fused, compiled, graph": NF4_GRAPH,
    "NF4 fused, GELU left to the compiler, compiled, graph": altered(NF4_GRAPH, fast, "computes_gelu", lambda _: False),
    "NF4 fused, double quantization, compiled, graph": ours(
        FusedNF4(format="nf4_fused", double_quantization=True, products="16-bit"), "compile_graph"
    ),
    "NF4 fused, turns as large as a layer, compiled, graph": altered(NF4_GRAPH, decoded_ahead, "BY_BLOCKS_FROM", MORE),
    "NF4 fused, turns as large as a block, compiled, graph": altered(NF4_GRAPH, decoded_ahead, "BY_BLOCKS_FROM", 0),
    "NF4 fused with adapters, compiled, graph": adapted("compile_graph", ours=True),
    "bitsandbytes NF4 with peft's adapters, eager": adapted("eager", ours=False),
    "bitsandbytes NF4 with peft's adapters, graph": adapted("cuda_graph", ours=False),
    "NF4, int8 products, graph": ours(FusedNF4(format="nf4_fused", double_quantization=False, products="int8"), "cuda_graph"),
    "NF4, fp8 products, graph": ours(FusedNF4(format="nf4_fused", double_quantization=False, products="fp8"), "cuda_graph"),
    "bitsandbytes NF4, eager": ours(SINGLE, "eager"),
    "bitsandbytes NF4, graph": ours(SINGLE, "cuda_graph"),
    "bitsandbytes NF4, compiled, graph": ours(SINGLE, "compile_graph"),
    "bitsandbytes int8, threshold 6, eager": ours(Int8(format="int8", threshold=6.0), "eager"),
    "bitsandbytes int8, threshold 0, eager": ours(Int8(format="int8", threshold=0.0), "eager"),
    "bitsandbytes int8, threshold 0, graph": ours(Int8(format="int8", threshold=0.0), "cuda_graph"),
}
TORCHAO = {
    "torchao int8 dynamic, compiled, graph": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8 dynamic by rows, compiled, graph": torchao("Float8DynamicActivationFloat8WeightConfig"),
}
GEMLITE = {
    "gemlite int8 dynamic, graph": gemlite("A8W8_int8_dynamic"),
    "gemlite fp8 dynamic, graph": gemlite("A8W8_fp8_dynamic"),
}
GROUPS = {"ours": OURS, "torchao": TORCHAO, "gemlite": GEMLITE}


def fresh(qkv: QkvLayout = "fused") -> VisionTransformer:
    """A ViT-L/16 in fp32 on the card, the same for every side."""
    torch.manual_seed(0)
    with torch.device("cuda"):  # drawn there: on a CPU it takes seconds, once for each side
        return VisionTransformer(ARCH, num_classes=CLASSES, attention="cudnn", qkv=qkv).eval()


def plain() -> VisionTransformer:
    """The same in bf16."""
    model = fresh()
    precision.apply_plan(model, Plan(compute_dtype="bf16"))
    return model.eval()


def all_sides(chosen: dict[str, dict[str, Callable[[Tensor], Forward]]]) -> Iterator[dict[str, object]]:
    """A group at one batch size more each time, the ceilings after the first group: a run that is cut short leaves what it has."""
    batches: dict[int, dict[str, object]] = {batch: {} for batch in BATCHES}
    found = {"rounds": ROUNDS, "calls": CALLS, "batches": batches}
    reference_ms: dict[int, float] = {}
    for group, sides in chosen.items():
        for batch, groups in batches.items():
            groups[group] = timed = time_group(group, sides, batch)
            reference_ms.setdefault(batch, timed["median_ms"][REFERENCE])
            yield found
        for batch, groups in batches.items():
            if sides is OURS:
                groups["ceilings"] = ceilings(batch, reference_ms[batch])
                yield found


def time_group(group: str, sides: dict[str, Callable[[Tensor], Forward]], batch: int) -> dict[str, Any]:
    """Medians of the sides and the reference, and ratios to it, at one batch size."""
    example = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    forwards: dict[str, Forward] = {}
    prepared: dict[str, float] = {}
    skipped: dict[str, str] = {}
    makers = {REFERENCE: ours(HighPrecision(), "compile_graph"), **sides}
    for name, make in track(makers.items(), f"prepare {group}, batch {batch}"):
        start = time.perf_counter()
        try:
            forwards[name] = make(example)
            for _ in range(WARMUP):
                forwards[name](example)
            torch.cuda.synchronize()
            prepared[name] = round(time.perf_counter() - start, 1)
            print(f"{prepared[name]:6.1f} s to prepare {name}", flush=True)
        except Exception as error:
            if name == REFERENCE:
                raise
            skipped[name] = " ".join(str(error).split())[:200] or type(error).__name__
            forwards.pop(name, None)
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()  # graphs are captured; the next side's blocks would count as recompilations of this one's
    samples: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in track(range(ROUNDS), f"time {group}, batch {batch}"):
        for name, forward in forwards.items():
            samples[name] += [ms_on_card(forward, example) for _ in range(CALLS)]
    medians = {name: round(median(values), 4) for name, values in samples.items()}
    return {
        "prepare_s": prepared,
        "median_ms": medians,
        "times_the_reference": {name: round(medians[REFERENCE] / value, 3) for name, value in medians.items()},
        "kernels_us": {name: kernels_us(forward, example) for name, forward in forwards.items() if name.endswith("graph")}
        if sides is OURS
        else {},
        "skipped": skipped,
    }


def kernels_us(forward: Forward, example: Tensor) -> dict[str, float]:
    """Microseconds of each kernel in one forward, summed by name, the twelve longest; without what a kernel waits for another."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        forward(example)
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for name, microseconds in own_times(event for event in seen.events() or () if event.device_type == DeviceType.CUDA):
        times[name[:NAME_LENGTH]] += microseconds
    longest = sorted(times, key=lambda name: -times[name])[:12]
    return {name: round(times[name], 1) for name in longest}


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
        "passes_of_a_block_us": {kind: passes_us(rows, codes) for kind, codes in code_types().items()},
        "bound_ms": {kind: round(bound_ms(rates, kind, batch) + attention, 3) for kind in kinds},
        "reference_share_of_cube": round(flop / (reference_ms / 1e3) / (rates["bf16, 8192 cube"] * 1e12), 3),
    }


# ------------------------------------------------------------------------------------------------------------- ceilings


def replayed_ms(call: Callable[[], object], *, repeats: int = 20) -> float:
    """Median milliseconds of one call among `repeats` in a CUDA graph: no launch is waited for."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return median(ms_on_card(graph.replay) for _ in range(30)) / repeats


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
            found[f"{kind}, {name}, by the rule"] = rate(operations, times[chosen(rows, columns, depth)])
    return found


def drawn(rows: int, columns: int) -> Tensor:
    """Random bf16 on the card."""
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def code_types() -> dict[str, torch.dtype]:
    """The 8-bit codes that this card multiplies."""
    fp8 = {"fp8": torch.float8_e4m3fn} if torch.cuda.get_device_capability() >= (8, 9) else {}
    return {"int8": torch.int8, **fp8}


def chosen(rows: int, columns: int, depth: int) -> str:
    """The tile that the package takes where the depth may be in parts."""
    device = torch.device("cuda")
    count, in_bulk = product.multiprocessors(device), arguments.copies_in_bulk(device, rows)
    return label(tiles.tile_for(rows=rows, columns=columns, depth=depth, multiprocessors=count, in_parts=True, in_bulk=in_bulk))


def label(tile: tiles.Tile) -> str:
    """Its numbers: rows x columns x depth, warps, stages, and parts of the depth."""
    in_parts = f", {tile.parts} parts" if tile.parts > 1 else ""
    in_bulk = ", in bulk" if tile.bulk else ""
    return f"{tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages{in_parts}{in_bulk}"


def tile_times(rows: int, columns: int, depth: int, codes: torch.dtype) -> dict[str, float]:
    """Milliseconds of each candidate; of those in parts only where they do not make too many tiles."""
    a = quantize.quantize_rows(drawn(rows, depth), codes=codes)
    layers = [quantize.quantize_rows(drawn(columns, depth), codes=codes) for _ in range(ARCH.depth)]
    bias, arrivals = torch.zeros(columns, device="cuda"), torch.zeros(product.ARRIVALS, dtype=torch.int32, device="cuda")
    engine = torch.cuda.get_device_capability() >= arguments.BULK_FROM
    usable = [tile for tile in TILES if engine or not tile.bulk]
    fitting = [tile for tile in usable if tile.parts == 1 or -(-rows // tile.rows) * -(-columns // tile.columns) <= product.ARRIVALS]
    return {
        label(tile): by_layers_ms(
            lambda w, tile=tile: product.multiply(a, w, bias, dtype=torch.bfloat16, arrivals=arrivals, tile=tile),  # type: ignore[misc]
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


def all_tiles() -> dict[str, object]:
    """Milliseconds of every candidate at every shape, and of NF4's products beside those of 16-bit weights."""
    found: dict[str, object] = {}
    for batch in BATCHES:
        rows = batch * ARCH.tokens
        for name, (columns, depth) in track(SHAPES.items(), f"tiles, batch {batch}"):
            for kind, codes in code_types().items():
                times = tile_times(rows, columns, depth, codes)
                found[f"{kind}, {name}, batch {batch}"] = {"rule": chosen(rows, columns, depth)} | {
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


if __name__ == "__main__":
    main()
