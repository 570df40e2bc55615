"""What repeats to the bit: the same trials twice, each time in a process of its own, on one machine.

    python benchmarks/determinism.py PROFILE [--arms LABEL ...] [--root FOLDER]   (after lowbit-vit data and backbone)

For each arm, with its first seed: whether the training losses, the predictions (class, and margin of every
image as fp32), the sizes, the memory peaks and the kernels are equal in both runs; where predictions are not, how far
they are apart. Latencies are compared too, and are not expected to be equal. The record is about equality: load on the machine
changes none of the rest.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from aside import empty_reports
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.machine import cpu_cores, provenance
from lowbit_vit.schema.metrics import percentile
from lowbit_vit.schema.predictions import Predictions, load_predictions
from lowbit_vit.schema.record import Record
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import launch
from lowbit_vit.study.resume import put_record

RECORD = Path(__file__).parent / "records" / "determinism.json"
SAMPLES = 20  # latencies; nothing depends on them


def main() -> None:
    """Run each trial twice and write which of its results are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--arms", nargs="*", default=[], metavar="LABEL", help="of the profile; default: all")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record that is written")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    facts = provenance("python benchmarks/determinism.py")
    arms: dict[str, Any] = {}
    record = {
        "machine": {
            "cpu": facts.cpu,
            "gpu": facts.gpu,
            "driver": facts.driver,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "bitsandbytes")},
        },
        "profile": arguments.profile,
        "git_revision": facts.git_revision,
        "arms": arms,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    for trial in track(chosen(root, arguments.profile, arguments.arms), "arms, each twice"):
        first, second = (run_once(trial, root) for _ in range(2))
        arms[trial.label] = compare(first, second)
        print(f"{trial.label}: {json.dumps(arms[trial.label])}", flush=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")  # each time: a run that is cut leaves what it has


def chosen(root: Path, name: str, labels: list[str]) -> list[Trial]:
    """The arms' trials with their first seed and few samples.

    Raises:
        ConfigError: the profile has no such arm.
    """
    path = root / "profiles" / f"{name}.yaml"
    profile = load_profile(path)
    unknown = set(labels) - {arm.label for arm in profile.variants.arms}
    if unknown:
        raise ConfigError(f"{path}: key variants.arms: no arm {', '.join(sorted(unknown))}")
    first: dict[str, Trial] = {}
    for trial in cells(profile, "variants"):
        if trial.measurement is not None and (not labels or trial.label in labels):
            short = trial.measurement.model_copy(update={"samples": SAMPLES, "invariance_images": None})
            first.setdefault(trial.label, trial.model_copy(update={"measurement": short}))
    return list(first.values())


def run_once(trial: Trial, root: Path) -> tuple[Record, Predictions | None]:
    """One run in a process of its own and an empty reports folder, on the project's own data and weights."""
    with empty_reports(root, trial.profile) as workspace:
        ((made, predictions),) = launch([trial], workspace, verb="trial", threads=cpu_cores())
        record = put_record(made, predictions, workspace)
        arrays = workspace.records(trial.study) / f"{trial.trial_id}.npz"
        return record, load_predictions(arrays) if record.status == "success" else None


def compare(first: tuple[Record, Predictions | None], second: tuple[Record, Predictions | None]) -> dict[str, Any]:
    """Name -> whether both runs agree; for a trial without a result, its status and reason; null: not measured here."""
    (one, before), (other, after) = first, second
    if before is None or after is None:
        return {"status": [one.status, other.status], "reason": one.reason or other.reason}
    pairs = {name: (results(one)[name], results(other)[name]) for name in results(one)}
    equal: dict[str, Any] = {name: None if left is None else left == right for name, (left, right) in pairs.items()}
    if not equal["predictions"]:
        equal["flipped_images"] = int((after.best != before.best).sum())
        equal["max_abs_margin_difference"] = float(np.abs(before.margin - after.margin).max())
    return {"status": one.status, "equal": equal}


def results(record: Record) -> dict[str, Any]:
    """What two runs of a trial may share; null where this device does not measure it."""
    evaluation, measured, model = record.evaluation, record.measurement, record.model
    if evaluation is None or measured is None or model is None:
        return {}
    peaks = [(memory.batch_size, memory.before_bytes, memory.peak_allocated_bytes) for memory in measured.memory]
    names = [(kernels.attention_kernels, kernels.low_bit_kernels, kernels.launches, kernels.host_syncs) for kernels in measured.kernels]
    return {
        "weights_before": model.backbone_sha256,
        "training_loss": None if record.training is None else record.training.loss,
        "predictions": evaluation.predictions_sha256,
        "sizes": (model.weight_bytes, model.file_bytes),
        "memory_peaks": peaks if any(peak is not None for _, _, peak in peaks) else None,
        "kernels": names or None,
        "latency": [percentile(latency.samples_ms, 0.5) for latency in measured.latency],
    }


if __name__ == "__main__":
    main()
