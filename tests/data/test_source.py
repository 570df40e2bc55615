"""Labels and classes are checked before anything is decoded."""

from pathlib import Path

import pytest

from lowbit_vit.data.source import SPLITS, Item, Source, check_source
from lowbit_vit.errors import DataError


def source(labels: tuple[int, ...]) -> Source:
    items = tuple(Item(f"{index}.png", Path(f"/data/{index}.png"), label) for index, label in enumerate(labels))
    return Source("/data", ("ash", "elm"), dict.fromkeys(SPLITS, items), "two trees")


def test_a_sound_source_passes() -> None:
    assert check_source(source((0, 1, 1))).class_names == ("ash", "elm")


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_names_the_file(label: int) -> None:
    with pytest.raises(DataError, match=rf"^/data/1\.png: label {label} is outside 0\.\.1"):
        check_source(source((0, label, 1)))


def test_an_empty_class_is_named() -> None:
    with pytest.raises(DataError, match=r"^/data: class 'elm' has no image in split train"):
        check_source(source((0, 0)))
