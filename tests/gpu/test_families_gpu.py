"""Other libraries' ViTs on a GPU: in 8 bits and NF4 they stay near the originals, graphs give eager's results for every batch size."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import lowbit_vit
from emulated_block import emulated, restored_weights
from lowbit_vit.errors import Unavailable
from lowbit_vit.model import graphs
from lowbit_vit.model.any_vit import blocks_of, high_precision
from lowbit_vit.model.fused import FusedBlock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch 2.11 warns of its own modules when it compiles
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
FORMATS = [pytest.param("fp8", marks=pytest.mark.skipif(not HAS_FP8, reason="needs compute capability 8.9")), "w8a8", "nf4", "int8"]
# Relative error of the features against fp32, two blocks of random weights; bf16 alone is near .01. What a block computes is tested closer.
MOST = {"fp8": 0.2, "w8a8": 0.08, "nf4": 0.3, "int8": 0.08}


def from_timm(name: str, **arguments: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed; run: tox -e families")
    model: nn.Module = timm.create_model(name, pretrained=False, **{"depth": 2, "num_classes": 0, **arguments})
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=256, mlp_dim=1024
    ),
    "ViT": partial(from_timm, "vit_small_patch16_224"),
    "DINOv2, 257 tokens": partial(from_timm, "vit_small_patch14_dinov2", img_size=224),
    "DINOv2 giant's SwiGLU": partial(from_timm, "vit_giant_patch14_dinov2", img_size=56, embed_dim=384, num_heads=6),
    "SigLIP so400m": partial(from_timm, "vit_so400m_patch14_siglip_384", img_size=112),
    "CLIP, heads of 80": partial(from_timm, "vit_huge_patch14_clip_224", img_size=56),
    "CLIP, quick GELU": partial(from_timm, "vit_base_patch32_clip_quickgelu_224", img_size=64),
    "DINOv3": partial(from_timm, "vit_small_patch16_dinov3", img_size=128),
    "EVA-02 L": partial(from_timm, "eva02_large_patch14_448", img_size=112),
    "EVA-02 tiny": partial(from_timm, "eva02_tiny_patch14_336", img_size=112),
}


def drawn(name: str) -> nn.Module:
    """In fp32 on the GPU; norms, biases and LayerScale far from what they begin with."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_((0.2 if "gamma" in place else 0.05) * torch.randn_like(parameter))
            if "heads.head.weight" in place:
                parameter.normal_(std=0.02)
    return model.cuda()


def images(model: Any, count: int = 2) -> Tensor:
    size = model.image_size if hasattr(model, "image_size") else model.patch_embed.img_size[0]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).cuda()


def difference(found: Tensor, expected: Tensor) -> float:
    return float(((found.float() - expected.float()).norm() / expected.float().norm()).item())


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_a_wrapped_model_in_bf16_is_as_near_to_fp32_as_the_original(name: str) -> None:
    model = drawn(name)
    given = images(model)
    expected, control = model(given), copy.deepcopy(model).to(torch.bfloat16)(images(model).bfloat16())
    lowbit_vit.quantize_(model, high_precision(torch.bfloat16))
    assert difference(model(given), expected) < 1.5 * difference(control, expected)


@torch.inference_mode()
@pytest.mark.parametrize("what", FORMATS[:2])
@pytest.mark.parametrize("name", MODELS)
def test_a_fused_block_computes_what_its_quantization_says(name: str, what: str) -> None:
    model = lowbit_vit.quantize_(drawn(name), what)
    seen: list[tuple[Any, ...]] = []
    handle = blocks_of(model)[1].register_forward_pre_hook(
        lambda _, given, named: seen.append((*given, named.get("rope"))), with_kwargs=True
    )
    model(images(model))
    handle.remove()
    x, tables, *_ = seen[0]
    block = blocks_of(model)[1].inner
    assert isinstance(block, FusedBlock)
    weights, kind = restored_weights(block)
    found = block(x, tables).float()
    expected, exact = (emulated(block, x.float(), weights, kind, dtype=dtype, tables=tables) for dtype in (torch.bfloat16, torch.float32))
    # The control: what bf16 alone moves in the same arithmetic; tables in bf16 are the same in both.
    assert (found - expected).norm() <= 1.2 * (expected - exact).norm()


@torch.inference_mode()
@pytest.mark.parametrize("what", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_is_near_the_original(name: str, what: str) -> None:
    model = drawn(name)
    given = images(model)
    expected = model(given)
    lowbit_vit.quantize_(model, what)
    assert difference(model(given), expected) < MOST[what]


@torch.inference_mode()
@pytest.mark.parametrize("what", ["bf16", *FORMATS[:3]])
@pytest.mark.parametrize("name", ["torchvision", "DINOv2, 257 tokens", "SigLIP so400m", "CLIP, quick GELU", "DINOv3", "EVA-02 L"])
def test_graphs_give_the_eager_results_for_every_batch_size(name: str, what: str) -> None:
    torch.compiler.reset()
    model = drawn(name)
    chosen = high_precision(torch.bfloat16) if what == "bf16" else what
    eager = lowbit_vit.quantize_(copy.deepcopy(model), chosen)
    graphed = lowbit_vit.quantize_(model, chosen, execution="cuda_graph")
    for count in (1, 3, 4, 2, 3):
        given = images(model, count)
        found = graphed(given)
        assert found.shape[0] == count
        assert difference(found, eager(given)) < 0.05  # compiled parts round elsewhere
        assert torch.equal(graphed(given), found)


@torch.inference_mode()
def test_graphs_stay_few_and_large_batches_are_eager() -> None:
    model = lowbit_vit.quantize_(drawn("ViT"), "w8a8", execution="cuda_graph")
    forward = model.forward
    assert isinstance(forward, graphs.Graphs)
    for count in (1, 2, 3, 5, 9, 17, 1, 2):
        model(images(model, count))
    assert len(forward._captured) == graphs.MOST_GRAPHS
    assert model(images(model, graphs.SIZES[-1] + 1)).shape[0] == graphs.SIZES[-1] + 1
    assert len(forward._captured) == graphs.MOST_GRAPHS


@torch.inference_mode()
def test_graphs_serve_threads_and_streams() -> None:
    model = lowbit_vit.quantize_(drawn("ViT"), "w8a8", execution="cuda_graph")
    batches = [torch.randn_like(images(model, count)) for count in (1, 2, 3, 4) * 4]
    expected = [model(batch) for batch in batches]
    torch.cuda.synchronize()
    found: dict[int, Tensor] = {}

    def serve(place: int) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(20):
                found[place] = model(batches[place])
        stream.synchronize()

    threads = [threading.Thread(target=serve, args=(place,)) for place in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[place], expected[place]) for place in range(len(batches)))


@torch.inference_mode()
def test_hooks_on_blocks_run_although_there_are_graphs() -> None:
    model = lowbit_vit.quantize_(drawn("DINOv3"), "w8a8", execution="cuda_graph")
    model(images(model))
    seen: list[Tensor] = []
    handle = model.blocks[1].register_forward_hook(lambda _module, _given, out: seen.append(out))
    model(images(model))
    handle.remove()
    model(images(model))
    assert len(seen) == 1


@torch.inference_mode()
@pytest.mark.parametrize("what", FORMATS)
@pytest.mark.parametrize("name", ["torchvision", "DINOv2, 257 tokens", "EVA-02 tiny"])
def test_a_saved_model_is_read_back_to_the_bit(name: str, what: str, tmp_path: Path) -> None:
    model = lowbit_vit.quantize_(drawn(name), what)
    lowbit_vit.save(model, tmp_path)
    read = lowbit_vit.load(tmp_path, "cuda")
    assert torch.equal(read(images(read)), model(images(model)))


def test_layers_that_wait_for_the_host_are_refused_in_a_graph() -> None:
    with pytest.raises(Unavailable, match="threshold"):
        lowbit_vit.quantize_(drawn("ViT"), "int8", execution="cuda_graph")
