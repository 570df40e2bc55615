"""Fused blocks in Triton's interpreter: their numbers are those of the quantization spelled out in PyTorch, in fp32."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated_block import emulated, restored_weights
from lowbit_vit.errors import ConfigError
from lowbit_vit.model import fused, nf4_linear, precision, serialization
from lowbit_vit.model.block_spec import Affine, BlockSpec, Norm, Rotation, SpecBlock
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.config import AttentionName
from lowbit_vit.schema.plan import FP8, NF4, W8A8, Fused, FusedNF4, HighPrecision, Plan, Rule, uniform

TINY = Architecture(name="tiny", image_size=8, patch_size=4, depth=2, heads=2, width=64, mlp_width=192)
INT8, E4M3 = W8A8(format="w8a8"), FP8(format="fp8")
OURS: list[Fused] = [
    INT8,
    E4M3,
    *(FusedNF4(format="nf4_fused", double_quantization=dq, products=p) for dq in (False, True) for p in ("16-bit", "int8", "fp8")),
]
FORMATS = pytest.mark.parametrize("weights", OURS, ids=lambda weights: weights.name)


def tiny_model(*, qkv: str = "fused", sizes: Architecture = TINY, attention: AttentionName = "flash") -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(sizes, num_classes=10, attention=attention, qkv=qkv)  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("weights", [w for w in OURS if w.whole_blocks], ids=lambda weights: weights.name)
def test_a_fused_block_computes_what_its_quantization_says(kernels: SimpleNamespace, weights: Fused) -> None:
    model = tiny_model()
    precision.apply_plan(model, uniform(weights, "bf16"))
    block = model.blocks[0]
    assert isinstance(block, fused.FusedBlock)
    weights_of, kind = restored_weights(block)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.inference_mode():
        found = block(x).float()
        expected, exact = (emulated(block, x.float(), weights_of, kind, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    # The control: what bf16 alone moves in the same arithmetic. (A hair's difference may make a code one larger or smaller.)
    assert (found - expected).norm() <= (expected - exact).norm()
    high = tiny_model()
    precision.apply_plan(high, Plan(compute_dtype="bf16"))
    with torch.inference_mode():
        away = ((found - high.blocks[0](x).float()).norm() / (exact - x.float()).norm()).item()
    assert 0 < away < 0.25


@pytest.mark.parametrize("weights", [E4M3, OURS[-1], INT8], ids=lambda weights: weights.name)
def test_a_block_with_attention_of_our_own_does_so_too(kernels: SimpleNamespace, weights: Fused) -> None:
    model = tiny_model(sizes=dataclasses.replace(TINY, width=128), attention="coded")
    precision.apply_plan(model, uniform(weights, "bf16"))
    block: Any = model.blocks[0]
    weights_of, kind = restored_weights(block)
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.inference_mode():
        found = block(x).float()
        expected, exact = (emulated(block, x.float(), weights_of, kind, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
        block.attention.kernel = "flash"
        by_rows = block(x).float()
    assert (found - expected).norm() <= (expected - exact).norm()
    assert (found - by_rows).norm() < 0.05 * (exact - x.float()).norm()
    assert torch.equal(found, by_rows) == (weights is INT8)  # of so few numbers in 16 bits; codes are by another scale


@pytest.mark.parametrize("rotation", ["interleaved", "half"])
@pytest.mark.parametrize("weights", [INT8, E4M3], ids=lambda weights: weights.name)
def test_a_fused_block_with_rotary_positions_does_so_too(kernels: SimpleNamespace, weights: Fused, rotation: Rotation) -> None:
    drawn = torch.Generator().manual_seed(3)

    def affine(rows: int, columns: int) -> Affine:
        return Affine(torch.randn(rows, columns, generator=drawn) / 8, torch.randn(rows, generator=drawn) / 8)

    norms = [Norm(64, 1e-6, torch.rand(64, generator=drawn), None) for _ in range(2)]
    spec = BlockSpec(2, norms[0], affine(192, 64), affine(64, 64), norms[1], affine(128, 64), affine(64, 128), rotation=rotation, prefix=2)
    made = {n: precision.convert_linear(linear, weights, torch.bfloat16, name=n) for n, linear in spec.linears(multiple=16, fold=True)}
    block = fused.FusedBlock(SpecBlock(spec, made, kernel="flash", dtype=torch.bfloat16, fold=True)).eval()
    x, tables = torch.randn(2, 7, 64, generator=drawn).bfloat16(), torch.randn(5, 64, generator=drawn)
    weights_of, kind = restored_weights(block)
    with torch.inference_mode():
        found, still = block(x, tables).float(), block(x, None).float()
        expected, exact = (emulated(block, x.float(), weights_of, kind, dtype=d, tables=tables) for d in (torch.bfloat16, torch.float32))
    assert (found - expected).norm() <= (expected - exact).norm()
    assert (still - expected).norm() > 3 * (expected - exact).norm()  # rotation is not nothing here


@FORMATS
def test_a_whole_model_runs_near_the_one_in_high_precision(kernels: SimpleNamespace, weights: Fused) -> None:
    high, model = tiny_model(), tiny_model()
    precision.apply_plan(high, Plan(compute_dtype="bf16"))
    found = precision.apply_plan(model, uniform(weights, "bf16"))
    assert found.by_format == {weights.name: 8}
    before = copy.deepcopy(model.state_dict())
    logits, expected = prepare(model, "eager", images())(images()).float(), prepare(high, "eager", images())(images()).float()
    assert ((logits - expected).norm() / expected.norm()).item() < 0.3
    assert torch.equal(logits, prepare(model, "eager", images())(images()).float())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_in_16_bits_is_bitsandbytes_nf4(kernels: SimpleNamespace, nested: bool) -> None:
    theirs, ours = tiny_model(), tiny_model()
    precision.apply_plan(theirs, uniform(NF4(format="nf4", double_quantization=nested), "bf16"))
    precision.apply_plan(ours, uniform(FusedNF4(format="nf4_fused", double_quantization=nested, products="16-bit"), "bf16"))
    expected, logits = prepare(theirs, "eager", images())(images()), prepare(ours, "eager", images())(images())
    # Other orders of summing: what bf16 alone moves.
    assert ((logits.float() - expected.float()).norm() / expected.float().norm()).item() < 0.02


def test_layers_can_be_made_of_bitsandbytes_codes(kernels: SimpleNamespace) -> None:
    linear = nn.Linear(128, 40)
    theirs: Any = precision.convert_linear(linear, NF4(format="nf4", double_quantization=True), torch.bfloat16, name="x")
    ours = nf4_linear.from_bitsandbytes(theirs.weight.data, theirs.weight.quant_state, theirs.bias.data, products="16-bit")
    x = torch.randn(3, 5, 128).bfloat16()
    expected = nn.functional.linear(x.float(), precision.restored_weight(theirs).bfloat16().float(), theirs.bias.float())
    with torch.inference_mode():
        assert torch.allclose(ours(x).float(), expected, rtol=2**-7, atol=1e-3)


@FORMATS
def test_bytes_held_are_the_expected_ones_and_a_saved_model_is_the_same(weights: Fused, tmp_path: Any) -> None:
    model, plan = tiny_model(), uniform(weights, "bf16")
    expected = precision.expected_bytes(model, plan)
    precision.apply_plan(model, plan)
    assert precision.weight_bytes(model) == expected
    written = serialization.save_model(model, plan, tmp_path / "m.safetensors", {})
    assert written == serialization.model_bytes(model, plan, {})
    read = serialization.load_model(tmp_path / "m.safetensors", attention="flash")
    assert [type(block) for block in read.blocks] == [type(block) for block in model.blocks]
    state = model.state_dict()
    assert list(read.state_dict()) == list(state)
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor.float(), state[name].float())
    assert precision.audit(read).by_format == {weights.name: 8}


@pytest.mark.parametrize("weights", [INT8, OURS[2]], ids=lambda weights: weights.name)
def test_separate_projections_are_refused(weights: Fused) -> None:
    with pytest.raises(ConfigError, match="set qkv: fused"):
        precision.apply_plan(tiny_model(qkv="separate"), uniform(weights, "bf16"))


def test_a_block_in_eight_bits_is_whole_and_others_may_be_high() -> None:
    part = Plan(compute_dtype="bf16", rules=(Rule(pattern="blocks.0.mlp.*", weights=INT8),))
    with pytest.raises(ConfigError, match=r"blocks\.0: high, w8a8 in one block"):
        precision.apply_plan(tiny_model(), part)
    whole = Plan(compute_dtype="bf16", rules=(Rule(pattern="*", weights=INT8), Rule(pattern="blocks.1.*", weights=HighPrecision())))
    model = tiny_model()
    assert precision.apply_plan(model, whole).by_format == {"w8a8": 4, "high": 4}
    assert [isinstance(block, fused.FusedBlock) for block in model.blocks] == [True, False]


def test_a_weight_that_is_not_finite_is_refused() -> None:
    model = tiny_model()
    layer: Any = encoder_linears(model)["blocks.1.mlp.fc1"]
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ConfigError, match=r"blocks\.1\.mlp\.fc1: a weight is NaN or infinite"):
        precision.apply_plan(model, uniform(INT8, "bf16"))
