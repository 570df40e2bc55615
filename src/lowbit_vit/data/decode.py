"""One image file -> the square views that the study works on; what each decoding process runs. No torch.

The evaluation view is what torchvision's `Resize` and `CenterCrop` make of the same file, bit for bit (tested), so that a
published checkpoint sees the pixels that it was evaluated on.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """A square cut from an image: shorter side resized to `resize`, then the central `side` x `side`."""

    resize: int
    side: int


@dataclass(frozen=True)
class Destination:
    """Where one split's view goes: `path` holds uint8 [N, side, side, 3] from byte `offset` on."""

    view: View
    path: Path
    offset: int


@dataclass(frozen=True)
class Decoded:
    """What became of a chunk of images.

    Attributes:
        sha256: of the files' bytes (or of the pixels, where there is no file), one an image.
        faults: one line for each image that could not be decoded.
    """

    sha256: tuple[str, ...]
    faults: tuple[str, ...]


def make_view(image: Image.Image, view: View) -> Pixels:
    """Resize the shorter side (bilinear, antialiased) and cut the centre; uint8 [side, side, 3].

    Rounding follows torchvision's `Resize` (longer side cut down to a whole number) and `CenterCrop` (offset rounded to
    the even half): https://github.com/pytorch/vision/blob/main/torchvision/transforms/functional.py.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(view.resize * long / short)
    size = (view.resize, scaled) if width <= height else (scaled, view.resize)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - view.side) / 2), round((size[1] - view.side) / 2)
    return np.asarray(image.crop((left, top, left + view.side, top + view.side)))


def decode_file(content: bytes) -> Image.Image:
    """Decode a file's bytes to RGB. An orientation tag is ignored, as torchvision's datasets do.

    Raises:
        OSError, ValueError, SyntaxError: truncated, or not an image.
        Image.DecompressionBombWarning: more pixels than an image of a data set has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")


def decode_chunk(images: Sequence[Path | Pixels], first_row: int, destinations: Sequence[Destination]) -> Decoded:
    """Decode images once each and write every view to its rows of the destination files.

    Rows are written with `pwrite`, not through a memory map: on a full disk the first is an error and the second a signal.

    Raises:
        OSError: a destination could not be written.
    """
    digests, faults = [], []
    files = [os.open(destination.path, os.O_WRONLY) for destination in destinations]
    try:
        for row, pixels in enumerate(images, start=first_row):
            try:
                digest, image = _read(pixels)
            except FAULTS as fault:
                faults.append(f"{pixels}: {_reason(fault)}")
                continue
            digests.append(digest)
            for file, destination in zip(files, destinations, strict=True):
                content = make_view(image, destination.view).data.cast("B")
                _write(file, content, destination.offset + row * len(content))
    finally:
        for file in files:
            os.close(file)
    return Decoded(tuple(digests), tuple(faults))


def digest_of(pixels: Path | Pixels) -> str:
    """Hex sha256 of an image file's bytes, or of pixels that have no file.

    Raises:
        OSError: the file could not be read.
    """
    return hashlib.sha256(pixels.read_bytes() if isinstance(pixels, Path) else pixels.tobytes()).hexdigest()


# What Pillow raises on damaged files of the formats it knows, by its own fuzz tests.
FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError)


def _read(pixels: Path | Pixels) -> tuple[str, Image.Image]:
    if isinstance(pixels, Path):
        content = pixels.read_bytes()
        return hashlib.sha256(content).hexdigest(), decode_file(content)
    return digest_of(pixels), Image.fromarray(pixels)


def _reason(fault: BaseException) -> str:
    if isinstance(fault, UnidentifiedImageError):
        return "not an image"
    return fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)


def _write(file: int, content: memoryview, offset: int) -> None:
    """Write all of `content`; a short write (disk nearly full) is retried and then fails with the system's reason."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
