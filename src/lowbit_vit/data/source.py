"""What is to be decoded: the images of a data set by split, each with its label, before any pixel is read.

Each kind of data has one `list_images(config, root) -> Source` (`digits`, `flowers`, `folder`). All that can be wrong with
names, splits and labels is found there and here, so that a faulty data set costs seconds and not a training run.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lowbit_vit.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Attributes:
        id: stable name, unique in its split (image_00001.jpg).
        pixels: the image's file, or its pixels, uint8 [H, W, 3].
        label: class number, 0 up.
    """

    id: str
    pixels: Path | npt.NDArray[np.uint8]
    label: int


@dataclass(frozen=True)
class Source:
    """A data set that is not decoded yet.

    Attributes:
        place: the folder or package that it comes from, for messages.
        class_names: in the order of the labels.
        splits: the items of train, val and test, each in a fixed order.
        description: one line that says what the images are; it labels every accuracy.
    """

    place: str
    class_names: tuple[str, ...]
    splits: dict[Split, tuple[Item, ...]]
    description: str


def check_source(source: Source) -> Source:
    """Return the source if every label has a class and every class has an image in every split.

    Raises:
        DataError: a label out of range, or an empty class; names the file, or the class and the split.
    """
    classes = len(source.class_names)
    for split in SPLITS:
        items = source.splits[split]
        for item in items:
            if not 0 <= item.label < classes:
                name = item.pixels if isinstance(item.pixels, Path) else f"{source.place}: {item.id}"
                raise DataError(f"{name}: label {item.label} is outside 0..{classes - 1}; correct the labels")
        counts = Counter(item.label for item in items)
        empty = [source.class_names[label] for label in range(classes) if not counts[label]]
        if empty:
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise DataError(f"{source.place}: class {empty[0]!r}{more} has no image in split {split}; add one or remove the class")
    return source
