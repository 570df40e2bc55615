"""torchvision's VisionTransformer: q, k and v are one parameter of `nn.MultiheadAttention`."""

from typing import Any

from torch import nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.block_spec import Affine, BlockSpec
from lowbit_vit.model.families.reading import activation, affine, norm, require
from lowbit_vit.model.lazy_import import Deferred

_vit = Deferred("torchvision.models.vision_transformer")
_SIZES = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "num_classes", "representation_size")


def matches(model: nn.Module) -> bool:
    """See `Family`."""
    return (type(model).__name__, type(model).__module__) == ("VisionTransformer", "torchvision.models.vision_transformer")


def blocks(model: nn.Module) -> tuple[str, Any]:
    """See `Family`."""
    return "encoder.layers", model.get_submodule("encoder.layers")


def patches(model: nn.Module) -> nn.Module:
    """See `Family`."""
    return model.get_submodule("conv_proj")


def spec(block: Any) -> BlockSpec:
    """See `Family`."""
    require(type(block) is _vit.EncoderBlock, "", f"{type(block).__name__} is no EncoderBlock")
    attention, mlp = block.self_attention, block.mlp
    require(attention.in_proj_weight is not None, "self_attention", "q, k and v have different widths")
    require(attention.bias_k is None and not attention.add_zero_attn, "self_attention", "it adds keys of its own")
    return BlockSpec(
        heads=attention.num_heads,
        norm1=norm(block.ln_1, "ln_1"),
        qkv=Affine(attention.in_proj_weight, attention.in_proj_bias),
        out=Affine(attention.out_proj.weight, attention.out_proj.bias),
        norm2=norm(block.ln_2, "ln_2"),
        fc1=affine(mlp[0], "mlp.0"),
        activation=activation(mlp[1], "mlp.1"),
        fc2=affine(mlp[3], "mlp.3"),
    )


def arguments(model: Any) -> dict[str, Any]:
    """See `Family`."""
    if not isinstance(model.conv_proj, nn.Conv2d) or model.encoder.ln.eps != 1e-6:
        raise ConfigError("save: this VisionTransformer has another stem or norm than torchvision's own builders make")
    sizes = {name: getattr(model, name) for name in _SIZES}
    _, layers = blocks(model)
    heads = next(module.heads for module in layers.modules() if hasattr(module, "heads"))
    return {**sizes, "num_layers": len(layers), "num_heads": heads}


def build(arguments: dict[str, Any]) -> nn.Module:
    """See `Family`."""
    model: nn.Module = _vit.VisionTransformer(**arguments)
    return model
