"""Records come with the predictions that they name, or not at all."""

from pathlib import Path

import pytest

import synthetic
from lowbit_vit.analysis.results import load_all_results, load_results, same_images
from lowbit_vit.errors import DataError
from lowbit_vit.schema.workspace import Workspace


def test_every_successful_record_has_its_predictions(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    results = load_results(workspace, "variants")
    assert len(results) == 13
    assert all((result.predictions is not None) == (result.record.status == "success") for result in results)
    assert same_images(results)


def test_a_study_that_was_not_run_is_empty(tmp_path: Path) -> None:
    assert load_all_results(Workspace(root=tmp_path, profile="demo")) == {"variants": [], "sensitivity": [], "mixed": []}


def test_predictions_that_are_not_those_of_the_record_are_refused(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    first, *_, second = sorted(workspace.records("variants").glob("*.npz"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=rf"{first.name}: its sha256 is not predictions_sha256 of {first.stem}.json"):
        load_results(workspace, "variants")


def test_missing_predictions_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    gone = min(workspace.records("variants").glob("*.npz"))
    gone.unlink()
    with pytest.raises(DataError, match=gone.name):
        load_results(workspace, "variants")
