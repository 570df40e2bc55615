"""Muon over stacks of matrices is torch's own, matrix by matrix."""

import pytest
import torch
from torch import nn

from lowbit_vit.recipe.muon import BatchedMuon, orthogonal

SHAPES = [(32, 32), (32, 32), (64, 32), (32, 64), (64, 32), (48, 16)]


def some_matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_it_leads_to_the_weights_of_torchs_own() -> None:
    ours, theirs = some_matrices(), some_matrices()
    optimizers = (
        BatchedMuon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    generator = torch.Generator().manual_seed(1)
    before = [matrix.detach().clone() for matrix in ours]
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            optimizer.step()
    for one, other, start in zip(ours, theirs, before, strict=True):
        # Both round to bf16 inside; batched products add in another order.
        assert (one - other).norm() < 0.01 * (one - start).norm()


@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, *shape, generator=generator).bfloat16()).double())
    assert values.max() < 1.3
    assert values.quantile(0.1) > 0.5  # a random square matrix has some near zero, which five steps do not lift


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices alone"):
        BatchedMuon([nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)
