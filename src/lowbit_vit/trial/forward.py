"""The backbone's forward in training: stochastic depth, patch dropout, a kernel with 16-bit gradients, compiled blocks.

All of it is of training alone. The model keeps its modules, names and weights, and its own forward knows nothing of this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._dynamo import config as compiler_config

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.attention import require
from lowbit_vit.model.vit import Attention, VisionTransformer
from lowbit_vit.schema.config import AttentionName, Training


class TrainingForward:
    """Images to logits, [B, 3, S, S] -> [B, K], as the training section says.

    Masks are drawn on the device from torch's global generator, like dropout's.

    Args:
        model: on its device.
        config: drop_path, patch_dropout and compile are read.

    Raises:
        Unavailable: compile without CUDA.
    """

    def __init__(self, model: VisionTransformer, config: Training) -> None:
        device = model.class_token.device
        self._model = model
        self._patch_dropout = config.patch_dropout
        self._keep = keep_probabilities(model.architecture.depth, config.drop_path).to(device) if config.drop_path else None
        self._plain = not (config.compile or config.drop_path or config.patch_dropout)
        # Each block alone: one piece of code serves all of them, and compiling takes seconds.
        self._blocks: list[Callable[..., Tensor]] = list(model.blocks)
        if config.compile:
            if device.type != "cuda":
                raise Unavailable(f"training.compile needs CUDA, the model is on {device.type}; set training.compile: false")
            self._blocks = [torch.compile(block, dynamic=False) for block in model.blocks]

    def __call__(self, images: Tensor, *, whole: bool) -> Tensor:
        """Run the forward; `whole` shows every patch."""
        model = self._model
        dtype = model.patch_embedding.weight.dtype
        if self._plain:
            logits_BK: Tensor = model(images.to(dtype))
            return logits_BK
        x_BNW = model.embed(images.to(dtype))
        if self._patch_dropout is not None and not whole:
            x_BNW = drop_patches(x_BNW, self._patch_dropout.share)
        scales = [None] * len(self._blocks) if self._keep is None else branch_scales(self._keep, len(images))
        # Past its limit the compiler would quietly run a block op by op.
        with compiler_config.patch(fail_on_recompile_limit_hit=True):
            for block, scale in zip(self._blocks, scales, strict=True):
                x_BNW = block(x_BNW, scale)
        logits_BK = model.head(model.norm(x_BNW[:, 0]))
        return logits_BK  # noqa: RET504  (head is any module to the type checker)


def keep_probabilities(depth: int, drop_path: float) -> Tensor:
    """How likely each block's branches are kept: from 1 down to 1 - drop_path, linearly; fp32 [depth].

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


@contextmanager
def attention_kernel(model: torch.nn.Module, kernel: AttentionName | None, dtype: torch.dtype) -> Iterator[None]:
    """Let a ViT's blocks attend with another kernel for a while; None changes nothing.

    Raises:
        Unavailable: the kernel does not run here in `dtype`.
    """
    if kernel is None or not isinstance(model, VisionTransformer):
        yield
        return
    require(kernel, device=model.class_token.device, dtype=dtype, head_width=model.architecture.head_width)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before = [layer.kernel for layer in layers]
    for layer in layers:
        layer.kernel = kernel
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.kernel = own
