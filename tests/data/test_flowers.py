"""Flowers-102: the official split as torchvision reads it, and every fault by the file's name."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from lowbit_vit.data import flowers
from lowbit_vit.data.flowers import CLASS_NAMES, list_images
from lowbit_vit.data.remote_files import FLOWERS
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import FlowersData, Views

VIEWS = Views(image_size=16, eval_resize=18, train_resize=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LABELS = np.repeat(np.arange(1, 103), 3)
SETS = {"trnid": np.arange(1, 307, 3), "valid": np.arange(2, 307, 3), "tstid": np.arange(3, 307, 3)}


def config(root: Path, images: Literal["original", "256-px copies"] = "256-px copies") -> FlowersData:
    return FlowersData(source="flowers102", views=VIEWS, root=str(root), images=images)


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A folder of the same layout with 306 files, all but the first empty: enough for what decodes none."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 307):
        (folder / "jpg" / f"image_{number:05d}.jpg").touch()
    Image.new("RGB", (256, 300)).save(folder / "jpg" / "image_00001.jpg")
    savemat(folder / "imagelabels.mat", {"labels": LABELS})
    savemat(folder / "setid.mat", SETS)
    return folder


def test_class_names_are_torchvisions() -> None:
    assert list(Flowers102.classes) == list(CLASS_NAMES)


def test_the_official_split_is_the_one_torchvision_reads(flowers_root: Path) -> None:
    source = list_images(config(flowers_root), Path())
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 1020, "val": 1020, "test": 6149}
    for split, items in source.splits.items():
        theirs = Flowers102(flowers_root, split=split)
        expected = sorted(zip((path.name for path in theirs._image_files), theirs._labels, strict=True))
        assert [(item.id, item.label) for item in items] == expected


def test_copies_are_not_taken_for_originals(flowers_root: Path) -> None:
    with pytest.raises(DataError, match=r"image_00001\.jpg: 256 px on its shorter side, so key data\.images must be '256-px copies'"):
        list_images(config(flowers_root, "original"), Path())


def test_a_relative_root_starts_at_the_project(made_up: Path) -> None:
    with pytest.raises(DataError, match=f"^{made_up / 'imagelabels.mat'}: "):
        list_images(config(Path()), made_up.parent)


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_a_missing_label_or_split_file_is_named(flowers_root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "flowers-102").mkdir()
    for other in {"imagelabels.mat", "setid.mat"} - {name}:
        shutil.copy(flowers_root / "flowers-102" / other, tmp_path / "flowers-102")
    with pytest.raises(DataError, match=f"{tmp_path / 'flowers-102' / name}: missing"):
        list_images(config(tmp_path), Path())


def test_another_split_file_of_the_same_size_is_refused_by_its_md5(flowers_root: Path, tmp_path: Path) -> None:
    (tmp_path / "flowers-102").mkdir()
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(flowers_root / "flowers-102" / name, tmp_path / "flowers-102")
    path = tmp_path / "flowers-102" / "setid.mat"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    expected = next(file.md5 for file in FLOWERS if file.name == "setid.mat")
    with pytest.raises(DataError, match=rf"{path}: md5 [0-9a-f]{{32}}, {expected} expected"):
        list_images(config(tmp_path), Path())


@pytest.fixture
def any_split_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowers, "check_file", lambda file, path: None)


@pytest.mark.usefixtures("any_split_file")
def test_labels_and_splits_are_read_in_the_order_of_the_images(made_up: Path) -> None:
    savemat(made_up / "setid.mat", {**SETS, "tstid": SETS["tstid"][::-1]})
    source = list_images(config(made_up.parent), Path())
    assert [len(items) for items in source.splits.values()] == [102, 102, 102]
    assert [item.id for item in source.splits["test"][:2]] == ["image_00003.jpg", "image_00006.jpg"]
    assert [item.label for item in source.splits["test"]] == list(range(102))
    assert source.description == "Oxford Flowers-102, official split, copies of 256 px (shorter side)"


@pytest.mark.usefixtures("any_split_file")
def test_a_missing_image_is_named(made_up: Path) -> None:
    (made_up / "jpg" / "image_00100.jpg").unlink()
    with pytest.raises(DataError, match=r"image_00100\.jpg: missing; unpack 102flowers\.tgz"):
        list_images(config(made_up.parent), Path())


@pytest.mark.usefixtures("any_split_file")
@pytest.mark.parametrize("images", ["original", "256-px copies"])
def test_what_is_no_image_is_named(made_up: Path, images: Literal["original", "256-px copies"]) -> None:
    (made_up / "jpg" / "image_00001.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"image_00001\.jpg: not an image; replace it"):
        list_images(config(made_up.parent, images), Path())


@pytest.mark.usefixtures("any_split_file")
def test_originals_are_not_taken_for_copies(made_up: Path) -> None:
    Image.new("RGB", (500, 667)).save(made_up / "jpg" / "image_00001.jpg")
    with pytest.raises(DataError, match=r"image_00001\.jpg: 500 px on its shorter side, so key data\.images must be 'original'"):
        list_images(config(made_up.parent), Path())
    assert list_images(config(made_up.parent, "original"), Path()).description.endswith("official split, original images")
