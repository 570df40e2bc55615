"""The encoder is torchvision's: the same weights give the same features and logits, and a wrong encoder is noticed."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.checkpoint import from_torchvision, restore
from lowbit_vit.model.vit import (
    ARCHITECTURES,
    Architecture,
    Block,
    VisionTransformer,
    architecture,
    encoder_linears,
    fuse_qkv,
    split_qkv,
)
from lowbit_vit.schema.config import AttentionName, QkvLayout, SmallVit

TOLERANCE = 1e-5
CLASSES = 11
SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=3, heads=4, width=64, mlp_width=128)

# The two base models whole; of the large ones the first blocks at full width, which is where they differ from the base.
TESTED_DEPTH = {"vit_b_16": 12, "vit_b_32": 12, "vit_l_16": 2, "vit_l_32": 2, "vit_h_14": 2}


def torchvision_model(arch: Architecture) -> nn.Module:
    """torchvision's model with nothing at a value that hides a mistake: its fresh head, biases and class token are zero."""
    with torch.device("meta"):
        model: nn.Module = TorchvisionTransformer(
            image_size=arch.image_size,
            patch_size=arch.patch_size,
            num_layers=arch.depth,
            num_heads=arch.heads,
            hidden_dim=arch.width,
            mlp_dim=arch.mlp_width,
            num_classes=CLASSES,
        )
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "ln" in name and name.endswith("weight"):
            # Around one: around zero a norm would drown what its block computes.
            nn.init.normal_(parameter, 1.0, 0.02, generator=generator)
        elif name.endswith("bias") or "head" in name or name in ("class_token", "encoder.pos_embedding"):
            nn.init.normal_(parameter, 0.0, 0.02, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
    return model


@torch.no_grad()
def torchvision_outputs(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Features after every block, then logits."""
    after: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: after.append(output)) for block in model.encoder.layers]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return (*after, logits)


@torch.no_grad()
def our_outputs(model: VisionTransformer, images: Tensor) -> tuple[Tensor, ...]:
    return (*model.features(images), model(images))


def worst(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def our_model(state: dict[str, Tensor], arch: Architecture, *, attention: AttentionName, qkv: QkvLayout) -> VisionTransformer:
    """Ours, with torchvision's weights; made of uninitialised memory, so that a value left alone would show."""
    with torch.device("meta"):
        model = VisionTransformer(arch, num_classes=CLASSES, attention=attention, qkv=qkv)
    model = model.to_empty(device="cpu").eval()
    restore(model, from_torchvision(state), source="torchvision")
    return model


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_features_after_every_block_and_logits_equal_torchvisions(name: Any) -> None:
    arch = replace(ARCHITECTURES[name], depth=TESTED_DEPTH[name])
    theirs = torchvision_model(arch)
    images = torch.randn(1, 3, arch.image_size, arch.image_size, generator=torch.Generator().manual_seed(2))
    expected = torchvision_outputs(theirs, images)
    assert len(expected) == arch.depth + 1
    assert min(float(tensor.std()) for tensor in expected) > 0.1
    model = our_model(theirs.state_dict(), arch, attention="flash", qkv="separate")
    assert worst(our_outputs(model, images), expected) <= TOLERANCE


@pytest.mark.parametrize(("attention", "qkv"), list(itertools.product(["math", "flash"], ["separate", "fused"])))
def test_every_cpu_kernel_and_layout_gives_torchvisions_numbers(attention: AttentionName, qkv: QkvLayout) -> None:
    theirs = torchvision_model(SMALL)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model = our_model(theirs.state_dict(), SMALL, attention=attention, qkv=qkv)
    assert worst(our_outputs(model, images), torchvision_outputs(theirs, images)) <= TOLERANCE
    channels_last = images.to(memory_format=torch.channels_last)
    assert worst(our_outputs(model, channels_last), torchvision_outputs(theirs, images)) <= TOLERANCE


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_patch_embedding_by_a_product_is_the_convolution(memory_format: torch.memory_format) -> None:
    model = VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate").double()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64).to(memory_format=memory_format)  # no square: rows and columns are told apart
    torch.testing.assert_close(model.patches_by_gemm(images), model.patches(images), rtol=0, atol=1e-12)


# In exact arithmetic the k biases change nothing: q . (k + b) adds the same number to a whole row before its softmax.
WITHOUT_EFFECT = {f"blocks.{block}.attention.k.bias" for block in range(SMALL.depth)}


def parameter_names() -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate").named_parameters()]


@pytest.mark.parametrize("name", [name for name in parameter_names() if name not in WITHOUT_EFFECT])
def test_the_comparison_notices_one_wrong_parameter(name: str) -> None:
    theirs = torchvision_model(SMALL)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model = our_model(theirs.state_dict(), SMALL, attention="math", qkv="separate")
    with torch.no_grad():
        wrong = model.get_parameter(name)
        wrong.copy_(wrong.flatten().roll(1).view_as(wrong))
    assert worst(our_outputs(model, images), torchvision_outputs(theirs, images)) > 10 * TOLERANCE


def swap(first: str, second: str) -> Callable[[VisionTransformer], None]:
    def mutate(model: VisionTransformer) -> None:
        for block in model.blocks:
            one, other = getattr(block.attention, first), getattr(block.attention, second)
            setattr(block.attention, first, other)
            setattr(block.attention, second, one)

    return mutate


def fewer_heads(model: VisionTransformer) -> None:
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention.heads = SMALL.heads // 2


def coarse_eps(model: VisionTransformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # PyTorch's default


def swapped_norms(model: VisionTransformer) -> None:
    for block in model.blocks:
        block.norm1, block.norm2 = block.norm2, block.norm1


def reversed_blocks(model: VisionTransformer) -> None:
    model.blocks = nn.ModuleList(reversed(list(model.blocks)))


def transposed_patches(model: VisionTransformer) -> None:
    model.patch_embedding.weight.data = model.patch_embedding.weight.data.transpose(2, 3)


@pytest.mark.parametrize(
    "mutate",
    [swap("q", "k"), swap("k", "v"), swap("v", "out"), fewer_heads, coarse_eps, swapped_norms, reversed_blocks, transposed_patches],
    ids=["q for k", "k for v", "v for out", "fewer heads", "eps 1e-5", "norms swapped", "blocks reversed", "patches transposed"],
)
def test_the_comparison_notices_a_wrong_encoder(mutate: Callable[[VisionTransformer], None]) -> None:
    theirs = torchvision_model(SMALL)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model = our_model(theirs.state_dict(), SMALL, attention="math", qkv="separate")
    mutate(model)
    assert worst(our_outputs(model, images), torchvision_outputs(theirs, images)) > 100 * TOLERANCE


def test_the_comparison_notices_the_tanh_gelu() -> None:
    theirs = torchvision_model(SMALL)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = torchvision_outputs(theirs, images)
    model = our_model(theirs.state_dict(), SMALL, attention="math", qkv="separate")
    for block in model.blocks:
        block.mlp.activation = nn.GELU(approximate="tanh")  # type: ignore[union-attr]
    assert worst(our_outputs(model, images), expected) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "parameters", "tokens", "linears"),
    [
        # Parameters as torchvision's model pages state them.
        ("vit_b_16", 86_567_656, 197, 72),
        ("vit_b_32", 88_224_232, 50, 72),
        ("vit_l_16", 304_326_632, 197, 144),
        ("vit_l_32", 306_535_400, 50, 144),
        ("vit_h_14", 632_045_800, 257, 192),
    ],
)
def test_sizes_are_the_published_ones(name: Any, parameters: int, tokens: int, linears: int) -> None:
    arch = architecture(name, 224)
    with torch.device("meta"):
        separate = VisionTransformer(arch, num_classes=1000, attention="flash", qkv="separate")
        fused = VisionTransformer(arch, num_classes=1000, attention="flash", qkv="fused")
    assert sum(parameter.numel() for parameter in separate.parameters()) == parameters
    assert sum(parameter.numel() for parameter in fused.parameters()) == parameters
    assert arch.tokens == tokens
    assert len(encoder_linears(separate)) == linears
    assert len(encoder_linears(fused)) == linears * 4 // 6


def test_encoder_linears_are_every_linear_but_the_head_in_the_order_they_run() -> None:
    model = VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate")
    ran: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda hooked, _inputs, _output: ran.append(hooked))
    model(torch.randn(1, 3, 16, 16))
    assert ran.pop() is model.head
    assert list(encoder_linears(model).values()) == ran
    assert list(encoder_linears(model))[:6] == [
        "blocks.0.attention.q",
        "blocks.0.attention.k",
        "blocks.0.attention.v",
        "blocks.0.attention.out",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
    ]


def test_fusing_and_splitting_qkv_are_inverse_and_rows_are_q_then_k_then_v() -> None:
    separate = VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate").state_dict()
    fused = fuse_qkv(separate)
    assert set(fused) == set(VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="fused").state_dict())
    width = SMALL.width
    for row, projection in enumerate(("q", "k", "v")):
        rows = fused["blocks.1.attention.qkv.weight"][row * width : (row + 1) * width]
        assert torch.equal(rows, separate[f"blocks.1.attention.{projection}.weight"])
    again = split_qkv(fused)
    assert again.keys() == separate.keys()
    assert all(torch.equal(again[name], separate[name]) for name in separate)


@torch.no_grad()
def test_a_fresh_model_depends_on_its_encoder_and_on_the_seed() -> None:
    def fresh(seed: int) -> VisionTransformer:
        torch.manual_seed(seed)
        return VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate")

    first, same, other = fresh(0), fresh(0), fresh(1)
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(first(images), same(images))
    assert not torch.allclose(first(images), other(images))
    assert float(first(images).std(dim=0).min()) > 0
    for name, parameter in first.named_parameters():
        if parameter.ndim > 1 and name != "patch_embedding.weight":
            encoder_linear = name.startswith("blocks.")
            std = math.sqrt(2 / sum(parameter.shape)) if encoder_linear else 0.02
            assert 0.75 * std < float(parameter.std()) < 1.05 * std, name
            assert float(parameter.abs().max()) <= 2 * std + 1e-6, name


@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    model = VisionTransformer(SMALL, num_classes=CLASSES, attention="math", qkv="separate")
    for run in (model, model.features):
        with pytest.raises(DataError, match=r"takes \[batch, 3, 16, 16\]; prepare the data with views.image_size = 16"):
            run(torch.zeros(shape))


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size 230 is not a multiple of the patch size 16; nearest: 224"):
        architecture("vit_l_16", 230)
    small = SmallVit(patch_size=3, depth=1, heads=4, width=64, mlp_width=128)
    with pytest.raises(ConfigError, match="image_size 8 is not a multiple of the patch size 3"):
        architecture(small, 8)


def test_small_sizes_come_from_the_profile() -> None:
    small = SmallVit(patch_size=2, depth=8, heads=4, width=64, mlp_width=256)
    assert architecture(small, 8) == Architecture(name="small", image_size=8, patch_size=2, depth=8, heads=4, width=64, mlp_width=256)
    assert architecture("vit_h_14", 448).tokens == 32 * 32 + 1


@pytest.mark.parametrize("qkv", ["separate", "fused"])
def test_a_block_is_captured_whole_by_the_compiler(qkv: QkvLayout) -> None:
    # backend "eager" runs the captured graph without building code: this is about graph breaks, not speed.
    model = VisionTransformer(SMALL, num_classes=CLASSES, attention="flash", qkv=qkv).eval()
    tokens = torch.randn(2, SMALL.tokens, SMALL.width)
    captured = torch.compile(model.blocks[0], fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(captured(tokens), model.blocks[0](tokens))
