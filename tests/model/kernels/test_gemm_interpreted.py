"""GEMMs of 8-bit codes in Triton's interpreter: the numbers are those of the same arithmetic in float64."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROWS = pytest.mark.parametrize("rows", [1, 5, 33])
TYPES = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
# Half a step of int8 is 1/254 of the largest value; of e4m3, which has 3 bits behind the point, 1/16 of the value itself.
STEP = {torch.int8: 0.5 / 127 * 1.001, torch.float8_e4m3fn: 1 / 16 * 1.001}
KINDS = pytest.mark.parametrize("kind", ["random", "outliers", "zero", "tiny", "huge"])


def values(kind: str, rows: int, columns: int, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    if kind == "outliers":
        x[:, 3::16] *= 60
    if kind == "zero":
        x[::2] = 0
    return (x * {"tiny": 1e-25, "huge": 1e30}.get(kind, 1.0)).to(dtype)


def coded(kernels: SimpleNamespace, x: Tensor, codes: torch.dtype) -> Any:
    return kernels.quantize.quantize_rows(x, codes=codes)


@pytest.fixture(scope="module")
def codes_of(kernels: SimpleNamespace) -> Callable[[str, int, int, torch.dtype], Any]:
    """The codes of `values(kind, rows, columns)`, made once: the quantizing pass is most of what the interpreter does here."""
    return functools.cache(lambda kind, rows, columns, codes: coded(kernels, values(kind, rows, columns), codes))


def restored(made: Any) -> Tensor:
    codes: Tensor = made.codes.double()
    scales: Tensor = made.scales.double()
    return codes * scales[:, None]


@KINDS
@TYPES
@ROWS
def test_codes_are_within_half_a_step_of_the_values(kernels: SimpleNamespace, kind: str, codes: torch.dtype, rows: int) -> None:
    x = values(kind, rows, 80)
    made = coded(kernels, x, codes)
    largest = x.double().abs().amax(dim=1, keepdim=True)
    away = (restored(made) - x.double()).abs()
    # e4m3 has denormal numbers below 2^-6 of its codes, so the least step is 2^-10 of a code.
    bound = STEP[codes] * (largest if codes == torch.int8 else x.double().abs()) + largest / 448 * 2**-10 * 1.001
    assert (away <= bound).all()
    assert torch.equal(made.codes.float()[largest[:, 0] == 0], torch.zeros_like(x.float())[largest[:, 0] == 0])
    assert ((made.codes.float().abs().amax(dim=1) == {torch.int8: 127, torch.float8_e4m3fn: 448}[codes]) | (largest[:, 0] == 0)).all()


@KINDS
@TYPES
@pytest.mark.parametrize("together", [False, True])
def test_the_norm_before_the_codes_is_the_layer_norm(
    kernels: SimpleNamespace, kind: str, codes: torch.dtype, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:
        monkeypatch.setattr(kernels.pdl, "MOST_ROWS", 0)  # as of many rows: two in a program
    x = values(kind, 7, 80)
    norm = nn.LayerNorm(80, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = x / 1e15 if kind == "huge" else x  # the squares of 1e30 have no place in fp32, in PyTorch's norm either
    with torch.no_grad():
        expected = nn.functional.layer_norm(x.double(), (80,), norm.weight.double(), norm.bias.double(), 1e-6)
        made = kernels.quantize.normalize_rows(x, norm, codes=codes)
    largest = expected.abs().amax(dim=1, keepdim=True)
    assert ((restored(made) - expected).abs() <= 1.01 * STEP[codes] * largest).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says in the interpreter that it meets what this test is about
@TYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_its_own_row_nan_through_every_step(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], codes: torch.dtype, bad: float
) -> None:
    x = values("random", 4, 64)
    x[1, 5] = bad
    a, w, w2 = coded(kernels, x, codes), codes_of("random", 256, 64, codes), codes_of("random", 16, 256, codes)
    hidden = kernels.gemm.multiply(a, w, torch.zeros(256), dtype=torch.bfloat16)
    after_gelu = kernels.quantize.gelu_rows(hidden, codes=codes)
    for out in (hidden, kernels.gemm.multiply(after_gelu, w2, torch.zeros(16), dtype=torch.bfloat16)):
        assert out[1].isnan().all()
        assert out[[0, 2, 3]].isfinite().all()
    if codes == torch.float8_e4m3fn:
        norm = nn.LayerNorm(64)
        with torch.no_grad():
            given, scales = kernels.quantize.normalize_rows_towards(x, norm, kernels.quantize.reach_of(w, torch.ones(256)), codes=codes)
        hidden_codes = kernels.gemm.multiply_to_gelu_codes(given, w, torch.ones(256), scales)
        out = kernels.gemm.multiply(hidden_codes, w2, torch.zeros(16), dtype=torch.bfloat16)
        assert out[1].isnan().all()
        assert out[[0, 2, 3]].isfinite().all()


@KINDS
@TYPES
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 128), (5, 48, 80), (33, 130, 256)])
def test_products_are_those_of_the_codes_in_float64(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], kind: str, codes: torch.dtype, rows: int, added: bool, columns: int, depth: int
) -> None:
    a, w = codes_of(kind, rows, depth, codes), codes_of("random", columns, depth, codes)
    scale = {"tiny": 1e-25, "huge": 1e30}.get(kind, 1.0)
    bias, residual = (values("random", rows, columns).float() * scale)[0], values("random", rows, columns) * scale
    exact = restored(a) @ restored(w).T + bias.double()
    exact = exact + residual.double() if added else exact
    out = kernels.gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=residual if added else None)
    # One rounding to bf16; fp32's own errors are next to the largest terms.
    assert torch.allclose(out.double(), exact, rtol=1.01 * 2**-8, atol=2e-5 * float(exact.abs().max()))


@TYPES
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 128), (33, 130, 256), (33, 130, 400)])
def test_a_split_depth_gives_the_same_gemm(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], codes: torch.dtype, rows: int, columns: int, depth: int, parts: int
) -> None:
    a, w = codes_of("random", rows, depth, codes), codes_of("random", columns, depth, codes)
    bias, residual = values("random", 1, columns)[0], values("random", rows, columns)
    arrivals, tile = torch.zeros(kernels.gemm.ARRIVALS, dtype=torch.int32), kernels.gemm.SPLIT_TILE._replace(split_k=parts)
    whole, *in_parts = (
        kernels.gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=residual, arrivals=arrivals, tile=taken)
        for taken in (tile._replace(split_k=1), tile, tile)  # twice: the first leaves what the second needs
    )
    assert torch.equal(*in_parts)
    # int32's sums are exact in any order; fp32's may round to the next bf16.
    assert torch.allclose(in_parts[0].float(), whole.float(), rtol=0 if codes == torch.int8 else 2**-7, atol=0)
    assert not arrivals.any()


def test_parts_without_arrivals_are_refused(kernels: SimpleNamespace, codes_of: Callable[..., Any]) -> None:
    a, w = codes_of("random", 5, 80, torch.int8), codes_of("random", 48, 80, torch.int8)
    with pytest.raises(ValueError, match="tile: 2 parts of K given; they need arrivals, and at most 1024 tiles; there are 1"):
        kernels.gemm.multiply(a, w, torch.zeros(48), dtype=torch.bfloat16, tile=kernels.gemm.SPLIT_TILE)


@pytest.mark.parametrize("split_k", [False, True])
def test_a_long_depth_is_split_where_tiles_leave_a_gpu_idle(kernels: SimpleNamespace, split_k: bool) -> None:
    shapes = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]
    parts = {
        (rows, shape): kernels.gemm.tile_for(
            rows=rows, columns=shape[0], depth=shape[1], multiprocessors=132, split_k=split_k, tma=False
        ).split_k
        for rows in (197, 6304)
        for shape in shapes
    }
    assert [key for key, count in parts.items() if count > 1] == ([(197, (1024, 4096))] if split_k else [])  # fc2 at one image


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(197, ["TILES[1]", "TILES[2]", "TILES[1]", "SPLIT_TILE"]), (257, ["TILES[1]", "TILES[2]", "SHARED_TILE", "TILES[2]"]),
     (577, ["SHARED_TILE", "TILES[2]", "TMA_TILE", "TILES[2]"])],
    ids=lambda value: str(value)[:3],
)  # fmt: skip
def test_few_rows_get_the_tiles_that_were_fast_on_an_h200(kernels: SimpleNamespace, rows: int, expected: list[str]) -> None:
    names = {kernels.gemm.TILES[1]: "TILES[1]", kernels.gemm.TILES[2]: "TILES[2]"}
    names |= {getattr(kernels.gemm, name): name for name in ("SHARED_TILE", "SPLIT_TILE", "TMA_TILE")}
    shapes = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]
    found = [
        kernels.gemm.tile_for(rows=rows, columns=n, depth=k, multiprocessors=132, split_k=k == 4096, tma=rows > 512) for n, k in shapes
    ]
    assert [names[tile] for tile in found] == expected


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says in the interpreter that the polynomial of 1e30 is infinite
@KINDS
@TYPES
def test_codes_after_gelu_are_those_of_the_exact_one(kernels: SimpleNamespace, kind: str, codes: torch.dtype) -> None:
    x = values(kind, 7, 80)
    exact = nn.functional.gelu(x.double())
    made = kernels.quantize.gelu_rows(x, codes=codes)
    largest = exact.abs().amax(dim=1, keepdim=True)
    away = (restored(made) - exact).abs()
    bound = STEP[codes] * (largest if codes == torch.int8 else exact.abs()) + largest / 448 * 2**-10 + 2e-7 * largest.clamp(min=1)
    assert (away <= 1.001 * bound).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says in the interpreter that the polynomial of 1e30 is infinite
def test_the_polynomial_for_gelu_is_within_what_it_says(kernels: SimpleNamespace) -> None:
    # One value a row, as bf16: its scale is GELU's magnitude there. Every power of two, and fifteen steps between where GELU is not
    # x or 0 to fp32.
    steps = torch.arange(16) / 16 + 1
    magnitudes = torch.cat([(steps * 2.0 ** torch.arange(-12, 4)[:, None]).flatten(), 2.0 ** torch.arange(4, 100)])
    x = torch.cat([magnitudes, -magnitudes])[:, None].bfloat16()
    found = kernels.quantize.gelu_rows(x.repeat(1, 2), codes=torch.int8).scales.double() * 127
    exact = nn.functional.gelu(x[:, 0].double()).abs()
    assert ((found - exact).abs() <= 2.5e-7 * exact.clamp(min=1)).all()


def test_the_shorter_polynomial_for_gelu_is_within_what_it_says(kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.gelu, "gelu", kernels.gelu.gelu_for_codes)
    x = torch.cat([torch.linspace(-12, 12, (1 << 15) - 2), torch.tensor([-1e4, 1e4])])
    exact, out = nn.functional.gelu(x.double()), x.clone()
    kernels.gelu.gelu_kernel[1 << 5,](out, 1 << 15, VALUES=1 << 10)
    away = (out.double() - exact).abs()
    assert (away <= 1.1e-5 + 1e-6 * exact.abs()).all()
    assert (away <= 1e-4 * exact.abs())[exact.abs() > 1e-3].all()


@pytest.mark.parametrize("kind", ["random", "outliers", "zero", "tiny"])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 128), (5, 48, 80), (33, 130, 256)])
def test_fp8_codes_after_gelu_have_scales_that_no_value_passes(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], kind: str, rows: int, columns: int, depth: int
) -> None:
    e4m3 = torch.float8_e4m3fn
    x, w, bias = values(kind, rows, depth), codes_of("random", columns, depth, e4m3), values("random", 1, columns)[0]
    norm = nn.LayerNorm(depth, eps=1e-6)
    nn.init.normal_(norm.weight)
    reach = kernels.quantize.reach_of(w, bias)
    with torch.no_grad():
        a, scales = kernels.quantize.normalize_rows_towards(x, norm, reach, codes=e4m3)
        alone = kernels.quantize.normalize_rows(x, norm, codes=e4m3)
    assert torch.equal(a.codes.float(), alone.codes.float())
    made = kernels.gemm.multiply_to_gelu_codes(a, w, bias, scales)
    before = restored(a) @ restored(w).T + bias.double()
    assert (before.abs() <= 448 * scales.double()[:, None] * (1 + 1e-5)).all()
    exact = nn.functional.gelu(before)
    # Half a step of the value, half of the least step of a code, the polynomial's error, and fp32's own errors.
    largest = exact.abs().amax(dim=1, keepdim=True)
    bound = STEP[e4m3] * 1.001 * exact.abs() + scales.double()[:, None] * 2**-10 * 1.001 + 1e-5 * largest + largest.clamp(max=1.1e-5)
    assert ((restored(made) - exact).abs() <= bound).all()


def test_int8_has_no_codes_before_its_largest_value_is_known(kernels: SimpleNamespace, codes_of: Callable[..., Any]) -> None:
    a = codes_of("random", 4, 64, torch.int8)
    with pytest.raises(ValueError, match=r"a\.codes: torch.int8 given; only float8_e4m3fn"):
        kernels.gemm.multiply_to_gelu_codes(a, a, torch.ones(4), torch.ones(4))


def test_every_candidate_tile_gives_the_same_int8_product(kernels: SimpleNamespace, codes_of: Callable[..., Any]) -> None:
    a, w = codes_of("random", 37, 144, torch.int8), codes_of("random", 72, 144, torch.int8)
    made = [kernels.gemm.multiply(a, w, torch.ones(72), dtype=torch.bfloat16, tile=tile) for tile in kernels.gemm.TILES]
    assert all(torch.equal(out, made[0]) for out in made)


SMALL_TMA = {"block_m": 32, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 2, "tma": True}
BELOW = pytest.mark.parametrize("below", [0, 16])


@TYPES
@BELOW
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 128), (33, 48, 80), (70, 144, 256)])
def test_tiles_moved_by_tma_give_the_gemm_that_pointers_give(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], codes: torch.dtype, below: int, added: bool, rows: int, columns: int, depth: int
) -> None:
    a, w = codes_of("outliers", rows, depth, codes), codes_of("random", columns, depth, codes)
    bias, residual = values("random", 1, columns)[0], values("random", rows, columns) if added else None
    made, pointed = (
        kernels.gemm.multiply(a, w, bias, dtype=torch.bfloat16, residual=residual, tile=tile)
        for tile in (kernels.gemm.Tile(**SMALL_TMA, below_m=below), None)
    )
    # int8's sums are exact in any order; fp32's may round to the next bf16.
    assert torch.allclose(made.float(), pointed.float(), rtol=0 if codes == torch.int8 else 2**-7, atol=0 if codes == torch.int8 else 1e-5)


@BELOW
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 128), (33, 48, 80)])
def test_tiles_moved_by_tma_give_the_codes_after_gelu(
    kernels: SimpleNamespace, codes_of: Callable[..., Any], below: int, rows: int, columns: int, depth: int
) -> None:
    a, w = codes_of("random", rows, depth, torch.float8_e4m3fn), codes_of("random", columns, depth, torch.float8_e4m3fn)
    bias, scales = values("random", 1, columns)[0], torch.linspace(0.1, 0.4, rows)
    tiles = (kernels.gemm.Tile(**SMALL_TMA, below_m=below), None)
    made, pointed = (kernels.gemm.multiply_to_gelu_codes(a, w, bias, scales, tile=tile) for tile in tiles)
    away = (made.codes.float() - pointed.codes.float()).abs()
    assert (away <= pointed.codes.float().abs() / 8 + 2**-9).all()  # a neighbour where a sum's last bit decides
    assert (away > 0).float().mean() < 0.01


def test_columns_that_tma_cannot_move_are_refused(kernels: SimpleNamespace, codes_of: Callable[..., Any]) -> None:
    a, w = codes_of("random", 5, 80, torch.int8), codes_of("random", 72, 80, torch.int8)
    with pytest.raises(ValueError, match="tile: 72 columns are no multiple of 16"):
        kernels.gemm.multiply(a, w, torch.zeros(72), dtype=torch.bfloat16, tile=kernels.gemm.Tile(**SMALL_TMA))


def test_only_the_largest_tile_is_moved_by_tma(kernels: SimpleNamespace) -> None:
    def chosen(rows: int, *, tma: bool) -> Any:
        return kernels.gemm.tile_for(rows=rows, columns=3072, depth=1024, multiprocessors=132, split_k=True, tma=tma)

    assert (chosen(6304, tma=True), chosen(6304, tma=False)) == (kernels.gemm.TMA_TILE, kernels.gemm.TILES[0])
    assert chosen(197, tma=True) == chosen(197, tma=False)
    assert not chosen(197, tma=True).tma


@pytest.mark.parametrize(
    ("rows", "tall"), [(577, []), (6304, ["qkv", "out", "fc1", "fc2"]), (8224, ["qkv"])], ids=lambda value: str(value)[:4]
)
def test_tall_tiles_are_for_fp8_where_they_leave_less_of_the_last_turn_idle(kernels: SimpleNamespace, rows: int, tall: list[str]) -> None:
    shapes = {"qkv": (3072, 1024), "out": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}

    def chosen(columns: int, depth: int, *, tall: bool) -> Any:
        return kernels.gemm.tile_for(rows=rows, columns=columns, depth=depth, multiprocessors=132, split_k=True, tma=True, tall=tall)

    assert [name for name, shape in shapes.items() if chosen(*shape, tall=True) == kernels.gemm.TALL_TILE] == tall
    assert all(chosen(*shape, tall=False).below_m == 0 for shape in shapes.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "outliers", "zero", "tiny"])
def test_gelu_in_place_is_the_exact_one_rounded_once(kernels: SimpleNamespace, dtype: torch.dtype, kind: str) -> None:
    x = values(kind, 33, 80, dtype=dtype)
    exact = nn.functional.gelu(x.double())
    kernels.gelu.gelu_in_place(x)
    step = {torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    assert ((x.double() - exact).abs() <= 1.01 * step * exact.abs() + 2e-7).all()


def test_gelu_in_place_keeps_what_is_not_a_number_and_refuses_what_it_cannot_read(kernels: SimpleNamespace) -> None:
    x = torch.tensor([[1.0, float("nan")]]).bfloat16()
    kernels.gelu.gelu_in_place(x)
    assert x.isnan().tolist() == [[False, True]]
    for wrong in (torch.ones(2, 2), torch.ones(4).half(), torch.ones(4, 2).half().T):
        with pytest.raises(ValueError, match=r"^x: (float32|shape \[4\]|strides)"):
            kernels.gelu.gelu_in_place(wrong)


def test_no_rows_give_no_rows(kernels: SimpleNamespace) -> None:
    a, w = coded(kernels, values("random", 1, 64)[:0], torch.int8), coded(kernels, values("random", 8, 64), torch.int8)
    assert kernels.gemm.multiply(a, w, torch.ones(8), dtype=torch.bfloat16).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"a": c["a"]._replace(codes=c["a"].codes.float())}, r"a\.codes: float32 given, allowed: int8, float8_e4m3fn"),
        (lambda c: {"a": c["a"]._replace(codes=c["a"].codes.T.contiguous().T)}, r"a\.codes: strides \[1, 4\] given"),
        (lambda c: {"a": c["a"]._replace(scales=torch.ones(3))}, r"a\.scales: shape \[3\] given, needed \[4\]"),
        (lambda c: {"a": c["a"]._replace(scales=torch.ones(4, 2))}, r"a\.scales: shape \[4, 2\] given, needed \[4\]"),
        (lambda c: {"w": c["w"]._replace(codes=c["w"].codes[:, :32].contiguous())}, r"w\.codes: shape \[8, 32\] given, needed \[8, 64\]"),
        (lambda c: {"w": c["w"]._replace(codes=c["w"].codes.to(torch.float8_e4m3fn))}, r"w\.codes: .*e4m3fn given, a\.codes are .*int8"),
        (lambda c: {"bias": torch.ones(7)}, r"bias: shape \[7\] given, needed \[8\]"),
        (lambda c: {"bias": torch.ones(8, device="meta")}, "bias: lies on meta, the other arguments on cpu"),
        (lambda c: {"bias": torch.ones(8).double()}, "bias: float64 given"),
        (lambda c: {"residual": torch.ones(4, 7).half()}, r"residual: shape \[4, 7\] given, needed \[4, 8\]"),
        (lambda c: {"dtype": torch.float32}, "dtype: torch.float32 asked for"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(kernels: SimpleNamespace, codes_of: Callable[..., Any], change: Any, message: str) -> None:
    right = {
        "a": codes_of("random", 4, 64, torch.int8),
        "w": codes_of("random", 8, 64, torch.int8),
        "bias": torch.ones(8),
        "dtype": torch.float16,
    }
    kernels.gemm.multiply(**right)
    with pytest.raises(ValueError, match=message) as caught:
        kernels.gemm.multiply(**{**right, **change(right)})
    assert "\n" not in str(caught.value)


def test_rows_that_start_between_vectors_are_refused(kernels: SimpleNamespace) -> None:
    a = coded(kernels, values("random", 4, 72), torch.int8)
    with pytest.raises(ValueError, match="a: 72 columns given; a multiple of 16 is needed"):
        kernels.gemm.multiply(a, a, torch.ones(4), dtype=torch.float16)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4, 64), "x: float32 given"),
        (torch.ones(64).half(), r"x: shape \[64\] given"),
        (torch.ones(64, 4).half().T, r"x: strides \[1, 4\] given"),
    ],
)
def test_rows_of_another_dtype_shape_or_stride_are_refused(kernels: SimpleNamespace, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.quantize.quantize_rows(x, codes=torch.int8)
