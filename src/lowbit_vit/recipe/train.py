"""The backbone's training from scratch, and its teacher's: steps for the loop of `trial.train`.

Mixed and recoloured images, Muon, stochastic depth, averaged weights, a teacher, CUDA graphs: each is off unless the profile asks
for it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.recipe.augment import augment, draw_choices, mixed_targets
from lowbit_vit.recipe.muon import BatchedMuon
from lowbit_vit.recipe.teacher import Distillation, distillation_loss
from lowbit_vit.recipe.training_forward import TrainingForward
from lowbit_vit.schema.config import Device, Training, Views
from lowbit_vit.schema.record import TrainingResult
from lowbit_vit.trial.train import AUTOCAST, MATRIX, Batch, Descent, adamw, parameters_to_train, run_epochs


def train_by_recipe(
    model: nn.Module,
    sets: Sequence[ImageSet],
    config: Training,
    *,
    views: Views,
    seed: int,
    device: Device,
    title: str,
    distillation: Distillation | None = None,
) -> TrainingResult:
    """Train in place what requires a gradient, and leave the model in evaluation mode, with averaged weights if asked for.

    Args:
        model: on `device`; a ViT, or another network if the section has no keys of a ViT alone.
        sets: the images trained on, all of them in every epoch.
        config: the schedule.
        views: how pixels are normalized and cropped.
        seed: of order, augmentation, mixing and dropout.
        device: where the model is.
        title: shown by the progress bar.
        distillation: the teacher's part of the loss, if there is one.

    Raises:
        ConfigError: nothing requires a gradient, or Muon is asked for and the model is no ViT.
        Unavailable: the section asks for a kernel or a compiler that is not here.
        LowbitVitError: as `run_epochs`.
    """
    images = sum(len(one.labels) for one in sets)
    step = RecipeStep(model, config, views=views, images=images, seed=seed, device=device, title=title, distillation=distillation)
    result = run_epochs(step, model, sets, config, views=views, seed=seed, device=device, title=title)
    if step.average is not None:
        step.average.store()
    return result


class RecipeStep:
    """One step of the optimizers, which never waits for the device.

    Arguments and errors are those of `train_by_recipe`; `images` is the number in an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Training,
        *,
        views: Views,
        images: int,
        seed: int,
        device: Device,
        title: str,
        distillation: Distillation | None,
    ) -> None:
        guide = None if distillation is None else distillation.guide
        own = parameters_to_train(model, title)
        trained = [*own, *([] if guide is None else guide.parameters())]
        self.average = None if config.ema_decay is None else WeightAverage(own, config.ema_decay)
        self._model = model
        taps = () if guide is None else guide.config.blocks
        # None: the model is no ViT, and its own forward is used.
        self._vit = TrainingForward(model, config, taps=taps) if isinstance(model, VisionTransformer) else None
        self._config = config
        self._device = device
        self._draw = partial(draw_choices, images, config.augmentation, views, batch_size=config.batch_size, seed=seed, device=device)
        self._descent = Descent(trained, _optimizers(model, trained, config), config, device)
        self._distillation = distillation
        # None: every step launches its kernels.
        self._replay = ReplayedGradients(device) if config.cuda_graph else None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Update the weights and return the loss, detached."""
        if batch.number == 0:
            self._choices = self._draw(epoch=batch.epoch)
        pixels, shares = augment(batch.pixels, batch.labels, self._choices, batch=batch.number, first=batch.first)
        loss = self._gradients(pixels, batch.labels, shares, epoch=batch.epoch)
        self._descent.update(rate)
        if self.average is not None:
            self.average.update()
        return loss

    def _gradients(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, epoch: int) -> Tensor:
        """Leave the gradients in the parameters, and return the loss, detached; `shares` are those of mixed images' own labels."""

        def backward(pixels: Tensor, labels: Tensor, shares: Tensor | None) -> Tensor:
            return self._descent.backward(lambda: self._loss(pixels, labels, shares, epoch=epoch))

        if self._replay is None:
            return backward(pixels, labels, shares)
        # A graph has no branches: an image that is not mixed is its own share.
        shares = torch.ones(len(labels), device=pixels.device) if shares is None else shares
        small = self._config.small_images
        phase = small is not None and epoch < small.epochs
        return self._replay(backward, (pixels, labels, shares), phase=phase)

    def _loss(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, epoch: int) -> Tensor:
        logits, patches = self._forward(pixels, epoch)
        targets = labels if shares is None else mixed_targets(labels, shares, logits.shape[1])
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self._config.label_smoothing)
        if self._distillation is None:
            return loss
        teach, temperature, weight, guide = self._distillation
        lesson = teach(pixels)
        loss = (1 - weight) * loss + weight * distillation_loss(logits, lesson.logits, temperature)
        return loss if guide is None else loss + guide.config.weight * guide(patches, lesson.maps)

    def _forward(self, pixels: Tensor, epoch: int) -> tuple[Tensor, list[Tensor]]:
        dtype = AUTOCAST[self._config.autocast]
        with torch.autocast(self._device, dtype=dtype, enabled=dtype is not None):
            logits, patches = (self._model(pixels), []) if self._vit is None else self._vit(pixels, epoch=epoch)
        return logits.float(), patches


class WeightAverage:
    """The moving average of the trained weights: a <- d a + (1 - d) w after step 1, 2, ..., d = min(decay, (1 + step) / (10 + step)).

    The ramp, as in TensorFlow's ExponentialMovingAverage, removes the random start, of which a fixed decay of 0.998 keeps 2 % after
    two thousand steps.

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
        """Add the parameters' values, after a step of the optimizer."""
        self._step += 1
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        # One kernel for many tensors; `AveragedModel` around it waits for the device's counter in every step.
        get_ema_multi_avg_fn(decay)(self._averages, self._parameters, self._step)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def store(self) -> None:
        """Overwrite the parameters with their averages."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)


def _optimizers(model: nn.Module, trained: Sequence[nn.Parameter], config: Training) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for all that is trained; or Muon for the matrices of a ViT's blocks, and AdamW for the rest."""
    if config.optimizer == "adamw":
        return (adamw(trained, config),)
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"training.optimizer muon is for the blocks of a ViT, and this is a {type(model).__name__}; set adamw")
    muon = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad and parameter.ndim == MATRIX]
    taken = {id(parameter) for parameter in muon}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    # Muon's steps are as large as AdamW's usually are, so one rate serves both.
    return BatchedMuon(muon, lr=config.learning_rate, weight_decay=config.weight_decay), adamw(rest, config)


# ------------------------------------------------------------------------------------------------------------ CUDA graph

WARM_UP = 3  # steps before the capture, which compile and choose kernels


class ReplayedGradients:
    """A step that leaves gradients in parameters, run a few times, then captured as a CUDA graph, then replayed by one call.

    A step of a compiled ViT-L is some two thousand launches, which keep the host of an H100 busy for 130 ms; at 112 pixels the GPU
    needs less than that. The optimizer is not captured: its rate changes in every step. Random masks differ from step to step: a
    replay advances the device's random sequence.

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
