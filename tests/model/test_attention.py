"""Each kernel computes attention, is the one that was named, and is an error where it cannot run. CUDA: tests/gpu."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit_vit.errors import Unavailable
from lowbit_vit.model import attention
from lowbit_vit.model.attention import attend, require
from lowbit_vit.schema.config import AttentionName

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (B, N, H, D): ViT-L/16, ViT-H/14, the demo's, and a lone token.
SHAPES = [(2, 197, 2, 64), (1, 257, 2, 80), (3, 17, 4, 16), (2, 1, 2, 64)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v; q three times larger, so that the softmax is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    return (3 * q).to(dtype), k.to(dtype), v.to(dtype)


def plain(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
    """Attention as the paper writes it, every step in the dtype of the inputs: reference in float64, control below it."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BNHD) / math.sqrt(q_BNHD.shape[-1])
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(dim=-1), v_BNHD)


def largest_error(out: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    q, k, v = (tensor.double() for tensor in qkv)
    return float((out.double() - plain(q, k, v)).abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_fp32_kernels_agree_with_float64(kernel: AttentionName, shape: tuple[int, ...]) -> None:
    qkv = inputs(shape, torch.float32)
    out = attend(*qkv, kernel)
    assert out.shape == shape
    assert out.dtype == torch.float32
    assert largest_error(out, qkv) <= 5e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_16_bit_kernels_err_at_most_twice_as_much_as_plain_arithmetic(
    kernel: AttentionName, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    qkv = inputs(shape, dtype)
    out = attend(*qkv, kernel)
    assert out.dtype == dtype
    assert largest_error(out, qkv) <= 2 * largest_error(plain(*qkv), qkv) + torch.finfo(dtype).tiny


def test_heads_and_images_do_not_mix() -> None:
    q, k, v = inputs((3, 17, 4, 16), torch.float32)
    whole = attend(q, k, v, "flash")
    for image in range(3):
        for head in range(4):
            one = (slice(image, image + 1), slice(None), slice(head, head + 1))
            torch.testing.assert_close(whole[one], attend(q[one], k[one], v[one], "flash"), rtol=0, atol=1e-6)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the operators that PyTorch really runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_that_is_named_is_the_one_that_runs(dtype: torch.dtype) -> None:
    ran: dict[str, list[str]] = {}
    for kernel in ("math", "flash"):
        with Operators() as operators:
            attend(*inputs((2, 17, 4, 16), dtype), kernel)
        ran[kernel] = operators.names
    assert any("flash_attention_for_cpu" in name for name in ran["flash"])
    assert not any("flash" in name for name in ran["math"])
    assert any("softmax" in name for name in ran["math"])
    assert not any("softmax" in name for name in ran["flash"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_kernels_of_the_cpu_are_accepted_there(kernel: AttentionName, dtype: torch.dtype) -> None:
    require(kernel, device=CPU, dtype=dtype, head_width=16)


@pytest.mark.parametrize("kernel", ["efficient", "cudnn", "fa2"])
def test_kernels_of_cuda_are_errors_on_the_cpu_and_nothing_runs_in_their_place(kernel: AttentionName) -> None:
    reason = f"attention {kernel} needs CUDA; on the CPU there are: math, flash"
    with pytest.raises(Unavailable, match=reason):
        require(kernel, device=CPU, dtype=torch.float16)
    with Operators() as operators, pytest.raises(Unavailable, match=reason):
        attend(*inputs((1, 17, 2, 64), torch.float16), kernel)
    assert operators.names == ["aten.randn.generator"] * 3 + ["aten.mul.Tensor"] + ["aten._to_copy.default"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
@pytest.mark.parametrize("kernel", ["math", "efficient", "flash", "cudnn", "fa2"])
def test_asking_for_cuda_without_cuda_is_an_error(kernel: AttentionName) -> None:
    with pytest.raises(Unavailable, match=f"attention {kernel} was asked for on cuda, but this machine has no usable CUDA device"):
        require(kernel, device=torch.device("cuda"), dtype=torch.float16)


def test_a_refusal_by_pytorch_becomes_one_line() -> None:
    with pytest.raises(Unavailable, match=r"attention math does not run in complex64 with heads of 16 on cpu: .+") as refusal:
        require("math", device=CPU, dtype=torch.complex64, head_width=16)
    assert "\n" not in str(refusal.value)


def test_every_name_of_the_schema_has_an_implementation() -> None:
    names = set(AttentionName.__args__)  # type: ignore[attr-defined]
    assert set(attention._BACKENDS) | {"fa2", "coded"} == names  # a package's, and one that 8-bit blocks call themselves


def test_coded_attention_runs_in_8_bit_blocks_alone() -> None:
    q = torch.zeros(1, 2, 1, 64)
    with pytest.raises(Unavailable, match="attention coded runs inside blocks in 8 bits alone"):
        attention.attend(q, q, q, "coded")


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_gradients_flow_and_agree_with_float64(kernel: AttentionName) -> None:
    qkv = inputs((2, 17, 4, 16), torch.float32)
    ours = [tensor.requires_grad_() for tensor in qkv]
    exact = [tensor.detach().double().requires_grad_() for tensor in qkv]
    gradients = torch.autograd.grad(attend(ours[0], ours[1], ours[2], kernel).square().sum(), ours)
    expected = torch.autograd.grad(plain(exact[0], exact[1], exact[2]).square().sum(), exact)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_the_kernel_is_captured_whole_by_the_compiler(kernel: AttentionName) -> None:
    captured = torch.compile(attend, fullgraph=True, backend="eager")
    qkv = inputs((2, 17, 4, 16), torch.float32)
    assert torch.equal(captured(*qkv, kernel), attend(*qkv, kernel))
