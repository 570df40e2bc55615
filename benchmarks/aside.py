"""A project's data and weights with a reports folder of its own: what a benchmark runs touches no record of the project."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace


@contextmanager
def empty_reports(root: Path, profile: str) -> Iterator[Workspace]:
    """A workspace that reads what is in `root` and writes elsewhere; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "checkpoints"):
            (Path(folder) / name).symlink_to(root / name)
        yield Workspace(root=Path(folder), profile=profile)


def predictions_of(record: Record) -> str:
    """Their hash.

    Raises:
        LowbitVitError: the cell did not succeed.
    """
    if record.evaluation is None:
        raise LowbitVitError(f"{record.trial.label}: {record.status}: {record.reason}")
    return record.evaluation.predictions_sha256
