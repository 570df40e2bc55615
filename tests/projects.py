"""A copy of this project in a git repository of its own, with the profile `tiny` (tests/tiny.yaml), and DVC run in it.

For tests that run the pipeline as a user does: real git, real DVC, the real command line from the copy's own sources.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
_WHO = ("-c", "user.name=reader", "-c", "user.email=reader@example.org")
_NOT_NEEDED = ("reports/", "benchmarks/", ".ci/", ".gpu/")


def make_project(folder: Path) -> Path:
    """Copy what git would give a user, changes that are not committed included, add `tiny`, and commit; returns `folder`."""
    listed = _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if name != "dvc.lock" and not name.startswith(_NOT_NEEDED) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy2(ROOT / "tests" / "tiny.yaml", folder / "profiles" / "tiny.yaml")
    starts = yaml.safe_load((folder / "stages.yaml").read_text(encoding="utf-8"))
    starts["profiles"]["tiny"] = starts["profiles"]["demo"]
    (folder / "stages.yaml").write_text(yaml.safe_dump(starts, sort_keys=False, width=200), encoding="utf-8")
    pipeline = (folder / "dvc.yaml").read_text(encoding="utf-8")
    drawn = "        reports/demo/tables/kernel_classes.csv: row\n"
    assert drawn in pipeline
    pipeline = pipeline.replace(drawn, drawn + drawn.replace("demo", "tiny"))
    (folder / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "as cloned")
    return folder


def clone_first(project: Path, folder: Path) -> Path:
    """A clone of such a copy at its first commit: what `make_project` made, before anything was run; returns `folder`."""
    _output("git", "clone", "-q", str(project), str(folder), cwd=project)
    git(folder, "reset", "-q", "--hard", git(folder, "rev-list", "--max-parents=0", "HEAD").strip())
    return folder


def git(project: Path, *arguments: str) -> str:
    """Run git in the copy; returns stdout, raises with stderr in the message."""
    return _output("git", *_WHO, *arguments, cwd=project)


def commit(project: Path, message: str) -> str:
    """Commit everything that git does not ignore; returns the revision."""
    git(project, "add", "-A")
    git(project, "commit", "-q", "--no-verify", "--allow-empty", "-m", message)
    return git(project, "rev-parse", "HEAD").strip()


def environment(project: Path) -> dict[str, str]:
    """This environment's programs first on PATH, the copy's own sources before any installed, one thread, no telemetry."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project / "src"),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(project / ".dvc" / "tmp" / "site"),  # else /var/tmp/dvc keeps a folder for each copy
        "HF_HUB_OFFLINE": "1",
        "GIT_AUTHOR_NAME": "reader",
        "GIT_AUTHOR_EMAIL": "reader@example.org",
        "GIT_COMMITTER_NAME": "reader",
        "GIT_COMMITTER_EMAIL": "reader@example.org",
    }


def dvc(project: Path, *arguments: str, check: bool = True, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run dvc in the copy as a user would, `variables` added to `environment`; with `check`, a failure raises with its output."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        env=environment(project) | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or not check, f"dvc {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done


def _output(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
