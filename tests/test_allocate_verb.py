"""The verb `allocate` on a study that was run: with and without estimates, with and without a budget."""

import json
import shutil
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.cli import plans
from lowbit_vit.schema.allocation import load_plan_files
from lowbit_vit.schema.workspace import Workspace


def test_plans_are_made_without_estimates_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("sensitivity",))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.root / "profiles")
    plans.allocate("demo", root=workspace.root)
    assert "no plans by gradients: run lowbit-vit estimate demo before" in caplog.text
    assert [plan.name for plan in load_plan_files(workspace.plans, profile="demo")] == ["milp-k2", "milp-k4"]


def test_a_budget_makes_one_file_and_its_skip_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("sensitivity",))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.root / "profiles")
    skip = tmp_path / "skip.json"
    plans.allocate("demo", budget_mib=1.0, formats=["nf4"], skip_list=skip, root=workspace.root)
    assert (workspace.root / "plans" / "demo-mib-1.json").is_file()
    assert "within 1.0000 MiB" in capsys.readouterr().out
    skipped = json.loads(skip.read_text())["llm_int8_skip_modules"]
    assert len(skipped) % 6 == 1  # whole blocks and the classifier
    assert not Workspace(workspace.root, profile.name).plans.exists()
