"""Adapters over nf4_fused, in Triton's interpreter: what peft computes over bitsandbytes' layers, in one GEMM."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model import lora, precision, serialization
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import NF4, FusedNF4, HighPrecision, Plan, Rule, uniform

TINY = Architecture(name="tiny", image_size=8, patch_size=4, depth=2, heads=2, width=64, mlp_width=192)
OURS = FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit")
PLAN = uniform(OURS, "bf16")


def trained_model(plan: Plan = PLAN, *, adapted: bool = True) -> VisionTransformer:
    """A model as training leaves it: bitsandbytes' NF4, and adapters that do something."""
    torch.manual_seed(0)
    model = VisionTransformer(TINY, num_classes=10, attention="flash", qkv="separate")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    precision.apply_plan(model, plan.trained)
    lora.wrap(model.eval(), rank=4, alpha=8, dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in lora.trainable_parameters(model).items():
        if ".lora_" in name and adapted:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    lora.settle(model)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()


def logits(model: VisionTransformer) -> Tensor:
    return prepare(model, "eager", images())(images()).float()


def test_bitsandbytes_nf4_is_trained_in_place_of_ours() -> None:
    assert PLAN.trained == uniform(NF4(format="nf4", double_quantization=False), "bf16")
    high = uniform(HighPrecision(), "bf16")
    assert high.trained == high


def test_one_product_computes_what_peft_does_in_three(kernels: SimpleNamespace) -> None:
    model, without = trained_model(), trained_model(adapted=False)
    expected = logits(model)
    for each in (model, without):
        precision.take_over(each, PLAN)
    found = logits(model)
    # Other roundings: what bf16 alone moves. The adapters move far more.
    assert ((found - expected).norm() / expected.norm()).item() < 0.02
    assert ((logits(without) - expected).norm() / expected.norm()).item() > 0.2


def test_a_model_that_was_taken_over_holds_our_layers_and_the_adapters(kernels: SimpleNamespace, tmp_path: Path) -> None:
    model = trained_model()
    precision.take_over(model, PLAN)
    assert model.qkv == "fused"
    assert list(encoder_linears(model)) == [
        f"blocks.{block}.{part}" for block in (0, 1) for part in ("attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2")
    ]
    assert precision.audit(model).by_format == {OURS.name: 8}
    assert lora.adapters(model) == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    plain = VisionTransformer(TINY, num_classes=10, attention="flash", qkv="fused")
    update = 2 * (3 * 64 * 8 + 8 * 64)  # bf16: up [192, 8] and down [8, 64] of each block
    assert precision.weight_bytes(model) == precision.expected_bytes(plain, PLAN) + 2 * update

    written = serialization.save_model(model, PLAN, tmp_path / "m.safetensors", {})
    assert written == serialization.model_bytes(model, PLAN, {})
    assert torch.equal(logits(serialization.load_model(tmp_path / "m.safetensors", attention="flash")), logits(model))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            uniform(NF4(format="nf4", double_quantization=True), "bf16"),
            r"blocks\.0\.attention\.q: Linear4bit; adapters over nf4_fused need",
        ),
        (Plan(compute_dtype="bf16", rules=(Rule(pattern="blocks.0.*", weights=OURS),)), r"blocks\.1\.attention\.q: Linear; adapters"),
    ],
    ids=["double quantization", "a block in 16 bits"],
)
def test_what_cannot_be_taken_over_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        precision.take_over(trained_model(plan), PLAN)


def test_a_model_is_taken_over_once() -> None:
    model = trained_model()
    precision.take_over(model, PLAN)
    with pytest.raises(ConfigError, match=r"blocks\.0: Block; adapters are trained over separate q, k and v"):
        precision.take_over(model, PLAN)
