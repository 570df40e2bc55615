"""Image folders: what is listed, what is drawn, and what is refused or passed over, by name."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from lowbit_vit.data.folder import list_images
from lowbit_vit.data.source import SPLITS, Source
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import DRAWN_KEYS, FolderData, FolderLayout, Views

VIEWS = Views(image_size=16, eval_resize=18, train_resize=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SHARES = {"split_seed": 0, "val_share": 0.1, "test_share": 0.3}


def listed(root: Path, layout: FolderLayout = "train-val-test", **values: float) -> Source:
    keys = {key: value for key, value in (SHARES | values).items() if key in DRAWN_KEYS[layout]}
    config = FolderData.model_validate({"source": "image_folder", "views": VIEWS, "root": root.name, "layout": layout, **keys})
    return list_images(config, root.parent)


def fill(folder: Path, count: int) -> None:
    """Files that are images by their names: a listing reads no more than that."""
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:03d}.jpg").touch()


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    root = tmp_path / "trees"
    for name, count in (("ash", 40), ("elm", 20), ("oak", 5)):
        fill(root / name, count)
    return root


def ids(source: Source, split: str) -> set[str]:
    return {item.id for name, items in source.splits.items() if name == split for item in items}


# ------------------------------------------------------------------------------------------------------ splits as given


def test_classes_and_images_come_in_the_order_of_their_names(image_folder: Path) -> None:
    source = listed(image_folder)
    assert source.class_names == ("ash", "elm")
    assert [item.id for item in source.splits["val"]] == ["ash/0.png", "ash/1.jpg", "ash/2.png", "elm/0.png", "elm/1.jpg", "elm/2.png"]
    assert [item.label for item in source.splits["val"]] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split_is_named(image_folder: Path, split: str) -> None:
    shutil.rmtree(image_folder / split)
    with pytest.raises(DataError, match=f"{image_folder / split}: no such folder; layout train-val-test expects .*/CLASS/IMAGE"):
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


def test_a_class_that_is_only_in_train_is_named(image_folder: Path) -> None:
    fill(image_folder / "train" / "oak", 3)
    with pytest.raises(DataError, match="class 'oak' has no image in split val"):
        listed(image_folder)


def test_one_class_alone_is_named(image_folder: Path) -> None:
    for split in SPLITS:
        shutil.rmtree(image_folder / split / "elm")
    with pytest.raises(DataError, match=f"^{image_folder}: one class, 'ash'; at least two are needed"):
        listed(image_folder)


# ------------------------------------------------------------------------------------------------------- splits drawn here


def test_a_drawn_split_gives_every_class_its_share_and_every_image_one_place(one_folder: Path) -> None:
    source = listed(one_folder, "classes")
    counts = {split: [sum(item.label == label for item in source.splits[split]) for label in range(3)] for split in SPLITS}
    # Of 40, 20 and 5: 10 % to val, 30 % to test, but never fewer than 1 and 2.
    assert counts == {"train": [24, 12, 2], "val": [4, 2, 1], "test": [12, 6, 2]}
    assert set.union(*(ids(source, split) for split in SPLITS)) == {
        path.relative_to(one_folder).as_posix() for path in one_folder.rglob("*.jpg")
    }
    assert sum(len(source.splits[split]) for split in SPLITS) == 65
    assert source.description == "images of the folder trees, split drawn (10% val, 30% test of each class, seed 0)"


def test_a_draw_is_of_the_seed_and_the_names_alone(one_folder: Path) -> None:
    first, again, other = (listed(one_folder, "classes", split_seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert ids(first, "test") != ids(other, "test")
    elsewhere = one_folder.parent / "moved" / "trees"
    shutil.copytree(one_folder, elsewhere)
    assert ids(listed(elsewhere, "classes"), "test") == ids(first, "test")


def test_one_image_more_moves_few_others(one_folder: Path) -> None:
    before = listed(one_folder, "classes")
    (one_folder / "ash" / "new.jpg").touch()
    after = listed(one_folder, "classes")
    assert len(ids(before, "test") - ids(after, "test")) <= 1
    assert {name for name in ids(after, "test") if not name.startswith("ash")} == {
        name for name in ids(before, "test") if not name.startswith("ash")
    }


def test_val_is_drawn_from_train_and_test_stays_as_given(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    source = listed(image_folder, "train-test", val_share=0.3)
    assert ids(source, "test") == ids(listed(image_folder, "train-test", val_share=0.3, split_seed=9), "test")
    assert len(ids(source, "test")) == 8
    assert [sum(item.label == label for item in source.splits["val"]) for label in (0, 1)] == [2, 2]
    assert not ids(source, "val") & ids(source, "train")
    assert len(ids(source, "val") | ids(source, "train")) == 12


@pytest.mark.parametrize(
    ("layout", "images", "needs"),
    [("classes", 3, "5 (2 train, 1 val, 2 test)"), ("classes", 0, "5 (2 train, 1 val, 2 test)"), ("train-test", 2, "3 (2 train, 1 val)")],
)
def test_a_class_with_too_few_images_for_the_draw_is_named(tmp_path: Path, layout: FolderLayout, images: int, needs: str) -> None:
    root = tmp_path / "trees"
    for folder in (root,) if layout == "classes" else (root / "train", root / "test"):
        fill(folder / "ash", 10)
        fill(folder / "elm", images)
    with pytest.raises(DataError) as raised:
        listed(root, layout)
    assert str(raised.value) == f"trees: class 'elm' has {images} images; a drawn split needs {needs}: add some or remove the class"


def test_shares_that_leave_nothing_to_train_on_are_named(one_folder: Path) -> None:
    with pytest.raises(DataError, match="the shares leave 0 of the 40 images of class 'ash' to train on"):
        listed(one_folder, "classes", val_share=0.5, test_share=0.49)


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Valid")])
def test_split_folders_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        fill(tmp_path / "trees" / name / "ash", 10)
    with pytest.raises(DataError, match=r"look like splits, not classes; name them train, val, test and set data\.layout to match"):
        listed(tmp_path / "trees", "classes")


# ---------------------------------------------------------------------------------------------------- what lies in a folder


def test_what_is_no_image_by_its_name_is_passed_over_and_counted(image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/.DS_Store", "train/ash/.hidden.png", "train/notes.txt", "val/ash/a.xml", "val/ash/b.xml", "test/elm/README"):
        (image_folder / name).write_bytes(b"x")
    (image_folder / "train" / ".thumbnails").mkdir()
    assert len(listed(image_folder).splits["train"]) == 12
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{image_folder}: passed over 7 entries that are no images by their names: "
        "3 hidden (their names start with a dot), 2 .xml, 1 .txt, 1 without a suffix"
    )


def test_a_sound_folder_needs_no_word(image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed(image_folder)
    assert not caplog.records


def test_an_image_outside_of_every_class_is_named(image_folder: Path) -> None:
    lost = image_folder / "train" / "lost.png"
    lost.touch()
    with pytest.raises(DataError, match=f"^{lost}: an image outside of every class's folder"):
        listed(image_folder)


def test_folders_in_a_class_and_links_are_followed(one_folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "deeper", 3)
    (one_folder / "ash" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (one_folder / "fir").symlink_to(one_folder / "oak", target_is_directory=True)
    (one_folder / "elm" / "link.jpg").symlink_to(one_folder / "elm" / "000.jpg")
    source = listed(one_folder, "classes")
    assert source.class_names == ("ash", "elm", "fir", "oak")
    everything = set.union(*(ids(source, split) for split in SPLITS))
    assert {"ash/more/deeper/000.jpg", "elm/link.jpg", "fir/000.jpg"} <= everything


def test_a_link_to_nowhere_and_a_link_in_a_circle_are_named(one_folder: Path) -> None:
    broken = one_folder / "ash" / "broken.jpg"
    broken.symlink_to("nothing.jpg")
    with pytest.raises(DataError, match=f"^{broken}: a link to a file that is not there"):
        listed(one_folder, "classes")
    broken.unlink()
    (one_folder / "ash" / "again").symlink_to(one_folder, target_is_directory=True)
    with pytest.raises(DataError, match="again/ash: a link to a folder that it lies in"):
        listed(one_folder, "classes")


def test_what_would_block_a_reader_is_named(one_folder: Path) -> None:
    pipe = one_folder / "ash" / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=f"^{pipe}: not a regular file"):
        listed(one_folder, "classes")


NAMES = ["white ash", "冬青", "élan", 'a "quoted", name', "<b>bold<i>", "100 % oak", "-dash"]


def test_class_names_may_hold_spaces_quotes_and_any_script(tmp_path: Path) -> None:
    for name in NAMES:
        fill(tmp_path / "trees" / name, 5)
    assert set(listed(tmp_path / "trees", "classes").class_names) == set(NAMES)


def test_two_spellings_of_one_unicode_name_are_one_class_across_splits_and_an_error_within_one(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "élan") for form in ("NFC", "NFD"))
    root = tmp_path / "trees"
    for split, name in (("train", composed), ("val", decomposed), ("test", decomposed)):
        fill(root / split / name, 3)
        fill(root / split / "ash", 3)
    assert listed(root).class_names == ("ash", composed)
    fill(root / "train" / decomposed, 1)
    with pytest.raises(DataError, match="its name is that of another class's folder in other Unicode characters; merge the two"):
        listed(root)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe"], ids=["newline", "not UTF-8"])
def test_a_name_that_cannot_be_written_down_is_named(one_folder: Path, name: bytes) -> None:
    fill(one_folder / os.fsdecode(name), 5)
    with pytest.raises(DataError, match="its name holds control characters or is not UTF-8; rename it") as raised:
        listed(one_folder, "classes")
    assert str(raised.value).isprintable()
