"""Programmatic dependent launch: kernels that start before the kernel before them has ended; compute capability 9.0 and up.

At one image a kernel of a block runs for a few microseconds, and starting it takes one or two more. A kernel launched this way starts
as soon as all programs of the one before have started. It must wait before it reads that one's results or writes anything; until then
it can compute addresses and bring weights into the L2 cache, which nothing else would do in that time.

Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from typing import Any

import torch
import triton
import triton.language as tl

from lowbit_vit.model.kernels.validation import INTERPRETED

MOST_ROWS = 512  # at 197 rows it saves time, at 6,304 it costs some (benchmarks/records/fast_path.json)


def uses_pdl(device: torch.device, rows: int) -> bool:
    """Whether kernels over so many rows are launched so: where the device can and it pays."""
    return not INTERPRETED and rows <= MOST_ROWS and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(*, pdl: bool) -> dict[str, Any]:
    """Arguments of such a launch; Triton's interpreter and other back ends do not know the word."""
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def launch_dependents():
    """Let the next kernel start, once all programs of this one have come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait():
    """Until the kernel before has ended and what it wrote can be read. Every program must come here."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch_rows(
    ptr,  # bytes
    starts,  # int64 [R], multiples of 16
    count,  # bytes from each start, a multiple of 16
):
    """Bring rows into the L2 cache. Only a hint: later writes to these bytes are seen."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r",
        [ptr + starts, count + tl.zeros(starts.shape, tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
