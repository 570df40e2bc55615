"""nf4: bitsandbytes' 4-bit layer, on the CPU as on CUDA.

On CPUs with AVX512-BF16 an NF4 layer in evaluation would repack its weights and multiply in bf16, even under a plan that says fp32.
That path is switched off: the same plan means the same arithmetic on every CPU.

Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314, section 3.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.formats import Format
from lowbit_vit.model.lazy_import import Deferred, is_loaded
from lowbit_vit.schema.plan import NF4

if TYPE_CHECKING:
    import bitsandbytes as bnb
else:
    bnb = Deferred("bitsandbytes")

BLOCK = 64  # weights that share one absmax: bitsandbytes' default and QLoRA's
NESTED_BLOCK = 256  # absmax values that share one second-level scale (double quantization); fixed in bitsandbytes


class _NF4(Format[NF4]):
    library = "bitsandbytes"
    adapter = "Linear4bit"

    def convert(self, linear: nn.Linear, bias: Tensor, weights: NF4, dtype: torch.dtype, *, name: str) -> nn.Module:
        if linear.in_features % BLOCK:
            raise ConfigError(f"{name}: in_features {linear.in_features} is no multiple of {BLOCK}, so NF4 blocks would straddle rows")
        codes, state = quantize(linear.weight.detach(), double_quantization=weights.double_quantization)
        state.dtype = dtype  # what the backward pass dequantizes to
        return _layer(codes, state, bias, dtype)

    def identify(self, layer: nn.Module) -> NF4 | None:
        if not is_nf4(layer) or layer.weight.dtype != torch.uint8 or layer.weight.quant_type != "nf4":
            return None
        return NF4(format="nf4", double_quantization=layer.weight.quant_state.nested)

    def expected_bytes(self, weights: NF4, rows: int, columns: int, *, itemsize: int) -> int:
        return coded_bytes(rows * columns, double_quantization=weights.double_quantization)

    def restore(self, weights: NF4, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
        parts = {key.removeprefix("weight."): tensor for key, tensor in tensors.items() if key not in ("weight", "bias")}
        state = bnb.functional.QuantState.from_dict(parts, device=tensors["weight"].device)
        return _layer(tensors["weight"], state, tensors["bias"], dtype)

    def constants(self, layer: Any) -> list[Tensor]:
        """absmax; with double quantization in 8 bits, with their second-level scales and the 4-byte offset.

        Not counted: the 16 levels and the 256 levels of the 8-bit code, which are constants of the format and the same in every model.
        """
        state = layer.weight.quant_state
        return [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight.float()


def quantize(weight: Tensor, *, double_quantization: bool) -> tuple[Tensor, "bnb.functional.QuantState"]:
    """Bitsandbytes' NF4 of a weight fp32 [out, in]: codes, uint8 [out * in / 2, 1], and constants."""
    options = {"blocksize": BLOCK, "compress_statistics": double_quantization, "quant_type": "nf4"}
    codes, state = bnb.functional.quantize_4bit(weight.contiguous(), **options)
    return codes, state


def is_nf4(layer: nn.Module) -> "TypeGuard[bnb.nn.Linear4bit]":
    """Whether this is bitsandbytes' 4-bit layer; asking does not import bitsandbytes."""
    return is_loaded("bitsandbytes") and isinstance(layer, bnb.nn.Linear4bit)


def coded_bytes(count: int, *, double_quantization: bool) -> int:
    """Bytes of so many weights: codes, and one fp32 absmax for each block; with double quantization one byte, plus one fp32 for 256 of
    them, plus one fp32 mean a layer.
    """
    blocks = count // BLOCK
    if not double_quantization:
        return count // 2 + 4 * blocks
    return count // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK) + 4


def _layer(codes: Tensor, state: "bnb.functional.QuantState", bias: Tensor, dtype: torch.dtype) -> nn.Module:
    """The real `Linear4bit` around existing codes (uint8 [out * in / 2, 1]) and their quantization state, ready to run."""
    out_features, in_features = state.shape
    nested = bool(state.nested)
    layer: Any = bnb.nn.Linear4bit(
        in_features, out_features, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4", device="meta"
    )
    layer.weight = bnb.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=nested,
        quant_type="nf4",
        module=layer,
        bnb_quantized=True,
    )
    layer.quant_state = state
    layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.support_avx512bf16_for_cpu = False  # see the module's docstring
    module: nn.Module = layer
    return module


FORMAT = _NF4()
