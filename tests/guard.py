"""Compare what the verbs print for the committed references, at a commit and in this tree.

Each verb that reads records (and `audit`) runs on each reference twice: with the sources, profiles and records of the
base commit, and with those of the tree that this file lies in. What it prints, its exit code and the files that it writes
are compared line by line; figures are left out, of the page only the text is compared. Prints unified differences, then
one line for each verb and reference. Exit code 1: something differs. Both run in this interpreter's environment, which must have
what the base needs as well: pip install statsmodels.

    python tests/guard.py                                     # all of it, some five minutes on two cores
    python tests/guard.py --verbs show claims --references cpu-2026-11 --digits 12
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parents[1]
BASE = "ed99591"  # the end of the first edition
REFERENCES = {  # as the base names them: their profiles
    "cpu-2026-11": "demo",
    "h100-2026-11-plans": "scratch",
    "h200-2026-11": "scratch",
    "h200-2026-11-fast": "scratch",
}
# Where the tree keeps a reference under another name; it is shown to the verbs under the base's.
MOVED: dict[str, str] = {"cpu-2026-11": "cpu", "h100-2026-11-plans": "h100", "h200-2026-11": "h200", "h200-2026-11-fast": "h200-fast"}
PAPER = "paper/table1.csv"  # `audit` reads no reference
# What of a reference is read, not made: `report` and `allocate` write the rest anew.
READ = ("records", "records.parquet", "backbone.json", "sensitivity.json", "estimates.json")
BUDGETS = {"demo": ("0.3", "10"), "scratch": ("200", "20")}  # MiB and ms


def _show(_: str, profile: str) -> list[list[str]]:
    return [["show", profile], ["show", profile, "--markdown"]]


def _claims(_: str, profile: str) -> list[list[str]]:
    return [["claims", profile], ["claims", profile, "--markdown"], ["claims", profile, "--json"]]


def _compare(reference: str, _: str) -> list[list[str]]:
    names = list(REFERENCES)
    others = [names[(names.index(reference) + 1) % len(names)], "h200-2026-11"]
    pairs = [["compare", f"reports/reference/{reference}", f"reports/reference/{other}"] for other in dict.fromkeys(others)]
    return [[*pair, *form] for pair in pairs for form in (["--csv", "out/compare.csv"], ["--markdown"])]


def _check(reference: str, _: str) -> list[list[str]]:
    folder = f"reports/reference/{reference}"
    return [["check", folder, folder, "--csv", "out/check.csv"], ["check", folder, folder, "--markdown"]]


def _audit(file: str, _: str) -> list[list[str]]:
    context = str(Path(file).with_name("context.yaml"))
    forms: tuple[list[str], ...] = ([], ["--markdown"], ["--json"])
    return [["audit", file, *known, *form] for known in ([], ["--context", context]) for form in forms]


def _allocate(_: str, profile: str) -> list[list[str]]:
    mib, ms = BUDGETS[profile]
    asked = (["--max-flips", "20"], ["--budget-mib", mib], ["--budget-ms", ms], ["--budget-mib", mib, "--units", "modules"])
    files = ["--out", "out/plan.json", "--skip-list", "out/skip.json"]
    return [["allocate", profile], *(["allocate", profile, *budget, *files] for budget in asked)]


def _report(_: str, profile: str) -> list[list[str]]:
    return [["report", profile]]


VERBS: dict[str, Callable[[str, str], list[list[str]]]] = {
    "show": _show,
    "claims": _claims,
    "compare": _compare,
    "check": _check,
    "audit": _audit,
    "allocate": _allocate,
    "report": _report,
}


class Task(NamedTuple):
    """One verb on one reference, or on the paper's table."""

    verb: str
    reference: str

    def commands(self) -> list[list[str]]:
        """Arguments of each call."""
        return VERBS[self.verb](self.reference, REFERENCES.get(self.reference, ""))


@dataclass(frozen=True)
class Side:
    """One of the two states of the project.

    Attributes:
        tree: its files.
        work: an empty folder, whose path is as long as the other side's, so that lines wrap alike.
        moved: names of its references where they are not the base's.
    """

    tree: Path
    work: Path
    moved: dict[str, str]

    def output(self, task: Task) -> dict[str, str]:
        """Run the verb in a project folder of its own; returns text by command and by file written."""
        project = self._project(task)
        environment = os.environ | {"PYTHONPATH": str(self.tree / "src"), "NO_COLOR": "1", "COLUMNS": "140", "PYTHONHASHSEED": "0"}
        texts = {}
        for number, arguments in enumerate(task.commands()):
            command = [sys.executable, "-m", "lowbit_vit", *arguments]
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
            said = f"{done.stdout}\nstderr:\n{done.stderr}\nexit code {done.returncode}\n"
            texts[f"$ lowbit-vit {' '.join(arguments)}"] = said.replace(str(project), "PROJECT")
            for file in sorted((project / "out").iterdir()):
                texts[f"{file.name} of command {number + 1}"] = file.read_text(encoding="utf-8")
                file.unlink()
        for file in sorted((project / "reports").rglob("*")):
            written = file.is_file() and not file.is_symlink() and "figures" not in file.parts
            if written:
                text = file.read_text(encoding="utf-8").replace(str(project), "PROJECT")
                texts[str(file.relative_to(project))] = _page_text(text) if file.suffix == ".html" else text
        return texts

    def _project(self, task: Task) -> Path:
        """The tree's folders by links, the references under the base's names, and the task's own as the profile's reports."""
        project = self.work / f"{task.verb}-{Path(task.reference).name}"
        (project / "reports" / "reference").mkdir(parents=True)
        (project / "out").mkdir()
        listed = subprocess.run(["git", "ls-files"], cwd=self.tree, capture_output=True, text=True, check=True).stdout.split()
        for name in sorted({path.split("/")[0] for path in listed} - {"reports"}):
            (project / name).symlink_to(self.tree / name)
        if not (project / PAPER).exists():
            (found,) = self.tree.glob("papers/*/table.csv")
            (project / PAPER).parent.mkdir()
            (project / PAPER).symlink_to(found)
            (project / PAPER).with_name("context.yaml").symlink_to(found.with_name("context.yaml"))
        for name in REFERENCES:
            (project / "reports" / "reference" / name).symlink_to(self._reference(name))
        if task.reference in REFERENCES:
            reports = project / "reports" / REFERENCES[task.reference]
            reports.mkdir()
            for name in READ:
                if (self._reference(task.reference) / name).exists():
                    (reports / name).symlink_to(self._reference(task.reference) / name)
        return project

    def _reference(self, name: str) -> Path:
        return self.tree / "reports" / "reference" / self.moved.get(name, name)


class _Text(HTMLParser):
    """The text of a page: a table's row in one line, no scripts, styles or drawings."""

    LEFT_OUT = ("script", "style", "svg")
    LINES = ("p", "tr", "li", "h1", "h2", "h3", "h4", "div", "section", "summary", "caption", "figcaption", "dt", "dd", "title", "pre")

    def __init__(self) -> None:
        super().__init__()
        self.inside: Counter[str] = Counter()
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.inside[tag] += 1
        self.parts.append("\n" if tag in self.LINES else " | " if tag in ("td", "th") else "")

    def handle_endtag(self, tag: str) -> None:
        self.inside[tag] -= 1
        self.parts.append("\n" if tag in self.LINES else "")

    def handle_data(self, data: str) -> None:
        if not any(self.inside[tag] for tag in self.LEFT_OUT):
            self.parts.append(re.sub(r"\s+", " ", data))


def _page_text(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    lines = (line.strip() for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _lines(text: str, *, digits: int | None) -> list[str]:
    """Lines of a text; a run of spaces or of a table's rule counts as one, so that a wider column is one difference."""
    text = re.sub(r"([ ━─])\1+", r"\1", text)
    if digits is not None:
        text = re.sub(r"\d+\.\d+(e[+-]?\d+)?", lambda number: f"{float(number[0]):.{digits}g}", text)
    return text.splitlines()


def _differences(base: dict[str, str], tree: dict[str, str], *, digits: int | None) -> Iterator[str]:
    for name in dict.fromkeys([*base, *tree]):
        one, two = (_lines(side.get(name, ""), digits=digits) for side in (base, tree))
        yield from difflib.unified_diff(one, two, f"base: {name}", f"tree: {name}", n=1, lineterm="")


@contextmanager
def _checked_out(commit: str, folder: Path) -> Iterator[Path]:
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=TREE, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=TREE, check=True)


def guard(tasks: Sequence[Task], *, base: str, digits: int | None) -> dict[Task, list[str]]:
    """Unified differences by task; an empty list: equal."""
    with tempfile.TemporaryDirectory(prefix="guard-") as made, _checked_out(base, Path(made) / "checkout") as checkout:
        sides = [Side(checkout, Path(made) / "base", {}), Side(TREE, Path(made) / "tree", MOVED)]
        pool = ThreadPoolExecutor(2)
        try:
            found = [(task, [pool.submit(side.output, task) for side in sides]) for task in tasks]
            differences = {}
            for place, (task, (first, second)) in enumerate(found, 1):
                differences[task] = list(_differences(first.result(), second.result(), digits=digits))
                sys.stderr.write(f"{place}/{len(tasks)} {task.verb} {task.reference}\n")
        finally:
            pool.shutdown(cancel_futures=True)
    return differences


def main() -> int:
    """Read the options, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE, metavar="COMMIT", help="default: %(default)s")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    parser.add_argument("--digits", type=int, help="compare decimal numbers to so many significant digits; default: as printed")
    options = parser.parse_args()
    tasks = [Task(verb, file) for verb in options.verbs for file in ([PAPER] if verb == "audit" else options.references)]
    differences = guard(tasks, base=options.base, digits=options.digits)
    for task, lines in differences.items():
        if lines:
            sys.stdout.write("\n".join([f"==== {task.verb} {task.reference}", *lines, ""]) + "\n")
    for task, lines in differences.items():
        changed = sum(line[0] in "+-" and line[:4] not in ("--- ", "+++ ") for line in lines)
        sys.stdout.write(f"{task.verb} {task.reference}: {f'{changed} lines differ' if changed else 'equal'}\n")
    return int(any(differences.values()))


if __name__ == "__main__":
    sys.exit(main())
