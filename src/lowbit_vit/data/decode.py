"""One image file -> the square views that the study works on, and the processes that decode many of them. No torch.

The evaluation view equals torchvision's `Resize` and `CenterCrop` of the same file bit for bit (tested), so a published
checkpoint gets the pixels that it was evaluated on. Four kinds of file are decoded in another way than by torchvision's
`ImageFolder`, which is wrong for them or fails:

    an orientation tag (EXIF)        the image is turned upright; a damaged EXIF block has no orientation
    12- and 16-bit grey              scaled to 0..255, white-is-zero inverted; Pillow's own conversion clips everything above 255
    a JPEG above `MAX_PIXELS`        decoded at a half, a quarter or an eighth of its size: memory stays bounded
    anything else above `MAX_PIXELS` a fault

Alpha is dropped as by torchvision: the colours below transparent pixels show. Of a file with several images the first is taken.
"""

import hashlib
import io
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from lowbit_vit.data.source import Content
from lowbit_vit.errors import DataError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # of one decoded image; Pillow's own limit: a quarter of a GiB as RGB
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_JPEG = b"\xff\xd8\xff"
_SHRINKS = (2, 4, 8)  # by which libjpeg can divide the sides while it decodes
_DEEP = "16 bits"  # key of `info`: whether the file has more than 8 bits a channel
_WHITE_IS_ZERO = 0  # of PHOTOMETRIC_INTERPRETATION
_UPRIGHT: dict[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it names no file, and what matters is raised


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


Chunk = tuple[Sequence[Path | Pixels], int, Sequence[Destination]]  # images, the first one's row, where their views go


@dataclass(frozen=True)
class Decoded:
    """The results of a chunk of images.

    Attributes:
        contents: one an image that could be decoded, in order.
        faults: one line for each image that could not be decoded.
    """

    contents: tuple[Content, ...]
    faults: tuple[str, ...]


@contextmanager
def name_fault(name: object) -> Iterator[None]:
    """Turn whatever is raised while one image is read, decoded and resized into one line, and keep Pillow's warnings quiet.

    Damaged files raise OSError, ValueError, SyntaxError, NotImplementedError, RuntimeError, struct.error and more. The warnings
    are about damage that leaves the pixels sound.

    Raises:
        DataError: the name and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as fault:
        reason = " ".join((fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)).split())
        if isinstance(fault, UnidentifiedImageError):
            reason = "not an image"
        elif not reason or not isinstance(fault, (OSError, ValueError, SyntaxError, NotImplementedError)):
            reason = f"damaged ({type(fault).__name__}{': ' if reason else ''}{reason})"
        raise DataError(f"{name}: {reason}") from fault


def make_view(image: Image.Image, view: View) -> Pixels:
    """Resize the shorter side (bilinear, antialiased) and cut the centre; uint8 [side, side, 3].

    Rounding follows torchvision's `Resize` (longer side cut down to a whole number) and `CenterCrop` (offset rounded to
    the even half): https://github.com/pytorch/vision/blob/main/torchvision/transforms/functional.py.

    Raises:
        ValueError: so narrow that the resized image would have more than `MAX_PIXELS`.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(view.resize * long / short)
    if view.resize * scaled > MAX_PIXELS:
        raise ValueError(f"{width} x {height} px is too narrow: with {view.resize} px on the shorter side it has {scaled} on the longer")
    size = (view.resize, scaled) if width <= height else (scaled, view.resize)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - view.side) / 2), round((size[1] - view.side) / 2)
    return np.asarray(image.crop((left, top, left + view.side, top + view.side)))


def decode_file(content: bytes) -> Image.Image:
    """Decode a file's bytes to RGB, upright; to be called within `name_fault`.

    Raises:
        Exception: truncated, too large, of a mode without a fixed range, or not an image.
    """
    with _open(content) as image:
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, turned upright by its orientation tag; to be called within `name_fault`.

    Raises:
        Exception: truncated, or of a mode without a fixed range.
    """
    deep = image.mode.startswith("I") or ";16" in str(getattr(image, "tile", ""))  # loading empties the tiles
    image.load()
    turn = _turn(image)
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info[_DEEP] = deep
    return rgb


def _turn(image: Image.Image) -> Transpose | None:
    """What turns a loaded image upright (in loading, Pillow turns a TIFF itself and removes the tag); None where EXIF is damaged."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # noqa: BLE001  (Pillow raises of everything here, and the pixels are sound)
        return None


def _open(content: bytes) -> Image.Image:
    """Open without decoding; a JPEG above `MAX_PIXELS` is set to decode at the largest reduced size below it."""
    if content.startswith(_POSTSCRIPT):  # Pillow would give it to Ghostscript: a program in a file of unknown origin
        raise ValueError("PostScript, which is not decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as fault:
        if not content.startswith(_JPEG):
            limit = f"{MAX_PIXELS // 10**6} million pixels are decoded"
            raise ValueError(f"too large: at most {limit}, and only JPEG can be decoded at a reduced size ({fault})") from fault
    image = JpegImageFile(io.BytesIO(content))
    if "progressive" in image.info:
        # libjpeg holds all its coefficients in memory before the first row, whatever the size asked for.
        raise ValueError(f"too large: {image.width} x {image.height} px as a progressive JPEG; save it as a baseline JPEG")
    divisor = next(shrink for shrink in _SHRINKS if (image.width // shrink) * (image.height // shrink) <= MAX_PIXELS)
    image.draft(None, (image.width // divisor, image.height // divisor))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that has a fixed range.

    Raises:
        ValueError: integers of 32 bits or floats, which could mean anything.
    """
    # Pillow holds a 16-bit PGM as 32-bit integers, already scaled to 0..65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        top = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
        levels = np.rint(np.asarray(image, dtype=np.float64) * (255 / top)).astype(np.uint8)
        image = Image.fromarray(255 - levels if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO else levels)
    elif image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise ValueError(f"{kind} pixels have no fixed range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns about the direct way
    return image.convert("RGB")


def decode_in_processes(chunks: Sequence[Chunk], workers: int) -> Generator[Decoded]:
    """Yield `decode_chunk(*chunk)` for each chunk, in order; closing the generator stops the processes.

    The processes are fresh interpreters, since a fork of a process that runs torch's threads can deadlock, and exit when this
    process does.

    Raises:
        DataError: a process was killed.
        OSError: as `decode_chunk`.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        yield from pool.map(decode_chunk, *zip(*chunks, strict=True))
    except BrokenProcessPool as error:
        raise DataError(f"one of {workers} decoding processes was killed; free some memory or use fewer, and run again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Ignore Ctrl-C, after which the parent stops its workers, and exit when the parent exits, SIGKILL included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def decode_chunk(images: Sequence[Path | Pixels], first_row: int, destinations: Sequence[Destination]) -> Decoded:
    """Decode each image once and write every view to its rows of the destination files; the last is the evaluation view.

    By `pwrite`, not through a memory map: on a full disk the first is an error and the second a signal.

    Raises:
        OSError: a destination could not be written.
    """
    contents, faults = [], []
    files = [os.open(destination.path, os.O_WRONLY) for destination in destinations]
    try:
        for row, pixels in enumerate(images, start=first_row):
            try:
                with name_fault(pixels):
                    content = pixels.read_bytes() if isinstance(pixels, Path) else pixels.tobytes()
                    image = decode_file(content) if isinstance(pixels, Path) else Image.fromarray(pixels)
                    views = [make_view(image, destination.view) for destination in destinations]
            except DataError as fault:
                faults.append(str(fault))
                continue
            highest = int(views[-1].max()) if image.info.get(_DEEP) else None
            contents.append(Content(hashlib.sha256(content).hexdigest(), hashlib.sha256(views[-1].data).hexdigest(), highest))
            for file, destination, view in zip(files, destinations, views, strict=True):
                _write(file, view.data.cast("B"), destination.offset + row * view.nbytes)
    finally:
        for file in files:
            os.close(file)
    return Decoded(tuple(contents), tuple(faults))


def _write(file: int, content: memoryview, offset: int) -> None:
    """Write all of `content`; a short write (disk nearly full) is retried and then fails with the system's reason."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
