"""What `fast_path.py` times: every way to run the same ViT-L/16, by this package, bitsandbytes, torchao and gemlite.

A side makes, for an example of images, what is then called and timed. Weights are drawn anew for each, from one seed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from lowbit_vit.errors import Unavailable
from lowbit_vit.model import lora, nf4_prefetch, precision
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.formats import nf4_fused
from lowbit_vit.model.kernels import gelu, gemm, pdl
from lowbit_vit.model.vit import ARCHITECTURES, VisionTransformer, encoder_linears
from lowbit_vit.schema.config import AttentionName, Execution, QkvLayout
from lowbit_vit.schema.plan import FP8, NF4, W8A8, FusedNF4, HighPrecision, Int8, Plan, Weights, uniform

ARCH = ARCHITECTURES["vit_l_16"]
CLASSES = 102
REFERENCE = "bf16, compiled, graph"

Forward = Callable[[Tensor], Tensor]


def ours(weights: Weights, execution: Execution, attention: AttentionName = "cudnn") -> Callable[[Tensor], Forward]:
    """A side that this package runs: makes the callable for an example."""

    def make(example: Tensor) -> Forward:
        model = fresh(attention=attention)
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
            precision.take_over(model, uniform(FUSED, "bf16"))
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
FUSED = FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit")
W8A8_GRAPH, FP8_GRAPH = ours(W8A8(format="w8a8"), "cuda_graph"), ours(FP8(format="fp8"), "cuda_graph")
CODED = ours(FP8(format="fp8"), "cuda_graph", "coded")
NF4_GRAPH = ours(FUSED, "compile_graph")
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
    "W8A8, no kernel starts early, graph": altered(W8A8_GRAPH, pdl, "MOST_ROWS", 0),
    "fp8, no kernel starts early, graph": altered(FP8_GRAPH, pdl, "MOST_ROWS", 0),
    "fp8, every kernel starts early, graph": altered(FP8_GRAPH, pdl, "MOST_ROWS", MORE),
    "fp8, no depth in parts, graph": altered(FP8_GRAPH, gemm, "LONG_K", MORE),
    "fp8, no tile in bulk, graph": altered(FP8_GRAPH, gemm, "TMA_FROM", NO_CARD),
    "W8A8, no tile in bulk, graph": altered(W8A8_GRAPH, gemm, "TMA_FROM", NO_CARD),
    "fp8, patches by convolution, graph": altered(FP8_GRAPH, *BY_CONVOLUTION),
    "NF4 fused, compiled, graph": NF4_GRAPH,
    "NF4 fused, GELU left to the compiler, compiled, graph": altered(NF4_GRAPH, type(nf4_fused.FORMAT), "fuse", lambda _, block: block),
    "NF4 fused, double quantization, compiled, graph": ours(
        FusedNF4(format="nf4_fused", double_quantization=True, products="16-bit"), "compile_graph"
    ),
    "NF4 fused, turns as large as a layer, compiled, graph": altered(NF4_GRAPH, nf4_prefetch, "BY_BLOCKS_FROM", MORE),
    "NF4 fused, turns as large as a block, compiled, graph": altered(NF4_GRAPH, nf4_prefetch, "BY_BLOCKS_FROM", 0),
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
# What made fp8 faster, each part of it left out.
PARTS = {
    "bf16, compiled, GELU by our pass, graph": with_our_gelu,
    "fp8, attention coded, graph": CODED,
    "fp8, attention cudnn, graph": FP8_GRAPH,
    "fp8, attention coded, no tall tile, graph": altered(CODED, gemm, "TALL_TILE", gemm.TMA_TILE),
    "fp8, attention cudnn, no tall tile, graph": altered(FP8_GRAPH, gemm, "TALL_TILE", gemm.TMA_TILE),
    "W8A8, graph": W8A8_GRAPH,
    "NF4 with fp8 products, attention coded, graph": ours(
        FusedNF4(format="nf4_fused", double_quantization=False, products="fp8"), "cuda_graph", "coded"
    ),
}
REFERENCE_SIDE = ours(HighPrecision(), "compile_graph")
GROUPS = {"ours": OURS, "torchao": TORCHAO, "gemlite": GEMLITE}
BY_NAME = GROUPS | {"parts": PARTS}  # the last by its name alone


def fresh(qkv: QkvLayout = "fused", attention: AttentionName = "cudnn") -> VisionTransformer:
    """A ViT-L/16 in fp32 on the GPU, the same for every side."""
    torch.manual_seed(0)
    with torch.device("cuda"):  # drawn there: on a CPU it takes seconds, once for each side
        return VisionTransformer(ARCH, num_classes=CLASSES, attention=attention, qkv=qkv).eval()


def plain() -> VisionTransformer:
    """The same in bf16."""
    model = fresh()
    precision.apply_plan(model, Plan(compute_dtype="bf16"))
    return model.eval()
