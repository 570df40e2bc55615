"""Reading layers of other libraries: what is known is turned into a part of a `BlockSpec`, what is not is `Unsupported`."""

from typing import Any

import torch
from torch import Tensor, nn

from lowbit_vit.model.block_spec import ActivationName, Affine, Norm


class Unsupported(Exception):
    """A block that cannot be computed from a `BlockSpec`: the module inside it, and why."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"{module}: {reason}" if module else reason)


# By the class's own name: libraries have their own copies of one activation.
_ACTIVATIONS: dict[str, ActivationName] = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "Swish": "silu"}


def require(condition: Any, module: str, reason: str) -> None:
    """Raise `Unsupported` unless it holds."""
    if not condition:
        raise Unsupported(module, reason)


def affine(layer: nn.Module, name: str) -> Affine:
    """A plain linear layer."""
    require(type(layer) is nn.Linear, name, f"{type(layer).__name__} is no plain linear layer")
    weight: Tensor = layer.weight  # type: ignore[assignment]
    require(weight.is_floating_point(), name, f"its weights are {weight.dtype}, not floating point")
    return Affine(weight, layer.bias)  # type: ignore[arg-type]


def joined(parts: list[Affine]) -> Affine:
    """Linears of one input as one, rows in this order."""
    if all(part.bias is None for part in parts):
        return Affine(torch.cat([part.weight for part in parts]), None)
    biases = [torch.zeros_like(part.weight[:, 0]) if part.bias is None else part.bias for part in parts]
    return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases))


def norm(layer: nn.Module, name: str) -> Norm:
    """A LayerNorm: PyTorch's own or timm's, which computes the same."""
    known = type(layer) is nn.LayerNorm or (type(layer).__name__, type(layer).__module__) == ("LayerNorm", "timm.layers.norm")
    require(known, name, f"{type(layer).__name__} is no LayerNorm")
    shape: tuple[int, ...] = layer.normalized_shape  # type: ignore[assignment]
    return Norm(shape[0], layer.eps, layer.weight, layer.bias)  # type: ignore[arg-type]


def norm_or_none(layer: nn.Module, name: str) -> Norm | None:
    """As `norm`; None for an identity."""
    return None if isinstance(layer, nn.Identity) else norm(layer, name)


def activation(layer: nn.Module, name: str) -> ActivationName:
    """GELU in one of its three forms, or SiLU."""
    kind = type(layer).__name__
    if kind == "GELU":
        return "gelu_tanh" if getattr(layer, "approximate", "none") == "tanh" else "gelu"
    require(kind in _ACTIVATIONS, name, f"activation {kind} is not supported; there are GELU (exact, tanh, quick) and SiLU")
    return _ACTIVATIONS[kind]


def mlp(layer: Any, name: str) -> dict[str, Any]:
    """Timm's Mlp, GluMlp and SwiGLU as parts of a `BlockSpec`."""
    kind = type(layer).__name__
    known = kind in ("Mlp", "GluMlp", "SwiGLU") and type(layer).__module__ == "timm.layers.mlp"
    require(known, name, f"{kind} is not supported; there are timm's Mlp, GluMlp and SwiGLU")
    parts: dict[str, Any] = {
        "activation": activation(layer.act, f"{name}.act"),
        "gated": kind != "Mlp",
        "hidden_norm": norm_or_none(layer.norm, f"{name}.norm"),
        "fc2": affine(layer.fc2, f"{name}.fc2"),
    }
    require(not parts["gated"] or parts["activation"] == "silu", f"{name}.act", "a gate is supported with SiLU alone")
    if kind == "SwiGLU":
        parts["fc1"] = joined([affine(layer.fc1_g, f"{name}.fc1_g"), affine(layer.fc1_x, f"{name}.fc1_x")])
        return parts
    parts["fc1"] = affine(layer.fc1, f"{name}.fc1")
    if kind == "GluMlp" and layer.gate_last:
        value, gate = (
            Affine(weight, None if parts["fc1"].bias is None else bias)
            for weight, bias in zip(
                parts["fc1"].weight.chunk(2),
                (parts["fc1"].weight[:, 0] if parts["fc1"].bias is None else parts["fc1"].bias).chunk(2),
                strict=True,
            )
        )
        parts["fc1"] = joined([gate, value])
    return parts
