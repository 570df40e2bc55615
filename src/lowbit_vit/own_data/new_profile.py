"""A profile for your own images and weights: written with comments, checked, and entered in the pipeline. No torch.

The folder is listed and the weights' card is read before anything is written, so a profile that is there is one that runs.
It gets one line in `stages.yaml`, from which DVC makes its stages.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from pydantic import ValidationError

from lowbit_vit.data.folder import GIVEN, list_images
from lowbit_vit.data.source import Source
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.own_data.backbone_source import Given, read_backbone, shown_path
from lowbit_vit.schema.config import (
    DRAWN_KEYS,
    Device,
    FolderData,
    FolderLayout,
    SmallVit,
    TorchvisionVit,
    Views,
    one_line,
    parse_profile,
    read_yaml,
)
from lowbit_vit.schema.record import write_atomic

log = logging.getLogger(__name__)

STAGES = "stages.yaml"
TEMPLATE = Path(__file__).with_name("profile.yaml.template")

# Ours: enough test images to tell arms apart, and a split that can be drawn again.
DRAWN = {
    "split_seed": "0         # of the draw; the split is written to data/prepared/$name/split.csv",
    "val_share": "0.1",
    "test_share": "0.3",
}

TRAINING: dict[Device, str] = {
    "cuda": "    epochs: 10\n    batch_size: 32\n    learning_rate: 5.0e-4\n    warmup_epochs: 1\n    autocast: bf16",
    "cpu": "    epochs: 5\n    batch_size: 32\n    learning_rate: 1.0e-3\n    warmup_epochs: 0.5\n    autocast: none",
}
RUNNING: dict[Device, str] = {
    "cuda": """\
adapted_seeds: [0]

evaluation: {batch_size: 128}

measurement:
  batch_sizes: [1, 32]   # images a call
  warmup: 20
  samples: 200           # P99 is null below 1,000
  seconds: 60            # of sampling, at most
  trace: true

limits: {seconds: 3600, memory_gib: 64}   # of one trial""",
    "cpu": """\
adapted_seeds: [0]

evaluation: {batch_size: 32}

measurement:
  batch_sizes: [1, 32]   # images a call
  warmup: 5
  samples: 200           # P99 is null below 1,000
  seconds: 10            # of sampling, at most
  trace: true

limits: {seconds: 3600, memory_gib: 8}   # of one trial""",
}
_NF4, _INT8 = "{format: nf4, double_quantization: false}", "{format: int8, threshold: 6.0}"
_HIGH, _INT8_0 = "{format: high}", "{format: int8, threshold: 0.0}"


def _arm(label: str, weights: str, dtype: str, attention: str, *more: str) -> str:
    values = [f'label: "{label}"', f"weights: {weights}", f"compute_dtype: {dtype}", f"attention: {attention}", *more]
    return "    - {" + ", ".join(values) + "}"


_QLORA, _PTQ = "adaptation: qlora", "adaptation: ptq"
ARMS: dict[Device, tuple[str, ...]] = {
    "cuda": (
        _arm("Baseline ViT", _HIGH, "fp32", "efficient", _QLORA),
        _arm("4-bit + SDPA", _NF4, "fp16", "flash", _QLORA),
        _arm("8-bit + SDPA", _INT8, "fp16", "flash", _QLORA),
        _arm("4-bit + FlashAttn2", _NF4, "fp16", "fa2", _QLORA),
        _arm("8-bit + FlashAttn2", _INT8, "fp16", "fa2", _QLORA),
        "    # Beside them: 16 bits by themselves, quantization after training, and no launch overhead.",
        _arm("fp16", _HIGH, "fp16", "flash", _PTQ),
        _arm("bf16", _HIGH, "bf16", "flash", _PTQ),
        _arm("NF4 after training", _NF4, "fp16", "flash", _PTQ),
        _arm("int8 after training, threshold 0", _INT8_0, "fp16", "flash", _PTQ),
        _arm("fp16, CUDA graph", _HIGH, "fp16", "flash", _PTQ, "execution: cuda_graph"),
        _arm("NF4, CUDA graph", _NF4, "fp16", "flash", _PTQ, "execution: cuda_graph"),
    ),
    "cpu": (
        _arm("Baseline ViT", _HIGH, "fp32", "flash", _QLORA),
        _arm("4-bit + SDPA", _NF4, "fp32", "flash", _QLORA),
        _arm("8-bit + SDPA", _INT8, "fp32", "flash", _QLORA),
        "    # Beside them: quantization after training. (FlashAttention-2 needs CUDA.)",
        _arm("fp32 after training", _HIGH, "fp32", "flash", _PTQ),
        _arm("NF4 after training", _NF4, "fp32", "flash", _PTQ),
        _arm("int8 after training, threshold 0", _INT8_0, "fp32", "flash", _PTQ),
    ),
}


@dataclass(frozen=True)
class NewProfile:
    """What was written: the profile's file, its line in stages.yaml, the images found, and the backbone in words."""

    path: Path
    line: str
    source: Source
    backbone: str


def write_profile(
    name: str,
    *,
    data: Path,
    backbone: str,
    root: Path,
    device: Device,
    image_size: int | None = None,
    architecture: TorchvisionVit | None = None,
    sha256: str | None = None,
) -> NewProfile:
    """Write `profiles/<name>.yaml` for a folder of images and a backbone, and add its line to `stages.yaml`.

    Args:
        name: of the profile.
        data: the images' folder, in one of the layouts of `data.folder`.
        backbone: a torchvision ViT by name, a .pth file of one, or a .safetensors file of ours with its card.
        root: the project.
        device: what it is to run on.
        image_size: side that the model sees, px; None: what the weights were trained with.
        architecture: of a .pth file whose name does not begin with it.
        sha256: of a .pth file whose name does not end with its first 8 digits, as torchvision's do.

    Raises:
        ConfigError: the name is taken or not allowed, the backbone is not known, or the sizes do not fit.
        DataError: the folder is not one of labelled images, or the weights or their card are missing or damaged.
    """
    path = root / "profiles" / f"{name}.yaml"
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ConfigError(f"new-profile: name {name!r} must be lower-case letters, digits and hyphens, a letter first")
    if path.exists():
        raise ConfigError(f"{path}: there already; choose another name, or delete it and its line in {STAGES}")
    stages = _read_stages(root / STAGES, name)
    given = read_backbone(backbone, root=root, architecture=architecture, sha256=sha256)
    views = _scale_views(given, image_size)
    config = FolderData.model_validate({"source": "image_folder", "views": views, "root": shown_path(data, root), **_layout_keys(data)})
    source = list_images(config, root)
    text = _render(name, config, source, given, device)
    parse_profile(path, text)
    line = f"  {name}: {{images: {_quoted(config.root)}, weights: {_quoted(given.checkpoint)}}}\n"
    write_atomic(path, text.encode())
    try:
        write_atomic(root / STAGES, (stages + line).encode())
    except DataError:
        path.unlink()
        raise
    return NewProfile(path, line.strip(), source, given.words)


def find_layout(folder: Path) -> FolderLayout:
    """Which layout a folder has, by the names of its subfolders: the most splits that are there; none: one folder of classes.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --data takes a folder of images, sorted into folders by class")
    names = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    for layout, splits in GIVEN.items():
        if splits and names.issuperset(splits):
            others = sorted(name for name in names - set(splits) if not name.startswith("."))
            if others:
                log.warning("%s: not used, for they are not of %s: %s", folder, "/".join(splits), ", ".join(others))
            return layout
    return "classes"


def _layout_keys(data: Path) -> dict[str, Any]:
    layout = find_layout(data)
    return {"layout": layout, **{key: float(DRAWN[key].split()[0]) for key in DRAWN_KEYS[layout]}}


def _read_stages(path: Path, name: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        profiles = read_yaml(path, text)["profiles"]
    except (OSError, ConfigError, KeyError) as error:
        raise ConfigError(f"{path}: not a file with a key profiles ({type(error).__name__}); run this in the project's folder") from error
    if name in profiles:
        raise ConfigError(f"{path}: has a line {name} already; choose another name, or delete the line")
    return text if text.endswith("\n") else f"{text}\n"


def _scale_views(given: Given, image_size: int | None) -> Views:
    """The weights' own views, or those scaled to another image size.

    Raises:
        ConfigError: the patches do not tile the image, or the size is out of range.
    """
    views, patch = given.views, given.patch_size
    if image_size is None or image_size == views.image_size:
        return views
    if image_size % patch:
        nearest = max(1, round(image_size / patch)) * patch
        raise ConfigError(f"new-profile: --image-size {image_size} is not a multiple of the patch size {patch}; nearest: {nearest}")
    scale = image_size / views.image_size
    log.warning("images of %d px: positions of weights made for %d px will be resized", image_size, views.image_size)
    sizes = {"image_size": image_size, "eval_resize": round(views.eval_resize * scale), "train_resize": round(views.train_resize * scale)}
    try:
        return Views.model_validate(views.model_dump() | sizes)
    except ValidationError as error:
        raise ConfigError(f"new-profile: --image-size {image_size}: {one_line(error)}") from None


# --------------------------------------------------------------------------------------------------------------- the text


def _render(name: str, config: FolderData, source: Source, given: Given, device: Device) -> str:
    counts = f"{len(source.class_names)} classes; " + ", ".join(f"{split} {len(items)}" for split, items in source.splits.items())
    keys = "".join(f"\n  {key}: {Template(DRAWN[key]).substitute(name=name)}" for key in DRAWN_KEYS[config.layout])
    spared = [k for k in (2, 4) if k < given.depth]
    if not spared:
        raise ConfigError(f"new-profile: a backbone of {given.depth} blocks is too shallow; sparing 2 blocks needs at least 3")
    views = config.views
    folder = Path(config.root).name
    values = {
        "name": name,
        "title": " ".join(f"{folder} with {given.words}.".split()),
        "description": _quoted(f"{_words(given.architecture)} on the images of the folder {folder}"),
        "device": device,
        "root": _quoted(config.root),
        "counts": counts,
        "split": f"  layout: {config.layout}{keys}",
        "image_size": views.image_size,
        "eval_resize": views.eval_resize,
        "train_resize": views.train_resize,
        "mean": list(views.mean),
        "std": list(views.std),
        "architecture": _flow(given.architecture),
        "weights": given.weights,
        "checkpoint": _quoted(given.checkpoint),
        "sha256": _quoted(given.sha256),
        "training": TRAINING[device],
        "running": RUNNING[device],
        "arms": "\n".join(ARMS[device]),
        "dtype": "fp16" if device == "cuda" else "fp32",
        "latency_factor": 1.25 if device == "cuda" else 2.0,  # a CPU that others use as well has no steady times
        "spared": spared,
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _words(architecture: TorchvisionVit | SmallVit) -> str:
    return "a small ViT" if isinstance(architecture, SmallVit) else architecture


def _flow(architecture: TorchvisionVit | SmallVit) -> str:
    if not isinstance(architecture, SmallVit):
        return architecture
    return "{" + ", ".join(f"{key}: {value}" for key, value in architecture.model_dump().items()) + "}"


def _quoted(text: str) -> str:
    """A YAML string: JSON's are."""
    return json.dumps(text, ensure_ascii=False)
