"""Training: the backbone from scratch and its teacher, and the adapters and head on frozen weights. One plain loop for all.

AdamW or Muon, linear warm-up, cosine decay to zero, gradient norm clipped at 1, label smoothing, autocast as the profile says. What
is trained is whatever requires a gradient; `model.lora` freezes the rest. What only the from-scratch recipe uses (mixed images,
stochastic depth, averaged weights, a teacher) is in the modules beside this one, and off unless the profile asks for it.
"""

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import place, train_batches
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import Device, Training, Views
from lowbit_vit.schema.record import TrainingResult
from lowbit_vit.trial.augment import augment, draw_choices, mixed_targets
from lowbit_vit.trial.average import WeightAverage
from lowbit_vit.trial.deterministic import deterministic
from lowbit_vit.trial.forward import TrainingForward, attention_kernel
from lowbit_vit.trial.muon import BatchedMuon
from lowbit_vit.trial.replay import ReplayedGradients
from lowbit_vit.trial.teacher import Distillation, distillation_loss

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
MATRIX = 2  # dimensions
AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's generators, on the CPU and on every CUDA device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (peft and torchvision draw from the global generator)
    torch.manual_seed(seed)


def train(
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
    """Train in place what requires a gradient, and leave the model in evaluation mode.

    Order, crops, flips, colours and mixing are fixed by the seed and the epoch. So are dropout masks, of whatever kind, because
    every generator is seeded first. On a card, the same libraries on the same kind of card give the same weights bit for bit.

    Args:
        model: on `device`; its parameters that require a gradient are trained.
        sets: the images trained on, all of them in every epoch.
        config: the schedule.
        views: how pixels are normalized and cropped.
        seed: of order, augmentation and dropout.
        device: where the model is.
        title: shown by the progress bar.
        distillation: what the loss takes from a teacher, if there is one.

    Raises:
        ConfigError: nothing requires a gradient, or Muon is asked for and the model is no ViT.
        Unavailable: the section asks for a kernel or a compiler that is not here.
        LowbitVitError: the loss became infinite or NaN; names the epoch and what to lower.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"{title}: no parameter of the model requires a gradient, so there is nothing to train")
    seed_everything(seed)
    placed = place(sets, device)
    images, size = len(placed.labels), config.batch_size
    steps_an_epoch = math.ceil(images / size)
    step = _Step.of(model, trained, config, device=device, distillation=distillation)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    losses = list[float]()
    model.train()
    with (
        progress_bar(title, images * config.epochs, "images") as bar,
        attention_kernel(model, config.attention, step.dtype),
        deterministic(device),
    ):
        for epoch in range(config.epochs):
            # Summed on the device: asking for the loss of every step would wait for the GPU each time.
            loss_sum = torch.zeros((), device=device, dtype=torch.float64)
            seen = 0
            choices = draw_choices(images, config.augmentation, views, batch_size=size, seed=seed, epoch=epoch, device=device)
            batches = train_batches(placed, views, config.augmentation, batch_size=size, seed=seed, epoch=epoch, device=device)
            for batch, (crops, labels) in enumerate(batches):
                rate = learning_rate(config, step=epoch * steps_an_epoch + batch, steps_an_epoch=steps_an_epoch)
                pixels, shares = augment(crops, labels, choices, batch=batch, first=seen)
                loss_sum += step.take(pixels, labels, shares, rate=rate, epoch=epoch) * len(labels)
                seen += len(labels)
                bar.advance(len(labels))
            losses.append(loss_sum.item() / seen)
            bar.say(f"loss {losses[-1]:.3g}")
            if not math.isfinite(losses[-1]):
                raise LowbitVitError(
                    f"{title}: training loss is {losses[-1]} after epoch {epoch + 1} of {config.epochs}; "
                    f"lower learning_rate (now {config.learning_rate:g}) or set autocast (now {config.autocast}) to none"
                )
    if step.average is not None:
        step.average.store()
    model.eval()
    seconds = time.perf_counter() - started
    log.info("%s: %d epochs, loss %.4f -> %.4f, %.1f s", title, config.epochs, losses[0], losses[-1], seconds)
    return TrainingResult(
        epochs=config.epochs,
        steps=config.epochs * steps_an_epoch,
        seconds=seconds,
        images_per_s=images * config.epochs / seconds,
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


@dataclass(frozen=True)
class _Step:
    """One step of the optimizer, without a word from the device to the host."""

    model: nn.Module
    forward: TrainingForward | None  # None: the model is no ViT and is called as it is
    trained: Sequence[nn.Parameter]
    config: Training
    device: Device
    dtype: torch.dtype  # of the attention's inputs
    optimizers: Sequence[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    distillation: Distillation | None
    replay: ReplayedGradients | None  # None: every step's kernels are launched anew

    @classmethod
    def of(
        cls, model: nn.Module, trained: Sequence[nn.Parameter], config: Training, *, device: Device, distillation: Distillation | None
    ) -> Self:
        """The step of a configuration, with a new optimizer, scaler and weight average for the parameters that are trained."""
        guide = None if distillation is None else distillation.guide
        taps = () if guide is None else guide.config.blocks
        learning = [*trained, *([] if guide is None else guide.parameters())]
        return cls(
            model=model,
            forward=TrainingForward(model, config, taps=taps) if isinstance(model, VisionTransformer) else None,
            trained=learning,
            config=config,
            device=device,
            dtype=AUTOCAST[config.autocast] or torch.float32,
            optimizers=_optimizers(model, learning, config),
            scaler=torch.amp.GradScaler(device, enabled=config.autocast == "fp16"),
            average=None if config.ema_decay is None else WeightAverage(trained, config.ema_decay),
            distillation=distillation,
            replay=ReplayedGradients(device) if config.cuda_graph else None,
        )

    def take(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, rate: float, epoch: int) -> Tensor:
        """Update the weights and return the loss, detached. `shares` are those of mixed images' own labels."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self._gradients(pixels, labels, shares, epoch=epoch)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return loss

    def _gradients(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, epoch: int) -> Tensor:
        """Leave the gradients in the parameters, and return the loss, detached."""
        if self.replay is None:
            return self._backward(pixels, labels, shares, epoch=epoch)
        # A graph has no branches: an image that is not mixed is its own share.
        shares = torch.ones(len(labels), device=pixels.device) if shares is None else shares
        small = self.config.small_images
        phase = small is not None and epoch < small.epochs
        return self.replay(lambda *batch: self._backward(*batch, epoch=epoch), (pixels, labels, shares), phase=phase)

    def _backward(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, epoch: int) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self._loss(pixels, labels, shares, epoch=epoch)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, pixels: Tensor, labels: Tensor, shares: Tensor | None, *, epoch: int) -> Tensor:
        logits, patches = self._forward(pixels, epoch)
        targets = labels if shares is None else mixed_targets(labels, shares, logits.shape[1])
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
        if self.distillation is None:
            return loss
        lesson = self.distillation.teach(pixels)
        weight = self.distillation.weight
        loss = (1 - weight) * loss + weight * distillation_loss(logits, lesson.logits, self.distillation.temperature)
        guide = self.distillation.guide
        return loss if guide is None else loss + guide.config.weight * guide(patches, lesson.maps)

    def _forward(self, pixels: Tensor, epoch: int) -> tuple[Tensor, list[Tensor]]:
        dtype = AUTOCAST[self.config.autocast]
        with torch.autocast(self.device, dtype=dtype, enabled=dtype is not None):
            logits, patches = (self.model(pixels), []) if self.forward is None else self.forward(pixels, epoch=epoch)
        return logits.float(), patches


def _optimizers(model: nn.Module, trained: Sequence[nn.Parameter], config: Training) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for all that is trained; or Muon for the matrices of a ViT's blocks, and AdamW for the rest.

    Only matrices are decayed: decaying norms and biases pulls scales to zero and helps nobody.
    """
    muon = list[nn.Parameter]()
    if config.optimizer == "muon":
        if not isinstance(model, VisionTransformer):
            raise ConfigError(f"training.optimizer muon is for the blocks of a ViT, and this is a {type(model).__name__}; set adamw")
        muon = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad and parameter.ndim == MATRIX]
    taken = {id(parameter) for parameter in muon}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    groups = [
        {"params": [parameter for parameter in rest if parameter.ndim >= MATRIX], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim < MATRIX], "weight_decay": 0.0},
    ]
    # Fused, it rounds otherwise; so only where the profile asks for speed.
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True if config.compile else None)
    if not muon:
        return (adamw,)
    # Its steps are as large as AdamW's usually are, so that one rate serves both.
    return BatchedMuon(muon, lr=config.learning_rate, weight_decay=config.weight_decay), adamw
