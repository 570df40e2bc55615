"""A prepared folder is checked before anything reads it."""

from pathlib import Path

import numpy as np
import pytest

from lowbit_vit.data.arrays import MANIFEST, load_dataset
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import DigitsData, Views

VIEWS = Views(image_size=8, eval_resize=8, train_resize=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    prepare_dataset(DigitsData(source="digits", views=VIEWS, split_seed=0), folder=folder, root=Path(), workers=1)
    return folder


def test_arrays_are_mapped_and_writing_to_them_never_reaches_the_file(prepared: Path) -> None:
    images = load_dataset(prepared, VIEWS).eval_views["test"]
    assert isinstance(images.images, np.memmap)
    assert images.images.shape == (599, 8, 8, 3)
    assert len(images.ids) == len(images.labels) == 599
    before = images.images[0].copy()
    images.images[0] = 255 - before
    assert np.array_equal(load_dataset(prepared, VIEWS).eval_views["test"].images[0], before)


def test_a_folder_that_was_never_prepared_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path / 'demo' / MANIFEST}: the data set is not prepared; run lowbit-vit data demo"):
        load_dataset(tmp_path / "demo", VIEWS)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"manifest_version": 2}', "\x00"])
def test_a_damaged_manifest_is_named(prepared: Path, content: str) -> None:
    (prepared / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=rf"{prepared / MANIFEST}: .*; delete it and run lowbit-vit data demo"):
        load_dataset(prepared, VIEWS)


@pytest.mark.parametrize("kept", [0, 50, 5000])
def test_a_cut_off_array_is_named(prepared: Path, kept: int) -> None:
    path = next(prepared.glob("eval-test-*.npy"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{path}: missing or damaged"):
        load_dataset(prepared, VIEWS)


def test_a_missing_array_is_named(prepared: Path) -> None:
    path = next(prepared.glob("train-val-*.npy"))
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing or damaged"):
        load_dataset(prepared, VIEWS)


def test_an_array_of_another_shape_is_named(prepared: Path) -> None:
    path = next(prepared.glob("eval-val-*.npy"))
    np.save(path, np.zeros((3, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=rf"{path}: holds uint8 \[3, 8, 8, 3\], expected uint8 \[120, 8, 8, 3\]"):
        load_dataset(prepared, VIEWS)
