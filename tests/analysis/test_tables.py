"""All tables of a profile from its records, as CSV; the paper's own table as printed."""

import csv
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Tables, find, read_paper_table, write_tables
from lowbit_vit.errors import DataError

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


def test_the_papers_table_has_its_14_columns_and_the_digits_that_it_prints() -> None:
    table = read_paper_table(synthetic.PROJECT)
    assert table.columns[1:] == [
        "Model",
        "Model Size (MB)",
        "Latency (ms)",
        "Latency P50 (ms)",
        "Latency P95 (ms)",
        "Latency P99 (ms)",
        "Throughput (Img/s)",
        "Peak VRAM (MB)",
        "CPU Latency (ms)",
        "Top-1 Acc",
        "Top-5 Acc",
        "F1 Score",
        "Total CUDA Kernel Time (us)",
        "Attention Kernel Time (us)",
    ]
    assert table.row(1, named=True)["Top-1 Acc"] == "0.5330"
    # In four of its five rows throughput x latency is one image, within a quarter of a per cent.
    images = table.select(pl.col("Throughput (Img/s)").cast(float) * pl.col("Latency (ms)").cast(float) / 1000).to_series()
    assert int(((images - 1).abs() < 0.0025).sum()) == 4


def test_a_damaged_paper_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table1.csv: missing"):
        read_paper_table(tmp_path)
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "table1.csv").write_text("Row,Model\n0,one\n")
    with pytest.raises(DataError, match="five rows"):
        read_paper_table(tmp_path)
