"""One cluster of three nodes for all tests of a file, and a project to submit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_nodes import Cluster, Submitter


@pytest.fixture
def submitter(tmp_path: Path) -> Submitter:
    return Submitter(tmp_path / "project")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.getbasetemp()) as started:
        for name in ("a", "b", "c"):
            started.add_node(name)
        yield started
