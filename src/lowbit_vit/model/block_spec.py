"""One encoder block of any ViT: what distinguishes it (`BlockSpec`), and the module that computes it (`SpecBlock`).

A family (`families`) maps a block of a library to a `BlockSpec`; formats and kernels know nothing of libraries. Only evaluation is
described: dropout and stochastic depth are left out. Shapes as in `attention`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_vit.model.attention import CODED_HEAD_WIDTH, attend
from lowbit_vit.schema.config import AttentionName

ActivationName = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Rotation = Literal["interleaved", "half"]
LINEARS = ("attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2")  # in the order of the forward pass, with the names of plans


@dataclass(frozen=True)
class Affine:
    """A linear map: weight [N, K] and bias [N]; None: zeros."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last dimension: weight and bias [width], None: ones and zeros."""

    width: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def module(self, device: torch.device) -> nn.LayerNorm:
        """The LayerNorm, with copies of the parameters in fp32; the fused kernels need both of them."""
        norm = nn.LayerNorm(self.width, eps=self.eps, device=device)
        for parameter, given in ((norm.weight, self.weight), (norm.bias, self.bias)):
            if given is not None:
                parameter.data.copy_(given.detach())
        return norm


@dataclass(frozen=True)
class BlockSpec:
    """A pre-norm block: x + scale1 * out(attention(norm1(x))), then x + scale2 * mlp(norm2(x)).

    Attributes:
        heads: H.
        norm1: over W.
        qkv: [3 H D, W]; rows q, k, v.
        q_norm: over D, before rotation; None: none.
        k_norm: as q_norm.
        rotation: how the tables of rotary positions pair the columns of a head; None: there are no tables.
        prefix: tokens before the patches, which are not rotated.
        inner_norm: over H D, between attention and out; None: none.
        out: [W, H D].
        scale1: LayerScale, [W]; None: none.
        norm2: over W.
        fc1: [M, W]; if gated [2 M, W], the rows of the gate first.
        activation: of fc1's result, of the gate alone if gated.
        gated: whether the activation of the gate multiplies the other half (GLU).
        hidden_norm: over M, before fc2; None: none.
        fc2: [W, M].
        scale2: as scale1.
    """

    heads: int
    norm1: Norm
    qkv: Affine
    out: Affine
    norm2: Norm
    fc1: Affine
    fc2: Affine
    activation: ActivationName = "gelu"
    gated: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotation: Rotation | None = None
    prefix: int = 0
    inner_norm: Norm | None = None
    hidden_norm: Norm | None = None
    scale1: Tensor | None = None
    scale2: Tensor | None = None

    @property
    def head_width(self) -> int:
        """D."""
        return self.out.weight.shape[1] // self.heads

    @property
    def mlp_width(self) -> int:
        """M."""
        return self.fc2.weight.shape[1]

    def linears(self, *, multiple: int, fold: bool) -> Iterator[tuple[str, nn.Linear]]:
        """Plain fp32 linears with biases by their names, on the parameters' device; each is made when it is asked for.

        Args:
            multiple: M is padded with zeros to one of this; GELU and SiLU keep zeros, and zero columns of fc2 add nothing.
            fold: LayerScale multiplies the rows and biases of out and fc2, in fp32, before they are coded; where it is not folded,
                the block multiplies by it. Both are the same algebra and round differently.
        """
        pad = -self.mlp_width % multiple
        yield LINEARS[0], _linear(self.qkv)
        yield LINEARS[1], _linear(self.out, scale=self.scale1 if fold else None)
        yield LINEARS[2], _linear(self.fc1, pad_rows=pad, parts=2 if self.gated else 1)
        yield LINEARS[3], _linear(self.fc2, scale=self.scale2 if fold else None, pad_columns=pad)


def _linear(of: Affine, *, scale: Tensor | None = None, pad_rows: int = 0, parts: int = 1, pad_columns: int = 0) -> nn.Linear:
    weight = of.weight.detach().float()
    bias = torch.zeros(len(weight), device=weight.device) if of.bias is None else of.bias.detach().float()
    if scale is not None:
        weight, bias = weight * scale.detach().float()[:, None], bias * scale.detach().float()
    if pad_rows:  # at the end of each part
        weight = torch.cat([functional.pad(part, (0, 0, 0, pad_rows)) for part in weight.chunk(parts)])
        bias = torch.cat([functional.pad(part, (0, pad_rows)) for part in bias.chunk(parts)])
    weight = functional.pad(weight, (0, pad_columns))
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return linear.eval()


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


def _activation(name: ActivationName) -> nn.Module:
    if name == "quick_gelu":
        return QuickGELU()
    return nn.SiLU() if name == "silu" else nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class SpecAttention(nn.Module):
    """Multi-head self-attention by a spec; `qkv` and `out` are put in by its block."""

    qkv: nn.Module
    out: nn.Module
    scale: Tensor | None

    def __init__(self, spec: BlockSpec, device: torch.device, *, kernel: AttentionName) -> None:
        super().__init__()
        self.heads, self.head_width, self.kernel = spec.heads, spec.head_width, kernel
        self.rotation, self.prefix = spec.rotation, spec.prefix
        self.q_norm, self.k_norm, self.norm = (
            None if norm is None else norm.module(device) for norm in (spec.q_norm, spec.k_norm, spec.inner_norm)
        )

    @property
    def plain(self) -> bool:
        """Whether q, k and v are used as qkv gives them."""
        return self.q_norm is None and self.k_norm is None and self.rotation is None

    @property
    def may_be_coded(self) -> bool:
        """Whether this package's attention may take cuDNN's place where the tokens are few and the blocks are in 8 bits."""
        return (self.plain or self.rotates_alone) and self.kernel == "cudnn" and self.head_width == CODED_HEAD_WIDTH

    @property
    def rotates_alone(self) -> bool:
        """Whether q and k are rotated as qkv gives them."""
        return self.q_norm is None and self.k_norm is None and self.rotation is not None

    def split(self, qkv_BNX: Tensor, tables: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, [B, N, H, D] each, normalized and rotated."""
        q_BNHD, k_BNHD, v_BNHD = qkv_BNX.view(*qkv_BNX.shape[:-1], 3, self.heads, -1).unbind(2)
        if self.q_norm is not None:
            q_BNHD = self.q_norm(q_BNHD)
        if self.k_norm is not None:
            k_BNHD = self.k_norm(k_BNHD)
        if self.rotation is not None and tables is not None:
            q_BNHD, k_BNHD = self._rotated(q_BNHD, tables), self._rotated(k_BNHD, tables)
        return q_BNHD, k_BNHD, v_BNHD

    def _rotated(self, x_BNHD: Tensor, tables: Tensor) -> Tensor:
        """Rotary positions for all tokens after the prefix; tables: sines, then cosines, [N - prefix, 2 D] or [..., H, N - prefix, 2 D].

        In the order of the qkv GEMM, which attention then keeps for its result.
        """
        tables = tables.unsqueeze(-2) if tables.ndim == 2 else tables.transpose(-3, -2)
        sines, cosines = tables.chunk(2, -1)
        before, x = x_BNHD[:, : self.prefix], x_BNHD[:, self.prefix :]
        if self.rotation == "half":
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        rotated = (x * cosines + turned * sines).to(x.dtype)
        return torch.cat([before, rotated], dim=1)

    def mix(self, qkv_BNX: Tensor, tables: Tensor | None = None) -> Tensor:
        """The heads side by side, [B, N, 3 H D] -> [B, N, H D]; without inner norm."""
        return attend(*self.split(qkv_BNX, tables), self.kernel).flatten(2)

    def forward(self, x_BNW: Tensor, tables: Tensor | None = None) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W]."""
        heads_BNX = self.mix(self.qkv(x_BNW), tables)
        out_BNW: Tensor = self.out(heads_BNX if self.norm is None else self.norm(heads_BNX))
        return out_BNW


class SpecMlp(nn.Module):
    """The MLP of a spec; `fc1` and `fc2` are put in by its block."""

    fc1: nn.Module
    fc2: nn.Module

    def __init__(self, spec: BlockSpec, device: torch.device) -> None:
        super().__init__()
        self.activation = _activation(spec.activation)
        self.gated, self.width = spec.gated, spec.mlp_width
        self.norm = None if spec.hidden_norm is None else spec.hidden_norm.module(device)
        self.plain = spec.activation == "gelu" and not spec.gated and spec.hidden_norm is None

    def activate(self, x_BNM: Tensor) -> Tensor:
        """fc2's input from fc1's result; what is padded is zero."""
        if self.gated:
            gate, x_BNM = x_BNM.chunk(2, dim=-1)
            x_BNM = self.activation(gate) * x_BNM
        else:
            x_BNM = self.activation(x_BNM)
        if self.norm is not None:
            pad = x_BNM.shape[-1] - self.width
            x_BNM = functional.pad(self.norm(x_BNM[..., : self.width]), (0, pad)) if pad else self.norm(x_BNM)
        return x_BNM

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W]."""
        out_BNW: Tensor = self.fc2(self.activate(self.fc1(x_BNW)))
        return out_BNW


class SpecBlock(nn.Module):
    """A block by its spec, with the names of our own `vit.Block`.

    Args:
        spec: of the block.
        linears: the four layers by name, in their formats.
        kernel: of attention.
        dtype: of norms and LayerScale.
        fold: whether LayerScale is folded into out and fc2.
    """

    scale1: Tensor | None
    scale2: Tensor | None

    def __init__(self, spec: BlockSpec, linears: dict[str, nn.Module], *, kernel: AttentionName, dtype: torch.dtype, fold: bool) -> None:
        super().__init__()
        device = spec.qkv.weight.device
        self.norm1, self.norm2 = spec.norm1.module(device), spec.norm2.module(device)
        self.attention = SpecAttention(spec, device, kernel=kernel)
        self.mlp = SpecMlp(spec, device)
        for name, scale in (("scale1", spec.scale1), ("scale2", spec.scale2)):
            self.register_parameter(name, None if scale is None or fold else nn.Parameter(scale.detach().clone()))
        self.to(dtype)
        for name, layer in linears.items():
            parent, _, place = name.rpartition(".")
            self.get_submodule(parent).add_module(place, layer)
        self.requires_grad_(requires_grad=False)  # what a user freezes for inference
        self.eval()

    def forward(self, x_BNW: Tensor, tables: Tensor | None = None) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W]; tables: of rotary positions."""
        attended_BNW = self.attention(self.norm1(x_BNW), tables)
        x_BNW = x_BNW + (attended_BNW if self.scale1 is None else attended_BNW * self.scale1)
        hidden_BNW = self.mlp(self.norm2(x_BNW))
        out_BNW: Tensor = x_BNW + (hidden_BNW if self.scale2 is None else hidden_BNW * self.scale2)
        return out_BNW
