"""int8: bitsandbytes' LLM.int8 layer, on the CPU as on CUDA.

It quantizes activations by way of fp16 whatever the compute dtype, and on the CPU it does so in evaluation only: in training mode the
CPU path dequantizes the weights, multiplies in floating point and ignores the threshold.

Source: Dettmers et al., "LLM.int8()", 2022, https://arxiv.org/abs/2208.07339, section 3.1.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowbit_vit.model.formats import Format
from lowbit_vit.model.lazy_import import Deferred, is_loaded
from lowbit_vit.schema.plan import Int8

if TYPE_CHECKING:
    import bitsandbytes as bnb
else:
    bnb = Deferred("bitsandbytes")

# Said by bitsandbytes in every layer of every call when activations are fp32 or bf16; the module's docstring says it once.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(lambda entry: "inputs will be cast from" not in entry.getMessage())


class _Int8(Format[Int8]):
    library = "bitsandbytes"
    adapter = "Linear8bitLt"

    def convert(self, linear: nn.Linear, bias: Tensor, weights: Int8, dtype: torch.dtype, *, name: str) -> nn.Module:
        # bitsandbytes defines int8 codes on fp16 weights; the same call as in Int8Params, which refuses weights already on a GPU.
        codes, scales, _ = bnb.functional.int8_vectorwise_quant(linear.weight.detach().half())
        return _layer(codes, scales, bias, threshold=weights.threshold)

    def identify(self, layer: nn.Module) -> Int8 | None:
        if not is_loaded("bitsandbytes") or not isinstance(layer, bnb.nn.Linear8bitLt):
            return None
        if layer.weight.dtype != torch.int8 or layer.state.has_fp16_weights:
            return None
        return Int8(format="int8", threshold=layer.state.threshold)

    def expected_bytes(self, weights: Int8, rows: int, columns: int, *, itemsize: int) -> int:
        return rows * columns + 4 * rows

    def restore(self, weights: Int8, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
        return _layer(tensors["weight"], tensors["SCB"], tensors["bias"], threshold=weights.threshold)

    def constants(self, layer: Any) -> list[Tensor]:
        return [layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB]

    def dequantize(self, layer: Any) -> Tensor:
        codes: Tensor = layer.state.CB
        restored: Tensor = codes.float() * layer.state.SCB[:, None] / 127
        return restored


def _layer(codes: Tensor, scales: Tensor, bias: Tensor, *, threshold: float) -> nn.Module:
    """The real `Linear8bitLt` around existing codes (int8 [out, in]) and row scales (fp32 [out]), ready to run."""
    out_features, in_features = codes.shape
    layer: Any = bnb.nn.Linear8bitLt(in_features, out_features, has_fp16_weights=False, threshold=threshold, device="meta")
    layer.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    # Done by the first forward otherwise, which would then change the layer under a saved state or a captured graph.
    layer.init_8bit_state()
    module: nn.Module = layer
    return module


FORMAT = _Int8()
