"""lowbit-vit: what low-bit weights and fused attention really cost and give in Vision Transformers."""

__version__ = "0.1.0"
