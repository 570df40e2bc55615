"""The sentences of a model card: the terms of use of the weights, and how they were made."""

from collections.abc import Mapping
from typing import Any

from lowbit_vit.data.arrays import Dataset
from lowbit_vit.data.remote_files import FLOWERS_LICENCE, TEACHER_LICENCE, WEIGHTS, Licence
from lowbit_vit.schema.config import Adaptation, Profile, Training

DIGITS_LICENCE = Licence(
    "CC-BY-4.0",
    "attribution to Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998); the copy is scikit-learn's",
    "https://doi.org/10.24432/C50P49",
)
_IMAGES = {
    "digits": str(DIGITS_LICENCE),
    "flowers102": str(FLOWERS_LICENCE),
    "image_folder": "licence not stated: images of your own; add their terms before you pass the weights on",
}


def licences(profile: Profile, given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Terms of what the weights come from, by source: `images`, and `weights` or `teacher` where others' weights came in.

    Args:
        profile: names what the weights come from.
        given: the card of the file that a backbone of weights = ours starts from; its terms go on.
    """
    terms = {"images": _IMAGES[profile.data.source]}
    backbone = profile.backbone
    if backbone.weights == "torchvision":
        known = {file.name: file.licence for file in WEIGHTS.values()}
        name = str(backbone.checkpoint).rpartition("/")[2]
        terms["weights"] = str(known[name]) if name in known else f"licence not stated: {name} is a file of your own"
    elif backbone.weights == "ours":
        before = (given or {}).get("licence")
        terms["weights"] = "; ".join(f"{source}: {text}" for source, text in before.items()) if before else "licence not stated by its card"
    if backbone.teacher is not None:
        terms["teacher"] = str(TEACHER_LICENCE)
    return terms


def made_backbone(profile: Profile, dataset: Dataset, *, head_kept: bool) -> str:
    """One sentence on how the backbone was made."""
    backbone = profile.backbone
    if backbone.weights == "scratch" and backbone.training is not None:
        taught = "" if backbone.teacher is None else f", taught by {backbone.teacher.architecture} with ImageNet weights"
        return f"trained from random weights for {_training(backbone.training, dataset)}, seed {backbone.seed}{taught}"
    head = "its own head kept" if head_kept else f"a new, untrained head (seed {backbone.seed})"
    return f"converted from {str(backbone.checkpoint).rpartition('/')[2]}, {head}"


def made_adapter(lora: Adaptation, dataset: Dataset, *, seed: int, merged: bool) -> str:
    """One sentence on how adapters were made."""
    trained = f"LoRA of rank {lora.rank} on q and v, and the head, trained in high precision for {_training(lora.training, dataset)}"
    return f"{trained}, seed {seed}; {'merged into the backbone' if merged else 'adapters and head alone'}"


def _training(config: Training, dataset: Dataset) -> str:
    images = sum(len(dataset.train_views[split].labels) for split in config.splits)
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    return f"{epochs} on {'+'.join(config.splits)} ({images:,} images)"
