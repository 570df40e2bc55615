"""Labelled images as files, one folder for each class; splits that have no folders are drawn, class by class.

    train-val-test    root/{train,val,test}/CLASS/...    split as given
    train-test        root/{train,test}/CLASS/...        val is drawn from train
    classes           root/CLASS/...                     val and test are drawn

The splits' folders may have any of the names in `SPLIT_NAMES`, in capitals or not: valid and dev are val.

A draw orders the images of a class by the sha256 of "<split_seed> <CLASS/NAME>" and takes the first for test, the next for
val: the draw can be repeated by hand, and adding a file moves few others. Every class gives each drawn split its share.
"""

import csv
import glob
import hashlib
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowbit_vit.data.source import SPLITS, Item, Source, Split, check_source
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import FolderData, FolderLayout
from lowbit_vit.schema.record import write_atomic

log = logging.getLogger(__name__)

# What Pillow decodes by itself, without textures, icons, and formats that hold other things as well (FITS, HDF5, PDF, EPS, MPEG).
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx"}
    | {".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"}
)
# Those of Hugging Face's datasets, less eval and evaluation, which some people call val and some test.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Thumbnails, bins and other leavings of Synology, QNAP, macOS, Windows, Linux and photo managers, in small letters.
NOT_DATA = frozenset(
    {"@eadir", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "__macosx", "$recycle.bin", "recycler", "lost+found"}
    | {"system volume information", "network trash folder", "temporary items", "@tmp", "@__thumb"}
)
_THUMBNAILS = frozenset({"thumb", "thumbs", "thumbnail", "thumbnails", "_thumb", "_thumbs", "_thumbnails"})  # within a class
GIVEN: dict[FolderLayout, tuple[Split, ...]] = {"train-val-test": SPLITS, "train-test": ("train", "test"), "classes": ()}
# Of each class, where a split is drawn. Two to train on and two to test on: with one, a class is either right or wrong.
LEAST: dict[Split, int] = {"train": 2, "val": 1, "test": 2}
SPLIT_FILE = "split.csv"

_LOOKS_LIKE_SPLIT = re.compile(r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing|eval|evaluation)(?![a-z])")

Classes = dict[str, list[Path]]  # class name -> its images, sorted


def list_images(config: FolderData, root: Path) -> Source:
    """List the images and draw the splits that have no folders; classes are numbered in alphabetical order of their names.

    Images lie anywhere below their class's folder; links are followed. The log counts what is passed over: files that are no
    images by their names, names that start with a dot, folders of thumbnails and of `NOT_DATA`. It names classes whose names
    differ in case or spaces alone.

    Args:
        config: the folder, its layout, seed and shares.
        root: where a relative `config.root` starts.

    Raises:
        DataError: a folder is missing, another layout's or one too high, an image lies outside of every class, a link leads
            nowhere, a name cannot be written down, the splits' classes differ, or a class has too few images; names folder,
            file or class.
    """
    place = root / config.root
    given = GIVEN[config.layout]
    folders = find_splits(place) if place.is_dir() else {}
    for folder in [place, *(folders.get(split, place / split) for split in given)]:
        if not folder.is_dir():
            expected = f"{place}/{{{','.join(given)}}}/CLASS/IMAGE" if given else f"{place}/CLASS/IMAGE"
            raise DataError(f"{folder}: no such folder; layout {config.layout} expects {expected}")
    passed_over: Counter[str] = Counter()
    splits: dict[Split, tuple[Item, ...]] = {}
    if config.layout == "classes":
        _refuse_split_folders(place, folders)
        found = _read_classes(place, passed_over)
        names = tuple(sorted(found))
        splits["train"] = _items(found, names, place)
    else:
        by_split = {split: _read_classes(folders[split], passed_over) for split in given}
        names = tuple(sorted(by_split["train"]))
        for split, found in by_split.items():
            _refuse_unknown_classes(folders[split], found, names)
            splits[split] = _items(found, names, folders[split])
    _warn_of_twins(place, names)
    if passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common())
        log.warning("%s: passed over %d entries that are no images by their names: %s", place, passed_over.total(), kinds)
    splits = _draw(splits, names, config)
    description = f"images of the folder {place.name}, {_split_words(config)}"
    return check_source(Source(str(place), names, {split: splits[split] for split in SPLITS}, description))


def find_images(places: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files that places stand for, in order: a file itself, a folder the images below it, a pattern (`*`, `?`, `**`) its matches.

    In folders links are followed; the log counts what is passed over there. A place that is not there is returned as a file.

    Returns:
        The files, and each folder that has none, with the reason.
    """
    files: list[Path] = []
    faults: list[tuple[str, str]] = []
    passed_over = 0
    for place in places:
        matches = [] if os.path.lexists(place) else sorted(glob.glob(place, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute one)
        for match in matches or [place]:
            if not os.path.isdir(match):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
                files.append(Path(match))
                continue
            before = len(files) + len(faults)
            walk = os.walk(
                match, followlinks=True, onerror=lambda error: faults.append((error.filename, f"could not be listed ({error.strerror})"))
            )
            for folder, folders, names in walk:
                here = Path(folder)
                images = [here / name for name in sorted(names) if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
                images = [path for path in images if path.is_file() or path.is_symlink()]  # reading a pipe would not end
                inner = [name for name in sorted(folders) if not name.startswith(".") and name.lower() not in NOT_DATA]
                folders[:] = [name for name in inner if not here.resolve().is_relative_to((here / name).resolve())]  # no link upwards
                passed_over += len(names) - len(images)
                files += images
            if len(files) + len(faults) == before:
                faults.append((match, "no images below it, by their names"))
    if passed_over:
        log.warning("passed over %d files that are hidden, or no images by their names", passed_over)
    return files, faults


def find_layout(folder: Path) -> FolderLayout:
    """The layout of a folder by the names of its subfolders; logs those that it leaves out.

    Raises:
        DataError: the folder cannot be listed, or two of its folders stand for one split.
    """
    splits = find_splits(folder)
    layout = next(layout for layout, given in GIVEN.items() if splits.keys() >= set(given))
    if given := GIVEN[layout]:
        used = [splits[split] for split in given]
        others = [entry.name for entry in _entries(folder, Counter()) if entry.is_dir() and entry not in used]
        if others:
            names = "/".join(path.name for path in used)
            log.warning("%s: not used, for they are not of %s: %s", folder, names, ", ".join(others))
    return layout


def find_splits(folder: Path) -> dict[Split, Path]:
    """The subfolders whose names are in `SPLIT_NAMES`, in capitals or not.

    Raises:
        DataError: the folder cannot be listed, or two of its folders stand for one split.
    """
    found: dict[Split, Path] = {}
    for entry in _entries(folder, Counter()):
        split = next((split for split, names in SPLIT_NAMES.items() if entry.name.lower() in names), None)
        if split is None or not entry.is_dir():
            continue
        if split in found:
            raise DataError(f"{entry}: stands for split {split}, as {found[split]} does; rename or merge one of them")
        found[split] = entry
    return {split: found[split] for split in SPLITS if split in found}


def write_split(source: Source, digests: Sequence[str], folder: Path) -> None:
    """Write each file's split, class and sha256 as `split.csv`, to check or to publish.

    Raises:
        DataError: the disk is full.
    """
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("split", "class", "file", "sha256"))
    for (split, item), digest in zip(source.items, digests, strict=True):
        name = item.pixels.relative_to(source.place).as_posix() if isinstance(item.pixels, Path) else item.id
        rows.writerow((split, source.class_names[item.label], name, digest))
    write_atomic(folder / SPLIT_FILE, table.getvalue().encode())


def _split_words(config: FolderData) -> str:
    match config.layout:
        case "train-val-test":
            return "split as given"
        case "train-test":
            return f"test as given, val drawn from train ({config.val_share:.0%} of each class, seed {config.split_seed})"
        case "classes":
            return f"split drawn ({config.val_share:.0%} val, {config.test_share:.0%} test of each class, seed {config.split_seed})"


# ------------------------------------------------------------------------------------------------------------- the listing


def _read_classes(folder: Path, passed_over: Counter[str]) -> Classes:
    """The images below each subfolder; two spellings of the same Unicode name are one class."""
    classes: Classes = {}
    for entry in _entries(folder, passed_over):
        if not entry.is_dir():
            raise DataError(f"{entry}: an image outside of every class's folder; move it into one or remove it")
        name = unicodedata.normalize("NFC", entry.name)
        if name in classes:
            raise DataError(f"{entry}: its name is that of another class's folder in other Unicode characters; merge the two")
        classes[name] = list(_images(entry, passed_over, inside=frozenset()))
    _refuse_one_too_high(folder, classes)
    return classes


def _images(folder: Path, passed_over: Counter[str], *, inside: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in inside:
        raise DataError(f"{folder}: a link to a folder that it lies in; remove it")
    for entry in _entries(folder, passed_over, not_data=NOT_DATA | _THUMBNAILS):
        if entry.is_dir():
            yield from _images(entry, passed_over, inside=inside | {here})
        elif entry.is_file():
            yield entry
        else:
            raise DataError(f"{entry}: not a regular file; remove it")


def _entries(folder: Path, passed_over: Counter[str], *, not_data: frozenset[str] = NOT_DATA) -> list[Path]:
    """The folders and images in a folder, sorted by name; counts what is passed over."""
    found = []
    try:
        for entry in sorted(folder.iterdir()):
            suffix, is_folder, broken = entry.suffix.lower(), entry.is_dir(), entry.is_symlink() and not entry.exists()
            if entry.name.startswith("."):
                passed_over["hidden (their names start with a dot)"] += 1
            elif is_folder and entry.name.lower() in not_data:
                passed_over[f"{entry.name}/"] += 1
            elif not is_folder and not broken and suffix not in IMAGE_SUFFIXES:
                passed_over[suffix if suffix and suffix.isprintable() else "without a suffix"] += 1
            elif any(unicodedata.category(character) in ("Cc", "Cs") for character in entry.name):
                # They could not be written to a CSV or a page and read back.
                raise DataError(f"{str(entry)!a}: its name holds control characters or is not UTF-8; rename it")
            elif broken:
                kind = "file" if suffix in IMAGE_SUFFIXES else "folder"
                raise DataError(f"{entry}: a link to a {kind} that is not there; restore the {kind} or remove the link")
            else:
                found.append(entry)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: could not be listed ({error.strerror}); allow reading it") from error
    return found


def _items(classes: Classes, names: tuple[str, ...], folder: Path) -> tuple[Item, ...]:
    """The images as items with ids relative to `folder`, class by class."""
    return tuple(
        Item(path.relative_to(folder).as_posix(), path, label) for label, name in enumerate(names) for path in classes.get(name, ())
    )


def _refuse_split_folders(place: Path, splits: dict[Split, Path]) -> None:
    """Refuse to take splits for classes: two of `SPLIT_NAMES`, or folders of which each has such a word in its name."""
    named = {split: path.name for split, path in splits.items()}
    if len(named) < 2:
        folders = [entry.name for entry in _entries(place, Counter()) if entry.is_dir()]
        if len(folders) < 2 or not all(_LOOKS_LIKE_SPLIT.search(name.lower()) for name in folders):
            return
        remedy = "name them train and test, and the third, if there is one, val"
    elif "train" not in named:
        folders, remedy = [*named.values()], "there is no train beside them; add it, or rename the one to train on"
    elif "test" not in named:
        folders, val = [*named.values()], named["val"]
        remedy = f"there is no test; rename {val} to test (val is then drawn from {named['train']}), or put a test beside them"
    else:
        folders, remedy = [*named.values()], f"set data.layout to {find_layout(place)}"
    raise DataError(f"{place}: folders {' and '.join(folders)} look like splits, not classes; {remedy}")


def _refuse_one_too_high(folder: Path, classes: Classes) -> None:
    """Refuse a folder whose folders hold the classes' folders: none holds an image itself, and they share names further down."""
    images_in = Counter(image.parent for images in classes.values() for image in images)
    if not images_in or any(holder.parent == folder for holder in images_in):
        return
    ((largest, _),) = images_in.most_common(1)
    shared = Counter(name for images in classes.values() for name in {image.parent.name for image in images})
    if sum(map(bool, classes.values())) == 1 or sum(count > 1 for count in shared.values()) > 1:
        meant, above = largest.parent, largest.parent.parent
        if above != folder and any(holder.parent.parent == above for holder in images_in if holder.parent != meant):
            meant = above  # splits
        said = f"no class holds images itself, each holds folders, such as {largest}"
        raise DataError(f"{folder}: {said}; if {meant} is the folder that is meant, give that one, or move what is in it up")
    if len(images_in) > len(classes):
        log.warning("%s: no class holds images itself; those in folders within it are taken, such as %s", folder, largest)


def _refuse_unknown_classes(folder: Path, classes: Classes, names: tuple[str, ...]) -> None:
    unknown = sorted(classes.keys() - set(names))
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        twin = next((f", whose {name!r} differs in capitals or spaces alone" for name in names if _bare(name) == _bare(unknown[0])), "")
        said = f"class {unknown[0]!r} has no folder in split train{twin}; add one or remove this one{more}"
        raise DataError(f"{folder / unknown[0]}: {said}")


def _warn_of_twins(place: Path, names: tuple[str, ...]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_bare(name), []).append(repr(name))
    for twins in alike.values():
        if len(twins) > 1:
            log.warning("%s: classes %s differ in capitals or spaces alone; merge them if they are one", place, " and ".join(twins))


def _bare(name: str) -> str:
    """A name without what is hard to see: capitals, spaces and underscores, characters of no width, and forms of one character."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(char for char in plain if not char.isspace() and char != "_" and unicodedata.category(char) != "Cf")


# --------------------------------------------------------------------------------------------------------------- the draw


def _draw(splits: dict[Split, tuple[Item, ...]], names: tuple[str, ...], config: FolderData) -> dict[Split, tuple[Item, ...]]:
    """Move each drawn split's share of every class out of train; the items of each split keep their order."""
    asked: dict[Split, float | None] = {"test": config.test_share, "val": config.val_share}
    shares = {split: share for split, share in asked.items() if share is not None}
    if not shares:
        return splits
    drawn: dict[str, Split] = {}
    members: dict[str, list[str]] = {name: [] for name in names}
    for item in splits["train"]:
        members[names[item.label]].append(item.id)
    for name, ids in members.items():
        counts = {split: max(LEAST[split], round(share * len(ids))) for split, share in shares.items()}
        _require_enough(len(ids), counts, name=name, place=config.root)
        ids.sort(key=lambda id_: hashlib.sha256(f"{config.split_seed} {id_}".encode()).digest())
        start = 0
        for split, count in counts.items():
            drawn |= dict.fromkeys(ids[start : start + count], split)
            start += count
    everything = splits["train"]
    own: dict[Split, tuple[Item, ...]] = {split: tuple(item for item in everything if drawn.get(item.id) == split) for split in shares}
    return splits | own | {"train": tuple(item for item in everything if item.id not in drawn)}


def _require_enough(images: int, counts: dict[Split, int], *, name: str, place: str) -> None:
    least = LEAST["train"] + sum(LEAST[split] for split in counts)
    if images < least:
        parts = ", ".join(f"{LEAST[split]} {split}" for split in SPLITS if split == "train" or split in counts)
        raise DataError(f"{place}: class {name!r} has {images} images; a drawn split needs {least} ({parts}): add some or remove the class")
    left = images - sum(counts.values())
    if left < LEAST["train"]:
        raise DataError(f"{place}: the shares leave {left} of the {images} images of class {name!r} to train on; lower data's shares")
