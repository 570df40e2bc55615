"""What benchmarks share: a reports folder aside, so that they touch no record of the project, and what a record says of its machine."""

import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import load_profile, read_yaml
from lowbit_vit.schema.machine import command_line, provenance
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace


@contextmanager
def empty_reports(root: Path, profile: str) -> Iterator[Workspace]:
    """A workspace that reads what is in `root` and writes elsewhere; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "checkpoints"):
            (Path(folder) / name).symlink_to(root / name)
        yield Workspace(root=Path(folder), profile=profile)


def put_profile(root: Path, workspace: Workspace, reduce: Callable[[dict[str, Any]], None]) -> None:
    """Write the project's profile into a workspace beside it, with what `reduce` changes in its document.

    Raises:
        ConfigError: what comes of it is no profile.
    """
    profile = read_yaml(Workspace(root=root, profile=workspace.profile).profile_file)
    reduce(profile)
    workspace.profile_file.parent.mkdir()
    workspace.profile_file.write_text(json.dumps(profile, default=str))
    load_profile(workspace.profile_file)


def predictions_of(record: Record) -> str:
    """Their hash.

    Raises:
        LowbitVitError: the cell did not succeed.
    """
    if record.evaluation is None:
        raise LowbitVitError(f"{record.trial.label}: {record.status}: {record.reason}")
    return record.evaluation.predictions_sha256


def machine(*packages: str, load: float) -> dict[str, object]:
    """The machine that processor times were taken on.

    Args:
        packages: whose versions matter.
        load: average of one minute, before anything was started.
    """
    facts = provenance(command_line())
    return {
        "cpu": facts.cpu,
        "cores": facts.cpu_cores,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "load_average_before": round(load, 2),
    }
