"""The from-scratch recipe's parts inside the training loop: averaged weights, mixed images, a teacher, all from one seed."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.recipe import train as module
from lowbit_vit.recipe.augment import Choices, augment, draw_choices
from lowbit_vit.recipe.teacher import Distillation, Guide, Lesson
from lowbit_vit.recipe.train import train_by_recipe
from lowbit_vit.schema.config import Augmentation, Colour, Guidance, Mixing, PatchDropout, SmallImages, Training, Views
from lowbit_vit.trial.train import seed_everything, train

VIEWS = Views(image_size=8, eval_resize=8, train_resize=8, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
ARCH = Architecture(name="small", image_size=8, patch_size=2, depth=2, heads=2, width=64, mlp_width=64)
MIXING = Mixing(mixup_share=0.5, mixup_alpha=0.8, cutmix_share=0.4, cutmix_alpha=1.0)
COLOUR = Colour(brightness=0.3, contrast=0.3, saturation=0.3, grey_share=0.1)
WHOLE: dict[str, Any] = {
    "augmentation": Augmentation(crop_scale=(0.7, 1.0), flip=False, colour=COLOUR, mixing=MIXING),
    "drop_path": 0.2,
    "patch_dropout": PatchDropout(share=0.5, whole_epochs=1),
    "small_images": SmallImages(factor=2, epochs=2),
    "ema_decay": 0.9,
    "attention": "math",
}


def a_training(**changes: Any) -> Training:
    keys: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_epochs": 0.5,
        "label_smoothing": 0.1,
        "autocast": "none",
        "augmentation": Augmentation(crop_scale=(0.7, 1.0), flip=False),
        "splits": ("train",),
    }
    return Training(**{**keys, **changes})


def images() -> ImageSet:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    bright = np.where(labels, 60, 180)[:, None, None, None]
    pixels = np.clip(generator.normal(bright, 40, (40, 8, 8, 3)), 0, 255).astype(np.uint8)
    return ImageSet(pixels, labels.astype(np.int64), tuple(map(str, range(40))))


def run(config: Training, seed: int = 0, teacher: Distillation | None = None) -> tuple[VisionTransformer, Any]:
    seed_everything(0)
    model = VisionTransformer(ARCH, num_classes=2, attention="flash", qkv="separate")
    result = train_by_recipe(model, [images()], config, views=VIEWS, seed=seed, device="cpu", title="train", distillation=teacher)
    return model, result


def bright(pixels: torch.Tensor) -> Lesson:
    """A teacher that knows how bright an image is, and how bright each of its quarters."""
    mean = pixels.mean(dim=(1, 2, 3))
    quarters = torch.nn.functional.avg_pool2d(pixels, 4)
    return Lesson(torch.stack([mean, -mean], dim=1), (quarters, quarters))


def a_guide(weight: float = 1.0) -> Distillation:
    torch.manual_seed(7)
    guide = Guide(Guidance(weight=weight, blocks=(1, 2)), width=64, channels=(3, 3))
    return Distillation(bright, temperature=2.0, weight=0.5, guide=guide)


def test_the_whole_recipe_is_repeatable_to_the_bit() -> None:
    config = a_training(**{**WHOLE, "patch_dropout": None})
    states = [run(config, seed, a_guide())[0].state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("key", sorted(WHOLE))
def test_every_part_changes_what_is_learned(key: str) -> None:
    plain, _ = run(a_training())
    other, _ = run(a_training(**{key: WHOLE[key]}))
    difference = max((a - b).abs().max().item() for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert difference > (1e-9 if key == "attention" else 1e-5)


def test_every_batch_takes_its_own_choices_of_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, taken = list[int](), list[tuple[int, int]]()

    def draw(*arguments: Any, epoch: int, **named: Any) -> Choices:
        drawn.append(epoch)
        return draw_choices(*arguments, epoch=epoch, **named)

    def take(pixels: torch.Tensor, labels: torch.Tensor, choices: Choices, *, batch: int, first: int) -> Any:
        taken.append((batch, first))
        return augment(pixels, labels, choices, batch=batch, first=first)

    monkeypatch.setattr(module, "draw_choices", draw)
    monkeypatch.setattr(module, "augment", take)
    run(a_training(epochs=2, augmentation=WHOLE["augmentation"]))
    assert drawn == [0, 1]
    assert taken == [(0, 0), (1, 16), (2, 32)] * 2


def test_the_averaged_weights_are_kept() -> None:
    # A decay of nearly 0 keeps the last weights; one of nearly 1, with three ramped steps, does not.
    plain, _ = run(a_training(epochs=1, warmup_epochs=0))
    last, _ = run(a_training(epochs=1, warmup_epochs=0, ema_decay=1e-12))
    for ours, theirs in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_teacher_takes_its_share_of_the_loss() -> None:
    def wrong(pixels: torch.Tensor) -> Lesson:
        return Lesson(torch.tensor([9.0, -9.0]).expand(len(pixels), 2), ())

    # A teacher that calls everything class 0 is believed as far as its weight goes.
    for weight, classes in ((1.0, {0}), (1e-6, {0, 1})):
        model, _ = run(a_training(epochs=12, warmup_epochs=1), teacher=Distillation(wrong, temperature=1.0, weight=weight))
        data = torch.from_numpy(images().images).permute(0, 3, 1, 2) / 255
        assert set(model((data - 0.3) / 0.4).argmax(dim=1).tolist()) == classes


def test_patches_learn_the_teachers_maps() -> None:
    errors = {}
    for weight in (1e-9, 10.0):
        teacher = a_guide(weight)
        assert teacher.guide is not None
        start = [parameter.detach().clone() for parameter in teacher.guide.parameters()]
        model, _ = run(a_training(epochs=40, warmup_epochs=1, learning_rate=3e-3), teacher=teacher)
        assert all(not torch.equal(now, before) for now, before in zip(teacher.guide.parameters(), start, strict=True))
        pixels = (torch.from_numpy(images().images).permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
        with torch.no_grad():
            patches = [features[:, 1:] for features in model.features(pixels)]
            errors[weight] = teacher.guide(patches, bright(pixels).maps).item()
    assert errors[10.0] < 0.3 * errors[1e-9]


def test_dropped_patches_have_no_place_on_a_map() -> None:
    with pytest.raises(ConfigError, match=r"patch_dropout.*guidance"):
        run(a_training(patch_dropout=WHOLE["patch_dropout"]), teacher=a_guide())


def test_compiling_is_refused_on_the_cpu_before_anything_is_trained() -> None:
    with pytest.raises(Unavailable, match="needs CUDA"):
        run(a_training(compile=True))


def test_without_its_parts_the_recipe_is_the_training_of_adapters() -> None:
    ours, result = run(a_training(autocast="bf16"))
    seed_everything(0)
    theirs = VisionTransformer(ARCH, num_classes=2, attention="flash", qkv="separate")
    assert train(theirs, [images()], a_training(autocast="bf16"), views=VIEWS, seed=0, device="cpu", title="train").loss == result.loss
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def stripes() -> ImageSet:
    """Two classes, upright and lying stripes, with noise: gradients of many directions."""
    labels = np.arange(40) % 2
    stripe = np.tile(np.array([0, 200], dtype=np.uint8), 4)
    pixels = np.where(labels[:, None, None] == 0, stripe[None, :, None], stripe[None, None, :]).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 40, size=(40, 8, 8), dtype=np.uint8)
    return ImageSet(np.repeat((pixels + noise)[..., None], 3, axis=3), labels.astype(np.int64), tuple(map(str, range(40))))


def test_muon_steps_are_orthogonal_in_the_blocks_and_adamw_has_the_rest() -> None:
    arch = replace(ARCH, patch_size=4)
    once = {"epochs": 1, "batch_size": 40, "warmup_epochs": 0.0, "weight_decay": 0.0}
    states = []
    for optimizer in (None, "adamw", "muon"):
        seed_everything(0)
        model = VisionTransformer(arch, num_classes=2, attention="flash", qkv="separate")
        if optimizer is not None:
            config = a_training(**once, optimizer=optimizer)
            train_by_recipe(model, [stripes()], config, views=VIEWS, seed=0, device="cpu", title="train")
        states.append(model.state_dict())
    start, others, muon = states
    for name, after in muon.items():
        if name.startswith("blocks.") and after.ndim == 2:
            # 0.2 sqrt(longer side) times a matrix whose singular values are near one; those of a gradient as small as noise stay small.
            update = (after - start[name]) / (1e-3 * 0.2 * math.sqrt(max(after.shape)))
            values = torch.linalg.svdvals(update.double())
            assert values.max() < 1.4, name
            assert values[4] > 0.6, name
        else:
            assert torch.equal(after, others[name]), name


def test_muon_needs_the_blocks_of_a_vit() -> None:
    network, config = torch.nn.Linear(2, 2), a_training(optimizer="muon")
    with pytest.raises(ConfigError, match="is for the blocks of a ViT, and this is a Linear; set adamw"):
        train_by_recipe(network, [images()], config, views=VIEWS, seed=0, device="cpu", title="")


def test_replaying_needs_a_gpu() -> None:
    with pytest.raises(Unavailable, match=r"training\.cuda_graph needs CUDA, the model is on cpu; set training\.cuda_graph: false"):
        run(a_training(cuda_graph=True))
