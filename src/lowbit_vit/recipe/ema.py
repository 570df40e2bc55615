"""The moving average of the trained weights: what a from-scratch run keeps instead of its last step."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """a <- d a + (1 - d) w after each step, with d = min(decay, (1 + step) / (10 + step)) at step 1, 2, ...

    The ramp (TensorFlow's ExponentialMovingAverage has the same) lets go of the random start, which a fixed decay of 0.998
    would still hold to 2 % after two thousand steps.

    Args:
        parameters: averaged; the averages start as their values.
        decay: of a long run.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._averages = [parameter.detach().clone() for parameter in parameters]
        self._decay = decay
        self._step = 0

    def update(self) -> None:
        """Take the parameters' values in, after a step of the optimizer."""
        self._step += 1
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        # One kernel for many tensors; `AveragedModel` around it would ask the device for its counter in every step.
        get_ema_multi_avg_fn(decay)(self._averages, self._parameters, self._step)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def store(self) -> None:
        """Overwrite the parameters with their averages."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)
