"""Plans become real bitsandbytes layers, and what is counted in the model is what the plan says."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model import precision
from lowbit_vit.model.vit import ARCHITECTURES, Architecture, VisionTransformer, encoder_linears, fuse_qkv
from lowbit_vit.schema.config import QkvLayout
from lowbit_vit.schema.plan import NF4, ComputeDtype, HighPrecision, Int8, Plan, Rule, all_but, only, uniform

HIGH = HighPrecision()
INT8_0 = Int8(format="int8", threshold=0.0)
INT8_6 = Int8(format="int8", threshold=6.0)
SINGLE = NF4(format="nf4", double_quantization=False)
DOUBLE = NF4(format="nf4", double_quantization=True)
FORMATS = pytest.mark.parametrize("weights", [HIGH, INT8_0, INT8_6, SINGLE, DOUBLE], ids=lambda weights: weights.name)
LOW_BIT = pytest.mark.parametrize("weights", [INT8_0, INT8_6, SINGLE, DOUBLE], ids=lambda weights: weights.name)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])

SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=2, width=128, mlp_width=256)
MIB = 2**20


def small_model(*, qkv: QkvLayout = "separate") -> VisionTransformer:
    return drawn_model(SMALL, attention="math", qkv=qkv, std=0.05)


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("qkv", ["separate", "fused"])
@FORMATS
@DTYPES
def test_every_format_runs_in_every_dtype_with_bounded_error(
    weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype, qkv: QkvLayout
) -> None:
    reference = small_model(qkv=qkv)
    model = copy.deepcopy(reference)
    plan = uniform(weights, dtype)
    found = precision.apply_plan(model, plan)
    assert found.by_format == {weights.name: found.linears}
    with torch.inference_mode():
        expected = reference(images())
        logits = model(images(precision.compute_dtype(plan)))
    assert logits.dtype == precision.compute_dtype(plan)
    error = ((logits.float() - expected).norm() / expected.norm()).item()
    bound = {"high": 0.02, "int8-0": 0.05, "int8-6": 0.05, "nf4": 0.3, "nf4-dq": 0.3}[weights.name]
    assert error < bound
    assert (error > 0) == (weights.name != "high" or dtype != "fp32")


def test_the_linears_become_bitsandbytes_own_layers_and_nothing_else_is_quantized() -> None:
    model = small_model()
    plan = Plan(compute_dtype="bf16", rules=(Rule(pattern="*.mlp.*", weights=INT8_6), Rule(pattern="*.attention.q", weights=DOUBLE)))
    precision.apply_plan(model, plan)
    kinds = {name: type(module) for name, module in model.named_modules() if "Linear" in type(module).__name__}
    for name, kind in kinds.items():
        expected = bnb.nn.Linear8bitLt if ".mlp." in name else bnb.nn.Linear4bit if name.endswith("attention.q") else nn.Linear
        assert kind is expected, name
    assert type(model.head) is nn.Linear
    assert model.blocks[0].get_submodule("mlp.fc1").state.threshold == 6.0  # type: ignore[union-attr]
    for tensor in (model.head.weight, model.norm.weight, model.patch_embedding.weight, model.class_token, model.position_embedding):
        assert tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
@FORMATS
def test_conversion_keeps_the_training_mode(weights: HighPrecision | Int8 | NF4, training: bool) -> None:
    model = small_model().train(training)
    precision.apply_plan(model, uniform(weights, "fp32"))
    assert {module.training for module in model.modules()} == {training}


def test_vit_l_16_has_144_encoder_linears() -> None:
    with torch.device("meta"):
        model = VisionTransformer(ARCHITECTURES["vit_l_16"], num_classes=102, attention="math", qkv="separate")
    assert precision.audit(model).by_format == {"high": 144}


@pytest.mark.parametrize(
    ("plan", "by_format"),
    [
        (only([1], SINGLE, "fp32"), {"high": 6, "nf4": 6}),
        (all_but([0], INT8_0, "fp32"), {"high": 6, "int8-0": 6}),
        (
            Plan(compute_dtype="fp32", rules=(Rule(pattern="*", weights=INT8_6), Rule(pattern="*fc2", weights=HIGH))),
            {"int8-6": 10, "high": 2},
        ),
    ],
    ids=["only", "all_but", "fc2 spared"],
)
def test_mixed_plans_are_counted_layer_by_layer(plan: Plan, by_format: dict[str, int]) -> None:
    assert precision.apply_plan(small_model(), plan).by_format == by_format


def test_a_pattern_that_matches_nothing_is_an_error_and_the_model_is_as_it_was() -> None:
    model = small_model()
    with pytest.raises(ConfigError, match=r"blocks\.7"):
        precision.apply_plan(model, only([7], SINGLE, "fp16"))
    assert precision.audit(model).by_format == {"high": 12}
    assert model.head.weight.dtype == torch.float32


def test_a_converted_model_cannot_be_converted_again() -> None:
    model = small_model()
    precision.apply_plan(model, uniform(SINGLE, "fp32"))
    with pytest.raises(ConfigError, match=r"blocks\.0\.attention\.q: Linear4bit in uint8"):
        precision.apply_plan(model, uniform(INT8_0, "fp32"))


def test_codes_come_from_fp32_weights_so_a_16_bit_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear in float16"):
        precision.apply_plan(small_model().half(), uniform(SINGLE, "fp16"))


def test_nf4_blocks_must_not_straddle_rows() -> None:
    with pytest.raises(ConfigError, match="in_features 96"):
        precision.convert_linear(nn.Linear(96, 64), SINGLE, torch.float32, name="fc1")


def test_the_audit_refuses_a_layer_that_no_plan_makes() -> None:
    model = small_model()
    model.blocks[0].mlp.fc1 = nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(LowbitVitError, match=r"blocks\.0\.mlp\.fc1: Identity"):
        precision.audit(model)


@LOW_BIT
def test_codes_do_not_depend_on_the_compute_dtype(weights: Int8 | NF4) -> None:
    by_dtype = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        source = small_model().blocks[0].get_submodule("attention.q")
        by_dtype.append(precision.convert_linear(source, weights, dtype, name="q").state_dict()["weight"])
    assert torch.equal(by_dtype[0], by_dtype[1])
    assert torch.equal(by_dtype[0], by_dtype[2])


@pytest.mark.parametrize("weights", [INT8_0, SINGLE], ids=lambda weights: weights.name)
def test_codes_and_scales_of_fused_qkv_equal_the_separate_ones(weights: Int8 | NF4) -> None:
    separate, fused = small_model(), small_model(qkv="fused")
    fused.load_state_dict(fuse_qkv(separate.state_dict()))
    for model in (separate, fused):
        precision.apply_plan(model, uniform(weights, "fp32"))
    parts, whole = separate.state_dict(), fused.state_dict()
    for suffix in ("weight", "SCB") if isinstance(weights, Int8) else ("weight", "weight.absmax"):
        for block in ("blocks.0", "blocks.1"):
            joined = torch.cat([parts[f"{block}.attention.{name}.{suffix}"] for name in "qkv"])
            assert torch.equal(joined, whole[f"{block}.attention.qkv.{suffix}"])
    with torch.inference_mode():
        assert torch.allclose(separate(images()), fused(images()), atol=1e-5)


@FORMATS
@DTYPES
def test_a_block_converted_for_a_scan_equals_the_applied_one_and_leaves_its_source_alone(
    weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype
) -> None:
    source, applied = small_model(), small_model()
    before = copy.deepcopy(source.state_dict())
    precision.apply_plan(applied, uniform(weights, dtype))
    formats = {name.removeprefix("blocks.1."): weights for name in encoder_linears(source) if name.startswith("blocks.1.")}
    block = precision.convert_block(source.blocks[1], formats, precision.compute_dtype(uniform(weights, dtype)))
    expected = applied.blocks[1].state_dict()
    assert {name: tensor.dtype for name, tensor in block.state_dict().items()} == {name: t.dtype for name, t in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in block.state_dict().items())
    tokens = torch.randn(2, 17, 128).to(precision.compute_dtype(uniform(weights, dtype)))
    with torch.inference_mode():
        assert torch.equal(block(tokens), applied.blocks[1](tokens))
    assert {id(p) for p in block.parameters()}.isdisjoint(id(p) for p in source.parameters())
    assert {p.data_ptr() for p in block.parameters()}.isdisjoint(p.data_ptr() for p in source.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_a_block_needs_a_format_for_each_of_its_linears() -> None:
    with pytest.raises(ConfigError, match=r"attention\.q"):
        precision.convert_block(small_model().blocks[0], {"attention.q": SINGLE}, torch.float32)


@FORMATS
@DTYPES
def test_a_forward_changes_nothing_in_the_model(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype) -> None:
    model = small_model()
    plan = uniform(weights, dtype)
    precision.apply_plan(model, plan)
    before = copy.deepcopy(model.state_dict())
    size = precision.weight_bytes(model)
    with torch.inference_mode():
        first = model(images(precision.compute_dtype(plan)))
        assert torch.equal(first, model(images(precision.compute_dtype(plan))))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype for name, tensor in after.items())
    assert precision.weight_bytes(model) == size


def test_int8_on_outliers_is_closer_with_the_threshold_than_without() -> None:
    linear = nn.Linear(128, 64)
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= 40
    with torch.inference_mode():
        expected = linear(x)
        errors = [
            (precision.convert_linear(linear, weights, torch.float32, name="x").eval()(x) - expected).norm().item()
            for weights in (INT8_0, INT8_6)
        ]
    assert errors[1] < errors[0] / 2


def test_bytes_of_vit_l_16_are_those_worked_out_by_hand() -> None:
    with torch.device("meta"):
        model = VisionTransformer(ARCHITECTURES["vit_l_16"], num_classes=102, attention="math", qkv="separate")
    cells: list[tuple[HighPrecision | Int8 | NF4, ComputeDtype]] = [
        (HIGH, "fp32"),
        (HIGH, "fp16"),
        (INT8_6, "fp16"),
        (SINGLE, "fp16"),
        (DOUBLE, "fp16"),
    ]
    sizes = {(weights.name, dtype): precision.expected_bytes(model, uniform(weights, dtype)) / MIB for weights, dtype in cells}
    assert sizes["high", "fp32"] == pytest.approx(1157.40, abs=0.01)
    assert sizes["high", "fp16"] == pytest.approx(578.70, abs=0.01)
    assert sizes["int8-6", "fp16"] == pytest.approx(290.70 + 0.84, abs=0.01)
    assert sizes["nf4", "fp16"] == pytest.approx(146.70 + 18.0, abs=0.01)
    assert sizes["nf4-dq", "fp16"] == pytest.approx(151.3, abs=0.05)


@pytest.mark.parametrize("qkv", ["separate", "fused"])
@FORMATS
@DTYPES
def test_bytes_held_are_the_expected_ones(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype, qkv: QkvLayout) -> None:
    model = small_model(qkv=qkv)
    plan = uniform(weights, dtype)
    expected = precision.expected_bytes(model, plan)
    precision.apply_plan(model, plan)
    assert precision.weight_bytes(model) == expected


def test_the_cpu_arithmetic_does_not_depend_on_avx512_bf16() -> None:
    model = small_model()
    precision.apply_plan(model, uniform(SINGLE, "fp32"))
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", None) for layer in encoder_linears(model).values())


@pytest.mark.parametrize(("dtype", "allowed"), [("tf32", True), ("fp32", False), ("fp16", False)])
def test_tf32_is_on_inside_a_tf32_plan_only(dtype: ComputeDtype, allowed: bool) -> None:
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    with precision.matmul_mode(Plan(compute_dtype=dtype)):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
        # What inductor and CUDA's own code read.
        assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if allowed else "ieee")
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
