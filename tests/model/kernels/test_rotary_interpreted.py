"""Rotary positions in Triton's interpreter: q and k are turned as complex numbers are, v and the prefix stay."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


def angles(patches: int, width: int) -> Tensor:
    return torch.rand(patches, width // 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 6


def tables_of(turns: Tensor, *, interleaved: bool) -> Tensor:
    columns = turns.repeat_interleave(2, dim=1) if interleaved else turns.repeat(1, 2)
    return torch.cat([columns.sin(), columns.cos()], dim=1)


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])
@pytest.mark.parametrize(("width", "prefix"), [(64, 5), (12, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_q_and_k_turn_by_the_tables_angle(kernels: SimpleNamespace, interleaved: bool, width: int, prefix: int, dtype: torch.dtype) -> None:
    images, patches, heads = 2, 6, 3
    qkv = torch.randn(images, prefix + patches, 3 * heads * width, generator=torch.Generator().manual_seed(0)).to(dtype)
    turns, given = angles(patches, width), qkv.clone()
    kernels.rotary.rotate_in_place(qkv, tables_of(turns, interleaved=interleaved).float(), heads=heads, interleaved=interleaved)
    before, after = (x.view(images, prefix + patches, 3, heads, width) for x in (given, qkv))
    assert torch.equal(after[:, :prefix], before[:, :prefix])
    assert torch.equal(after[:, :, 2], before[:, :, 2])
    pairs = before[:, prefix:, :2].double()
    pairs = pairs.view(*pairs.shape[:-1], -1, 2) if interleaved else pairs.view(*pairs.shape[:-1], 2, -1).transpose(-1, -2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(turns), turns)[:, None, None]
    expected = torch.view_as_real(turned)
    expected = (expected if interleaved else expected.transpose(-1, -2)).flatten(-2)
    assert torch.allclose(after[:, prefix:, :2].double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 2**-11, atol=1e-5)


def test_tables_that_do_not_fit_are_refused(kernels: SimpleNamespace) -> None:
    qkv = torch.zeros(1, 4, 3 * 2 * 16).half()
    with pytest.raises(ValueError, match=r"shapes \[1, 4, 96\] and \[5, 32\] given"):
        kernels.rotary.rotate_in_place(qkv, torch.zeros(5, 32), heads=2, interleaved=True)
    with pytest.raises(ValueError, match=r"tables: shape \[4, 16\] given, needed \[4, 32\]"):
        kernels.rotary.rotate_in_place(qkv, torch.zeros(4, 16), heads=2, interleaved=True)
    with pytest.raises(ValueError, match="qkv: float32 given"):
        kernels.rotary.rotate_in_place(qkv.float(), torch.zeros(4, 32), heads=2, interleaved=True)
