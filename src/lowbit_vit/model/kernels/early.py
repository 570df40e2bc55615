"""Kernels that start before the kernel before them has ended: programmatic dependent launch, compute capability 9.0 and up.

At one image a kernel of a block runs for a few microseconds, and starting it takes one or two more. A kernel launched this way is put
on the card as soon as all programs of the one before have started. It must wait before it reads that one's results or writes anything;
until then it can work out addresses and bring weights into the second-level cache, which nothing else would do in that time.
Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from typing import Any

import triton
import triton.language as tl


def early_options(*, early: bool) -> dict[str, Any]:
    """What such a launch is told; Triton's interpreter and other back ends do not know the word."""
    return {"launch_pdl": True} if early else {}


@triton.jit
def release_the_next():
    """Let the next kernel start, once all programs of this one have come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_the_last():
    """Until the kernel before has ended and what it wrote can be read. Every program must come here."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch_rows(ptr, starts, count):
    """Bring `count` bytes from each start, both multiples of 16, into the second-level cache. Only a hint: whoever writes there is seen."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r",
        [ptr + starts, count + tl.zeros(starts.shape, tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
