"""What changed is run again, and nothing else: real DVC on a finished pipeline of the tiny profile."""

import json
import re
from pathlib import Path

import pytest

import projects
from lowbit_vit.schema.record import read_records, sha256

pytestmark = [pytest.mark.data, pytest.mark.timeout(900)]


def reproduce(project: Path) -> tuple[list[str], str]:
    """Bring the report up to date; the stages that ran, in order, and all that was said."""
    done = projects.dvc(project, "repro", "report@tiny")
    return re.findall(r"Running stage '(\w+)@tiny'", done.stdout), done.stdout + done.stderr


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def hashes(project: Path, *folders: str) -> dict[str, str]:
    return {str(path.relative_to(project)): sha256(path.read_bytes()) for folder in folders for path in (project / folder).rglob("*.*")}


def test_nothing_runs_where_nothing_changed(project: Path) -> None:
    assert reproduce(project)[0] == []


def test_a_word_in_the_code_of_the_report_runs_the_report_alone(project: Path) -> None:
    before = hashes(project, "reports/tiny/records", "checkpoints")
    append(project / "src" / "lowbit_vit" / "report" / "page.py", "\n# one comment more\n")
    assert reproduce(project)[0] == ["report"]
    assert hashes(project, "reports/tiny/records", "checkpoints") == before


def test_another_way_to_measure_runs_the_timed_studies_and_the_report(project: Path) -> None:
    before = hashes(project, "reports/tiny/records/sensitivity", "reports/tiny/records/mixed", "checkpoints")
    profile = project / "profiles" / "tiny.yaml"
    text = profile.read_text(encoding="utf-8")
    assert text.count("samples: 10\n") == 1
    profile.write_text(text.replace("samples: 10\n", "samples: 12\n"), encoding="utf-8")
    ran, said = reproduce(project)
    # Mixed would time the plans that a profile names; tiny names none, so all its cells are finished.
    assert sorted(ran) == ["mixed", "report", "variants"]
    assert re.search(r"mixed: \d+ cells, 0 to run", said), said
    assert hashes(project, "reports/tiny/records/sensitivity", "reports/tiny/records/mixed", "checkpoints") == before
    records = read_records(project / "reports" / "tiny" / "records" / "variants")
    assert [len(latency.samples_ms) for record in records if record.measurement for latency in record.measurement.latency] == [12, 12]


def test_a_word_in_a_kernel_runs_no_trial_without_it_and_no_backbone(project: Path) -> None:
    before = hashes(project, "reports/tiny/records", "checkpoints")
    append(project / "src" / "lowbit_vit" / "model" / "kernels" / "gemm.py", "\n# one comment more\n")
    ran, said = reproduce(project)
    assert "backbone" not in ran
    assert "variants" in ran  # which finds that nothing is to do
    for study in ("variants", "sensitivity", "mixed"):
        assert re.search(rf"{study}: \d+ cells, 0 to run", said), said
    assert hashes(project, "reports/tiny/records", "checkpoints") == before


def test_a_word_in_the_code_of_the_precision_runs_all_that_uses_it(project: Path) -> None:
    records = project / "reports" / "tiny" / "records"
    before = {record.trial_id: record for record in read_records(records)}
    weights = hashes(project, "checkpoints/tiny")
    append(project / "src" / "lowbit_vit" / "model" / "precision.py", "\n# one comment more\n")
    ran, said = reproduce(project)
    assert ran[0] == "backbone"
    assert set(ran) == {"backbone", "variants", "sensitivity", "estimate", "allocate", "mixed", "report"}
    for study, count in (("variants", 2), ("sensitivity", 5), ("mixed", 5)):
        assert re.search(rf"{study}: {count} records made by other code: run again", said), said
    after = {record.trial_id: record for record in read_records(records)}
    assert after.keys() == before.keys()
    assert {record.code_sha256 for record in before.values()}.isdisjoint({record.code_sha256 for record in after.values()})
    # A comment changes no number.
    for name, record in after.items():
        old = before[name].evaluation
        assert old is not None
        assert record.evaluation is not None
        assert record.evaluation.predictions_sha256 == old.predictions_sha256
    same = hashes(project, "checkpoints/tiny")
    assert {name for name in same if same[name] != weights[name]} <= {name for name in same if name.endswith(".json")}
    card = json.loads((project / "checkpoints" / "tiny" / "backbone.json").read_text(encoding="utf-8"))
    assert card["sha256"] == sha256((project / "checkpoints" / "tiny" / "backbone.safetensors").read_bytes())
