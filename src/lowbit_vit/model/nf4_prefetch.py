"""NF4 layers with 16-bit GEMMs whose weights are prefetched: while one layer runs, the next one's weights are decoded beside it.

Two buffers of 16-bit weights take turns. A second stream decodes into one while the first stream computes from the other, so each layer
is an ordinary 16-bit GEMM of cuBLAS, and decoding adds no time as long as it ends before the GEMM does. It costs memory instead, whatever
the depth of the model: twice the largest layer, 16 MiB in a ViT-L/16, where the batch is small and memory is what NF4 is for; where it is
large, two blocks, 48 MiB, since each change of turns costs the GPU a microsecond. Layers that share a turn are decoded in one launch.

Made for capture into a CUDA graph. With kernels launched one by one, the host's speed would decide how much overlaps.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_vit.model.nf4_linear import FusedNF4Linear, decode_together, in_16_bits, multiplied_by

# Rows (images x tokens) from which a turn holds three times the largest layer: a block of a ViT, whose MLP is four times as wide as it.
BY_BLOCKS_FROM = 2048
_BLOCK = 3


def coded_layers(linears: Iterable[nn.Module]) -> list[FusedNF4Linear]:
    """The nf4_fused layers with 16-bit GEMMs among these, in their order."""
    return [linear for linear in linears if in_16_bits(linear)]


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
        layers: at least one, on a CUDA device; no layer twice.
        capacity: weights that a turn may hold; at least those of the largest layer.
    """

    def __init__(self, layers: Sequence[FusedNF4Linear], *, capacity: int) -> None:
        self.turns = turns(layers, capacity=capacity)
        largest = max(sum(_count(layer) for layer in turn) for turn in self.turns)
        dtype, device = layers[0].bias.dtype, layers[0].weight.device
        self.buffers = [torch.empty(largest, dtype=dtype, device=device) for _ in self.turns[:2]]
        self.stream = torch.cuda.Stream(priority=0)  # type: ignore[no-untyped-call]  # the lowest: computing goes first
        self.places = {place_of.data_ptr(): place for place_of, place in self._places()}
        self.decoded: list[torch.cuda.Event] = []

    def _places(self) -> Iterator[tuple[Tensor, _Place]]:
        for turn, layers in enumerate(self.turns):
            start = 0
            for index, layer in enumerate(layers):
                part = self.buffers[turn % 2][start : start + _count(layer)]
                weight = part.view(layer.out_features, layer.in_features)
                yield layer.weight, _Place(turn, weight, first=index == 0, last=index == len(layers) - 1)
                start += _count(layer)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, these layers take their weights from the buffers; one forward."""
        self.stream.wait_stream(torch.cuda.current_stream())
        self.decoded = []
        for turn in range(len(self.buffers)):
            self._decode(turn)
        with multiplied_by(self.multiply):
            yield

    def multiply(self, x: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
        """The GEMM of the layer that has these codes: x [M, K], codes uint8 [N, K / 2], bias [N] -> [M, N]."""
        place, main = self.places[codes.data_ptr()], torch.cuda.current_stream()
        if place.first:
            main.wait_event(self.decoded[place.turn])
        out: Tensor = nn.functional.linear(x, place.weight, bias)
        if place.last and place.turn + 2 < len(self.turns):
            self.stream.wait_stream(main)  # until then the buffer is read
            self._decode(place.turn + 2)
        return out

    def _decode(self, turn: int) -> None:
        """Fill the buffer whose turn it is, on the second stream; the event says when it is full."""
        layers = self.turns[turn]
        with torch.cuda.stream(self.stream):
            if all(not layer.adapted and layer.double_quantization == layers[0].double_quantization for layer in layers):
                decode_together(layers, self.buffers[turn % 2][: sum(map(_count, layers))])
            else:
                for layer in layers:
                    layer.decode_into(self.places[layer.weight.data_ptr()].weight)
            self.decoded.append(self.stream.record_event())


def prefetcher(linears: Iterable[nn.Module], *, rows: int) -> Prefetcher | None:
    """The prefetcher of linears, in the order of the forward, for batches of so many rows; None: there are none of its layers."""
    layers = coded_layers(linears)
    if not layers:
        return None
    return Prefetcher(layers, capacity=(_BLOCK if rows >= BY_BLOCKS_FROM else 1) * max(map(_count, layers)))


def turns(layers: Sequence[FusedNF4Linear], *, capacity: int) -> list[list[FusedNF4Linear]]:
    """Layers in their order, as many in each turn as the capacity holds."""
    found: list[list[FusedNF4Linear]] = [[]]
    for layer in layers:
        if found[-1] and sum(map(_count, found[-1])) + _count(layer) > capacity:
            found.append([])
        found[-1].append(layer)
    return found


def _count(layer: FusedNF4Linear) -> int:
    return layer.out_features * layer.in_features
