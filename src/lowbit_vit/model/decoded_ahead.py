"""NF4 blocks with 16-bit products, decoded ahead: while one block is computed, the next one's weights are decoded beside it.

Two blocks of 16-bit weights take turns. A second stream decodes into one while the first stream computes with the other, so what is
computed is an ordinary 16-bit block, by the kernels that cuBLAS or the compiler has for it, and decoding costs no time of its own as
long as it ends before the block does. It costs memory instead: two blocks in 16 bits, 48 MiB for ViT-L/16, whatever the depth.

Made for capture into a CUDA graph. Launched one by one, the host would be what decides how much overlaps.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from lowbit_vit.model.deferred import Deferred
from lowbit_vit.model.fast import FusedNF4Linear
from lowbit_vit.model.vit import Block, VisionTransformer

if TYPE_CHECKING:
    from lowbit_vit.model.kernels import nf4
else:
    nf4 = Deferred("lowbit_vit.model.kernels.nf4")

BlockCall = Callable[[Tensor], Tensor]


def decodes_ahead(block: nn.Module) -> TypeGuard[Block]:
    """Whether all linears of a block are in our NF4 with 16-bit products."""
    return isinstance(block, Block) and all(
        isinstance(linear, FusedNF4Linear) and linear.products == "16-bit" for _, _, linear in _linears(block)
    )


class DecodedAhead:
    """The blocks of a model as one call, those in NF4 decoded ahead.

    Args:
        model: in evaluation mode, on a CUDA device, with at least one block that `decodes_ahead`.
        prepare_block: what turns a block into what is called: the compiler, or nothing.
    """

    def __init__(self, model: VisionTransformer, prepare_block: Callable[[nn.Module], BlockCall]) -> None:
        self.coded = [block for block in model.blocks if decodes_ahead(block)]
        self.slots = [_in_sixteen_bits(block) for block in self.coded[:2]]
        self.stream = torch.cuda.Stream(priority=0)  # type: ignore[no-untyped-call]  # the lowest: computing goes first
        calls = [prepare_block(slot) for slot in self.slots]
        turns = iter(range(len(self.coded)))
        # In the order of the forward: of a coded block its turn, of another its call.
        self.steps: list[tuple[int | None, BlockCall]] = []
        for block in model.blocks:
            turn = next(turns) if decodes_ahead(block) else None
            self.steps.append((turn, prepare_block(block) if turn is None else calls[turn % 2]))

    def __call__(self, x_BNW: Tensor) -> Tensor:
        """Map tokens to tokens through all blocks, [B, N, W] -> [B, N, W]."""
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        decoded = [self._decode(turn) for turn in range(len(self.slots))]
        for turn, call in self.steps:
            if turn is None:
                x_BNW = call(x_BNW)
                continue
            main.wait_event(decoded[turn])
            x_BNW = call(x_BNW)
            if turn + 2 < len(self.coded):
                self.stream.wait_stream(main)  # until then the slot is read
                decoded.append(self._decode(turn + 2))
        return x_BNW

    def _decode(self, turn: int) -> torch.cuda.Event:
        """Fill the slot whose turn it is, on the second stream; the event says when it is full."""
        block, slot = self.coded[turn], self.slots[turn % 2]
        with torch.cuda.stream(self.stream):
            for (_, _, coded), (_, _, plain) in zip(_linears(block), _linears(slot), strict=True):
                nf4.decode_into(coded.stored(), plain.weight)  # type: ignore[operator,arg-type]
            torch._foreach_copy_(_small(slot), _small(block))  # one launch for all
            return self.stream.record_event()  # type: ignore[no-any-return]


def _linears(block: Block) -> list[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and linear of the four products; ours are refused beside separate q, k and v."""
    places = [(block.attention, "qkv"), (block.attention, "out"), (block.mlp, "fc1"), (block.mlp, "fc2")]
    return [(parent, name, getattr(parent, name)) for parent, name in places if hasattr(parent, name)]


def _small(block: Block) -> list[Tensor]:
    """What a block has beside its matrices."""
    biases: list[Tensor] = [linear.bias for _, _, linear in _linears(block)]  # type: ignore[misc]
    return [block.norm1.weight, block.norm1.bias, block.norm2.weight, block.norm2.bias, *biases]


def _in_sixteen_bits(block: Block) -> Block:
    """A block of the same shape with room for decoded weights in the dtype of its biases."""
    slot = copy.deepcopy(block)
    for parent, name, coded in _linears(slot):
        columns, depth = coded.out_features, coded.in_features
        plain = nn.Linear(depth, columns, device="meta", dtype=coded.bias.dtype).to_empty(device=coded.bias.device)  # type: ignore[arg-type]
        setattr(parent, name, plain)
    return slot.requires_grad_(requires_grad=False)
