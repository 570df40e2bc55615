"""The backbone's forward in training: stochastic depth, patch dropout, small images, compiled blocks.

The model keeps its modules, names, weights and its own forward.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import Training

if TYPE_CHECKING:
    from torch import _dynamo as compiler
else:
    compiler = Deferred("torch._dynamo")


class TrainingForward:
    """Images to logits, and to the patches after the named blocks, by the keys of the training section.

    Masks are drawn on the device from torch's global generator, like dropout's.

    Args:
        model: on its device.
        config: drop_path, patch_dropout, small_images and compile are read.
        taps: numbers of blocks, counted from 1, whose patches are returned; ascending.

    Raises:
        ConfigError: small images do not fit the grid of patches; patch dropout together with taps; or a tap is past the last block.
        Unavailable: compile without CUDA.
    """

    def __init__(self, model: VisionTransformer, config: Training, *, taps: Sequence[int] = ()) -> None:
        device = model.class_token.device
        arch = model.architecture
        grid = arch.image_size // arch.patch_size
        if config.small_images is not None and grid % config.small_images.factor:
            factor = config.small_images.factor
            raise ConfigError(f"training.small_images.factor {factor} does not divide the grid of {grid} x {grid} patches")
        if taps and config.patch_dropout is not None:
            raise ConfigError("training.patch_dropout and teacher.guidance exclude each other: dropped patches have no place on a map")
        if taps and taps[-1] > arch.depth:
            raise ConfigError(f"teacher.guidance.blocks {list(taps)}: {arch.name} has {arch.depth} blocks")
        self._model = model
        self._config = config
        self._taps = tuple(taps)
        self._keep = keep_probabilities(arch.depth, config.drop_path).to(device) if config.drop_path else None
        self._plain = not (config.compile or config.drop_path or config.patch_dropout or config.small_images or taps)
        # Each block alone: all share one compiled code, and compiling takes seconds.
        self._blocks: list[Callable[..., Tensor]] = list(model.blocks)
        if config.compile:
            if device.type != "cuda":
                raise Unavailable(f"training.compile needs CUDA, the model is on {device.type}; set training.compile: false")
            self._blocks = [torch.compile(block, dynamic=False) for block in model.blocks]

    def __call__(self, images: Tensor, *, epoch: int) -> tuple[Tensor, list[Tensor]]:
        """Run the forward of an epoch (counted from 0).

        Args:
            images: [B, 3, S, S].
            epoch: decides whether images are small and patches dropped.

        Returns:
            Logits [B, K], and the patches [B, N - 1, W] after each tap.
        """
        model, config = self._model, self._config
        dtype = model.patch_embedding.weight.dtype
        if self._plain:
            return model(images.to(dtype)), []
        if config.small_images is not None and epoch < config.small_images.epochs:
            x_BNW = embed_small(model, images.to(dtype), config.small_images.factor)
        else:
            x_BNW = model.embed(images.to(dtype))
        if config.patch_dropout is not None and epoch < config.epochs - config.patch_dropout.whole_epochs:
            x_BNW = drop_patches(x_BNW, config.patch_dropout.share)
        scales = [None] * len(self._blocks) if self._keep is None else branch_scales(self._keep, len(images))
        tapped: list[Tensor] = []
        # Otherwise the compiler silently runs a block op by op past its limit.
        with compiler.config.patch(fail_on_recompile_limit_hit=True):
            for number, (block, scale) in enumerate(zip(self._blocks, scales, strict=True), start=1):
                x_BNW = block(x_BNW, scale)
                tapped += [x_BNW[:, 1:]] * self._taps.count(number)
        return model.head(model.norm(x_BNW[:, 0])), tapped


def embed_small(model: VisionTransformer, images: Tensor, factor: int) -> Tensor:
    """As `VisionTransformer.embed` of images shrunk by averaging, with positions averaged over the same squares.

    [B, 3, S, S] -> [B, 1 + (S / P / factor)^2, W].
    """
    small = torch.nn.functional.avg_pool2d(images, factor)
    patches_BNW = model.patches(small)
    of_class, of_patches = model.position_embedding[:, :1], model.position_embedding[:, 1:]
    positions = torch.cat([of_class, average_squares(of_patches, factor)], dim=1)
    return torch.cat([model.class_token.expand(len(images), -1, -1), patches_BNW], dim=1) + positions


def average_squares(patches: Tensor, factor: int) -> Tensor:
    """Average a square grid of patches over squares of factor x factor: [B, G * G, C] -> [B, (G / factor)^2, C].

    By reshaping, because the gradient of PyTorch's pooling adds in no fixed order on a GPU.
    """
    count, places, channels = patches.shape
    side = math.isqrt(places) // factor
    return patches.reshape(count, side, factor, side, factor, channels).mean(dim=(2, 4)).flatten(1, 2)


def keep_probabilities(depth: int, drop_path: float) -> Tensor:
    """Probability that a block's branches are kept: from 1 down to 1 - drop_path, linearly; fp32 [depth].

    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016, https://arxiv.org/abs/1603.09382.
    """
    return 1 - drop_path * torch.arange(depth) / max(1, depth - 1)


def branch_scales(keep: Tensor, images: int) -> tuple[Tensor, ...]:
    """For each block [images, 2]: 1 / keep with probability keep, else 0, so that the mean is 1."""
    keep = keep[:, None, None]
    kept = torch.rand(len(keep), images, 2, device=keep.device) < keep
    return (kept / keep).unbind(0)


def drop_patches(x_BNW: Tensor, share: float) -> Tensor:
    """Keep the class token and, for each image, a random subset of its patches; the same number for all."""
    images, tokens, width = x_BNW.shape
    kept = max(1, round((tokens - 1) * (1 - share)))
    patches = torch.rand(images, tokens - 1, device=x_BNW.device).argsort(dim=1)[:, :kept] + 1
    places = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
    return x_BNW.gather(1, places[:, :, None].expand(-1, -1, width))
