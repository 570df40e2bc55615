"""A model whose every weight is drawn, norms and biases too: no part of it is zero or one, so no part can be left out unseen."""

import torch
from torch import nn

from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import AttentionName, QkvLayout


def drawn_model(arch: Architecture, *, attention: AttentionName, qkv: QkvLayout, std: float) -> VisionTransformer:
    """In fp32 on the CPU, in evaluation mode, for ten classes; the same at each call."""
    torch.manual_seed(0)
    model = VisionTransformer(arch, num_classes=10, attention=attention, qkv=qkv)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()
