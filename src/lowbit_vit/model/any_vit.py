"""Quantize another library's ViT in place: its blocks become ours, all else stays as it is, with `forward`, pooling and hooks on blocks.

The layers of block i have the names that plans know: `blocks.i.attention.qkv`, `.out`, `blocks.i.mlp.fc1`, `.fc2`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.model import attention, families, precision
from lowbit_vit.model.block_spec import LINEARS, BlockSpec, SpecBlock
from lowbit_vit.model.families.timm_eva import keep_tables
from lowbit_vit.model.formats.nf4 import BLOCK
from lowbit_vit.model.fused import FusedBlock
from lowbit_vit.model.graphs import Graphs
from lowbit_vit.model.kernels.coded import VECTOR
from lowbit_vit.schema.allocation import load_plan_file
from lowbit_vit.schema.config import AttentionName
from lowbit_vit.schema.plan import FP8, NF4, W8A8, ComputeDtype, FusedNF4, HighPrecision, Int8, Plan, Weights, uniform

THRESHOLD = 6.0  # of LLM.int8, as in its paper and in transformers
_NAMES: dict[torch.dtype, ComputeDtype] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Block(nn.Module):
    """What stands in the place of a library's block: called as it was, it runs ours.

    Args:
        inner: a `SpecBlock`, or the block that its format runs in its place.
        name: the path in the model, for messages.
        padded: what was added to the MLP's width.
    """

    def __init__(self, inner: nn.Module, *, name: str, padded: int) -> None:
        super().__init__()
        self.inner: SpecBlock | FusedBlock = inner  # type: ignore[assignment]
        self.name, self.padded = name, padded

    @torch.compiler.disable(reason="a quantized block has kernels of its own")  # type: ignore[no-untyped-call,untyped-decorator]
    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:  # noqa: FBT001, FBT002  (timm's)
        """Map tokens to tokens, [B, N, W] -> [B, N, W].

        Raises:
            ConfigError: in training mode, or with a mask.
        """
        if self.training:
            raise ConfigError(f"{self.name}: a quantized block is for evaluation; call model.eval()")
        if attn_mask is not None or is_causal:
            raise ConfigError(f"{self.name}: a quantized block takes no attention mask")
        out: Tensor = self.inner(x, rope)
        return out

    def linears(self) -> dict[str, nn.Module]:
        """The four layers by name, in the order of the forward pass."""
        return {name: self.inner.get_submodule(name) for name in LINEARS}

    def _apply(self, fn: Any, recurse: bool = True) -> "Block":  # noqa: FBT001, FBT002  (torch's)
        """Codes and scales do not survive `.half()` or `.cpu()`.

        Raises:
            ConfigError: they would be cast or moved.
        """
        norm = self.inner.norm1.weight
        after = fn(norm.detach()[:1])
        if (after.dtype, after.device) != (norm.dtype, norm.device):
            raise ConfigError(f"{self.name}: a quantized model is not cast or moved; do so before quantize_, or load it on another device")
        return self


class _Patches(nn.Conv2d):
    """A patch embedding that takes images of any floating dtype; on CUDA a GEMM, as `vit.VisionTransformer.patches`."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, Y, X] -> [B, W, Y / P, X / P]."""
        images = images.to(self.weight.dtype)
        (down, across), (rows, columns) = self.kernel_size, images.shape[2:]
        tiled = self.stride == self.kernel_size and self.padding == (0, 0) and self.groups == 1 and not rows % down and not columns % across
        if not (images.is_cuda and tiled):
            return super().forward(images)
        cut = images.reshape(len(images), -1, rows // down, down, columns // across, across)
        flat = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return nn.functional.linear(flat, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Facts:
    """What is remembered of a quantized model.

    Attributes:
        family: its name in `families.FAMILIES`.
        plan: of its blocks.
        left: path and reason of each block that stayed the library's.
    """

    family: str
    plan: Plan
    left: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layer:
    """One layer of a quantized model.

    Attributes:
        name: as in plans.
        format: its name, such as fp8 or nf4-dq.
        shape: outputs and inputs, padding included.
        bytes: of codes, scales and bias.
        padded: outputs or inputs of these that were added.
    """

    name: str
    format: str
    shape: tuple[int, int]
    bytes: int
    padded: int


@dataclass(frozen=True)
class Description:
    """What each layer of a model became; `str` is a table.

    Attributes:
        layers: of the blocks that are ours.
        left: path and reason of each block that stayed the library's.
        attention: the kernel, or the two of 8 bits: which takes up to how many tokens.
        dtype: of activations and of all that is not quantized.
        bytes: of the whole model.
    """

    layers: tuple[Layer, ...]
    left: tuple[tuple[str, str], ...]
    attention: str
    dtype: str
    bytes: int

    def __str__(self) -> str:
        rows = [("layer", "format", "shape", "KiB", "padded")]
        rows += [
            (each.name, each.format, " x ".join(map(str, each.shape)), f"{each.bytes / 1024:,.1f}", str(each.padded or ""))
            for each in self.layers
        ]
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"{path}  {self.dtype}, the library's own: {reason}" for path, reason in self.left]
        return "\n".join([*lines, f"{self.bytes / 2**20:,.1f} MiB in all; the rest in {self.dtype}; attention {self.attention}"])


def quantize_(
    model: nn.Module, what: str | Path | Plan, *, partial: bool = False, execution: str = "eager", dtype: torch.dtype | None = None
) -> nn.Module:
    """Quantize the encoder blocks of torchvision's or timm's ViT, in place.

    Args:
        model: in evaluation mode, in floating point, on the device where it is to run.
        what: "fp8", "w8a8", "nf4", "int8" (LLM.int8 with its threshold of 6), a plan, or the path of a plan's file. "nf4" is
            bitsandbytes' on the CPU and its codes in this project's kernels on CUDA.
        partial: leave blocks that are not supported as they are, in the dtype of the rest, instead of raising.
        execution: eager; or cuda_graph, for calls of the model itself (`graphs.Graphs`).
        dtype: of activations and of all that is not quantized. None: the plan's; without a plan the model's own, but on CUDA bf16 for
            a model in fp32.

    Returns:
        The model.

    Raises:
        ConfigError: the model or a block is not supported (names the module and the reason), or it is in training mode.
        Unavailable: the format or the execution does not run on the model's device.
    """
    if execution not in ("eager", "cuda_graph"):
        raise ConfigError(f"execution {execution!r} is not known; allowed: eager, cuda_graph")
    name, family = families.family_of(model)
    if model.training:
        raise ConfigError("quantize_: the model is in training mode; call model.eval() first")
    path, container = family.blocks(model)
    specs, left = read_specs(family, container, path=path, partial=partial)
    first = next(model.parameters())
    plan = _plan(what, first, dtype, depth=len(container))
    require_runs(plan, first.device, execution=execution)
    kernel = attention_kernel(plan, first.device, specs)
    blocks = {
        place: _convert(spec, plan, place, kernel, name=f"{path}.{place}", formats=_formats(plan, specs)) for place, spec in specs.items()
    }
    install(model, family, blocks, Facts(name, plan, left), execution=execution)
    return model


def read_specs(family: Any, container: Any, *, path: str, partial: bool) -> tuple[dict[int, BlockSpec], tuple[tuple[str, str], ...]]:
    """The specs of the blocks by place, and path and reason of those that have none.

    Raises:
        ConfigError: there are such, and `partial` is false; or a layer inside a block has hooks, which would be lost.
    """
    specs, left = {}, []
    for place, block in enumerate(container):
        try:
            specs[place] = family.spec(block)
            for inside, module in block.named_modules():
                if inside and (module._forward_hooks or module._forward_pre_hooks):  # noqa: SLF001
                    raise families.Unsupported(inside, "it has hooks, which would be lost; hooks on the block itself are kept")
        except families.Unsupported as refusal:
            specs.pop(place, None)
            left.append((f"{path}.{place}", str(refusal)))
    if left and (not partial or not specs):
        where, reason = left[0]
        raise ConfigError(f"{where}.{reason}; {len(left)} of {len(container)} blocks; partial=True leaves them as they are")
    return specs, tuple(left)


def _plan(what: str | Path | Plan, first: Tensor, dtype: torch.dtype | None, *, depth: int) -> Plan:
    if isinstance(what, Plan):
        return what if dtype is None else what.model_copy(update={"compute_dtype": _named(dtype)})
    on_cuda = first.device.type == "cuda"
    compute = dtype or (torch.bfloat16 if on_cuda and first.dtype == torch.float32 else first.dtype)
    single = {"format": "nf4_fused", "double_quantization": False, "products": "16-bit"}
    known: dict[str, Weights] = {
        "fp8": FP8(format="fp8"),
        "w8a8": W8A8(format="w8a8"),
        "nf4": FusedNF4.model_validate(single) if on_cuda else NF4(format="nf4", double_quantization=False),
        "int8": Int8(format="int8", threshold=THRESHOLD),
    }
    if isinstance(what, str) and what in known:
        return uniform(known[what], _named(compute))
    if isinstance(what, str) and not what.endswith((".json", ".yaml", ".yml")):
        raise ConfigError(f"quantize_: {what!r} is no format; allowed: {', '.join(known)}, a Plan, or the path of a plan (.json, .yaml)")
    read = load_plan_file(Path(what)).plan(depth)
    return read if dtype is None else read.model_copy(update={"compute_dtype": _named(dtype)})


def _named(dtype: torch.dtype) -> ComputeDtype:
    if dtype not in _NAMES:
        raise ConfigError(f"dtype {str(dtype).removeprefix('torch.')} is not supported; allowed: float32, float16, bfloat16")
    return _NAMES[dtype]


def require_runs(plan: Plan, device: torch.device, *, execution: str) -> None:
    """Refuse a plan that cannot run on the device.

    Raises:
        Unavailable: it cannot; one line.
    """
    for weights in {rule.weights.name: rule.weights for rule in plan.rules}.values():
        if weights.capability is None:
            if execution == "cuda_graph" and weights.host_sync:
                raise Unavailable(f"execution cuda_graph: {weights.host_sync}; use eager, or a plan with threshold 0")
            continue
        if device.type != "cuda":
            raise Unavailable(f"{weights.name} needs CUDA, the model is on {device.type}; there int8 and nf4 run")
        if torch.cuda.get_device_capability(device) < weights.capability:
            least = ".".join(map(str, weights.capability))
            raise Unavailable(f"{weights.name} needs compute capability {least}; {torch.cuda.get_device_name(device)} is older")
        if plan.compute_dtype not in ("fp16", "bf16"):
            raise Unavailable(f"{weights.name} takes activations in 16 bits, the plan says {plan.compute_dtype}; give dtype=torch.bfloat16")
    if execution == "cuda_graph" and device.type != "cuda":
        raise Unavailable(f"execution cuda_graph needs CUDA, the model is on {device.type}; use eager")


def attention_kernel(plan: Plan, device: torch.device, specs: dict[int, BlockSpec]) -> AttentionName:
    """The first of the kernels that runs the plan's dtype and these heads: cuDNN, flash, efficient, math.

    Raises:
        Unavailable: none does.
    """
    width = next(iter(specs.values())).head_width
    names: tuple[AttentionName, ...] = ("cudnn", "flash", "efficient", "math") if device.type == "cuda" else ("flash",)
    reason = None
    for name in names:
        try:
            attention.require(name, device=device, dtype=precision.compute_dtype(plan), head_width=width)
        except Unavailable as refusal:
            reason = refusal
        else:
            return name
    raise reason or Unavailable("no attention kernel")


def _formats(plan: Plan, specs: dict[int, BlockSpec]) -> dict[str, Weights]:
    formats = plan.resolve([f"blocks.{place}.{name}" for place in specs for name in LINEARS])
    precision.require_whole(formats, fused=True)
    return formats


def layout(formats: dict[str, Weights], place: int) -> tuple[int, bool]:
    """What a block's formats ask of its linears: a multiple for the MLP's width, and whether LayerScale is folded."""
    used = [formats[f"blocks.{place}.{name}"] for name in LINEARS]
    # On CUDA int8 products of other widths leave bitsandbytes' fast path.
    multiple = max(BLOCK if isinstance(each, NF4 | FusedNF4) else 1 if isinstance(each, HighPrecision) else VECTOR for each in used)
    return multiple, any(each.whole_blocks for each in used)


def _convert(spec: BlockSpec, plan: Plan, place: int, kernel: AttentionName, *, name: str, formats: dict[str, Weights]) -> Block:
    dtype = precision.compute_dtype(plan)
    multiple, fold = layout(formats, place)
    made: dict[str, nn.Module] = {}
    for inside, linear in spec.linears(multiple=multiple, fold=fold):
        full = f"blocks.{place}.{inside}"
        made[inside] = precision.convert_linear(linear, formats[full], dtype, name=full)
    return finish(
        SpecBlock(spec, made, kernel=kernel, dtype=dtype, fold=fold), formats, place, name=name, padded=-spec.mlp_width % multiple
    )


def finish(block: SpecBlock, formats: dict[str, Weights], place: int, *, name: str, padded: int) -> Block:
    """The block as its format runs it, in what is called in the library's place."""
    form = precision.format_named(formats[f"blocks.{place}.mlp.fc1"].format)
    return Block(form.fuse(block), name=name, padded=padded).eval()


def install(model: nn.Module, family: Any, blocks: dict[int, Block], facts: Facts, *, execution: str) -> None:
    """Put blocks into a model, and cast and freeze the rest of it."""
    dtype = precision.compute_dtype(facts.plan)
    _, container = family.blocks(model)
    names = list(container._modules)  # noqa: SLF001  (torchvision's have names)
    for place, block in blocks.items():
        for hooks in _HOOKS:  # the same objects, so handles go on removing them
            setattr(block, hooks, getattr(container[place], hooks))
        container._modules[names[place]] = nn.Identity()  # noqa: SLF001
    model.to(dtype)  # in the library's own way: timm keeps the periods of rotary positions in fp32
    for place, block in blocks.items():
        container._modules[names[place]] = block  # noqa: SLF001
    first = family.patches(model)
    if type(first) is nn.Conv2d:
        first.__class__ = _Patches
    if getattr(model, "rope", None) is not None:
        keep_tables(model)
    model.requires_grad_(requires_grad=False)
    model.lowbit_vit = facts  # type: ignore[assignment]
    if execution == "cuda_graph":
        model.forward = Graphs(model, list(blocks.values()))


def facts_of(model: nn.Module) -> Facts:
    """What `quantize_` remembered.

    Raises:
        ConfigError: the model was not quantized by it.
    """
    facts = getattr(model, "lowbit_vit", None)
    if not isinstance(facts, Facts):
        raise ConfigError(f"{type(model).__name__} was not quantized by lowbit_vit.quantize_")
    return facts


def blocks_of(model: nn.Module) -> dict[int, Block]:
    """The model's blocks that are ours, by place."""
    _, container = families.FAMILIES[facts_of(model).family].blocks(model)
    return {place: block for place, block in enumerate(container) if isinstance(block, Block)}


def describe(model: nn.Module) -> Description:
    """What each layer of a quantized model became.

    Raises:
        ConfigError: the model was not quantized by `quantize_`.
    """
    facts, blocks, layers = facts_of(model), blocks_of(model), []
    for place, block in blocks.items():
        for inside, layer in block.linears().items():
            name = f"blocks.{place}.{inside}"
            padded = 0 if inside.startswith("attention") else block.padded * (2 if inside == "mlp.fc1" and block.inner.mlp.gated else 1)
            shape = (layer.out_features, layer.in_features)
            layers.append(Layer(name, precision.format_of(layer, name=name).name, shape, precision.weight_bytes(layer), padded))  # type: ignore[arg-type]
    kernels = dict.fromkeys(attention_of(block.inner) for block in blocks.values())
    return Description(tuple(layers), facts.left, "; ".join(kernels), facts.plan.compute_dtype, precision.weight_bytes(model))


def attention_of(block: SpecBlock | FusedBlock) -> str:
    """The kernel in words."""
    kernel = block.attention.kernel
    if isinstance(block, FusedBlock) and block.own_attention(1, 1):
        few = f"{attention.MOST_CODED_TOKENS} tokens of an image and {attention.MOST_CODED_ROWS} of all"
        return f"coded up to {few}, else {kernel}"
    return kernel


def high_precision(dtype: torch.dtype) -> Plan:
    """The plan that quantizes nothing: blocks in our modules, in this dtype."""
    return uniform(HighPrecision(), _named(dtype))
