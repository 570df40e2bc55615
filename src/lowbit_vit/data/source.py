"""The images of a data set by split, each with its label, before any pixel is read.

Each kind of data lists its images as a `Source` (`digits`, `flowers`, `folder`). Names, splits and labels are checked there and
here, so a faulty data set costs seconds and not a training run.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lowbit_vit.errors import DataError

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# The test split is halved into selection and report, and the draws of the sensitivity study are halves of the first.
LEAST_TEST_IMAGES = 4
LOW = 64  # 14 bits in 16, scaled to 8


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
class Content:
    """What identifies a decoded image.

    Attributes:
        file: sha256 of the file's bytes; of the pixels, where there is no file.
        pixels: sha256 of the evaluation view, by which copies in other formats are found.
        highest: the largest value in that view, 0..255, of a file with 16 bits a channel; None elsewhere.
    """

    file: str
    pixels: str
    highest: int | None


@dataclass(frozen=True)
class Source:
    """A data set that is not decoded yet.

    Attributes:
        place: the folder or package that it comes from, for messages.
        class_names: in the order of the labels.
        splits: the items of train, val and test, each in a fixed order.
        description: the images in one line; it labels every accuracy.
    """

    place: str
    class_names: tuple[str, ...]
    splits: dict[Split, tuple[Item, ...]]
    description: str

    @property
    def items(self) -> list[tuple[Split, Item]]:
        """All items with their split: train, val, test."""
        return [(split, item) for split in SPLITS for item in self.splits[split]]


def check_source(source: Source) -> Source:
    """Return the source if there are two classes or more, every label has one and every class has an image in every split.

    Raises:
        DataError: a label out of range, one class only, an empty class, or too few test images; names the file, or the class
            and the split.
    """
    classes = len(source.class_names)
    if classes < 2:
        found = f"one class, {source.class_names[0]!r}" if classes else "no class"
        raise DataError(f"{source.place}: {found}; at least two are needed to tell apart, each a folder of images")
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
    tested = len(source.splits["test"])
    if tested < LEAST_TEST_IMAGES:
        raise DataError(f"{source.place}: {tested} images in split test; at least {LEAST_TEST_IMAGES} are needed, and hundreds to see much")
    return source


def check_copies(source: Source, contents: Sequence[Content]) -> None:
    """Refuse images of equal pixels in two splits, whatever their formats; log those within one split.

    Args:
        source: its items.
        contents: of each of `source.items`.

    Raises:
        DataError: an image of one split is also in another; names both.
    """
    first: dict[str, tuple[Split, Item, Content]] = {}
    across: list[str] = []
    within: list[tuple[Item, Item]] = []
    for (split, item), content in zip(source.items, contents, strict=True):
        known_split, known, same = first.setdefault(content.pixels, (split, item, content))
        if known_split != split:
            what = "file" if same.file == content.file else "pixels"
            across.append(f"{_name(item)} (split {split}): the same {what} as {_name(known)} (split {known_split})")
        elif known is not item:
            within.append((known, item))
    if within:
        contradicting = [pair for pair in within if pair[0].label != pair[1].label]
        one, other = map(_name, (contradicting or within)[0])
        said = "%s: %d images are copies of others in the same split, %d of them under another class; as %s and %s"
        log.warning(said, source.place, len(within), len(contradicting), one, other)
    refuse(across, "keep one of them")


def check_range(source: Source, contents: Sequence[Content]) -> None:
    """Log 16-bit images that are nearly black, as 10 to 14 bits in 16 are."""
    highest = [
        (content.highest, _name(item)) for (_, item), content in zip(source.items, contents, strict=True) if content.highest is not None
    ]
    low = [pair for pair in highest if pair[0] <= LOW]
    if low:
        said = "%s: %d of %d images of 16 bits are dark, none of their values is above %d of 255, as %s; scale them if they hold fewer bits"
        log.warning(said, source.place, len(low), len(highest), max(low)[0], max(low)[1])


def refuse(faults: Sequence[str], remedy: str) -> None:
    """Log every fault and raise on the first, if there is one.

    Raises:
        DataError: there is a fault.
    """
    for fault in faults:
        log.error("%s", fault)
    if faults:
        more = f" (and {len(faults) - 1} more, listed above)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}; {remedy}{more}")


def _name(item: Item) -> str:
    return str(item.pixels) if isinstance(item.pixels, Path) else item.id
