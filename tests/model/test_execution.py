"""An execution either runs as it is called or is refused with the reason."""

from typing import Literal

import pytest
import torch

from lowbit_vit.errors import Unavailable
from lowbit_vit.model import precision
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.plan import NF4, uniform

SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=2, width=128, mlp_width=256)


def model() -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(SMALL, num_classes=10, attention="math", qkv="separate")
    precision.apply_plan(made, uniform(NF4(format="nf4", double_quantization=False), "fp32"))
    return made.eval()


def test_eager_is_the_model_itself_without_gradients() -> None:
    made, images = model(), torch.randn(2, 3, 16, 16)
    run = prepare(made, "eager", images)
    logits = run(images)
    assert torch.equal(logits, made(images))
    assert not logits.requires_grad
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("execution", ["cuda_graph", "compile"])
def test_what_needs_cuda_is_unavailable_on_the_cpu(execution: Literal["cuda_graph", "compile"]) -> None:
    with pytest.raises(Unavailable, match=f"execution {execution} needs CUDA, the model is on cpu"):
        prepare(model(), execution, torch.randn(2, 3, 16, 16))
