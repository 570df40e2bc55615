"""w8a8: int8 codes of weights and activations, one scale a row."""

import torch

from lowbit_vit.model.fused import EightBit
from lowbit_vit.schema.plan import W8A8

FORMAT = EightBit(W8A8(format="w8a8"), torch.int8)
