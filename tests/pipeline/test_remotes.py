"""What a run made goes to a remote and comes back in another clone, whole or not at all, and no secret goes with it."""

import configparser
import hashlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import projects
from remote_storage import KINDS, Storage

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    with KINDS[request.param](tmp_path / "store") as place:
        yield place


def add_remote(project: Path, storage: Storage) -> None:
    """What the commands of docs/dvc.md write: a remote of this clone alone, that checks what comes in."""
    settings = {"url": storage.url, "verify": "true", **storage.options}
    lines = ["[core]", "remote = lab", "['remote \"lab\"']", *(f"{key} = {value}" for key, value in settings.items())]
    (project / ".dvc" / "config.local").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clone(project: Path, folder: Path, storage: Storage) -> Path:
    projects.git(project, "clone", "-q", str(project), str(folder))
    add_remote(folder, storage)
    return folder


def outs(project: Path) -> dict[str, str]:
    """Path -> md5 of all outs, from dvc.lock."""
    lock = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def file_md5(project: Path, folder: str, name: str) -> str:
    """md5 of one file in a folder that is an out, from the folder's listing in the cache."""
    listing = outs(project)[folder].removesuffix(".dir")
    entries = json.loads((project / ".dvc" / "cache" / "files" / "md5" / listing[:2] / f"{listing[2:]}.dir").read_text(encoding="utf-8"))
    return str(next(entry["md5"] for entry in entries if entry["relpath"] == name))


def contents(project: Path) -> dict[str, bytes]:
    folders = [project / "data" / "prepared", project / "checkpoints", project / "reports"]
    made = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    # A run's own locks and output stay where it ran.
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in made
        if path.suffix != ".lock" and path.name != ".lock" and "logs" not in path.parts
    }


def without_the_program(folder: Path) -> dict[str, str]:
    """An environment in which `lowbit-vit`, whatever it is asked, fails: nothing can be run in place of what was pulled."""
    folder.mkdir()
    program = folder / "lowbit-vit"
    program.write_text("#!/bin/sh\necho started: lowbit-vit $* >&2\nexit 99\n", encoding="utf-8")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{projects.environment(folder)['PATH']}"}


def test_a_damaged_object_is_named_and_replaced_and_a_second_clone_restores_all_without_a_trial(
    project: Path, storage: Storage, tmp_path: Path
) -> None:
    add_remote(project, storage)
    projects.dvc(project, "push", variables=storage.variables)
    md5 = file_md5(project, "checkpoints/tiny", "backbone.safetensors")
    good = storage.read(md5)
    assert hashlib.md5(good).hexdigest() == md5
    storage.write(md5, good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])

    second = clone(project, tmp_path / "second", storage)
    assert not contents(second)
    pulled = projects.dvc(second, "pull", "--with-deps", "report@tiny", check=False, variables=storage.variables)
    assert pulled.returncode != 0
    assert "checkpoints/tiny" in pulled.stderr
    assert not (second / "checkpoints" / "tiny" / "backbone.safetensors").exists(), "nothing of it is left to be used"
    status = projects.dvc(second, "data", "status", "--granular", "--json")
    assert json.loads(status.stdout)["not_in_cache"] == ["checkpoints/tiny/backbone.safetensors"]

    # What docs/dvc.md says to do: delete the object and its folder's listing, push from a clone that has them, pull again.
    storage.delete(md5)
    storage.delete(outs(project)["checkpoints/tiny"])
    projects.dvc(project, "push", variables=storage.variables)
    nothing = without_the_program(tmp_path / "bin")
    done = projects.dvc(second, "repro", "--pull", "report@tiny", variables={**storage.variables, **nothing})
    assert "Running stage" not in done.stdout
    assert ("run-cache is not supported for http" in done.stderr) == storage.url.startswith("http"), "it says so, and does without"
    assert contents(second) == contents(project)
    again = projects.dvc(second, "repro", "report@tiny", variables=nothing)
    assert "Data and pipelines are up to date" in again.stdout
    assert projects.git(second, "status", "--porcelain") == ""


def test_the_commands_of_the_manual_make_a_remote_that_verifies(project: Path) -> None:
    projects.dvc(project, "remote", "add", "--local", "--default", "lab", "https://lab.example.org/dvc")
    projects.dvc(project, "remote", "modify", "--local", "lab", "verify", "true")
    written = configparser.ConfigParser()
    written.read(project / ".dvc" / "config.local", encoding="utf-8")
    assert written["core"]["remote"] == "lab"
    assert written["'remote \"lab\"'"]["verify"] == "true"


def test_a_download_is_not_fetched_where_what_was_made_of_it_can_be_pulled(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    stages = {
        "weights": {"cmd": "test ! -e raw && mkdir raw && echo 1 > raw/w", "outs": [{"raw/w": {"cache": False, "persist": True}}]},
        "backbone": {"cmd": "cp raw/w backbone", "deps": ["raw/w"], "outs": ["backbone"]},
    }
    (first / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    (first / ".gitignore").write_text("/raw\n", encoding="utf-8")
    projects.git(first, "init", "-q", "-b", "main")
    projects.dvc(first, "init", "--quiet")
    projects.dvc(first, "repro", "backbone")
    projects.commit(first, "results")
    with KINDS["folder"](tmp_path / "store") as storage:
        add_remote(first, storage)
        projects.dvc(first, "push")
        second = clone(first, tmp_path / "second", storage)
        done = projects.dvc(second, "repro", "--pull", "backbone")
    assert "Running stage" not in done.stdout
    assert (second / "backbone").read_text(encoding="utf-8") == "1\n"
    assert not (second / "raw").exists()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_without_a_lock_the_run_cache_brings_data_and_backbone_back(kind: str, project: Path, tmp_path: Path) -> None:
    with KINDS[kind](tmp_path / "store") as storage:
        add_remote(project, storage)
        projects.dvc(project, "push", "--run-cache", variables=storage.variables)
        second = clone(project, tmp_path / "second", storage)
        (second / "dvc.lock").unlink()
        nothing = without_the_program(tmp_path / "bin")
        done = projects.dvc(second, "repro", "--pull", "backbone@tiny", variables={**storage.variables, **nothing})
    assert "Stage 'backbone@tiny' is cached" in done.stdout
    made = contents(project)
    assert contents(second) == {name: content for name, content in made.items() if not name.startswith("reports/")}


def test_secrets_stay_in_this_clone(project: Path) -> None:
    secret = secrets.token_hex(20)
    projects.dvc(project, "remote", "add", "--local", "lab", "s3://lab/store")
    projects.dvc(project, "remote", "modify", "--local", "lab", "secret_access_key", secret)
    assert secret in (project / ".dvc" / "config.local").read_text(encoding="utf-8")
    assert projects.git(project, "check-ignore", ".dvc/config.local").strip() == ".dvc/config.local"
    assert projects.git(project, "status", "--porcelain") == ""
    projects.commit(project, "everything that git takes")
    assert secret not in projects.git(project, "log", "-p", "--all")
