"""One study's records and per-image predictions in one small file, for reference runs that are committed.

`records/<study>.packed` stands for the folder `records/<study>`: three lines of text (what it is and its version; the sha256 of
all that follows; a JSON header with what was kept, rounded and dropped), then parts compressed with xz: the records as JSON
lines, and the cells' arrays stacked, best classes as differences from the first cell's. Equal records give equal bytes (with
the same liblzma). No torch.
"""

import hashlib
import json
import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from lowbit_vit.errors import DataError
from lowbit_vit.schema.answers import Answers
from lowbit_vit.schema.config import one_line
from lowbit_vit.schema.record import Record, read_records
from lowbit_vit.schema.rounded import Rounded, kl_of, round_kl, round_shifts, shifts_of

PACKED_VERSION = 1
_TITLE = "lowbit-vit packed records, version "
_NOTES = {
    "exact": (
        "the records; of each image its label, half, best class, and whether the label is among the five best; the first cell's margin"
    ),
    "rounded": (
        "KL: by at most kl/16 + sqrt(kl * greatest)/960 + greatest/7000, greatest being the cell's greatest; margin: what it differs "
        "from the first cell's by, by at most half of that difference's root mean square; the means of both over each group of images "
        "are those of the originals"
    ),
    "dropped": "of each image the classes 2 to 5 and the loss; the records hold Top-5 and the mean loss",
    "predictions_sha256": "of the originals' npz files, by trial",
}
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class PackedStudy:
    """A study's records in the order of their files, and the answers of those that have predictions, by trial id."""

    records: tuple[Record, ...]
    answers: Mapping[str, Answers]


def packed_file(folder: Path) -> Path:
    """The file that stands for `records/<study>`."""
    return folder.with_name(f"{folder.name}.packed")


def is_packed(folder: Path) -> bool:
    """Whether a study's records are packed rather than loose in `records/<study>`.

    Raises:
        DataError: both are there.
    """
    path = packed_file(folder)
    if path.exists() and any(not item.name.startswith(".") for item in folder.glob("*.json")):
        raise DataError(f"{path} and {folder}: the study's records are there twice, packed and loose; delete one of the two")
    return path.exists()


def study_records(folder: Path) -> list[Record]:
    """The records of `records/<study>`, packed or loose, in the order of their files; none give an empty list.

    Raises:
        DataError: one is damaged, or they are there twice.
    """
    if not is_packed(folder):
        return read_records(folder)
    return list(_records(packed_file(folder), *_parts(packed_file(folder))))


def pack(study: PackedStudy, groups: npt.NDArray[np.uint8]) -> bytes:
    """The packed file's bytes.

    Args:
        study: all cells with answers have the same labels and halves, in the same order.
        groups: uint8 [N], of each image the group, counted from 0, within which means of KL and margin are kept.
    """
    ids = [record.trial_id for record in study.records if record.trial_id in study.answers]
    lines = "".join(f"{record.model_dump_json()}\n" for record in study.records)
    arrays = _stack([study.answers[trial_id] for trial_id in ids], groups) if ids else {}
    parts = {"records": _compress(lines.encode())} | {name: _compress(_planes(array)) for name, array in arrays.items()}
    sha256 = {record.trial_id: record.evaluation.predictions_sha256 for record in study.records if record.evaluation is not None}
    header = {
        "notes": _NOTES,
        "records": len(study.records),
        "cells": ids,
        "predictions_sha256": {trial_id: sha256[trial_id] for trial_id in ids},
        "parts": {name: len(content) for name, content in parts.items()},
        "arrays": {name: {"dtype": array.dtype.str, "shape": array.shape} for name, array in arrays.items()},
    }
    body = json.dumps(header).encode() + b"\n" + b"".join(parts.values())
    return f"{_TITLE}{PACKED_VERSION}\n{hashlib.sha256(body).hexdigest()}\n".encode() + body


def load_packed(path: Path) -> PackedStudy:
    """Read a packed study.

    Raises:
        DataError: not such a file, of another version, damaged, or its records are not of this program's schema.
    """
    header, parts = _parts(path)
    arrays = {
        name: _from_planes(lzma.decompress(parts[name]), np.dtype(form["dtype"]), tuple(form["shape"]))
        for name, form in header["arrays"].items()
    }
    answers = _unstack(arrays) if arrays else []
    return PackedStudy(_records(path, header, parts), dict(zip(header["cells"], answers, strict=True)))


# ------------------------------------------------------------------------------------------------------------- the file


def _parts(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header and the compressed parts, checked against the file's own sha256."""
    advice = "copy or git checkout it again, or pack the records again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror}); {advice}") from error
    title, _, rest = content.partition(b"\n")
    if not title.startswith(_TITLE.encode()):
        raise DataError(f"{path}: not a file of packed records; {advice}")
    version = title[len(_TITLE) :].decode(errors="replace")
    if version != str(PACKED_VERSION):
        raise DataError(
            f"{path}: packed records of version {version}; this program reads {PACKED_VERSION}: use the one that wrote it, or {advice}"
        )
    digest, _, body = rest.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DataError(f"{path}: damaged or cut off, for its sha256 is not the one in its second line; {advice}")
    line, _, rest = body.partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    parts, at = {}, 0
    for name, length in header["parts"].items():
        parts[name] = rest[at : at + length]
        at += length
    return header, parts


def _records(path: Path, header: Mapping[str, Any], parts: Mapping[str, bytes]) -> tuple[Record, ...]:
    lines = lzma.decompress(parts["records"]).decode().split("\n")[: header["records"]]
    try:
        return tuple(Record.model_validate_json(line) for line in lines)
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; use the program that wrote it") from None


def _compress(content: bytes) -> bytes:
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def _planes(array: npt.NDArray[Any]) -> bytes:
    """All first bytes of the little-endian numbers, then all second ones, and so on: the upper ones are nearly constant."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _from_planes(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, math.prod(shape))
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)


# ----------------------------------------------------------------------------------------------------------- the arrays


def _stack(cells: Sequence[Answers], groups: npt.NDArray[np.uint8]) -> Arrays:
    """Arrays of C cells, N images, G groups, and K cells with KL."""
    first = cells[0]
    base = _margin_base(first.margin)
    best, among5 = np.stack([cell.best for cell in cells]), np.stack([cell.among5 for cell in cells])
    margins = round_shifts(np.stack([cell.margin.astype(np.float64) for cell in cells]) - base, groups)
    kl = [cell.kl for cell in cells if cell.kl is not None]
    arrays: Arrays = {
        "label": first.label,
        "selection": first.selection,
        "groups": groups,
        # Differences of uint16 wrap around, and so do the sums that undo them.
        "best": np.concatenate([best[:1], best[1:] - best[:1]]),
        "among5": np.concatenate([among5[:1], among5[1:] ^ among5[:1]]),
        "margin_base": base,
        "margin_codes": margins.codes,
        "margin_scale": margins.scale,
        "margin_mend": margins.mend,
        "with_kl": np.array([cell.kl is not None for cell in cells]),
    }
    if kl:
        rounded = round_kl(np.stack(kl), groups)
        arrays |= {"kl_codes": rounded.codes, "kl_scale": rounded.scale, "kl_mend": rounded.mend}
    return {name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()}


def _margin_base(margin: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(np.isfinite(margin), margin, np.float32(0))


def _unstack(arrays: Arrays) -> list[Answers]:
    groups, with_kl = arrays["groups"], arrays["with_kl"]
    best, among5 = arrays["best"].astype(np.uint16), arrays["among5"]
    best[1:] += best[:1]
    margins = shifts_of(Rounded(arrays["margin_codes"], arrays["margin_scale"], arrays["margin_mend"]), groups) + arrays["margin_base"]
    kl = iter(kl_of(Rounded(arrays["kl_codes"], arrays["kl_scale"], arrays["kl_mend"]), groups) if with_kl.any() else ())
    return [
        Answers(
            label=arrays["label"],
            best=best[at],
            among5=among5[at] ^ among5[0] if at else among5[0],
            margin=margins[at].astype(np.float32),
            selection=arrays["selection"],
            kl=next(kl) if with_kl[at] else None,
        )
        for at in range(len(best))
    ]
