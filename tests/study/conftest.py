"""A small workspace: the demo profile with the arms that a test asks for, and weights that are only a file with its JSON."""

import fcntl
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.schema.config import Arm, Limits, Profile, load_profile
from lowbit_vit.schema.plan import HighPrecision
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.launch import scratch_folder
from processes import living_children, wait_until

HERE = Path(__file__).parent
DEMO = synthetic.in_processes(load_profile(HERE.parents[1] / "profiles" / "demo.yaml"), 1)


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


@pytest.fixture
def nothing_is_left(workspace: Workspace) -> Iterator[None]:
    """A study leaves no process, no folder of Ray's, no file that is half written."""
    folders, children = ray_folders(), living_children()
    yield
    wait_until(lambda: living_children() <= children)
    wait_until(lambda: ray_folders() <= folders)
    assert not any(scratch_folder(workspace).glob("*"))
    assert not any(workspace.reports.rglob("*.json.*"))


def ray_folders() -> set[Path]:
    """Ray's folders that no run holds; those of runs beside this test are none of its business."""
    return {path.parent for path in Path("/tmp").glob("lowbit-*/owner") if is_free(path)}


def is_free(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
