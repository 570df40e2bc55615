"""Each kernel compiles for an A100 and an H100 where there is neither: Triton's own ptxas makes the code. Only a GPU can run it."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.kernels import attention, gelu, gemm, nf4, quantize, rotary, wgmma

TARGETS = pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that one program may take


def compiled(kernel: Any, *, capability: int, constants: dict[str, Any], types: dict[str, str], warps: int = 4, stages: int = 3) -> Any:
    """As for pointers and sizes that are multiples of 16, which those of every ViT are but for the rows."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and name not in ("M", "rows", "eps")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def gemm_constants(tile: gemm.Tile, *, residual: bool, gelu_codes: bool, early: bool) -> dict[str, Any]:
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": 8, "SPLIT_K": tile.split_k}
    parts = {"RESIDUAL": residual, "GELU_CODES": gelu_codes, "EVEN_K": True, "PDL": early, "EARLY": early}
    return parts | sizes


def gemm_types(codes: str, *, gelu_codes: bool) -> dict[str, str]:
    own = {"sums_ptr": "*i32" if codes == "*i8" else "*fp32", "arrivals_ptr": "*i32"}
    sixteen = dict.fromkeys(("bias_ptr", "residual_ptr", "out_ptr"), "*bf16")
    scales = dict.fromkeys(("a_scales_ptr", "w_scales_ptr", "out_scales_ptr"), "*fp32")
    return {"a_ptr": codes, "w_ptr": codes, **sixteen, **scales, **own} | ({"out_ptr": codes} if gelu_codes else {})


def spilled_bytes(made: Any, capability: int) -> int:
    """What a thread keeps in memory because its registers are full, as ptxas says of the same code."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(made.asm["ptx"])
        arch = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={arch}", source, "-o", Path(folder) / "kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))


def waits_before_it_reads(made: Any, *, early: bool = True) -> bool:
    """Whether a kernel touches global memory only after its wait, but for the hint that brings weights nearer.

    Args:
        made: the kernel.
        early: whether it lets the next one start before that; else it never says so.
    """
    touching = r"griddepcontrol\.\w+|(?:ld|st|atom)\.(?:relaxed\.|acquire\.|release\.)?global|cp\.async\.(?:cg|ca|bulk)[\w.]*"
    order = [found for found in re.findall(touching, made.asm["ptx"]) if "prefetch" not in found]
    words = ["griddepcontrol.launch_dependents", "griddepcontrol.wait"][0 if early else 1 :]
    rest = order[len(words) :]
    return order[: len(words)] == words and bool(rest) and not any(found.startswith("griddepcontrol") for found in rest)


CODES = pytest.mark.parametrize(
    ("capability", "codes"), [(80, "*i8"), (90, "*i8"), (90, "*fp8e4nv")], ids=["sm_80-int8", "sm_90-int8", "sm_90-fp8"]
)


# Bias alone is the residual's epilogue without its loads. GELU's codes are e4m3's alone.
FOLLOWS = [(80, "*i8", "residual"), (90, "*i8", "residual"), (90, "*fp8e4nv", "residual"), (90, "*fp8e4nv", "GELU's codes")]


@pytest.mark.parametrize(("capability", "codes", "follows"), FOLLOWS)
@pytest.mark.parametrize("tile", [*gemm.TILES, gemm.SHARED_TILE, gemm.SPLIT_TILE], ids=str)
def test_every_tile_of_the_gemm_fits_the_gpu(capability: int, codes: str, tile: gemm.Tile, follows: str) -> None:
    gelu_codes = follows == "GELU's codes"
    made = compiled(
        gemm.eight_bit_gemm_kernel,
        capability=capability,
        constants=gemm_constants(tile, residual=follows == "residual", gelu_codes=gelu_codes, early=capability == 90),
        types=gemm_types(codes, gelu_codes=gelu_codes),
        warps=tile.num_warps,
        stages=tile.num_stages,
    )
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED_BYTES[capability]
    assert ("wgmma" if capability == 90 and tile.block_m >= 64 else "mma.sync") in made.asm["ptx"]  # the tensor cores' own instruction
    if capability == 90:
        assert spilled_bytes(made, capability) <= 32  # of a thread: more than some words would be read and written all the time
        assert waits_before_it_reads(made)


TMA_TILES = [("i8", "residual", gemm.TMA_TILE)]
TMA_TILES += [("fp8e4nv", follows, tile) for follows in ("residual", "GELU's codes") for tile in (gemm.TMA_TILE, gemm.TALL_TILE)]


@pytest.mark.parametrize(("codes", "follows", "tile"), TMA_TILES, ids=str)
def test_the_tiles_that_tma_moves_fit_twice_and_are_moved_so(codes: str, follows: str, tile: gemm.Tile) -> None:
    gelu_codes = follows == "GELU's codes"
    types = {
        "w_tiles": f"tensordesc<{codes}[{tile.block_n}, {tile.block_k}]>",
        **{
            f"{name}_{place}": f"tensordesc<{kind}[{rows}, {columns}]>"
            for place, rows in (("tiles", tile.block_m), ("below", tile.below_m or tile.block_m))
            for name, kind, columns in (
                ("a", codes, tile.block_k),
                ("residual", "bf16", tile.block_n),
                ("out", codes if gelu_codes else "bf16", tile.block_n),
            )
        },
        "bias_ptr": "*bf16",
        **dict.fromkeys(("a_scales_ptr", "w_scales_ptr", "out_scales_ptr"), "*fp32"),
    }
    constants = {
        "INTEGER": codes == "i8",
        "RESIDUAL": follows == "residual",
        "GELU_CODES": gelu_codes,
        "PDL": True,
        "EARLY": False,
        "GROUP_M": 8,
    }
    sizes = {"BLOCK_M": tile.block_m, "BELOW_M": tile.below_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "K": 1024}
    made = compiled(
        gemm.eight_bit_gemm_tma_kernel,
        capability=90,
        constants=constants | sizes,
        types=types,
        warps=tile.num_warps,
        stages=tile.num_stages,
    )
    assert 2 * made.metadata.shared <= SHARED_BYTES[90]
    assert "wgmma" in made.asm["ptx"]
    assert "cp.async.bulk.tensor" in made.asm["ptx"]
    assert not re.search(r"st\.global", made.asm["ptx"])
    assert waits_before_it_reads(made, early=False)
    assert spilled_bytes(made, 90) <= 48


@TARGETS
def test_the_pass_of_gelu_compiles(capability: int) -> None:
    made = compiled(gelu.gelu_kernel, capability=capability, constants={"VALUES": 1024}, types={"x_ptr": "*bf16"})
    assert "ld.global.v4" in made.asm["ptx"]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize(("codes", "follows"), [("i8", "residual"), ("fp8e4nv", "residual"), ("fp8e4nv", "GELU's codes")])
@pytest.mark.parametrize("tile", [gemm.TMA_TILE, gemm.TALL_TILE], ids=str)
def test_the_tiles_whose_waits_are_written_out_fit_twice(codes: str, follows: str, tile: gemm.Tile) -> None:
    kinds = {"i8": gl.int8, "fp8e4nv": gl.float8e4nv, "bf16": gl.bfloat16}
    gelu_codes, low = follows == "GELU's codes", tile.below_m or tile.block_m

    def moved(kind: str, rows: int, columns: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kinds[kind])
        return f"tensordesc<{kind}[{rows},{columns}],{layout!r}>"

    types = {"w_tiles": moved(codes, tile.block_n, tile.block_k), "bias_ptr": "*bf16"}
    for name, rows in (("tiles", tile.block_m), ("below", low)):
        types |= {f"a_{name}": moved(codes, rows, tile.block_k), f"residual_{name}": moved("bf16", rows, tile.block_n)}
        types[f"out_{name}"] = moved(codes if gelu_codes else "bf16", rows, tile.block_n)
    types |= dict.fromkeys(("a_scales_ptr", "w_scales_ptr", "out_scales_ptr"), "*fp32")
    constants = {"K": 4096, "INTEGER": codes == "i8", "RESIDUAL": follows == "residual", "GELU_CODES": gelu_codes, "PDL": True}
    constants |= {"BELOW_M": tile.below_m, "GROUP_M": 8, "STAGES": tile.num_stages, "num_warps": tile.num_warps}
    kernel = wgmma.eight_bit_gemm_wgmma_kernel
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name == "N"
    }
    source = GluonASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": tile.num_warps, "enable_fp_fusion": True})
    assert 2 * made.metadata.shared <= SHARED_BYTES[90]
    ptx = made.asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert f"wgmma.wait_group.sync.aligned {2 if tile.below_m else 1}" in ptx  # products go on while the next tiles are asked for
    assert waits_before_it_reads(made, early=False)
    assert spilled_bytes(made, 90) <= 96


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("shares", ["a tile a program", "all in one"])
@pytest.mark.parametrize("tokens", [50, 197, 257])
def test_attention_fits_a_multiprocessor_twice(tokens: int, shares: str, coded: bool) -> None:
    taken = attention.shares_of(tokens=tokens, heads=16 if shares == "a tile a program" else 512, multiprocessors=132)
    pieces = dict(zip(("K0", "K1", "K2"), attention.pieces_of(tokens), strict=True))
    sizes = {"TOKENS": tokens, "HEADS": 16, "SLOTS": triton.next_power_of_2(tokens), "TILES": taken.tiles, "ROWS": 64, "TAIL": taken.tail}
    made = compiled(
        attention.attend_whole_kernel,
        capability=90,
        constants=sizes | pieces | {"CODED": coded, "PDL": True, "EARLY": True, "D": 64},
        types={"qkv_ptr": "*bf16", "out_ptr": "*fp8e4nv" if coded else "*bf16"} | dict.fromkeys(("bounds_ptr", "scales_ptr"), "*fp32"),
        stages=2,
    )
    assert 2 * made.metadata.shared <= SHARED_BYTES[90]
    assert "wgmma" in made.asm["ptx"]
    assert waits_before_it_reads(made)
    assert spilled_bytes(made, 90) <= 32


@TARGETS
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])
def test_the_rotation_compiles(capability: int, interleaved: bool) -> None:
    constants = {"INTERLEAVED": interleaved, "PAIRS": 32, "PDL": capability == 90, "EARLY": capability == 90, "BLOCK": 512}
    types = {"qkv_ptr": "*bf16", "tables_ptr": "*fp32"}
    made = compiled(rotary.rotate_kernel, capability=capability, constants=constants, types=types)
    assert capability == 80 or waits_before_it_reads(made)
    assert interleaved or re.search(r"ld\.global\.(v2|v4|b64|b32)", made.asm["ptx"])  # several columns at once


@CODES
@pytest.mark.parametrize(("before", "rows", "width"), [(None, 1, 1024), ("NORM", 1, 1024), ("NORM", 2, 1024), ("GELU", 1, 4096)])
def test_the_quantizing_pass_compiles(capability: int, codes: str, before: str | None, rows: int, width: int) -> None:
    types = dict.fromkeys(("x_ptr", "gain_ptr", "shift_ptr"), "*fp16") | {"codes_ptr": codes, "eps": "fp32"}
    types |= dict.fromkeys(("scales_ptr", "reach_ptr", "next_scales_ptr"), "*fp32")
    constants = {"NORM": before == "NORM", "GELU": before == "GELU", "NEXT": before == "NORM", "LARGEST": 127.0, "WIDTH": width}
    early = capability == 90
    constants |= {"PDL": early, "EARLY": early, "ROWS": rows}
    warps = 2 if before == "NORM" else width // 1024
    made = compiled(quantize.quantize_kernel, capability=capability, constants=constants, types=types, warps=warps)
    assert capability == 80 or waits_before_it_reads(made)
    assert "ld.global.v4" in made.asm["ptx"]  # whole vectors


NF4_TYPES = {
    "codes_ptr": "*u8", "levels_ptr": "*fp32", "nested_levels_ptr": "*fp32", "nested_scales_ptr": "*fp32", "nested_mean_ptr": "*fp32",
    "row_scales_ptr": "*fp32",
}  # fmt: skip


@pytest.mark.parametrize(("capability", "out"), [(80, "*bf16"), (80, "*i8"), (90, "*bf16"), (90, "*fp8e4nv")])
@pytest.mark.parametrize("nested", [False, True])
def test_the_nf4_decoding_compiles(capability: int, out: str, nested: bool) -> None:
    constants = {"NESTED": nested, "NESTED_BLOCK": 256, "TO_CODES": out != "*bf16", "BLOCKS": 64, "BLOCK": 64}
    types = NF4_TYPES | {"absmax_ptr": "*u8" if nested else "*fp32", "out_ptr": out}
    assert compiled(nf4.decode_kernel, capability=capability, constants=constants, types=types).asm["cubin"]


@pytest.mark.parametrize(("capability", "out"), [(80, "*bf16"), (80, "*i8"), (90, "*bf16"), (90, "*fp8e4nv")])
@pytest.mark.parametrize("nested", [False, True])
def test_the_nf4_decoding_of_layers_together_compiles(capability: int, out: str, nested: bool) -> None:
    places = range(nf4.TOGETHER)
    types = {f"{name}_{place}": kind for name, kind in (("codes", "*u8"), ("absmax", "*u8" if nested else "*fp32")) for place in places}
    types |= {f"{name}_{place}": "*fp32" for name in ("nested_scales", "nested_mean", "row_scales") for place in places}
    types |= dict.fromkeys(("levels_ptr", "nested_levels_ptr"), "*fp32") | {"out_ptr": out}
    constants = {"NESTED": nested, "NESTED_BLOCK": 256, "TO_CODES": out != "*bf16", "BLOCKS": 32, "BLOCK": 64}
    made = compiled(nf4.decode_together_kernel, capability=capability, constants=constants, types=types)
    assert re.search(r"st\.global\.v[24]", made.asm["ptx"])  # whole vectors


@pytest.mark.parametrize(("capability", "out"), [(80, "*bf16"), (90, "*bf16"), (90, "*fp16")])
@pytest.mark.parametrize("rank", [16, 32])
def test_the_nf4_decoding_with_adapters_compiles(capability: int, out: str, rank: int) -> None:
    constants = {"NESTED": False, "NESTED_BLOCK": 256, "RANK": rank, "ROWS": 64, "BLOCK": 64}
    types = NF4_TYPES | {"absmax_ptr": "*fp32"} | dict.fromkeys(("up_ptr", "down_ptr", "out_ptr"), out)
    made = compiled(nf4.decode_adapted_kernel, capability=capability, constants=constants, types=types)
    assert re.search(r"wgmma|mma\.sync", made.asm["ptx"])


def test_without_a_gpu_the_kernels_say_what_they_need() -> None:
    with pytest.raises(Unavailable, match="these kernels need CUDA, the tensors are on cpu"):
        quantize.quantize_rows(torch.ones(2, 64).half(), codes=torch.int8)
