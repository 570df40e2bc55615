"""Cheap estimates of what quantizing each linear costs: one look at the high-precision model instead of an evaluation each.

Four, from the cheapest: the squared error of the weights; the squared error of the linear's outputs on real inputs; and that error
weighted, output by output, with the squared gradient of the loss, which is the diagonal second-order term of the loss with the
Fisher information in place of the Hessian. With the labels' loss that is the score of NVIDIA Model Optimizer's `auto_quantize`, as
its documentation describes it (https://nvidia.github.io/Model-Optimizer/, AutoQuantizeGradientSearcher); with labels drawn from the
model's own predictions it is the second-order term of the KL that the sensitivity study measures.

Everything is fp32. The outputs' error is that of the real low-bit layer, so int8's error of the activations is in it.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lowbit_vit.data.batches import eval_batches
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model.precision import convert_linear, restored_weight
from lowbit_vit.model.vit import VisionTransformer, encoder_linears
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.plan import NF4, Int8, Plan, WeightFormat
from lowbit_vit.schema.stage_documents import Estimates, LinearEstimate
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.evaluate import selection_mask, spread_rows
from lowbit_vit.trial.run import check_available, load_backbone, load_data

log = logging.getLogger(__name__)

IMAGES = 256  # enough that another draw of them ranks the blocks alike (the analysis shows tau)
_BATCH = 16  # all activations of a batch are kept for its gradients: 6 GiB for a ViT-L
_LABELS, _DRAWN = 1, 2  # places in the sums, after the outputs' error


def estimate(trial: Trial, formats: Sequence[WeightFormat], workspace: Workspace) -> Estimates:
    """Estimate every linear in every format on images of the selection half.

    Args:
        trial: any cell of the sensitivity study: its backbone, device, views and selection.
        formats: int8 and NF4.
        workspace: with data and weights.

    Raises:
        Unavailable: the device is not there.
        DataError: data or weights are missing or damaged.
        LowbitVitError: an estimate is not finite.
    """
    # Fused attention kernels have no fp32 gradient on every GPU; this one has.
    plain = trial.model_copy(update={"attention": "math", "plan": Plan(compute_dtype="fp32")})
    check_available(plain)
    dataset = load_data(plain, workspace)
    model, origin = load_backbone(plain, workspace, dataset)
    test = dataset.eval_views["test"]
    chosen = np.flatnonzero(selection_mask(len(test.labels), trial.selection_seed))
    images = test.take(chosen[spread_rows(len(chosen), IMAGES)])
    started = time.perf_counter()
    converted = _convert(model, formats)
    sums = _Sums(model, converted)
    batches = eval_batches(images, trial.data.views, batch_size=_BATCH, device=trial.device)
    try:
        with progress_bar("estimate", len(images.labels), "images") as bar:
            for pixels, labels in batches:
                sums.add(pixels, labels)
                bar.advance(len(labels))
    finally:
        sums.remove()
    linears = tuple(
        _finite(name, weights, weight_error(layer, encoder_linears(model)[name]), (sums.of[name, weights] / len(images.labels)).tolist())
        for (name, weights), layer in converted.items()
    )
    seconds = round(time.perf_counter() - started, 3)
    return Estimates(profile=trial.profile, backbone_sha256=origin.weights, images=len(images.labels), seconds=seconds, linears=linears)


def _convert(model: VisionTransformer, formats: Sequence[WeightFormat]) -> dict[tuple[str, str], nn.Module]:
    return {
        (name, weights.name): convert_linear(linear, weights, torch.float32, name=name).eval()
        for weights in formats
        if isinstance(weights, NF4 | Int8)
        for name, linear in encoder_linears(model).items()
    }


def _finite(name: str, weights: str, error: float, sums: Sequence[float]) -> LinearEstimate:
    if not np.isfinite([error, *sums]).all():
        raise LowbitVitError(f"estimate: {name} in {weights}: not finite: weights {error:g}, outputs {sums}; the backbone is damaged")
    return LinearEstimate(
        weights=weights, name=name, weight_error=error, activation_error=sums[0], gradient=sums[_LABELS], fisher=sums[_DRAWN]
    )


class _Sums:
    """Sums over images, for each linear and format: of the outputs' squared error, plain and weighted by two losses' gradients.

    Attributes:
        of: float64 [3] on the device.
    """

    def __init__(self, model: VisionTransformer, converted: dict[tuple[str, str], nn.Module]) -> None:
        linears = encoder_linears(model)
        device = model.position_embedding.device
        # float64 accumulates; on a GPU that is slow for matrices, not for sums.
        self.of = {key: torch.zeros(3, dtype=torch.float64, device=device) for key in converted}
        self._model = model.requires_grad_(requires_grad=False)
        model.position_embedding.requires_grad_()  # so that gradients reach every linear's output, and no weight's is made
        self._by_linear = {name: [(key, layer) for key, layer in converted.items() if key[0] == name] for name in linears}
        self._place = _LABELS
        self._random = torch.Generator().manual_seed(0)
        self._hooks: list[RemovableHandle] = [linear.register_forward_hook(self._watch(name)) for name, linear in linears.items()]

    def add(self, pixels: Tensor, labels: Tensor) -> None:
        """Images fp32 [B, 3, S, S] and labels int64 [B]."""
        logits = self._model(pixels)
        drawn = torch.multinomial(logits.detach().softmax(dim=1).cpu(), 1, generator=self._random)[:, 0].to(labels.device)
        for self._place, targets in ((_LABELS, labels), (_DRAWN, drawn)):
            # A sum over images: each output's gradient is then that of its own image's loss.
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            torch.autograd.backward(loss, retain_graph=self._place == _LABELS)
        self._model.zero_grad(set_to_none=True)

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """The hook of one linear: it adds what each format would change of its output, and later what that costs by its gradient."""

        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                errors = {key: (layer(inputs[0].detach()) - output).square() for key, layer in self._by_linear[name]}
                for key, error in errors.items():
                    self.of[key][0] += error.sum(dtype=torch.float64)

            def backward(gradient: Tensor) -> None:
                squared = gradient.square()
                for key, error in errors.items():
                    self.of[key][self._place] += (squared * error).sum(dtype=torch.float64)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward


def weight_error(layer: nn.Module, source: nn.Module) -> float:
    """Squared error of a low-bit layer's weights, as it computes with them, summed."""
    weight = source.weight
    if not isinstance(weight, Tensor):
        raise LowbitVitError(f"{type(source).__name__} is no linear layer")
    return float((restored_weight(layer) - weight.detach()).square().sum(dtype=torch.float64))
