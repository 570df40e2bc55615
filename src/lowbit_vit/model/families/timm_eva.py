"""timm's Eva: EVA-02 with SwiGLU and its norm, DINOv3, and what else has rotary positions there."""

from typing import Any

import torch
from torch import Tensor, nn

from lowbit_vit.model.block_spec import Affine, BlockSpec
from lowbit_vit.model.families.reading import affine, joined, mlp, norm, norm_or_none, require
from lowbit_vit.model.families.timm_vit import arguments, blocks, build, patches

__all__ = ["Tables", "arguments", "blocks", "build", "matches", "patches", "spec"]


def matches(model: nn.Module) -> bool:
    """See `Family`."""
    return (type(model).__name__, type(model).__module__) == ("Eva", "timm.models.eva")


def spec(block: Any) -> BlockSpec:
    """See `Family`."""
    require(type(block).__name__ == "EvaBlock", "", f"blocks of class {type(block).__name__} are not supported")
    attention = block.attn
    require(type(attention).__name__ in ("EvaAttention", "AttentionRope"), "attn", f"{type(attention).__name__} is not supported")
    require(getattr(attention, "gate", None) is None, "attn.gate", "gated attention is not supported")
    require(getattr(attention, "num_kv_groups", 1) == 1, "attn", "fewer heads of keys than of queries are not supported")
    return BlockSpec(
        heads=attention.num_heads,
        norm1=norm(block.norm1, "norm1"),
        qkv=_qkv(attention),
        q_norm=norm_or_none(attention.q_norm, "attn.q_norm"),
        k_norm=norm_or_none(attention.k_norm, "attn.k_norm"),
        rotation="half" if getattr(attention, "rotate_half", False) else "interleaved",
        prefix=attention.num_prefix_tokens,
        inner_norm=norm_or_none(attention.norm, "attn.norm"),
        out=affine(attention.proj, "attn.proj"),
        scale1=block.gamma_1,
        norm2=norm(block.norm2, "norm2"),
        scale2=block.gamma_2,
        **mlp(block.mlp, "mlp"),
    )


def _qkv(attention: Any) -> Affine:
    """In one layer or in three; the key has no bias in EVA."""
    if attention.qkv is None:
        return joined([affine(getattr(attention, f"{name}_proj"), f"attn.{name}_proj") for name in ("q", "k", "v")])
    qkv = affine(attention.qkv, "attn.qkv")
    if getattr(attention, "q_bias", None) is None:
        return qkv
    return Affine(qkv.weight, torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias]))


class Tables:
    """Rotary positions by image size, made once and kept on their device, where timm makes them from CPU tensors in each forward.

    Args:
        rope: the model's module for them, without parameters.
    """

    def __init__(self, rope: Any) -> None:
        self._rope = rope
        self._known: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, shape: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """As timm's `get_embed`, which takes a dtype from 1.0.31 on, and is not given one by timm itself before."""
        given = {} if dtype is None else {"dtype": dtype}
        if shape is None:
            found: Tensor = type(self._rope).get_embed(self._rope, **given)
            return found
        device = next((buffer.device for buffer in self._rope.buffers()), None)
        key = (tuple(shape), dtype, device)
        if key not in self._known:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._known[key] = type(self._rope).get_embed(self._rope, shape, **given)
        return self._known[key]


def keep_tables(model: Any) -> None:
    """Let an Eva keep its rotary positions; those that are learned depend on parameters and stay as they are."""
    rope = model.rope
    if rope is not None and not list(rope.parameters()):
        rope.get_embed = Tables(rope)
