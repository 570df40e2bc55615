"""A decoded view is what torchvision's transforms make of the same file, bit for bit."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Resize

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


def test_an_image_of_absurd_size_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(), pytest.raises(FAULTS):
        decode_file(jpeg())


def test_faults_leave_the_other_images_of_the_chunk_in_place(tmp_path: Path) -> None:
    good = np.full((4, 4, 3), 7, dtype=np.uint8)
    (tmp_path / "bad.jpg").write_bytes(b"x")
    target = tmp_path / "array"
    target.write_bytes(bytes(3 * 48))
    decoded = decode_chunk([good, tmp_path / "bad.jpg", good], 0, [Destination(View(4, 4), target, 0)])
    assert np.frombuffer(target.read_bytes(), np.uint8).reshape(3, 48).mean(axis=1).tolist() == [7, 0, 7]
    assert len(decoded.faults) == 1
