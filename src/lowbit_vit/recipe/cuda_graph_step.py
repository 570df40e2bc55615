"""Gradients by replaying a CUDA graph: the kernel launches of a step are captured once; a replay costs the host one call.

A step of a compiled ViT-L is some two thousand launches, which keep the host of an H100 busy for 130 ms; at 112 pixels the GPU
needs less than that. The optimizer is not captured: its rate changes in every step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.config import Device

WARM_UP = 3  # steps before the capture, which compile and choose kernels


class ReplayedGradients:
    """A step that leaves gradients in parameters, run a few times, then captured, then replayed.

    Random masks differ from step to step: a replay advances the device's random sequence.
    Source: "Whole-network capture", https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture.

    Args:
        device: of the tensors.

    Raises:
        Unavailable: it is not CUDA.
    """

    def __init__(self, device: Device) -> None:
        if device != "cuda":
            raise Unavailable(f"training.cuda_graph needs CUDA, the model is on {device}; set training.cuda_graph: false")
        self._phase: object = None
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._loss = torch.empty(0)
        # Warm-up steps run beside the default stream, like the capture; on one stream, since memory freed on one stream is not
        # used on another.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, backward: Callable[..., Tensor], batch: tuple[Tensor, ...], *, phase: object) -> Tensor:
        """Run the step on a batch.

        Args:
            backward: overwrites every gradient and returns the loss, detached.
            batch: its inputs; of the same shapes in all of a phase.
            phase: the step is captured again when this changes.

        Returns:
            The loss; overwritten by the next step.

        Raises:
            ConfigError: a batch is of another size than the one that was captured.
        """
        if phase != self._phase:
            torch.cuda.synchronize()  # the last replay may still be running
            self._graph, self._inputs, self._runs, self._phase = None, (), 0, phase
        self._runs += 1
        if self._runs <= WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                loss = backward(*batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss
        if self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in batch)
            self._graph = torch.cuda.CUDAGraph()
            # This also frees the memory that earlier steps left cached: a graph has its own.
            with torch.cuda.graph(self._graph):
                self._loss = backward(*self._inputs)
        if any(mine.shape != theirs.shape for mine, theirs in zip(self._inputs, batch, strict=True)):
            sizes = f"{len(self._inputs[0])} and {len(batch[0])}"
            raise ConfigError(f"training.cuda_graph needs batches of one size, these are {sizes}; choose batch_size to divide the images")
        for mine, theirs in zip(self._inputs, batch, strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._loss
