"""Variants of a profile's from-scratch recipe, each for the same time, trained on train and compared on val.

    lowbit-vit data scratch
    python benchmarks/train_recipe.py --seconds 90 scratch "" small_images=null "teacher.guidance=null;drop_path=0.2"

A variant is a list of KEY=VALUE, separated by semicolons: keys of backbone.training, and keys of backbone.teacher after `teacher.`;
values in YAML. `teacher=null` leaves the teacher out; "" is the recipe as it stands. Epochs follow from the rate that a short run
measures, so a cheaper step gets more of them; warm-up, whole epochs and epochs of small images keep their share. One line a
variant: images/s, epochs, memory, last loss, Top-1 on val.

Short runs rank what speeds learning up; what only pays in a long one (stronger regularization) looks worse here than it is.
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowbit_vit.data.arrays import Dataset, load_dataset
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import VisionTransformer, architecture
from lowbit_vit.recipe.backbone import fresh_model, teacher_forward, view_logits
from lowbit_vit.recipe.teacher import Distillation, EfficientNetTeacher, distillation, load_teacher
from lowbit_vit.recipe.train import train_by_recipe
from lowbit_vit.schema.config import Profile, Teacher, Training, load_profile, read_yaml
from lowbit_vit.schema.record import TrainingResult
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.train import AUTOCAST, seed_everything


def main() -> None:
    """Train the teacher once, then every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("variants", nargs="*", default=[""])
    parser.add_argument("--seconds", type=float, default=90.0, help="of training, for each variant")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    root = Path.cwd()
    profile = load_profile(root / "profiles" / f"{arguments.profile}.yaml")
    dataset = load_dataset(Workspace(root=root, profile=profile.name).data, profile.data.views)
    network = _teacher(profile, dataset)
    for variant in arguments.variants:
        changes = dict(change.split("=", 1) for change in variant.split(";") if change)
        teacher = _changed_teacher(profile, network, changes)
        config = _changed(profile, {key: value for key, value in changes.items() if key.partition(".")[0] != "teacher"})
        # Code of other variants counts towards the compiler's limit. What is compiled again comes from its cache on disk.
        torch.compiler.reset()
        # The first run compiles; the second, on one epoch more, gives the rate without that.
        _run(profile, dataset, _of_length(config, 2), teacher)
        images = len(dataset.train_views["train"].labels)
        rate = _rate(_run(profile, dataset, _of_length(config, 4), teacher)[1], images)
        epochs = max(4, round(arguments.seconds * rate / images))
        model, result = _run(profile, dataset, _of_length(config, epochs), teacher)
        top1 = _top1(model, profile, dataset)
        memory = (result.peak_allocated_bytes or 0) / 2**30
        print(
            f"{variant or 'as it stands'}: {_rate(result, images):.0f} images/s, {epochs} epochs in {result.seconds:.0f} s, "
            f"{memory:.1f} GiB, loss {result.loss[-1]:.3f}, val Top-1 {100 * top1:.2f} %",
            flush=True,
        )


def _changed(profile: Profile, changes: dict[str, str]) -> Training:
    """The recipe on train alone, with dotted keys such as augmentation.colour changed."""
    assert profile.backbone.training is not None
    return Training.model_validate(_with(profile.backbone.training.model_dump(mode="json"), {"splits": "[train]", **changes}))


def _with(content: dict[str, Any], changes: dict[str, str]) -> dict[str, Any]:
    for key, value in changes.items():
        *path, last = key.split(".")
        place = content
        for part in path:
            place = place[part]
        place[last] = read_yaml(Path(key), f"value: {value}")["value"]
    return content


def _of_length(config: Training, epochs: int) -> Training:
    share = epochs / config.epochs
    dropout = config.patch_dropout
    if dropout is not None:
        dropout = dropout.model_copy(update={"whole_epochs": min(epochs - 1, max(1, round(dropout.whole_epochs * share)))})
    small = config.small_images
    if small is not None:
        small = small.model_copy(update={"epochs": min(epochs - 1, max(1, round(small.epochs * share)))})
    changes = {"epochs": epochs, "warmup_epochs": config.warmup_epochs * share, "patch_dropout": dropout, "small_images": small}
    return config.model_copy(update=changes)


def _teacher(profile: Profile, dataset: Dataset) -> EfficientNetTeacher | None:
    config = profile.backbone.teacher
    if config is None:
        return None
    seed_everything(0)
    network = load_teacher(profile.data.views, num_classes=dataset.num_classes, device=profile.device)
    training = config.training.model_copy(update={"splits": ("train",)})
    sets = [dataset.train_views["train"]]
    result = train_by_recipe(network, sets, training, views=profile.data.views, seed=0, device=profile.device, title="teacher")
    top1 = _top1(network, profile, dataset)
    print(f"teacher: {_rate(result, len(sets[0].labels)):.0f} images/s, {result.seconds:.0f} s, val Top-1 {100 * top1:.2f} %", flush=True)
    return network


def _changed_teacher(profile: Profile, network: EfficientNetTeacher | None, changes: dict[str, str]) -> Distillation | None:
    if network is None or changes.get("teacher") == "null":
        return None
    assert profile.backbone.teacher is not None
    assert profile.backbone.training is not None
    own = {key.removeprefix("teacher."): value for key, value in changes.items() if key.startswith("teacher.")}
    config = Teacher.model_validate(_with(profile.backbone.teacher.model_dump(mode="json"), own))
    width = architecture(profile.backbone.architecture, profile.data.views.image_size).width
    autocast = AUTOCAST[profile.backbone.training.autocast]
    return distillation(network, config, width=width, device=profile.device, autocast=autocast)


def _run(profile: Profile, dataset: Dataset, config: Training, teacher: Distillation | None) -> tuple[VisionTransformer, TrainingResult]:
    seed_everything(0)
    model = fresh_model(profile, dataset.num_classes)
    sets = [dataset.train_views["train"]]
    views, device = profile.data.views, profile.device
    return model, train_by_recipe(model, sets, config, views=views, seed=0, device=device, title="variant", distillation=teacher)


def _rate(result: TrainingResult, images: int) -> float:
    """Images a second, of so many in an epoch."""
    return images * len(result.loss) / result.seconds


def _top1(model: torch.nn.Module, profile: Profile, dataset: Dataset) -> float:
    forward = partial(prepare, model, "eager") if isinstance(model, VisionTransformer) else teacher_forward(model)
    images = dataset.eval_views["val"]
    logits = view_logits(forward, profile, images, title="val")
    return float((logits.argmax(axis=1) == images.labels).mean())


if __name__ == "__main__":
    main()
