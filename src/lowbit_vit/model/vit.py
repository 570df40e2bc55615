"""The vision transformer under study, with its query, key, value and output projections as linears of their own.

torchvision keeps q, k and v in one parameter of `nn.MultiheadAttention` and never calls `out_proj.forward`: swapping "every
nn.Linear" there leaves a quarter of the encoder in high precision and bypasses a twelfth. Here each projection is a module
that a plan can name, and the numbers are torchvision's (features after every block and logits agree within 1e-5 in fp32).

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, https://arxiv.org/abs/2010.11929. Pre-norm, exact GELU,
LayerNorm eps 1e-6. The letters of the shapes are those of `attention`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.attention import attend
from lowbit_vit.schema.config import AttentionName, QkvLayout, SmallVit, TorchvisionVit
from lowbit_vit.schema.plan import linear_names

NORM_EPS = 1e-6
CHANNELS = 3


@dataclass(frozen=True)
class Architecture:
    """The sizes that define one ViT.

    Raises:
        ConfigError: a size is no positive whole number, the patches do not tile the image, or the heads do not divide the width.
    """

    name: str
    image_size: int
    patch_size: int
    depth: int
    heads: int
    width: int
    mlp_width: int

    def __post_init__(self) -> None:
        for key, size in vars(self).items():
            if key != "name" and (type(size) is not int or size < 1):
                raise ConfigError(f"{self.name}: {key} {size!r} must be a positive whole number")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"{self.name}: views.image_size {self.image_size} is not a multiple of the patch size {self.patch_size}; "
                f"nearest: {max(1, round(self.image_size / self.patch_size)) * self.patch_size}"
            )
        if self.width % self.heads:
            raise ConfigError(f"{self.name}: width {self.width} is not a multiple of heads {self.heads}")

    @property
    def tokens(self) -> int:
        """N: the patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def head_width(self) -> int:
        """D: width of one head."""
        return self.width // self.heads


def _torchvision(name: TorchvisionVit, *, patch_size: int, depth: int, heads: int, width: int) -> Architecture:
    return Architecture(name=name, image_size=224, patch_size=patch_size, depth=depth, heads=heads, width=width, mlp_width=4 * width)


ARCHITECTURES: dict[TorchvisionVit, Architecture] = {
    "vit_b_16": _torchvision("vit_b_16", patch_size=16, depth=12, heads=12, width=768),
    "vit_b_32": _torchvision("vit_b_32", patch_size=32, depth=12, heads=12, width=768),
    "vit_l_16": _torchvision("vit_l_16", patch_size=16, depth=24, heads=16, width=1024),
    "vit_l_32": _torchvision("vit_l_32", patch_size=32, depth=24, heads=16, width=1024),
    "vit_h_14": _torchvision("vit_h_14", patch_size=14, depth=32, heads=16, width=1280),
}


def architecture(config: TorchvisionVit | SmallVit, image_size: int) -> Architecture:
    """The sizes that a profile's `backbone.architecture` stands for, on images of `image_size` px.

    Raises:
        ConfigError: the patches do not tile the image.
    """
    if isinstance(config, SmallVit):
        return Architecture(image_size=image_size, **config.model_dump())
    return replace(ARCHITECTURES[config], image_size=image_size)


class Attention(nn.Module):
    """Multi-head self-attention: the projections as linears, the rest by one pinned kernel."""

    norm = None  # between attention and out there is none

    def __init__(self, arch: Architecture, *, kernel: AttentionName, qkv: QkvLayout) -> None:
        super().__init__()
        self.heads = arch.heads
        self.kernel: AttentionName = kernel
        self.layout: QkvLayout = qkv
        if qkv == "fused":
            # Rows in the order q, k, v. One GEMM of N = 3W columns instead of three of W: other kernels fit it.
            self.qkv: nn.Module = nn.Linear(arch.width, 3 * arch.width)
        else:
            self.q: nn.Module = nn.Linear(arch.width, arch.width)
            self.k: nn.Module = nn.Linear(arch.width, arch.width)
            self.v: nn.Module = nn.Linear(arch.width, arch.width)
        self.out: nn.Module = nn.Linear(arch.width, arch.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W]."""
        if self.layout == "fused":
            heads_BNW = self.mix(self.qkv(x_BNW))
        else:
            q_BNHD, k_BNHD, v_BNHD = [project(x_BNW).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v)]
            heads_BNW = attend(q_BNHD, k_BNHD, v_BNHD, self.kernel).flatten(2)
        out_BNW: Tensor = self.out(heads_BNW)
        return out_BNW

    def mix(self, qkv_BNX: Tensor) -> Tensor:
        """The heads side by side, from the fused layer's result, [B, N, 3 W] -> [B, N, W]."""
        q_BNHD, k_BNHD, v_BNHD = qkv_BNX.view(*qkv_BNX.shape[:-1], 3, self.heads, -1).unbind(2)
        return attend(q_BNHD, k_BNHD, v_BNHD, self.kernel).flatten(2)


class Mlp(nn.Module):
    """Two linears with an exact (erf) GELU between them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fc1: nn.Module = nn.Linear(arch.width, arch.mlp_width)
        self.activation: nn.Module = nn.GELU()  # nn.Identity where fc1 computes it
        self.fc2: nn.Module = nn.Linear(arch.mlp_width, arch.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W]."""
        x_BNM = self.activation(self.fc1(x_BNW))
        out_BNW: Tensor = self.fc2(x_BNM)
        return out_BNW


class Block(nn.Module):
    """One pre-norm encoder block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, arch: Architecture, *, kernel: AttentionName, qkv: QkvLayout) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.width, eps=NORM_EPS)
        self.attention = Attention(arch, kernel=kernel, qkv=qkv)
        self.norm2 = nn.LayerNorm(arch.width, eps=NORM_EPS)
        self.mlp = Mlp(arch)

    def forward(self, x_BNW: Tensor, scale_B2: Tensor | None = None) -> Tensor:
        """Map tokens to tokens, [B, N, W] -> [B, N, W].

        Args:
            x_BNW: tokens.
            scale_B2: in training with stochastic depth, what each image's attention and MLP branch are multiplied by, [B, 2].
                None: 1. It comes from outside, so that all blocks are one piece of code to the compiler.
        """
        if scale_B2 is None:
            x_BNW = x_BNW + self.attention(self.norm1(x_BNW))
            out_BNW: Tensor = x_BNW + self.mlp(self.norm2(x_BNW))
            return out_BNW
        x_BNW = x_BNW + scale_B2[:, 0, None, None] * self.attention(self.norm1(x_BNW))
        dropped_BNW: Tensor = x_BNW + scale_B2[:, 1, None, None] * self.mlp(self.norm2(x_BNW))
        return dropped_BNW


class VisionTransformer(nn.Module):
    """Images to logits, [B, 3, image_size, image_size] -> [B, K].

    Initialised from scratch with the global torch generator, so seed it before: head, class token and positions from a
    normal of deviation 0.02 cut at two deviations (as BERT and timm), encoder linears of deviation sqrt(2 / (in + out))
    (Glorot's, as torchvision; at width 1024 it is 0.03, and at width 64 a fixed 0.02 would cost many epochs), patch embedding of
    deviation 1/sqrt(fan in) (as torchvision), biases zero. The head is not zero, so that a fresh model's logits depend on its encoder.

    Args:
        arch: sizes.
        num_classes: K.
        attention: the pinned attention kernel.
        qkv: one linear each for q, k and v, or one for all three.
    """

    def __init__(self, arch: Architecture, *, num_classes: int, attention: AttentionName, qkv: QkvLayout) -> None:
        super().__init__()
        self.architecture = arch
        self.num_classes = num_classes
        self.qkv: QkvLayout = qkv
        self.patch_embedding = nn.Conv2d(CHANNELS, arch.width, kernel_size=arch.patch_size, stride=arch.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, arch.width))
        self.position_embedding = nn.Parameter(torch.empty(1, arch.tokens, arch.width))
        self.blocks = nn.ModuleList(Block(arch, kernel=attention, qkv=qkv) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.width, eps=NORM_EPS)
        self.head = nn.Linear(arch.width, num_classes)
        self._initialise()

    @classmethod
    def empty(
        cls, arch: Architecture, *, num_classes: int, attention: AttentionName, qkv: QkvLayout, device: torch.device | str
    ) -> "VisionTransformer":
        """A model whose parameters are not initialised, for callers that fill or replace them all, as `checkpoint.restore` does.

        Drawing 304 million weights that are replaced at once takes a CPU seconds.
        """
        with torch.device("meta"):
            model = cls(arch, num_classes=num_classes, attention=attention, qkv=qkv)
        return model.to_empty(device=device)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = 0.02 if module is self.head else math.sqrt(2 / (module.in_features + module.out_features))
                _truncated_normal(module.weight, std=std)
                nn.init.zeros_(module.bias)
        fan_in = CHANNELS * self.architecture.patch_size**2
        _truncated_normal(self.patch_embedding.weight, std=math.sqrt(1 / fan_in))
        if self.patch_embedding.bias is not None:
            nn.init.zeros_(self.patch_embedding.bias)
        _truncated_normal(self.class_token, std=0.02)
        _truncated_normal(self.position_embedding, std=0.02)

    def patches(self, images: Tensor) -> Tensor:
        """The patch embedding, [B, 3, S, S] -> [B, (S / P)^2, W], for any S that patches tile.

        A convolution whose windows do not overlap is a GEMM of flattened patches. On CUDA it is computed so, since cuDNN's
        convolution takes several times as long (docs/fast-path.md).
        """
        if images.device.type == "cuda":
            return self.patches_by_gemm(images)
        patches_BWYX: Tensor = self.patch_embedding(images)
        return patches_BWYX.flatten(2).transpose(1, 2)

    def patches_by_gemm(self, images: Tensor) -> Tensor:
        """As `patches`, on any device."""
        kernel, size = self.patch_embedding, self.architecture.patch_size
        batch, channels, height, width = images.shape
        cut_BCYPXP = images.view(batch, channels, height // size, size, width // size, size)
        flat_BNC = cut_BCYPXP.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(flat_BNC, kernel.weight.flatten(1), kernel.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Cut images into patches and put the class token before them, [B, 3, image_size, image_size] -> [B, N, W].

        Args:
            images: normalized, in the dtype of the patch embedding; any memory format.

        Raises:
            DataError: the images have another size; positions are not interpolated.
        """
        size = self.architecture.image_size
        if images.ndim != 4 or images.shape[1:] != (CHANNELS, size, size):
            raise DataError(
                f"images of shape {tuple(images.shape)} given to {self.architecture.name}, which takes "
                f"[batch, {CHANNELS}, {size}, {size}]; prepare the data with views.image_size = {size}"
            )
        tokens_BNW = torch.cat([self.class_token.expand(len(images), -1, -1), self.patches(images)], dim=1)
        return tokens_BNW + self.position_embedding

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, [B, 3, image_size, image_size] -> logits [B, K].

        Raises:
            DataError: as `embed`.
        """
        x_BNW = self.embed(images)
        for block in self.blocks:
            x_BNW = block(x_BNW)
        # LayerNorm works token by token, so only the class token needs the last one.
        logits_BK: Tensor = self.head(self.norm(x_BNW[:, 0]))
        return logits_BK

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tokens after each block, in order: `depth` tensors [B, N, W].

        Raises:
            DataError: as `embed`.
        """
        x_BNW = self.embed(images)
        after: list[Tensor] = []
        for block in self.blocks:
            x_BNW = block(x_BNW)
            after.append(x_BNW)
        return tuple(after)


def encoder_linears(model: VisionTransformer) -> dict[str, nn.Module]:
    """The linears that a plan may quantize, by name, in the order of the forward pass.

    `blocks.0.attention.q`, `.k`, `.v` (or `.qkv`), `.out`, `blocks.0.mlp.fc1`, `.fc2`, `blocks.1...`: 144 in ViT-L/16 with
    separate q, k and v. Found by place, not by class, so a linear that was quantized or wrapped by an adapter is there too.
    """
    names = linear_names(model.architecture.depth, fused=model.qkv == "fused")
    return {name: model.get_submodule(name) for name in names}


def fuse_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state of the separate layout into one of the fused layout: rows q, then k, then v. Other entries are kept."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        head, dot, kind = name.rpartition(".")
        if not head.endswith(("attention.q", "attention.k", "attention.v")):
            fused[name] = tensor
        elif head.endswith("attention.q"):
            place = head.removesuffix("q")
            parts = [state_dict[f"{place}{projection}{dot}{kind}"] for projection in ("q", "k", "v")]
            fused[f"{place}qkv{dot}{kind}"] = torch.cat(parts)
    return fused


def split_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state of the fused layout into one of the separate layout: the inverse of `fuse_qkv`."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        head, dot, kind = name.rpartition(".")
        if not head.endswith("attention.qkv"):
            separate[name] = tensor
            continue
        place = head.removesuffix("qkv")
        for projection, rows in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
            # A copy: safetensors and in-place casts want tensors that own their memory.
            separate[f"{place}{projection}{dot}{kind}"] = rows.clone()
    return separate


def _truncated_normal(tensor: Tensor, *, std: float) -> None:
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
