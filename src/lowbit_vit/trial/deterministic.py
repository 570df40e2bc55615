"""Training that gives the same weights every time, on the same model of GPU with the same libraries.

Weights of a ViT-L take 1.2 GB; its recipe takes a few lines. A recipe that leads to the same weights wherever it runs lets records
of several runs share one backbone hash, and one table.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from lowbit_vit.schema.config import Device

# A module whose attribute is a property, which the type checker can't see.
settings: Any = torch.utils.deterministic


@contextmanager
def deterministic(device: Device) -> Iterator[None]:
    """On a GPU, let nothing run inside that adds in no fixed order; an operation that has no other way raises RuntimeError.

    Flash attention's gradient, convolutions and the compiler's choice of reductions heed it. On the CPU nothing needs it.
    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    if device != "cuda":
        yield
        return
    # cuBLAS must share no workspace between streams, and PyTorch checks this variable. The value is its default on Hopper.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    # Filling every new tensor against reads of uninitialized memory costs one kernel each.
    settings.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
        settings.fill_uninitialized_memory = filled
