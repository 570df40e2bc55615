"""Low-bit layers, adapters, saved models and executions on a CUDA device: the claims of tests/model, where the kernels differ."""

from pathlib import Path

import pytest
import torch
from torch import nn

from drawn_model import drawn_model
from lowbit_vit.errors import Unavailable
from lowbit_vit.model import lora, precision, serialization
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import NF4, ComputeDtype, HighPrecision, Int8, uniform

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

DEVICE = "cuda"
HIGH = HighPrecision()
INT8_0 = Int8(format="int8", threshold=0.0)
INT8_6 = Int8(format="int8", threshold=6.0)
SINGLE = NF4(format="nf4", double_quantization=False)
DOUBLE = NF4(format="nf4", double_quantization=True)
FORMATS = pytest.mark.parametrize("weights", [HIGH, INT8_0, INT8_6, SINGLE, DOUBLE], ids=lambda weights: weights.name)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "tf32", "fp16", "bf16"])
SMALL = Architecture(name="small", image_size=32, patch_size=4, depth=2, heads=4, width=256, mlp_width=512)


def fp32_model() -> VisionTransformer:
    return drawn_model(SMALL, attention="math", qkv="separate", std=0.05).to(DEVICE)


def images(dtype: ComputeDtype) -> torch.Tensor:
    stored = precision.compute_dtype(uniform(HIGH, dtype))
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE, stored)


@FORMATS
@DTYPES
def test_conversion_on_the_gpu_is_counted_weighed_and_close(weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype) -> None:
    plan, model = uniform(weights, dtype), fp32_model()
    with torch.inference_mode():
        expected = model(images("fp32"))
    held = precision.expected_bytes(model, plan)
    assert precision.apply_plan(model, plan).by_format == {weights.name: 12}
    assert precision.weight_bytes(model) == held
    with torch.inference_mode(), precision.matmul_mode(plan):
        logits = model(images(dtype))
    bound = {"high": 0.02, "int8-0": 0.05, "int8-6": 0.05, "nf4": 0.3, "nf4-dq": 0.3}[weights.name]
    assert ((logits.float() - expected).norm() / expected.norm()).item() < bound


@FORMATS
def test_a_block_converted_for_a_scan_equals_the_applied_one(weights: HighPrecision | Int8 | NF4) -> None:
    source, applied = fp32_model(), fp32_model()
    precision.apply_plan(applied, uniform(weights, "fp16"))
    formats = {name.removeprefix("blocks.1."): weights for name in encoder_linears(source) if name.startswith("blocks.1.")}
    block = precision.convert_block(source.blocks[1], formats, torch.float16)
    expected = applied.blocks[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in block.state_dict().items())


@FORMATS
@DTYPES
def test_adapters_train_and_the_adapted_model_reloads_bit_equal(
    weights: HighPrecision | Int8 | NF4, dtype: ComputeDtype, tmp_path: Path
) -> None:
    plan, model = uniform(weights, dtype), fp32_model()
    precision.apply_plan(model, plan)
    lora.wrap(model, rank=4, alpha=8.0, dropout=0.0)
    trained = lora.trainable_parameters(model)
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.05)
    model.train()
    nn.functional.cross_entropy(model(images(dtype)), torch.arange(4, device=DEVICE)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.values())
    model.eval()
    with torch.inference_mode():
        expected = model(images(dtype))
    serialization.save_model(model, plan, tmp_path / "m.safetensors", {})
    loaded = serialization.load_model(tmp_path / "m.safetensors", attention="math", device=DEVICE)
    with torch.inference_mode():
        assert torch.equal(loaded(images(dtype)), expected)


@pytest.mark.parametrize("weights", [HIGH, INT8_0, SINGLE, DOUBLE], ids=lambda weights: weights.name)
def test_a_captured_graph_repeats_the_eager_logits_on_new_images(weights: HighPrecision | Int8 | NF4) -> None:
    model = fp32_model()
    precision.apply_plan(model, uniform(weights, "fp16"))
    replay = prepare(model, "cuda_graph", torch.zeros_like(images("fp16")))
    eager = prepare(model, "eager", images("fp16"))
    assert torch.equal(replay(images("fp16")), eager(images("fp16")))
    with pytest.raises(ValueError, match="captured for"):
        replay(images("fp16")[:2])


def test_int8_with_a_threshold_cannot_be_captured_and_says_why() -> None:
    model = fp32_model()
    precision.apply_plan(model, uniform(INT8_6, "fp16"))
    with pytest.raises(Unavailable, match="threshold 6"):
        prepare(model, "cuda_graph", images("fp16"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11 warns of what its own compiler does with an autograd function
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("weights", [HIGH, INT8_0, SINGLE], ids=lambda weights: weights.name)
def test_compiled_blocks_agree_with_eager_for_two_batch_sizes(weights: HighPrecision | Int8 | NF4) -> None:
    model = fp32_model()
    precision.apply_plan(model, uniform(weights, "bf16"))
    for batch in (images("bf16"), images("bf16")[:1]):
        compiled, eager = prepare(model, "compile", batch)(batch), prepare(model, "eager", batch)(batch)
        assert ((compiled - eager).float().norm() / eager.float().norm()).item() < 0.05
