"""The tiny profile run to its end once, for all tests of a run; each test that writes gets its own copy."""

import shutil
from pathlib import Path

import pytest

import projects
from once import once


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the project after `dvc repro report@tiny`, with dvc.lock committed as a lab would. Not to be changed."""

    def make(project: Path) -> None:
        projects.make_project(project)
        projects.dvc(project, "repro", "report@tiny")
        projects.commit(project, "results of tiny")

    return once(tmp_path_factory, worker_id, "reproduced", make)


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(reproduced, tmp_path / "project", symlinks=True))
