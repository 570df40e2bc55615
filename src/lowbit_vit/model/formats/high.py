"""high: weights in the plan's compute dtype, in `nn.Linear`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowbit_vit.model.formats import Format
from lowbit_vit.schema.plan import HighPrecision


class _High(Format[HighPrecision]):
    adapter = "Linear"

    def convert(self, linear: nn.Linear, bias: Tensor, weights: HighPrecision, dtype: torch.dtype, *, name: str) -> nn.Linear:
        plain = _linear(linear.weight.detach().to(dtype, copy=True), bias)
        plain.weight.requires_grad = linear.weight.requires_grad
        plain.bias.requires_grad = linear.bias.requires_grad
        return plain

    def identify(self, layer: nn.Module) -> HighPrecision | None:
        return HighPrecision() if type(layer) is nn.Linear and layer.weight.dtype.is_floating_point else None

    def expected_bytes(self, weights: HighPrecision, rows: int, columns: int, *, itemsize: int) -> int:
        return rows * columns * itemsize

    def restore(self, weights: HighPrecision, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Linear:
        return _linear(tensors["weight"], tensors["bias"])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


FORMAT = _High()
