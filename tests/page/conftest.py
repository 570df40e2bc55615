"""One Chromium for all tests of the page, and pages built once: of synthetic records, and of the committed reference runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import synthetic
import synthetic_claims
from lowbit_vit.analysis.results import read_results
from lowbit_vit.analysis.tables import find
from lowbit_vit.report.page import Content, build_report, write_report
from lowbit_vit.schema.config import STUDIES, load_profile
from lowbit_vit.schema.workspace import Workspace

REFERENCES = sorted(path.parent for path in (synthetic.PROJECT / "reports" / "reference").glob("*/records"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None, "no chromium on PATH: apt install chromium"
    with sync_playwright() as playwright:
        # Chromium's sandbox needs what containers do not give to root; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def synthetic_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every verdict, every study, and a hostile arm and quote."""
    demo = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    profile = synthetic.relabel(demo, "bf16", synthetic_claims.HOSTILE.replace("\u2028", ""))  # a line end, which no label may hold
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("page") / "root", profile=profile)
    paper, findings = synthetic.paper(), find(profile, workspace)
    claims = synthetic_claims.judged(paper, findings.all_records, quote=synthetic_claims.HOSTILE)
    return write_report(Content(profile=profile, findings=findings, paper=paper, judged=tuple(claims)), workspace.reports)


@pytest.fixture(scope="session")
def own_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data: no paper, and an arm with a name that fills lines."""
    demo = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml").model_copy(update={"paper": None})
    profile = synthetic.relabel(demo, "int8, threshold 6", "int8 of bitsandbytes with outliers in 16 bits, as our server runs it")
    return build_report(*synthetic.fill(tmp_path_factory.mktemp("own") / "root", profile=profile))


@pytest.fixture(scope="session", params=REFERENCES, ids=lambda folder: folder.name)
def reference_page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run, by its own profile."""
    folder = tmp_path_factory.mktemp("reference") / request.param.name
    shutil.copytree(request.param, folder)
    results = read_results(folder, STUDIES)
    (name,) = {result.record.trial.profile for study in STUDIES for result in results[study]}
    workspace = Workspace(root=synthetic.PROJECT, profile=name, elsewhere=folder)
    return build_report(load_profile(workspace.profile_file), workspace)
