"""The command line as a user meets it: help with examples, one-line errors, exit codes."""

import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import synthetic
from command_line import call
from lowbit_vit.errors import ConfigError

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
        (["show", "../demo"], 2, "PROFILE ../demo: a path; give the name of a file in profiles/"),
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


@pytest.mark.parametrize("verb", ["config", "doctor", "data", "variants", "checkpoints", "report"])
def test_no_control_character_of_a_name_reaches_the_terminal(verb: str) -> None:
    run = call(verb, "\x1b[31mred\n\u202e\udce9")
    assert run.returncode == 2
    assert run.stderr.startswith("lowbit-vit: ")
    assert r"profiles/\x1b[31mred\n\u202e\xe9.yaml: no such profile" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_library_has_no_word_and_what_is_said_no_control_character(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(_: Path) -> str:
        logging.getLogger("lowbit_vit.data.download").warning("%s: fetched", "\x1b[2Jphotos")
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward: pip install kernels")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("Corrupt EXIF data. Expecting to read 4 bytes", UserWarning, stacklevel=1)
        return "\x1b]0;title\x07\tname"

    monkeypatch.setattr("lowbit_vit.data.download.fetch_flowers", noisy)
    run = call("fetch", "flowers-102")
    assert (run.returncode, run.stdout) == (0, "\\x1b]0;title\\x07\tname\n")
    assert run.stderr.split() == ["WARNING", r"\x1b[2Jphotos:", "fetched"]


@pytest.mark.parametrize(
    ("variables", "codes"),
    [({"TERM": "xterm"}, {"1", "0", "32", "33"}), ({"TERM": "xterm", "NO_COLOR": "1"}, {"1", "0"}), ({"TERM": "dumb"}, set())],
)
def test_a_terminal_is_sent_what_it_is_said_to_understand(
    variables: dict[str, str], codes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = call("doctor", "demo", terminal=True).stdout
    assert set(re.findall(r"\x1b\[(\d+)m", shown)) <= codes
    assert bool(codes) == ("\x1b" in shown)
    assert shown.count("\x1b") == len(re.findall(r"\x1b\[[\d;]+m", shown))


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lowbit_vit", "config", "demo"]
    run = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


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


@pytest.mark.parametrize("place", ["data", "data/prepared", "data/prepared/demo"])
def test_a_place_that_cannot_be_used_is_one_line_that_names_it(tmp_path: Path, place: str) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("a file where a folder belongs")
    run = call("data", "demo", "--root", str(tmp_path))
    assert run.returncode == 3
    assert run.stderr.splitlines()[-1].startswith(f"lowbit-vit: {tmp_path / place}")
    assert "Traceback" not in run.stderr


def test_in_a_stage_of_dvc_a_linked_output_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("DVC_STAGE", "data@demo")
    run = call("data", "demo", "--root", str(tmp_path))
    assert run.returncode == 3
    assert "checkpoints: is a link, and DVC keeps no outputs outside of the project; make it a folder" in run.stderr
    assert not (tmp_path / "data").exists()


def test_files_are_made_for_their_owner_alone_where_the_umask_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    before = os.umask(0o077)
    try:
        assert call("data", "demo", "--root", str(tmp_path)).returncode == 0
    finally:
        os.umask(before)
    assert (tmp_path / "data" / "prepared" / "demo").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("home", [None, "a name in passwd"])
def test_a_user_without_a_home_is_told_to_set_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None) -> None:
    def look_for_home(*_: object) -> None:
        Path.home()  # as Ray, altair and platformdirs do when they are imported
        raise ConfigError("found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("lowbit_vit.cli.project.open_profile", look_for_home)
    if home is None:
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    run = call("config", "demo")
    assert run.returncode == (4 if home is None else 2)
    said = f"user {os.getuid()} has no home folder; set HOME to a folder that can be written to" if home is None else "found"
    assert run.stderr == f"lowbit-vit: {said}\n"
