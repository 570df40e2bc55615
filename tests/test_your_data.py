"""Somebody's own images and weights, from a folder of PNGs to a page: new-profile, then dvc repro, as the documentation says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lowbit_vit.model.checkpoint import load_state, save_state
from lowbit_vit.model.vit import VisionTransformer, architecture
from lowbit_vit.schema.config import STUDIES, SmallVit
from lowbit_vit.schema.record import read_records
from projects import commit, dvc, environment, make_project

NAMES = ("zero", "one, a stroke", "zwei", "três & <b>", "四")
EACH = 40


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Real scans of five digits as PNGs in one folder, some of their folders with names that need care."""
    root = tmp_path / "my scans"
    data = load_digits()
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for index in np.flatnonzero(data.target == label)[:EACH]:
            grey = np.rint(data.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).save(root / name / f"scan {index}.png")
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A three-block ViT of ours for other classes, as the backbone stage saves one."""
    sizes = SmallVit(patch_size=4, depth=3, heads=2, width=64, mlp_width=64)
    torch.manual_seed(0)
    model = VisionTransformer(architecture(sizes, 8), num_classes=7, attention="flash", qkv="separate")
    path = tmp_path / "weights" / "backbone.safetensors"
    views = {"image_size": 8, "eval_resize": 8, "train_resize": 8, "mean": [0.305] * 3, "std": [0.376] * 3}
    card = {"profile": "earlier", "backbone": {"architecture": sizes.model_dump()}, "views": views, "class_names": list("abcdefg")}
    save_state(model.state_dict(), path, card)
    return path


@pytest.mark.data
@pytest.mark.timeout(900)
def test_a_folder_of_scans_and_weights_of_ours_become_a_page(tmp_path: Path, digits: Path, weights: Path) -> None:
    project = make_project(tmp_path / "project")
    command = ["new-profile", "mine", "--data", str(digits), "--backbone", str(weights), "--device", "cpu"]
    made = subprocess.run(
        [sys.executable, "-m", "lowbit_vit", *command], cwd=project, env=environment(project), capture_output=True, text=True, check=True
    )
    assert "5 classes; images: train 120, val 20, test 60" in made.stdout
    # Fewer arms, epochs and samples than a new profile asks for: only the waiting gets less.
    profile = project / "profiles" / "mine.yaml"
    left_out = ("8-bit + SDPA", "fp32 after training", "int8 after training")
    lines = [line for line in profile.read_text().splitlines() if not any(arm in line for arm in left_out)]
    profile.write_text("\n".join(lines).replace("samples: 200 ", "samples: 10 ").replace("epochs: 5", "epochs: 1"))
    commit(project, "my profile")

    dvc(project, "repro", "report@mine")

    reports = project / "reports" / "mine"
    for study in STUDIES:
        records = read_records(reports / "records" / study)
        assert records
        assert {record.status for record in records} == {"success"}
    _, card = load_state(project / "checkpoints" / "mine" / "backbone.safetensors")
    assert (card["head"], card["class_names"]) == ("new", sorted(NAMES))
    split = pl.read_csv(project / "data" / "prepared" / "mine" / "split.csv")
    assert split.height == len(NAMES) * EACH
    named = pl.read_csv(reports / "tables" / "classes.csv")
    assert set(named["class"]) == set(NAMES)
    assert named.filter(pl.col("arm") == "4-bit + SDPA")["images"].to_list() == [12] * len(NAMES)
    assert json.loads((reports / "metrics.json").read_text())
    assert (reports / "report.html").stat().st_size > 100_000
    status = dvc(project, "status", "report@mine")
    assert "up to date" in status.stdout
