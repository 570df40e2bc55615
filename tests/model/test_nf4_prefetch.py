"""Which layers are prefetched. That they wait for their weights only a GPU can show: tests/gpu/test_fast_gpu.py."""

import pytest
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.model import precision
from lowbit_vit.model.nf4_prefetch import coded_layers, turns
from lowbit_vit.model.vit import Architecture, encoder_linears
from lowbit_vit.schema.plan import NF4, W8A8, FusedNF4, Plan, Rule, Weights

ARCH = Architecture(name="small", image_size=32, patch_size=16, depth=2, heads=2, width=64, mlp_width=128)
SIXTEEN = FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit")


@pytest.mark.parametrize(
    ("pattern", "weights", "expected"),
    [
        ("blocks.0.*", SIXTEEN, 4),
        ("blocks.?.mlp.*", SIXTEEN, 4),
        ("blocks.0.*", NF4(format="nf4", double_quantization=False), 0),
        ("blocks.0.*", FusedNF4(format="nf4_fused", double_quantization=False, products="int8"), 0),
        ("blocks.0.*", W8A8(format="w8a8"), 0),
    ],
)
def test_only_layers_in_our_nf4_with_16_bit_products_in_the_order_of_the_forward(pattern: str, weights: Weights, expected: int) -> None:
    model = drawn_model(ARCH, attention="math", qkv="fused", std=0.03)
    precision.apply_plan(model, Plan(compute_dtype="bf16", rules=(Rule(pattern=pattern, weights=weights),)))
    layers = coded_layers(encoder_linears(model).values())
    assert len(layers) == expected
    order = list(encoder_linears(model).values())
    assert [order.index(layer) for layer in layers] == sorted(order.index(layer) for layer in layers)


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
    assert [
        [names[layer] for layer in turn] for turn in turns(coded_layers(encoder_linears(model).values()), capacity=capacity)
    ] == expected


def test_fc1_computes_gelu_and_the_mlp_leaves_it_to_it() -> None:
    model = drawn_model(ARCH, attention="math", qkv="fused", std=0.03)
    precision.apply_plan(model, Plan(compute_dtype="bf16", rules=(Rule(pattern="blocks.0.*", weights=SIXTEEN),)))
    found = [
        (getattr(model.get_submodule(f"blocks.{block}.mlp.fc1"), "gelu", None), model.get_submodule(f"blocks.{block}.mlp.activation"))
        for block in (0, 1)
    ]
    assert [(gelu, type(activation)) for gelu, activation in found] == [(True, nn.Identity), (None, nn.GELU)]
