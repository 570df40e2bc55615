import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import ConfigError, LowbitVitError, Unavailable
from lowbit_vit.model.lora import attach, trainable_parameters
from lowbit_vit.model.precision import apply_plan
from lowbit_vit.model.vit import Architecture, Attention, VisionTransformer
from lowbit_vit.schema.config import Adaptation, Augmentation, Training, Views
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, uniform
from lowbit_vit.trial.train import Descent, attention_kernel, learning_rate, seed_everything, train

VIEWS = Views(image_size=8, eval_resize=8, train_resize=8, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
ARCH = Architecture(name="small", image_size=8, patch_size=4, depth=2, heads=2, width=64, mlp_width=64)


def a_training(**changes: Any) -> Training:
    base = Training(
        epochs=2,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.1,
        warmup_epochs=0.5,
        label_smoothing=0.1,
        autocast="none",
        augmentation=Augmentation(crop_scale=(0.7, 1.0), flip=False),
        splits=("train",),
    )
    return base.model_copy(update=changes)


def striped_images(count: int = 40) -> ImageSet:
    """Two classes that a tiny model can tell apart: upright and lying stripes, with noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    stripes = np.tile(np.array([0, 200], dtype=np.uint8), 4)
    images = np.where(labels[:, None, None] == 0, stripes[None, :, None], stripes[None, None, :]).astype(np.uint8)
    noise = generator.integers(0, 40, size=(count, 8, 8), dtype=np.uint8)
    return ImageSet(np.repeat((images + noise)[..., None], 3, axis=3), labels.astype(np.int64), tuple(map(str, range(count))))


def a_model(seed: int = 0) -> VisionTransformer:
    seed_everything(seed)
    return VisionTransformer(ARCH, num_classes=2, attention="flash", qkv="separate")


def run(model: VisionTransformer, config: Training, seed: int = 0) -> Any:
    return train(model, [striped_images()], config, views=VIEWS, seed=seed, device="cpu", title="train")


def test_it_learns_and_reports_what_it_did() -> None:
    model = a_model()
    result = run(model, a_training(epochs=8, warmup_epochs=1))
    assert result.loss[-1] < 0.8 * result.loss[0]
    assert (result.steps, len(result.loss)) == (8 * 3, 8)
    assert result.seconds > 0
    assert result.peak_allocated_bytes is None
    assert not model.training


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    models = []
    for seed in (1, 1, 2):
        model = a_model()
        run(model, a_training(), seed=seed)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert any(not torch.equal(models[0][name], models[2][name]) for name in models[0])


@pytest.mark.parametrize(
    "weights",
    [HighPrecision(), NF4(format="nf4", double_quantization=False), Int8(format="int8", threshold=6.0)],
    ids=lambda weights: weights.name,
)
def test_only_adapters_and_head_change_above_any_format(weights: HighPrecision | NF4 | Int8) -> None:
    model = a_model()
    apply_plan(model, uniform(weights, "fp32"))
    config = a_training()
    attach(model, Adaptation(rank=4, alpha=8, dropout=0.1, training=config), seed=0)
    trained = set(trainable_parameters(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    run(model, config)
    after = model.state_dict()
    assert {name for name, tensor in before.items() if not torch.equal(tensor, after[name])} == trained


def test_nothing_to_train_raises() -> None:
    model = a_model()
    model.requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match="nothing to train"):
        run(model, a_training())


def test_what_only_the_recipe_knows_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match=r"^train: training\.ema_decay is of a backbone's training; leave it out$"):
        run(a_model(), a_training(ema_decay=0.9))


def test_a_loss_that_is_not_finite_raises_and_says_what_to_lower() -> None:
    model = a_model()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(LowbitVitError, match=r"loss is nan after epoch 1 of 2; lower learning_rate"):
        run(model, a_training())


def test_matrices_decay_and_vectors_do_not() -> None:
    # Zero gradients leave decay alone: a head of zeros passes none back, so every other parameter only decays.
    model = a_model()
    with torch.no_grad():
        model.head.weight.zero_()
    model.head.requires_grad_(requires_grad=False)
    config = a_training(epochs=1, batch_size=40, warmup_epochs=0, weight_decay=0.5, learning_rate=0.01)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, config)
    for name, parameter in model.named_parameters():
        if name.startswith("head"):
            continue
        decay = 1 - 0.01 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * decay, msg=name)


def test_the_section_names_the_kernel() -> None:
    # Other roundings; and the model has its own kernel back.
    models = []
    for attention in (None, "math"):
        models.append(a_model())
        run(models[-1], a_training(attention=attention))
    assert any(not torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(module.kernel == "flash" for module in models[1].modules() if isinstance(module, Attention))


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_trains_too(autocast: str) -> None:
    result = run(a_model(), a_training(autocast=autocast))
    assert all(math.isfinite(loss) for loss in result.loss)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero() -> None:
    config = a_training(epochs=10, warmup_epochs=2, learning_rate=0.5)
    rates = [learning_rate(config, step=step, steps_an_epoch=5) for step in range(50)]
    np.testing.assert_allclose(rates[:10], 0.5 * np.arange(1, 11) / 10)
    assert rates[10] == 0.5
    assert rates[30] == pytest.approx(0.25)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_gradients_are_clipped_together_to_a_norm_of_1() -> None:
    pair = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))]
    descent = Descent(pair, (torch.optim.SGD(pair, lr=1.0),), a_training(), "cpu")
    descent.backward(lambda: 30 * pair[0].sum() + 40 * pair[1].sum())
    descent.update(0.5)
    assert [round(parameter.item(), 5) for parameter in pair] == [-0.3, -0.4]  # half of (0.6, 0.8)


def test_seeding_covers_python_numpy_and_torch() -> None:
    draws = []
    for _ in range(2):
        seed_everything(3)
        draws.append((random.random(), float(np.random.random()), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_the_kernel_is_changed_for_a_while_and_only_to_one_that_runs() -> None:
    model = a_model()

    def kernels() -> set[str]:
        return {module.kernel for module in model.modules() if isinstance(module, Attention)}

    with attention_kernel(model, "math", torch.float32):
        assert kernels() == {"math"}
    assert kernels() == {"flash"}
    with pytest.raises(Unavailable, match="cudnn needs CUDA"), attention_kernel(model, "cudnn", torch.float32):
        pass
    assert kernels() == {"flash"}
