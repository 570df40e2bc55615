"""The decoded data set: memory-mapped uint8 arrays and the manifest that describes them.

A prepared folder holds `manifest.json`, written last, and one `<purpose>-<split>-<16 hex of its sha256>.npy` for each view of
each split. Equal images and views give equal bytes, so DVC can hash the folder.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from lowbit_vit.data.source import Split
from lowbit_vit.errors import DataError, first_line
from lowbit_vit.schema.config import Views, one_line
from lowbit_vit.schema.plan import Frozen
from lowbit_vit.schema.record import file_digest

MANIFEST = "manifest.json"
Purpose = Literal["train", "eval"]
VIEW_SPLITS: dict[Purpose, tuple[Split, ...]] = {"train": ("train", "val"), "eval": ("train", "val", "test")}


@dataclass(frozen=True)
class ImageSet:
    """One view of one split.

    Attributes:
        images: uint8 [N, H, W, 3], memory-mapped copy-on-write: writing to it never reaches the file.
        labels: int64 [N].
        ids: stable names, such as image_00001.jpg.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]

    def take(self, rows: npt.NDArray[np.int64]) -> "ImageSet":
        """The images of these rows, in this order, in memory."""
        return ImageSet(self.images[rows], self.labels[rows], tuple(self.ids[row] for row in rows))


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
        name: the source's name in the profile (digits, flowers102, image_folder).
        class_names: in the order of the labels.
        train_views: train and val as squares of side train_resize, for random crops.
        eval_views: train, val and test as squares of side image_size, the model's input.
        content_sha256: of all pixels, labels, ids and class names.
        description: the images in one line; it labels every accuracy.
    """

    name: str
    class_names: tuple[str, ...]
    train_views: dict[Split, ImageSet]
    eval_views: dict[Split, ImageSet]
    content_sha256: str
    description: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


class SplitEntry(Frozen):
    """The images of one split, in the order of the arrays' rows."""

    ids: tuple[str, ...] = Field(min_length=1)
    labels: tuple[int, ...]

    @model_validator(mode="after")
    def _one_label_each(self) -> Self:
        if len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.ids)} ids but {len(self.labels)} labels")
        return self


class ArrayEntry(Frozen):
    """One array file."""

    purpose: Purpose
    split: Split
    file: str
    sha256: str


class Manifest(Frozen):
    """What a prepared folder holds."""

    manifest_version: Literal[1] = 1
    name: str
    description: str
    views: Views
    source_sha256: str = Field(description="of the ids, labels and bytes of the files that were decoded")
    content_sha256: str = Field(description="of the arrays, labels, ids and class names")
    class_names: tuple[str, ...]
    splits: dict[Split, SplitEntry]
    arrays: tuple[ArrayEntry, ...]


def load_dataset(folder: Path, views: Views) -> Dataset:
    """Memory-map a prepared data set, after a check of names, shapes and views (`verify_arrays` checks the contents).

    Raises:
        DataError: nothing is prepared there, or with other views, or a file is missing, damaged or of another shape.
    """
    manifest = read_manifest(folder)
    if manifest.views != views:
        differing = sorted(key for key, value in views.model_dump().items() if getattr(manifest.views, key) != value)
        message = f"was prepared with other data.views ({', '.join(differing)})"
        raise DataError(f"{folder / MANIFEST}: {message}; run lowbit-vit data {folder.name}")
    sets: dict[Purpose, dict[Split, ImageSet]] = {"train": {}, "eval": {}}
    for entry in manifest.arrays:
        split = manifest.splits[entry.split]
        images = _map_array(folder / entry.file, (len(split.ids), *view_shape(views, entry.purpose)))
        sets[entry.purpose][entry.split] = ImageSet(images, np.asarray(split.labels, dtype=np.int64), split.ids)
    for purpose, splits in VIEW_SPLITS.items():
        if missing := set(splits) - sets[purpose].keys():
            raise DataError(f"{folder / MANIFEST}: no {purpose} view of split {min(missing)}; run lowbit-vit data {folder.name}")
    return Dataset(manifest.name, manifest.class_names, sets["train"], sets["eval"], manifest.content_sha256, manifest.description)


def read_manifest(folder: Path) -> Manifest:
    """Read a prepared folder's manifest.

    Raises:
        DataError: missing, or not a manifest of this version.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: the data set is not prepared; run lowbit-vit data {folder.name}") from None
    except (OSError, ValidationError) as error:
        problem = one_line(error) if isinstance(error, ValidationError) else f"could not be read ({error.strerror})"
        raise DataError(f"{path}: {problem}; delete it and run lowbit-vit data {folder.name}") from error


def verify_arrays(folder: Path, manifest: Manifest) -> None:
    """Compare every array file with its sha256 in the manifest.

    Raises:
        DataError: names the first file that is missing or differs.
    """
    paths = [folder / entry.file for entry in manifest.arrays]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing; delete {folder} and run lowbit-vit data {folder.name}")
    for path, entry, digest in zip(paths, manifest.arrays, sha256_of_files(paths), strict=True):
        if digest != entry.sha256:
            raise DataError(f"{path}: sha256 {digest[:16]}, expected {entry.sha256[:16]}; delete it and run lowbit-vit data {folder.name}")


def sha256_of_files(paths: list[Path]) -> list[str]:
    """Hex sha256 of each file, two at a time: hashing releases the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(file_digest, paths))


def content_digest(class_names: tuple[str, ...], splits: dict[Split, SplitEntry], arrays: tuple[ArrayEntry, ...]) -> str:
    """One sha256 over what decides a result: array hashes, labels, ids, class names."""
    content = [class_names, {split: entry.model_dump() for split, entry in splits.items()}, [entry.model_dump() for entry in arrays]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def view_shape(views: Views, purpose: Purpose) -> tuple[int, int, int]:
    """Shape [H, W, 3] of one image of a view."""
    side = views.image_size if purpose == "eval" else views.train_resize
    return (side, side, 3)


def _map_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    try:
        array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: missing or damaged ({first_line(error)}); run lowbit-vit data {path.parent.name}") from error
    if array.shape != shape or array.dtype != np.uint8:
        found = f"{array.dtype} {list(array.shape)}"
        raise DataError(f"{path}: holds {found}, expected uint8 {list(shape)}; delete it and run lowbit-vit data {path.parent.name}")
    return array
