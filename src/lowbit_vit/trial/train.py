"""Training: the backbone from scratch, and the adapters and head on frozen weights. One plain loop for both.

AdamW, linear warm-up, cosine decay to zero, gradient norm clipped at 1, label smoothing, autocast as the profile says. What
is trained is whatever requires a gradient; `model.lora` freezes the rest.
"""

import logging
import math
import random
import time
from collections.abc import Sequence

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

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
_AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's generators, on the CPU and on every CUDA device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (peft and torchvision draw from the global generator)
    torch.manual_seed(seed)


def train(
    model: VisionTransformer, sets: Sequence[ImageSet], config: Training, *, views: Views, seed: int, device: Device, title: str
) -> TrainingResult:
    """Train in place what requires a gradient, and leave the model in evaluation mode.

    Order, crops and flips are fixed by the seed and the epoch. So are dropout masks, because every generator is seeded first.

    Args:
        model: on `device`; its parameters that require a gradient are trained.
        sets: the images trained on, all of them in every epoch.
        config: the schedule.
        views: how pixels are normalized and cropped.
        seed: of order, augmentation and dropout.
        device: where the model is.
        title: shown by the progress bar.

    Raises:
        ConfigError: nothing requires a gradient.
        LowbitVitError: the loss became infinite or NaN; names the epoch and what to lower.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"{title}: no parameter of the model requires a gradient, so there is nothing to train")
    seed_everything(seed)
    placed = place(sets, device)
    images = len(placed.labels)
    steps_an_epoch = math.ceil(images / config.batch_size)
    optimizer = _optimizer(trained, config)
    scaler = torch.amp.GradScaler(device, enabled=config.autocast == "fp16")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step, losses = 0, list[float]()
    model.train()
    with progress_bar(title, images * config.epochs, "images") as bar:
        for epoch in range(config.epochs):
            # Summed on the device: asking for the loss of every step would wait for the GPU each time.
            loss_sum = torch.zeros((), device=device, dtype=torch.float64)
            seen = 0
            batches = train_batches(placed, views, config.augmentation, batch_size=config.batch_size, seed=seed, epoch=epoch, device=device)
            for pixels, labels in batches:
                _set_rate(optimizer, learning_rate(config, step=step, steps_an_epoch=steps_an_epoch))
                loss = _loss(model, pixels, labels, config=config, device=device)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
                scaler.step(optimizer)
                scaler.update()
                loss_sum += loss.detach() * len(labels)
                step, seen = step + 1, seen + len(labels)
                bar.advance(len(labels))
            losses.append(loss_sum.item() / seen)
            if not math.isfinite(losses[-1]):
                raise LowbitVitError(
                    f"{title}: training loss is {losses[-1]} after epoch {epoch + 1} of {config.epochs}; "
                    f"lower learning_rate (now {config.learning_rate:g}) or set autocast (now {config.autocast}) to none"
                )
    model.eval()
    seconds = time.perf_counter() - started
    log.info("%s: %d epochs, loss %.4f -> %.4f, %.1f s", title, config.epochs, losses[0], losses[-1], seconds)
    return TrainingResult(
        epochs=config.epochs,
        steps=step,
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


def _loss(model: VisionTransformer, pixels: Tensor, labels: Tensor, *, config: Training, device: Device) -> Tensor:
    dtype = _AUTOCAST[config.autocast]
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        logits = model(pixels.to(model.patch_embedding.weight.dtype))
    return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)


def _optimizer(trained: Sequence[nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: decaying norms and biases pulls scales to zero and helps nobody."""
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
