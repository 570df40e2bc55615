"""Image folders: what is listed, what is drawn, and what is refused or passed over, by name."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from lowbit_vit.data.folder import IMAGE_SUFFIXES, find_layout, list_images
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


# --------------------------------------------------------------------------------------------------- splits as people name them


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("train", "valid", "test"), "train-val-test"),
        (("train", "validation", "test"), "train-val-test"),
        (("Train", "DEV", "Test"), "train-val-test"),
        (("training", "testing"), "train-test"),
        (("train", "test", "@eaDir"), "train-test"),
        (("ash", "elm"), "classes"),
        (("train", "bus", "car"), "classes"),  # a vehicle
    ],
)
def test_splits_have_the_names_that_people_give_them(
    tmp_path: Path, names: tuple[str, ...], layout: FolderLayout, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "trees"
    for name in names:
        for below in ("ash", "elm") if layout != "classes" else (".",):
            fill(root / name / below, 10)
    assert find_layout(root) == layout
    assert not caplog.records
    source = listed(root, layout)
    if layout == "train-val-test":
        assert {str(item.pixels).split("/")[-3] for item in source.splits["val"]} == {names[1]}
        assert [item.id for item in source.splits["val"]][:2] == ["ash/000.jpg", "ash/001.jpg"]


def test_folders_beside_the_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "valid", "test", "extra"):
        fill(tmp_path / "trees" / name / "ash", 1)
    assert find_layout(tmp_path / "trees") == "train-val-test"
    assert caplog.messages == [f"{tmp_path / 'trees'}: not used, for they are not of train/valid/test: extra"]


NO_SPLITS: dict[str, tuple[tuple[str, ...], str]] = {
    "train and val alone": (("train", "val"), "train and val look like splits, not classes; there is no test; rename val to test (val is"),
    "in other words": (("Training", "Valid"), "Training and Valid look like splits, not classes; there is no test; rename Valid to test"),
    "no train": (("dev", "test"), "dev and test look like splits, not classes; there is no train beside them"),
    "a profile's layout": (("train", "test"), "train and test look like splits, not classes; set data.layout to train-test"),
    "names around them": (("seg_pred_test", "train2017"), "seg_pred_test and train2017 look like splits, not classes; name them train and"),
    "train and eval": (("eval", "train"), "eval and train look like splits, not classes; name them train and test"),
    "two of one": (("train", "val", "valid"), "valid: stands for split val, as "),
}


@pytest.mark.parametrize("case", NO_SPLITS)
def test_split_folders_are_not_taken_for_classes(tmp_path: Path, case: str) -> None:
    names, said = NO_SPLITS[case]
    for name in names:
        fill(tmp_path / "trees" / name / "ash", 10)
    with pytest.raises(DataError) as raised:
        listed(tmp_path / "trees", "classes")
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "trees"))


@pytest.mark.parametrize(
    ("holders", "meant"),
    [
        (("seg_train/seg_train", "seg_test/seg_test", "seg_pred"), "seg_train/seg_train"),
        (("first part", "second part"), "first part"),
        (("archive",), "archive"),
        (("a/b",), "a/b"),
        (("archive/train", "archive/test"), "archive"),
        (("dataset/training_set", "dataset/test_set"), "dataset"),
        (("bottle/train", "bottle/test", "cable/train", "cable/test"), "bottle"),
    ],
)
def test_a_folder_one_too_high_is_named_with_the_one_that_is_meant(tmp_path: Path, holders: tuple[str, ...], meant: str) -> None:
    root = tmp_path / "trees"
    for at, holder in enumerate(holders):
        fill(root / holder / "ash", 5 - at)
        fill(root / holder / "elm", 5 - at)
    fill(root / "labels", 0)
    said = (
        rf"^{root}: no class holds images itself, .*{root}/{holders[0]}/(ash|elm); if {root}/{meant} is the folder that is meant, give that"
    )
    with pytest.raises(DataError, match=said):
        listed(root, "classes")


@pytest.mark.parametrize(
    ("deeper", "warned"), [(("ash/images", "elm/images"), False), (("ash/1", "ash/2", "elm/3"), True), (("ash/1", "ash/.", "elm/1"), False)]
)
def test_folders_within_classes_are_parts_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, deeper: tuple[str, ...], warned: bool
) -> None:
    for folder in deeper:
        (tmp_path / "trees" / folder).mkdir(parents=True, exist_ok=True)
        for index in range(6):
            (tmp_path / "trees" / folder / f"{index}.jpg").touch()
    assert listed(tmp_path / "trees", "classes").class_names == ("ash", "elm")
    assert ("no class holds images itself; those in folders within it are taken" in caplog.text) == warned


# ------------------------------------------------------------------------------------------------- what else lies about, and names


LEFT_ABOUT = [
    *("ash/@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg", "#recycle/ash/1.jpg", "@Recycle/1.jpg", "ash/.@__thumb/default000.jpg"),
    *("__MACOSX/ash/._000.jpg", "ash/._000.jpg", "$RECYCLE.BIN/S-1-5/x.png", "System Volume Information/x.jpg", "lost+found/x.jpg"),
    *("ash/Thumbs.db", "ash/desktop.ini", "ash/Icon\r", ".ipynb_checkpoints/000.jpg", "ash/.ipynb_checkpoints/a.jpg", ".Trash-1000/x.jpg"),
    *("ash/thumbs/000.jpg", "ash/Thumbnails/000.jpg", ".picasaoriginals/x.jpg", "labels.csv", "ash/photo.heic"),
]


@pytest.mark.parametrize("name", LEFT_ABOUT)
def test_what_programs_leave_about_is_passed_over_and_counted(one_folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    sound = listed(one_folder, "classes")
    (one_folder / name).parent.mkdir(parents=True, exist_ok=True)
    (one_folder / name).touch()
    assert listed(one_folder, "classes") == sound
    (said,) = caplog.messages
    assert said.startswith(f"{one_folder}: passed over 1 entries that are no images by their names: 1 ")
    assert said.isprintable()


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "jfif", "jpe", "avif", "gif", "jp2", "j2k", "mpo", "apng", "tga", "pbm", "TIF"])
def test_every_kind_of_image_that_pillow_decodes_is_listed(one_folder: Path, suffix: str) -> None:
    (one_folder / "ash" / f"new.{suffix}").touch()
    assert sum(len(items) for items in listed(one_folder, "classes").splits.values()) == 66


def test_every_listed_suffix_is_one_of_pillows() -> None:
    assert set(Image.registered_extensions()) >= IMAGE_SUFFIXES


@pytest.mark.parametrize("names", [("1", "10", "2", "007"), ("null", "no", "~", "NaN", "None", "1e3", "true")], ids=str)
def test_numbers_and_words_of_yaml_are_names_of_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        fill(tmp_path / "trees" / name, 5)
    assert listed(tmp_path / "trees", "classes").class_names == tuple(sorted(names))


@pytest.mark.parametrize("name", ["Ash", "ash ", " ash", "a\u200bsh", "ASH", "\uff41sh", "a_sh", "a\u00a0sh"], ids=ascii)
def test_classes_that_differ_in_capitals_or_spaces_alone_are_named(one_folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(one_folder / name, 5)
    assert name in listed(one_folder, "classes").class_names
    (said,) = caplog.messages
    assert all(repr(twin) in said for twin in ("ash", name))
    assert "differ in capitals or spaces alone; merge them if they are one" in said


def test_a_class_of_another_split_that_is_a_twin_is_named_with_it(image_folder: Path) -> None:
    (image_folder / "val" / "ash").rename(image_folder / "val" / "Ash")
    with pytest.raises(DataError, match="class 'Ash' has no folder in split train, whose 'ash' differs in capitals or spaces alone"):
        listed(image_folder)


@pytest.mark.parametrize(
    ("link", "layout", "kind"),
    [("fir", "classes", "folder"), ("ash/more", "classes", "folder"), ("ash/x.png", "classes", "file"), ("val", "train-test", "folder")],
)
def test_a_link_to_what_is_not_there_is_named(tmp_path: Path, link: str, layout: FolderLayout, kind: str) -> None:
    root = tmp_path / "trees"
    for folder in ("ash", "elm") if layout == "classes" else ("train/ash", "train/elm", "test/ash", "test/elm"):
        fill(root / folder, 10)
    (root / link).symlink_to(tmp_path / "a disk that is not mounted")
    with pytest.raises(DataError, match=f"^{root / link}: a link to a {kind} that is not there; restore the {kind} or remove the link"):
        listed(root, layout)


def test_a_folder_that_may_not_be_read_is_named(one_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_symlink", refuse)
    with pytest.raises(DataError, match=f"^{one_folder}/ash: could not be listed .Permission denied.; allow reading it"):
        find_layout(one_folder)
