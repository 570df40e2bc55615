"""A backbone gets a version by a git tag in gto's form, and that version can be had again when the files here have moved on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import projects

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]


def test_a_registered_version_brings_its_own_bytes(project: Path, tmp_path: Path) -> None:
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    shipped = yaml.safe_dump(pipeline["artifacts"]["demo-backbone"])
    pipeline["artifacts"]["tiny-backbone"] = yaml.safe_load(shipped.replace("demo", "tiny"))
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    projects.commit(project, "a name for tiny's backbone")
    gto = [str(Path(sys.executable).with_name("gto")), "register", "tiny-backbone", "--version", "v1.0.0"]
    subprocess.run(gto, cwd=project, env=projects.environment(project), capture_output=True, text=True, check=True)
    assert projects.git(project, "tag").split() == ["tiny-backbone@v1.0.0"]

    weights = project / "checkpoints" / "tiny" / "backbone.safetensors"
    registered = weights.read_bytes()
    weights.write_bytes(b"of a later run")
    out = tmp_path / "v1.safetensors"
    projects.dvc(project, "artifacts", "get", str(project), "tiny-backbone", "--rev", "v1.0.0", "--out", str(out))
    assert out.read_bytes() == registered


def test_the_list_of_weights_says_what_was_damaged_and_ends_with_its_code(project: Path) -> None:
    program = [str(Path(sys.executable).with_name("lowbit-vit")), "checkpoints", "tiny"]

    def listed() -> subprocess.CompletedProcess[str]:
        return subprocess.run(program, cwd=project, env=projects.environment(project), capture_output=True, text=True, check=False)

    whole = listed()
    assert whole.returncode == 0, whole.stderr
    assert len(re.findall(r"\bpresent\b", whole.stdout)) == 3
    weights = project / "checkpoints" / "tiny" / "adapted-seed0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = listed()
    assert damaged.returncode == 3
    assert "checkpoints/tiny/adapted-seed0.safetensors: sha256 is " in damaged.stderr
