"""Encoder blocks with 8-bit weights, whose GEMMs, norms, GELU and residual sums run in few kernels; the formats w8a8 and fp8.

What a block launches, for rows = images x tokens (docs/fast-path.md says why):

    norm1 + codes of its rows   ->  qkv GEMM + bias
    attention (the pinned kernel)
    codes of its rows           ->  out GEMM + bias + residual         (attention coded: it gives the codes itself)
    norm2 + codes of its rows   ->  fc1 GEMM + bias + GELU + codes     (int8: fc1 GEMM + bias  ->  GELU + codes of its rows)
                                ->  fc2 GEMM + bias + residual

In blocks of other libraries' ViTs (`block_spec`) rotary positions are one more launch, and what else stands between two GEMMs is done by
PyTorch: norm of q and k (then rotation too) after the first, a gate, another GELU or a norm after fc1, whose result then is in 16 bits.
LayerScale is folded into out and fc2.

Seven launches beside the attention's own, eight in int8, and one more for each GEMM where the codes are made from NF4. No integer
sum, norm or GELU result in 16 bits reaches memory. Weights are codes of the fp32 weights.
The kernels need Triton and CUDA; building, counting and saving a model needs neither.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.attention import MOST_CODED_ROWS, MOST_CODED_TOKENS
from lowbit_vit.model.block_spec import SpecAttention, SpecBlock, SpecMlp
from lowbit_vit.model.formats import Format
from lowbit_vit.model.kernels.coded import LARGEST, SMALLEST, VECTOR, Coded
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.model.vit import Attention, Block, Mlp
from lowbit_vit.schema.plan import FP8, W8A8

if TYPE_CHECKING:
    from lowbit_vit.model.kernels import attention as coded_attention
    from lowbit_vit.model.kernels import gemm, quantize, rotary
else:
    coded_attention = Deferred("lowbit_vit.model.kernels.attention")
    gemm = Deferred("lowbit_vit.model.kernels.gemm")
    quantize = Deferred("lowbit_vit.model.kernels.quantize")
    rotary = Deferred("lowbit_vit.model.kernels.rotary")


class EightBitLinear(nn.Module):
    """Weights in 8 bits: codes [N, K] int8 or e4m3, fp32 scales [N], bias [N]. It is run by the block that holds it."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def kind(self) -> torch.dtype:
        """Of the codes."""
        return self.weight.dtype

    def coded(self) -> Coded:
        """The weights as a GEMM takes them."""
        return Coded(self.weight, self.scales)


class FusedBlock(nn.Module):
    """An encoder block whose four linears are coded in 8 bits, run as the module's docstring lists. Its parts keep their names.

    Args:
        block: with all linears of one 8-bit format; its parts are taken over. Their weights are not to be changed after the first forward.
    """

    def __init__(self, block: Block | SpecBlock) -> None:
        super().__init__()
        self.norm1: nn.LayerNorm = block.norm1
        self.attention: Attention | SpecAttention = block.attention
        self.norm2: nn.LayerNorm = block.norm2
        self.mlp: Mlp | SpecMlp = block.mlp
        self._reach: dict[str, Tensor] = {}  # of a GEMM, once it is known
        self._arrivals: Tensor | None = None  # of the parts of fc2's depth

    def forward(self, x_BNW: Tensor, *tables: Tensor | None) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W], fp16 or bf16; tables: as of `SpecBlock`. T below: tokens of all images."""
        dtype, x_TW = x_BNW.dtype, x_BNW.reshape(-1, x_BNW.shape[-1]).contiguous()
        qkv, out, fc1, fc2 = self.attention.qkv, self.attention.out, self.mlp.fc1, self.mlp.fc2
        codes = self._heads(x_BNW.shape[1], x_TW, qkv.coded(), qkv.bias, *tables)  # type: ignore[operator,arg-type]
        x_TW = gemm.multiply(codes, out.coded(), out.bias, dtype=dtype, residual=x_TW)  # type: ignore[operator,arg-type]

        codes = self._hidden(x_TW, fc1.coded(), fc1.bias)  # type: ignore[operator,arg-type]
        if self._arrivals is None or self._arrivals.device != x_TW.device:
            self._arrivals = torch.zeros(gemm.ARRIVALS, dtype=torch.int32, device=x_TW.device)
        x_TW = gemm.multiply(codes, fc2.coded(), fc2.bias, dtype=dtype, residual=x_TW, arrivals=self._arrivals)  # type: ignore[operator,arg-type]
        return x_TW.view(x_BNW.shape)

    def _heads(self, tokens: int, x_TW: Tensor, w: Coded, bias: Tensor, *tables: Tensor | None) -> Coded:
        """Codes of attention's heads side by side, [T, H D]; tokens: of an image."""
        attention, kind = self.attention, w.codes.dtype
        own = self.own_attention(len(x_TW), tokens, *tables)
        if own == "codes":
            of_v = slice(2 * len(w.codes) // 3, None)
            reach = self._reach_of("v", Coded(w.codes[of_v], w.scales[of_v]), bias[of_v])
            codes, bounds = quantize.normalize_rows_towards(x_TW, self.norm1, reach, codes=kind)
        else:
            codes = quantize.normalize_rows(x_TW, self.norm1, codes=kind)
        qkv_BNX = gemm.multiply(codes, w, bias, dtype=x_TW.dtype).view(-1, tokens, len(w.codes))
        table = tables[0] if tables else None
        if isinstance(attention, SpecAttention) and attention.rotates_alone and table is not None and table.ndim == 2:
            rotary.rotate_in_place(qkv_BNX, table, heads=attention.heads, interleaved=attention.rotation == "interleaved")
            tables = ()
        if own == "codes":
            return coded_attention.attend_to_codes(qkv_BNX, bounds, heads=attention.heads)
        if own == "16-bit":
            heads_TW = coded_attention.attend(qkv_BNX, heads=attention.heads)
        else:
            heads_TW = attention.mix(qkv_BNX, *tables).flatten(0, 1).contiguous()
        if attention.norm is None:
            return quantize.quantize_rows(heads_TW, codes=kind)
        return quantize.normalize_rows(heads_TW, attention.norm, codes=kind)

    def own_attention(self, rows: int, tokens: int, *tables: Tensor | None) -> Literal["codes", "16-bit"] | None:
        """What this package's attention gives: where it is pinned, and in other libraries' blocks where it is faster; None: another runs.

        Args:
            rows: tokens of all images.
            tokens: of an image.
            tables: of rotary positions.
        """
        attention = self.attention
        if isinstance(attention, SpecAttention):
            few = tokens <= MOST_CODED_TOKENS and rows <= MOST_CODED_ROWS
            if not (few and attention.may_be_coded and all(table is None or table.ndim == 2 for table in tables)):
                return None
        elif attention.kernel != "coded":
            return None
        return "codes" if attention.qkv.kind == torch.float8_e4m3fn and attention.norm is None else "16-bit"

    def _reach_of(self, name: str, w: Coded, bias: Tensor) -> Tensor:
        """What bounds a GEMM, computed once."""
        found = self._reach.get(name)
        if found is None or found.device != bias.device:
            found = self._reach[name] = quantize.reach_of(w, bias)
        return found

    def _hidden(self, x_TW: Tensor, w: Coded, bias: Tensor) -> Coded:
        """Codes of GELU's result, [T, M], or of what else the MLP makes of fc1's."""
        kind = w.codes.dtype
        if isinstance(self.mlp, SpecMlp) and not self.mlp.plain:
            hidden_TM = gemm.multiply(quantize.normalize_rows(x_TW, self.norm2, codes=kind), w, bias, dtype=x_TW.dtype)
            return quantize.quantize_rows(self.mlp.activate(hidden_TM).contiguous(), codes=kind)
        if kind == torch.int8:
            hidden_TM = gemm.multiply(quantize.normalize_rows(x_TW, self.norm2, codes=kind), w, bias, dtype=x_TW.dtype)
            return quantize.gelu_rows(hidden_TM, codes=kind)
        codes, scales = quantize.normalize_rows_towards(x_TW, self.norm2, self._reach_of("fc1", w, bias), codes=kind)
        return gemm.multiply_to_gelu_codes(codes, w, bias, scales)


class EightBit(Format[W8A8 | FP8]):
    """w8a8 and fp8: codes of the fp32 weights with one scale a row; a block is run fused.

    Args:
        weights: the format, which has no settings.
        codes: int8 or float8_e4m3fn.
    """

    def __init__(self, weights: W8A8 | FP8, codes: torch.dtype) -> None:
        self._weights = weights
        self._codes = codes

    def convert(self, linear: nn.Linear, bias: Tensor, weights: W8A8 | FP8, dtype: torch.dtype, *, name: str) -> EightBitLinear:
        """Codes and scales; see `Format`."""
        weight, largest = require_codable(linear, multiple=VECTOR, weights=weights, name=name), LARGEST[self._codes]
        scales = weight.abs().amax(dim=1).clamp(min=SMALLEST) / largest
        scaled = (weight / scales[:, None]).clamp(-largest, largest)
        return EightBitLinear((scaled.round() if self._codes == torch.int8 else scaled).to(self._codes), scales, bias)

    def identify(self, layer: nn.Module) -> W8A8 | FP8 | None:
        """By the dtype of the codes; see `Format`."""
        return self._weights if isinstance(layer, EightBitLinear) and layer.weight.dtype == self._codes else None

    def expected_bytes(self, weights: W8A8 | FP8, rows: int, columns: int, *, itemsize: int) -> int:
        """A byte a weight and a scale a row; see `Format`."""
        return rows * columns + 4 * rows

    def restore(self, weights: W8A8 | FP8, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> EightBitLinear:
        """See `Format`."""
        return EightBitLinear(tensors["weight"], tensors["scales"], tensors["bias"])

    def fuse(self, block: Block | SpecBlock) -> FusedBlock:
        """See `Format`."""
        return FusedBlock(block).train(block.training)


def require_codable(linear: nn.Linear, *, multiple: int, weights: Any, name: str) -> Tensor:
    """The weight of a linear that can be coded for this project's kernels, fp32 [N, K].

    Raises:
        ConfigError: K is no such multiple, or a weight is not finite.
    """
    weight = linear.weight.detach()
    if weight.shape[1] % multiple:
        raise ConfigError(f"{name}: in_features {weight.shape[1]} is no multiple of {multiple}, which {weights.name} needs")
    if not weight.isfinite().all():
        raise ConfigError(f"{name}: a weight is NaN or infinite; no code says that")
    return weight
