"""Other libraries' ViTs, tiny, with random weights: wrapped they are the originals, quantized their layers are bitsandbytes' own."""

import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import lowbit_vit
from lowbit_vit.errors import ConfigError, DataError, Unavailable
from lowbit_vit.model import any_vit, block_spec
from lowbit_vit.model.any_vit import high_precision
from lowbit_vit.model.families import family_of
from lowbit_vit.schema.plan import NF4, Int8, Plan, Rule, uniform

SIZE = 64
EXAMPLES = re.findall(r"^```python test\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "any-vit.md").read_text(), re.M | re.S)
ABSENT = Rule(pattern="blocks.7.*", weights=Int8(format="int8", threshold=0.0))


def from_timm(name: str, **arguments: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed; run: tox -e families")
    model: nn.Module = timm.create_model(name, pretrained=False, **{"img_size": SIZE, "depth": 2, "num_classes": 5, **arguments})
    return model


def from_torchvision(**arguments: Any) -> nn.Module:
    sizes = {"image_size": SIZE, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 160, "mlp_dim": 264, "num_classes": 5}
    model: nn.Module = torchvision.models.VisionTransformer(**{**sizes, **arguments})
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": from_torchvision,
    "ViT": partial(from_timm, "vit_tiny_patch16_224"),
    "DeiT, distilled": partial(from_timm, "deit_tiny_distilled_patch16_224"),
    "DeiT III": partial(from_timm, "deit3_small_patch16_224"),
    "DINOv2, 257 tokens": partial(from_timm, "vit_small_patch14_dinov2", img_size=224, embed_dim=128, num_heads=2),
    "DINOv2, 4 registers": partial(from_timm, "vit_small_patch14_reg4_dinov2", img_size=56),
    "DINOv2 giant's SwiGLU": partial(from_timm, "vit_giant_patch14_dinov2", img_size=56, embed_dim=192, num_heads=3),
    "SigLIP so400m's shape": partial(from_timm, "vit_so400m_patch14_siglip_384", img_size=56, embed_dim=144, num_heads=2),
    "SigLIP 2": partial(from_timm, "vit_base_patch16_siglip_gap_256", embed_dim=128, num_heads=2),
    "CLIP, heads of 80": partial(from_timm, "vit_huge_patch14_clip_224", img_size=56, embed_dim=160, num_heads=2),
    "CLIP, quick GELU": partial(from_timm, "vit_base_patch32_clip_quickgelu_224", embed_dim=128, num_heads=2),
    "norm of q and k": partial(from_timm, "vit_tiny_patch16_224", qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True),
    "DINOv3": partial(from_timm, "vit_small_patch16_dinov3", embed_dim=128, num_heads=2),
    "DINOv3 with bias": partial(from_timm, "vit_small_patch16_dinov3_qkvb", embed_dim=128, num_heads=2),
    "DINOv3, SwiGLU": partial(from_timm, "vit_small_plus_patch16_dinov3", embed_dim=128, num_heads=2),
    "EVA-02": partial(from_timm, "eva02_large_patch14_448", img_size=56, embed_dim=128, num_heads=2),
    "EVA-02, small": partial(from_timm, "eva02_tiny_patch14_224", img_size=56),
    "EVA-02 CLIP": partial(from_timm, "eva02_base_patch16_clip_224", embed_dim=128, num_heads=2),
    "mixed RoPE": partial(from_timm, "vit_small_patch16_rope_mixed_224", embed_dim=128, num_heads=2),
}


def drawn(name: str) -> nn.Module:
    """In evaluation mode; norms, biases and LayerScale far from what they begin with."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(model: Any, count: int = 2) -> Tensor:
    size = model.image_size if hasattr(model, "image_size") else model.patch_embed.img_size[0]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def difference(found: Tensor, expected: Tensor) -> float:
    return float(((found.float() - expected.float()).norm() / expected.float().norm()).item())


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_a_wrapped_model_is_the_original(name: str) -> None:
    model = drawn(name)
    given = images(model)
    expected, in_bf16 = model(given), copy.deepcopy(model).to(torch.bfloat16)
    wrapped_in_bf16 = any_vit.quantize_(copy.deepcopy(model), high_precision(torch.bfloat16))
    assert difference(any_vit.quantize_(model, high_precision(torch.float32))(given), expected) < 1e-5
    control = difference(in_bf16(given.bfloat16()), expected)
    assert difference(wrapped_in_bf16(given), expected) < 1.5 * control  # takes images in fp32, too


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in MODELS if name != "torchvision"])
def test_features_and_intermediate_layers_stay(name: str) -> None:
    model = drawn(name)
    given = images(model)
    ways: list[Callable[[], Any]] = [
        lambda: model.forward_features(given),  # type: ignore[operator]
        lambda: torch.cat(model.forward_intermediates(given, norm=True, intermediates_only=True, output_fmt="NLC"), 1),  # type: ignore[operator]
    ]
    if hasattr(model, "get_intermediate_layers"):
        ways.append(lambda: torch.cat(model.get_intermediate_layers(given, 2), 1))  # type: ignore[operator]
    expected = [way() for way in ways]
    any_vit.quantize_(model, high_precision(torch.float32))
    for way, before in zip(ways, expected, strict=True):
        assert difference(way(), before) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", ["torchvision", "ViT", "DINOv3"])
def test_hooks_on_blocks_stay_and_their_handles_remove_them(name: str) -> None:
    model = drawn(name)
    path = "encoder.layers.encoder_layer_1" if name == "torchvision" else "blocks.1"
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _module, _given, out: seen.append(out))
    model(images(model))
    any_vit.quantize_(model, high_precision(torch.float32))
    model(images(model))
    assert difference(seen[1], seen[0]) < 1e-5
    handle.remove()
    model(images(model))
    assert len(seen) == 2


@torch.inference_mode()
@pytest.mark.parametrize("what", ["int8", "nf4"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_equal_bitsandbytes_own(name: str, what: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = drawn(name)
    if model.get_parameter(next(n for n, p in model.named_parameters() if p.ndim == 2)).shape[1] % 64 and what == "nf4":
        pytest.skip("NF4 needs a width of whole blocks of 64")
    original = copy.deepcopy(model)
    any_vit.quantize_(model, what)
    _, container = family_of(original)[1].blocks(original)
    spec = family_of(original)[1].spec(container[1])
    multiple = 64 if what == "nf4" else 16
    for inside, linear in spec.linears(multiple=multiple, fold=False):
        ours = any_vit.blocks_of(model)[1].linears()[inside]
        if what == "int8":
            theirs = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False, threshold=any_vit.THRESHOLD)
        else:
            theirs = bnb.nn.LinearNF4(linear.in_features, linear.out_features, compute_dtype=torch.float32, compress_statistics=False)
            theirs.support_avx512bf16_for_cpu = False
        theirs.load_state_dict({"weight": linear.weight, "bias": linear.bias})
        theirs = theirs.eval().to("cpu")
        x = torch.randn(1, 7, linear.in_features, generator=torch.Generator().manual_seed(2))
        assert torch.equal(ours(x), theirs(x)), inside


@pytest.mark.parametrize(("multiple", "padded"), [(16, 2736), (64, 2752)])
@pytest.mark.parametrize("name", ["EVA-02", "DINOv2 giant's SwiGLU", "SigLIP so400m's shape"])
def test_padding_and_folding_are_the_same_algebra(name: str, multiple: int, padded: int) -> None:
    assert 2730 + -2730 % multiple == padded
    model = drawn(name).double()
    _, family = family_of(model)
    container = family.blocks(model)[1]
    spec = family.spec(container[0])
    made = dict(spec.linears(multiple=multiple, fold=True))
    assert made["mlp.fc2"].in_features % multiple == 0
    x = torch.randn(1, 17, spec.norm1.width, dtype=torch.float64)
    tables = model.rope.get_embed() if name == "EVA-02" else None  # type: ignore[union-attr,operator]
    ours = block_spec.SpecBlock(spec, dict(made), kernel="math", dtype=torch.float64, fold=True).double()
    expected = container[0](x) if tables is None else container[0](x, rope=tables)
    assert difference(ours(x, tables), expected) < 1e-6  # fp32 weights


@torch.inference_mode()
def test_a_description_says_what_each_layer_became() -> None:
    model = drawn("EVA-02")
    plan = Plan(compute_dtype="fp32", rules=(Rule(pattern="blocks.1.*", weights=NF4(format="nf4", double_quantization=True)),))
    found = lowbit_vit.describe(lowbit_vit.quantize_(model, plan))
    assert [layer.format for layer in found.layers] == ["high"] * 4 + ["nf4-dq"] * 4
    fc1, fc2 = found.layers[6:]
    assert (fc1.shape, fc1.padded, fc2.shape, fc2.padded) == ((768, 128), 86, (128, 384), 43)  # 341 -> 384, twice in the gated fc1
    assert sum(layer.bytes for layer in found.layers) < found.bytes
    assert "blocks.1.mlp.fc1" in str(found)
    assert "nf4-dq" in str(found)


def test_an_unsupported_block_is_named_with_its_reason_and_stays_if_asked() -> None:
    model = drawn("ViT")
    model.blocks[1].mlp.act = nn.Tanh()  # type: ignore[index,union-attr]
    original, given = copy.deepcopy(model), images(model)
    with pytest.raises(ConfigError, match=r"blocks\.1\.mlp\.act: activation Tanh is not supported"):
        lowbit_vit.quantize_(model, "int8")
    assert torch.equal(model(given), original(given))  # it was not touched
    lowbit_vit.quantize_(model, high_precision(torch.float32), partial=True)
    assert difference(model(given), original(given)) < 1e-5
    ((path, reason),) = lowbit_vit.describe(model).left
    assert (path, reason.split(":")[0]) == ("blocks.1", "mlp.act")


def test_hooks_inside_a_block_are_refused_for_they_would_be_lost() -> None:
    model = drawn("ViT")
    model.blocks[0].attn.register_forward_hook(lambda *_: None)  # type: ignore[index,union-attr]
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn: it has hooks"):
        lowbit_vit.quantize_(model, "int8")


@pytest.mark.parametrize("what", ["fp8", "w8a8"])
def test_formats_of_gpu_kernels_are_refused_on_a_cpu_in_one_line(what: str) -> None:
    with pytest.raises(Unavailable, match=f"{what} needs CUDA, the model is on cpu; there int8 and nf4 run"):
        lowbit_vit.quantize_(drawn("ViT"), what)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: lowbit_vit.quantize_(model.train(), "int8"), "training mode"),
        (lambda model: lowbit_vit.quantize_(model, "int3"), "'int3' is no format"),
        (lambda model: lowbit_vit.quantize_(model, "int8", execution="fast"), "execution 'fast'"),
        (lambda model: lowbit_vit.quantize_(model, Plan(compute_dtype="fp32", rules=(ABSENT,))), "matches none"),
        (lambda _: lowbit_vit.quantize_(nn.Linear(2, 2).eval(), "int8"), "no supported model"),
        (lambda model: lowbit_vit.quantize_(model, "int8").half(), "not cast or moved"),
        (lambda model: lowbit_vit.quantize_(model, "int8").train()(images(model)), "for evaluation"),
        (lambda model: lowbit_vit.quantize_(model, "int8").forward_features(images(model), attn_mask=torch.ones(1)), "no attention mask"),
        (lowbit_vit.describe, "was not quantized"),
    ],
)
def test_what_cannot_be_is_refused(change: Callable[[nn.Module], Any], reason: str) -> None:
    model = drawn("ViT")
    with pytest.raises(ConfigError, match=reason):
        change(model)


@torch.inference_mode()
@pytest.mark.parametrize(
    "what", ["int8", "nf4", uniform(Int8(format="int8", threshold=0.0), "bf16"), high_precision(torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("name", ["torchvision", "DINOv2, 4 registers", "SigLIP 2", "DINOv3", "EVA-02", "DeiT, distilled"])
def test_a_saved_model_is_read_back_to_the_bit(name: str, what: Any, tmp_path: Path) -> None:
    model = drawn(name)
    if name == "torchvision" and what == "nf4":
        pytest.skip("its width is no multiple of 64")
    lowbit_vit.quantize_(model, what)
    expected = model(images(model))
    path = lowbit_vit.save(model, tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix not in (".json", ".safetensors")]
    read = lowbit_vit.load(tmp_path)
    assert torch.equal(read(images(read)), expected)
    assert lowbit_vit.describe(read) == lowbit_vit.describe(model)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="sha256"):
        lowbit_vit.load(tmp_path)


@torch.inference_mode()
def test_what_the_constructor_would_not_build_again_is_not_saved(tmp_path: Path) -> None:
    changed = drawn("ViT")
    changed.blocks[0].norm1 = nn.Identity()  # type: ignore[index,union-attr]
    lowbit_vit.quantize_(changed, "int8", partial=True)
    with pytest.raises(ConfigError, match=r"save: blocks\.0\.norm1\.weight is missing, and \[192\] in what load would build"):
        lowbit_vit.save(changed, tmp_path)
    fewer = lowbit_vit.quantize_(drawn("EVA-02"), "int8")
    del fewer.blocks[1]
    with pytest.raises(ConfigError, match=r"save: blocks\.1\.norm1\.weight is missing, and \[\d+\] in what load would build; timm before"):
        lowbit_vit.save(fewer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_of_another_model_is_refused(tmp_path: Path) -> None:
    model = lowbit_vit.quantize_(drawn("ViT"), "int8")
    card = lowbit_vit.save(model, tmp_path).with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "family": "none"}))
    with pytest.raises(DataError, match="not a saved model"):
        lowbit_vit.load(tmp_path)


@torch.inference_mode()
def test_rotary_positions_are_made_once_for_a_size() -> None:
    model = drawn("DINOv3")
    lowbit_vit.quantize_(model, high_precision(torch.float32))
    tables: Any = model.rope.get_embed  # type: ignore[union-attr]
    first = tables((4, 4))
    assert tables((4, 4)) is first
    assert tables((2, 4)).shape[0] == 8
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 5)


@torch.inference_mode()
def test_the_users_own_compile_works_around_quantized_blocks() -> None:
    model = lowbit_vit.quantize_(drawn("ViT"), "int8")
    expected = model(images(model))
    compiled: Any = torch.compile(model, backend="eager")
    assert torch.equal(compiled(images(model)), expected)


@pytest.mark.parametrize("example", EXAMPLES, ids=["timm", "torchvision"])
def test_an_example_of_the_documentation_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "timm" in example:
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/any-vit.md", "exec"), {})
