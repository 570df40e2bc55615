"""Fixtures of tests/trial and tests/recipe: a small profile on the real digits, prepared and with its backbone trained for one epoch."""

from pathlib import Path

import pytest

from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Measurement, Profile, SmallVit, load_profile
from lowbit_vit.schema.workspace import Workspace


@pytest.fixture(scope="session")
def profile() -> Profile:
    """The demo profile with a two-block ViT, one epoch and ten samples."""
    demo = load_profile(Path(__file__).parents[1] / "profiles" / "demo.yaml")
    assert demo.backbone.training is not None
    assert demo.lora is not None
    short = {"epochs": 1, "warmup_epochs": 0.5, "batch_size": 128}
    backbone = demo.backbone.model_copy(
        update={
            "architecture": SmallVit(patch_size=4, depth=2, heads=2, width=64, mlp_width=64),
            "training": demo.backbone.training.model_copy(update=short),
        }
    )
    lora = demo.lora.model_copy(update={"training": demo.lora.training.model_copy(update=short)})
    measurement = Measurement(batch_sizes=(1, 2), warmup=1, samples=10, seconds=1, trace=True)
    return demo.model_copy(update={"backbone": backbone, "lora": lora, "measurement": measurement})


@pytest.fixture(scope="session")
def workspace(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Data and backbone of that profile; tests only read it."""
    prepared = Workspace(root=tmp_path_factory.mktemp("trial"), profile=profile.name)
    prepare_dataset(profile.data, folder=prepared.data, root=prepared.root, workers=1)
    make_backbone(profile, prepared)
    return prepared
