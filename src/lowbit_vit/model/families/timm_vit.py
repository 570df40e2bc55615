"""timm's VisionTransformer: ViT, DeiT, DINOv2 with and without registers, SigLIP 1 and 2, CLIP."""

import json
from typing import Any

from torch import nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.block_spec import BlockSpec
from lowbit_vit.model.families.reading import affine, mlp, norm, norm_or_none, require
from lowbit_vit.model.lazy_import import Deferred

_timm = Deferred("timm")
MODULES = ("timm.models.vision_transformer", "timm.models.deit")


def matches(model: nn.Module) -> bool:
    """See `Family`."""
    return type(model).__name__ in ("VisionTransformer", "VisionTransformerDistilled") and type(model).__module__ in MODULES


def blocks(model: nn.Module) -> tuple[str, Any]:
    """See `Family`."""
    return "blocks", model.blocks


def patches(model: nn.Module) -> nn.Module:
    """See `Family`."""
    return model.get_submodule("patch_embed.proj")


def spec(block: Any) -> BlockSpec:
    """See `Family`."""
    kind = (type(block).__name__, type(block).__module__)
    require(kind == ("Block", "timm.models.vision_transformer"), "", f"blocks of class {kind[0]} are not supported")
    attention = block.attn
    require(type(attention).__name__ == "Attention", "attn", f"{type(attention).__name__} is not supported")
    require(getattr(attention, "gate", None) is None, "attn.gate", "gated attention is not supported")
    return BlockSpec(
        heads=attention.num_heads,
        norm1=norm(block.norm1, "norm1"),
        qkv=affine(attention.qkv, "attn.qkv"),
        q_norm=norm_or_none(attention.q_norm, "attn.q_norm"),
        k_norm=norm_or_none(attention.k_norm, "attn.k_norm"),
        inner_norm=norm_or_none(getattr(attention, "norm", nn.Identity()), "attn.norm"),
        out=affine(attention.proj, "attn.proj"),
        scale1=getattr(block.ls1, "gamma", None),
        norm2=norm(block.norm2, "norm2"),
        scale2=getattr(block.ls2, "gamma", None),
        **mlp(block.mlp, "mlp"),
    )


def arguments(model: Any) -> dict[str, Any]:
    """See `Family`. timm keeps what its `create_model` was given; older releases than 1.0.31 do not, and sizes are read from the model."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name:
        raise ConfigError("save: the model does not say its architecture; make it by timm.create_model, or set it in pretrained_cfg")
    given = {key: value for key, value in getattr(model, "_model_args", {}).items() if "drop" not in key}
    size = list(model.patch_embed.img_size)
    found = {**given, "name": name, "img_size": size, "num_classes": model.num_classes, "global_pool": model.global_pool}
    try:
        json.dumps(found)
    except TypeError as error:
        raise ConfigError(f"save: {name} was made with an argument that JSON cannot hold ({error})") from None
    return found


def build(arguments: dict[str, Any]) -> nn.Module:
    """See `Family`."""
    given = dict(arguments)
    model: nn.Module = _timm.create_model(given.pop("name"), pretrained=False, **given)
    return model
