"""The from-scratch recipe on a GPU: it trains compiled, with the kernel it names, and no step makes the host wait."""

from typing import Literal

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import place, train_batches
from lowbit_vit.errors import ConfigError
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.recipe.teacher import Distillation, Guide, Lesson
from lowbit_vit.recipe.train import WARM_UP, RecipeStep, train_by_recipe
from lowbit_vit.schema.config import Augmentation, Colour, Guidance, Mixing, SmallImages, Training, Views
from lowbit_vit.trial.train import Batch, attention_kernel, seed_everything

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # torch 2.11's compiler uses deprecated parts of torch, and recommends TF32 for fp32 products.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]

VIEWS = Views(image_size=64, eval_resize=64, train_resize=72, mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25))
ARCH = Architecture(name="small", image_size=64, patch_size=8, depth=12, heads=4, width=256, mlp_width=512)


def teach(pixels: torch.Tensor) -> Lesson:
    """A teacher that knows how bright an image is, and how bright each of its squares."""
    mean = pixels.mean(dim=(1, 2, 3))
    return Lesson(
        20 * torch.stack([mean, -mean], dim=1), (torch.nn.functional.avg_pool2d(pixels, 8), torch.nn.functional.avg_pool2d(pixels, 16))
    )


def a_teacher() -> Distillation:
    seed_everything(1)
    guide = Guide(Guidance(weight=1.0, blocks=(6, 12)), width=256, channels=(3, 3)).to("cuda")
    return Distillation(teach, 2.0, 0.5, guide)


def a_training(optimizer: Literal["adamw", "muon"], *, compiled: bool, cuda_graph: bool = False) -> Training:
    return Training(
        epochs=12,
        batch_size=32,
        learning_rate=5e-4,
        weight_decay=0.1,
        warmup_epochs=2,
        label_smoothing=0.1,
        autocast="bf16",
        augmentation=Augmentation(
            crop_scale=(0.5, 1.0),
            flip=True,
            colour=Colour(brightness=0.1, contrast=0.1, saturation=0.1, grey_share=0.1),
            mixing=Mixing(mixup_share=0.4, mixup_alpha=0.8, cutmix_share=0.3, cutmix_alpha=1.0),
        ),
        splits=("train",),
        drop_path=0.2,
        small_images=SmallImages(factor=2, epochs=8),
        ema_decay=0.9,
        attention="flash",
        compile=compiled,
        optimizer=optimizer,
        cuda_graph=cuda_graph,
    )


RECIPES = [
    pytest.param(a_training("adamw", compiled=False), id="eager"),
    pytest.param(a_training("adamw", compiled=True), id="compiled"),
    pytest.param(a_training("muon", compiled=True), id="muon"),
    pytest.param(a_training("muon", compiled=True, cuda_graph=True), id="graph"),
]


def images() -> ImageSet:
    generator = np.random.default_rng(0)
    labels = np.arange(128) % 2
    pixels = np.clip(generator.normal(np.where(labels, 60, 160)[:, None, None, None], 40, (128, 72, 72, 3)), 0, 255)
    return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64), tuple(map(str, range(128))))


def a_model() -> VisionTransformer:
    seed_everything(0)
    return VisionTransformer(ARCH, num_classes=2, attention="efficient", qkv="separate").to("cuda")


@pytest.mark.parametrize("config", RECIPES)
def test_it_learns_what_it_should(config: Training) -> None:
    model = a_model()
    train_by_recipe(model, [images()], config, views=VIEWS, seed=0, device="cuda", title="train", distillation=a_teacher())
    pixels = torch.from_numpy(images().images[:, 4:-4, 4:-4]).permute(0, 3, 1, 2).to("cuda") / 255
    with torch.inference_mode():
        right = model((pixels - 0.4) / 0.25).argmax(dim=1).cpu().numpy() == images().labels
    assert right.mean() > 0.9


@pytest.mark.parametrize("config", RECIPES)
def test_no_step_waits_for_the_device(config: Training) -> None:
    model = a_model().train()
    step = RecipeStep(model, config, views=VIEWS, images=128, seed=0, device="cuda", title="train", distillation=a_teacher())
    placed = place([images()], "cuda")
    batches = train_batches(placed, VIEWS, config.augmentation, batch_size=32, seed=0, epoch=0, device="cuda")
    try:
        with attention_kernel(model, config.attention, torch.bfloat16):
            for number, (pixels, labels) in enumerate(batches):
                step(Batch(pixels, labels, epoch=0, number=number, first=32 * number), 1e-4)
                # From the second step on: the first compiles and allocates. A capture waits, once.
                torch.cuda.set_sync_debug_mode("default" if config.cuda_graph and number + 1 == WARM_UP else "error")
        assert number == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("config", RECIPES)
def test_the_same_recipe_gives_the_same_weights_to_the_bit(config: Training) -> None:
    states = []
    for _ in range(2):
        model = a_model()
        train_by_recipe(model, [images()], config, views=VIEWS, seed=0, device="cuda", title="train", distillation=a_teacher())
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_replayed_steps_are_the_launched_ones() -> None:
    """But for rounding: a graph takes the shares of unmixed images, too. Without masks, whose draws it places otherwise."""
    losses = []
    for cuda_graph in (False, True):
        config = a_training("muon", compiled=True, cuda_graph=cuda_graph).model_copy(update={"drop_path": 0.0})
        distillation = a_teacher()
        result = train_by_recipe(
            a_model(), [images()], config, views=VIEWS, seed=0, device="cuda", title="train", distillation=distillation
        )
        losses.append(result.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_batch_of_another_size_is_an_error() -> None:
    config = a_training("adamw", compiled=False, cuda_graph=True).model_copy(update={"batch_size": 25})
    with pytest.raises(ConfigError, match="batches of one size, these are 25 and 3"):
        train_by_recipe(a_model(), [images()], config, views=VIEWS, seed=0, device="cuda", title="train")
