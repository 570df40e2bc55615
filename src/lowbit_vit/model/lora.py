"""Adaptation: LoRA on the query and value projections and a trained head, over frozen weights of any format.

The adapters are peft's, attached after quantization. peft takes its bitsandbytes classes only for a model that is marked as
loaded in 4 or 8 bits; unmarked, its plain class would silently wrap a quantized layer, train, and merge wrongly. So the model is
marked here and the class of every adapter is checked.

Adapters and head are trained in fp32, whatever the compute dtype, as in QLoRA: small AdamW steps would be lost in 16 bits. What is
then evaluated, measured and saved is settled: merged where that is exact, cast to the compute dtype where it is not.

Sources: Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685; Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.lazy_import import Deferred, is_loaded, load
from lowbit_vit.model.precision import format_named, format_of
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import Adaptation
from lowbit_vit.schema.plan import HighPrecision

if TYPE_CHECKING:
    import peft
else:
    peft = Deferred("peft")

ADAPTER = "default"  # peft's name of the one adapter; part of the tensors' names in saved files
_MARKS = ("is_loaded_in_4bit", "is_loaded_in_8bit")


class TrainedHead(nn.Linear):
    """The classification head in fp32 below an encoder of any dtype: [B, W] in the encoder's dtype -> fp32 logits [B, K]."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in nn.Linear)
        """Cast the features to the head's dtype, then classify."""
        return nn.functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


def import_peft() -> None:
    """Import peft now, as `precision.import_formats` does its libraries."""
    load("peft")


def attach(model: VisionTransformer, adaptation: Adaptation, *, seed: int) -> None:
    """Wrap q and v of every block in place with zero-effect adapters, and freeze everything but adapters and head.

    The names of `encoder_linears` stay; the quantized or plain layer is then the wrapper's `base_layer`.

    Args:
        model: in its final precision (quantize first), separate qkv layout, without adapters.
        adaptation: rank, alpha and dropout; the update is alpha / rank * B A.
        seed: of A's initial values, drawn on the CPU so that they are the same on every device and in every format. B starts at zero.

    Raises:
        ConfigError: the layout is fused, or there are adapters already.
        LowbitVitError: peft wrapped a layer in another class than its format's, or something else became trainable.
    """
    wrap(model, rank=adaptation.rank, alpha=adaptation.alpha, dropout=adaptation.dropout)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trainable_parameters(model).items():
        if ".lora_A." in name:
            # LoRA's own start, as in peft.
            drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)


def wrap(model: VisionTransformer, *, rank: int, alpha: float, dropout: float) -> None:
    """As `attach`, with A and B all zero: what a saved model's adapters are loaded into.

    Raises:
        ConfigError, LowbitVitError: as `attach`.
    """
    if model.qkv == "fused":
        raise ConfigError("lora: the fused qkv layout has no query and value layers of their own to adapt; use qkv: separate")
    if adapters(model):
        raise ConfigError("lora: the model has adapters already; merge them first")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=r"blocks\.\d+\.attention\.[qv]", bias="none")
    vars(model).update(dict.fromkeys(_MARKS, True))
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for mark in _MARKS:
        vars(model).pop(mark)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.zeros(parameter.shape, device=parameter.device)
    _train_head(model)
    model.train(model.training)  # new modules start in training mode, where dropout acts
    _check(model)


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers (peft's wrappers) by the name of the layer that they stand for, in order."""
    if not is_loaded("peft"):
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training changes, by name: after `attach`, the adapters' A and B and the head's weight and bias."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: VisionTransformer) -> None:
    """Add the adapters into the weights below them, W + alpha / rank * B A, in place; the model's names are then the plain ones.

    Exact up to the rounding of the base weights' dtype. The head takes the encoder's dtype again; everything may be trained again.

    Raises:
        ConfigError: there are no adapters, or a layer below one is quantized: its codes would have to be made again, which is
            another model than the one that was trained.
    """
    wrapped = adapters(model)
    if not wrapped:
        raise ConfigError("lora: the model has no adapters to merge")
    for name, layer in wrapped.items():
        weights = format_of(_base(layer), name=name)
        if not isinstance(weights, HighPrecision):
            raise ConfigError(f"lora: {name} is {weights.name}; adapters merge into floating-point weights only, keep them unmerged")
    for name, layer in wrapped.items():
        layer.merge(safe_merge=False, adapter_names=[ADAPTER])  # type: ignore[operator] # peft's method
        parent, _, place = name.rpartition(".")
        setattr(model.get_submodule(parent), place, _base(layer))
    vars(model).pop("peft_config", None)
    _plain_head(model)
    model.requires_grad_()


def settle(model: VisionTransformer) -> None:
    """Turn a trained model into the one that is used, in place; nothing is trainable afterwards.

    If every adapted layer is in floating point, the adapters are merged. If not, they stay where they are, and take the
    encoder's dtype, as the head does: left in fp32, every adapter would cast a 16-bit layer's input up and its output down.

    Raises:
        ConfigError: there are no adapters.
    """
    wrapped = adapters(model)
    if all(isinstance(format_of(_base(layer), name=name), HighPrecision) for name, layer in wrapped.items()):
        merge(model)
    else:
        cast(model)
    model.requires_grad_(requires_grad=False)


def cast(model: VisionTransformer) -> None:
    """Give adapters, head and biases the encoder's dtype, in place.

    Biases, because a low-bit layer's forward gives its own the dtype of its input, and under autocast that is fp32.
    """
    dtype = model.norm.weight.dtype
    for name, parameter in model.named_parameters():
        if ".lora_" in name or name.endswith(".bias"):
            parameter.data = parameter.data.to(dtype)
    _plain_head(model)


def _plain_head(model: VisionTransformer) -> None:
    dtype = model.norm.weight.dtype
    head = nn.Linear(model.head.in_features, model.head.out_features, device="meta")
    head.weight = nn.Parameter(model.head.weight.detach().to(dtype))
    head.bias = nn.Parameter(model.head.bias.detach().to(dtype))
    model.head = head.train(model.training)


def _train_head(model: VisionTransformer) -> None:
    head = TrainedHead(model.head.in_features, model.head.out_features, device="meta")
    head.weight = nn.Parameter(model.head.weight.detach().float())
    head.bias = nn.Parameter(model.head.bias.detach().float())
    model.head = head


def _check(model: VisionTransformer) -> None:
    """The classes and the frozen rest are what they must be: two adapters a block, and nothing but them and the head trains."""
    wrapped = adapters(model)
    if len(wrapped) != 2 * model.architecture.depth:
        raise LowbitVitError(f"lora: peft wrapped {len(wrapped)} layers, expected q and v of {model.architecture.depth} blocks")
    for name, layer in wrapped.items():
        kind = format_named(format_of(_base(layer), name=name).format).adapter
        if kind is None or type(layer) is not getattr(peft.tuners.lora, kind):
            raise LowbitVitError(f"lora: peft wrapped {name} in {type(layer).__name__}, expected its {kind}")
    expected = {f"{name}.{part}.{ADAPTER}.weight" for name in wrapped for part in ("lora_A", "lora_B")} | {"head.weight", "head.bias"}
    trained = trainable_parameters(model)
    wrong = sorted(set(trained) ^ expected)
    if wrong:
        raise LowbitVitError(f"lora: only adapters and head may train, but {wrong[0]} does not follow that ({len(wrong)} in all)")
    sixteen_bit = [name for name, parameter in trained.items() if parameter.dtype != torch.float32]
    if sixteen_bit:
        raise LowbitVitError(f"lora: {sixteen_bit[0]} is {trained[sixteen_bit[0]].dtype}, expected float32")


def _base(layer: nn.Module) -> nn.Module:
    base = layer.base_layer
    if not isinstance(base, nn.Linear):
        raise LowbitVitError(f"lora: {type(base).__name__} below an adapter")
    return base
