"""What `fast_path.py` times: every way to run the same ViT-L/16, by this package, bitsandbytes, torchao and gemlite.

A side makes, for an example of images, what is then called and timed. Weights are drawn anew for each, from one seed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch
import triton
from torch import Tensor, nn

from lowbit_vit.errors import Unavailable
from lowbit_vit.model import lora, nf4_prefetch, precision, vit
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.formats import nf4_fused
from lowbit_vit.model.kernels import attention as coded_attention
from lowbit_vit.model.kernels import gelu, gemm, pdl, quantize
from lowbit_vit.model.kernels.coded import Coded
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


@torch.library.custom_op("lowbit_vit_benchmarks::heads", mutates_args=())
def own_heads(qkv: Tensor, heads: int) -> Tensor:
    """Our attention in 16 bits: [B, N, 3 W] -> [B, N, W]."""
    return coded_attention.attend(qkv, heads=heads).view(*qkv.shape[:2], -1)


@own_heads.register_fake
def _(qkv: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


class OwnAttention(vit.Attention):
    """Attention in 16 bits by our kernel."""

    def mix(self, qkv_BNX: Tensor) -> Tensor:
        """[B, N, 3 W] -> [B, N, W]."""
        heads_BNW: Tensor = own_heads(qkv_BNX.contiguous(), self.heads)
        return heads_BNW


def bf16_with(*, gelu: bool, attention: bool) -> Callable[[Tensor], Forward]:
    """bf16 with compiled blocks, given what of ours needs no 8 bits: the pass of GELU that our NF4 has, the attention of our W8A8."""

    def make(example: Tensor) -> Forward:
        model = plain()
        for block in model.blocks:
            if gelu:
                block.mlp.fc1.__class__ = LinearGelu  # type: ignore[union-attr]
                block.mlp.activation = nn.Identity()  # type: ignore[union-attr]
            if attention:
                block.attention.__class__ = OwnAttention
        return prepare(model, "compile_graph", example)

    return make


def with_exact_gelu(make: Callable[[Tensor], Forward]) -> Callable[[Tensor], Forward]:
    """A side whose fc1 has the polynomial of degree 8: the GEMMs' functions made anew with another GELU."""
    names = {**vars(gemm), "gelu_for_codes": gelu.gelu}
    for name in ("gelu_codes", "finish_tile", "eight_bit_gemm_kernel", "eight_bit_gemm_tma_kernel"):
        names[name] = triton.jit(FunctionType(getattr(gemm, name).fn.__code__, names, name))
    for name in ("eight_bit_gemm_kernel", "eight_bit_gemm_tma_kernel"):
        make = altered(make, gemm, name, names[name])
    return make


def by_cublas(a: Coded, w: Coded, bias: Tensor, *, residual: Tensor | None = None, **others: Any) -> Tensor:
    """In place of `gemm.multiply`: qkv's GEMM by cuBLAS, which knows scales by rows; of many rows, in e4m3."""
    if residual is not None or a.codes.dtype != torch.float8_e4m3fn or len(a.codes) <= pdl.MOST_ROWS:
        return MULTIPLY(a, w, bias, residual=residual, **others)
    return torch._scaled_mm(  # noqa: SLF001  (there is no other name for it)
        a.codes, w.codes.T, scale_a=a.scales[:, None], scale_b=w.scales[None, :], bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


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
NF4_GRAPH = ours(FUSED, "compile_graph")
NF4_FP8_GRAPH = ours(FusedNF4(format="nf4_fused", double_quantization=False, products="fp8"), "cuda_graph")
MULTIPLY = gemm.multiply
MORE = 1 << 40  # than there are rows or columns
EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)
TALL_DEEP = gemm.TALL_TILE._replace(block_k=128, num_stages=2)
NO_CARD = (99, 0)
BY_CONVOLUTION: tuple[type, str, object] = (VisionTransformer, "patches", convolved)
OURS: dict[str, Callable[[Tensor], Forward]] = {
    "bf16, graph": ours(HighPrecision(), "cuda_graph"),
    "bf16, compiled, patches by convolution, graph": altered(ours(HighPrecision(), "compile_graph"), *BY_CONVOLUTION),
    "bf16, compiled, GELU by our pass, graph": bf16_with(gelu=True, attention=False),
    "bf16, eager": ours(HighPrecision(), "eager"),
    "W8A8, graph": W8A8_GRAPH,
    "fp8, graph": FP8_GRAPH,
    "W8A8, no kernel starts early, graph": altered(W8A8_GRAPH, pdl, "FROM", NO_CARD),
    "fp8, no kernel starts early, graph": altered(FP8_GRAPH, pdl, "FROM", NO_CARD),
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
    "NF4, fp8 products, graph": NF4_FP8_GRAPH,
    "bitsandbytes NF4, eager": ours(SINGLE, "eager"),
    "bitsandbytes NF4, graph": ours(SINGLE, "cuda_graph"),
    "bitsandbytes NF4, compiled, graph": ours(SINGLE, "compile_graph"),
    "bitsandbytes int8, threshold 6, eager": ours(Int8(format="int8", threshold=6.0), "eager"),
    "bitsandbytes int8, threshold 0, eager": ours(Int8(format="int8", threshold=0.0), "eager"),
    "bitsandbytes int8, threshold 0, graph": ours(Int8(format="int8", threshold=0.0), "cuda_graph"),
}
FP8_CODED, W8A8_CODED = (ours(weights, "cuda_graph", "coded") for weights in (FP8(format="fp8"), W8A8(format="w8a8")))
NF4_CODED = ours(FusedNF4(format="nf4_fused", double_quantization=False, products="fp8"), "cuda_graph", "coded")
# Each thing that our 8-bit blocks do to be fast, undone or in another way.
STEPS: dict[str, Callable[[Tensor], Forward]] = {
    "bf16, compiled, GELU by our pass, graph": bf16_with(gelu=True, attention=False),
    "bf16, compiled, GELU and attention ours, graph": bf16_with(gelu=True, attention=True),
    "fp8, attention coded, graph": FP8_CODED,
    "fp8, attention cudnn, graph": FP8_GRAPH,
    "fp8, coded, no tail of queries, graph": altered(FP8_CODED, coded_attention, "TAILS", ()),
    "fp8, coded, a program a tile of queries, graph": altered(FP8_CODED, coded_attention, "FILLED", MORE),
    "fp8, coded, no tall tile, graph": altered(FP8_CODED, gemm, "TALL_TILE", gemm.TMA_TILE),
    "fp8, coded, tall tiles where a fifth is saved, graph": altered(FP8_CODED, gemm, "TALL_FROM", 0.8),
    "fp8, coded, tall tiles 128 deep, graph": altered(FP8_CODED, gemm, "TALL_TILE", TALL_DEEP),
    "fp8, coded, by Gluon, graph": altered(FP8_CODED, gemm, "BY_GLUON", EIGHT_BIT),
    "fp8, coded, qkv by cuBLAS, graph": altered(FP8_CODED, gemm, "multiply", by_cublas),
    "fp8, coded, exact GELU in fc1, graph": with_exact_gelu(FP8_CODED),
    "fp8, coded, no programmatic launch at many rows, graph": altered(FP8_CODED, pdl, "MANY_ROWS", 0),
    "fp8, coded, no kernel starts early, graph": altered(FP8_CODED, pdl, "FROM", NO_CARD),
    "fp8, coded, norm passes of a warp and a row, graph": altered(
        altered(FP8_CODED, quantize, "NORM_COLUMNS", 1024), quantize, "ROWS_TOGETHER", 1
    ),
    "NF4, fp8 products, coded, graph": NF4_CODED,
    "NF4, fp8 products, coded, decoded layer by layer, graph": altered(
        NF4_CODED, type(nf4_fused.FORMAT), "prefetch", lambda *_, **__: None
    ),
    "W8A8, attention cudnn, graph": W8A8_GRAPH,
    "W8A8, attention coded, graph": W8A8_CODED,
    "W8A8, by Gluon, graph": altered(W8A8_GRAPH, gemm, "BY_GLUON", EIGHT_BIT),
    "W8A8, by Gluon, no tall tile, graph": altered(altered(W8A8_GRAPH, gemm, "BY_GLUON", EIGHT_BIT), gemm, "TALL_TILE", gemm.TMA_TILE),
    "W8A8, no programmatic launch at many rows, graph": altered(W8A8_GRAPH, pdl, "MANY_ROWS", 0),
}
TORCHAO = {
    "torchao int8 dynamic, compiled, graph": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8 dynamic by rows, compiled, graph": torchao("Float8DynamicActivationFloat8WeightConfig"),
}
GEMLITE = {
    "gemlite int8 dynamic, graph": gemlite("A8W8_int8_dynamic"),
    "gemlite fp8 dynamic, graph": gemlite("A8W8_fp8_dynamic"),
}
REFERENCE_SIDE = ours(HighPrecision(), "compile_graph")
GROUPS = {"ours": OURS, "torchao": TORCHAO, "gemlite": GEMLITE}
BY_NAME = GROUPS | {"steps": STEPS}  # the last by its name alone


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
