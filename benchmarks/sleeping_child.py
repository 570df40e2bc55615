"""A trial that only waits: `sleeping_child.py TEMPLATE trial|scan FILE --out FOLDER`, for benchmarks/scaling.py.

The label of a trial is `sleep SECONDS INDEX`. Its record is a template's, so that a hundred of these cost two cores nothing:
Python's standard library alone. Beside the template it writes times.txt,
a line a trial: start and end.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Wait, and write what a trial writes."""
    template = Path(sys.argv[1])
    verb, file, _, out = sys.argv[2:]
    request = json.loads(Path(file).read_text())
    for trial in request if verb == "scan" else [request]:
        started = time.time()
        time.sleep(float(trial["label"].split()[1]))
        record = json.loads(template.read_text()) | {"trial": trial}
        record["trial_id"] = name = trial_id(trial, template)
        part = Path(out) / f".{name}.json"
        part.write_text(json.dumps(record))
        part.rename(Path(out) / f"{name}.json")
        with (template.parent / "times.txt").open("a") as log:
            log.write(f"{started} {time.time()}\n")


def trial_id(trial: dict[str, object], template: Path) -> str:
    """As the benchmark computed it beforehand: its own needs the schema, which takes a second to import."""
    names: dict[str, str] = json.loads(template.with_name("names.json").read_text())
    return names[str(trial["label"])]


if __name__ == "__main__":
    main()
