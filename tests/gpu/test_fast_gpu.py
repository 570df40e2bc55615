"""Models on the fast path on a GPU: fused blocks are what their quantization says, graphs repeat them, NF4 is bitsandbytes'."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drawn_model import drawn_model
from emulated_block import emulated, restored_weights
from lowbit_vit.errors import Unavailable
from lowbit_vit.model import fused, lora, nf4_prefetch, precision, serialization
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import AttentionName, Execution
from lowbit_vit.schema.plan import FP8, NF4, W8A8, Fused, FusedNF4, HighPrecision, all_but, uniform

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

DEVICE = "cuda"
HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
needs_fp8 = pytest.mark.skipif(not HAS_FP8, reason="needs compute capability 8.9")
SIXTEEN = FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit")
EIGHT_BIT = [
    W8A8(format="w8a8"),
    pytest.param(FP8(format="fp8"), marks=needs_fp8),
    FusedNF4(format="nf4_fused", double_quantization=False, products="int8"),
    pytest.param(FusedNF4(format="nf4_fused", double_quantization=True, products="fp8"), marks=needs_fp8),
]
WIDE = Architecture(name="wide", image_size=64, patch_size=16, depth=2, heads=16, width=1024, mlp_width=4096)


ATTENTION = pytest.mark.parametrize("attention", ["flash", "coded"])


def wide_model(attention: AttentionName = "flash") -> VisionTransformer:
    return drawn_model(WIDE, attention=attention, qkv="fused", std=0.03).to(DEVICE)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("weights", EIGHT_BIT, ids=lambda weights: weights.name)
@pytest.mark.parametrize("count", [1, 32])
@ATTENTION
def test_a_fused_block_computes_what_its_quantization_says(weights: Fused, count: int, attention: AttentionName) -> None:
    model = wide_model(attention)
    precision.apply_plan(model, uniform(weights, "bf16"))
    block = model.blocks[0]
    assert isinstance(block, fused.FusedBlock)
    x = torch.randn(count, 197, 1024, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    with torch.inference_mode():
        weights_of, kind = restored_weights(block)
        found = block(x).float()
        expected, exact = (emulated(block, x.float(), weights_of, kind, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    # The control: what bf16 alone moves in the same arithmetic.
    assert (found - expected).norm() <= (expected - exact).norm()


@pytest.mark.parametrize("weights", [*EIGHT_BIT, SIXTEEN], ids=lambda weights: weights.name)
@pytest.mark.parametrize("count", [1, 32])
@ATTENTION
def test_a_cuda_graph_repeats_the_eager_logits_on_new_images(weights: Fused, count: int, attention: AttentionName) -> None:
    if attention == "coded" and weights is SIXTEEN:
        pytest.skip("attention coded is for blocks in 8 bits")
    model = wide_model(attention)
    precision.apply_plan(model, uniform(weights, "bf16"))
    replay, eager = prepare(model, "cuda_graph", torch.zeros_like(images(count))), prepare(model, "eager", images(count))
    first = replay(images(count)).clone()
    assert torch.equal(first, eager(images(count)))
    assert torch.equal(first, replay(images(count)))


@pytest.mark.parametrize("weights", [W8A8(format="w8a8"), SIXTEEN], ids=lambda weights: weights.name)
def test_a_replay_keeps_the_weights_that_it_reads(weights: Fused) -> None:
    model = wide_model()
    precision.apply_plan(model, uniform(weights, "bf16"))
    replay = prepare(model, "cuda_graph", images())
    first = replay(images()).clone()
    del model
    gc.collect()
    torch.cuda.empty_cache()
    written_over = [torch.full((1 << 22,), float("nan"), device=DEVICE) for _ in range(16)]
    assert torch.equal(replay(images()), first)
    assert len(written_over) == 16


@pytest.mark.parametrize("by_blocks_from", [1, 1 << 20], ids=["by blocks", "by layers"])
@pytest.mark.parametrize("high", [(), (0,), (2,), (0, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("weights", [SIXTEEN, *EIGHT_BIT[2:]], ids=lambda weights: weights.name)
def test_prefetched_layers_wait_for_their_weights(
    weights: FusedNF4, high: tuple[int, ...], by_blocks_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4_prefetch, "BY_BLOCKS_FROM", by_blocks_from)
    attention: AttentionName = "flash" if high or weights is SIXTEEN else "coded"
    model = drawn_model(replace(WIDE, depth=5), attention=attention, qkv="fused", std=0.03).to(DEVICE)
    precision.apply_plan(model, all_but(high, weights, "bf16") if high else uniform(weights, "bf16"))
    for count in (1, 4, 64):  # kernels start early, then do not
        replay, eager = prepare(model, "cuda_graph", images(count)), prepare(model, "eager", images(count))
        for _ in range(20):
            assert torch.equal(replay(images(count)), eager(images(count)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11 warns of what its own compiler does with an autograd function
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("weights", [HighPrecision(), SIXTEEN], ids=lambda weights: weights.name)
def test_graphs_of_compiled_blocks_agree_with_eager_for_two_batch_sizes(weights: HighPrecision | Fused) -> None:
    model = wide_model()
    precision.apply_plan(model, uniform(weights, "bf16"))
    torch.compiler.reset()  # the compiler counts what other tests compiled of the same code
    for batch in (images(4), images(1)):
        graphed, eager = prepare(model, "compile_graph", batch)(batch), prepare(model, "eager", batch)(batch)
        assert ((graphed - eager).float().norm() / eager.float().norm()).item() < 0.05


@pytest.mark.parametrize("execution", ["compile", "compile_graph"])
def test_fused_blocks_leave_the_compiler_nothing_to_do(execution: Execution) -> None:
    model = wide_model()
    precision.apply_plan(model, uniform(W8A8(format="w8a8"), "bf16"))
    with pytest.raises(Unavailable, match="nothing to compile"):
        prepare(model, execution, images())


def test_nf4_is_nearer_to_bitsandbytes_than_bf16_is_to_fp32() -> None:
    theirs, ours, exact = wide_model(), wide_model(), wide_model()
    precision.apply_plan(theirs, uniform(NF4(format="nf4", double_quantization=False), "bf16"))
    precision.apply_plan(ours, uniform(SIXTEEN, "bf16"))
    precision.apply_plan(exact, uniform(NF4(format="nf4", double_quantization=False), "fp32"))
    for block in exact.blocks:
        block.attention.kernel = "math"  # type: ignore[union-attr]  # flash has no fp32 kernel
    with torch.inference_mode():
        reference, found = theirs(images()).float(), ours(images()).float()
        control = (reference - exact(images().float())).norm()
    assert (found - reference).norm() <= control


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11 warns of what its own compiler does with an autograd function
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_adapters_over_nf4_fused_are_pefts_over_bitsandbytes_in_every_execution() -> None:
    model = drawn_model(WIDE, attention="flash", qkv="separate", std=0.03).to(DEVICE)
    precision.apply_plan(model, uniform(SIXTEEN, "bf16").trained)
    lora.wrap(model.eval(), rank=16, alpha=32, dropout=0.0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in lora.trainable_parameters(model).items():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator).to(DEVICE)
    lora.settle(model)
    expected = prepare(model, "eager", images())(images()).float()
    precision.take_over(model, uniform(SIXTEEN, "bf16"))
    eager = prepare(model, "eager", images())(images()).float()
    assert ((eager - expected).norm() / expected.norm()).item() < 0.02
    replay = prepare(model, "cuda_graph", images())
    for _ in range(20):
        assert torch.equal(replay(images()).float(), eager)
    torch.compiler.reset()
    compiled = prepare(model, "compile_graph", images())(images()).float()
    assert ((compiled - expected).norm() / expected.norm()).item() < 0.05


@pytest.mark.parametrize("weights", [*EIGHT_BIT, SIXTEEN], ids=lambda weights: weights.name)
def test_a_saved_model_gives_the_same_logits(weights: Fused, tmp_path: Path) -> None:
    model, plan = wide_model(), uniform(weights, "bf16")
    precision.apply_plan(model, plan)
    path = tmp_path / "m.safetensors"
    serialization.save_model(model, plan, path, {})
    read = serialization.load_model(path, attention="flash", device=DEVICE)
    with torch.inference_mode():
        assert torch.equal(read(images()), model(images()))
