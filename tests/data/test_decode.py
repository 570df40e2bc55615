"""A decoded view is what torchvision's transforms make of the same file, bit for bit; what it gets wrong is right here."""

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Resize

from fuzzing import EXAMPLES
from lowbit_vit.data import decode
from lowbit_vit.data.decode import Destination, Pixels, View, decode_chunk, decode_file, make_view, name_fault
from lowbit_vit.errors import DataError

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
    ("mode", "suffix"),
    [
        ("RGB", "jpg"),
        ("L", "jpg"),
        ("CMYK", "jpg"),
        ("L", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("1", "png"),
        ("LA", "png"),
        ("CMYK", "tif"),
    ],
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


def saved(original: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    original.save(buffer, kind, **options)
    return buffer.getvalue()


def dds(kind: bytes) -> bytes:
    """A DDS texture of any pixel format."""
    return b"DDS " + struct.pack("<6I", 124, 0x1007, 48, 48, 0, 0) + bytes(48) + struct.pack("<II", 32, 4) + kind + bytes(240)


JPEG = saved(image((60, 60)), "JPEG")
DAMAGED = {
    "empty": (b"", "not an image"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "half": (JPEG[: len(JPEG) // 2], "image file is truncated"),
    "header": (JPEG[:200], "Truncated File Read"),
    "end missing": (JPEG[:-40], "image file is truncated"),
    "a PNG's half": (saved(image((60, 60)), "PNG")[:2000], "image file is truncated"),
    "NotImplementedError": (dds(b"XXXX"), "Unimplemented pixel format 1482184792"),
    "PostScript": (saved(image((60, 60)), "EPS"), "PostScript, which is not decoded"),
    "an icon of nothing": (b"\0\0\1\0\0\0", "not an image"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_image_is_a_fault(tmp_path: Path, case: str) -> None:
    content, said = DAMAGED[case]
    path = tmp_path / "flower.jpg"
    path.write_bytes(content)
    (fault,) = decode_chunk([path], 0, []).faults
    assert fault.startswith(f"{path}: {said}")
    assert fault.isprintable()


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


@pytest.mark.parametrize("value", [36, 59, 85])
def test_damage_in_the_other_tags_does_no_harm(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Make", 72.0
    content = saved(image((40, 30)), "JPEG", exif=exif)
    block = exif.tobytes()
    start = content.index(block)
    for at in range(start + len(b"Exif\0\0MM\0*"), start + len(block)):
        with name_fault(f"byte {at}"):
            decoded = decode_file(content[:at] + bytes([value]) + content[at + 1 :])
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


# ------------------------------------------------------------------------------------------------------ what people's files have


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG, WEBP = saved(image((40, 30)), "PNG"), saved(image((40, 30)), "WEBP", lossless=True)
HALF_EXIF = b"II*\0\x08\0"
SOUND_PIXELS = {
    "PNG, cut EXIF": PNG[:33] + chunk(b"eXIf", HALF_EXIF) + PNG[33:],
    "PNG, EXIF of nonsense": PNG[:33] + chunk(b"eXIf", b"garbage") + PNG[33:],
    "PNG, cut EXIF after the pixels": PNG[:-12] + chunk(b"eXIf", HALF_EXIF) + PNG[-12:],
    "PNG, EXIF as text": PNG[:33] + chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz") + PNG[33:],
    "WebP, cut EXIF": saved(image((40, 30)), "WEBP", lossless=True, exif=b"Exif\0\0" + HALF_EXIF),
}


@pytest.mark.parametrize("case", SOUND_PIXELS)
def test_a_damaged_exif_block_has_no_orientation(case: str) -> None:
    with name_fault(case):
        decoded = decode_file(SOUND_PIXELS[case])
    assert np.array_equal(np.asarray(decoded), np.asarray(image((40, 30))))


ODD_ORIENTATIONS = {
    "0": struct.pack("<HLL", 3, 1, 0),
    "9": struct.pack("<HLL", 3, 1, 9),
    "text": struct.pack("<HL", 2, 2) + b"6\0\0\0",
    "elsewhere": struct.pack("<HLL", 5, 1, 10**6),
}


@pytest.mark.parametrize("case", ODD_ORIENTATIONS)
def test_an_odd_orientation_leaves_the_image_as_it_is(case: str) -> None:
    exif = b"II*\0\x08\0\0\0\1\0\x12\1" + ODD_ORIENTATIONS[case] + bytes(4)
    with name_fault(case):
        assert decode_file(PNG[:33] + chunk(b"eXIf", exif) + PNG[33:]).size == (40, 30)


FRAMES = [image((40, 30)), image((30, 40)).resize((40, 30))]
SEVERAL = {
    # Copies, because a JPEG's writer leaves its settings in the image.
    kind: saved(FRAMES[0].copy(), kind, save_all=True, append_images=[FRAMES[1].copy()], **options)
    for kind, options in {"MPO": {}, "PNG": {}, "GIF": {}, "TIFF": {}, "WEBP": {"lossless": True}, "AVIF": {}}.items()
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_images_the_first_is_taken(kind: str) -> None:
    decoded = np.asarray(decode_file(SEVERAL[kind]), dtype=float)
    first, second = (np.abs(decoded - np.asarray(frame)).mean() for frame in FRAMES)
    assert first < 10 < second  # lossy, and GIF has a palette


def tiff(levels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8], *, bits: int, photometric: int) -> bytes:
    """A grey TIFF by hand: Pillow writes neither white-is-zero nor 12 bits."""
    data = levels.astype(levels.dtype.newbyteorder("<")).tobytes()
    if bits == 12:
        pairs = levels.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        data = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8).tobytes()
    height, width = levels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + struct.pack("<L", 0)


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_a_tiff_of_any_depth_and_polarity_shows_the_same_picture(bits: int, photometric: int) -> None:
    picture = np.tile(np.arange(48, dtype=np.uint8) * 5, (48, 1))
    stored = picture if photometric else 255 - picture
    deep = np.rint(stored * ((2**bits - 1) / 255)).astype(np.uint8 if bits == 8 else np.uint16)
    assert np.array_equal(np.asarray(decode_file(tiff(deep, bits=bits, photometric=photometric)))[..., 0], picture)


def test_one_picture_has_one_identity_in_every_lossless_format(tmp_path: Path) -> None:
    target = tmp_path / "array"
    target.write_bytes(bytes(4 * 4 * 3))
    picture = image((40, 30), "L")
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "a.png": saved(picture, "PNG"),
        "a.bmp": saved(picture.convert("RGB"), "BMP"),
        "a.webp": saved(picture, "WEBP", lossless=True),
        "a.tif": saved(picture.convert("RGBA"), "TIFF", compression="tiff_lzw"),
        "a.gif": saved(picture, "GIF"),
        "a.jp2": saved(picture, "JPEG2000"),
        "16 bits.png": saved(Image.fromarray(np.asarray(picture, dtype=np.uint16) * 257), "PNG"),
        "turned.png": saved(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned),
        "another.png": saved(image((40, 30), "L").transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    decoded = decode_chunk([tmp_path / name for name in files], 0, [Destination(View(4, 4), target, 0)])
    assert not decoded.faults
    pixels = [content.pixels for content in decoded.contents]
    assert len(set(pixels[:-1])) == 1
    assert pixels[-1] != pixels[0]
    assert len({content.file for content in decoded.contents}) == len(files)


# ----------------------------------------------------------------------------------------------------------------- mutated files


@cache
def originals() -> dict[str, bytes]:
    """A small file of each format that Pillow writes and reads, in each of its modes, some with EXIF and XMP."""
    Image.init()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Make", 72.0
    files = {f"several, {kind}": content for kind, content in SEVERAL.items()} | SMALL_16
    files |= {f"EXIF, {kind}": saved(image((24, 18)), kind, exif=exif, xmp=b"<x/>") for kind in ("AVIF", "JPEG", "PNG", "TIFF", "WEBP")}
    for kind in sorted(Image.SAVE.keys() - {"EPS", "ICNS", "PALM", "PDF"}):  # the first is read by Ghostscript, the next takes 1 MB
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK"):
            with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():  # not a mode of this format
                warnings.simplefilter("ignore")
                files[f"{mode}, {kind}"] = saved(image((24, 18), mode), kind)
    return files


SMALL_16 = {"PNG": saved(Image.fromarray(LEVELS[:9, :9]), "PNG"), "TIFF": tiff(LEVELS[:4, :4], bits=12, photometric=1), "DDS": dds(b"DXT1")}
EDITS = st.lists(st.tuples(st.integers(0, 80) | st.integers(0, 4000), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=4)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(name=st.deferred(lambda: st.sampled_from(sorted(originals()))), edits=EDITS, end=st.none() | st.integers(0, 2000))
def test_a_mutated_image_is_pixels_or_one_fault(name: str, edits: list[tuple[int, int, bytes]], end: int | None) -> None:
    content = bytearray(originals()[name])
    for at, gone, put in edits:
        start = at % (len(content) + 1)
        content[start : start + gone] = put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
        patch.setattr(decode, "MAX_PIXELS", 10**6)
        found: Pixels | DataError
        try:
            with name_fault("a.png"):
                found = make_view(decode_file(bytes(content[:end])), View(20, 16))
        except DataError as fault:
            found = fault
    if isinstance(found, DataError):
        assert str(found).startswith("a.png: ")
        assert str(found).isprintable()
    else:
        assert found.shape == (16, 16, 3)
        assert found.dtype == np.uint8
