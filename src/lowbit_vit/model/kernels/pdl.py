"""Programmatic dependent launch: kernels that are put on the GPU before the kernel before them has ended; compute capability 9.0 and up.

At one image a kernel of a block runs for a few microseconds, and starting it takes one or two more. A kernel launched this way may start
as soon as all programs of the one before have said so, or have ended. It must wait before it reads that one's results or writes anything;
until then it can compute addresses and bring weights into the L2 cache, which nothing else would do in that time.

At few rows each kernel says so at once. At many rows that costs time, for programs that wait take the place of programs that compute:
there none says so, and the next kernel is only ready when the last program ends.

Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from typing import Any

import torch
import triton
import triton.language as tl

from lowbit_vit.model.kernels.validation import INTERPRETED

FROM = (9, 0)  # compute capability
MOST_ROWS = 512  # whose kernels let the next one start at once (benchmarks/records/fast_path.json)
MANY_ROWS = 1 << 40  # up to which kernels are launched so at all


def options(device: torch.device, rows: int) -> dict[str, Any]:
    """Arguments of a launch over so many rows: PDL, whether it must wait; EARLY, whether it lets the next one start; how it is launched.

    Triton's interpreter and other back ends do not know the last.
    """
    pdl = not INTERPRETED and rows <= max(MOST_ROWS, MANY_ROWS) and torch.cuda.get_device_capability(device) >= FROM
    return {"PDL": pdl, "EARLY": pdl and rows <= MOST_ROWS} | ({"launch_pdl": True} if pdl else {})


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
