"""lowbit-vit: what low-bit weights and fused attention really cost and give in Vision Transformers."""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def quantize_(model: Any, what: Any, **options: Any) -> Any:
    """Quantize torchvision's or timm's ViT in place: what is "fp8", "w8a8", "nf4", "int8", a plan or its path.

    Options and errors: `lowbit_vit.model.any_vit.quantize_`. By name, as all here, because most of this package is used where there is
    no torch.
    """
    return importlib.import_module("lowbit_vit.model.any_vit").quantize_(model, what, **options)


def describe(model: Any) -> Any:
    """What each layer of a quantized model became, a `lowbit_vit.model.any_vit.Description`; printed, a table."""
    return importlib.import_module("lowbit_vit.model.any_vit").describe(model)


def save(model: Any, folder: str | Path) -> Path:
    """Write a model that `quantize_` made; see `lowbit_vit.model.any_vit_files.save`, which names the errors."""
    path: Path = importlib.import_module("lowbit_vit.model.any_vit_files").save(model, folder)
    return path


def load(folder: str | Path, device: str = "cpu", **options: Any) -> Any:
    """Load what `save` wrote, a model of its library, or an export, a `lowbit_vit.trial.predictor.Predictor`; both name the errors."""
    saved = (Path(folder) / "quantized.safetensors").exists()
    module = importlib.import_module("lowbit_vit.model.any_vit_files" if saved else "lowbit_vit.trial.predictor")
    return module.load(folder, device, **options)
