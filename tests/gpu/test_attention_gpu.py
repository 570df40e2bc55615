"""Every attention kernel on CUDA: it errs no more than twice as much as the math kernel, is the one named, and is capturable."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.attention import attend, require
from lowbit_vit.schema.config import AttentionName

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CUDA = torch.device("cuda")
KERNELS: tuple[AttentionName, ...] = ("math", "efficient", "flash", "cudnn", "fa2")
SIXTEEN_BIT = [torch.float16, torch.bfloat16]
# (B, N, H, D): ViT-L/16 at both measured batch sizes, ViT-L/32, ViT-H/14, the demo's.
SHAPES = [(1, 197, 16, 64), (32, 197, 16, 64), (2, 50, 16, 64), (2, 257, 16, 80), (4, 17, 4, 16)]
# A name that only this kernel's launches have.
LAUNCHED = {
    "efficient": "fmha_cutlassF",
    "flash": "pytorch_flash::flash_fwd",
    "cudnn": "cudnn_generated_fort_native_sdpa",
    "fa2": "flash::flash_fwd",
    "math": "softmax_warp_forward",
}


def usable(kernel: AttentionName, dtype: torch.dtype, head_width: int) -> None:
    """Skip, saying so, what this machine lacks. That the reason is given as an error is a test of its own."""
    if kernel == "fa2" and head_width != 64:
        pytest.skip("flash-attn may be built for heads of 64 alone")
    try:
        require(kernel, device=CUDA, dtype=dtype, head_width=head_width)
    except Unavailable as reason:
        pytest.skip(str(reason))


def inputs(shape: tuple[int, ...], dtype: torch.dtype, *, fused: bool = False, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v on the GPU; q three times larger, so that the softmax is far from uniform; fused: views of one tensor."""
    images, tokens, heads, width = shape
    generator = torch.Generator(CUDA).manual_seed(seed)
    qkv = torch.randn(images, tokens, 3, heads, width, generator=generator, device=CUDA)
    qkv[:, :, 0] *= 3
    q, k, v = qkv.to(dtype).unbind(2)
    return (q, k, v) if fused else (q.contiguous(), k.contiguous(), v.contiguous())


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as the paper writes it, every step in the dtype of the inputs."""
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)


def exact(qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return plain(qkv[0].double(), qkv[1].double(), qkv[2].double())


def launches(call: Callable[[], Tensor]) -> str:
    """Names of the kernels that a call launches. The first trace of a process can come back empty: so one goes before."""
    for _ in range(2):
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as trace:
            call()
            torch.cuda.synchronize()
    return " ".join(event.name for event in trace.events() if str(event.device_type).endswith("CUDA"))


def largest_error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).abs().max())


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_16_bit_kernels_err_at_most_twice_as_much_as_the_math_kernel(
    kernel: AttentionName, dtype: torch.dtype, shape: tuple[int, ...], *, fused: bool
) -> None:
    usable(kernel, dtype, shape[-1])
    qkv = inputs(shape, dtype, fused=fused)
    expected = exact(qkv)
    out = attend(*qkv, kernel)
    assert out.shape == shape
    assert out.dtype == dtype
    assert largest_error(out, expected) <= 2 * largest_error(attend(*qkv, "math"), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", ["math", "efficient"])
def test_fp32_kernels_agree_with_float64(kernel: AttentionName, shape: tuple[int, ...]) -> None:
    usable(kernel, torch.float32, shape[-1])
    assert not torch.backends.cuda.matmul.allow_tf32
    qkv = inputs(shape, torch.float32)
    expected = exact(qkv)
    assert largest_error(attend(*qkv, kernel), expected) <= max(2e-5, 2 * largest_error(attend(*qkv, "math"), expected))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_that_is_named_is_the_one_that_runs(kernel: AttentionName, dtype: torch.dtype) -> None:
    usable(kernel, dtype, 64)
    qkv = inputs(SHAPES[0], dtype)
    launched = launches(lambda: attend(*qkv, kernel))
    for other, name in LAUNCHED.items():
        # "flash::flash_fwd" is the end of PyTorch's own name too.
        seen = launched.replace("pytorch_flash::", "") if other == "fa2" else launched
        assert (name in seen) == (kernel == other), launched


# PyTorch warns of each reason before it raises.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kernel", ["flash", "cudnn", "fa2"])
def test_16_bit_kernels_are_errors_in_fp32(kernel: AttentionName) -> None:
    with pytest.raises(
        Unavailable, match=rf"attention {kernel} has no float32 kernel on CUDA; allowed: float16, bfloat16|flash-attn package"
    ):
        require(kernel, device=CUDA, dtype=torch.float32)
    q = inputs(SHAPES[2], torch.float32)[0]
    with pytest.raises((RuntimeError, Unavailable)):
        attend(q, q, q, kernel)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_head_that_a_kernel_cannot_take_is_an_error_with_the_reason() -> None:
    with pytest.raises(Unavailable, match=r"attention flash does not run in float16 with heads of 320 on .+: No available kernel"):
        require("flash", device=CUDA, dtype=torch.float16, head_width=320)


def test_a_missing_flash_attn_is_an_error_that_says_so() -> None:
    # In a process of its own, where the import fails as it does without the package.
    program = (
        "import sys; sys.modules['flash_attn'] = None\n"
        "import torch\n"
        "from lowbit_vit.errors import Unavailable\n"
        "from lowbit_vit.model.attention import attend, require\n"
        "q = torch.zeros(1, 16, 1, 64, device='cuda', dtype=torch.float16)\n"
        "for call in (lambda: require('fa2', device=q.device, dtype=q.dtype), lambda: attend(q, q, q, 'fa2')):\n"
        "    try:\n"
        "        call()\n"
        "    except Unavailable as reason:\n"
        "        print(reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("attention fa2 needs the flash-attn package, which cannot be imported: ") for line in lines)


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cuda_graph_of_the_kernel_replays_on_new_inputs(kernel: AttentionName, *, fused: bool) -> None:
    usable(kernel, torch.float16, 64)
    held = inputs(SHAPES[0], torch.float16, fused=fused)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            attend(*held, kernel)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(*held, kernel)
    new = inputs(SHAPES[0], torch.float16, fused=fused, seed=1)
    for buffer, values in zip(held, new, strict=True):
        buffer.copy_(values)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, attend(*new, kernel))


# torch 2.11's compiler uses deprecated parts of torch, and recommends TF32 for the fp32 products inside the math kernel.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_compiler_takes_the_kernel_whole_and_keeps_it(kernel: AttentionName) -> None:
    usable(kernel, torch.float16, 64)
    torch.compiler.reset()
    qkv = inputs(SHAPES[0], torch.float16)
    captured = torch.compile(attend, fullgraph=True)
    expected = exact(qkv)
    assert largest_error(captured(*qkv, kernel), expected) <= 2 * largest_error(attend(*qkv, "math"), expected)
    if kernel != "math":  # whose parts the compiler may fuse
        assert LAUNCHED[kernel] in launches(lambda: captured(*qkv, kernel))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_err_at_most_twice_as_much_as_those_of_plain_arithmetic(kernel: AttentionName, dtype: torch.dtype) -> None:
    # Not the math kernel's: inside it computes in fp32, so its gradients carry little but the rounding of the result.
    usable(kernel, dtype, 64)

    def gradients(function: Callable[[Tensor, Tensor, Tensor], Tensor], precision: torch.dtype) -> tuple[Tensor, ...]:
        q, k, v = (tensor.to(precision).requires_grad_() for tensor in inputs(SHAPES[2], dtype))
        return torch.autograd.grad(function(q, k, v).double().square().sum(), (q, k, v))

    ours = gradients(lambda q, k, v: attend(q, k, v, kernel), dtype)
    for one, control, expected in zip(ours, gradients(plain, dtype), gradients(plain, torch.float64), strict=True):
        assert largest_error(one, expected) <= 2 * largest_error(control, expected)
