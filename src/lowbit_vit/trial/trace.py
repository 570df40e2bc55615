"""Where one forward's time goes, by kernel class, and proof that the attention label is true.

On a GPU the classes are of CUDA kernels, found by name; the time in which none of them runs is `idle` (launch overhead and
host syncs). On the CPU they are of PyTorch operators, by self time. The patterns are from traces of torch 2.11 to 2.15 on an
H100, from bitsandbytes 0.50's operators, and this project's kernels.
"""

import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # not in its __all__
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import AttentionName, Device
from lowbit_vit.schema.record import KERNEL_CLASSES, KernelTime

_RANGE = "lowbit_vit.forward"

# The first label whose pattern is in the name wins. "pytorch_flash::flash_fwd_kernel" also contains "flash::flash_fwd_kernel",
# which is what the flash-attn package calls its own, so PyTorch's comes first.
_FUSED_ATTENTION: tuple[tuple[AttentionName, str], ...] = (
    ("flash", r"pytorch_flash::|_scaled_dot_product_flash_attention_for_cpu"),
    ("fa2", r"flash::flash_fwd|flash_fwd_(splitkv_)?kernel"),
    ("efficient", r"fmha_cutlassF|AttentionKernel<"),
    ("cudnn", r"cudnn_generated_fort_native_sdpa|cudnn.*sdpa"),
    ("coded", r"attend_whole"),
)
# What only the unfused kernel runs. Its two products are gemms like all others on a GPU and counted there.
_MATH_ATTENTION = r"softmax|soft_max|_scaled_dot_product_attention_math"

# The first class whose pattern is in the name wins.
_PATTERNS = {
    kind: re.compile("|".join(patterns), re.IGNORECASE)
    for kind, patterns in {
        "attention": [*(pattern for _, pattern in _FUSED_ATTENTION), _MATH_ATTENTION],
        "gemm": [
            "gemm|gemv|nvjet|cutlass|cublas|xmma|splitk",
            r"_mm\b|addmm|aten::b?mm\b|aten::linear|matmul(_|\b)",
            "convolution|conv2d",
        ],
        "quantize": [r"quant|decode_(\w+_)?kernel|Int8Vector|mm_int32|MatMul8bit|MatMul4bit|bitsandbytes"],
        "copy": ["memcpy|memset|copy|CatArray|aten::cat|clone|contiguous"],
        "norm_elementwise": ["norm|elementwise|vectorized|reduce|triton|gelu|rotate", "aten::(add|mul|sub|div|where|all|mean|sum)"],
    }.items()
}
# What reads or makes low-bit values: bitsandbytes' own kernels and operators, cuBLAS's int8 products, this project's kernels.
_LOW_BIT = re.compile(
    r"quant|attend_whole|eight_bit_gemm|decode_(\w+_)?kernel|4bit|int8|mm_int32|imma|i8816|i16832|gemm_s8|i8i32", re.IGNORECASE
)
_NAME_LENGTH = 160  # templates' names run to a thousand characters
_SYNCS = re.compile(r"^cuda(Stream|Device|Event)Synchronize$|^cudaMemcpy$")


def trace(forward: Callable[[Tensor], Tensor], example: Tensor, *, attention: AttentionName, device: Device) -> KernelTime:
    """Profile one forward and confirm the attention label.

    Args:
        forward: images -> logits without gradients, already warm.
        example: images [B, 3, S, S] on the device.
        attention: the label to confirm.
        device: where the model is.

    Raises:
        LowbitVitError: another attention kernel ran than the label says.
    """
    # Kineto prints its progress, and an error where there is no GPU, straight to stderr; it reads this when first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    _profile(forward, example, device)  # the first one starts CUPTI and is slow
    events, traced_us = _profile(forward, example, device)
    if device == "cuda":
        return _cuda_times(events, attention=attention, batch_size=len(example))
    return _cpu_times(events, attention=attention, batch_size=len(example), wall_us=traced_us)


def confirm_attention(label: AttentionName, names: Iterable[str]) -> tuple[str, ...]:
    """Check that the attention kernels (CUDA) or operators (CPU) of a trace are those of the label, and return their names.

    Raises:
        LowbitVitError: a kernel of another label ran, or none of this one did.
    """
    found: dict[AttentionName, list[str]] = {}
    for name in dict.fromkeys(names):
        labels = [ran for ran, pattern in _FUSED_ATTENTION if re.search(pattern, name)]
        if labels or re.search(_MATH_ATTENTION, name, re.IGNORECASE):
            found.setdefault(labels[0] if labels else "math", []).append(name)
    # Elementwise softmax kernels may stand beside a fused one (none in this model, but a fused kernel says more).
    fused: set[AttentionName] = {ran for ran in found if ran != "math"}
    actual: set[AttentionName] = fused or set(found)
    if actual != {label}:
        seen = "; ".join(f"{ran}: {found[ran][0][:80]}" for ran in sorted(actual)) or "no attention kernel at all"
        raise LowbitVitError(f"the trial says attention {label}, but its trace shows {seen}")
    return tuple(name[:_NAME_LENGTH] for name in found[label])


def low_bit_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names that have to do with low-bit values, in order of appearance, cut to a readable length.

    They show which path bitsandbytes took: a fused product (gemm_4bit) or one that dequantizes first (kDequantizeBlockwise).
    """
    return tuple(dict.fromkeys(name[:_NAME_LENGTH] for name in names if _LOW_BIT.search(name)))


@functools.cache
def kernel_class(name: str) -> str:
    """The class of one kernel or operator, by its name."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), "other")


def _profile(forward: Callable[[Tensor], Tensor], example: Tensor, device: Device) -> tuple[list[FunctionEvent], float]:
    """All events of one forward, and its wall time in microseconds."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        started = time.perf_counter_ns()
        with record_function(_RANGE):
            forward(example)
        # Outside the range, so that it is not counted as a host sync of the model.
        if device == "cuda":
            torch.cuda.synchronize()
        wall_us = (time.perf_counter_ns() - started) / 1000
    return list(profiler.events()), wall_us


def _cuda_times(events: list[FunctionEvent], *, attention: AttentionName, batch_size: int) -> KernelTime:
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and event.name != _RANGE]
    by_class = dict.fromkeys(KERNEL_CLASSES, 0.0)
    for name, microseconds in own_times(kernels):
        by_class[kernel_class(name)] += microseconds
    forward = next(event for event in events if event.device_type == DeviceType.CPU and event.name == _RANGE)
    inside = [event for event in events if forward.time_range.start <= event.time_range.start <= forward.time_range.end]
    return KernelTime(
        batch_size=batch_size,
        wall_us=None,
        by_class_us=by_class,
        launches=len(kernels),
        host_syncs=sum(event.device_type == DeviceType.CPU and _SYNCS.search(event.name) is not None for event in inside),
        attention_kernels=confirm_attention(attention, (kernel.name for kernel in kernels)),
        low_bit_kernels=low_bit_names(kernel.name for kernel in kernels),
    )


def own_times(kernels: Iterable[FunctionEvent]) -> Iterator[tuple[str, float]]:
    """Name and microseconds of each kernel, in the order of their starts; they add up to the time in which at least one ran.

    Where kernels overlap, the time is that of the one that started first: a kernel that starts early waits for the one before it, and
    on another stream the later one takes what the first leaves.
    """
    reached = float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.time_range.start, kernel.time_range.end)):
        start, end = kernel.time_range.start, kernel.time_range.end
        yield kernel.name, max(0.0, end - max(start, reached))
        reached = max(reached, end)


def _cpu_times(events: list[FunctionEvent], *, attention: AttentionName, batch_size: int, wall_us: float) -> KernelTime:
    by_class = Counter(dict.fromkeys(KERNEL_CLASSES, 0.0))
    for event in events:
        by_class[_operator_class(event)] += event.self_cpu_time_total
    ran = confirm_attention(attention, (event.name for event in events))
    return KernelTime(
        batch_size=batch_size,
        wall_us=wall_us,
        by_class_us=dict(by_class),
        launches=None,
        host_syncs=None,
        # Of math attention the operator that names the implementation, not the softmax inside it.
        attention_kernels=tuple(name for name in ran if "_scaled_dot_product" in name) or ran,
        low_bit_kernels=low_bit_names(event.name for event in events),
    )


def _operator_class(event: FunctionEvent) -> str:
    """The class of an operator's own time: that of the attention or (unless it is a gemm) quantization it is part of."""
    own, around = kernel_class(event.name), set()
    parent = event.cpu_parent
    while parent is not None:
        around.add(kernel_class(parent.name))
        parent = parent.cpu_parent
    if "attention" in around:
        return "attention"
    return "quantize" if "quantize" in around and own != "gemm" else own
