"""fp8: e4m3 codes of weights and activations, one scale a row."""

import torch

from lowbit_vit.model.fused import EightBit
from lowbit_vit.schema.plan import FP8

FORMAT = EightBit(FP8(format="fp8"), torch.float8_e4m3fn)
