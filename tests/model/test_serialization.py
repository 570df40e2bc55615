"""A converted model comes back from disk with the same logits, bit for bit, and its size is that of the real files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.errors import DataError, LowbitVitError
from lowbit_vit.model import lora, precision, serialization
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import QkvLayout
from lowbit_vit.schema.plan import NF4, ComputeDtype, HighPrecision, Int8, Plan, Rule, uniform

SINGLE = NF4(format="nf4", double_quantization=False)
FORMATS = [HighPrecision(), Int8(format="int8", threshold=0.0), Int8(format="int8", threshold=6.0), SINGLE]
FORMATS += [NF4(format="nf4", double_quantization=True)]
SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=2, width=128, mlp_width=256)


def model_in(plan: Plan, *, qkv: QkvLayout = "separate") -> VisionTransformer:
    model = drawn_model(SMALL, attention="math", qkv=qkv, std=0.05)
    precision.apply_plan(model, plan)
    return model


def adapted(plan: Plan) -> VisionTransformer:
    model = model_in(plan)
    lora.wrap(model, rank=4, alpha=8.0, dropout=0.1)
    for parameter in lora.trainable_parameters(model).values():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def logits(model: VisionTransformer, plan: Plan) -> torch.Tensor:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(precision.compute_dtype(plan))
    with torch.inference_mode():
        result: torch.Tensor = model(images)
    return result


@pytest.mark.parametrize("kind", ["separate", "fused", "adapted", "settled"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
def test_a_saved_model_reloads_bit_equal(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype, kind: str, tmp_path: Path) -> None:
    plan = uniform(weights, dtype)
    model = adapted(plan) if kind in ("adapted", "settled") else model_in(plan, qkv="fused" if kind == "fused" else "separate")
    if kind == "settled":
        lora.settle(model)
    expected = logits(model, plan)  # before saving: a forward must not change what is saved
    size = serialization.save_model(model, plan, tmp_path / "m.safetensors", {"made": "here"})
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size == serialization.model_bytes(model, plan, {"made": "here"})  # without writing
    loaded = serialization.load_model(tmp_path / "m.safetensors", attention="math")
    assert torch.equal(logits(loaded, plan), expected)
    assert precision.audit(loaded) == precision.audit(model)
    assert precision.weight_bytes(loaded) == precision.weight_bytes(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert list(lora.adapters(loaded)) == list(lora.adapters(model))


@pytest.mark.parametrize("settled", [False, True])
def test_a_mixed_plan_with_adapters_reloads_bit_equal_and_can_be_saved_again(settled: bool, tmp_path: Path) -> None:
    rules = (Rule(pattern="blocks.0.*", weights=SINGLE), Rule(pattern="*.q", weights=Int8(format="int8", threshold=6.0)))
    plan = Plan(compute_dtype="bf16", rules=rules)
    model = adapted(plan)
    if settled:
        lora.settle(model)
    serialization.save_model(model, plan, tmp_path / "a.safetensors", {})
    loaded = serialization.load_model(tmp_path / "a.safetensors", attention="math")
    assert torch.equal(logits(loaded, plan), logits(model, plan))
    serialization.save_model(loaded, plan, tmp_path / "b.safetensors", {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
def test_the_file_holds_what_the_bytes_in_memory_say_and_little_more(weights: HighPrecision | Int8 | NF4, tmp_path: Path) -> None:
    plan = uniform(weights, "fp16")
    model = model_in(plan)
    serialization.save_model(model, plan, tmp_path / "m.safetensors", {})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    held = precision.weight_bytes(model)
    # Beyond the values: bitsandbytes writes the codes' level tables and its own descriptions, at most 1.3 kB a layer.
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert held - 4 * 12 <= stored <= held + 12 * 1300


def test_a_model_that_is_not_what_the_plan_says_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(LowbitVitError, match=r"blocks\.0\.attention\.q is nf4, the plan says nf4-dq"):
        serialization.save_model(
            model_in(uniform(SINGLE, "fp32")), uniform(NF4(format="nf4", double_quantization=True), "fp32"), tmp_path / "m.safetensors", {}
        )
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path: Path) -> None:
    plan = uniform(SINGLE, "fp32")
    path, card = tmp_path / "m.safetensors", tmp_path / "m.json"
    serialization.save_model(model_in(plan), plan, path, {})
    content = json.loads(card.read_text())

    wrong_plan = content | {
        "model": content["model"] | {"plan": uniform(Int8(format="int8", threshold=0.0), "fp32").model_dump(mode="json")}
    }
    card.write_text(json.dumps(wrong_plan))
    with pytest.raises(DataError, match="not a saved model"):
        serialization.load_model(path, attention="math")

    card.write_text(json.dumps(content | {"model": content["model"] | {"num_classes": 7}}))
    with pytest.raises(DataError, match="not a saved model"):
        serialization.load_model(path, attention="math")

    narrow = content["model"]["architecture"] | {"mlp_width": 128}
    card.write_text(json.dumps(content | {"model": content["model"] | {"architecture": narrow}}))
    with pytest.raises(
        DataError, match=r"not a saved model \(blocks\.0\.mlp\.fc1 has \(256, 128\) outputs and inputs, the model \(128, 128\)"
    ):
        serialization.load_model(path, attention="math")

    card.write_text(json.dumps(content | {"model": content["model"] | {"plan": {"compute_dtype": "fp8"}}}))
    with pytest.raises(DataError, match=r"m\.json: key compute_dtype"):
        serialization.load_model(path, attention="math")

    card.write_text(json.dumps({"sha256": content["sha256"]}))
    with pytest.raises(DataError, match="not a saved model"):
        serialization.load_model(path, attention="math")

    card.write_text(json.dumps(content))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="sha256"):
        serialization.load_model(path, attention="math")
