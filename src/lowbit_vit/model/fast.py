"""The fast path: encoder blocks whose 8-bit products, norms, GELU and sums run in few kernels, and NF4 layers with kernels of ours.

What a block in 8 bits launches, for rows = images x tokens (docs/fast-path.md says why):

    norm1 + codes of its rows   ->  qkv product + bias
    attention (the pinned kernel)
    codes of its rows           ->  out product + bias + residual
    norm2 + codes of its rows   ->  fc1 product + bias + GELU + codes     (int8: fc1 product + bias  ->  GELU + codes of its rows)
                                ->  fc2 product + bias + residual

Seven launches beside the attention's own, eight in int8, and one more for each product where the codes are made from NF4. No integer
sum, norm or GELU result in 16 bits reaches memory. Weights are codes of the fp32 weights.
The kernels need Triton and CUDA; building, counting and saving a model needs neither.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.attention import attend
from lowbit_vit.model.deferred import Deferred
from lowbit_vit.model.vit import Attention, Block, Mlp
from lowbit_vit.schema.plan import FP8, W8A8, Fused, FusedNF4, Weights

if TYPE_CHECKING:
    import bitsandbytes as bnb

    from lowbit_vit.model.kernels import arguments, nf4, product, quantize
    from lowbit_vit.model.kernels import gelu as gelu_pass
    from lowbit_vit.model.kernels.arguments import Coded
else:
    bnb = Deferred("bitsandbytes")
    arguments = Deferred("lowbit_vit.model.kernels.arguments")
    gelu_pass = Deferred("lowbit_vit.model.kernels.gelu")
    nf4 = Deferred("lowbit_vit.model.kernels.nf4")
    product = Deferred("lowbit_vit.model.kernels.product")
    quantize = Deferred("lowbit_vit.model.kernels.quantize")

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the code of a row's largest magnitude
_CODES = {"w8a8": torch.int8, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
_SMALLEST = 1e-30  # a row whose largest magnitude is below becomes zeros, as in the kernels
_NF4_BLOCK = 64


class EightBitLinear(nn.Module):
    """Weights in 8 bits: codes [N, K] int8 or e4m3, fp32 scales [N], bias [N]. It is run by the block that holds it."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def coded(self) -> "Coded":
        """The weights as a product takes them."""
        return arguments.Coded(self.weight, self.scales)


class FusedNF4Linear(nn.Module):
    """NF4 weights with bitsandbytes' codes and constants, multiplied by kernels of ours.

    Args:
        codes: uint8, [N, K / 2].
        absmax: [N, K / 64]; fp32, or uint8 with double quantization.
        nested: with double quantization its scales, fp32 [ceil(N K / 64 / 256)], and mean, fp32 [1].
        bias: [N], in the compute dtype.
        products: in 16 bits, or with the weights as int8 or fp8 codes.
        update: what adapters add to the weights, up [N, R] and down [R, K] in the compute dtype; for products in 16 bits alone.

    Attributes:
        gelu: whether the result is the GELU of the product; for products in 16 bits alone.
    """

    weight: Tensor
    absmax: Tensor
    bias: Tensor
    scales: Tensor
    nested_scales: Tensor
    nested_mean: Tensor
    up: Tensor
    down: Tensor

    def __init__(
        self,
        codes: Tensor,
        absmax: Tensor,
        nested: tuple[Tensor, Tensor] | None,
        bias: Tensor,
        *,
        products: str,
        update: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape[0], 2 * codes.shape[1]
        self.products = products
        self.gelu = False
        self.double_quantization = nested is not None
        tensors = {"weight": codes, "absmax": absmax, "bias": bias}
        self._constants: list[Tensor] = [bnb.functional.get_4bit_type("nf4", device=codes.device)]  # of the format, in every model
        decoded = absmax
        if nested is not None:
            tensors |= {"nested_scales": nested[0], "nested_mean": nested[1]}
            self._constants.append(bnb.functional.create_dynamic_map().to(codes.device))
            decoded = self._constants[1][absmax.int()] * nested[0].repeat_interleave(256)[: absmax.numel()].view_as(absmax) + nested[1]
        if products != "16-bit":
            # The largest magnitude of every block has the code of -1 or 1, so the largest absmax is the row's largest weight.
            tensors["scales"] = decoded.abs().amax(dim=1).clamp(min=_SMALLEST) / _LARGEST[_CODES[products]]
        self.adapted = update is not None
        if update is not None:
            tensors |= {"up": update[0], "down": update[1]}
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def update(self) -> list[Tensor]:
        """What adapters add: up and down, or nothing."""
        return [self.up, self.down] if self.adapted else []

    def nested(self) -> list[Tensor]:
        """What double quantization adds: its levels, scales and mean."""
        return [self._constants[1], self.nested_scales, self.nested_mean] if self.double_quantization else []

    def stored(self) -> "nf4.NF4Weights":
        """The weights as the kernels take them."""
        return _stored(self.weight, self._constants[0], self.absmax, self.nested(), self.update())

    def decode_into(self, weight: Tensor) -> None:
        """Write the weights in 16 bits, [N, K], into memory that is there."""
        nf4.decode_into(self.stored(), weight)

    def coded(self) -> "Coded":
        """The weights as 8-bit codes, made anew: in memory there are 4 bits."""
        return nf4.decode_to_codes(self.stored(), self.scales, codes=_CODES[self.products])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in 16 bits, [..., K] -> [..., N]."""
        out: Tensor = nf4_linear(x, self.weight, self._constants[0], self.absmax, self.nested(), self.update(), self.bias, gelu=self.gelu)
        return out


def decode_together(layers: Sequence[FusedNF4Linear], weights: Tensor) -> None:
    """Write the weights of layers without adapters in 16 bits, one after another, into memory that is there; in one launch."""
    nf4.decode_together([layer.stored() for layer in layers], weights)


def _stored(codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor]) -> "nf4.NF4Weights":
    up, down = update or (None, None)
    return nf4.NF4Weights(codes, levels, absmax, *nested)._replace(up=up, down=down)


class Decoder(Protocol):
    """What has the 16-bit weights of layers already."""

    def multiply(self, x: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
        """The product of x, [M, K], with the layer that has these codes; [M, N]."""


_decoder: ContextVar[Decoder | None] = ContextVar("decoder", default=None)


@contextmanager
def decoded_by(decoder: Decoder) -> Iterator[None]:
    """Inside, NF4 layers with 16-bit products leave their product to it."""
    token = _decoder.set(decoder)
    try:
        yield
    finally:
        _decoder.reset(token)


@torch.library.custom_op("lowbit_vit::nf4_linear", mutates_args=())
def nf4_linear(  # noqa: PLR0917  (an operator's arguments have places)
    x: Tensor, codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor], bias: Tensor, *, gelu: bool
) -> Tensor:
    """The NF4 product, with its GELU if asked, as one operator, which the compiler takes as it is: [..., K] -> [..., N]."""
    x_MK, decoder = x.reshape(-1, x.shape[-1]).contiguous(), _decoder.get()
    if decoder is None:
        rows = nf4.multiply_nf4(x_MK, _stored(codes, levels, absmax, nested, update), bias)
    else:
        rows = decoder.multiply(x_MK, codes, bias)
    if gelu:
        gelu_pass.gelu_in_place(rows)
    return rows.view(*x.shape[:-1], len(codes))


@nf4_linear.register_fake
def _(  # noqa: PLR0917
    x: Tensor, codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor], bias: Tensor, *, gelu: bool
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(codes))


class FusedBlock(nn.Module):
    """An encoder block whose four linears are coded in 8 bits, run as the module's docstring lists. Its parts keep their names.

    Args:
        block: with all linears of one 8-bit format; its parts are taken over. Their weights are not to be changed after the first forward.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1: nn.LayerNorm = block.norm1
        self.attention: Attention = block.attention
        self.norm2: nn.LayerNorm = block.norm2
        self.mlp: Mlp = block.mlp
        self._reach: Tensor | None = None  # of fc1, once it is known
        self._arrivals: Tensor | None = None  # of the parts of fc2's depth

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W], fp16 or bf16. T below: tokens of all images."""
        dtype, x_TW = x_BNW.dtype, x_BNW.reshape(-1, x_BNW.shape[-1]).contiguous()
        qkv, out, fc1, fc2 = self.attention.qkv, self.attention.out, self.mlp.fc1, self.mlp.fc2
        w_qkv: Coded = qkv.coded()  # type: ignore[operator]
        kind = w_qkv.codes.dtype

        codes = quantize.normalize_rows(x_TW, self.norm1, codes=kind)
        qkv_TX = product.multiply(codes, w_qkv, qkv.bias, dtype=dtype)  # type: ignore[arg-type]
        q_BNHD, k_BNHD, v_BNHD = qkv_TX.view(*x_BNW.shape[:2], 3, self.attention.heads, -1).unbind(2)
        heads_TW = attend(q_BNHD, k_BNHD, v_BNHD, self.attention.kernel).reshape(x_TW.shape).contiguous()

        codes = quantize.quantize_rows(heads_TW, codes=kind)
        x_TW = product.multiply(codes, out.coded(), out.bias, dtype=dtype, residual=x_TW)  # type: ignore[operator,arg-type]

        codes = self._hidden(x_TW, fc1.coded(), fc1.bias)  # type: ignore[operator,arg-type]
        if self._arrivals is None or self._arrivals.device != x_TW.device:
            self._arrivals = torch.zeros(product.ARRIVALS, dtype=torch.int32, device=x_TW.device)
        x_TW = product.multiply(codes, fc2.coded(), fc2.bias, dtype=dtype, residual=x_TW, arrivals=self._arrivals)  # type: ignore[operator,arg-type]
        return x_TW.view(x_BNW.shape)

    def _hidden(self, x_TW: Tensor, w: "Coded", bias: Tensor) -> "Coded":
        """Codes of GELU's result, [T, M]."""
        kind = w.codes.dtype
        if kind == torch.int8:
            hidden_TM = product.multiply(quantize.normalize_rows(x_TW, self.norm2, codes=kind), w, bias, dtype=x_TW.dtype)
            return quantize.gelu_rows(hidden_TM, codes=kind)
        if self._reach is None or self._reach.device != x_TW.device:
            self._reach = quantize.reach_of(w, bias)
        codes, scales = quantize.normalize_rows_towards(x_TW, self.norm2, self._reach, codes=kind)
        return product.multiply_to_gelu_codes(codes, w, bias, scales)


def eight_bit(weights: Weights) -> bool:
    """Whether the arithmetic is that of a fused block."""
    return isinstance(weights, W8A8 | FP8) or (isinstance(weights, FusedNF4) and weights.products != "16-bit")


def nf4_in_16_bits(layer: nn.Module) -> TypeGuard[FusedNF4Linear]:
    """Whether it is our NF4 with products in 16 bits: what is decoded ahead, and what can make GELU of its product."""
    return isinstance(layer, FusedNF4Linear) and layer.products == "16-bit"


def convert(weight: Tensor, bias: Tensor, weights: Fused, *, name: str) -> nn.Module:
    """A layer in one of our formats.

    Args:
        weight: fp32, [N, K].
        bias: in the compute dtype, [N].
        weights: the format.
        name: for the error message.

    Raises:
        ConfigError: the width fits neither whole vectors nor whole NF4 blocks, or a weight is not finite.
    """
    multiple = _NF4_BLOCK if isinstance(weights, FusedNF4) else 16
    if weight.shape[1] % multiple:
        raise ConfigError(f"{name}: in_features {weight.shape[1]} is no multiple of {multiple}, which {weights.name} needs")
    if not weight.isfinite().all():
        raise ConfigError(f"{name}: a weight is NaN or infinite; no code says that")
    if isinstance(weights, FusedNF4):
        codes, state = bnb.functional.quantize_4bit(
            weight.contiguous(), blocksize=_NF4_BLOCK, compress_statistics=weights.double_quantization, quant_type="nf4"
        )
        return from_bitsandbytes(codes, state, bias, products=weights.products)
    kind = _CODES[weights.format]
    scales = weight.abs().amax(dim=1).clamp(min=_SMALLEST) / _LARGEST[kind]
    scaled = (weight / scales[:, None]).clamp(-_LARGEST[kind], _LARGEST[kind])
    return EightBitLinear((scaled.round() if kind == torch.int8 else scaled).to(kind), scales, bias)


def from_bitsandbytes(codes: Tensor, state: "bnb.functional.QuantState", bias: Tensor, *, products: str) -> FusedNF4Linear:
    """A layer around bitsandbytes' codes (uint8 [N K / 2, 1]) and constants, which are not copied."""
    columns, depth = state.shape
    nested = (state.state2.absmax, state.offset.reshape(1).to(codes.device)) if state.nested else None
    absmax = state.absmax.view(columns, depth // _NF4_BLOCK)
    return FusedNF4Linear(codes.view(columns, depth // 2), absmax, nested, bias, products=products)


def restore(weights: Fused, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The layer that a saved state describes; the inverse of its state_dict."""
    if isinstance(weights, FusedNF4):
        nested = (tensors["nested_scales"], tensors["nested_mean"]) if weights.double_quantization else None
        update = (tensors["up"], tensors["down"]) if "up" in tensors else None
        return FusedNF4Linear(tensors["weight"], tensors["absmax"], nested, tensors["bias"], products=weights.products, update=update)
    return EightBitLinear(tensors["weight"], tensors["scales"], tensors["bias"])


def format_of(layer: nn.Module) -> Fused | None:
    """The format of a layer of ours, read from its tensors; None: another class."""
    if isinstance(layer, EightBitLinear):
        return W8A8(format="w8a8") if layer.weight.dtype == torch.int8 else FP8(format="fp8")
    if isinstance(layer, FusedNF4Linear):
        products: Any = layer.products
        return FusedNF4(format="nf4_fused", double_quantization=layer.absmax.dtype == torch.uint8, products=products)
    return None


def require_whole(formats: Mapping[str, Weights], *, fused: bool) -> None:
    """Refuse plans that no kernel of ours can run.

    Args:
        formats: of every encoder linear, by name.
        fused: whether q, k and v are one layer.

    Raises:
        ConfigError: a layer of ours beside separate q, k and v, or a block that is in an 8-bit format in part.
    """
    of_block: dict[str, set[Weights]] = {}
    for name, weights in formats.items():
        if isinstance(weights, Fused) and not fused:
            raise ConfigError(f"{name}: {weights.name} needs q, k and v in one layer; set qkv: fused")
        of_block.setdefault(name.split(".attention.")[0].split(".mlp.")[0], set()).add(weights)
    for block, found in of_block.items():
        if len(found) > 1 and any(map(eight_bit, found)):
            names = ", ".join(sorted(weights.name for weights in found))
            raise ConfigError(f"{block}: {names} in one block; an 8-bit format of ours takes whole blocks, as by the pattern {block}.*")


def fuse_blocks(blocks: nn.ModuleList) -> None:
    """Replace every block whose linears are coded in 8 bits by one that runs fused; let fc1 in NF4 compute GELU itself. In place."""
    for place, block in enumerate(blocks):
        if not isinstance(block, Block):
            continue
        fc1 = block.mlp.fc1
        found = format_of(fc1)
        if found is not None and eight_bit(found):
            blocks[place] = FusedBlock(block).train(block.training)
        elif nf4_in_16_bits(fc1):
            block.mlp.activation, fc1.gelu = nn.Identity(), True
