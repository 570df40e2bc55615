import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowbit_vit.model.flops import forward_flop, least_work, needed_bytes, parameter_count
from lowbit_vit.model.precision import apply_plan, weight_bytes
from lowbit_vit.model.vit import ARCHITECTURES, Architecture, VisionTransformer
from lowbit_vit.schema.plan import NF4, uniform

SMALL = Architecture(name="small", image_size=32, patch_size=8, depth=3, heads=2, width=64, mlp_width=192)
LARGE = ARCHITECTURES["vit_l_16"]


@pytest.mark.parametrize("layout", ["separate", "fused"])
def test_operations_are_those_that_torch_counts(layout: str) -> None:
    model = VisionTransformer(SMALL, num_classes=10, attention="math", qkv="fused" if layout == "fused" else "separate").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(4, 3, 32, 32))
    assert forward_flop(SMALL, num_classes=10, batch_size=4) == counter.get_total_flops()


def test_a_forward_of_vit_l_16_is_twice_torchvisions_61_55_billion_multiply_adds() -> None:
    # torchvision's own figure for the model: `_ops` of its weights, in 10^9.
    assert forward_flop(LARGE, num_classes=1000, batch_size=1) / 2e9 == pytest.approx(61.555, abs=0.001)


@pytest.mark.parametrize("arch", [SMALL, LARGE], ids=lambda arch: arch.name)
def test_parameters_are_those_of_the_model(arch: Architecture) -> None:
    with torch.device("meta"):
        model = VisionTransformer(arch, num_classes=102, attention="math", qkv="separate")
    assert parameter_count(arch, num_classes=102) == sum(parameter.numel() for parameter in model.parameters())


def test_bytes_are_weights_as_stored_and_images_and_logits() -> None:
    model = VisionTransformer(SMALL, num_classes=10, attention="math", qkv="separate").eval()
    apply_plan(model, uniform(NF4(format="nf4", double_quantization=False), "bf16"))
    work = least_work(SMALL, num_classes=10, batch_size=2, weight_bytes=weight_bytes(model), itemsize=2)
    assert work.least_bytes == weight_bytes(model) + 2 * 3 * 32 * 32 * 2 + 2 * 10 * 2


def test_needed_memory_grows_with_what_is_trained_and_is_more_than_the_weights() -> None:
    evaluated, trained = needed_bytes(LARGE, evaluated=128, trained=0), needed_bytes(LARGE, evaluated=128, trained=32)
    weights = 4 * parameter_count(LARGE, num_classes=0)
    assert weights < evaluated < trained < 4 * 2**30
