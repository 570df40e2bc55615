"""Experiments on a profile: single values, a queue of them, a table that shows what changed and what came of it, two runs drawn."""

import csv
import io
import re
from pathlib import Path

import pytest

import projects

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]

PROFILE = "profiles/tiny.yaml"
# The table of docs/dvc.md: what was changed, and Top-1, size and latency of each arm.
COLUMNS = ("--only-changed", "--drop", r"^(?!Experiment|rev|typ|Created|parent|profiles/.*:|variants\..*(top1|file_mib|p50))")


def table(project: Path, *options: str) -> list[dict[str, str]]:
    shown = projects.dvc(project, "exp", "show", "--csv", *options).stdout
    return list(csv.DictReader(io.StringIO(shown)))


def test_one_changed_value_runs_what_depends_on_it_and_shows_beside_the_old_run(project: Path, tmp_path: Path) -> None:
    done = projects.dvc(project, "exp", "run", "--name", "longer", "-S", f"{PROFILE}:measurement.samples=12", "report@tiny")
    ran = re.findall(r"Running stage '(.*)'", done.stdout)
    assert sorted(ran) == ["mixed@tiny", "report@tiny", "variants@tiny"]
    assert ran[-1] == "report@tiny"

    rows = {row["Experiment"] or row["rev"]: row for row in table(project, *COLUMNS)}
    before, after = rows["main"], rows["longer"]
    assert before["variants.NF4.p50_ms_batch1"] != after["variants.NF4.p50_ms_batch1"]
    assert {name.removeprefix(f"{PROFILE}:") for name in before if name.startswith("profiles/")} == {"measurement.samples"}
    assert not [name for name in before if name.startswith("variants.") and "p50" not in name], "the same weights: only latency differs"
    whole = table(project, *COLUMNS[1:])[0]
    results = {f"variants.{arm}.{what}" for arm in ("fp32", "NF4") for what in ("top1", "file_mib", "p50_ms_batch1")}
    assert {name for name in whole if name.startswith("variants.")} == results
    assert len(table(project)[0]) > 300, "without the options it is no table to read"

    page = tmp_path / "plots"
    projects.dvc(project, "plots", "diff", "main", "longer", "--out", str(page))
    html = (page / "index.html").read_text(encoding="utf-8")
    assert "Time of one forward by class" in html
    assert {"main", "longer"} <= set(re.findall(r'"rev": ?"(\w+)"', html))
    pictures = {path.name for path in page.rglob("*") if path.suffix in (".png", ".svg")}
    assert {f"{rev}_reports_tiny_figures_figure1.png" for rev in ("main", "longer")} <= pictures


def test_a_queue_of_values_runs_in_its_own_folders_and_keeps_finished_trials(project: Path) -> None:
    before = projects.git(project, "status", "--porcelain")
    projects.dvc(project, "exp", "run", "--queue", "-S", f"{PROFILE}:mixed.random_plans=2,3", "mixed@tiny")
    waiting = projects.dvc(project, "queue", "status").stdout
    assert waiting.count("Queued") == 2
    done = projects.dvc(project, "exp", "run", "--run-all")
    said = done.stdout + done.stderr
    assert said.count("Running stage 'mixed@tiny'") == 2
    assert "Running stage 'variants@tiny'" not in said
    # With three blocks there are three ways to spare two, and all of them have their record already.
    assert said.count("mixed: 5 cells, 0 to run") == 2
    rows = table(project, *COLUMNS)
    assert {row[f"{PROFILE}:mixed.random_plans"] for row in rows} == {"1", "2", "3"}
    assert projects.git(project, "status", "--porcelain") == before
