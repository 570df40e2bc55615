"""The tiny profile run to its end once, for all tests of a run; each test that writes gets its own copy."""

import fcntl
import shutil
from pathlib import Path

import pytest

import projects


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the project after `dvc repro report@tiny`, with dvc.lock committed as a lab would. Not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # xdist's processes share the parent
    project = shared / "reproduced"
    with (shared / "reproduced.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "reproduced.done").exists():
            shutil.rmtree(project, ignore_errors=True)
            projects.make_project(project)
            projects.dvc(project, "repro", "report@tiny")
            projects.commit(project, "results of tiny")
            (shared / "reproduced.done").touch()
    return project


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(reproduced, tmp_path / "project", symlinks=True))
