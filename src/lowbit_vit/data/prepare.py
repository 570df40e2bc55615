"""The data stage: decode every image once, in processes, into the arrays that all other stages read.

Names, splits and labels are checked before the first decode. One bad image stops the stage with its file's name, as does an
image that is in two splits.
"""

import hashlib
import logging
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np

from lowbit_vit.data import digits, flowers
from lowbit_vit.data import folder as image_folder
from lowbit_vit.data.arrays import (
    MANIFEST,
    VIEW_SPLITS,
    ArrayEntry,
    Dataset,
    Manifest,
    Purpose,
    SplitEntry,
    content_digest,
    load_dataset,
    read_manifest,
    sha256_of_files,
    verify_arrays,
    view_shape,
)
from lowbit_vit.data.decode import Chunk, Destination, View, decode_chunk, decode_in_processes
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.data.source import SPLITS, Content, Source, Split, check_copies, check_range, refuse
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import DataConfig, DigitsData, FlowersData, FolderData, Views
from lowbit_vit.schema.file_lock import hold
from lowbit_vit.schema.record import file_digest, write_atomic

log = logging.getLogger(__name__)

CHUNK = 32  # images a task: long enough to hide the queue, short enough for a smooth bar


def prepare_dataset(config: DataConfig, *, folder: Path, root: Path, workers: int) -> Dataset:
    """Decode a data set into `folder`, unless it holds the same bytes of the same files with the same labels and views already.

    Arrays that are there must match their hashes. The folder's bytes depend on the data, the views and Pillow's resampling alone.

    Args:
        config: the profile's data section.
        folder: `Workspace.data`; replaced as a whole when something differs.
        root: the project's root, where relative data folders start.
        workers: decoding processes, at least 1.

    Raises:
        DataError: a missing split, a label out of range, an empty class, an md5 that differs, a damaged image, a folder's image
            in two splits (in whatever formats), or a full disk; names the file. An existing prepared folder is left as it was.
        Busy: another process is preparing the same folder.
    """
    source = list_source(config, root)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if _is_of(manifest, config, source):
            verify_arrays(folder, manifest)
            return load_dataset(folder, config.views)
        log.info("%s: the data or the views changed; decoding again", folder)
    partial = folder.with_name(f".{folder.name}.partial")
    with hold(folder.with_name(f".{folder.name}.lock"), named=str(folder), doing="data"):
        shutil.rmtree(partial, ignore_errors=True)  # an earlier run left it
        partial.mkdir()
        try:
            _decode(source, config, partial, workers)
        except OSError as error:
            raise DataError(f"{folder}: could not be written ({error.strerror or error}); free some disk space and run again") from error
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    return load_dataset(folder, config.views)


def list_source(config: DataConfig, root: Path) -> Source:
    """List and check the images of the profile's kind of data.

    Raises:
        DataError: as the kind's `list_images`.
    """
    if isinstance(config, DigitsData):
        return digits.list_images(config)
    if isinstance(config, FlowersData):
        return flowers.list_images(config, root)
    return image_folder.list_images(config, root)


def _decode(source: Source, config: DataConfig, folder: Path, workers: int) -> None:
    """Fill an empty folder: arrays first, the manifest last."""
    destinations = _create_arrays(source, config.views, folder)
    contents = _decode_items(source, destinations, workers)
    digests = [content.file for content in contents]
    if isinstance(config, FolderData):  # the others are published with their splits
        check_copies(source, contents)
        check_range(source, contents)
        image_folder.write_split(source, digests, folder)
    keys = [(purpose, split) for purpose, splits in VIEW_SPLITS.items() for split in splits]
    paths = [destinations[key].path for key in keys]
    entries = []
    for (purpose, split), path, sha256 in zip(keys, paths, sha256_of_files(paths), strict=True):
        final = path.rename(folder / f"{purpose}-{split}-{sha256[:16]}.npy")
        entries.append(ArrayEntry(purpose=purpose, split=split, file=final.name, sha256=sha256))
    splits = {
        split: SplitEntry(ids=tuple(item.id for item in items), labels=tuple(item.label for item in items))
        for split, items in source.splits.items()
    }
    manifest = Manifest(
        name=config.source,
        description=source.description,
        views=config.views,
        source_sha256=_combine(source, digests),
        content_sha256=content_digest(source.class_names, splits, tuple(entries)),
        class_names=source.class_names,
        splits=splits,
        arrays=tuple(entries),
    )
    write_atomic(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())


def _create_arrays(source: Source, views: Views, folder: Path) -> dict[tuple[Purpose, Split], Destination]:
    """Create an .npy file with a header, and room for its rows, for each view of each split."""
    cuts = {"eval": View(views.eval_resize, views.image_size), "train": View(views.train_resize, views.train_resize)}
    destinations = {}
    for purpose, splits in VIEW_SPLITS.items():
        for split in splits:
            path = folder / f"{purpose}-{split}.npy"
            shape = (len(source.splits[split]), *view_shape(views, purpose))
            with path.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                offset = file.tell()
                file.truncate(offset + int(np.prod(shape)))
            destinations[purpose, split] = Destination(cuts[purpose], path, offset)
    return destinations


def _decode_items(source: Source, destinations: dict[tuple[Purpose, Split], Destination], workers: int) -> list[Content]:
    """Decode every item once, all its views from one decode; returns the content of each of `source.items`."""
    contents: list[Content] = []
    faults: list[str] = []
    chunks: list[Chunk] = []
    for split in SPLITS:
        pixels = [item.pixels for item in source.splits[split]]
        files = [destination for (_, of), destination in destinations.items() if of == split]
        chunks += [(pixels[first : first + CHUNK], first, files) for first in range(0, len(pixels), CHUNK)]
    in_memory = isinstance(chunks[0][0][0], np.ndarray)  # pixels that need no decoding, so no processes
    results = (decode_chunk(*chunk) for chunk in chunks) if in_memory else decode_in_processes(chunks, workers)
    with progress_bar("decode", len(source.items), "images") as bar, closing(results):
        for (images, _, _), decoded in zip(chunks, results, strict=True):
            contents += decoded.contents
            faults += decoded.faults
            bar.advance(len(images))
    refuse(faults, "replace or remove it")
    return contents


def _is_of(manifest: Manifest, config: DataConfig, source: Source) -> bool:
    """Whether a manifest was made from these files with these views.

    Raises:
        DataError: a file could not be read.
    """
    if (manifest.name, manifest.description, manifest.views) != (config.source, source.description, config.views):
        return False
    digests = []
    with progress_bar("check", len(source.items), "images") as bar:
        for pixels in (item.pixels for _, item in source.items):
            try:
                digests.append(file_digest(pixels) if isinstance(pixels, Path) else hashlib.sha256(pixels.tobytes()).hexdigest())
            except OSError as error:
                raise DataError(f"{pixels}: could not be read ({error.strerror}); allow reading it or remove it") from error
            bar.advance()
    return manifest.source_sha256 == _combine(source, digests)


def _combine(source: Source, digests: list[str]) -> str:
    """One sha256 over class names, ids, labels and the files' own sha256."""
    rows = [f"{split} {item.id} {item.label} {digest}" for (split, item), digest in zip(source.items, digests, strict=True)]
    return hashlib.sha256("\n".join([*source.class_names, *rows]).encode()).hexdigest()
