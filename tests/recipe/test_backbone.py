import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.checkpoint import load_state, restore
from lowbit_vit.model.lora import merge, trainable_parameters, wrap
from lowbit_vit.model.vit import ARCHITECTURES, Architecture, VisionTransformer, architecture
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Backbone, Profile, SmallVit
from lowbit_vit.schema.model_card import ModelCard, weight_files
from lowbit_vit.schema.workspace import Workspace


def test_every_file_has_a_card_that_says_what_it_is(profile: Profile, workspace: Workspace) -> None:
    content = load_dataset(workspace.data, profile.data.views).content_sha256
    for path, kind in ((workspace.backbone, "backbone"), (workspace.adapted(0), "adapted")):
        state, card = load_state(path)
        assert card["kind"] == kind
        assert card["content_sha256"] == content
        assert card["splits"] == {"train": 1078, "val": 120, "test": 599}
        assert card["parameters"] == sum(tensor.numel() for tensor in state.values())
        assert 0 < card["accuracy"]["test"]["top1"] <= 1
        assert card["accuracy"]["test"]["images"] == 599
    adapted = json.loads(workspace.adapted(0).with_suffix(".json").read_text())
    assert adapted["origin_sha256"] == load_state(workspace.backbone)[1]["sha256"]


def test_the_adapted_backbone_differs_in_q_v_and_head_alone(workspace: Workspace) -> None:
    base, _ = load_state(workspace.backbone)
    adapted, _ = load_state(workspace.adapted(0))
    changed = {name for name in base if not torch.equal(base[name], adapted[name])}
    adapters = {f"blocks.{block}.attention.{projection}.weight" for block in (0, 1) for projection in ("q", "v")}
    assert base.keys() == adapted.keys()
    assert changed == adapters | {"head.weight", "head.bias"}


def test_every_card_is_a_model_card_and_no_other_file_is_there(profile: Profile, workspace: Workspace) -> None:
    files = weight_files(profile, workspace)
    assert {path.stem for path in workspace.checkpoints.iterdir()} == {path.stem for path in files}
    for path in files:
        card = ModelCard.model_validate_json(path.with_suffix(".json").read_bytes())
        assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert card.licence["images"].startswith("licence CC-BY-4.0")
        assert "1 epoch on train+val (1,198 images), seed 0" in card.made


def test_backbone_and_adapters_make_the_adapted_backbone(profile: Profile, workspace: Workspace) -> None:
    assert profile.lora is not None
    arch = architecture(profile.backbone.architecture, profile.data.views.image_size)
    model = VisionTransformer(arch, num_classes=10, attention="flash", qkv="separate")
    restore(model, load_state(workspace.backbone)[0], source="backbone")
    wrap(model, rank=profile.lora.rank, alpha=profile.lora.alpha, dropout=0.0)
    adapters, _ = load_state(workspace.adapter(0))
    assert adapters.keys() == trainable_parameters(model).keys()
    model.load_state_dict(adapters, strict=False)
    merge(model)
    adapted, _ = load_state(workspace.adapted(0))
    assert all(torch.equal(adapted[name], tensor) for name, tensor in model.state_dict().items())


def test_making_it_again_gives_the_same_weights_and_removes_unused_seeds(profile: Profile, workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(root=tmp_path, profile=workspace.profile)
    other.data.parent.mkdir(parents=True)
    other.data.symlink_to(workspace.data)
    other.checkpoints.mkdir(parents=True)
    left_over = other.adapted(9)
    left_over.write_bytes(b"of a seed that left the profile")
    make_backbone(profile, other)
    assert not left_over.exists()
    for ours, theirs in ((workspace.backbone, other.backbone), (workspace.adapted(0), other.adapted(0))):
        assert ours.read_bytes() == theirs.read_bytes()


def test_without_adapters_only_the_backbone_is_made(profile: Profile, workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(root=tmp_path, profile=workspace.profile)
    other.data.parent.mkdir(parents=True)
    other.data.symlink_to(workspace.data)
    make_backbone(profile.model_copy(update={"lora": None}), other)
    assert sorted(path.name for path in other.checkpoints.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_missing_data_is_said_before_any_training(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run lowbit-vit data demo"):
        make_backbone(profile, Workspace(root=tmp_path, profile="demo"))


@pytest.fixture
def torchvision_profile(profile: Profile, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The profile with a torchvision checkpoint in `tmp_path`: one of vit_b_32's names, in tiny sizes."""
    small = Architecture(name="vit_b_32", image_size=8, patch_size=4, depth=2, heads=2, width=64, mlp_width=64)
    monkeypatch.setitem(ARCHITECTURES, "vit_b_32", small)
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(8, 4, 2, 2, 64, 64, num_classes=1000)
    path = tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), path)
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    (tmp_path / "data" / "prepared" / workspace.profile).symlink_to(workspace.data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    backbone = Backbone(architecture="vit_b_32", weights="torchvision", checkpoint="vit.pth", checkpoint_sha256=digest[:8], seed=0)
    return profile.model_copy(update={"backbone": backbone})


def test_a_torchvision_checkpoint_gets_a_new_head_for_the_data(torchvision_profile: Profile, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, profile=torchvision_profile.name)
    make_backbone(torchvision_profile, workspace)
    state, card = load_state(workspace.backbone)
    theirs = torch.load(tmp_path / "vit.pth", weights_only=True)
    assert torch.equal(state["patch_embedding.weight"], theirs["conv_proj.weight"])
    assert state["head.weight"].shape == (10, 64)
    assert (card["origin"], card["accuracy"]) == ("vit.pth", None)
    assert load_state(workspace.adapted(0))[1]["accuracy"]["test"]["images"] == 599


def test_a_torchvision_checkpoint_of_another_hash_is_refused(torchvision_profile: Profile, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, profile=torchvision_profile.name)
    backbone = torchvision_profile.backbone.model_copy(update={"checkpoint_sha256": "0" * 8})
    with pytest.raises(DataError, match=r"vit\.pth: sha256 .* does not start with 00000000"):
        make_backbone(torchvision_profile.model_copy(update={"backbone": backbone}), workspace)
    assert not workspace.checkpoints.exists()


def from_file(profile: Profile, path: Path, **values: object) -> Profile:
    """The profile with that file of ours as its backbone."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    keys = {"weights": "ours", "checkpoint": str(path), "checkpoint_sha256": digest, "training": None, **values}
    backbone = Backbone.model_validate(profile.backbone.model_dump() | keys)
    return profile.model_copy(update={"backbone": backbone, "lora": None})


@pytest.fixture
def elsewhere(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Another project with the same prepared data."""
    other = Workspace(root=tmp_path, profile=workspace.profile)
    other.data.parent.mkdir(parents=True)
    other.data.symlink_to(workspace.data)
    return other


def test_weights_of_ours_for_the_same_classes_keep_their_head(profile: Profile, workspace: Workspace, elsewhere: Workspace) -> None:
    make_backbone(from_file(profile, workspace.adapted(0)), elsewhere)
    given, theirs = load_state(workspace.adapted(0))
    state, card = load_state(elsewhere.backbone)
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())
    assert (card["head"], card["origin"], card["origin_sha256"]) == ("kept", "adapted-seed0.safetensors", theirs["sha256"])
    assert card["accuracy"]["test"] == theirs["accuracy"]["test"]


def relabelled(workspace: Workspace, folder: Path, class_names: list[str] | None) -> Path:
    """The backbone as a file whose card names other classes, or none, as cards of earlier versions do."""
    folder.mkdir()
    path = folder / "mine.safetensors"
    shutil.copy(workspace.backbone, path)
    card = json.loads(workspace.backbone.with_suffix(".json").read_text())
    card |= {"class_names": class_names}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.mark.parametrize("class_names", [None, ["ash", "elm"]], ids=["not said", "other classes"])
def test_a_new_head_needs_a_lora_section_to_train_it(
    profile: Profile, workspace: Workspace, elsewhere: Workspace, class_names: list[str] | None
) -> None:
    path = relabelled(workspace, elsewhere.root / "given", class_names)
    with pytest.raises(ConfigError, match=r"key lora: null, but mine\.safetensors gets a new head for these classes; add a lora section"):
        make_backbone(from_file(profile, path), elsewhere)


def test_weights_of_ours_for_other_classes_get_a_new_head(profile: Profile, workspace: Workspace, elsewhere: Workspace) -> None:
    path = relabelled(workspace, elsewhere.root / "given", ["ash", "elm"])
    make_backbone(from_file(profile, path).model_copy(update={"lora": profile.lora}), elsewhere)
    given, _ = load_state(path)
    state, card = load_state(elsewhere.backbone)
    assert {name for name in given if not torch.equal(state[name], given[name])} == {"head.weight", "head.bias"}
    assert (card["head"], card["accuracy"]) == ("new", None)


def test_weights_of_ours_of_another_hash_are_refused(profile: Profile, workspace: Workspace, elsewhere: Workspace) -> None:
    with pytest.raises(DataError, match=r"backbone\.safetensors: sha256 .* does not start with 00000000; correct"):
        make_backbone(from_file(profile, workspace.backbone, checkpoint_sha256="0" * 8), elsewhere)
    assert not elsewhere.checkpoints.exists()


def test_weights_of_ours_of_another_architecture_are_refused(profile: Profile, workspace: Workspace, elsewhere: Workspace) -> None:
    deeper = SmallVit(patch_size=4, depth=3, heads=2, width=64, mlp_width=64)
    with pytest.raises(DataError, match=r"not the weights of small: 16 tensors missing \(as blocks\.2\."):
        make_backbone(from_file(profile, workspace.backbone, architecture=deeper), elsewhere)
