"""The house's rules, read from the sources with `ast`: each package imports only from those before it.

A module that is named in a string counts as imported: that is how a module is loaded late, or run by another process. A
failure names the edge: the file and line, and what it imports.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lowbit_vit"
PACKAGES = ("schema", "data", "model", "new_profile", "trial", "recipe", "study", "export", "analysis", "report", "cli")

# Which packages, or which one module, may import a library.
CONFINED = {
    "torch": ("data", "model", "trial", "recipe"),
    "torchvision": ("data", "model", "trial", "recipe"),
    "bitsandbytes": ("model",),
    "peft": ("model",),
    "pooch": ("data/download.py",),
    "ray": ("study/cluster.py", "study/schedule.py"),
    "altair": ("report/figures/",),
    "vl_convert": ("report",),
    "polars": ("analysis", "report"),
    "typer": ("cli",),
}
FOR_ANALYSIS = ("schema", "analysis")
RUNNING = ("data", "model", "new_profile", "trial", "recipe", "study", "export")


class Edge(NamedTuple):
    """One import statement's target, or the module that a string names, as seen from one file."""

    file: str  # relative to the package, such as model/vit.py
    line: int
    target: str  # such as lowbit_vit.schema.plan or torch.nn
    inside_function: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def _edges(path: Path) -> Iterator[Edge]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    file = path.relative_to(SOURCE).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from lowbit_vit import data` is the edge to lowbit_vit.data.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = names if node.module == "lowbit_vit" else ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            named = map(_named_module, re.findall(r"lowbit_vit(?:\.\w+)+", node.value))
            yield from (Edge(file, node.lineno, name, inside_function=False) for name in named if name not in ("", _module(file)))
            continue
        else:
            continue
        yield from (Edge(file, node.lineno, target, id(node) in inner) for target in targets)


def _module(file: str) -> str:
    """lowbit_vit.schema.plan of schema/plan.py."""
    return "lowbit_vit." + file.removesuffix(".py").replace("/", ".")


def _named_module(name: str) -> str:
    """The longest beginning of a dotted name that is a module or package of ours: of lowbit_vit.cli.main it is lowbit_vit.cli; or ''."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or path.is_dir():
            return ".".join(["lowbit_vit", *parts[:length]])
    return ""


def _package(module: str) -> str:
    """`schema` of lowbit_vit.schema.plan or schema/plan.py; `cli` of cli/report.py and __main__.py."""
    parts = module.removeprefix("lowbit_vit.").replace("/", ".").split(".")
    return "cli" if parts[0] == "__main__" else parts[0]


FILES = sorted(SOURCE.rglob("*.py"))
EDGES = [edge for file in FILES for edge in _edges(file)]
OURS = [edge for edge in EDGES if edge.target.split(".")[0] == "lowbit_vit"]


def _show(edges: list[Edge]) -> str:
    return "\n".join(map(str, edges))


def test_every_module_lies_in_a_known_package() -> None:
    found = {_package(file.relative_to(SOURCE).as_posix()) for file in FILES}
    assert found - {"__init__", "errors"} <= set(PACKAGES)


def test_packages_import_only_from_those_before_them() -> None:
    wrong = []
    for edge in OURS:
        source, target = _package(edge.file), _package(edge.target)
        if target in ("errors", "__version__") or source == target:
            continue
        if source == "__init__":  # the library's face: its functions load what they need by name
            continue
        if source not in PACKAGES or target not in PACKAGES or PACKAGES.index(target) >= PACKAGES.index(source):
            wrong.append(edge)
    assert not wrong, f"against {' -> '.join(PACKAGES)}:\n{_show(wrong)}"


def test_modules_of_one_package_do_not_import_in_a_circle() -> None:
    ahead: dict[str, set[str]] = {}
    for edge in OURS:
        ahead.setdefault(_module(edge.file), set()).add(edge.target)

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        for target in sorted(ahead.get(name, ())):
            walk(target, (*trail, name))

    for name in sorted(ahead):
        walk(name, ())


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library: str) -> None:
    def allowed(file: str) -> bool:
        places = CONFINED[library]
        return any(file.startswith(place) if "/" in place else _package(file) == place for place in places)

    wrong = [edge for edge in EDGES if edge.target.split(".")[0] == library and not allowed(edge.file)]
    assert not wrong, f"{library} belongs in {', '.join(CONFINED[library])}:\n{_show(wrong)}"


def test_analysis_reads_records_alone() -> None:
    wrong = [edge for edge in OURS if _package(edge.file) == "analysis" and _package(edge.target) not in (*FOR_ANALYSIS, "errors")]
    assert not wrong, f"analysis imports schema only:\n{_show(wrong)}"


def test_report_never_reaches_what_runs_trials() -> None:
    wrong = [edge for edge in OURS if _package(edge.file) == "report" and _package(edge.target) in RUNNING]
    assert not wrong, f"the report is built from records where there is no torch:\n{_show(wrong)}"


def test_imports_stand_at_the_top_of_the_file() -> None:
    wrong = [edge for edge in EDGES if edge.inside_function and not edge.file.startswith("cli/")]
    assert not wrong, f"only cli/ imports inside functions:\n{_show(wrong)}"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [file.name for file in FILES if file.stem in ("utils", "util", "helpers", "helper", "base", "common", "misc")]


def test_every_test_file_mirrors_a_module() -> None:
    tests = Path(__file__).parent
    names = [file.name for file in tests.rglob("test_*.py")]
    assert len(names) == len(set(names)), "test file names must be unique"
    for file in tests.rglob("test_*.py"):
        folder = file.parent.relative_to(tests)
        if folder.parts and folder.parts[0] in PACKAGES:
            assert (SOURCE / folder).is_dir(), f"{file} mirrors no package"
