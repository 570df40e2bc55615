"""An exported model on images of one's own: the very forward and the very pixels of an evaluation, without a study around it.

Needs neither Ray nor DVC, and bitsandbytes only where the plan quantizes. Images take the way of `data.decode` and `data.batches`
as in every trial, in batches of the evaluation's size that are filled up in the same way, so on the same device the same images
in the same order give the logits of the measured cell, bit for bit. A CUDA graph launches the same model; its kernels may be others.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.decode import Pixels, View, decode_file, make_view, name_fault, upright_rgb
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.attention import require
from lowbit_vit.model.execution import prepare, require_execution
from lowbit_vit.model.precision import compute_dtype, import_formats, matmul_mode
from lowbit_vit.model.serialization import load_model
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import Device, Execution
from lowbit_vit.schema.model_card import WEIGHTS_FILE, Converted, ExportCard, read_export
from lowbit_vit.trial.evaluate import Forward, Logits, finite_logits, full_batches

ImageLike = str | Path | Image.Image
Faults = dict[int, DataError]  # place of an image among those given -> why it cannot be read
DEVICES: tuple[Device, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image: every class with its probability, the most likely one first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Of the most likely class."""
        return self.probabilities[0]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most likely classes, or all where there are fewer."""
        return list(zip(self.classes[:k], self.probabilities[:k], strict=True))


class Predictor:
    """A loaded export; `load` makes it.

    Attributes:
        card: the model card of the export.
    """

    def __init__(self, model: VisionTransformer, card: ExportCard, converted: Converted, *, device: Device, execution: Execution) -> None:
        self.card = card
        self._model = model
        self._plan = converted.plan
        self._device: Device = device
        self._execution: Execution = execution
        self._forwards: dict[tuple[int, torch.dtype], Forward] = {}  # by batch size and dtype: a graph serves one of each
        self._view = View(card.views.eval_resize, card.views.image_size)

    def predict(self, images: ImageLike | Sequence[ImageLike] | Tensor, *, faults: Faults | None = None) -> list[Prediction]:
        """Classes and probabilities of each image, in the order given.

        Args:
            images: files, Pillow images, or one of them; or a tensor, as for `logits`.
            faults: as for `logits`.

        Raises:
            DataError: as `logits`.
        """
        logits = self.logits(images, faults=faults)
        # Of equal logits the smaller class number comes first, as in the records.
        ranks = np.argsort(-logits, axis=1, kind="stable")
        probabilities = softmax(logits.astype(np.float64), axis=1)
        names = self.card.class_names
        return [
            Prediction(tuple(names[index] for index in order), tuple(row[order].tolist()))
            for order, row in zip(ranks, probabilities, strict=True)
        ]

    def logits(self, images: ImageLike | Sequence[ImageLike] | Tensor, *, faults: Faults | None = None) -> Logits:
        """The model's outputs, float32 [N, K].

        Args:
            images: files, Pillow images, or one of them. Or a tensor [N, 3, S, S], S being `card.views.image_size`: uint8 pixels of
                such a view, or floating point that is normalized by `card.views` already.
            faults: receives why images cannot be read; they have no row, and the others the rows that they have without them. None:
                the first one raises.

        Raises:
            DataError: no image; a file is missing or no image; or the tensor has another shape or dtype.
            LowbitVitError: an output is infinite or NaN.
        """
        given = images if isinstance(images, Tensor) else [images] if isinstance(images, ImageLike) else list(images)
        count = len(given)
        if not count:
            raise DataError("predict: no image was given")
        if isinstance(given, Tensor):
            self._check(given)
        read, size = 0, 0
        rows: list[Tensor] = []
        with matmul_mode(self._plan), progress_bar("predict", count, "images") if count > self.card.batch_size else nullcontext() as bar:
            for part in self._parts(given, faults):
                size, read = size or len(part), read + len(part)
                full = self._fill_up(part, size)
                rows.append(self._forward(full)(full).to(torch.float32, copy=True))
                if bar is not None:
                    bar.advance(len(part))
        if not rows:
            return np.empty((0, len(self.card.class_names)), dtype=np.float32)
        return finite_logits(rows, count=read, title="predict")

    def _forward(self, images: Tensor) -> Forward:
        key = len(images), images.dtype
        if key not in self._forwards:
            self._forwards[key] = prepare(self._model, self._execution, images)
        return self._forwards[key]

    def _parts(self, given: list[ImageLike] | Tensor, faults: Faults | None) -> Iterator[Tensor | Pixels]:
        """Images of one batch after another: tensors as given, or uint8 [N, S, S, 3]; the last may be smaller."""
        size = min(self.card.batch_size, len(given))
        if isinstance(given, Tensor):
            yield from (given[first : first + size] for first in range(0, len(given), size))
            return
        views = self._views(given, faults)
        while part := list(islice(views, size)):
            yield np.stack(part)

    def _views(self, images: list[ImageLike], faults: Faults | None) -> Iterator[Pixels]:
        for place, image in enumerate(images):
            try:
                yield self._decode(image, f"image {place + 1}")
            except DataError as fault:
                if faults is None:
                    raise
                faults[place] = fault

    def _fill_up(self, part: Tensor | Pixels, size: int) -> Tensor:
        """A batch [size, 3, S, S] in the compute dtype on the device, filled up as in an evaluation."""
        dtype = compute_dtype(self._plan)
        if isinstance(part, Tensor) and part.is_floating_point():
            full = torch.cat([part, part[:1].expand(size - len(part), -1, -1, -1)])
            return full.to(self._device, dtype).contiguous(memory_format=torch.channels_last)
        pixels = part.permute(0, 2, 3, 1).cpu().numpy() if isinstance(part, Tensor) else part
        images = ImageSet(np.ascontiguousarray(pixels), np.zeros(len(pixels), dtype=np.int64), ("",) * len(pixels))
        (full,) = full_batches(images, self.card.views, batch_size=size, device=self._device, dtype=dtype)
        return full

    def _decode(self, image: ImageLike, name: str) -> Pixels:
        """The model's view of an image, uint8 [S, S, 3]; `name` stands for an image without a file in messages."""
        if not isinstance(image, Image.Image):
            name = str(image)
        with name_fault(name):
            rgb = upright_rgb(image) if isinstance(image, Image.Image) else decode_file(Path(image).read_bytes())
            return make_view(rgb, self._view)

    def _check(self, images: Tensor) -> None:
        side = self._view.side
        if images.ndim != 4 or images.shape[1:] != (3, side, side) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise DataError(f"predict: a tensor {found}; give [N, 3, {side}, {side}], uint8 pixels or normalized floating point")


def load(folder: str | Path, device: Device = "cpu", *, execution: Execution = "eager") -> Predictor:
    """Read what `lowbit-vit export` wrote.

    Args:
        folder: the export.
        device: where to run it: cpu or cuda.
        execution: how a forward is launched; eager is the measured cell's own.

    Raises:
        DataError: nothing is exported there, or it is damaged or of another version.
        Unavailable: the device or a package is missing, or the export's attention kernel or the execution does not run there.
        ConfigError: a device or an execution of another name.
    """
    for name, given, allowed in (("device", device, DEVICES), ("execution", execution, get_args(Execution))):
        if given not in allowed:
            raise ConfigError(f"{name} {given!r} is not known; allowed: {', '.join(allowed)}")
    place = Path(folder)
    card, converted = read_export(place)
    import_formats([converted.plan])
    require(card.attention, device=torch.device(device), dtype=compute_dtype(converted.plan))
    model = load_model(place / WEIGHTS_FILE, attention=card.attention, device=device)
    require_execution(model, execution, torch.device(device))
    return Predictor(model, card, converted, device=device, execution=execution)
