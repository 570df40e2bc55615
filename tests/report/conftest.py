"""Pages of synthetic records, each built by the first process that asks, for the tests that only read them."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import synthetic
import synthetic_claims
from lowbit_vit.analysis.tables import find
from lowbit_vit.report.page import Content, build_report, write_report
from lowbit_vit.schema.config import STUDIES, Profile, Study
from lowbit_vit.schema.workspace import Workspace

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_page() -> Write:
    """Build the page with synthetic claims: every verdict."""

    def write(profile: Profile, workspace: Workspace, *, quote: str = "a synthetic sentence") -> Path:
        paper, findings = synthetic.paper(), find(profile, workspace)
        claims = synthetic_claims.judged(paper, findings.all_records, profile=profile.name, quote=quote)
        return write_report(Content(profile=profile, findings=findings, paper=paper, judged=tuple(claims)), workspace.reports)

    return write


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def whole(pages: Path, write_page: Write) -> Workspace:
    """Every study, and the page with synthetic claims."""
    return _made(pages / "whole", STUDIES, write_page)


@pytest.fixture(scope="session")
def page_of(pages: Path) -> Callable[..., Workspace]:
    """The demo's records of the named studies, and the page that `lowbit-vit report` makes of them."""
    return lambda *studies: _made(pages / "-".join(["page", *studies]), studies, build_report)


def _made(root: Path, studies: tuple[Study, ...], build: Write) -> Workspace:
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            new = root.with_suffix(".new")
            build(*synthetic.fill(new, studies=studies))
            new.rename(root)
    return Workspace(root=root, profile="demo")
