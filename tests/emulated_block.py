"""What a fused block must compute, spelled out in PyTorch: fp32 arithmetic, with what becomes codes rounded to them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_vit.model.block_spec import SpecAttention, SpecMlp
from lowbit_vit.model.fused import FusedBlock

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LINEARS = ("attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2")


def restored_weights(block: FusedBlock) -> tuple[dict[str, Tensor], torch.dtype]:
    """The weights that the codes stand for, in fp32, and the dtype of the codes."""
    coded: dict[str, Any] = {name: block.get_submodule(name).coded() for name in LINEARS}  # type: ignore[operator]
    return {name: made.codes.float() * made.scales[:, None] for name, made in coded.items()}, coded["mlp.fc1"].codes.dtype


def rounded(x: Tensor, codes: torch.dtype, *, largest: Tensor | None = None) -> Tensor:
    """What is left of fp32 numbers after quantization by rows, by their largest magnitude or by another number for each."""
    known = x.abs().amax(dim=-1, keepdim=True) if largest is None else largest
    scale = known.clamp(min=1e-30) / LARGEST[codes]
    scaled = (x / scale).clamp(-LARGEST[codes], LARGEST[codes])
    return (scaled.round() if codes == torch.int8 else scaled.to(codes).float()) * scale


def emulated(
    block: FusedBlock, x: Tensor, weights: dict[str, Tensor], codes: torch.dtype, *, dtype: torch.dtype, tables: Tensor | None = None
) -> Tensor:
    """The block in fp32 with what becomes codes rounded to them, and what passes through memory in 16 bits rounded to `dtype`.

    Of another library's block, its own functions between the products run in fp32.
    """
    attention, mlp, f = block.attention, block.mlp, nn.functional

    def kept(given: Tensor) -> Tensor:
        return given.to(dtype).float()

    def linear(name: str, given: Tensor, layer: Any) -> Tensor:
        return f.linear(given, weights[name], layer.bias.float())

    def norm(given: Tensor, layer: nn.LayerNorm) -> Tensor:
        return f.layer_norm(given, layer.normalized_shape, layer.weight.float(), layer.bias.float(), layer.eps)

    normed = rounded(norm(x, block.norm1), codes)
    qkv = kept(linear("attention.qkv", normed, attention.qkv))
    parts = qkv.view(*x.shape[:2], 3, attention.heads, -1).unbind(2)
    if isinstance(attention, SpecAttention):
        parts = tuple(map(kept, copy.deepcopy(attention).float().split(qkv, tables)))
    q, k, v = (part.transpose(1, 2) for part in parts)
    heads = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    if block.own_attention(x.shape[0] * x.shape[1], x.shape[1], tables) == "codes":  # by what v can reach at most in an image
        of_v = slice(2 * len(weights["attention.qkv"]) // 3, None)
        longest, bias = weights["attention.qkv"][of_v].norm(dim=1).max(), attention.qkv.bias[of_v].abs().max().float()  # type: ignore[index]
        reach = (normed.norm(dim=-1) * longest + bias).amax(dim=1)[:, None, None]
        heads = rounded(heads, codes, largest=reach.expand(*x.shape[:2], 1))
    else:
        heads = kept(heads) if attention.norm is None else norm(kept(heads), attention.norm)
        heads = rounded(heads, codes)
    x = kept(x + linear("attention.out", heads, attention.out))
    normed = rounded(norm(x, block.norm2), codes)
    hidden = linear("mlp.fc1", normed, mlp.fc1)
    if isinstance(mlp, SpecMlp) and not mlp.plain:
        hidden = rounded(kept(copy.deepcopy(mlp).float().activate(kept(hidden))), codes)
    elif codes == torch.int8:
        hidden = rounded(f.gelu(kept(hidden)), codes)
    else:  # by what the product can reach at most
        reach = normed.norm(dim=-1, keepdim=True) * weights["mlp.fc1"].norm(dim=1).max() + mlp.fc1.bias.abs().max().float()  # type: ignore[operator]
        hidden = rounded(f.gelu(hidden), codes, largest=reach)
    return kept(x + linear("mlp.fc2", hidden, mlp.fc2))
