"""How often the audit is wrong: on sound tables, and on tables with one fault planted; and how long 1,556 rows take.

    python benchmarks/audit_errors.py [--sound 20000] [--compared 6000] [--planted 1000]

Tables come from audit_tables.py and audit_comparisons.py, each from its own seed. A sound
table must have no hard finding (asked: none) and rarely a doubt (asked:
at most 5 %). A planted fault that the oracle calls decidable must be found (asked: at least 95 %); the others are listed as undecidable.
Seconds are those of the whole command, start of Python included, on tables of 1,556 rows and two columns of rates: one of a public
split, one of a number of images that is searched for; with the processor's seconds, which other work on the machine changes less.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.progress import track

import audit_comparisons
from aside import machine
from audit_tables import FAULTS, IMAGES, Drawn, sound
from lowbit_vit.analysis.audit import Context, Finding, ResultsTable, audit, load_table
from lowbit_vit.errors import DataError

RECORD = Path(__file__).parent / "records" / "audit_errors.json"
ROWS = 1_556
CHUNK = 50
REPEATS = 7
SIZES = ((12, "5 to 12"), (60, "13 to 60"), (300, "100 to 300"), (1_600, "1,600"))


def findings(table: Drawn) -> tuple[Finding, ...]:
    """What the audit says of a table, read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_text(table.csv)
        return audit(load_table(path), Context.model_validate(table.context))


def of_sound(start: int) -> Counter[str]:
    """Counts for the sound tables of seeds from `start` on: tables, hard ones, doubted ones, by rows and by check."""
    counted: Counter[str] = Counter()
    for number in range(start, start + CHUNK):
        table = sound(random.Random(f"sound {number}"))
        try:
            found = findings(table)
        except DataError:
            counted["all|refused"] += 1
            continue
        size = next(name for most, name in SIZES if len(table.rows) <= most)
        hard, doubted = any(one.hard for one in found), any(one.fault and not one.hard for one in found)
        for name in ("all", f"rows {size}"):
            counted.update({f"{name}|tables": 1, f"{name}|hard": hard, f"{name}|doubted": doubted})
        counted.update(f"check {name}|{verdict}" for name, verdict in {(one.check, one.verdict) for one in found if one.fault})
    return counted


def of_planted(start: int, *, fault: int) -> Counter[str]:
    """Counts for one kind of fault: decidable, found, found hard, undecidable, found all the same."""
    counted: Counter[str] = Counter()
    for number in range(start, start + CHUNK):
        planted = FAULTS[fault](random.Random(f"planted {number}"))
        said = [one for one in findings(planted.table) if one.fault and one.check in planted.checks]
        named = [one for one in said if not planted.rows or set(planted.rows) & set(one.rows)]
        kind = "decidable" if planted.decidable else "undecidable"
        counted.update({kind: 1, f"{kind}, found": bool(named), f"{kind}, found hard": any(one.hard for one in named)})
    return counted


def _read(table: audit_comparisons.Compared, asked: Counter[str] | None = None) -> ResultsTable:
    """The table from a file; where the audit asks what parts decimals, it is told."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_text(table.text)
        try:
            return load_table(path)
        except DataError:
            if asked is not None:
                asked["asked"] += 1
            return load_table(path, decimal="comma" if table.comma else "point")


def of_compared(start: int) -> Counter[str]:
    """Counts for sound tables that compare: hard ones, doubted ones, noted ones, and how their formula was named."""
    counted: Counter[str] = Counter()
    for number in range(start, start + CHUNK):
        table = audit_comparisons.sound(random.Random(f"compared {number}"))
        found = audit(_read(table, counted))
        counted.update({"tables": 1, "hard": any(one.hard for one in found), "doubted": any(one.fault and not one.hard for one in found)})
        counted.update(f"check {name}|{verdict}" for name, verdict in {(one.check, one.verdict) for one in found if one.fault})
        counted["noted"] += any(one.verdict == "noted" for one in found)
        named = [one.words for one in found if one.check == "derived" and one.verdict in {"exact", "noted"}]
        if table.formula:
            way = "not named" if not named else "named" if f" is {table.formula} (" in named[0] else "another named"
            counted[f"formulas {way}"] += 1
    return counted


def of_planted_comparison(start: int, *, fault: int) -> Counter[str]:
    """Counts for one kind of fault in a table that compares."""
    counted: Counter[str] = Counter()
    for number in range(start, start + CHUNK):
        planted = audit_comparisons.FAULTS[fault](random.Random(f"planted {number}"))
        found = audit(_read(planted.table), before=[_read(planted.before)] if planted.before else [])
        named = [one for one in found if one.fault and one.check == planted.check and planted.row in one.rows]
        kind = "decidable" if planted.decidable else "undecidable"
        counted.update({kind: 1, f"{kind}, found": bool(named), f"{kind}, found hard": any(one.hard for one in named)})
    return counted


def seconds(images: int) -> dict[str, float]:
    """Of the command on 1,556 rows of rates of so many images."""
    chance = random.Random(0)
    lines = ["Model,Top-1 (%),Top-5 (%)"]
    for row in range(ROWS):
        right = chance.randint(images // 2, images * 9 // 10)
        lines.append(f"row {row},{100 * right / images:.3f},{100 * (right + images // 20) / images:.3f}")
    walls, processor = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_text("\n".join(lines))
        for _ in range(REPEATS):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-m", "lowbit_vit", "audit", str(path), "--json"], check=True, capture_output=True)
            walls.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    middle = {"median": statistics.median(walls), "longest": max(walls), "processor": statistics.median(processor)}
    return {name: round(value, 2) for name, value in middle.items()}


def _counted(parts: Iterator[Counter[str]], count: int, title: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in track(parts, description=title, total=count // CHUNK):
        total.update(part)
    return total


def main() -> None:
    """Draw, audit, count, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sound", type=int, default=20_000)
    parser.add_argument("--compared", type=int, default=6_000)
    parser.add_argument("--planted", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    timed = {"public split of 50,000": seconds(50_000), "49,937, not listed": seconds(49_937)}
    planted = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        counted = _counted(pool.map(of_sound, range(0, arguments.sound, CHUNK)), arguments.sound, "sound tables")
        for at, fault in enumerate(FAULTS):
            starts = range(0, arguments.planted, CHUNK)
            planted[fault.__name__] = _counted(pool.map(partial(of_planted, fault=at), starts), arguments.planted, fault.__name__)
        compared = _counted(pool.map(of_compared, range(0, arguments.compared, CHUNK)), arguments.compared, "tables that compare")
        for at, of_comparison in enumerate(audit_comparisons.FAULTS):
            parts = pool.map(partial(of_planted_comparison, fault=at), range(0, arguments.planted, CHUNK))
            planted[of_comparison.__name__] = _counted(parts, arguments.planted, of_comparison.__name__)
    groups: dict[str, dict[str, int]] = {}
    for name, number in sorted(counted.items()):
        group, _, what = name.partition("|")
        groups.setdefault(group, {})[what] = number
    record = {
        "machine": machine("numpy", "scipy", load=load),
        "images": IMAGES,
        "sound": groups,
        "compared": dict(sorted(compared.items())),
        "planted": {name: dict(sorted(numbers.items())) for name, numbers in planted.items()},
        "seconds_of_1556_rows": timed,
        "asked_for": {"hard": 0, "doubted_share": 0.05, "found_share": 0.95, "seconds": 2},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
