"""What `lowbit-vit export` writes, from a plan file and from a record, and what it refuses, each in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit_vit.cli import options, plans
from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, Unavailable
from lowbit_vit.export import export_model, refuse_other_content
from lowbit_vit.schema.allocation import load_plan_file
from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.model_card import read_export
from lowbit_vit.schema.plan import NF4, Plan, linear_names, uniform
from lowbit_vit.schema.predictions import read_predictions
from lowbit_vit.schema.record import Record, read_record, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import plan_cell
from lowbit_vit.trial.run import record_trial, run_trial

GOOD = """
name: by-hand
compute_dtype: fp32
entries:
  - {unit: blocks.0, weights: {format: nf4, double_quantization: false}}
  - {unit: blocks.1.mlp.fc1, weights: {format: int8, threshold: 0.0}}
"""


@pytest.fixture
def place(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The prepared images and weights, with records of the test's own."""
    return Workspace(root=workspace.root, profile=workspace.profile, elsewhere=tmp_path / "reports")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(GOOD)
    return path


def test_a_plan_that_was_not_run_is_exported_without_metrics(
    profile: Profile, place: Workspace, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = export_model(profile, place, str(plan), tmp_path / "far" / "model")
    assert sorted(path.name for path in (tmp_path / "far").rglob("*")) == ["model", "model.json", "model.safetensors"]
    assert card.measured is None
    assert card.plan_file is not None
    assert card.plan_file.name == "by-hand"
    assert "was not run, so the model card holds no metrics" in caplog.text
    _, converted = read_export(tmp_path / "far" / "model")
    formats = converted.plan.resolve(linear_names(2))
    assert [name for name, weights in formats.items() if weights.name == "int8-0"] == ["blocks.1.mlp.fc1"]
    assert sum(weights.name == "nf4" for weights in formats.values()) == 6


def test_a_plan_that_was_run_takes_its_metrics_along(profile: Profile, place: Workspace, plan: Path, tmp_path: Path) -> None:
    trial = plan_cell(profile, load_plan_file(plan))
    record = run_trial(trial, place, place.records("mixed"))
    card = export_model(profile, place, str(plan), tmp_path / "model")
    assert card.measured is not None
    assert record.evaluation is not None
    predictions = read_predictions(place.records("mixed") / f"{trial.trial_id}.npz", record)
    assert (card.measured.trial_id, card.measured.test) == (trial.trial_id, predictions.accuracy())
    assert card.measured.report_half == predictions.accuracy(~predictions.selection)
    # Under the plan's own name as well, and by its id.
    for name in ("plan by-hand", trial.trial_id):
        assert export_model(profile, place, name, tmp_path / "model").measured == card.measured


def test_a_cell_that_was_timed_as_well_is_the_same_model(profile: Profile, place: Workspace, plan: Path, tmp_path: Path) -> None:
    short = profile.measurement.model_copy(update={"batch_sizes": (1,), "warmup": 1, "samples": 10})
    timed = plan_cell(profile, load_plan_file(plan)).model_copy(update={"measurement": short})
    run_trial(timed, place, place.records("mixed"))
    card = export_model(profile, place, str(plan), tmp_path / "model")
    assert card.measured is not None
    assert card.measured.trial_id == timed.trial_id


def test_an_earlier_export_is_replaced_as_a_whole(profile: Profile, place: Workspace, plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_model(profile, place, str(plan), folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan.write_text(GOOD.replace("blocks.0,", "blocks.1.mlp.fc2,"))
    export_model(profile, place, str(plan), folder)
    assert {path.name for path in folder.iterdir()} == set(first)
    assert (folder / "model.safetensors").read_bytes() != first["model.safetensors"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_that_fails_leaves_the_earlier_one(profile: Profile, place: Workspace, plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_model(profile, place, str(plan), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan.write_text(GOOD.replace("name: by-hand", f"name: by-hand\nbackbone_sha256: {'f' * 64}"))
    with pytest.raises(DataError, match=r"plan\.yaml: was made from other weights than .*adapted-seed0\.safetensors; allocate again"):
        export_model(profile, place, str(plan), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def fill_with(name: str, content: str) -> Callable[[Path], object]:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(content)

    return fill


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (fill_with("thesis.tex", "years"), "holds thesis.tex, which is not of an earlier export"),
        (fill_with("model.json", '{"kind": "backbone"}'), "holds model.json, which is not of an earlier export"),
        (fill_with("model.safetensors", "others' weights"), "holds model.safetensors, which is not of an earlier export"),
        (lambda folder: folder.write_text("a file"), "is a file; name a folder for the export"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    *, fill: Callable[[Path], object], message: str, profile: Profile, place: Workspace, plan: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    fill(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        export_model(profile, place, str(plan), folder)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    refuse_other_content(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("blocks.0,", "blocks.7,", r"blocks\.7 is not there; the model has blocks\.0 to blocks\.1"),
        ("blocks.0,", "blocks.1.mlp.fc1,", r"blocks\.1\.mlp\.fc1 is given twice"),
        ("format: nf4", "format: fp4", "'fp4'"),
        ("compute_dtype: fp32", "compute_dtype: fp8", "compute_dtype: .*'fp8'"),
        ("compute_dtype: fp32", "compute_dtype: tf32", "plan by-hand: key .*tf32 is a CUDA matmul mode; on cpu use fp32"),
    ],
)
def test_a_bad_plan_is_one_line_and_writes_nothing(
    *, old: str, new: str, message: str, profile: Profile, place: Workspace, plan: Path, tmp_path: Path
) -> None:
    assert old in GOOD
    plan.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        export_model(profile, place, str(plan), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def of_other(what: str, record: Record) -> Record:
    assert record.model is not None
    changes: dict[str, dict[str, Any]] = {
        "weights": {"model": record.model.model_copy(update={"backbone_sha256": "0" * 64, "base_sha256": "0" * 64})},
        "images": {"data_sha256": "0" * 64},
        "code": {"code_sha256": "0" * 64},
    }
    return record.model_copy(update=changes[what])


@pytest.mark.parametrize(("what", "words"), [("weights", "from other weights"), ("images", "from other images"), ("code", "by other code")])
def test_a_record_of_other_code_images_or_weights_is_not_exported(
    *, what: str, words: str, cell: Trial, profile: Profile, place: Workspace, tmp_path: Path
) -> None:
    records = place.records("variants")
    run_trial(cell, place, records)
    write_record(of_other(what, read_record(records / f"{cell.trial_id}.json")), records)
    with pytest.raises(DataError, match=f"its record was made {words}; run lowbit-vit variants demo again"):
        export_model(profile, place, cell.label, tmp_path / "model")


def test_metrics_of_other_code_are_left_out_of_a_plans_card(
    profile: Profile, place: Workspace, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = plan_cell(profile, load_plan_file(plan))
    write_record(of_other("code", run_trial(trial, place, tmp_path / "run")), place.records("mixed"))
    assert export_model(profile, place, str(plan), tmp_path / "model").measured is None
    assert "was made by other code: the model card holds no metrics" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"adaptation": "qlora"},
            ConfigError,
            "has adaptation qlora: its adapters were trained in the trial and are not kept; labels that can be exported:",
        ),
        ({"label": "a cel"}, ConfigError, "and a plan file ends in .json or .yaml; did you mean 'a cel'?"),
        ({"execution": "cuda_graph", "device": "cuda", "attention": "math"}, DataError, "has no result (skipped: needs CUDA"),
        ({"plan": uniform(NF4(format="nf4", double_quantization=False), "bf16"), "label": "other"}, ConfigError, "no record of demo has"),
    ],
)
def test_a_cell_that_cannot_be_exported_is_one_line(
    *,
    changes: dict[str, object],
    error: type[LowbitVitError],
    message: str,
    cell: Trial,
    profile: Profile,
    place: Workspace,
    tmp_path: Path,
) -> None:
    trial = Trial.model_validate(cell.model_copy(update=changes).model_dump())
    record_trial(trial, place, place.records("variants"))
    with pytest.raises(error, match=re.escape(message)) as caught:
        export_model(profile, place, "a cell", tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_another_execution_is_not_exported(cell: Trial, profile: Profile, place: Workspace, tmp_path: Path) -> None:
    record = run_trial(cell, place, tmp_path / "run")
    trial = cell.model_copy(update={"execution": "compile"})
    write_record(record.model_copy(update={"trial": trial, "trial_id": trial.trial_id}), place.records("variants"))
    with pytest.raises(ConfigError, match=r"'a cell' is another execution \(compile\) of a model; choose the eager one"):
        export_model(profile, place, "a cell", tmp_path / "model")


def test_a_label_of_two_seeds_asks_for_the_id(cell: Trial, profile: Profile, place: Workspace, tmp_path: Path) -> None:
    record = run_trial(cell, place, tmp_path / "run")
    for seed in (0, 1):
        trial = cell.model_copy(update={"seed": seed})
        write_record(record.model_copy(update={"trial": trial, "trial_id": trial.trial_id}), place.records("variants"))
    with pytest.raises(ConfigError, match=rf"2 records have the label 'a cell'; give the trial_id of one: .*{cell.trial_id}"):
        export_model(profile, place, "a cell", tmp_path / "model")


def test_a_cell_of_a_gpu_is_not_made_without_one(cell: Trial, profile: Profile, place: Workspace, tmp_path: Path) -> None:
    record = run_trial(cell, place, tmp_path / "run")
    trial = Trial.model_validate(cell.model_copy(update={"device": "cuda", "plan": Plan(compute_dtype="fp16")}).model_dump())
    write_record(record.model_copy(update={"trial": trial, "trial_id": trial.trial_id}), place.records("variants"))
    with pytest.raises(Unavailable, match="needs CUDA"):
        export_model(profile, place, "a cell", tmp_path / "model")


def test_the_verb_says_what_it_wrote(
    *, profile: Profile, place: Workspace, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "load_profile", lambda _: profile)  # the tests' profile is the demo's, cut down, and no file
    plans.export("demo", str(plan), tmp_path / "model", root=place.root)
    size = sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    assert capsys.readouterr().out == f"{tmp_path / 'model'}: plan by-hand, not measured; {size:,} bytes\n"
