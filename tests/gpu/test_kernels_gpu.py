"""The fused kernels on a GPU, at the shapes of a ViT-L/16: what the interpreter cannot show of compiled code."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

if torch.cuda.is_available():
    from lowbit_vit.model.kernels import attention, gelu, gemm, nf4, quantize, rotary
    from lowbit_vit.model.kernels.coded import Coded

DEVICE = "cuda"
FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
TYPES = pytest.mark.parametrize(
    "codes",
    [torch.int8, pytest.param(torch.float8_e4m3fn, marks=pytest.mark.skipif(not FP8, reason="needs compute capability 8.9"))],
    ids=["int8", "fp8"],
)
SHAPES = pytest.mark.parametrize(("columns", "depth"), [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)])
ROWS = pytest.mark.parametrize("rows", [1, 197, 6304, 12608])
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def values(rows: int, columns: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(rows + columns)
    x = torch.randn(rows, columns, generator=generator, device=DEVICE)
    x[:, 3::64] *= 30
    return x.bfloat16()


def restored(made: "Coded") -> Tensor:
    return made.codes.double() * made.scales.double()[:, None]


@TYPES
@ROWS
@pytest.mark.parametrize("norm", [False, True])
def test_codes_are_those_that_pytorch_computes(codes: torch.dtype, rows: int, norm: bool) -> None:
    x, layer = values(rows, 1024), nn.LayerNorm(1024, eps=1e-6, device=DEVICE, dtype=torch.bfloat16)
    nn.init.normal_(layer.weight)
    with torch.no_grad():
        made = quantize.normalize_rows(x, layer, codes=codes) if norm else quantize.quantize_rows(x, codes=codes)
        exact = x.double()
        if norm:
            exact = nn.functional.layer_norm(exact, (1024,), layer.weight.double(), layer.bias.double(), 1e-6)
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert torch.allclose(made.scales.double() * LARGEST[codes], largest[:, 0], rtol=1e-5)
    step = 0.5 / 127 * largest if codes == torch.int8 else exact.abs() / 16 + largest / 448 * 2**-10
    assert ((restored(made) - exact).abs() <= step * 1.01).all()


@TYPES
@SHAPES
@ROWS
def test_gemms_are_those_of_the_codes_in_float64(codes: torch.dtype, rows: int, columns: int, depth: int) -> None:
    a, w = (quantize.quantize_rows(values(count, depth), codes=codes) for count in (rows, columns))
    bias, residual = values(1, columns)[0], values(rows, columns)
    for added in (None, residual):
        exact = restored(a) @ restored(w).T + bias.double() + (0 if added is None else added.double())
        out = gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=added)
        # int8's sums are exact; e4m3's are cut to fewer bits than fp32's inside the tensor cores, once more for each 32 columns.
        atol = {torch.int8: 2e-5, torch.float8_e4m3fn: 2e-6 * depth}[codes] * float(exact.abs().max())
        assert torch.allclose(out.double(), exact, rtol=1.01 * 2**-8, atol=atol)
        if depth == 4096 and rows <= 197:  # what the depth is cut for
            arrivals = torch.zeros(gemm.ARRIVALS, dtype=torch.int32, device=DEVICE)
            again = [gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=added, arrivals=arrivals) for _ in range(200)]
            assert torch.allclose(again[0].double(), exact, rtol=1.01 * 2**-8, atol=atol)
            assert all(torch.equal(again[0], other) for other in again)
            assert not arrivals.any()


@TYPES
@ROWS
def test_codes_after_gelu_are_those_of_the_exact_one(codes: torch.dtype, rows: int) -> None:
    x = values(rows, 4096)
    exact = nn.functional.gelu(x.double())
    made = quantize.gelu_rows(x, codes=codes)
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert torch.allclose(made.scales.double() * LARGEST[codes], largest[:, 0], rtol=1e-5)
    step = 0.5 / 127 * largest if codes == torch.int8 else exact.abs() / 16 + largest / 448 * 2**-10
    assert ((restored(made) - exact).abs() <= step * 1.01 + 1e-6).all()


@ROWS
def test_fp8_codes_after_gelu_have_scales_that_no_value_passes(rows: int) -> None:
    e4m3 = torch.float8_e4m3fn
    x, w, bias = values(rows, 1024), quantize.quantize_rows(values(4096, 1024), codes=e4m3), values(1, 4096)[0]
    norm = nn.LayerNorm(1024, eps=1e-6, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        a, scales = quantize.normalize_rows_towards(x, norm, quantize.reach_of(w, bias), codes=e4m3)
    made = gemm.multiply_to_gelu_codes(a, w, bias, scales)
    before = restored(a) @ restored(w).T + bias.double()
    assert (before.abs() <= 448 * scales.double()[:, None] * (1 + 1e-5)).all()
    exact = nn.functional.gelu(before)
    bound = exact.abs() / 16 * 1.01 + scales.double()[:, None] * 2**-10 * 1.01 + 2e-3 * exact.abs().amax(dim=1, keepdim=True)
    assert ((restored(made) - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", [197, 6304])
def test_every_candidate_tile_runs_and_gives_the_same_int8_product(rows: int) -> None:
    a, w = (quantize.quantize_rows(values(count, 1024), codes=torch.int8) for count in (rows, 3072))
    bias = values(1, 3072)[0]
    tma = [gemm.TMA_TILE] if torch.cuda.get_device_capability() >= gemm.TMA_FROM else []
    made = [gemm.multiply(a, w, bias, dtype=torch.bfloat16, tile=tile) for tile in (*gemm.TILES, *tma)]
    assert all(torch.equal(out, made[0]) for out in made)


def tma_tiles() -> list[Any]:
    tall_deep = gemm.TALL_TILE._replace(block_k=128, num_stages=2)
    return [tile._replace(gluon=gluon) for tile in (gemm.TMA_TILE, gemm.TALL_TILE, tall_deep) for gluon in (False, True)]


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs compute capability 9.0")
@TYPES
@pytest.mark.parametrize("rows", [1000, 6304])
@pytest.mark.parametrize("follows", ["bias", "residual"])
@pytest.mark.parametrize("tile", tma_tiles() if torch.cuda.is_available() else [], ids=str)
def test_every_tile_moved_by_tma_gives_float64s_gemm(codes: torch.dtype, rows: int, follows: str, tile: Any) -> None:
    a, w = (quantize.quantize_rows(values(count, 4096), codes=codes) for count in (rows, 1024))
    bias, residual = values(1, 1024)[0], values(rows, 1024) if follows == "residual" else None
    exact = restored(a) @ restored(w).T + bias.double() + (0 if residual is None else residual.double())
    made = [gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=residual, tile=tile) for _ in range(3)]
    atol = {torch.int8: 2e-5, torch.float8_e4m3fn: 8e-3}[codes] * float(exact.abs().max())
    assert torch.allclose(made[0].double(), exact, rtol=1.01 * 2**-8, atol=atol)
    assert all(torch.equal(made[0], again) for again in made)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs compute capability 9.0")
@pytest.mark.parametrize("rows", [1000, 6304])
@pytest.mark.parametrize("tile", tma_tiles() if torch.cuda.is_available() else [], ids=str)
def test_every_tile_moved_by_tma_gives_the_codes_after_gelu(rows: int, tile: Any) -> None:
    a, w = (quantize.quantize_rows(values(count, 1024), codes=torch.float8_e4m3fn) for count in (rows, 4096))
    bias, largest = values(1, 4096)[0], torch.linspace(900, 1800, rows, device=DEVICE, dtype=torch.float64)[:, None]
    exact = nn.functional.gelu(restored(a) @ restored(w).T + bias.double())
    scales = (exact.abs().amax(dim=1, keepdim=True).maximum(largest) / 448).float()
    made = gemm.multiply_to_gelu_codes(a, w, bias, scales[:, 0], tile=tile)
    bound = exact.abs() / 16 * 1.01 + scales.double() * 2**-10 * 1.01 + 2e-3 * exact.abs().amax(dim=1, keepdim=True)
    assert ((restored(made) - exact).abs() <= bound).all()


def attended(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of 16 heads in float64, [B N, 1024], and the largest magnitude of each image's values, [B N, 1]."""
    images, tokens, _ = qkv.shape
    q, k, v = qkv.double().view(images, tokens, 3, 16, 64).permute(2, 0, 3, 1, 4)
    largest = v.abs().amax(dim=(1, 2, 3))[:, None].expand(images, tokens).reshape(-1, 1)
    return (torch.softmax(q @ k.mT / 8, dim=-1) @ v).transpose(1, 2).reshape(-1, 1024), largest


@pytest.mark.skipif(not FP8, reason="needs compute capability 8.9")
@pytest.mark.parametrize("tokens", [50, 197, 257, 272])
@pytest.mark.parametrize("images", [1, 32])
def test_attention_is_float64s_into_codes_and_in_16_bits(tokens: int, images: int) -> None:
    qkv = values(images * tokens, 3072).view(images, tokens, 3072)
    exact, largest = attended(qkv)
    bounds = (2 * largest[:, 0] / 448).float()
    in_one = [attention.Shares(1, tokens // 64, 16), attention.Shares(1, -(-tokens // 64), 0)]  # with a tail and without
    for shares in (None, *(way for way in in_one if images > 1 and way.tiles * 64 + way.tail >= tokens)):
        codes = attention.attend_to_codes(qkv, bounds, heads=16, shares=shares)
        again = attention.attend_to_codes(qkv, bounds, heads=16, shares=shares)
        assert torch.equal(codes.codes.view(torch.uint8), again.codes.view(torch.uint8))
        assert torch.equal(codes.scales, bounds)
        # Softmax's weights are rounded to bf16 before they meet the values; scores are summed in fp32.
        away, rounding = (restored(codes) - exact).abs(), 2**-8 * largest
        assert (away <= rounding + 1.01 * (exact.abs() / 16 + bounds.double()[:, None] * 2**-10)).all()
        out = attention.attend(qkv, heads=16, shares=shares).double()
        assert ((out - exact).abs() <= rounding + 2**-8 * exact.abs()).all()


@pytest.mark.skipif(not FP8, reason="needs compute capability 8.9")
@pytest.mark.parametrize("images", [2, 32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_in_v_makes_its_own_image_nan(images: int, bad: float) -> None:
    qkv, bounds = values(images * 197, 3072).view(images, 197, 3072), torch.ones(images * 197, device=DEVICE)
    qkv[1, 5, 2048 + 70] = bad
    made = attention.attend_to_codes(qkv, bounds, heads=16)
    out = gemm.multiply(
        made, quantize.quantize_rows(values(1024, 1024), codes=torch.float8_e4m3fn), values(1, 1024)[0], dtype=torch.bfloat16
    )
    assert out.view(images, 197, 1024)[1].isnan().all()
    assert out[:197].isfinite().all()
    assert out[394:].isfinite().all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("images", [1, 32])
def test_rotation_in_place_is_that_of_pytorch(interleaved: bool, images: int) -> None:
    tokens, heads, prefix = 261, 16, 5
    qkv = values(images * tokens, 3 * heads * 64).view(images, tokens, -1)
    tables = torch.randn(tokens - prefix, 128, device=DEVICE)
    x = qkv.view(images, tokens, 3, heads, 64)[:, prefix:, :2].double()
    pairs = x.view(*x.shape[:-1], 32, 2) if interleaved else x.view(*x.shape[:-1], 2, 32).transpose(-1, -2)
    first, second = pairs.unbind(-1)
    turned = torch.stack([-second, first], -1)
    turned = (turned if interleaved else turned.transpose(-1, -2)).reshape(x.shape)
    sines, cosines = tables.double()[:, None, None].chunk(2, -1)
    expected, before = x * cosines + turned * sines, qkv.clone()
    rotary.rotate_in_place(qkv, tables, heads=heads, interleaved=interleaved)
    found = qkv.view(images, tokens, 3, heads, 64)
    assert torch.allclose(found[:, prefix:, :2].double(), expected, rtol=2**-8, atol=1e-4)
    assert torch.equal(found[:, :, 2], before.view_as(found)[:, :, 2])
    assert torch.equal(found[:, :prefix], before.view_as(found)[:, :prefix])


@TYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_makes_its_own_row_nan(codes: torch.dtype, bad: float) -> None:
    x, w = values(300, 1024), quantize.quantize_rows(values(4096, 1024), codes=codes)
    x[7, 5] = bad
    out = gemm.multiply(quantize.quantize_rows(x, codes=codes), w, torch.zeros(4096, device=DEVICE), dtype=torch.bfloat16)
    scales = quantize.gelu_rows(out, codes=codes).scales
    for found in (out, scales[:, None]):
        assert found[7].isnan().all()
        assert found[:7].isfinite().all()
        assert found[8:].isfinite().all()


def layer(columns: int, depth: int, *, nested: bool) -> tuple["nf4.NF4Weights", Tensor, Any]:
    codes, state = bnb.functional.quantize_4bit(values(columns, depth).float(), blocksize=64, compress_statistics=nested, quant_type="nf4")
    constants = (state.state2.code, state.state2.absmax, state.offset.reshape(1)) if nested else ()
    return nf4.NF4Weights(codes.view(columns, depth // 2), state.code, state.absmax.view(columns, -1), *constants), codes, state


@SHAPES
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_decoded_weights_are_those_of_bitsandbytes_to_the_bit(columns: int, depth: int, nested: bool, dtype: torch.dtype) -> None:
    ours, codes, state = layer(columns, depth, nested=nested)
    state.dtype = dtype
    assert torch.equal(nf4.decode(ours, dtype), bnb.functional.dequantize_4bit(codes, state))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "shapes", [[(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)], [(3072, 1024), (1024, 1024)], [(1024, 4096)]], ids=len
)
def test_layers_decoded_together_are_what_each_is_alone(nested: bool, shapes: list[tuple[int, int]]) -> None:
    layers = [layer(columns, depth, nested=nested)[0] for columns, depth in shapes]
    out = torch.full((sum(columns * depth for columns, depth in shapes),), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    nf4.decode_together(layers, out)
    assert torch.equal(out, torch.cat([nf4.decode(each, torch.bfloat16).flatten() for each in layers]))


@TYPES
@pytest.mark.parametrize("nested", [False, True])
def test_codes_of_layers_decoded_together_are_what_each_is_alone(nested: bool, codes: torch.dtype) -> None:
    layers = [layer(columns, depth, nested=nested)[0] for columns, depth in [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]]
    scales = [torch.linspace(0.001, 0.1, w.shape[0], device=DEVICE) for w in layers]
    out = torch.empty(12 << 20, dtype=codes, device=DEVICE)
    nf4.decode_together(layers, out, scales)
    alone = [nf4.decode_to_codes(w, given, codes=codes).codes for w, given in zip(layers, scales, strict=True)]
    assert torch.equal(out.view(torch.uint8), torch.cat([made.flatten() for made in alone]).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ROWS
def test_gelu_in_place_is_the_exact_one_rounded_once(dtype: torch.dtype, rows: int) -> None:
    x = values(rows, 4096).to(dtype)
    exact = nn.functional.gelu(x.double())
    gelu.gelu_in_place(x)
    assert ((x.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 2e-7).all()


@SHAPES
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ROWS
def test_nf4_gemms_are_those_of_the_decoded_weights(columns: int, depth: int, nested: bool, dtype: torch.dtype, rows: int) -> None:
    ours, _, _ = layer(columns, depth, nested=nested)
    x, bias = values(rows, depth).to(dtype), values(1, columns)[0].to(dtype)
    exact = x.double() @ nf4.decode(ours, dtype).double().T + bias.double()
    out = nf4.multiply_nf4(x, ours, bias)
    assert torch.allclose(out.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-4 * float(exact.abs().max()))
