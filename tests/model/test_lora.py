"""Adapters sit on q and v over any format, only they and the head train, and merging is exact where it is allowed."""

import copy

import peft.tuners.lora as peft_lora
import pytest
import torch
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model import lora, precision
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.config import Adaptation, Augmentation, QkvLayout, Training
from lowbit_vit.schema.plan import NF4, ComputeDtype, HighPrecision, Int8, Plan, Rule, uniform

HIGH = HighPrecision()
INT8 = Int8(format="int8", threshold=6.0)
SINGLE = NF4(format="nf4", double_quantization=False)
FORMATS = pytest.mark.parametrize(
    "weights",
    [HIGH, Int8(format="int8", threshold=0.0), INT8, SINGLE, NF4(format="nf4", double_quantization=True)],
    ids=lambda weights: weights.name,
)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])

SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=2, width=128, mlp_width=256)
ADAPTATION = Adaptation(
    rank=4,
    alpha=8,
    dropout=0.0,
    training=Training(
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_epochs=0,
        label_smoothing=0.0,
        autocast="none",
        augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=False),
        splits=("train",),
    ),
)


def model_in(plan: Plan, *, qkv: QkvLayout = "separate") -> VisionTransformer:
    model = drawn_model(SMALL, attention="math", qkv=qkv, std=0.05)
    precision.apply_plan(model, plan)
    return model


def images(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def train_steps(model: VisionTransformer, dtype: torch.dtype, *, steps: int = 3, autocast: bool = False) -> list[float]:
    optimizer = torch.optim.AdamW(lora.trainable_parameters(model).values(), lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(images(dtype)).float(), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@FORMATS
@DTYPES
def test_attaching_keeps_names_formats_and_logits(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype) -> None:
    plan = uniform(weights, dtype)
    model = model_in(plan)
    x = images(precision.compute_dtype(plan))
    with torch.inference_mode():
        before = model(x)
        lora.attach(model, ADAPTATION, seed=0)
        after = model(x)
    assert precision.audit(model).by_format == {weights.name: 12}
    assert list(lora.adapters(model)) == [name for name in encoder_linears(model) if name.endswith((".q", ".v"))]
    # Only the head changed: it now multiplies in fp32.
    assert torch.allclose(before.float(), after, atol={"fp32": 0.0, "fp16": 2e-3, "bf16": 2e-2}[dtype])


@pytest.mark.parametrize("training", [True, False])
def test_attaching_and_merging_keep_the_training_mode(training: bool) -> None:
    model = model_in(uniform(HIGH, "fp32")).train(training)
    lora.attach(model, ADAPTATION, seed=0)
    assert {module.training for module in model.modules()} == {training}
    lora.merge(model)
    assert {module.training for module in model.modules()} == {training}


@FORMATS
@DTYPES
def test_only_adapters_and_head_change_in_training(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype) -> None:
    plan = uniform(weights, dtype)
    model = model_in(plan)
    lora.attach(model, ADAPTATION, seed=0)
    before = copy.deepcopy(model.state_dict())
    losses = train_steps(model, precision.compute_dtype(plan))
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(lora.trainable_parameters(model))
    assert len(changed) == 2 * SMALL.depth * 2 + 2
    assert all(parameter.dtype == torch.float32 for parameter in lora.trainable_parameters(model).values())
    assert sum(parameter.numel() for parameter in lora.trainable_parameters(model).values()) == 4 * 2 * 4 * 128 + 128 * 10 + 10


def test_each_format_gets_peft_own_class_for_it() -> None:
    rules = (Rule(pattern="blocks.0.*", weights=SINGLE), Rule(pattern="blocks.1.attention.q", weights=INT8))
    model = model_in(Plan(compute_dtype="fp32", rules=rules))
    lora.attach(model, ADAPTATION, seed=0)
    kinds = {name: type(layer) for name, layer in lora.adapters(model).items()}
    assert kinds == {
        "blocks.0.attention.q": peft_lora.Linear4bit,
        "blocks.0.attention.v": peft_lora.Linear4bit,
        "blocks.1.attention.q": peft_lora.Linear8bitLt,
        "blocks.1.attention.v": peft_lora.Linear,
    }
    assert precision.audit(model).by_format == {"nf4": 6, "int8-6": 1, "high": 5}


def test_an_unmarked_model_gets_the_wrong_class_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "_MARKS", ())
    with pytest.raises(LowbitVitError, match=r"peft wrapped blocks\.0\.attention\.q in Linear, expected its Linear4bit"):
        lora.attach(model_in(uniform(SINGLE, "fp32")), ADAPTATION, seed=0)


def test_the_start_depends_on_the_seed_and_not_on_format_or_dtype() -> None:
    starts = []
    for plan, seed in [(uniform(HIGH, "fp32"), 0), (uniform(SINGLE, "bf16"), 0), (uniform(INT8, "fp16"), 0), (uniform(HIGH, "fp32"), 1)]:
        model = model_in(plan)
        lora.attach(model, ADAPTATION, seed=seed)
        starts.append(torch.cat([p.flatten() for name, p in lora.trainable_parameters(model).items() if ".lora_A." in name]))
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[3])
    assert starts[0].abs().max() <= 1 / 128**0.5  # Kaiming-uniform with a = sqrt(5): bound 1 / sqrt(in)


def test_adapter_bytes_are_counted() -> None:
    model = model_in(uniform(SINGLE, "bf16"))
    before = precision.weight_bytes(model)
    lora.attach(model, ADAPTATION, seed=0)
    head = (128 * 10 + 10) * (4 - 2)
    assert precision.weight_bytes(model) == before + 4 * (2 * SMALL.depth * 2 * 4 * 128) + head


def test_a_merged_weight_is_the_weight_plus_alpha_over_rank_times_b_a() -> None:
    model = model_in(uniform(HIGH, "fp32"))
    before = {name: layer.weight.detach().clone() for name, layer in encoder_linears(model).items() if isinstance(layer, nn.Linear)}
    lora.attach(model, ADAPTATION, seed=0)
    train_steps(model, torch.float32)
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    adapted = list(lora.adapters(model))
    lora.merge(model)
    assert adapted
    for name in adapted:
        up, down = (state[f"{name}.lora_{letter}.{lora.ADAPTER}.weight"] for letter in "BA")
        expected = before[name].double() + ADAPTATION.alpha / ADAPTATION.rank * up @ down
        merged = encoder_linears(model)[name].weight
        assert isinstance(merged, torch.Tensor)
        assert up.any()
        assert torch.allclose(merged.double(), expected, atol=1e-7)


@DTYPES
def test_merging_gives_the_same_logits_under_plain_names(dtype: ComputeDtype) -> None:
    plan = uniform(HIGH, dtype)
    model = model_in(plan)
    names = list(model.state_dict())
    lora.attach(model, ADAPTATION, seed=0)
    train_steps(model, precision.compute_dtype(plan))
    x = images(precision.compute_dtype(plan))
    with torch.inference_mode():
        adapted = model(x)
        lora.merge(model)
        merged = model(x)
    assert list(model.state_dict()) == names
    assert {type(layer) for layer in encoder_linears(model).values()} == {nn.Linear}
    assert type(model.head) is nn.Linear
    assert merged.dtype == precision.compute_dtype(plan)
    assert torch.allclose(adapted, merged.float(), atol={"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1}[dtype])
    # The merged model is a plain one: it can be quantized, and adapted again.
    if dtype == "fp32":
        precision.apply_plan(model, uniform(SINGLE, "fp32"))
        lora.attach(model, ADAPTATION, seed=1)


@pytest.mark.parametrize("weights", [INT8, SINGLE], ids=lambda weights: weights.name)
def test_merging_into_a_quantized_layer_is_refused_and_changes_nothing(weights: Int8 | NF4) -> None:
    model = model_in(Plan(compute_dtype="fp32", rules=(Rule(pattern="blocks.1.attention.v", weights=weights),)))
    lora.attach(model, ADAPTATION, seed=0)
    train_steps(model, torch.float32, steps=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=rf"blocks\.1\.attention\.v is {weights.name}"):
        lora.merge(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@FORMATS
@DTYPES
def test_a_settled_model_predicts_as_the_trained_one(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype) -> None:
    plan = uniform(weights, dtype)
    model = model_in(plan)
    lora.attach(model, ADAPTATION, seed=0)
    train_steps(model, precision.compute_dtype(plan), autocast=dtype != "fp16")  # the CPU's does not promote fp16
    bytes_before = precision.weight_bytes(model_in(plan))
    x = images(precision.compute_dtype(plan))
    with torch.inference_mode():
        trained = model(x)
        lora.settle(model)
        settled = model(x)
    assert bool(lora.adapters(model)) == (weights != HIGH)
    assert not lora.trainable_parameters(model)
    assert {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} == {precision.compute_dtype(plan)}
    if weights == HIGH:
        assert precision.weight_bytes(model) == bytes_before
    assert settled.dtype == precision.compute_dtype(plan)
    assert torch.allclose(trained, settled.float(), atol={"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1}[dtype])


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigError, match="fused"):
        lora.attach(model_in(uniform(HIGH, "fp32"), qkv="fused"), ADAPTATION, seed=0)
    model = model_in(uniform(HIGH, "fp32"))
    with pytest.raises(ConfigError, match="no adapters"):
        lora.merge(model)
    lora.attach(model, ADAPTATION, seed=0)
    with pytest.raises(ConfigError, match="adapters already"):
        lora.attach(model, ADAPTATION, seed=0)
    with pytest.raises(ConfigError, match="give plain fp32 linears"):
        precision.apply_plan(model, uniform(SINGLE, "fp32"))
