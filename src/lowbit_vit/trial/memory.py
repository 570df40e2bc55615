"""The memory of one forward, apart from what ran before it in the process.

On a GPU the libraries' workspaces are given back first and allocated anew by the call, so that they count once and the same in
every trial: cuBLAS keeps 32 MiB for each stream on an H100. What a peak is made of is then: weights and one batch (before), those
workspaces, and activations with the kernels' scratch, such as NF4's dequantized weight: 8 MiB for an MLP linear of ViT-L/16.
On the CPU the peak is of the process's resident set, interpreter and libraries included (Linux; null elsewhere).
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lowbit_vit.schema.config import Device
from lowbit_vit.schema.record import Memory
from lowbit_vit.trial.evaluate import Forward
from lowbit_vit.trial.gpu_state import process_bytes

# Between the reset and the look at what came of it the process may shrink by some pages; the kernel counts in batches of pages.
_READ_BACK_SLACK = 8 * 2**20


def measure_memory(prepare: Callable[[Tensor], Forward], example: Tensor, device: Device) -> Memory:
    """Peaks of a call in steady use, weights included. Preparation counts too: a captured graph keeps the memory of its capture.

    Args:
        prepare: makes the callable for images of the example's shape.
        example: images [B, 3, S, S]; the only batch on the device.
        device: where the model is.
    """
    return _on_gpu(prepare, example) if device == "cuda" else _on_cpu(prepare, example)


def _on_gpu(prepare: Callable[[Tensor], Forward], example: Tensor) -> Memory:
    gc.collect()  # graphs of the passes before, if a cycle holds one
    _drop_workspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward = prepare(example)
    # Twice, so that in the second call every workspace is there from the start: what adds up in use adds up here. int8's products
    # need none of PyTorch's, so in the first call the head's would come when the activations are gone.
    forward(example)
    forward(example)
    torch.cuda.synchronize()
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    used = process_bytes()
    del forward  # with a graph's own workspace, which belongs to the graph
    kept = torch.cuda.memory_allocated()
    _drop_workspaces()
    return Memory(
        batch_size=len(example),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=reserved,
        process_bytes=used,
        peak_resident_bytes=None,
        before_bytes=before,
        workspace_bytes=kept - torch.cuda.memory_allocated(),
    )


def _drop_workspaces() -> None:
    """Give back what cuBLAS and cuBLASLt keep between calls; torch offers no public way. Not while a graph is in use."""
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001


def _on_cpu(prepare: Callable[[Tensor], Forward], example: Tensor) -> Memory:
    can_reset = _reset_peak_resident()
    prepare(example)(example)
    return Memory(
        batch_size=len(example),
        peak_allocated_bytes=None,
        peak_reserved_bytes=None,
        process_bytes=None,
        peak_resident_bytes=_status_bytes("VmHWM") if can_reset else None,
    )


def _reset_peak_resident() -> bool:
    """Set the kernel's peak of this process's resident set back to what it is now; false where that cannot be done.

    Some sandboxes take the request and do nothing: then the peak would be another call's, so what came of it is read back.

    Source: https://www.kernel.org/doc/html/latest/filesystems/proc.html (clear_refs, 5).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    peak, now = _status_bytes("VmHWM"), _status_bytes("VmRSS")
    return peak is not None and now is not None and peak - now <= _READ_BACK_SLACK


def _status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where the kernel does not give it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
