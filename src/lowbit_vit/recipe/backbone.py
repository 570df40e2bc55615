"""The backbone stage: the high-precision weights that every trial starts from.

`backbone.safetensors` is trained here from scratch, alone or with a teacher that was fine-tuned first; or is a torchvision
checkpoint with a new head; or is a file that this program made, with its own head if that is of the same classes. With a lora
section in the profile, `adapted-seed<N>.safetensors` is that backbone with adapters trained in high precision and merged, which
`ptq` trials quantize: one for each seed they use, and seed 0 for the sensitivity and mixed studies. `adapter-seed<N>` holds those
adapters and the head alone. Each file has its model card beside it, which says how it was made and its terms of use.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowbit_vit.data.arrays import Dataset, ImageSet, load_dataset
from lowbit_vit.data.remote_files import FLOWERS_LICENCE, TEACHER_LICENCE, WEIGHTS, Licence
from lowbit_vit.errors import ConfigError, DataError, Unavailable
from lowbit_vit.model.checkpoint import fit_positions, load_given, load_state, restore, save_state
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.lora import attach, merge, trainable_parameters
from lowbit_vit.model.precision import matmul_mode
from lowbit_vit.model.vit import VisionTransformer, architecture
from lowbit_vit.recipe.teacher import PACKAGE, WEIGHTS_SHA256, Distillation, distillation, load_teacher, require_teacher
from lowbit_vit.recipe.train import train_by_recipe
from lowbit_vit.schema.config import Adaptation, AttentionName, Profile, Teacher, Training
from lowbit_vit.schema.file_lock import hold
from lowbit_vit.schema.machine import command_line, provenance
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.record import remove_half_written
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.evaluate import Forward, predict, predictions_of_logits, selection_mask
from lowbit_vit.trial.train import AUTOCAST, seed_everything, train

log = logging.getLogger(__name__)

DIGITS_LICENCE = Licence(
    "CC-BY-4.0",
    "attribution to Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998); the copy is scikit-learn's",
    "https://doi.org/10.24432/C50P49",
)
_IMAGE_TERMS = {
    "digits": str(DIGITS_LICENCE),
    "flowers102": str(FLOWERS_LICENCE),
    "image_folder": "licence not stated: images of your own; add their terms before you pass the weights on",
}


def make_backbone(profile: Profile, workspace: Workspace) -> None:
    """Make the backbone and its adapted versions, each a safetensors file with a JSON card beside it.

    Raises:
        ConfigError: the checkpoint gets a new head, and the profile has no lora section to train it.
        DataError: the data or the checkpoint is missing or damaged, or the disk is full.
        Unavailable: the profile's device is not there, or its teacher's package.
        Busy: another process is making it.
        LowbitVitError: a training loss is not finite.
    """
    if profile.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"profile {profile.name} trains on cuda, and this machine has no usable CUDA device")
    if profile.backbone.teacher is not None:
        require_teacher()
    dataset = load_dataset(workspace.data, profile.data.views)
    if dataset.name != profile.data.source:
        wanted = f"{profile.data.source}; run lowbit-vit data {profile.name}"
        raise DataError(f"{workspace.data}: holds {dataset.name}, the profile's source is {wanted}")
    # Beside the folder, which DVC removes before it runs this stage.
    lock = workspace.checkpoints.with_name(f".{profile.name}.lock")
    with hold(lock, named=f"checkpoints/{profile.name}", doing="backbone"):
        remove_half_written(workspace.checkpoints)
        _make_base(profile, workspace, dataset)
        if profile.lora is not None:
            for seed in profile.adapted_seeds:
                _make_adapted(profile, profile.lora, workspace, dataset, seed=seed)


def _make_base(profile: Profile, workspace: Workspace, dataset: Dataset) -> None:
    config = profile.backbone
    training = config.training if config.weights == "scratch" else None
    teacher, teacher_card = _make_teacher(profile, config.teacher, training, dataset) if training and config.teacher else (None, None)
    seed_everything(config.seed)
    model = fresh_model(profile, dataset.num_classes)
    if training is not None:
        sets, views, title = _training_sets(training, dataset), profile.data.views, f"train {profile.name} backbone"
        result = train_by_recipe(
            model, sets, training, views=views, seed=config.seed, device=profile.device, title=title, distillation=teacher
        )
        taught = "" if config.teacher is None else f", taught by {config.teacher.architecture} with ImageNet weights"
        made = f"trained from random weights for {_length(training, dataset)}, seed {config.seed}{taught}"
        card: dict[str, Any] = {"origin": "scratch", "teacher": teacher_card, "training": result.model_dump(mode="json")}
        card |= {"licence": _licences(profile), "made": made}
        trained = True
    else:
        card, trained = _restore_given(model, profile, workspace, dataset)
    # A new head is random: nothing to evaluate.
    accuracy = _accuracy(partial(prepare, model, "eager"), profile, dataset, title="backbone") if trained else None
    # An interrupt must not leave this backbone beside adapters of another one.
    for path in workspace.checkpoints.glob("adapte[dr]-seed*"):
        path.unlink()
    _save(model.state_dict(), workspace.backbone, profile, dataset, {**card, "accuracy": accuracy, "kind": "backbone", "seed": config.seed})


def _restore_given(model: VisionTransformer, profile: Profile, workspace: Workspace, dataset: Dataset) -> tuple[dict[str, Any], bool]:
    """Fill the model from the profile's checkpoint; return its part of the model card, and whether the checkpoint's head is kept.

    Raises:
        ConfigError: the head is new, and the profile has no lora section to train it.
        DataError: the file is missing or damaged, has another hash, or holds another model.
    """
    config = profile.backbone
    path = workspace.root / str(config.checkpoint)
    state, theirs = load_given(config, workspace.root)
    kept = theirs is not None and theirs.get("class_names") == list(dataset.class_names)
    if not kept and profile.lora is None:
        raise ConfigError(
            f"{workspace.profile_file}: key lora: null, but {path.name} gets a new head for these classes; add a lora section"
        )
    restore(model, fit_positions(state, model, source=str(path)), source=str(path), new_head=not kept)
    log.info("%s: %s", path.name, "its head is of the same classes and is kept" if kept else "gets a new head for these classes")
    head = "its own head kept" if kept else f"a new, untrained head (seed {config.seed})"
    card = {"origin": path.name, "origin_sha256": config.checkpoint_sha256, "head": "kept" if kept else "new", "training": None}
    return {**card, "licence": _licences(profile, theirs), "made": f"converted from {path.name}, {head}"}, kept


def _make_teacher(profile: Profile, config: Teacher, student: Training, dataset: Dataset) -> tuple[Distillation, dict[str, Any]]:
    """The fine-tuned teacher and its part of the model card."""
    seed = profile.backbone.seed
    seed_everything(seed)
    network = load_teacher(profile.data.views, num_classes=dataset.num_classes, device=profile.device)
    sets, views, title = _training_sets(config.training, dataset), profile.data.views, f"train {profile.name} teacher"
    result = train_by_recipe(network, sets, config.training, views=views, seed=seed, device=profile.device, title=title)
    accuracy = _accuracy(teacher_forward(network), profile, dataset, title="teacher")
    width = architecture(profile.backbone.architecture, profile.data.views.image_size).width
    frozen = distillation(network, config, width=width, device=profile.device, autocast=AUTOCAST[student.autocast])
    return frozen, {
        "architecture": config.architecture,
        "pretrained_on": "ImageNet-1k",
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "origin": "Google's TensorFlow EfficientNet-Lite2, converted by ML Illustrated",
        "licence": TEACHER_LICENCE.name,
        "weights_sha256": WEIGHTS_SHA256,
        "temperature": config.temperature,
        "weight": config.weight,
        "training": result.model_dump(mode="json"),
        "accuracy": accuracy,
    }


def _make_adapted(profile: Profile, lora: Adaptation, workspace: Workspace, dataset: Dataset, *, seed: int) -> None:
    """Adapters and head trained on the fp32 backbone, merged."""
    arch = architecture(profile.backbone.architecture, profile.data.views.image_size)
    kernel, device = _kernel(profile), profile.device
    model = VisionTransformer.empty(arch, num_classes=dataset.num_classes, attention=kernel, qkv="separate", device=device)
    state, card = load_state(workspace.backbone)
    restore(model, state, source=str(workspace.backbone))
    attach(model, lora, seed=seed)
    sets, views, title = _training_sets(lora.training, dataset), profile.data.views, f"adapt in high precision, seed {seed}"
    result = train(model, sets, lora.training, views=views, seed=seed, device=device, title=title)
    content = {
        "seed": seed,
        "origin": workspace.backbone.name,
        "origin_sha256": card["sha256"],
        "licence": card["licence"],
        "lora": lora.model_dump(mode="json"),
        "training": result.model_dump(mode="json"),
    }
    trained = {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(model).items()}
    merge(model)
    accuracy = _accuracy(partial(prepare, model, "eager"), profile, dataset, title="adapted")
    length = _length(lora.training, dataset)
    made = f"LoRA of rank {lora.rank} on q and v, and the head, trained in high precision for {length}, seed {seed}"
    for kind, path, state, form in (
        ("adapter", workspace.adapter(seed), trained, "adapters and head alone"),
        ("adapted", workspace.adapted(seed), model.state_dict(), "merged into the backbone"),
    ):
        _save(state, path, profile, dataset, {**content, "accuracy": accuracy, "kind": kind, "made": f"{made}; {form}"})


def fresh_model(profile: Profile, num_classes: int) -> VisionTransformer:
    """The profile's architecture in fp32 on its device, drawn from torch's global generator."""
    arch = architecture(profile.backbone.architecture, profile.data.views.image_size)
    return VisionTransformer(arch, num_classes=num_classes, attention=_kernel(profile), qkv="separate").to(profile.device)


def _kernel(profile: Profile) -> AttentionName:
    """The fused attention kernel that has gradients and takes fp32."""
    return "flash" if profile.device == "cpu" else "efficient"


def _training_sets(config: Training, dataset: Dataset) -> list[ImageSet]:
    return [dataset.train_views[split] for split in config.splits]


def _length(config: Training, dataset: Dataset) -> str:
    """The length of a training in words: `3 epochs on train+val (1,198 images)`."""
    images = sum(len(one.labels) for one in _training_sets(config, dataset))
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    return f"{epochs} on {'+'.join(config.splits)} ({images:,} images)"


def _licences(profile: Profile, given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Terms of use by source: `images`, and `weights` or `teacher` where the weights depend on others'.

    Args:
        profile: names the sources.
        given: the card of the file that a backbone of weights = ours starts from, whose terms pass on.
    """
    terms = {"images": _IMAGE_TERMS[profile.data.source]}
    backbone = profile.backbone
    if backbone.weights == "torchvision":
        known = {file.name: file.licence for file in WEIGHTS.values()}
        name = Path(str(backbone.checkpoint)).name
        terms["weights"] = str(known[name]) if name in known else f"licence not stated: {name} is a file of your own"
    elif backbone.weights == "ours":
        before = (given or {}).get("licence")
        terms["weights"] = "; ".join(f"{source}: {text}" for source, text in before.items()) if before else "licence not stated by its card"
    if backbone.teacher is not None:
        terms["teacher"] = str(TEACHER_LICENCE)
    return terms


def view_logits(forward: Callable[[Tensor], Forward], profile: Profile, images: ImageSet, *, title: str) -> npt.NDArray[np.float32]:
    """Logits [N, K] of an evaluation view in fp32, on a GPU with TF32.

    Without TF32 an H100 takes 17 s for the test images of ViT-L/16 rather than 4; the arms of `variants` compare the two.
    """
    with matmul_mode(Plan(compute_dtype="tf32")):
        return predict(
            forward,
            images,
            profile.data.views,
            batch_size=profile.evaluation.batch_size,
            device=profile.device,
            dtype=torch.float32,
            title=title,
        )


def teacher_forward(network: nn.Module) -> Callable[[Tensor], Forward]:
    """The forward of a model that is no ViT, in the form that `prepare` gives a ViT's."""
    return lambda _: torch.inference_mode()(network)


def _accuracy(forward: Callable[[Tensor], Forward], profile: Profile, dataset: Dataset, *, title: str) -> dict[str, Any]:
    """Metrics of the val and the test split (val is no held-out split where it was trained on)."""
    result: dict[str, Any] = {}
    for split in ("val", "test"):
        images = dataset.eval_views[split]
        logits = view_logits(forward, profile, images, title=f"evaluate {title} on {split}")
        selection = selection_mask(len(images.labels), profile.selection_seed)
        found = predictions_of_logits(logits, images.labels, selection=selection).accuracy()
        result[split] = found.model_dump(mode="json")
        log.info("%s, %s: Top-1 %.2f %% of %d images", title, split, 100 * found.top1, found.images)
    return result


def _save(state: Mapping[str, Tensor], path: Path, profile: Profile, dataset: Dataset, card: dict[str, Any]) -> None:
    common = {
        "profile": profile.name,
        "description": profile.description,
        "data": dataset.description,
        "content_sha256": dataset.content_sha256,
        "class_names": list(dataset.class_names),
        "views": profile.data.views.model_dump(mode="json"),
        "splits": {split: len(images.labels) for split, images in dataset.eval_views.items()},
        "backbone": profile.backbone.model_dump(mode="json"),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "provenance": provenance(command_line()).model_dump(mode="json"),
    }
    digest = save_state(state, path, {**common, **card})
    log.info("%s: sha256 %s", path.name, digest[:16])
