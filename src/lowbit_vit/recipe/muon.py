"""Muon for many matrices at once: the update of `torch.optim.Muon` (tested), with matrices of one shape in one batched product.

torch's own updates each matrix by itself, in some 25 kernels: 3,600 launches a step for the 144 matrices of a ViT-L, which took the
host of an H100 longer than the forward and the backward.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/;
the size of its steps: Liu et al., "Muon is scalable for LLM training", 2025, https://arxiv.org/abs/2502.16982, equation 4.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Of the quintic iteration, which brings singular values near one in few steps rather than to one.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPS = 1e-7
_MATRIX = 2


class BatchedMuon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay; steps as large as AdamW's usually are.

    Args:
        matrices: 2-D parameters; each gets a gradient in every step.
        lr: of AdamW for the same weights.
        weight_decay: as AdamW's.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        if any(matrix.ndim != _MATRIX for matrix in matrices):
            raise ValueError("Muon takes matrices alone")
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        for matrix in matrices:
            self.state[matrix]["momentum"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix; there is no closure."""
        del closure
        for group in self.param_groups:
            of_shape = defaultdict[torch.Size, list[Tensor]](list)
            for matrix in group["params"]:
                of_shape[matrix.shape].append(matrix)
            for shape, matrices in of_shape.items():
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                momenta = [self.state[matrix]["momentum"] for matrix in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
                ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # noqa: SLF001  (torch's own optimizers call them so)
                updates = orthogonal(torch.stack(list(ahead)).bfloat16()).float()
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                size = 0.2 * math.sqrt(max(shape))
                torch._foreach_add_(matrices, updates.unbind(0), alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz: U S V^T -> about U V^T for each matrix; bf16 [N, A, B] -> the same."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
