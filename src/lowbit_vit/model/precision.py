"""Plan -> layers: every encoder linear becomes what the plan says, and the result is counted on the model itself.

The low-bit layers are bitsandbytes' own (`Linear8bitLt`, `Linear4bit`), on the CPU as on CUDA. Everything that the plan does
not quantize (head, norms, biases, positions, patch embedding, spared linears) is cast to the compute dtype, as in the paper.

Codes are always computed from the fp32 weights that the conversion is given, never from a 16-bit copy, so they do not depend
on the compute dtype. Two properties of bitsandbytes 0.50 that decide results, and what is done about them:

- LLM.int8 quantizes activations by way of fp16 whatever the compute dtype, and on the CPU it does so in evaluation only:
  in training mode the CPU path dequantizes the weights, multiplies in floating point and ignores the threshold.
- On CPUs with AVX512-BF16 an NF4 layer in evaluation would repack its weights and multiply in bf16, even under a plan that says
  fp32. That path is switched off: the same plan means the same arithmetic on every CPU.
"""

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model import fast
from lowbit_vit.model.deferred import Deferred, is_loaded, load
from lowbit_vit.model.vit import VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import NF4, ComputeDtype, Fused, FusedNF4, HighPrecision, Int8, Plan, Weights
from lowbit_vit.schema.record import LayerAudit

if TYPE_CHECKING:
    import bitsandbytes as bnb
else:
    bnb = Deferred("bitsandbytes")

NF4_BLOCK = 64  # weights that share one absmax: bitsandbytes' default and QLoRA's
NESTED_BLOCK = 256  # absmax values that share one second-level scale (double quantization); fixed in bitsandbytes

_DTYPES: dict[ComputeDtype, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Said by bitsandbytes in every layer of every call when activations are fp32 or bf16; the module's docstring says it once.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(lambda entry: "inputs will be cast from" not in entry.getMessage())


def import_bitsandbytes(plans: Iterable[Plan]) -> None:
    """Import bitsandbytes now if a plan needs it: the seconds are the process's start and belong to no part of a trial."""
    if any(isinstance(rule.weights, Int8 | NF4 | FusedNF4) for plan in plans for rule in plan.rules):
        load("bitsandbytes")


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
            one of our formats is given to a part of a block or beside separate q, k and v.
        LowbitVitError: the model does not hold what the plan says after conversion (a defect of ours or of bitsandbytes).
    """
    formats = plan.resolve(encoder_linears(model))
    fast.require_whole(formats, fused=model.qkv == "fused")
    dtype = compute_dtype(plan)
    converted = {id(linear): convert_linear(linear, formats[name], dtype, name=name) for name, linear in encoder_linears(model).items()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in converted:
                setattr(parent, name, converted[id(child)])
    _cast(model, dtype)
    fast.fuse_blocks(model.blocks)
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
    if any(isinstance(weights, Fused) for weights in formats.values()):
        raise ConfigError("block: formats of our own kernels are for whole models; scans take int8 and nf4")
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
    source = linear.weight.detach()
    bias = linear.bias.detach().to(dtype, copy=True)
    if isinstance(weights, Int8):
        # bitsandbytes defines int8 codes on fp16 weights; the same call as in Int8Params, which refuses weights already on a card.
        codes, scales, _ = bnb.functional.int8_vectorwise_quant(source.half())
        return int8_linear(codes, scales, bias, threshold=weights.threshold).train(linear.training)
    if isinstance(weights, NF4):
        if linear.in_features % NF4_BLOCK:
            raise ConfigError(f"{name}: in_features {linear.in_features} is no multiple of {NF4_BLOCK}, so NF4 blocks would straddle rows")
        codes, state = bnb.functional.quantize_4bit(
            source.contiguous(), blocksize=NF4_BLOCK, compress_statistics=weights.double_quantization, quant_type="nf4"
        )
        state.dtype = dtype  # what the backward pass dequantizes to
        return nf4_linear(codes, state, bias, dtype).train(linear.training)
    if isinstance(weights, Fused):
        return fast.convert(source, bias, weights, name=name).train(linear.training)
    plain = nn.Linear(linear.in_features, linear.out_features, device="meta")
    plain.weight = nn.Parameter(source.to(dtype, copy=True), requires_grad=linear.weight.requires_grad)
    plain.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    return plain.train(linear.training)


def int8_linear(codes: Tensor, scales: Tensor, bias: Tensor, *, threshold: float) -> nn.Module:
    """The real `Linear8bitLt` around existing codes (int8 [out, in]) and row scales (fp32 [out]), ready to run."""
    out_features, in_features = codes.shape
    layer: Any = bnb.nn.Linear8bitLt(in_features, out_features, has_fp16_weights=False, threshold=threshold, device="meta")
    layer.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    # Done by the first forward otherwise, which would then change the layer under a saved state or a captured graph.
    layer.init_8bit_state()
    module: nn.Module = layer
    return module


def nf4_linear(codes: Tensor, state: "bnb.functional.QuantState", bias: Tensor, dtype: torch.dtype) -> nn.Module:
    """The real `Linear4bit` around existing codes (uint8 [out * in / 2, 1]) and their quantization state, ready to run."""
    out_features, in_features = state.shape
    nested = bool(state.nested)
    layer: Any = bnb.nn.Linear4bit(
        in_features, out_features, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4", device="meta"
    )
    layer.weight = bnb.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=nested,
        quant_type="nf4",
        module=layer,
        bnb_quantized=True,
    )
    layer.quant_state = state
    layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.support_avx512bf16_for_cpu = False  # see the module's docstring
    module: nn.Module = layer
    return module


def audit(model: VisionTransformer) -> LayerAudit:
    """Count what the encoder's linears really are, below any adapters.

    Raises:
        LowbitVitError: a layer of a kind that no plan makes.
    """
    formats = [format_of(base_layer(layer), name=name) for name, layer in encoder_linears(model).items()]
    return LayerAudit(linears=len(formats), by_format=dict(Counter(weights.name for weights in formats)))


def base_layer(layer: nn.Module) -> nn.Module:
    """The linear below an adapter, or the layer itself."""
    inner = getattr(layer, "base_layer", layer)
    return inner if isinstance(inner, nn.Module) else layer


def is_int8(layer: nn.Module) -> "TypeGuard[bnb.nn.Linear8bitLt]":
    """Whether this is bitsandbytes' int8 layer; asking does not import bitsandbytes."""
    return is_loaded("bitsandbytes") and isinstance(layer, bnb.nn.Linear8bitLt)


def is_nf4(layer: nn.Module) -> "TypeGuard[bnb.nn.Linear4bit]":
    """Whether this is bitsandbytes' 4-bit layer; asking does not import bitsandbytes."""
    return is_loaded("bitsandbytes") and isinstance(layer, bnb.nn.Linear4bit)


def format_of(layer: nn.Module, *, name: str) -> Weights:
    """The format that a layer really has, read from its class, its parameters and its state.

    Raises:
        LowbitVitError: a layer of a kind that no plan makes.
    """
    if type(layer) is nn.Linear and layer.weight.dtype.is_floating_point:
        return HighPrecision()
    ours = fast.format_of(layer)
    if ours is not None:
        return ours
    if is_int8(layer) and layer.weight.dtype == torch.int8 and not layer.state.has_fp16_weights:
        return Int8(format="int8", threshold=layer.state.threshold)
    if is_nf4(layer) and layer.weight.dtype == torch.uint8 and layer.weight.quant_type == "nf4":
        return NF4(format="nf4", double_quantization=layer.weight.quant_state.nested)
    raise LowbitVitError(f"{name}: {type(layer).__name__} in {_dtype_of(layer)} is no format of a plan")


def restored_weight(layer: nn.Module) -> Tensor:
    """The weights that a low-bit layer computes with, fp32 [out, in].

    Raises:
        LowbitVitError: it is no low-bit layer.
    """
    if is_nf4(layer):
        weight: Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight.float()
    if is_int8(layer):
        codes: Tensor = layer.state.CB
        restored: Tensor = codes.float() * layer.state.SCB[:, None] / 127
        return restored
    raise LowbitVitError(f"{type(layer).__name__} is no low-bit layer")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything that the model's values are made of, as held in memory; each storage once.

    Counted: all parameters and buffers, adapters among them; int8 row scales; NF4's absmax and, with double quantization, the
    8-bit absmax, their second-level scales and the 4-byte offset. Not counted: the 16 NF4 levels and the 256 levels of the
    8-bit code, which are constants of the format and the same in every model.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if is_int8(module):
            scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
            tensors.append(scales)
        elif is_nf4(module):
            state = module.weight.quant_state
            tensors.append(state.absmax)
            if state.nested:
                tensors += [state.state2.absmax, state.offset]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def expected_bytes(model: VisionTransformer, plan: Plan) -> int:
    """What `weight_bytes` must be after `apply_plan`, from the shapes alone; the model may lie on the meta device.

    Source of the formats' overheads: LLM.int8() section 3.1 (one fp32 scale a row), QLoRA section 3 (one fp32 absmax for 64
    weights; with double quantization one byte, plus one fp32 for 256 of them, plus one fp32 mean a layer).
    """
    linears = encoder_linears(model)
    formats = plan.resolve(linears)
    itemsize = compute_dtype(plan).itemsize
    total = sum(parameter.numel() for parameter in model.parameters()) * itemsize
    for name, weights in formats.items():
        weight = linears[name].weight
        if not isinstance(weight, Tensor):
            raise LowbitVitError(f"{name}: not a linear layer")
        if not isinstance(weights, HighPrecision):
            total += _coded_bytes(weight, weights) - weight.numel() * itemsize
    return total


def _coded_bytes(weight: Tensor, weights: Int8 | NF4 | Fused) -> int:
    if isinstance(weights, FusedNF4):
        rows = 0 if weights.products == "16-bit" else 4 * weight.shape[0]
        return rows + _coded_bytes(weight, NF4(format="nf4", double_quantization=weights.double_quantization))
    if not isinstance(weights, NF4):
        return weight.numel() + 4 * weight.shape[0]
    blocks = weight.numel() // NF4_BLOCK
    if not weights.double_quantization:
        return weight.numel() // 2 + 4 * blocks
    return weight.numel() // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK) + 4


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast every floating-point parameter and buffer outside bitsandbytes' layers, in place."""
    for module in model.modules():
        if is_int8(module) or is_nf4(module) or fast.format_of(module) is not None:
            continue  # codes and scales keep their dtypes, biases were cast before
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _dtype_of(layer: nn.Module) -> str:
    first = next(layer.parameters(), None)
    return "no dtype" if first is None else str(first.dtype).removeprefix("torch.")
