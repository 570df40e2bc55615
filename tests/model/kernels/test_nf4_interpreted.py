"""NF4 in Triton's interpreter: decoded weights are bitsandbytes' to the bit, and GEMMs are those of the decoded weights."""

from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor

NESTED = pytest.mark.parametrize("nested", [False, True], ids=["plain", "double quantization"])
KINDS = pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25], ids=["random", "tiny", "huge"])


def quantized(kernels: SimpleNamespace, columns: int, depth: int, *, nested: bool, scale: float = 1.0) -> tuple[Any, Tensor, Any]:
    """Our view of a layer, its codes and bitsandbytes' state."""
    weight = torch.randn(columns, depth, generator=torch.Generator().manual_seed(columns)) * scale
    weight[::3, 7] *= 50
    weight[1] = 0
    codes, state = bnb.functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
    constants = (state.state2.code, state.state2.absmax, state.offset.reshape(1)) if nested else ()
    ours = kernels.nf4.NF4Weights(codes.view(columns, depth // 2), state.code, state.absmax.view(columns, depth // 64), *constants)
    return ours, codes, state


@NESTED
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("columns", "depth"), [(37, 192)])
def test_decoded_weights_are_those_of_bitsandbytes(
    kernels: SimpleNamespace, nested: bool, scale: float, dtype: torch.dtype, columns: int, depth: int
) -> None:
    if scale != 1.0 and dtype == torch.float16:
        scale = {1e-25: 1e-6, 1e25: 100.0}[scale]
    ours, codes, state = quantized(kernels, columns, depth, nested=nested, scale=scale)
    state.dtype = dtype
    assert torch.equal(kernels.nf4.decode(ours, dtype), bnb.functional.dequantize_4bit(codes, state))


@NESTED
@pytest.mark.parametrize("shapes", [[(37, 192)], [(37, 192), (70, 64)], [(3, 64), (37, 192), (5, 128), (64, 64), (70, 64)]], ids=len)
def test_layers_decoded_together_are_what_each_is_alone(kernels: SimpleNamespace, nested: bool, shapes: list[tuple[int, int]]) -> None:
    layers = [quantized(kernels, columns, depth, nested=nested)[0] for columns, depth in shapes]
    out = torch.full((sum(columns * depth for columns, depth in shapes),), float("nan"), dtype=torch.bfloat16)
    kernels.nf4.decode_together(layers, out)
    assert torch.equal(out, torch.cat([kernels.nf4.decode(layer, torch.bfloat16).flatten() for layer in layers]))


@NESTED
@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_codes_of_layers_decoded_together_are_what_each_is_alone(kernels: SimpleNamespace, nested: bool, codes: torch.dtype) -> None:
    shapes = [(3, 64), (37, 192), (5, 128), (64, 64), (70, 64)]
    layers = [quantized(kernels, columns, depth, nested=nested)[0] for columns, depth in shapes]
    scales = [torch.linspace(0.001, 0.01, columns) for columns, _ in shapes]
    out = torch.empty(sum(columns * depth for columns, depth in shapes), dtype=codes)
    kernels.nf4.decode_together(layers, out, scales)
    alone = [kernels.nf4.decode_to_codes(w, given, codes=codes).codes for w, given in zip(layers, scales, strict=True)]
    assert torch.equal(out.view(torch.uint8), torch.cat([made.flatten() for made in alone]).view(torch.uint8))


def test_layers_that_cannot_be_decoded_together_are_refused(kernels: SimpleNamespace) -> None:
    plain, nested = (quantized(kernels, 16, 64, nested=nested)[0] for nested in (False, True))
    adapted = plain._replace(up=torch.zeros(16, 4).bfloat16(), down=torch.zeros(4, 64).bfloat16())
    out = torch.empty(2 * 16 * 64).bfloat16()
    with pytest.raises(ValueError, match="layers: some have double quantization and some have not"):
        kernels.nf4.decode_together([plain, nested], out)
    with pytest.raises(ValueError, match="layers: one has adapters"):
        kernels.nf4.decode_together([plain, adapted], out)
    with pytest.raises(ValueError, match=r"out: shape \[2048\] given, needed \[1024\]"):
        kernels.nf4.decode_together([plain], out)
    with pytest.raises(ValueError, match=r"scales: shape \[15\] given, needed \[16\]"):
        kernels.nf4.decode_together([plain], torch.empty(1024, dtype=torch.int8), [torch.ones(15)])


@NESTED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 16, 24])
def test_what_adapters_add_is_in_the_decoded_weights(kernels: SimpleNamespace, nested: bool, dtype: torch.dtype, rank: int) -> None:
    plain, _, _ = quantized(kernels, 70, 192, nested=nested)
    generator = torch.Generator().manual_seed(rank)
    up, down = (torch.randn(shape, generator=generator).to(dtype) for shape in ((70, rank), (rank, 192)))
    found = kernels.nf4.decode(plain._replace(up=up, down=down), dtype).double()
    exact = kernels.nf4.decode(plain, torch.float32).double() + up.double() @ down.double()
    # One rounding; fp32's own errors are next to the largest terms.
    step = {torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    assert ((found - exact).abs() <= 1.01 * step * exact.abs() + 1e-6 * exact.abs().max()).all()


def test_adapters_that_do_not_fit_are_refused(kernels: SimpleNamespace) -> None:
    plain, _, _ = quantized(kernels, 70, 192, nested=False)
    up, down = torch.zeros(70, 4).bfloat16(), torch.zeros(4, 192).bfloat16()
    with pytest.raises(ValueError, match="w: adapters need up and down, or none of them"):
        kernels.nf4.decode(plain._replace(up=up), torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"w\.down: shape \[5, 192\] given, needed \[4, 192\]|w\.up: shape \[70, 4\] given, needed \[70, 5\]"
    ):
        kernels.nf4.decode(plain._replace(up=up, down=torch.zeros(5, 192).bfloat16()), torch.bfloat16)
    with pytest.raises(ValueError, match=r"w\.up: adapters given; only weights in 16 bits can have them added"):
        kernels.nf4.decode_to_codes(plain._replace(up=up, down=down), torch.ones(70), codes=torch.int8)


@NESTED
@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_eight_bit_codes_are_the_decoded_weights_rounded(kernels: SimpleNamespace, nested: bool, codes: torch.dtype) -> None:
    ours, _, _ = quantized(kernels, 40, 192, nested=nested)
    weight = kernels.nf4.decode(ours, torch.float32)
    largest = {torch.int8: 127, torch.float8_e4m3fn: 448}[codes]
    scales = weight.abs().amax(dim=1).clamp(min=1e-30) / largest
    made = kernels.nf4.decode_to_codes(ours, scales, codes=codes)
    scaled = (weight / scales[:, None]).clamp(-largest, largest)
    expected = scaled.round().to(torch.int8) if codes == torch.int8 else scaled.to(codes)
    assert torch.equal(made.codes.float(), expected.float())
    assert not made.codes.float()[1].any()  # a row of zeros


@NESTED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 64), (17, 70, 192)])
def test_products_are_those_of_the_decoded_weights(
    kernels: SimpleNamespace, nested: bool, dtype: torch.dtype, rows: int, columns: int, depth: int
) -> None:
    ours, _, _ = quantized(kernels, columns, depth, nested=nested)
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(rows, depth, generator=generator).to(dtype), torch.randn(columns, generator=generator).to(dtype)
    exact = x.double() @ kernels.nf4.decode(ours, dtype).double().T + bias.double()
    out = kernels.nf4.multiply_nf4(x, ours, bias)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_own_row(kernels: SimpleNamespace, bad: float) -> None:
    ours, _, _ = quantized(kernels, 16, 64, nested=False)
    x = torch.ones(3, 64).half()
    x[1, 5] = bad
    out = kernels.nf4.multiply_nf4(x, ours, torch.zeros(16).half())
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"x": c["x"].float()}, "x: float32 given, allowed: float16, bfloat16"),
        (lambda c: {"x": c["x"][:, :64]}, r"x: shape \[4, 64\] given, needed \[4, 128\]"),
        (lambda c: {"x": torch.ones(128, 4).half().T}, r"x: strides \[1, 4\] given"),
        (lambda c: {"bias": c["bias"].bfloat16()}, "bias: bfloat16 given, allowed: float16"),
        (lambda c: {"bias": torch.ones(8, device="meta").half()}, "bias: lies on meta"),
        (lambda c: {"w": c["w"]._replace(codes=c["w"].codes[:, :48].contiguous())}, r"w\.codes: shape \[8, 48\] given"),
        (lambda c: {"w": c["w"]._replace(codes=c["w"].codes.to(torch.int8))}, r"w\.codes: int8 given, allowed: uint8"),
        (lambda c: {"w": c["w"]._replace(absmax=c["w"].absmax.half())}, r"w\.absmax: float16 given, allowed: float32"),
        (lambda c: {"w": c["w"]._replace(nested_mean=torch.zeros(1))}, "double quantization needs"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(kernels: SimpleNamespace, change: Any, message: str) -> None:
    ours, _, _ = quantized(kernels, 8, 128, nested=False)
    right = {"x": torch.ones(4, 128).half(), "w": ours, "bias": torch.ones(8).half()}
    kernels.nf4.multiply_nf4(**right)
    with pytest.raises(ValueError, match=message) as caught:
        kernels.nf4.multiply_nf4(**{**right, **change(right)})
    assert "\n" not in str(caught.value)
