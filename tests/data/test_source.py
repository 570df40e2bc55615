"""Labels and classes are checked before anything is decoded."""

from pathlib import Path

import pytest

from lowbit_vit.data.source import SPLITS, Content, Item, Source, Split, check_copies, check_range, check_source
from lowbit_vit.errors import DataError


def source(labels: tuple[int, ...]) -> Source:
    items = tuple(Item(f"{index}.png", Path(f"/data/{index}.png"), label) for index, label in enumerate(labels))
    return Source("/data", ("ash", "elm"), dict.fromkeys(SPLITS, items), "two trees")


def test_a_sound_source_passes() -> None:
    assert check_source(source((0, 1, 1, 0))).class_names == ("ash", "elm")


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_names_the_file(label: int) -> None:
    with pytest.raises(DataError, match=rf"^/data/1\.png: label {label} is outside 0\.\.1"):
        check_source(source((0, label, 1, 1)))


def test_an_empty_class_is_named() -> None:
    with pytest.raises(DataError, match=r"^/data: class 'elm' has no image in split train"):
        check_source(source((0, 0)))


def test_too_few_test_images_are_named() -> None:
    with pytest.raises(DataError, match=r"^/data: 3 images in split test; at least 4 are needed"):
        check_source(source((0, 1, 1)))


@pytest.mark.parametrize(("names", "found"), [((), "no class"), (("ash",), "one class, 'ash'")])
def test_fewer_than_two_classes_are_named(names: tuple[str, ...], found: str) -> None:
    items = tuple(Item(f"{index}.png", Path(f"/data/{index}.png"), 0) for index in range(4 * len(names)))
    with pytest.raises(DataError, match=f"^/data: {found}; at least two are needed"):
        check_source(Source("/data", names, dict.fromkeys(SPLITS, items), "a tree"))


def spread(train: str, val: str, test: str, *, highest: int | None = None) -> tuple[Source, list[Content]]:
    """One letter an image: equal letters are equal files, capitals are of the second class."""
    contents: dict[Split, str] = {"train": train, "val": val, "test": test}
    splits = {
        split: tuple(
            Item(f"{index}.png", Path(f"/data/{split}/{index}.png"), int(letter.isupper())) for index, letter in enumerate(letters)
        )
        for split, letters in contents.items()
    }
    contents_of = [Content(letter, letter, highest) for letter in (train + val + test).lower()]
    return Source("/data", ("ash", "elm"), splits, "two trees"), contents_of


def test_a_file_in_two_splits_is_refused_and_all_such_pairs_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as raised:
        check_copies(*spread("aBc", "da", "Bd"))
    assert str(raised.value) == (
        "/data/val/1.png (split val): the same file as /data/train/0.png (split train); keep one of them (and 2 more, listed above)"
    )
    assert len(caplog.records) == 3
    assert "/data/test/1.png (split test): the same file as /data/val/0.png (split val)" in caplog.text


def test_copies_within_a_split_are_counted_and_those_under_two_labels_shown(caplog: pytest.LogCaptureFixture) -> None:
    check_copies(*spread("aabB", "c", "d"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "/data: 2 images are copies of others in the same split, 1 of them under another class; as /data/train/2.png and /data/train/3.png"
    )


def test_no_copies_no_word(caplog: pytest.LogCaptureFixture) -> None:
    check_copies(*spread("aBc", "d", "E"))
    assert not caplog.records


def test_equal_pixels_in_two_formats_are_copies() -> None:
    source, contents = spread("aBc", "da", "Bd")
    other_files = [Content(f"{content.file} {number}", content.pixels, None) for number, content in enumerate(contents)]
    with pytest.raises(DataError, match=r"^/data/val/1\.png \(split val\): the same pixels as /data/train/0\.png \(split train\)"):
        check_copies(source, other_files)


@pytest.mark.parametrize(("highest", "said"), [(0, True), (16, True), (64, True), (65, False), (None, False)])
def test_16_bit_images_that_are_all_dark_are_counted(*, highest: int | None, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    check_range(*spread("aBc", "d", "E", highest=highest))
    found = f"/data: 5 of 5 images of 16 bits are dark, none of their values is above {highest} of 255, as /data/val/0.png"
    assert (found in caplog.text) == said
