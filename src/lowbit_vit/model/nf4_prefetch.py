"""NF4 layers whose weights are prefetched: while some layers run, the next ones' weights are decoded beside them.

Two buffers of decoded weights take turns. A second stream decodes into one while the first stream computes from the other. With 16-bit
GEMMs each layer then is an ordinary GEMM of cuBLAS; with 8-bit ones the weights become their codes, and blocks run as if they had been
in 8 bits. Decoding adds no time as long as it ends before the GEMMs do. It costs memory instead, whatever the depth of the model: two
blocks, of a ViT-L/16 48 MiB in 16 bits, 24 MiB in codes. Where the batch is small and memory is what NF4 is for, 16-bit GEMMs have two
buffers of the largest layer alone, 16 MiB; but each change of turns costs the GPU a microsecond. Layers that share a turn are decoded in
one launch.

Made for capture into a CUDA graph. With kernels launched one by one, the host's speed would decide how much overlaps.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_vit.model.kernels.coded import Coded
from lowbit_vit.model.nf4_linear import FusedNF4Linear, coded_by, decode_together, in_16_bits, multiplied_by

# Rows (images x tokens) from which a turn holds three times the largest layer: a block of a ViT, whose MLP is four times as wide as it.
BY_BLOCKS_FROM = 2048
_BLOCK = 3


@dataclass(frozen=True)
class _Place:
    """Where a layer's decoded weights are: in which turn, as what part of its buffer, and whether it is the turn's first or last."""

    turn: int
    weight: Tensor
    first: bool
    last: bool


class Prefetcher:
    """Decodes the weights of these layers, turn by turn, while a forward runs them in this order.

    Args:
        layers: at least one, on a CUDA device; no layer twice; all with 16-bit GEMMs or all with 8-bit ones.
        capacity: weights that a turn may hold; at least those of the largest layer.
    """

    def __init__(self, layers: Sequence[FusedNF4Linear], *, capacity: int) -> None:
        self.turns = turns(layers, capacity=capacity)
        self.sixteen = in_16_bits(layers[0])
        largest = max(sum(_count(layer) for layer in turn) for turn in self.turns)
        dtype = layers[0].bias.dtype if self.sixteen else torch.uint8
        self.buffers = [torch.empty(largest, dtype=dtype, device=layers[0].weight.device) for _ in self.turns[:2]]
        self.stream = torch.cuda.Stream(priority=0)  # type: ignore[no-untyped-call]  # the lowest: computing goes first
        self.places = {place_of.data_ptr(): place for place_of, place in self._places()}
        self.decoded: list[torch.cuda.Event] = []

    def _places(self) -> Iterator[tuple[Tensor, _Place]]:
        for turn, layers in enumerate(self.turns):
            start = 0
            for index, layer in enumerate(layers):
                part = self._buffer(turn)[start : start + _count(layer)]
                weight = part.view(layer.out_features, layer.in_features)
                yield layer.weight, _Place(turn, weight, first=index == 0, last=index == len(layers) - 1)
                start += _count(layer)

    def _buffer(self, turn: int) -> Tensor:
        """In the dtype of the turn's layers."""
        buffer = self.buffers[turn % 2]
        return buffer if self.sixteen else buffer.view(self.turns[turn][0].kind)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, these layers take their weights from the buffers; one forward."""
        self.stream.wait_stream(torch.cuda.current_stream())
        self.decoded = []
        for turn in range(len(self.buffers)):
            self._decode(turn)
        with multiplied_by(self.multiply) if self.sixteen else coded_by(self.coded):
            yield

    def multiply(self, x: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
        """The GEMM of the layer that has these codes: x [M, K], codes uint8 [N, K / 2], bias [N] -> [M, N]."""
        place, main = self.places[codes.data_ptr()], torch.cuda.current_stream()
        if place.first:
            main.wait_event(self.decoded[place.turn])
        out: Tensor = nn.functional.linear(x, place.weight, bias)
        if place.last:
            self._decode_after(place.turn)
        return out

    def coded(self, layer: FusedNF4Linear) -> Coded:
        """A layer's weights as codes. When a turn's first layer asks for its own, the GEMMs of the turn before have been launched."""
        place = self.places[layer.weight.data_ptr()]
        if place.first:
            self._decode_after(place.turn - 1)
            torch.cuda.current_stream().wait_event(self.decoded[place.turn])
        return Coded(place.weight, layer.scales)

    def _decode_after(self, turn: int) -> None:
        """Give the buffer of a turn, whose GEMMs have been launched, to the turn after the next."""
        if 0 <= turn < len(self.turns) - 2:
            self.stream.wait_stream(torch.cuda.current_stream())  # until then the buffer is read
            self._decode(turn + 2)

    def _decode(self, turn: int) -> None:
        """Fill the buffer whose turn it is, on the second stream; the event says when it is full."""
        layers = self.turns[turn]
        with torch.cuda.stream(self.stream):
            if layers[0].adapted:
                for layer in layers:
                    layer.decode_into(self.places[layer.weight.data_ptr()].weight)
            else:
                decode_together(layers, self._buffer(turn)[: sum(map(_count, layers))])
            self.decoded.append(self.stream.record_event())


def prefetchers(linears: Iterable[nn.Module], *, rows: int) -> list[Prefetcher]:
    """The prefetchers of linears, in the order of the forward, for batches of so many rows: of 16-bit and of 8-bit GEMMs, if there are."""
    layers = [linear for linear in linears if isinstance(linear, FusedNF4Linear)]
    kinds = [[layer for layer in layers if in_16_bits(layer) == sixteen] for sixteen in (True, False)]
    return [
        Prefetcher(some, capacity=(1 if in_16_bits(some[0]) and rows < BY_BLOCKS_FROM else _BLOCK) * max(map(_count, some)))
        for some in kinds
        if some
    ]


@contextmanager
def running(found: Sequence[Prefetcher]) -> Iterator[None]:
    """Inside, the layers of all these take their weights from the buffers; one forward."""
    with ExitStack() as stack:
        for prefetcher in found:
            stack.enter_context(prefetcher.running())
        yield


def turns(layers: Sequence[FusedNF4Linear], *, capacity: int) -> list[list[FusedNF4Linear]]:
    """Layers in their order, as many in each turn as the capacity holds, and of one kind, so that one launch can decode them."""
    found: list[list[FusedNF4Linear]] = [[]]
    for layer in layers:
        if found[-1] and (sum(map(_count, found[-1])) + _count(layer) > capacity or _kind(layer) != _kind(found[-1][-1])):
            found.append([])
        found[-1].append(layer)
    return found


def _kind(layer: FusedNF4Linear) -> tuple[object, ...]:
    return layer.products, layer.double_quantization, layer.adapted


def _count(layer: FusedNF4Linear) -> int:
    return layer.out_features * layer.in_features
