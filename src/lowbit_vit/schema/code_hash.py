"""Hashes of the code that makes a record: of the modules of this package that the process of a trial imports. No torch.

One hash covers what every trial imports, one what the weight formats of its plan add: an edited kernel changes the hash of those
formats alone. A trial whose record has another hash runs again, and `analysis.results` puts no two codes into one table. Code that
prepares images or trains the backbone is in neither: the record has the hashes of the images and the weights.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from lowbit_vit.schema.plan import FORMATS, Plan
from lowbit_vit.schema.record import Record

# A scan gives the same record as a trial alone, so both have the hash of both.
_ENTRIES = ("trial/run.py", "trial/scan.py")
_PACKAGE = Path(__file__).parents[1]


def code_sha256() -> str:
    """Of the modules that every trial imports; equal for a wheel and a checkout."""
    return _hashes()[""]


def formats_sha256(plan: Plan) -> str | None:
    """Of the modules that the plan's formats add; None: high precision alone, which adds none."""
    names = sorted({rule.weights.format for rule in plan.rules} - {"high"})
    return _sha256(f"{name} {_hashes()[name]}" for name in names) if names else None


def all_code_sha256() -> str:
    """Of all modules that a trial can import: what two machines must have in common to run one study."""
    return _sha256(f"{name} {digest}" for name, digest in _hashes().items())


def is_current(record: Record) -> bool:
    """Whether this code made the record; the formats' hash counts for records with a result only."""
    if record.code_sha256 != code_sha256():
        return False
    return record.status != "success" or record.formats_sha256 == formats_sha256(record.trial.plan)


@functools.cache
def _hashes() -> dict[str, str]:
    """Hash of what every trial imports, under "", and of what each format adds, under its name; read once a process."""
    every = imported_files(_PACKAGE, _ENTRIES)
    added = {name: imported_files(_PACKAGE, [f"model/formats/{name}.py"]) for name in FORMATS}
    files = {"": every} | {name: tuple(file for file in found if file not in every) for name, found in added.items()}
    return {
        name: _sha256(f"{file} {hashlib.sha256((_PACKAGE / file).read_bytes()).hexdigest()}" for file in found)
        for name, found in files.items()
    }


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def imported_files(package: Path, entries: Iterable[str]) -> tuple[str, ...]:
    """The files below `package` that importing the entries imports, themselves included, sorted; all are relative, with `/`.

    Imports inside functions count, and so does the `__init__.py` of every folder on the way.
    """
    found: set[str] = set()
    ahead = ["__init__.py", *entries]
    while ahead:
        file = ahead.pop()
        if file in found:
            continue
        found.add(file)
        ahead += [f"{folder.as_posix()}/__init__.py" for folder in Path(file).parents if folder.name]
        for module in _imported_modules((package / file).read_bytes(), package.name):
            path = module.removeprefix(package.name).replace(".", "/").lstrip("/")
            ahead += [name for name in (f"{path}.py", f"{path}/__init__.py") if (package / name).is_file()]
    return tuple(sorted(found))


@functools.cache
def _imported_modules(source: bytes, package: str) -> tuple[str, ...]:
    """Dotted names below `package` that may be modules: of `from a.b import c` both a.b and a.b.c."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.startswith(f"{package}."))
