"""Plan -> layers: every encoder linear becomes what the plan says, and the result is counted on the model itself.

What a format makes of a linear is in its module (`formats`). Everything that the plan does not quantize (head, norms, biases,
positions, patch embedding, spared linears) is cast to the compute dtype, as in the paper. Codes are always computed from the fp32
weights that the conversion is given, never from a 16-bit copy, so they do not depend on the compute dtype.
"""

import copy
import importlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.formats import Format, high
from lowbit_vit.model.lazy_import import is_loaded, load
from lowbit_vit.model.vit import Block, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import FORMATS, ComputeDtype, Plan, Weights
from lowbit_vit.schema.record import LayerAudit

_DTYPES: dict[ComputeDtype, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def format_named(name: str) -> Format[Any]:
    """A format by the name that it has in plans; the first call imports its module."""
    return cast("Format[Any]", importlib.import_module(_module(name)).FORMAT)


def _module(name: str) -> str:
    return f"lowbit_vit.model.formats.{name}"


def import_formats(plans: Iterable[Plan]) -> None:
    """Import what the plans' formats need now: the seconds are the process's start and belong to no part of a trial."""
    for name in sorted({rule.weights.format for plan in plans for rule in plan.rules}):
        library = format_named(name).library
        if library is not None:
            load(library)


def compute_dtype(plan: Plan) -> torch.dtype:
    """The dtype of activations and unquantized weights; tf32 is stored as fp32 (see `matmul_mode`)."""
    return _DTYPES[plan.compute_dtype]


@contextmanager
def matmul_mode(plan: Plan) -> Iterator[None]:
    """Let CUDA's fp32 matmuls and convolutions use TF32 inside the block if, and only if, the plan's compute dtype is tf32."""
    # The older of PyTorch's two ways to say this. After the newer one (fp32_precision) the older cannot even be read without an
    # error, and the compiler and the efficient attention kernel read it.
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    _allow_tf32(matmul=plan.compute_dtype == "tf32", convolution=plan.compute_dtype == "tf32")
    try:
        yield
    finally:
        _allow_tf32(matmul=before[0], convolution=before[1])


def _allow_tf32(*, matmul: bool, convolution: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")  # torch before 2.15
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution


def apply_plan(model: VisionTransformer, plan: Plan) -> LayerAudit:
    """Convert a high-precision model in place, on the device where it lies, and check the result.

    Args:
        model: a `VisionTransformer` in fp32, without adapters (they are attached after quantization).
        plan: the format of each encoder linear, and the compute dtype of the rest.

    Returns:
        The audit, counted on the converted model.

    Raises:
        ConfigError: a pattern of the plan matches nothing, the model is not plain fp32, a layer's width is no multiple of 64, or
            a format of this project's kernels is given to a part of a block or beside separate q, k and v.
        LowbitVitError: the model does not hold what the plan says after conversion (a defect here or in bitsandbytes).
    """
    formats = plan.resolve(encoder_linears(model))
    require_whole(formats, fused=model.qkv == "fused")
    dtype = compute_dtype(plan)
    converted = {id(linear): convert_linear(linear, formats[name], dtype, name=name) for name, linear in encoder_linears(model).items()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in converted:
                setattr(parent, name, converted[id(child)])
    _cast(model, dtype)
    fuse_blocks(model)
    found = audit(model)
    expected = dict(Counter(weights.name for weights in formats.values()))
    if found.by_format != expected:
        raise LowbitVitError(f"plan {plan.name}: the model holds {found.by_format} after conversion, the plan says {expected}")
    return found


def convert_block(block: nn.Module, formats: Mapping[str, Weights], dtype: torch.dtype) -> nn.Module:
    """A new block in the given formats; the source block is not touched and shares no memory with the result.

    Equal, bit for bit, to the same block after `apply_plan`. For scans: keep one fp32 model resident, convert each block once
    in each format, and put the results in and out of a working model. A forward changes no converted block, so they can be reused.

    Args:
        block: one of `model.blocks`, in fp32.
        formats: by the linear's name inside the block, such as `attention.q`.
        dtype: the compute dtype.

    Raises:
        ConfigError: a name that is no linear of this block, or a missing one.
    """
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    if set(formats) != set(linears):
        raise ConfigError(f"block: formats for {sorted(formats)} but its linears are {sorted(linears)}")
    if any(weights.capability is not None for weights in formats.values()):
        raise ConfigError("block: formats of this project's kernels are for whole models; scans take int8 and nf4")
    # deepcopy takes what the memo holds instead of copying it, so no fp32 weight is copied only to be thrown away.
    memo: dict[int, object] = {id(linear): convert_linear(linear, formats[name], dtype, name=name) for name, linear in linears.items()}
    new = copy.deepcopy(block, memo)
    _cast(new, dtype)
    return new


def convert_linear(linear: nn.Module, weights: Weights, dtype: torch.dtype, *, name: str) -> nn.Module:
    """A new layer with this linear's weights in the given format, device and training mode; the source is not touched.

    Args:
        linear: `nn.Linear`, fp32, weight [out, in].
        weights: the format.
        dtype: the compute dtype; the bias is stored in it.
        name: for the error message.

    Raises:
        ConfigError: the layer is not a plain fp32 linear, or NF4 blocks of 64 would straddle its rows.
    """
    if type(linear) is not nn.Linear or linear.weight.dtype != torch.float32:
        raise ConfigError(f"{name}: {type(linear).__name__} in {_dtype_of(linear)} cannot be converted; give plain fp32 linears")
    bias = linear.bias.detach().to(dtype, copy=True)
    return format_named(weights.format).convert(linear, bias, weights, dtype, name=name).train(linear.training)


def fuse_blocks(model: VisionTransformer) -> None:
    """Replace every block that runs otherwise in the format of its fc1, in place."""
    for place, block in enumerate(model.blocks):
        if isinstance(block, Block):
            model.blocks[place] = format_named(format_of(block.mlp.fc1, name=f"blocks.{place}.mlp.fc1").format).fuse(block)


def take_over(model: VisionTransformer, plan: Plan) -> None:
    """Turn a model that was trained with adapters under `plan.trained` into one under the plan, in place.

    Args:
        model: as `lora.settle` leaves it.
        plan: gives every encoder linear one format.

    Raises:
        ConfigError: it gives several, or the model is not what the format can take over.
    """
    names = {rule.weights.format for rule in plan.rules}
    if len(names) != 1:
        raise ConfigError(f"plan {plan.name}: adapters are taken over by one format, not by {len(names)}")
    format_named(names.pop()).take_over(model)


def require_whole(formats: Mapping[str, Weights], *, fused: bool) -> None:
    """Refuse plans that no kernel of this project can run.

    Args:
        formats: of every encoder linear, by name.
        fused: whether q, k and v are one layer.

    Raises:
        ConfigError: a format of this project's kernels beside separate q, k and v, or a block in part in one that takes whole blocks.
    """
    of_block: dict[str, set[Weights]] = {}
    for name, weights in formats.items():
        if weights.capability is not None and not fused:
            raise ConfigError(f"{name}: {weights.name} needs q, k and v in one layer; set qkv: fused")
        of_block.setdefault(name.split(".attention.")[0].split(".mlp.")[0], set()).add(weights)
    for block, found in of_block.items():
        whole = sorted(weights.name for weights in found if weights.whole_blocks)
        if len(found) > 1 and whole:
            names = ", ".join(sorted(weights.name for weights in found))
            raise ConfigError(f"{block}: {names} in one block; {whole[0]} takes whole blocks, as by the pattern {block}.*")


def audit(model: VisionTransformer) -> LayerAudit:
    """Count what the encoder's linears really are, below any adapters.

    Raises:
        LowbitVitError: a layer of a kind that no plan makes.
    """
    formats = [format_of(base_layer(layer), name=name) for name, layer in encoder_linears(model).items()]
    return LayerAudit(by_format=dict(Counter(weights.name for weights in formats)))


def base_layer(layer: nn.Module) -> nn.Module:
    """The linear below an adapter, or the layer itself."""
    inner = getattr(layer, "base_layer", layer)
    return inner if isinstance(inner, nn.Module) else layer


def format_of(layer: nn.Module, *, name: str) -> Weights:
    """The format that a layer really has, read from its class, its parameters and its state.

    Raises:
        LowbitVitError: a layer of a kind that no plan makes.
    """
    found = _identified(layer)
    if found is None:
        raise LowbitVitError(f"{name}: {type(layer).__name__} in {_dtype_of(layer)} is no format of a plan")
    return found[1]


def formats_in(model: nn.Module) -> set[Weights]:
    """The formats of a model's layers; layers of no format are passed over."""
    return {found[1] for found in map(_identified, model.modules()) if found is not None}


def _identified(layer: nn.Module) -> tuple[Format[Any], Weights] | None:
    """A layer's format and its settings; only formats whose module was imported can have made it."""
    for name in FORMATS:
        form = high.FORMAT if name == "high" else format_named(name) if is_loaded(_module(name)) else None
        weights = None if form is None else form.identify(layer)
        if form is not None and weights is not None:
            return form, weights
    return None


def restored_weight(layer: nn.Module) -> Tensor:
    """The weights that a low-bit layer computes with, fp32 [out, in].

    Raises:
        LowbitVitError: it is no low-bit layer.
    """
    found = _identified(layer)
    if found is None:
        raise LowbitVitError(f"{type(layer).__name__} is no low-bit layer")
    return found[0].dequantize(layer)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything that the model's values are made of, as held in memory; each storage once.

    Counted: all parameters and buffers, adapters among them, and what low-bit layers keep beside these (`Format.constants`).
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        found = _identified(module)
        if found is not None:
            tensors += found[0].constants(module)
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def expected_bytes(model: VisionTransformer, plan: Plan) -> int:
    """What `weight_bytes` must be after `apply_plan`, from the shapes alone; the model may lie on the meta device."""
    linears = encoder_linears(model)
    itemsize = compute_dtype(plan).itemsize
    total = sum(parameter.numel() for parameter in model.parameters()) * itemsize
    for name, weights in plan.resolve(linears).items():
        weight = linears[name].weight
        if not isinstance(weight, Tensor):
            raise LowbitVitError(f"{name}: not a linear layer")
        rows, columns = weight.shape
        total += format_named(weights.format).expected_bytes(weights, rows, columns, itemsize=itemsize) - weight.numel() * itemsize
    return total


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast every floating-point parameter and buffer outside low-bit layers, in place."""
    for module in model.modules():
        found = _identified(module)
        if found is not None and found[0] is not high.FORMAT:
            continue  # codes and scales keep their dtypes, biases were cast before
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _dtype_of(layer: nn.Module) -> str:
    first = next(layer.parameters(), None)
    return "no dtype" if first is None else str(first.dtype).removeprefix("torch.")
