"""A trial process that does what its label says: a real process of the real interface, without a model.

Usage: obedient_child.py trial|scan FILE --out FOLDER, in the project
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from lowbit_vit.schema.code_hash import code_sha256, formats_sha256
from lowbit_vit.schema.config import Trial, load_trial, load_trials
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import (
    Ceilings,
    EvaluationResult,
    KernelTime,
    Latency,
    LayerAudit,
    MeasurementResult,
    Memory,
    ModelFacts,
    Record,
    TrainingResult,
    Work,
    sha256,
    write_record,
)
from lowbit_vit.schema.workspace import NOW
from lowbit_vit.study.process import stop_with_parent


def main() -> None:
    verb, file, _, out = sys.argv[1:]
    stop_with_parent()
    with Path("gpus.txt").open("a") as gpus:
        gpus.write(f"{verb} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    together = Path("together.txt")  # so many processes at once: none is done before all have begun
    while together.exists() and len(Path("gpus.txt").read_text().splitlines()) < int(together.read_text()):
        time.sleep(0.05)
    trials = [load_trial(Path(file))] if verb == "trial" else load_trials(Path(file))
    for trial in trials:
        obey(trial, Path(out), Path.cwd())


def obey(trial: Trial, out: Path, root: Path) -> None:
    word, _, seconds = trial.label.partition(" / ")[0].partition(" ")  # behind the slash: what tells two arms apart
    if word == "sleep":
        (root / f"asleep-{os.getpid()}").touch()
        time.sleep(float(seconds))
    elif word == "hold":
        (root / f"asleep-{os.getpid()}").touch()
        while not (root / "let-go").exists():
            time.sleep(0.1)
    elif word == "raise":
        raise RuntimeError("the matter")
    elif word == "shared":
        # As a scan that walks through a block of two cells, in another order than they were given.
        (out / NOW).write_text("\n".join((root / "at").read_text().split()))
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "allocate":
        held = [bytearray(os.urandom(1 << 20) * 32) for _ in range(32)]
        time.sleep(60)
        held.clear()
    elif word == "fill":
        fill(trial, out, root)
    elif word == "fail":
        failed = Record(trial_id=trial.trial_id, status="failed", reason="said so", trial=trial, provenance=None, code_sha256=code_sha256())
        write_record(failed, out)
        return
    elif word == "flaky" and not (root / "repaired").exists():
        raise RuntimeError("not repaired yet")
    elif word == "occupy":
        started = time.time()
        time.sleep(float(seconds))
        with (root / "times.txt").open("a") as file:
            file.write(f"{started} {time.time()} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    succeed(trial, out, root)


def fill(trial: Trial, out: Path, root: Path) -> None:
    """Run out of space at byte 100 of a file; lifted before the traceback goes to the log."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        succeed(trial, out, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def succeed(trial: Trial, out: Path, root: Path) -> None:
    weights = (
        root
        / "checkpoints"
        / trial.profile
        / ("backbone.safetensors" if trial.adaptation != "ptq" else f"adapted-seed{trial.seed}.safetensors")
    )
    digest = sha256(weights.read_bytes())
    facts = ModelFacts(
        backbone_sha256=digest,
        base_sha256=digest,
        parameters=1,
        trainable_parameters=0,
        layers=LayerAudit(by_format={"high": 1}),
        weight_bytes=4,
        file_bytes=4,
    )
    predictions = Predictions(
        label=np.zeros(3, np.uint16),
        best=np.zeros(3, np.uint16),
        among5=np.ones(3, np.bool_),
        margin=np.zeros(3, np.float32),
        selection=np.array([True, False, False]),
        kl=None if trial.study == "variants" else np.zeros(3, np.float32),
    )
    training = None
    if trial.adaptation == "qlora" and trial.lora is not None:
        epochs = trial.lora.training.epochs
        training = TrainingResult(steps=epochs, seconds=1, loss=(1.0,) * epochs, peak_allocated_bytes=None)
    record = Record(
        trial_id=trial.trial_id,
        status="success",
        reason=None,
        trial=trial,
        provenance=provenance("obey"),
        model=facts,
        code_sha256=code_sha256(),
        formats_sha256=formats_sha256(trial.plan),
        data_sha256="0" * 64,
        training=None if trial.process else training,
        evaluation=None
        if trial.process
        else EvaluationResult(split="test", seconds=1, predictions_sha256=predictions.sha256(), class_names=("one", "two")),
        measurement=measured(trial),
    )
    write_record(record, out, None if trial.process else predictions.to_bytes())


def measured(trial: Trial) -> MeasurementResult | None:
    if trial.measurement is None:
        return None
    if trial.process:
        latency = tuple(
            Latency(batch_size=batch, samples_ms=(1.0,) * 10, first_call_ms=1, clocks_before=None, clocks_after=None)
            for batch in trial.measurement.batch_sizes
        )
        return MeasurementResult(exclusive=None, latency=latency, memory=(), kernels=(), work=(), ceilings=None)
    sizes, size = trial.measurement.batch_sizes, 1 if trial.device == "cuda" else None
    count, wall = (None, 1.0) if size is None else (0, None)
    return MeasurementResult(
        exclusive=None,
        latency=tuple(
            Latency(batch_size=batch, samples_ms=(1.0,) * 10, first_call_ms=1, clocks_before=None, clocks_after=None) for batch in sizes
        ),
        memory=tuple(
            Memory(
                batch_size=batch,
                peak_allocated_bytes=size,
                peak_reserved_bytes=size,
                process_bytes=None,
                peak_resident_bytes=None,
                before_bytes=size,
                workspace_bytes=size,
            )
            for batch in sizes
        ),
        kernels=tuple(
            KernelTime(
                batch_size=batch,
                wall_us=wall,
                by_class_us={"gemm": 1.0},
                launches=count,
                host_syncs=count,
                attention_kernels=("flash",),
                low_bit_kernels=(),
            )
            for batch in (sizes if trial.measurement.trace else ())
        ),
        work=tuple(Work(batch_size=batch, flop=1, least_bytes=1) for batch in sizes),
        ceilings=Ceilings(matmul_flops_per_s=1, matmul_side=1, copy_bytes_per_s=1, copy_bytes=1),
    )


if __name__ == "__main__":
    main()
