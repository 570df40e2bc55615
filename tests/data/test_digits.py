"""The digits are scikit-learn's, split by the seed, stratified."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lowbit_vit.data.digits import list_images
from lowbit_vit.data.source import Source
from lowbit_vit.schema.config import DigitsData, Views

VIEWS = Views(image_size=8, eval_resize=8, train_resize=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def digits(seed: int = 0) -> Source:
    return list_images(DigitsData(source="digits", views=VIEWS, split_seed=seed))


def test_a_third_is_held_out_and_every_digit_is_in_one_split() -> None:
    source = digits()
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 1078, "val": 120, "test": 599}
    ids = [item.id for items in source.splits.values() for item in items]
    assert len(set(ids)) == len(ids) == 1797


def test_pixels_are_the_grey_levels_and_labels_are_theirs() -> None:
    original = load_digits()
    for items in digits().splits.values():
        for item in items:
            number = int(item.id.removeprefix("digit_"))
            assert isinstance(item.pixels, np.ndarray)
            assert item.label == original.target[number]
            assert (item.pixels == np.round(original.images[number] * 255 / 16)[:, :, None]).all()


@pytest.mark.parametrize(("split", "share"), [("train", 0.6), ("val", 1 / 15), ("test", 1 / 3)])
def test_the_split_is_stratified(split: str, share: float) -> None:
    whole = Counter(load_digits().target.tolist())
    part = Counter(item.label for name, items in digits().splits.items() for item in items if name == split)
    assert all(abs(part[label] - share * count) <= 1.5 for label, count in whole.items())


def test_the_seed_decides_the_split() -> None:
    assert [item.id for item in digits(0).splits["test"]] == [item.id for item in digits(0).splits["test"]]
    assert [item.id for item in digits(0).splits["test"]] != [item.id for item in digits(1).splits["test"]]
