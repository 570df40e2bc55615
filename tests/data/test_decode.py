"""A decoded view is what torchvision's transforms make of the same file, bit for bit; what it gets wrong is right here."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Resize

from lowbit_vit.data import decode
from lowbit_vit.data.decode import FAULTS, Destination, View, decode_chunk, decode_file, make_view

VIEWS = [View(28, 24), View(24, 24), View(31, 24), View(90, 77)]
SIZES = [(40, 53), (64, 48), (33, 33), (97, 41), (28, 57), (200, 31)]


def image(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_equals_torchvisions_resize_and_centre_crop(size: tuple[int, int], view: View) -> None:
    original = image(size)
    expected = CenterCrop(view.side)(Resize(view.resize)(original))
    assert np.array_equal(make_view(original, view), np.asarray(expected))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png")]
)
def test_every_colour_mode_decodes_as_in_torchvisions_datasets(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    image((40, 30), mode).save(path)
    assert np.array_equal(np.asarray(decode_file(path.read_bytes())), np.asarray(default_loader(str(path))))


def test_real_photographs_equal_torchvisions(flowers_root: Path) -> None:
    view = View(242, 224)
    for path in sorted((flowers_root / "flowers-102" / "jpg").iterdir())[::800]:
        expected = CenterCrop(view.side)(Resize(view.resize)(default_loader(str(path))))
        assert np.array_equal(make_view(decode_file(path.read_bytes()), view), np.asarray(expected))


def jpeg() -> bytes:
    buffer = io.BytesIO()
    image((60, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


DAMAGED = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "half": jpeg()[: len(jpeg()) // 2],
    "header": jpeg()[:200],
    "end missing": jpeg()[:-40],
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_image_is_a_fault(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flower.jpg"
    path.write_bytes(content)
    decoded = decode_chunk([path], 0, [])
    assert len(decoded.faults) == 1
    assert decoded.faults[0].startswith(f"{path}: ")
    assert "\n" not in decoded.faults[0]


def saved(original: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    original.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_with_an_orientation_tag_is_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(image((40, 30)), kind, exif=exif)
    with Image.open(io.BytesIO(content)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(np.asarray(decode_file(content)), expected)
    # Orientations 5 to 8 swap the sides.
    assert expected.shape == ((40, 30, 3) if orientation > 4 else (30, 40, 3))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the damage
@pytest.mark.parametrize("value", [36, 59, 85])
def test_damage_in_the_other_tags_does_no_harm(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Make", 72.0
    content = saved(image((40, 30)), "JPEG", exif=exif)
    start = content.index(b"MM\0*") + 4
    for at in range(start, start + 64):
        try:
            decoded = decode_file(content[:at] + bytes([value]) + content[at + 1 :])
        except FAULTS:
            continue
        assert decoded.size in {(30, 40), (40, 30)}


LEVELS = np.arange(65536, dtype=np.uint16).reshape(256, 256)
GREY_16 = {
    "PNG": saved(Image.fromarray(LEVELS), "PNG"),
    "TIFF": saved(Image.fromarray(LEVELS), "TIFF"),
    "TIFF, big endian": saved(Image.frombytes("I;16B", (256, 256), LEVELS.astype(">u2").tobytes()), "TIFF"),
    "PGM": b"P5 256 256 65535\n" + LEVELS.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("content", GREY_16.values(), ids=GREY_16.keys())
def test_16_bit_grey_is_scaled_to_the_nearest_of_256_levels(content: bytes) -> None:
    pixels = np.asarray(decode_file(content))
    assert np.abs(pixels[..., 0] - LEVELS / 257).max() <= 0.5
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert len(np.unique(pixels)) == 256


def test_16_bit_colour_keeps_its_high_byte() -> None:
    content = _png_of_16_bit_colour(LEVELS[:, :2])
    assert np.array_equal(np.asarray(decode_file(content))[..., 0], LEVELS[:, :2] >> 8)


def _png_of_16_bit_colour(levels: npt.NDArray[np.uint16]) -> bytes:
    """Pillow writes no 16-bit colour, so this is a PNG by hand."""
    rows = np.repeat(levels.astype(">u2")[..., None], 3, axis=2)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("dtype", "said"), [(np.int32, "32-bit integer"), (np.float32, "floating-point")])
def test_pixels_without_a_fixed_range_are_a_fault(tmp_path: Path, dtype: type, said: str) -> None:
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.ones((8, 8), dtype=dtype)).save(path)
    (fault,) = decode_chunk([path], 0, []).faults
    assert fault == f"{path}: {said} pixels have no fixed range; save it with 8 or 16 bits"


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    palette = image((20, 20)).quantize(16)
    content = saved(palette, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(np.asarray(decode_file(content)), np.asarray(palette.convert("RGB")))


def test_an_image_20_000_px_wide_decodes_as_any_other() -> None:
    original = image((20_000, 1_000))
    assert np.array_equal(np.asarray(decode_file(saved(original, "PNG", compress_level=1))), np.asarray(original))


def test_a_jpeg_above_the_limit_is_decoded_at_a_reduced_size(monkeypatch: pytest.MonkeyPatch) -> None:
    original = image((1000, 600))
    content = saved(original, "JPEG", quality=95)
    limit = 80_000  # 1000 x 600 / 4 is above it, / 16 below
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(decode, "MAX_PIXELS", limit)
    reduced = decode_file(content)
    assert reduced.size == (250, 150)
    difference = np.asarray(reduced, dtype=float) - np.asarray(original.reduce(4), dtype=float)
    assert np.abs(difference).mean() < 2


# Its own process, because the peak of resident memory only ever rises.
BIG_JPEG = """
import resource, sys
from pathlib import Path
from lowbit_vit.data.decode import View, decode_file, make_view
content = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = decode_file(content)
make_view(image, View(256, 224))
print(*image.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_jpeg_of_200_megapixels_takes_less_memory_than_the_limits_image(tmp_path: Path) -> None:
    path = tmp_path / "panorama.jpg"
    Image.new("L", (20_000, 10_000), 90).save(path)
    shown = subprocess.run([sys.executable, "-c", BIG_JPEG, str(path)], capture_output=True, text=True, check=True).stdout
    width, height, mib = map(int, shown.split())
    assert (width, height) == (10_000, 5_000)
    assert mib < 4 * 10_000 * 5_000 / 2**20 * 1.1  # grey and then RGB of the reduced image; as RGB in full it would be 572 MiB


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("PNG", {}, "too large: at most 0 million pixels are decoded, and only JPEG can be decoded at a reduced size"),
        ("JPEG", {"progressive": True}, "too large: 60 x 60 px as a progressive JPEG; save it as a baseline JPEG"),
    ],
)
@pytest.mark.parametrize("limit", [3000, 1000], ids=["where Pillow warns", "where Pillow refuses"])
def test_what_cannot_be_decoded_in_bounded_memory_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str, options: dict[str, bool], said: str, limit: int
) -> None:
    path = tmp_path / "huge"
    path.write_bytes(saved(image((60, 60)), kind, **options))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(decode, "MAX_PIXELS", limit)
    (fault,) = decode_chunk([path], 0, []).faults
    assert fault.startswith(f"{path}: {said}")
    assert "\n" not in fault


def test_a_thread_of_pixels_is_a_fault_and_not_a_gigabyte(tmp_path: Path) -> None:
    path, target = tmp_path / "thread.png", tmp_path / "array"
    Image.new("RGB", (20_000, 3)).save(path)
    target.write_bytes(bytes(224 * 224 * 3))
    (fault,) = decode_chunk([path], 0, [Destination(View(256, 224), target, 0)]).faults
    assert fault == f"{path}: 20000 x 3 px is too narrow: with 256 px on the shorter side it has 1706666 on the longer"


def test_faults_leave_the_other_images_of_the_chunk_in_place(tmp_path: Path) -> None:
    good = np.full((4, 4, 3), 7, dtype=np.uint8)
    (tmp_path / "bad.jpg").write_bytes(b"x")
    target = tmp_path / "array"
    target.write_bytes(bytes(3 * 48))
    decoded = decode_chunk([good, tmp_path / "bad.jpg", good], 0, [Destination(View(4, 4), target, 0)])
    assert np.frombuffer(target.read_bytes(), np.uint8).reshape(3, 48).mean(axis=1).tolist() == [7, 0, 7]
    assert len(decoded.faults) == 1
