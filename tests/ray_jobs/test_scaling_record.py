"""docs/scaling.md says what benchmarks/records/scaling.json says, and the record what the profile and the records say."""

import json
from pathlib import Path

import pytest

import scaling
from lowbit_vit.schema.config import load_profile

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "records" / "scaling.json").read_text())
DOC = (ROOT / "docs" / "scaling.md").read_text()
PAPER = load_profile(ROOT / "profiles" / "paper.yaml")


@pytest.mark.parametrize("row", RECORD["model"], ids=lambda row: f"{row['gpus']}")
def test_the_tables_rows_are_the_records(row: dict[str, float]) -> None:
    hours = row["with_serial_s"] / 3600
    line = (
        f"| {row['gpus']} | {row['variants_s']:,} | {row['sensitivity_s']:,} | {row['mixed_s']:,} "
        f"| {row['with_serial_s']:,} | {hours:.2f} | {100 * row['gpu_use']:.1f} |"
    )
    assert line in DOC, line


@pytest.mark.parametrize("row", RECORD["check"]["clusters"], ids=lambda row: f"{row['nodes']} nodes")
def test_the_checks_rows_are_the_records(row: dict[str, float]) -> None:
    figures = ("nodes", "model_s", "first_start_to_last_end_s", "between_two_trials_s", "whole_study_s")
    line = f"| {' | '.join(str(row[name]) for name in figures)} |"
    assert line in DOC, line


def test_the_model_is_of_the_profile_and_the_records_that_are_here() -> None:
    studies = scaling.studies_of(PAPER)
    assert {study: len(trials) for study, trials in studies.items()} == RECORD["cells"]
    known = scaling.measured()
    seconds = {trial.trial_id: scaling.seconds_of(trial, known) for trials in studies.values() for trial in trials}
    for row in RECORD["model"]:
        assert scaling.row(studies, seconds, gpus=row["gpus"]) == row
    assert scaling.serial() == RECORD["serial_s"]
    assert scaling.bytes_of(PAPER) == RECORD["bytes"]


def test_list_scheduling_gives_the_next_unit_to_the_first_free_place() -> None:
    assert scaling.makespan([3, 1, 1, 1], 2) == 3
    assert scaling.makespan([1, 1, 1, 3], 2) == 4
    assert scaling.makespan([2, 2, 2], 1) == 6
    assert scaling.makespan([], 3) == 0
