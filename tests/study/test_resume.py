"""A finished trial counts only if this code made it from the images and weights that are there, and its file is whole."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.data.arrays import MANIFEST
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import GivenPlan, label_of
from lowbit_vit.schema.code_hash import code_sha256
from lowbit_vit.schema.config import Profile, TimedPlan, Trial
from lowbit_vit.schema.plan import NF4, SensitivityScores
from lowbit_vit.schema.record import Record, read_record, sha256, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.resume import load_plans, load_scores, missing_trials, weights_sha256
from processes import launched

MANIFEST_OF_ONE_IMAGE = {
    "name": "digits",
    "description": "one image",
    "views": {"image_size": 8, "eval_resize": 8, "train_resize": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "source_sha256": "0" * 64,
    "content_sha256": "34" * 32,
    "class_names": ["0"],
    "splits": {"test": {"ids": ["0"], "labels": [0]}},
    "arrays": [],
}


@pytest.fixture
def trials(profile_of: Callable[..., Profile]) -> list[Trial]:
    return cells(profile_of("finish", "finish", "finish"), "variants")


@pytest.fixture(scope="module")
def launched_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that asks keeps what three processes made."""
    return tmp_path_factory.mktemp("launched") / "root"


@pytest.fixture
def records(trials: list[Trial], workspace: Workspace, obedient: tuple[str, ...], launched_before: Path) -> Path:
    """The folder of the trials' records, all finished, a copy of its own."""
    if not launched_before.exists():
        for trial in trials:
            launched([trial], workspace, command=obedient)
        shutil.copytree(workspace.root, launched_before)
    shutil.copytree(launched_before, workspace.root, dirs_exist_ok=True)
    workspace.data.mkdir(parents=True)
    (workspace.data / MANIFEST).write_text(json.dumps(MANIFEST_OF_ONE_IMAGE))
    for trial in trials:
        change(workspace.records("variants"), trial, data_sha256=MANIFEST_OF_ONE_IMAGE["content_sha256"])
    return workspace.records("variants")


def change(folder: Path, trial: Trial, **values: object) -> Record:
    record = read_record(folder / f"{trial.trial_id}.json").model_copy(update=values)
    write_record(record, folder)
    return record


def test_what_is_finished_is_neither_run_nor_touched(trials: list[Trial], records: Path, workspace: Workspace) -> None:
    before = {path: sha256(path.read_bytes()) for path in records.iterdir()}
    assert missing_trials(trials, workspace) == []
    assert {path: sha256(path.read_bytes()) for path in records.iterdir()} == before


def test_a_finished_trial_takes_the_roles_that_the_grid_gives_it(trials: list[Trial], records: Path, workspace: Workspace) -> None:
    roles = (GivenPlan(name="by-hand"), GivenPlan(name="again"))
    played = trials[0].model_copy(update={"roles": roles, "label": " = ".join(map(label_of, roles))})
    assert missing_trials([played, *trials[1:]], workspace) == []
    assert read_record(records / f"{played.trial_id}.json").trial == played


@pytest.mark.parametrize(
    "case",
    [
        ({"code_sha256": "f" * 64}, "made by other code"),
        ({"formats_sha256": "f" * 64}, "made by other code"),
        ({"data_sha256": "f" * 64}, "made from other images"),
    ],
)
def test_records_of_other_code_or_images_are_counted_and_run_again(
    case: tuple[dict[str, object], str], trials: list[Trial], records: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    values, why = case
    for trial in trials[:2]:
        change(records, trial, **values)
    with caplog.at_level(logging.WARNING):
        assert missing_trials(trials, workspace) == trials[:2]
    assert caplog.messages == [f"variants: 2 records {why}: run again"]


def test_records_of_other_weights_are_counted_and_run_again(
    trials: list[Trial], records: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    assert records.is_dir()
    workspace.backbone.with_suffix(".json").write_text(json.dumps({"sha256": "f" * 64}))
    assert missing_trials(trials, workspace) == trials
    assert caplog.messages == ["variants: 3 records made from other weights: run again"]


def test_a_damaged_result_is_counted_and_run_again(
    trials: list[Trial], records: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    (records / f"{trials[1].trial_id}.npz").unlink()
    assert missing_trials(trials, workspace) == [trials[1]]
    assert caplog.messages == ["variants: 1 record with missing or damaged predictions: run again"]


def test_results_far_from_their_images_and_weights_count(trials: list[Trial], records: Path, workspace: Workspace) -> None:
    assert records.is_dir()
    (workspace.data / MANIFEST).unlink()
    for path in workspace.checkpoints.iterdir():
        path.unlink()
    assert missing_trials(trials, workspace) == []


def test_a_skipped_record_names_the_code_that_skipped_it(trials: list[Trial], workspace: Workspace) -> None:
    on_a_gpu = trials[0].model_copy(update={"attention": "efficient"})
    assert missing_trials([on_a_gpu], workspace) == []
    path = workspace.records("variants") / f"{on_a_gpu.trial_id}.json"
    first = path.read_bytes()
    assert read_record(path).code_sha256 == code_sha256()
    assert missing_trials([on_a_gpu], workspace) == []
    assert path.read_bytes() == first
    change(path.parent, on_a_gpu, code_sha256="0" * 64)
    assert missing_trials([on_a_gpu], workspace) == []
    assert read_record(path).code_sha256 == code_sha256()


def sensitivity_file(workspace: Workspace, *, backbone_sha256: str) -> str:
    """The file's text with scores of one block, on these weights."""
    scores = SensitivityScores(
        profile="demo",
        backbone_sha256=backbone_sha256,
        weights=NF4(format="nf4", double_quantization=False),
        direction="only",
        images=10,
        blocks=(synthetic.block_score(0, (0.25,)),),
    )
    text = f"[{scores.model_dump_json()}]"
    workspace.sensitivity.parent.mkdir(parents=True)
    workspace.sensitivity.write_text(text)
    return text


def test_scores_of_the_weights_that_are_there_are_read(workspace: Workspace) -> None:
    sensitivity_file(workspace, backbone_sha256=str(weights_sha256(workspace.adapted(0))))
    assert load_scores(workspace)[0].blocks[0].kl == (0.25,)


def test_scores_of_another_model_are_refused_in_one_line(workspace: Workspace) -> None:
    sensitivity_file(workspace, backbone_sha256="f" * 64)
    with pytest.raises(
        DataError, match=r"sensitivity\.json: was made from other weights than .*; run lowbit-vit sensitivity demo"
    ) as caught:
        load_scores(workspace)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.25", "NaN", r"key 0\.blocks\.0\.kl\.0: .*finite"),
        ("0.25", "Infinity", r"key 0\.blocks\.0\.kl\.0: .*finite"),
        ('"nf4"', '"fp4"', r"key 0\.weights: .*'fp4'"),
        ('"blocks"', '"rows"', r"key 0\.blocks: "),
        ("[{", "[", r"sensitivity\.json: key \(top level\): "),
    ],
)
def test_a_damaged_file_of_scores_is_refused_in_one_line(old: str, new: str, message: str, workspace: Workspace) -> None:
    text = sensitivity_file(workspace, backbone_sha256=str(weights_sha256(workspace.adapted(0))))
    assert old in text
    workspace.sensitivity.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        load_scores(workspace)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("run lowbit-vit sensitivity demo again")


@pytest.mark.parametrize("kind", ["milp", "gradient"])
def test_plans_that_are_to_be_timed_must_be_there(kind: TimedPlan, profile_of: Callable[..., Profile], workspace: Workspace) -> None:
    profile = timing(profile_of(), kind)
    with pytest.raises(DataError, match=rf"plans\.json: no such file, but mixed\.timed names {kind}; run lowbit-vit allocate demo$"):
        load_plans(profile, workspace)


def test_a_profile_that_times_none_of_them_does_without_plans(profile_of: Callable[..., Profile], workspace: Workspace) -> None:
    assert load_plans(timing(profile_of(), "first+last"), workspace) == ()


def timing(profile: Profile, kind: TimedPlan) -> Profile:
    return profile.model_copy(update={"mixed": profile.mixed.model_copy(update={"timed": (kind,)})})
