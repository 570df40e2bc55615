"""Flowers-102: the official split as torchvision reads it, and every fault by the file's name."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import Flowers102

from lowbit_vit.data.flowers import CLASS_NAMES, list_images, read_split
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
    """A folder of the same layout with 306 empty files: enough for what reads no pixel."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 307):
        (folder / "jpg" / f"image_{number:05d}.jpg").touch()
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


def test_a_sound_folder_is_read(made_up: Path) -> None:
    source = read_split(made_up, "made up")
    assert [len(items) for items in source.splits.values()] == [102, 102, 102]
    assert source.splits["test"][0].id == "image_00003.jpg"


@pytest.mark.parametrize("label", [0, 103])
def test_a_label_out_of_range_names_its_image(made_up: Path, label: int) -> None:
    savemat(made_up / "imagelabels.mat", {"labels": np.where(np.arange(306) == 3, label, LABELS)})
    with pytest.raises(DataError, match=rf"image_00004\.jpg: label {label - 1} is outside 0\.\.101"):
        read_split(made_up, "made up")


def test_an_empty_class_is_named(made_up: Path) -> None:
    savemat(made_up / "setid.mat", {**SETS, "valid": SETS["valid"][:-1]})
    with pytest.raises(DataError, match="class 'blackberry lily' has no image in split val"):
        read_split(made_up, "made up")


@pytest.mark.parametrize(("number", "problem"), [(1, "image 1 is listed twice"), (400, r"image 400 is outside 1\.\.306")])
def test_a_split_file_that_contradicts_itself_is_named(made_up: Path, number: int, problem: str) -> None:
    savemat(made_up / "setid.mat", {**SETS, "valid": np.append(SETS["valid"], number)})
    with pytest.raises(DataError, match=rf"{made_up / 'setid.mat'}: key valid: {problem}"):
        read_split(made_up, "made up")


def test_a_missing_image_is_named(made_up: Path) -> None:
    (made_up / "jpg" / "image_00100.jpg").unlink()
    with pytest.raises(DataError, match=r"image_00100\.jpg: missing"):
        read_split(made_up, "made up")


@pytest.mark.parametrize("content", [b"", b"not a MATLAB file, but long enough to look for a header in it" * 9])
def test_a_split_file_that_is_not_matlabs_is_named(made_up: Path, content: bytes) -> None:
    (made_up / "setid.mat").write_bytes(content)
    with pytest.raises(DataError, match=f"{made_up / 'setid.mat'}: not a MATLAB file"):
        read_split(made_up, "made up")
