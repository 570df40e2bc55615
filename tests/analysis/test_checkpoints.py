"""The list of weights says of each file whether it is there and whole, from cards and hashes alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit_vit.analysis.checkpoints import list_checkpoints
from lowbit_vit.report.terminal import checkpoint_table
from lowbit_vit.schema.config import Profile, load_profile
from lowbit_vit.schema.model_card import weight_files
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace

DEMO = load_profile(Path(__file__).parents[2] / "profiles" / "demo.yaml")
FIGURES = {"images": 600, "top1": 0.985, "top5": 1.0, "macro_f1": 0.98, "loss": 0.05}


def card(path: Path) -> dict[str, object]:
    return {
        "kind": "backbone",
        "profile": "demo",
        "seed": 0,
        "made": "trained from random weights",
        "licence": {"images": "licence CC-BY-4.0"},
        "data": "digits",
        "content_sha256": "0" * 64,
        "splits": {"train": 1078, "val": 120, "test": 599},
        "accuracy": {"val": FIGURES, "test": FIGURES},
        "sha256": sha256(path.read_bytes()),
        "provenance": {"what": "cards say more than is listed"},
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    place = Workspace(root=tmp_path, profile="demo")
    for path in weight_files(DEMO, place):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 100)
        path.with_suffix(".json").write_text(json.dumps(card(path)))
    return place


def test_a_profile_has_a_backbone_and_for_each_seed_adapters_and_what_they_make_of_it(workspace: Workspace) -> None:
    names = ["backbone.safetensors", "adapter-seed0.safetensors", "adapted-seed0.safetensors"]
    assert [path.name for path in weight_files(DEMO, workspace)] == names
    assert [path.name for path in weight_files(DEMO.model_copy(update={"lora": None}), workspace)] == names[:1]


def test_whole_files_are_present(workspace: Workspace) -> None:
    found = list_checkpoints(DEMO, workspace)
    assert {(checkpoint.state, checkpoint.problem) for checkpoint in found} == {("present", None)}
    assert found[0].file == Path("checkpoints/demo/backbone.safetensors")


def flip(workspace: Workspace) -> None:
    content = bytearray(workspace.backbone.read_bytes())
    content[7] ^= 1
    workspace.backbone.write_bytes(content)


def drop_card(workspace: Workspace) -> None:
    workspace.backbone.with_suffix(".json").unlink()


def drop_weights(workspace: Workspace) -> None:
    workspace.backbone.unlink()


def drop_both(workspace: Workspace) -> None:
    drop_card(workspace)
    drop_weights(workspace)


def cut_card(workspace: Workspace) -> None:
    path = workspace.backbone.with_suffix(".json")
    path.write_bytes(path.read_bytes()[:100])


def forget_licence(workspace: Workspace) -> None:
    path = workspace.backbone.with_suffix(".json")
    content = json.loads(path.read_text())
    del content["licence"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fault", "state", "said"),
    [
        (flip, "damaged", "sha256 is "),
        (drop_card, "damaged", "backbone.json is missing"),
        (drop_weights, "damaged", "the weights are not"),
        (drop_both, "missing", "dvc pull backbone@demo"),
        (cut_card, "damaged", "backbone.json: "),
        (forget_licence, "damaged", "key licence: Field required"),
    ],
)
def test_what_is_missing_or_damaged_is_said_with_what_to_do(
    workspace: Workspace, fault: Callable[[Workspace], None], state: str, said: str
) -> None:
    fault(workspace)
    first, *others = list_checkpoints(DEMO, workspace)
    assert first.state == state
    assert first.problem is not None
    assert said in first.problem
    assert "dvc pull backbone@demo" in first.problem
    assert {checkpoint.state for checkpoint in others} == {"present"}


def test_the_table_shows_how_good_each_is(workspace: Workspace) -> None:
    lines = checkpoint_table(list_checkpoints(DEMO, workspace)).lines("terminal")
    assert [line.cells[3].text for line in lines] == ["98.50"] * 3
    assert [line.cells[5].text for line in lines] == [sha256(path.read_bytes())[:16] for path in weight_files(DEMO, workspace)]


def test_paper_and_scratch_have_their_lists_too(tmp_path: Path) -> None:
    for path in (Path(__file__).parents[2] / "profiles").glob("*.yaml"):
        profile: Profile = load_profile(path)
        found = list_checkpoints(profile, Workspace(root=tmp_path, profile=profile.name))
        assert {checkpoint.state for checkpoint in found} == {"missing"}
