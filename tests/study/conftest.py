"""A small workspace: the demo profile with the arms that a test asks for, and weights that are only a file with a card."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit_vit.schema.config import Arm, Limits, Profile, load_profile
from lowbit_vit.schema.plan import HighPrecision
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace

HERE = Path(__file__).parent
DEMO = load_profile(HERE.parents[1] / "profiles" / "demo.yaml")


@pytest.fixture
def obedient() -> tuple[str, ...]:
    """The command of the process that does what a trial's label says."""
    return (sys.executable, str(HERE / "obedient_child.py"))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    place = Workspace(root=tmp_path, profile="demo")
    place.checkpoints.mkdir(parents=True)
    for path in (place.backbone, place.adapted(0)):
        path.write_bytes(path.name.encode())
        path.with_suffix(".json").write_text(json.dumps({"sha256": sha256(path.read_bytes())}))
    return place


@pytest.fixture
def profile_of() -> Callable[..., Profile]:
    """Make a profile whose variants study is the given labels, each its own trial by its seed."""

    def make(*labels: str, seconds: float = 60, memory_gib: float = 4) -> Profile:
        arms = tuple(
            Arm(label=label, weights=HighPrecision(), compute_dtype="fp32", attention="math", adaptation="none", seeds=(seed,))
            for seed, label in enumerate(labels)
        )
        limits = Limits(seconds=seconds, memory_gib=memory_gib)
        return DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": arms}), "limits": limits})

    return make
