"""nf4_fused: bitsandbytes' NF4 codes in this project's kernels, with 16-bit or 8-bit GEMMs."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lowbit_vit.model import nf4_lora, nf4_prefetch
from lowbit_vit.model.block_spec import SpecBlock
from lowbit_vit.model.formats import Format, Prepared
from lowbit_vit.model.formats.nf4 import BLOCK, coded_bytes, quantize
from lowbit_vit.model.fused import FusedBlock, require_codable
from lowbit_vit.model.nf4_linear import FusedNF4Linear, from_bitsandbytes, in_16_bits
from lowbit_vit.model.vit import Block, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import FusedNF4


class _FusedNF4(Format[FusedNF4]):
    library = "bitsandbytes"

    def convert(self, linear: nn.Linear, bias: Tensor, weights: FusedNF4, dtype: torch.dtype, *, name: str) -> FusedNF4Linear:
        weight = require_codable(linear, multiple=BLOCK, weights=weights, name=name)
        codes, state = quantize(weight, double_quantization=weights.double_quantization)
        return from_bitsandbytes(codes, state, bias, products=weights.products)

    def identify(self, layer: nn.Module) -> FusedNF4 | None:
        if not isinstance(layer, FusedNF4Linear):
            return None
        double_quantization = layer.absmax.dtype == torch.uint8
        return FusedNF4(format="nf4_fused", double_quantization=double_quantization, products=layer.products)

    def expected_bytes(self, weights: FusedNF4, rows: int, columns: int, *, itemsize: int) -> int:
        scales = 0 if weights.products == "16-bit" else 4 * rows
        return scales + coded_bytes(rows * columns, double_quantization=weights.double_quantization)

    def restore(self, weights: FusedNF4, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> FusedNF4Linear:
        nested = (tensors["nested_scales"], tensors["nested_mean"]) if weights.double_quantization else None
        update = (tensors["up"], tensors["down"]) if "up" in tensors else None
        return FusedNF4Linear(tensors["weight"], tensors["absmax"], nested, tensors["bias"], products=weights.products, update=update)

    def fuse(self, block: Block | SpecBlock) -> nn.Module:
        fc1, activation = block.mlp.fc1, block.mlp.activation
        if not in_16_bits(fc1):
            return FusedBlock(block).train(block.training)
        if isinstance(activation, nn.GELU) and activation.approximate == "none":
            block.mlp.activation, fc1.gelu = nn.Identity(), True
        return block

    def prefetch(self, model: VisionTransformer, *, rows: int) -> Prepared | None:
        found = nf4_prefetch.prefetchers(encoder_linears(model).values(), rows=rows)
        return partial(nf4_prefetch.running, found) if found else None

    def take_over(self, model: VisionTransformer) -> None:
        nf4_lora.take_over(model)


FORMAT = _FusedNF4()
