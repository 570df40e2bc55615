"""A linear layer with bitsandbytes' NF4 codes that runs by this project's kernels, GEMM and GELU as one operator for the compiler.

The kernels need Triton and CUDA; building, counting and saving a layer needs neither.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from lowbit_vit.model.formats.nf4 import BLOCK, NESTED_BLOCK
from lowbit_vit.model.kernels.coded import LARGEST, SMALLEST, Coded
from lowbit_vit.model.lazy_import import Deferred

if TYPE_CHECKING:
    import bitsandbytes as bnb

    from lowbit_vit.model.kernels import gelu as gelu_kernels
    from lowbit_vit.model.kernels import nf4 as nf4_kernels
else:
    bnb = Deferred("bitsandbytes")
    gelu_kernels = Deferred("lowbit_vit.model.kernels.gelu")
    nf4_kernels = Deferred("lowbit_vit.model.kernels.nf4")

_CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # of GEMMs in 8 bits


class FusedNF4Linear(nn.Module):
    """NF4 weights with bitsandbytes' codes and constants, multiplied by this project's kernels.

    Args:
        codes: uint8, [N, K / 2].
        absmax: [N, K / 64]; fp32, or uint8 with double quantization.
        nested: with double quantization its scales, fp32 [ceil(N K / 64 / 256)], and mean, fp32 [1].
        bias: [N], in the compute dtype.
        products: the GEMM's operands: 16-bit, or int8 or fp8 codes of the weights.
        update: what adapters add to the weights, up [N, R] and down [R, K] in the compute dtype; for 16-bit GEMMs alone.

    Attributes:
        gelu: whether the result is the GELU of the GEMM; for 16-bit GEMMs alone.
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
            scales = nested[0].repeat_interleave(NESTED_BLOCK)[: absmax.numel()].view_as(absmax)
            decoded = self._constants[1][absmax.int()] * scales + nested[1]
        if products != "16-bit":
            # The largest magnitude of every block has the code of -1 or 1, so the largest absmax is the row's largest weight.
            tensors["scales"] = decoded.abs().amax(dim=1).clamp(min=SMALLEST) / LARGEST[_CODES[products]]
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

    def stored(self) -> "nf4_kernels.NF4Weights":
        """The weights as the kernels take them."""
        return _stored(self.weight, self._constants[0], self.absmax, self.nested(), self.update())

    def decode_into(self, weight: Tensor) -> None:
        """Write the weights in 16 bits, [N, K], into memory that is there."""
        nf4_kernels.decode_into(self.stored(), weight)

    @property
    def kind(self) -> torch.dtype:
        """Of the codes that GEMMs in 8 bits take."""
        return _CODES[self.products]

    def coded(self) -> Coded:
        """The weights as 8-bit codes, made anew or just before by a prefetcher: in memory there are 4 bits."""
        made_ahead = _coded.get()
        if made_ahead is not None:
            return made_ahead(self)
        return nf4_kernels.decode_to_codes(self.stored(), self.scales, codes=self.kind)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in 16 bits, [..., K] -> [..., N]."""
        out: Tensor = nf4_linear(x, self.weight, self._constants[0], self.absmax, self.nested(), self.update(), self.bias, gelu=self.gelu)
        return out


def in_16_bits(layer: nn.Module) -> TypeGuard[FusedNF4Linear]:
    """Whether it is such a layer with 16-bit GEMMs: what is prefetched, and what can compute GELU of its result."""
    return isinstance(layer, FusedNF4Linear) and layer.products == "16-bit"


def from_bitsandbytes(codes: Tensor, state: "bnb.functional.QuantState", bias: Tensor, *, products: str) -> FusedNF4Linear:
    """A layer around bitsandbytes' codes (uint8 [N K / 2, 1]) and constants, which are not copied."""
    rows, depth = state.shape
    nested = (state.state2.absmax, state.offset.reshape(1).to(codes.device)) if state.nested else None
    return FusedNF4Linear(codes.view(rows, depth // 2), state.absmax.view(rows, depth // BLOCK), nested, bias, products=products)


def decode_together(layers: Sequence[FusedNF4Linear], weights: Tensor) -> None:
    """Write the weights of layers one after another into memory that is there, in one launch.

    Args:
        layers: without adapters, of one kind: GEMMs, double quantization.
        weights: 16-bit, or codes as their GEMMs take them.
    """
    scales = None if in_16_bits(layers[0]) else [layer.scales for layer in layers]
    nf4_kernels.decode_together([layer.stored() for layer in layers], weights, scales)


def _stored(codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor]) -> "nf4_kernels.NF4Weights":
    up, down = update or (None, None)
    return nf4_kernels.NF4Weights(codes, levels, absmax, *nested)._replace(up=up, down=down)


Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [M, K], a layer's codes, bias [N] -> [M, N]
_multiply: ContextVar[Multiply | None] = ContextVar("multiply", default=None)
_coded: ContextVar[Callable[[FusedNF4Linear], Coded] | None] = ContextVar("coded", default=None)


@contextmanager
def multiplied_by(multiply: Multiply) -> Iterator[None]:
    """Inside, layers with 16-bit GEMMs leave them to this function, which has their decoded weights."""
    token = _multiply.set(multiply)
    try:
        yield
    finally:
        _multiply.reset(token)


@contextmanager
def coded_by(coded: Callable[[FusedNF4Linear], Coded]) -> Iterator[None]:
    """Inside, layers with 8-bit GEMMs have their codes from this function."""
    token = _coded.set(coded)
    try:
        yield
    finally:
        _coded.reset(token)


@torch.library.custom_op("lowbit_vit::nf4_linear", mutates_args=())
def nf4_linear(  # noqa: PLR0917  (an operator's arguments have places)
    x: Tensor, codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor], bias: Tensor, *, gelu: bool
) -> Tensor:
    """The NF4 GEMM, with GELU if asked, as one operator, which the compiler takes as it is: [..., K] -> [..., N]."""
    x_MK, multiply = x.reshape(-1, x.shape[-1]).contiguous(), _multiply.get()
    if multiply is None:
        rows = nf4_kernels.multiply_nf4(x_MK, _stored(codes, levels, absmax, nested, update), bias)
    else:
        rows = multiply(x_MK, codes, bias)
    if gelu:
        gelu_kernels.gelu_in_place(rows)
    return rows.view(*x.shape[:-1], len(codes))


@nf4_linear.register_fake
def _(  # noqa: PLR0917
    x: Tensor, codes: Tensor, levels: Tensor, absmax: Tensor, nested: list[Tensor], update: list[Tensor], bias: Tensor, *, gelu: bool
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(codes))
