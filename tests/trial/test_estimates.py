"""The estimates are what their formulas say: against gradients taken one image at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.errors import Unavailable
from lowbit_vit.model.precision import convert_linear
from lowbit_vit.model.vit import encoder_linears
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.plan import NF4, Int8, Plan
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.estimates import IMAGES, estimate, weight_error
from lowbit_vit.trial.evaluate import selection_mask
from lowbit_vit.trial.run import load_backbone

FORMATS = (NF4(format="nf4", double_quantization=False), Int8(format="int8", threshold=0.0))


def test_the_gradient_score_is_the_squared_gradient_times_the_squared_error_of_the_output(cell: Trial, workspace: Workspace) -> None:
    found = estimate(cell, FORMATS, workspace)
    assert [(linear.weights, linear.name) for linear in found.linears[:2]] == [
        ("nf4", "blocks.0.attention.q"),
        ("nf4", "blocks.0.attention.k"),
    ]
    assert len(found.linears) == 2 * 12
    plain = cell.model_copy(update={"attention": "math", "plan": Plan(compute_dtype="fp32")})
    dataset = load_dataset(workspace.data, cell.data.views)
    model, _ = load_backbone(plain, workspace, dataset)
    test = dataset.eval_views["test"]
    chosen = np.flatnonzero(selection_mask(len(test.labels), cell.selection_seed))
    chosen = chosen[np.linspace(0, len(chosen) - 1, IMAGES).astype(int)]
    linear = encoder_linears(model)["blocks.1.mlp.fc1"]
    low = convert_linear(linear, FORMATS[0], torch.float32, name="fc1").eval()
    seen: dict[str, torch.Tensor] = {}

    def watch(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen["x"], seen["y"] = inputs[0], output
        output.retain_grad()

    linear.register_forward_hook(watch)
    outputs, weighted = [], []
    for row, (pixels, label) in enumerate(eval_batches(test, cell.data.views, batch_size=1, device="cpu")):
        if row in chosen:
            torch.autograd.backward(nn.functional.cross_entropy(model(pixels), label))
            gradient = seen["y"].grad
            assert gradient is not None
            with torch.no_grad():
                error = (low(seen["x"]) - seen["y"]).square()
            outputs.append(float(error.sum()))
            weighted.append(float((error * gradient.square()).sum()))
    score = next(item for item in found.linears if (item.weights, item.name) == ("nf4", "blocks.1.mlp.fc1"))
    assert score.activation_error == pytest.approx(np.mean(outputs), rel=1e-4)
    assert score.gradient == pytest.approx(np.mean(weighted), rel=1e-3)
    assert score.fisher > 0
    assert found.of("blocks.1", "nf4", "gradient") == pytest.approx(
        sum(item.gradient for item in found.linears if item.weights == "nf4" and item.name.startswith("blocks.1."))
    )


@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
def test_the_weight_error_is_what_the_layer_loses_on_the_identity(weights: NF4 | Int8) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    layer = convert_linear(linear, weights, torch.float32, name="linear").eval()
    with torch.no_grad():
        lost = (layer(torch.eye(64)) - linear.bias).T - linear.weight
    assert weight_error(layer, linear) == pytest.approx(float(lost.square().sum()), rel=2e-2)
    coarser = FORMATS[0]
    assert weight_error(layer, linear) <= weight_error(convert_linear(linear, coarser, torch.float32, name="linear"), linear)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it can run")
def test_a_device_that_is_not_there_is_said_in_one_line(cell: Trial, workspace: Workspace) -> None:
    with pytest.raises(Unavailable, match="needs CUDA"):
        estimate(cell.model_copy(update={"device": "cuda"}), FORMATS, workspace)
