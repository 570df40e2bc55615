"""The command line as a user meets it: help with examples, one-line errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

import synthetic
from command_line import call

ROOT = Path(__file__).parents[1]
VERBS = [
    "data",
    "fetch",
    "new-profile",
    "backbone",
    "variants",
    "sensitivity",
    "estimate",
    "allocate",
    "export",
    "predict",
    "mixed",
    "sweep",
    "report",
    "pack",
    "show",
    "audit",
    "compare",
    "check",
    "checkpoints",
    "config",
    "doctor",
    "trial",
    "scan",
]


def lowbit_vit(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lowbit_vit", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_lists_every_verb_and_the_exit_codes() -> None:
    shown = lowbit_vit("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert f" {verb} " in shown.stdout
    assert "Exit codes: 0 done" in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_an_example(verb: str) -> None:
    shown = call(verb, "--help")
    assert shown.returncode == 0
    assert f"lowbit-vit {verb}" in shown.stdout.partition("Example: ")[2]


def test_config_prints_the_resolved_profile_and_marks_what_is_ours() -> None:
    shown = call("config", "paper")
    assert shown.returncode == 0
    assert 'architecture: "vit_l_16"' in shown.stdout
    rank = next(line for line in shown.stdout.splitlines() if "rank:" in line)
    assert "ours: " in rank


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["config", "nothing"], 2, "there are: demo, paper, scratch"),
        (["fetch", "cifar"], 2, "'cifar' is not known; allowed: flowers-102"),
        (["trial", "nothing.json", "--out", "."], 2, "nothing.json: no such trial file"),
        (["export", "demo", "nothing.json", "out"], 2, "nothing.json: no such plan; lowbit-vit allocate writes one"),
        (["predict", "nowhere", "image.png"], 3, "nowhere/model.json: no exported model there"),
        (["scan", "nothing.json", "--out", "."], 2, "nothing.json: no such file of trials"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_with_its_exit_code(arguments: list[str], code: int, said: str) -> None:
    # Those two end with the process that started them: they get one of their own.
    run = lowbit_vit(*arguments) if arguments[0] in ("trial", "scan") else call(*arguments)
    assert run.returncode == code
    assert run.stdout == ""
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lowbit-vit: ")
    assert said in lines[0]


def test_show_without_records_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "demo.yaml").write_text((ROOT / "profiles" / "demo.yaml").read_text())
    run = lowbit_vit("show", "demo", cwd=tmp_path)
    assert run.returncode == 3
    assert "run dvc repro report@demo first" in run.stderr


def test_reports_are_read_from_the_folder_that_is_named(tmp_path: Path) -> None:
    _, run = synthetic.fill(tmp_path / "run", studies=("variants",))
    (tmp_path / "empty" / "profiles").mkdir(parents=True)
    (tmp_path / "empty" / "profiles" / "demo.yaml").write_text((ROOT / "profiles" / "demo.yaml").read_text())
    assert call("show", "demo", cwd=tmp_path / "empty").returncode == 3
    shown = call("show", "demo", "--markdown", "--reports", str(run.reports), cwd=tmp_path / "empty")
    assert shown.returncode == 0
    assert "| 4-bit + SDPA |" in shown.stdout
