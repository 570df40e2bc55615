"""Expected seconds of a trial, from the records of earlier trials like it: what takes longest is started first.

A study whose longest trial starts last waits for that one trial on an otherwise idle cluster.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowbit_vit.schema.config import Trial


def expected_seconds(trials: Sequence[Trial], folder: Path) -> dict[str, float]:
    """Expect of each trial what the median of those like it took: of its own kind, else of its study.

    Args:
        trials: of one study.
        folder: with records of that study, whatever made them: a record of older code still tells how long it took.

    Returns:
        trial_id -> seconds; infinite where nothing like it has run, so that it starts before all that is known.
    """
    by_kind: dict[tuple[str, ...], list[float]] = defaultdict(list)
    of_all: list[float] = []
    for path in folder.glob("[!.]*.json"):
        found = _duration(path)
        if found is not None:
            by_kind[found[0]].append(found[1])
            of_all.append(found[1])
    typical = statistics.median(of_all) if of_all else float("inf")
    known = {kind: statistics.median(seconds) for kind, seconds in by_kind.items()}
    return {trial.trial_id: known.get(_kind(trial.model_dump(mode="json")), typical) for trial in trials}


def _duration(path: Path) -> tuple[tuple[str, ...], float] | None:
    """Kind and seconds of a record; None where it has none. Read as JSON alone: 10,000 records are validated elsewhere."""
    try:
        record = json.loads(path.read_bytes())
        seconds = sum(record["durations_s"].values())
        return (_kind(record["trial"]), seconds) if seconds > 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _kind(trial: dict[str, Any]) -> tuple[str, ...]:
    formats = sorted({rule["weights"]["format"] for rule in trial["plan"]["rules"]} - {"high"})
    axes = ("attention", "adaptation", "execution", "device")
    return (*formats, trial["plan"]["compute_dtype"], *(trial[axis] for axis in axes))
