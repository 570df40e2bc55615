"""A matrix in 8 bits, and what its codes are; importing this does not import Triton."""

from typing import NamedTuple

import torch
from torch import Tensor

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.float8_e4m3fn)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the code that a row's largest magnitude takes
# Rows whose largest magnitude is below it become zeros: a smaller scale would be a denormal number, which a GPU flushes.
SMALLEST = 1e-30
VECTOR = 16  # bytes of one load: rows of codes start at a multiple of it


class Coded(NamedTuple):
    """A matrix in 8 bits: value [r, k] = codes [r, k] x scale [r].

    Attributes:
        codes: int8 or float8_e4m3fn, [R, K], contiguous.
        scales: fp32, [R], one for each row.
    """

    codes: Tensor
    scales: Tensor
