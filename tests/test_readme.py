"""The README's commands work as they stand.

Every shell block carries a mark after `sh`:

- `sh test`: run here, line by line, in a fresh copy of the project, with the environment's programs on PATH; `sh test 1`: they exit with 1;
- `sh ci`: run by .ci/run in a fresh clone, because it installs or takes minutes;
- `sh manual`: needs a GPU, a download or hours, and is run by hand.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MARKS = ("test", "test 1", "ci", "manual")
SECONDS = 240  # one command
ACTIVATE = "source .tox/main/bin/activate"  # the tests run in that environment already


class Block(NamedTuple):
    """One fenced shell block."""

    line: int
    mark: str
    commands: tuple[str, ...]


def _blocks() -> Iterator[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for found in re.finditer(r"^```sh *(.*)\n((?:.*\n)*?)```", text, re.MULTILINE):
        body = found[2].replace("\\\n", " ")
        lines = (re.sub(r"\s+# .*", "", line).strip() for line in body.splitlines())
        commands = tuple(line for line in lines if line and not line.startswith("#"))
        yield Block(text.count("\n", 0, found.start()) + 1, found[1].strip(), commands)


BLOCKS = list(_blocks())
TESTED = [block for block in BLOCKS if block.mark.startswith("test")]
TYPED = [(command, 1 if block.mark == "test 1" else 0) for block in TESTED for command in block.commands if command != ACTIVATE]


def test_every_shell_block_says_who_runs_it() -> None:
    assert not [f"README.md:{block.line}: {block.mark!r}" for block in BLOCKS if block.mark not in MARKS]
    assert TESTED, "README.md has no block marked `sh test`"


def test_ci_runs_the_blocks_that_are_left_to_it() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    left = [command for block in BLOCKS if block.mark == "ci" for command in block.commands]
    assert left
    assert not [command for command in left if command not in script]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would give a user, with the changes that are not committed yet, as a clone with one commit."""
    folder = tmp_path_factory.mktemp("readme") / "lowbit-vit"
    git = shutil.which("git")
    assert git is not None, "git is not on PATH"
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    who = ["-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "--no-verify", "-m", "as cloned"]):
        subprocess.run([git, *arguments], cwd=folder, check=True)
    return folder


@pytest.mark.readme
@pytest.mark.timeout(SECONDS + 10)
@pytest.mark.parametrize(("command", "code"), TYPED, ids=[command for command, _ in TYPED])
def test_command_runs_as_it_stands(command: str, code: int, project: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    typed = ["bash", "-c", command.replace(".tox/main/bin/", "")]
    done = subprocess.run(typed, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == code, f"$ {command}\n{done.stdout}\n{done.stderr}"
