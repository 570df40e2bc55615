"""A node has exactly the submitter's files, by their hash, fetches each once, keeps within its bound and clears up after the dead."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.node_files import CACHE, CACHE_GIB, NodeFile, list_files, node_workspace, read_pieces

ProfileOf = Callable[..., Profile]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Submitter:
    """Gives files by their path and counts what it gave."""

    def __init__(self, root: Path) -> None:
        self.root, self.given = root, list[str]()

    def __call__(self, file: NodeFile) -> Iterator[bytes]:
        self.given.append(file.path)
        yield from read_pieces(self.root / file.path)


def files_of(workspace: Workspace, profile: Profile) -> tuple[NodeFile, ...]:
    return list_files(workspace, cells(profile, "variants"))


def test_a_unit_has_the_submitters_files_and_a_second_one_fetches_nothing(workspace: Workspace, profile_of: ProfileOf, cache: Path) -> None:
    workspace.data.mkdir(parents=True)
    (workspace.data / "labels.json").write_text("[]")
    files = files_of(workspace, profile_of("finish"))
    submitter = Submitter(workspace.root)
    for _ in range(2):
        with node_workspace("demo", files, submitter) as there:
            assert there.root != workspace.root
            for file in files:
                assert (there.root / file.path).read_bytes() == (workspace.root / file.path).read_bytes()
        assert not there.root.exists()
    assert sorted(submitter.given) == sorted(file.path for file in files)
    # No arm starts from adapted weights, so they stay at home.
    assert not [file for file in files if file.path.endswith("adapted-seed0.safetensors")]


@pytest.mark.parametrize("damage", ["at the submitter", "in the cache"])
def test_a_damaged_file_never_reaches_a_trial(damage: str, workspace: Workspace, profile_of: ProfileOf, cache: Path) -> None:
    files = files_of(workspace, profile_of("finish"))
    submitter = Submitter(workspace.root)
    if damage == "at the submitter":
        workspace.backbone.write_bytes(b"flipped")
        wrong = pytest.raises(DataError, match=r"^checkpoints/demo/backbone\.safetensors: sha256 \w+ arrived, \w+ expected")
        with wrong, node_workspace("demo", files, submitter):
            pass
        assert not list((cache / "units").iterdir())
        return
    with node_workspace("demo", files, submitter):
        pass
    held = cache / "objects" / sha256(workspace.backbone.read_bytes())
    held.chmod(0o644)
    held.write_bytes(b"flipped by the disk")
    with node_workspace("demo", files, submitter) as there:
        assert there.backbone.read_bytes() == workspace.backbone.read_bytes()
    assert submitter.given.count("checkpoints/demo/backbone.safetensors") == 2


def test_the_cache_drops_what_was_used_longest_ago_and_never_what_a_unit_needs(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_GIB, str(2500 / 2**30))
    submitter = Submitter(tmp_path)
    files = []
    for name in ("one", "two", "three"):
        (tmp_path / name).write_bytes(name.encode() * (1000 // len(name)))
        files.append(NodeFile(path=name, sha256=sha256((tmp_path / name).read_bytes()), size=1000))
    one, two, three = files
    for wanted in ([one], [two], [one], [three]):
        with node_workspace("demo", wanted, submitter):
            pass
    assert {path.name for path in (cache / "objects").glob("[!.]*")} == {one.sha256, three.sha256}
    with node_workspace("demo", files, submitter) as there:  # larger than the bound
        assert all((there.root / file.path).exists() for file in files)


def _die_inside(files: tuple[NodeFile, ...], root: Path) -> None:
    with node_workspace("demo", files, Submitter(root)):
        os._exit(9)


def test_what_a_killed_worker_left_is_cleared_by_the_next_and_what_is_in_use_is_not(
    workspace: Workspace, profile_of: ProfileOf, cache: Path
) -> None:
    files = files_of(workspace, profile_of("finish"))
    killed = multiprocessing.get_context("fork").Process(target=_die_inside, args=(files, workspace.root))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    (left,) = (cache / "units").iterdir()
    (cache / "objects" / ".half-fetched").write_bytes(b"x")
    with node_workspace("demo", files, Submitter(workspace.root)) as first:
        assert not left.exists()
        assert not (cache / "objects" / ".half-fetched").exists()
        with node_workspace("demo", files, Submitter(workspace.root)):
            assert first.backbone.exists()
    shutil.rmtree(cache)
