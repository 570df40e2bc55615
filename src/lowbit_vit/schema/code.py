"""Which code makes a record: one hash over every module of ours that the process of a trial imports.

A record made by other code is another result, even where the profile is the same: `study.resume` runs such a trial again,
and `analysis.results` puts no two of them into one table. What prepares images or trains the backbone is not in the hash: it
shows in the hashes of the images and of the weights, which a record names as well. No torch: the sources are read, not run.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# A scan gives the same record as a trial alone, so both have the hash of both.
_ENTRIES = ("trial/run.py", "trial/scan.py")
_PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_sha256() -> str:
    """sha256 over the names and bytes of the modules, as this process first saw them; equal for a wheel and a checkout."""
    digest = hashlib.sha256()
    for file in imported_files(_PACKAGE, _ENTRIES):
        content = hashlib.sha256((_PACKAGE / file).read_bytes()).hexdigest()
        digest.update(f"{file} {content}\n".encode())
    return digest.hexdigest()


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


def _imported_modules(source: bytes, package: str) -> Iterator[str]:
    """Dotted names below `package` that may be modules: of `from a.b import c` both a.b and a.b.c."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.startswith(f"{package}."))
