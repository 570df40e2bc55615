"""lowbit-vit: what low-bit weights and fused attention really cost and give in Vision Transformers."""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(folder: str | Path, device: str = "cpu") -> Any:
    """Load an exported model, a `lowbit_vit.trial.predictor.Predictor`, which names the errors.

    By name, because most of this package is used where there is no torch.
    """
    return importlib.import_module("lowbit_vit.trial.predictor").load(folder, device)
