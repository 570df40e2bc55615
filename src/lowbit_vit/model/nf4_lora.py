"""Adapters over nf4_fused: trained through bitsandbytes' layers, then taken over with their codes, so that one GEMM computes both.

What is trained and what is used have the same codes and constants. In use, alpha / rank * B A is added to the weights while they are
decoded, in fp32, and the sum is rounded once; peft computes both GEMMs in 16 bits and adds the results. So no weight is merged into
codes, which would make another model.
"""

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model import lora
from lowbit_vit.model.formats.nf4 import is_nf4
from lowbit_vit.model.nf4_linear import FusedNF4Linear, from_bitsandbytes
from lowbit_vit.model.precision import base_layer, fuse_blocks
from lowbit_vit.model.vit import Block, VisionTransformer


def take_over(model: VisionTransformer) -> None:
    """Turn a trained model into one of nf4_fused layers, in place: q, k and v in one layer, adapters beside the codes.

    Args:
        model: as `lora.settle` leaves it; separate qkv layout, every linear of the encoder in bitsandbytes' NF4 without double
            quantization, in an fp16 or bf16 model.

    Raises:
        ConfigError: a layer is something else.
    """
    for place, block in enumerate(model.blocks):
        name = f"blocks.{place}"
        if not isinstance(block, Block) or block.attention.layout != "separate":
            raise ConfigError(f"{name}: {type(block).__name__}; adapters are trained over separate q, k and v")
        attention, mlp = block.attention, block.mlp
        attention.qkv = _together(name, [attention.q, attention.k, attention.v])
        for part in ("q", "k", "v"):
            delattr(attention, part)
        attention.layout = "fused"
        attention.out = _taken(f"{name}.attention.out", attention.out)
        mlp.fc1, mlp.fc2 = _taken(f"{name}.mlp.fc1", mlp.fc1), _taken(f"{name}.mlp.fc2", mlp.fc2)
    fuse_blocks(model)
    model.qkv = "fused"
    vars(model).pop("peft_config", None)


def _taken(name: str, layer: nn.Module) -> FusedNF4Linear:
    base = base_layer(layer)
    if not is_nf4(base) or base.weight.quant_state.nested:
        raise ConfigError(f"{name}: {type(base).__name__}; adapters over nf4_fused need NF4 without double quantization in every linear")
    return from_bitsandbytes(base.weight.data, base.weight.quant_state, base.bias.data, products="16-bit").train(base.training)


def _together(name: str, layers: list[nn.Module]) -> FusedNF4Linear:
    """One layer with the rows of several, and their adapters side by side: an adapter's rows of `up` are zero elsewhere."""
    parts = [_taken(f"{name}.attention.{letter}", layer) for letter, layer in zip("qkv", layers, strict=True)]
    adapters = [_update(layer, part) for layer, part in zip(layers, parts, strict=True)]
    up = torch.block_diag(*(up for up, _ in adapters))  # type: ignore[no-untyped-call]
    down = torch.cat([down for _, down in adapters])
    codes, absmax, bias = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("weight", "absmax", "bias"))
    return FusedNF4Linear(codes, absmax, None, bias, products="16-bit", update=(up.contiguous(), down)).train(parts[0].training)


def _update(layer: nn.Module, part: FusedNF4Linear) -> tuple[Tensor, Tensor]:
    """Up [N, R] and down [R, K] of a layer's adapter, in the bias's dtype; R is 0 without one."""
    dtype, device = part.bias.dtype, part.bias.device
    if layer is base_layer(layer):
        return torch.zeros(part.out_features, 0, dtype=dtype, device=device), torch.zeros(0, part.in_features, dtype=dtype, device=device)
    up: Tensor = layer.lora_B[lora.ADAPTER].weight.detach()  # type: ignore[index,union-attr]
    down: Tensor = layer.lora_A[lora.ADAPTER].weight.detach()  # type: ignore[index,union-attr]
    scaling: float = layer.scaling[lora.ADAPTER]  # type: ignore[index,assignment]
    return (up.float() * scaling).to(dtype), down.to(dtype)
