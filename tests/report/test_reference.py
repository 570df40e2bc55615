"""The committed reference runs: every record reads, the README's table is theirs, and the page builds from them alone."""

import re
import shutil
from pathlib import Path

import pytest

from lowbit_vit.analysis.results import load_results, read_results
from lowbit_vit.report.columns import to_markdown
from lowbit_vit.report.page import build_report
from lowbit_vit.report.tables import result_table_of
from lowbit_vit.schema.config import STUDIES, load_profile
from lowbit_vit.schema.workspace import Workspace

ROOT = Path(__file__).parents[2]
REFERENCES = sorted(path.parent for path in (ROOT / "reports" / "reference").glob("*/records"))
README_TABLE = re.compile(r"<!-- (?P<name>demo|rows|fast): begin (?P<folder>\S+) -->\n(?P<table>.*?)<!-- (?P=name): end -->", re.DOTALL)


def test_there_is_a_reference_run() -> None:
    assert REFERENCES


def workspace_of(folder: Path) -> Workspace:
    results = read_results(folder, STUDIES)
    (profile,) = {result.record.trial.profile for study in STUDIES for result in results[study]}
    return Workspace(root=ROOT, profile=profile, elsewhere=folder)


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_every_record_is_whole_and_its_predictions_are_those_it_names(folder: Path) -> None:
    workspace = workspace_of(folder)
    results = [result for study in STUDIES for result in load_results(workspace, study)]
    assert results
    for result in results:
        assert result.record.status in ("success", "skipped"), result.record.trial.label
        assert (result.predictions is not None) == (result.record.status == "success")


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_no_record_says_where_it_was_made(folder: Path) -> None:
    texts = {path.name: path.read_text() for path in folder.rglob("*.json")}
    for results in read_results(folder, STUDIES).values():
        texts |= {result.record.trial_id: result.record.model_dump_json() for result in results}
    assert not [name for name, text in texts.items() if re.search(r"/(home|root|work|Users)/", text)]


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_the_page_builds_from_the_committed_files_alone(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    profile = workspace_of(folder).profile
    page = build_report(load_profile(ROOT / "profiles" / f"{profile}.yaml"), Workspace(root=ROOT, profile=profile, elsewhere=copy))
    assert page == copy / "report.html"
    assert page.stat().st_size < 5_000_000


@pytest.mark.parametrize("name", ["demo", "rows", "fast"])
def test_the_readmes_table_is_the_reference_runs(name: str) -> None:
    (found,) = (match for match in README_TABLE.finditer((ROOT / "README.md").read_text()) if match["name"] == name)
    workspace = workspace_of(ROOT / found["folder"])
    arms = [arm.label for arm in load_profile(workspace.profile_file).variants.arms]
    results = load_results(workspace, "variants")
    shown = [result for result in results if result.record.trial.paper_row is not None] if name == "rows" else results
    assert found["table"] == to_markdown(result_table_of(shown, arms=arms))
