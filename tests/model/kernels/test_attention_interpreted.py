"""Attention over few tokens in Triton's interpreter: float64's to within the rounding of weights and codes, an image at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowbit_vit.errors import Unavailable

HEADS, WIDTH = 2, 128
# Tokens, and every way to share out their queries: a tile a program; all in one, the last ones in a tail of 16, of 32, or in a whole tile.
CASES = [
    *((1, (1, 1, 0)), (50, (1, 1, 0)), (17, (1, 0, 32)), (150, (1, 2, 32)), (257, (1, 4, 16)), (272, (5, 1, 0))),
    *((197, shares) for shares in ((4, 1, 0), (1, 3, 16), (2, 2, 0))),
]


def drawn(images: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(images, tokens, 3 * WIDTH, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def exact(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in float64, [B N, W], and the largest magnitude of each image's values, [B N, 1]."""
    images, tokens, _ = qkv.shape
    q, k, v = qkv.double().view(images, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    out = torch.softmax(q @ k.mT / (WIDTH // HEADS) ** 0.5, dim=-1) @ v
    largest = v.abs().amax(dim=(1, 2, 3))[:, None].expand(images, tokens)
    return out.transpose(1, 2).reshape(-1, WIDTH), largest.reshape(-1, 1)


@pytest.mark.parametrize(("tokens", "shares"), CASES, ids=str)
def test_codes_are_float64s_attention(kernels: SimpleNamespace, tokens: int, shares: tuple[int, int, int]) -> None:
    qkv = drawn(2, tokens)
    expected, largest = exact(qkv)
    bounds = (4 * largest[:, 0] / 448 * torch.linspace(0.3, 1, 2 * tokens)).float()
    made = kernels.attention.attend_to_codes(qkv, bounds, heads=HEADS, shares=kernels.attention.Shares(*shares))
    scale = bounds.view(2, tokens).amax(dim=1, keepdim=True).expand(2, tokens).reshape(-1)
    assert torch.equal(made.scales, scale)
    away = (made.codes.double() * made.scales.double()[:, None] - expected).abs()
    # Softmax's weights are rounded to bf16 before they meet the values: 2^-9 of the largest value; then half a step of a code.
    assert (away <= 2**-9 * 1.1 * largest + 1.01 * (expected.abs() / 16 + scale[:, None] * 2**-10)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "shares"), [(50, None), (197, (1, 3, 16))], ids=str)
def test_sixteen_bits_are_float64s_attention(
    kernels: SimpleNamespace, tokens: int, shares: tuple[int, int, int] | None, dtype: torch.dtype
) -> None:
    qkv = drawn(2, tokens, dtype)
    expected, largest = exact(qkv)
    out = kernels.attention.attend(qkv, heads=HEADS, shares=shares and kernels.attention.Shares(*shares))
    half = torch.finfo(dtype).eps / 2
    assert out.dtype == dtype
    assert ((out.double() - expected).abs() <= 1.1 * half * (largest + expected.abs())).all()


def test_no_value_passes_the_scale_that_the_norm_before_found(kernels: SimpleNamespace) -> None:
    e4m3, tokens = torch.float8_e4m3fn, 20
    x = drawn(2, tokens)[..., :64].reshape(-1, 64).contiguous()
    x[3] *= 50
    norm = nn.LayerNorm(64)
    w = kernels.quantize.quantize_rows(drawn(1, 3 * WIDTH)[0, :, :64].contiguous(), codes=e4m3)
    bias = torch.ones(3 * WIDTH)
    reach = kernels.quantize.reach_of(w._replace(codes=w.codes[2 * WIDTH :], scales=w.scales[2 * WIDTH :]), bias[2 * WIDTH :])
    with torch.no_grad():
        a, bounds = kernels.quantize.normalize_rows_towards(x, norm, reach, codes=e4m3)
    qkv = kernels.gemm.multiply(a, w, bias, dtype=torch.bfloat16).view(2, tokens, -1)
    made = kernels.attention.attend_to_codes(qkv, bounds, heads=HEADS)
    assert (qkv[..., 2 * WIDTH :].abs().flatten(0, 1).double() <= 448 * made.scales.double()[:, None]).all()
    assert made.codes.float().abs().max() < 448


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says in the interpreter that it meets what this test is about
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["bounds", "k", "v"])
def test_what_is_not_finite_is_nan_where_float64_has_no_number(kernels: SimpleNamespace, where: str, bad: float) -> None:
    qkv, bounds = drawn(3, 20), torch.ones(60)
    if where == "bounds":
        bounds[25] = float("nan")  # as the pass before says of a row with either
    else:
        qkv[1, 5, {"k": WIDTH, "v": 2 * WIDTH}[where]] = bad
    made = kernels.attention.attend_to_codes(qkv, bounds, heads=HEADS)
    restored = made.codes.float() * made.scales[:, None]
    finite = exact(qkv)[0].isfinite()
    finite[20:40] &= where != "bounds"
    assert torch.equal(restored.isfinite(), finite)
    assert torch.equal(restored.isnan(), ~finite)
    assert not finite[20:40].all()


def test_three_pieces_hold_any_count_of_keys(kernels: SimpleNamespace) -> None:
    for tokens in range(1, kernels.attention.MOST_TOKENS + 1):
        pieces = [piece for piece in kernels.attention.pieces_of(tokens) if piece]
        assert sum(pieces) - pieces[-1] < tokens <= sum(pieces) < tokens + 32
    assert kernels.attention.pieces_of(197) == (128, 64, 16)


@pytest.mark.parametrize(
    ("tokens", "heads", "shares"), [(197, 16, (4, 1, 0)), (197, 512, (1, 3, 16)), (256, 512, (1, 4, 0)), (50, 512, (1, 1, 0))]
)
def test_every_query_is_some_programs(kernels: SimpleNamespace, tokens: int, heads: int, shares: tuple[int, int, int]) -> None:
    found = kernels.attention.shares_of(tokens=tokens, heads=heads, multiprocessors=132)
    assert found == shares
    assert found.programs * found.tiles * 64 + found.tail >= tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": drawn(1, 5).float()}, "qkv: float32 given"),
        ({"qkv": drawn(1, 5)[0]}, r"qkv: shape \[5, 384\] given, needed \[images, tokens"),
        ({"qkv": drawn(1, 5)[..., :320].contiguous()}, r"qkv: shape \[1, 5, 320\] given, needed \[1, 5, 384\]"),
        ({"bounds": torch.ones(4)}, r"bounds: shape \[4\] given, needed \[5\]"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(kernels: SimpleNamespace, change: dict[str, Tensor], message: str) -> None:
    given = {"qkv": drawn(1, 5), "bounds": torch.ones(5)} | change
    with pytest.raises(ValueError, match=message):
        kernels.attention.attend_to_codes(given["qkv"], given["bounds"], heads=HEADS)


def test_more_tokens_are_refused(kernels: SimpleNamespace) -> None:
    with pytest.raises(Unavailable, match="attention coded holds 272 tokens, an image has 273; use cudnn"):
        kernels.attention.attend(drawn(1, 273), heads=HEADS)
