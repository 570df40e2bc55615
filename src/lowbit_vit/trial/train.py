"""Training of adapters and head on frozen weights, and the loop that the backbone's recipe shares.

AdamW, linear warm-up, cosine decay to zero, gradient norm clipped at 1, label smoothing, autocast as the profile says. What is
trained is whatever requires a gradient; `model.lora` freezes the rest. `recipe.train` runs its own steps in the same loop.
"""

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.deterministic
from torch import Tensor, nn

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import place, train_batches
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.attention import require
from lowbit_vit.model.vit import Attention, VisionTransformer
from lowbit_vit.schema.config import AttentionName, Device, Training, Views
from lowbit_vit.schema.record import TrainingResult

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
MATRIX = 2  # dimensions
# A module whose attribute is a property, which the type checker cannot see.
_DETERMINISM: Any = torch.utils.deterministic
AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """Images to train on, and their place in the run.

    Attributes:
        pixels: normalized crops, fp32 [B, 3, S, S], channels_last.
        labels: int64 [B].
        epoch: counted from 0.
        number: of the batch in the epoch, from 0.
        first: place of its first image in the epoch.
    """

    pixels: Tensor
    labels: Tensor
    epoch: int
    number: int
    first: int


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's generators, on the CPU and on every CUDA device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (peft and torchvision draw from the global generator)
    torch.manual_seed(seed)


def train(
    model: VisionTransformer, sets: Sequence[ImageSet], config: Training, *, views: Views, seed: int, device: Device, title: str
) -> TrainingResult:
    """Train in place what requires a gradient, and leave the model in evaluation mode.

    Args:
        model: on `device`.
        sets: the images trained on, all of them in every epoch.
        config: the schedule, without what only the backbone's recipe knows.
        views: how pixels are normalized and cropped.
        seed: of order, augmentation and dropout.
        device: where the model is.
        title: shown by the progress bar.

    Raises:
        ConfigError: nothing requires a gradient, or the section asks for the recipe.
        Unavailable, LowbitVitError: as `run_epochs`.
    """
    if config.recipe_keys:
        raise ConfigError(f"{title}: training.{config.recipe_keys[0]} is of a backbone's training; leave it out")
    trained = parameters_to_train(model, title)
    descent = Descent(trained, (adamw(trained, config),), config, device)
    dtype = AUTOCAST[config.autocast]

    def loss(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            logits = model(batch.pixels.to(model.patch_embedding.weight.dtype))
        return nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=config.label_smoothing)

    def step(batch: Batch, rate: float) -> Tensor:
        taken = descent.backward(lambda: loss(batch))
        descent.update(rate)
        return taken

    return run_epochs(step, model, sets, config, views=views, seed=seed, device=device, title=title)


def run_epochs(
    step: Callable[[Batch, float], Tensor],
    model: nn.Module,
    sets: Sequence[ImageSet],
    config: Training,
    *,
    views: Views,
    seed: int,
    device: Device,
    title: str,
) -> TrainingResult:
    """Take a step for every batch of every epoch, and leave the model in evaluation mode.

    Order, crops and flips are fixed by the seed and the epoch. So are dropout masks, of whatever kind, because every generator is
    seeded first. The same libraries on the same model of GPU give the same weights bit for bit.

    Args:
        step: updates the weights on a batch at a learning rate, and returns the batch's mean loss, detached, on the device.
        model: what the step trains.
        sets: as `train` has them, like the arguments that follow.
        config: epochs, batch_size, the rate's schedule, augmentation, attention.
        views: of the crops.
        seed: of everything.
        device: where the model is.
        title: shown by the progress bar.

    Raises:
        Unavailable: the section's attention kernel does not run here.
        LowbitVitError: the loss became infinite or NaN; names the epoch and what to lower.
    """
    seed_everything(seed)
    placed = place(sets, device)
    images, size = len(placed.labels), config.batch_size
    steps_an_epoch = math.ceil(images / size)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    losses = list[float]()
    model.train()
    with (
        progress_bar(title, images * config.epochs, "images") as bar,
        attention_kernel(model, config.attention, AUTOCAST[config.autocast] or torch.float32),
        deterministic(device),
    ):
        for epoch in range(config.epochs):
            # Summed on the device: asking for the loss of every step would wait for the GPU each time.
            loss_sum = torch.zeros((), device=device, dtype=torch.float64)
            seen = 0
            batches = train_batches(placed, views, config.augmentation, batch_size=size, seed=seed, epoch=epoch, device=device)
            for number, (crops, labels) in enumerate(batches):
                rate = learning_rate(config, step=epoch * steps_an_epoch + number, steps_an_epoch=steps_an_epoch)
                loss_sum += step(Batch(crops, labels, epoch, number, first=seen), rate) * len(labels)
                seen += len(labels)
                bar.advance(len(labels))
            losses.append(loss_sum.item() / seen)
            bar.say(f"loss {losses[-1]:.3g}")
            if not math.isfinite(losses[-1]):
                raise LowbitVitError(
                    f"{title}: training loss is {losses[-1]} after epoch {epoch + 1} of {config.epochs}; "
                    f"lower learning_rate (now {config.learning_rate:g}) or set autocast (now {config.autocast}) to none"
                )
    model.eval()
    seconds = time.perf_counter() - started
    log.info("%s: %d epochs, loss %.4f -> %.4f, %.1f s", title, config.epochs, losses[0], losses[-1], seconds)
    return TrainingResult(
        steps=config.epochs * steps_an_epoch,
        seconds=seconds,
        loss=tuple(losses),
        peak_allocated_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
    )


def learning_rate(config: Training, *, step: int, steps_an_epoch: int) -> float:
    """The rate of one step (counted from 0): linear up over `warmup_epochs`, then half a cosine down to zero."""
    warmup = config.warmup_epochs * steps_an_epoch
    if step < warmup:
        return config.learning_rate * min(1.0, (step + 1) / warmup)
    share = (step - warmup) / max(1.0, config.epochs * steps_an_epoch - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@contextmanager
def deterministic(device: Device) -> Iterator[None]:
    """On a GPU, allow only operations that add in a fixed order; the others raise RuntimeError. On the CPU nothing changes.

    Weights of a ViT-L take 1.2 GB, its recipe a few lines: a recipe that gives the same weights on every run, with the same libraries
    and model of GPU, lets records of several runs share one backbone hash. The setting governs flash attention's gradient, convolutions
    and the compiler's choice of reductions. Source: https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    if device != "cuda":
        yield
        return
    # cuBLAS must share no workspace between streams, and PyTorch checks this variable. The value is its default on Hopper.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, filled = torch.are_deterministic_algorithms_enabled(), _DETERMINISM.fill_uninitialized_memory
    # Filling every new tensor against reads of uninitialized memory costs one kernel each.
    _DETERMINISM.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
        _DETERMINISM.fill_uninitialized_memory = filled


@contextmanager
def attention_kernel(model: nn.Module, kernel: AttentionName | None, dtype: torch.dtype) -> Iterator[None]:
    """Let a ViT's blocks attend with another kernel for a while; None changes nothing.

    Raises:
        Unavailable: the kernel does not run here in `dtype`.
    """
    if kernel is None or not isinstance(model, VisionTransformer):
        yield
        return
    require(kernel, device=model.class_token.device, dtype=dtype, head_width=model.architecture.head_width)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before = [layer.kernel for layer in layers]
    for layer in layers:
        layer.kernel = kernel
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.kernel = own


def parameters_to_train(model: nn.Module, title: str) -> list[nn.Parameter]:
    """The parameters that require a gradient.

    Raises:
        ConfigError: there is none.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"{title}: no parameter of the model requires a gradient, so there is nothing to train")
    return trained


def adamw(parameters: Sequence[nn.Parameter], config: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices only: decay of norms and biases pulls their scales to zero."""
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= MATRIX], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < MATRIX], "weight_decay": 0.0},
    ]
    # Fused, it rounds otherwise; so only where the profile asks for speed.
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True if config.compile else None)


class Descent:
    """From a loss to new weights; nothing in it waits for the device.

    Args:
        trained: the parameters whose gradients are clipped together.
        optimizers: what has them.
        config: its autocast decides whether the loss is scaled, which is for fp16 only.
        device: of the parameters.
    """

    def __init__(
        self, trained: Sequence[nn.Parameter], optimizers: Sequence[torch.optim.Optimizer], config: Training, device: Device
    ) -> None:
        self._trained = trained
        self._optimizers = optimizers
        self._scaler = torch.amp.GradScaler(device, enabled=config.autocast == "fp16")

    def backward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of a loss in the parameters, and return the loss, detached."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        taken = loss()
        self._scaler.scale(taken).backward()  # type: ignore[no-untyped-call]
        return taken.detach()

    def update(self, rate: float) -> None:
        """Clip the gradients and take the optimizers' steps."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self._trained, MAX_GRADIENT_NORM)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
