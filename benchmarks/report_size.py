"""What a report of 5,000 records costs: seconds and peak memory of building it, and the page's bytes.

    python benchmarks/report_size.py     (from the project's folder, with tests/ on PYTHONPATH)

The records are synthetic (tests/synthetic.py): 492 arms with ten seeds each, and the demo's other two studies. They are written
first; then a process of its own builds the report, and its time and peak resident memory are taken. Imports count.

Asked for: under 20 s, under 1 GB, a page under 5 MB.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic
from aside import machine

ARMS, SEEDS = 492, 10
RECORD = Path(__file__).parent / "records" / "report_size.json"
BUILD = """
import sys
from pathlib import Path
from lowbit_vit.report.page import build_report
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.workspace import Workspace
root = Path(sys.argv[1])
build_report(Profile.model_validate_json((root / "profile.json").read_text()), Workspace(root=root, profile="demo"))
"""


def main() -> None:
    """Fill a folder, build its report, write the record."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        profile, workspace = synthetic.fill_many(root, arms=ARMS, seeds=SEEDS)
        (root / "profile.json").write_text(profile.model_dump_json())
        records = len(list((workspace.reports / "records").rglob("*.json")))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", BUILD, str(root)], check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (workspace.reports / "report.html").stat().st_size
    record = {
        "machine": machine("altair", "polars", "vl-convert-python", load=load),
        "records": records,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_resident_mib": round(used.ru_maxrss / 1024, 1),
        "page_bytes": page,
        "asked_for": {"seconds": 20, "peak_resident_mib": 1000, "page_bytes": 5_000_000},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
