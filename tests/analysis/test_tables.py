"""All tables of a profile from its records, as CSV."""

import csv
from dataclasses import fields
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.analysis.tables import Tables, find, write_tables

# The synthetic records are of a CPU, which has no CUDA graphs, and where the peak is the process's and has no parts.
OF_CARDS_ALONE = {"graphs.csv", "memory_parts.csv"}
# The demo measures no pairs of blocks, and predicts at one batch size.
NOT_ASKED_FOR = ("pairs.csv", "invariance.csv")


def test_every_table_is_written_and_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root")
    for name in ("first", "second"):
        write_tables(find(profile, workspace).tables, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) == len(fields(Tables))
    for name in files:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        assert (len(list(csv.reader(content.decode().splitlines()))) > 1) == (name not in {*OF_CARDS_ALONE, *NOT_ASKED_FOR}), name


@pytest.mark.parametrize("studies", [(), ("variants",), ("sensitivity",)])
def test_studies_that_were_not_run_leave_empty_tables(tmp_path: Path, studies: tuple[str, ...]) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=studies)  # type: ignore[arg-type]
    tables = find(profile, workspace).tables
    assert tables.paper_table.is_empty() == ("variants" not in studies)
    assert tables.sensitivity.is_empty() == ("sensitivity" not in studies)
    assert tables.mixed.is_empty()
    write_tables(tables, tmp_path / "tables")


def test_a_sensitivity_study_with_a_failed_cell_is_shown_without_scores(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("sensitivity",))
    path = next(path for path in workspace.records("sensitivity").glob("*.json") if '"nf4, only block 3"' in path.read_text())
    trial = synthetic.read_record(path).trial
    synthetic.write_record(synthetic.unfinished(trial, "failed", "synthetic reason"), path.parent)
    path.with_suffix(".npz").unlink()
    findings = find(profile, workspace)
    assert findings.tables.sensitivity.get_column("kl_mean").null_count() == 35
    assert findings.tables.not_successful.select("label", "status", "reason").rows() == [
        ("nf4, only block 3", "failed", "synthetic reason")
    ]
