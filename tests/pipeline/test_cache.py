"""Records are kept up to date where they lie; whatever way DVC brought them there, its cache keeps what it promised."""

import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml

import projects

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]


def damaged(project: Path) -> list[str]:
    """Objects of the cache whose content is not what their name says."""
    objects = [path for path in (project / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.is_file()]
    assert len(objects) > 20
    return [
        str(path) for path in objects if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name.removesuffix(".dir")
    ]


def run(project: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=project, env=projects.environment(project), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", ["reflink,copy", "hardlink"])
def test_changing_and_pruning_records_never_changes_the_cache(project: Path, link: str) -> None:
    projects.dvc(project, "config", "--local", "cache.type", link)
    projects.dvc(project, "checkout", "--relink", "--with-deps", "report@tiny")
    records = project / "reports" / "tiny" / "records" / "variants"
    before = {path: path.read_bytes() for path in records.iterdir()}
    assert len(before) == 4

    # One arm is renamed, so its record is written again; the other leaves the study, so its record goes.
    profile = project / "profiles" / "tiny.yaml"
    settings = yaml.safe_load(profile.read_text(encoding="utf-8"))
    settings["variants"]["arms"] = [{**settings["variants"]["arms"][0], "label": "renamed"}]
    profile.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    run(project, "lowbit-vit", "variants", "tiny")
    run(project, "lowbit-vit", "report", "tiny")

    after = {path: path.read_bytes() for path in records.iterdir()}
    assert len(after) == 2
    changed = [path for path, content in after.items() if content != before[path]]
    assert [path.suffix for path in changed] == [".json"]
    assert b'"renamed"' in changed[0].read_bytes()
    assert not damaged(project)

    # Back to what was committed, from the cache.
    projects.git(project, "checkout", "-q", "profiles/tiny.yaml")
    projects.dvc(project, "checkout", "--force", "--with-deps", "report@tiny")
    assert {path: path.read_bytes() for path in records.iterdir()} == before
