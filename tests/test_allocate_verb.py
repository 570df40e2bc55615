"""The verbs `allocate` and `recommend` on studies that were run: with and without estimates, with and without a budget."""

import json
import re
import shutil
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.cli import plans
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.allocation import load_plan_files
from lowbit_vit.schema.config import STUDIES, Study
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


def recommended(root: Path, studies: tuple[Study, ...], capsys: pytest.CaptureFixture[str], **options: object) -> list[str]:
    _, workspace = synthetic.fill(root, studies=studies)
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.root / "profiles")
    plans.recommend("demo", root=workspace.root, **options)  # type: ignore[arg-type]  # options of the verb
    return capsys.readouterr().out.splitlines()


def test_a_recommendation_is_one_sentence_its_evidence_and_a_command_that_finds_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = recommended(tmp_path / "root", STUDIES, capsys, budget_mib=0.3)
    assert re.fullmatch(r".* in blocks? .* elsewhere: 0\.\d\d MiB, \d\.\d % of predictions change \(.*\), \d\.\d\dx slower \(.*\)", first)
    assert [line.split(":")[0] for line in others] == ["  Chosen", "  Reported", "  Export"]
    assert "lowbit-vit export demo plans/demo-mib-0.3.json exported" in others[-1]
    assert (tmp_path / "root" / "plans" / "demo-mib-0.3.json").is_file()


@pytest.mark.parametrize("options", [{}, {"budget_mib": 0.5}, {"max_flips": 30}, {"budget_ms": 20}])
def test_without_mixed_precision_it_is_one_of_the_arms_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, float]
) -> None:
    first, *others = recommended(tmp_path / "root", ("variants",), capsys, **options)
    assert " in all blocks" in first
    assert others[-1] == "  Mixed precision: was not measured; lowbit-vit sensitivity demo does, then lowbit-vit mixed demo"
    assert not (tmp_path / "root" / "plans").exists()


def test_without_records_the_command_that_makes_them_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"recommend: nothing yet: .*lowbit-vit variants demo"):
        recommended(tmp_path / "root", (), capsys)


def test_an_option_that_has_nothing_to_act_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--units, --format and --pairs need a budget and the sensitivity study"):
        recommended(tmp_path / "root", ("variants",), capsys, budget_mib=0.5, formats=["nf4"])
