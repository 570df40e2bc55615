"""data/dvc.lock knows the downloads before anyone has them: DVC itself names a file that differs, and a right one is clean."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from lowbit_vit.data.remote_files import FLOWERS

ROOT = Path(__file__).parents[2]
COPIES = ROOT.parent / "shared" / "flowers-102" / "train-val.tar"
STAGE = "data/dvc.yaml:flowers-102"
PATHS = {file.name: f"data/raw/flowers-102/{file.name}" for file in FLOWERS}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repo]:
    """A repository with the committed stage and its lock, and without a single download."""
    root = tmp_path / "project"
    (root / "data" / "raw" / "flowers-102").mkdir(parents=True)
    for name in ("dvc.yaml", "dvc.lock"):
        shutil.copy(ROOT / "data" / name, root / "data" / name)
    (root / ".gitignore").write_text("/data/raw/\n")

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    monkeypatch.chdir(root)  # DVC shows paths as seen from here
    git("init", "--quiet")
    with Repo.init(str(root)) as repo:
        git("add", "--all")
        git("commit", "--quiet", "--message", "downloads are known, none is here")
        yield repo


def changes(repo: Repo) -> dict[str, str]:
    """What `dvc status` says of each output."""
    found: dict[str, str] = {}
    status: dict[str, list[Any]] = repo.status(STAGE)
    for part in status.get(STAGE, []):
        found |= part.get("changed outs", {})
    return found


def test_before_any_download_every_file_is_known_and_missing(project: Repo) -> None:
    assert changes(project) == dict.fromkeys(PATHS.values(), "deleted")


@pytest.mark.parametrize("name", PATHS)
def test_another_file_is_named_by_status(project: Repo, name: str) -> None:
    Path(PATHS[name]).write_bytes(b"another")
    assert changes(project) == dict.fromkeys(PATHS.values(), "deleted") | {PATHS[name]: "modified"}


def test_another_file_that_is_accepted_shows_as_a_diff_of_the_lock(project: Repo) -> None:
    for file in FLOWERS:
        Path(PATHS[file.name]).write_bytes(file.name.encode())
    project.commit(STAGE, force=True)
    diff = subprocess.run(["git", "diff", "--unified=0", "data/dvc.lock"], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in diff.splitlines()]
    for file in FLOWERS:
        assert ["-", "md5:", file.md5] in lines
        assert ["-", "size:", str(file.size)] in lines


def test_the_official_files_are_no_change(project: Repo) -> None:
    if not COPIES.is_file():
        pytest.skip("no Flowers-102 images in ../shared/flowers-102")
    with tarfile.open(COPIES) as tar:
        for name in ("imagelabels.mat", "setid.mat"):
            tar.extract(f"flowers-102/{name}", "data/raw", filter="data")
    assert changes(project) == {PATHS["102flowers.tgz"]: "deleted"}
