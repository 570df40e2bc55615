"""Image folders: what is listed, and what is refused, by name."""

import shutil
from pathlib import Path

import pytest

from lowbit_vit.data.folder import list_images
from lowbit_vit.data.source import Source
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import FolderData, Views

VIEWS = Views(image_size=16, eval_resize=18, train_resize=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def listed(root: Path) -> Source:
    return list_images(FolderData(source="image_folder", views=VIEWS, root=root.name), root.parent)


def test_classes_and_images_come_in_the_order_of_their_names(image_folder: Path) -> None:
    source = listed(image_folder)
    assert source.class_names == ("ash", "elm")
    assert [item.id for item in source.splits["val"]] == ["ash/0.png", "ash/1.jpg", "ash/2.png", "elm/0.png", "elm/1.jpg", "elm/2.png"]
    assert [item.label for item in source.splits["val"]] == [0, 0, 0, 1, 1, 1]


def test_hidden_files_are_passed_over(image_folder: Path) -> None:
    (image_folder / "train" / ".DS_Store").write_bytes(b"x")
    (image_folder / "train" / "ash" / ".hidden.txt").write_bytes(b"x")
    assert len(listed(image_folder).splits["train"]) == 12


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split_is_named(image_folder: Path, split: str) -> None:
    shutil.rmtree(image_folder / split)
    with pytest.raises(DataError, match=f"{image_folder / split}: no such folder"):
        listed(image_folder)


def test_an_empty_class_is_named(image_folder: Path) -> None:
    for path in (image_folder / "test" / "elm").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="class 'elm' has no image in split test"):
        listed(image_folder)


def test_a_class_that_is_not_in_train_is_named(image_folder: Path) -> None:
    (image_folder / "val" / "oak").mkdir()
    with pytest.raises(DataError, match=rf"{image_folder / 'val' / 'oak'}: class 'oak' has no folder in split train"):
        listed(image_folder)


def test_a_file_that_is_no_image_by_its_name_is_named(image_folder: Path) -> None:
    notes = image_folder / "train" / "ash" / "notes.txt"
    notes.write_text("x")
    with pytest.raises(DataError, match=f"{notes}: not an image by its name"):
        listed(image_folder)
