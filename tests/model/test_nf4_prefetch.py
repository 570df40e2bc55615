"""Which layers are prefetched. That they wait for their weights only a GPU can show: tests/gpu/test_fast_gpu.py."""

from dataclasses import replace

import pytest
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.model import precision
from lowbit_vit.model.nf4_linear import FusedNF4Linear
from lowbit_vit.model.nf4_prefetch import turns
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import FusedNF4, Plan, Rule

ARCH = Architecture(name="small", image_size=32, patch_size=16, depth=2, heads=2, width=64, mlp_width=128)
SIXTEEN = FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit")


def fused_layers(model: VisionTransformer) -> list[FusedNF4Linear]:
    return [layer for layer in encoder_linears(model).values() if isinstance(layer, FusedNF4Linear)]


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (3 * 64 * 64, [["qkv"], ["out", "fc1"], ["fc2"]] * 2),  # 12,288 weights, 4,096, 8,192 and 8,192
        (4 * 64 * 64, [["qkv", "out"], ["fc1", "fc2"]] * 2),
        (9 * 64 * 64, [["qkv", "out", "fc1", "fc2"]] * 2),
    ],
)
def test_a_turn_holds_as_many_layers_as_fit(capacity: int, expected: list[list[str]]) -> None:
    model = drawn_model(ARCH, attention="math", qkv="fused", std=0.03)
    precision.apply_plan(model, Plan(compute_dtype="bf16", rules=(Rule(pattern="*", weights=SIXTEEN),)))
    names = {layer: name.rpartition(".")[2] for name, layer in encoder_linears(model).items()}
    assert [[names[layer] for layer in turn] for turn in turns(fused_layers(model), capacity=capacity)] == expected


def test_a_turn_holds_layers_of_one_kind() -> None:
    model = drawn_model(replace(ARCH, depth=3), attention="math", qkv="fused", std=0.03)
    kinds = [("int8", False), ("fp8", False), ("fp8", True)]
    rules = [
        Rule(pattern=f"blocks.{place}.*", weights=FusedNF4(format="nf4_fused", double_quantization=nested, products=products))
        for place, (products, nested) in enumerate(kinds)
    ]
    precision.apply_plan(model, Plan(compute_dtype="bf16", rules=tuple(rules)))
    found = turns(fused_layers(model), capacity=1 << 20)
    assert [{(layer.products, layer.double_quantization) for layer in turn} for turn in found] == [{kind} for kind in kinds]


def test_fc1_computes_gelu_and_the_mlp_leaves_it_to_it() -> None:
    model = drawn_model(ARCH, attention="math", qkv="fused", std=0.03)
    precision.apply_plan(model, Plan(compute_dtype="bf16", rules=(Rule(pattern="blocks.0.*", weights=SIXTEEN),)))
    found = [
        (getattr(model.get_submodule(f"blocks.{block}.mlp.fc1"), "gelu", None), model.get_submodule(f"blocks.{block}.mlp.activation"))
        for block in (0, 1)
    ]
    assert [(gelu, type(activation)) for gelu, activation in found] == [(True, nn.Identity), (None, nn.GELU)]
