"""Each kernel compiles for an A100 and an H100 where there is neither: Triton's own ptxas makes the code. Only a card can run it."""

from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.kernels import nf4, product, quantize, tiles

TARGETS = pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that one program may take


def compiled(kernel: Any, *, capability: int, constants: dict[str, Any], types: dict[str, str], warps: int = 4, stages: int = 3) -> Any:
    """As for pointers and sizes that are multiples of 16, which those of every ViT are but for the rows."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and name not in ("rows", "eps")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def product_constants(tile: tiles.Tile, *, grouped: bool, quantize: bool) -> dict[str, Any]:
    return {
        "GROUPED": grouped, "GELU": quantize, "RESIDUAL": not quantize, "QUANTIZE": quantize, "EVEN": True, "ROWS": tile.rows,
        "COLUMNS": tile.columns, "DEPTH": tile.depth, "STRIPE": 8, "GROUP": 128, "LARGEST": 127.0,
    }  # fmt: skip


def product_types(codes: str, *, quantize: bool) -> dict[str, str]:
    sixteen = "*bf16"
    return {
        "a_ptr": codes, "w_ptr": codes, "a_scales_ptr": "*fp32", "w_scales_ptr": "*fp32", "bias_ptr": sixteen, "residual_ptr": sixteen,
        "out_ptr": codes if quantize else sixteen, "out_scales_ptr": "*fp32",
    }  # fmt: skip


@TARGETS
@pytest.mark.parametrize("tile", tiles.EIGHT_BIT, ids=str)
def test_every_tile_of_the_int8_product_fits_the_card(capability: int, tile: tiles.Tile) -> None:
    made = compiled(
        product.product_kernel,
        capability=capability,
        constants=product_constants(tile, grouped=False, quantize=False),
        types=product_types("*i8", quantize=False),
        warps=tile.warps,
        stages=tile.stages,
    )
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED_BYTES[capability]
    assert ("wgmma" if capability == 90 and tile.rows >= 64 else "mma.sync") in made.asm["ptx"]  # the tensor cores' own instruction


@pytest.mark.parametrize(
    ("capability", "codes"), [(80, "*i8"), (90, "*i8"), (90, "*fp8e4nv")], ids=["sm_80-int8", "sm_90-int8", "sm_90-fp8"]
)
@pytest.mark.parametrize(("grouped", "quantize"), [(False, False), (False, True), (True, False)], ids=["out", "fc1", "fc2"])
@pytest.mark.parametrize("tile", [tiles.EIGHT_BIT[0]], ids=str)
def test_every_epilogue_compiles(capability: int, codes: str, grouped: bool, quantize: bool, tile: tiles.Tile) -> None:
    made = compiled(
        product.product_kernel,
        capability=capability,
        constants=product_constants(tile, grouped=grouped, quantize=quantize),
        types=product_types(codes, quantize=quantize),
        warps=tile.warps,
        stages=tile.stages,
    )
    assert made.metadata.shared <= SHARED_BYTES[capability]
    assert "mma" in made.asm["ptx"]


@pytest.mark.parametrize(("capability", "codes"), [(80, "*i8"), (90, "*i8"), (90, "*fp8e4nv")])
@pytest.mark.parametrize("norm", [False, True])
def test_the_quantizing_pass_compiles(capability: int, codes: str, norm: bool) -> None:
    types = dict.fromkeys(("x_ptr", "gain_ptr", "shift_ptr"), "*fp16") | {"codes_ptr": codes, "scales_ptr": "*fp32", "eps": "fp32"}
    made = compiled(quantize.quantize_kernel, capability=capability, constants={"NORM": norm, "LARGEST": 127.0, "WIDTH": 1024}, types=types)
    assert "ld.global.v4" in made.asm["ptx"]  # whole vectors


NF4_TYPES = {
    "codes_ptr": "*u8", "levels_ptr": "*fp32", "nested_levels_ptr": "*fp32", "nested_scales_ptr": "*fp32", "nested_mean_ptr": "*fp32",
    "row_scales_ptr": "*fp32",
}  # fmt: skip


@pytest.mark.parametrize(("capability", "out"), [(80, "*bf16"), (80, "*i8"), (90, "*bf16"), (90, "*fp8e4nv")])
@pytest.mark.parametrize("nested", [False, True])
def test_the_nf4_decoding_compiles(capability: int, out: str, nested: bool) -> None:
    constants = {"NESTED": nested, "NESTED_BLOCK": 256, "TO_CODES": out != "*bf16", "LARGEST": 127.0, "BYTES": 1024}
    types = NF4_TYPES | {"absmax_ptr": "*u8" if nested else "*fp32", "out_ptr": out}
    assert compiled(nf4.decode_kernel, capability=capability, constants=constants, types=types).asm["cubin"]


def test_without_a_card_the_kernels_say_what_they_need() -> None:
    with pytest.raises(Unavailable, match="these kernels need CUDA, the tensors are on cpu"):
        quantize.quantize_rows(torch.ones(2, 64).half(), codes=torch.int8)
