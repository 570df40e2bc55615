"""Attention to codes in Triton's interpreter, against softmax in float64."""

from types import SimpleNamespace

import pytest
import torch

from lowbit_vit.errors import Unavailable


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("tokens", [17, 197, 208, 209, 257, 272])
def test_codes_are_those_of_attention(kernels: SimpleNamespace, tokens: int, outliers: bool) -> None:
    images, heads = (2, 2) if tokens < 100 else (1, 1)
    qkv = torch.randn(images, tokens, 3 * heads * 64, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    if outliers:
        qkv[:, :, 3::64] *= 30
    q, k, v = qkv.double().view(images, tokens, 3, heads, 64).permute(2, 0, 3, 1, 4)
    bounds = qkv[:, :, 2 * heads * 64 :].float().abs().amax(dim=2) / 448
    found = kernels.attention.attend_to_codes(qkv, bounds.flatten(), heads=heads)
    scale = bounds.amax(dim=1, keepdim=True)
    assert torch.equal(found.scales.view(images, tokens), scale.expand(images, tokens))
    expected = ((q @ k.transpose(-1, -2) / 8).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    values = found.codes.double().view(images, tokens, -1) * scale.double()[..., None]
    # Half a step of a code or of the least one; weights in bf16, which are 2^-9 off, of values up to the scale's largest code.
    assert ((values - expected).abs() <= expected.abs() * 2**-4 + scale[..., None] * (2**-10 + 448 * 2**-9)).all()
    assert (values - expected).norm() < 0.04 * expected.norm()


def test_a_bound_that_is_nan_is_seen_in_its_image_alone(kernels: SimpleNamespace) -> None:
    bounds = torch.full((2, 5), 0.01)
    bounds[1, 3] = float("nan")
    found = kernels.attention.attend_to_codes(torch.randn(2, 5, 192).half(), bounds.flatten(), heads=1)
    assert found.scales.view(2, 5).isnan().all(dim=1).tolist() == [False, True]


def test_what_does_not_fit_is_refused(kernels: SimpleNamespace) -> None:
    with pytest.raises(Unavailable, match="attention coded holds 272 tokens, an image has 273; use cudnn"):
        kernels.attention.attend_to_codes(torch.zeros(1, 273, 192).half(), torch.zeros(273), heads=1)
    with pytest.raises(ValueError, match=r"qkv: shape \[1, 5, 192\] given, needed \[B, N, 384\]: 2 heads of 64"):
        kernels.attention.attend_to_codes(torch.zeros(1, 5, 192).half(), torch.zeros(5), heads=2)
    with pytest.raises(ValueError, match=r"bounds: shape \[4\] given, needed \[5\]"):
        kernels.attention.attend_to_codes(torch.zeros(1, 5, 192).half(), torch.zeros(4), heads=1)
