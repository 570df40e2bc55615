"""Per-image predictions of one trial, and the check that they belong to its record. No torch."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from lowbit_vit.errors import DataError
from lowbit_vit.schema.metrics import Accuracy, accuracy
from lowbit_vit.schema.record import Record

COLUMNS: dict[str, Any] = {
    "label": np.uint16,
    "best": np.uint16,
    "among5": np.bool_,
    "margin": np.float32,
    "selection": np.bool_,
    "kl": np.float32,
}
_AGAIN = "copy it again, or delete it and its .json and run the study again"
_MOST_BYTES = 2**30  # of all columns: of some 70 million images


@dataclass(frozen=True)
class Predictions:
    """Of N test images, in the test split's order.

    Attributes:
        label: uint16 [N].
        best: uint16 [N], the most likely class.
        among5: bool [N], whether the label is among the five most likely classes.
        margin: float32 [N], the label's logit minus the best other.
        selection: bool [N], true in the selection half, false in the report half.
        kl: float32 [N], KL(high precision || this) in nats; None where no reference was at hand.
    """

    label: npt.NDArray[np.uint16]
    best: npt.NDArray[np.uint16]
    among5: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float32]
    selection: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float32] | None

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the most likely class is the label, bool [N]."""
        return np.equal(self.best, self.label)

    def accuracy(self, images: npt.NDArray[np.bool_] | None = None) -> Accuracy:
        """Metrics of the images of a mask, bool [N], or of all."""
        chosen = slice(None) if images is None else images
        return accuracy(self.label[chosen], self.best[chosen], self.among5[chosen])

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array; `kl` only where it is known."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def sha256(self) -> str:
        """Hex digest of all names, types and values, whatever the file format."""
        digest = hashlib.sha256()
        for name, array in sorted(self.columns().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The npz file's bytes, equal for equal arrays (numpy stamps every member 1980-01-01)."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **self.columns())
        return buffer.getvalue()


def parse_predictions(content: bytes, *, source: str) -> Predictions:
    """Read the bytes of a predictions file.

    Raises:
        DataError: damaged, or a column is missing, too many, or of another type or length.
    """
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise DataError(f"{source}: holds more than {_MOST_BYTES:,} bytes; {_AGAIN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return predictions_of({name: arrays[name] for name in arrays.files}, source=source)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: not a predictions file ({type(error).__name__}); {_AGAIN}") from error


def predictions_of(arrays: dict[str, npt.NDArray[Any]], *, source: str) -> Predictions:
    """Predictions of these columns.

    Raises:
        DataError: a column is missing, too many, or of another type or length.
    """
    for name in [*COLUMNS, *arrays]:
        if name not in COLUMNS:
            raise DataError(f"{source}: column {name[:60]!r} is of another version of this program; {_AGAIN}")
        if name not in arrays:
            if name == "kl":
                continue
            raise DataError(f"{source}: column {name} is missing; {_AGAIN}")
        array = arrays[name]
        if array.dtype != COLUMNS[name] or array.ndim != 1:
            raise DataError(f"{source}: column {name}: {array.dtype} {list(array.shape)}, must be {np.dtype(COLUMNS[name])} [N]; {_AGAIN}")
        if len(array) != len(arrays["label"]) or not len(array):
            raise DataError(f"{source}: column {name}: {len(array)} images, column label has {len(arrays['label'])}; {_AGAIN}")
    return Predictions(kl=arrays.pop("kl", None), **arrays)


def load_predictions(path: Path) -> Predictions:
    """Read a predictions file.

    Raises:
        DataError: missing, or as `parse_predictions`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a predictions file ({error.strerror}); {_AGAIN}") from error
    return parse_predictions(content, source=str(path))


def check_predictions(predictions: Predictions, record: Record, *, source: str) -> None:
    """Check that predictions are those of a record, and possible.

    Raises:
        DataError: names the column, and what contradicts it.
    """
    evaluation = record.evaluation
    if evaluation is None:
        raise DataError(f"{source}: predictions, though the record of {record.trial_id} has no evaluation; {_AGAIN}")
    if predictions.sha256() != evaluation.predictions_sha256:
        raise DataError(f"{source}: its sha256 is not evaluation.predictions_sha256 of {record.trial_id}; {_AGAIN}")
    classes, kl, margin, right = len(evaluation.class_names), predictions.kl, predictions.margin, predictions.right
    wrong = {
        f"label: a class beyond the {classes} of evaluation.class_names": (predictions.label >= classes).any(),
        f"best: a class beyond the {classes} of evaluation.class_names": (predictions.best >= classes).any(),
        "among5: false where column best is the label": (right & ~predictions.among5).any(),
        f"among5: false, though there are only {classes} classes": classes <= 5 and not predictions.among5.all(),
        "margin: NaN or infinite": not np.isfinite(margin).all(),
        "margin: not of the sign that column best says": ((margin > 0) & ~right | (margin < 0) & right).any(),
        "selection: does not hold half of the images": np.count_nonzero(predictions.selection) != len(right) // 2,
        "kl: must be given in this study and in no other": (kl is None) != (record.trial.study == "variants"),
        "kl: negative, NaN or infinite": kl is not None and not (np.isfinite(kl) & (kl >= 0)).all(),
    }
    for what, found in wrong.items():
        if found:
            raise DataError(f"{source}: column {what}; {_AGAIN}")


def read_predictions(path: Path, record: Record) -> Predictions:
    """Read and check the predictions of a record.

    Raises:
        DataError: as `load_predictions` and `check_predictions`.
    """
    predictions = load_predictions(path)
    check_predictions(predictions, record, source=str(path))
    return predictions
