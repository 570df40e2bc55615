"""Any labelled images, as files `root/{train,val,test}/CLASS/IMAGE`."""

from pathlib import Path

from lowbit_vit.data.source import SPLITS, Item, Source, check_source
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import FolderData

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def list_images(config: FolderData, root: Path) -> Source:
    """List the images; the classes are the subfolders of train, in alphabetical order.

    Args:
        config: where the three splits lie.
        root: where a relative `config.root` starts.

    Raises:
        DataError: a split's folder is missing, a class has no image in a split, a class is not in train, or there is a file
            that is no image by its name; names the folder or file. Names that start with a dot are passed over.
    """
    place = root / config.root
    for split in SPLITS:
        if not (place / split).is_dir():
            raise DataError(f"{place / split}: no such folder; expected {place}/{{train,val,test}}/CLASS/IMAGE")
    class_names = tuple(folder.name for folder in _entries(place / "train"))
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {split: tuple(item for folder in _entries(place / split) for item in _list_class(folder, labels)) for split in SPLITS}
    return check_source(Source(str(place), class_names, splits, f"images of the folder {place.name}, split as given"))


def _list_class(folder: Path, labels: dict[str, int]) -> list[Item]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder named after a class, found a file; remove it")
    if folder.name not in labels:
        raise DataError(f"{folder}: class {folder.name!r} has no folder in split train; add one or remove this one")
    items = []
    for path in _entries(folder):
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            allowed = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"{path}: not an image by its name (allowed: {allowed}); remove it")
        items.append(Item(f"{folder.name}/{path.name}", path, labels[folder.name]))
    return items


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
