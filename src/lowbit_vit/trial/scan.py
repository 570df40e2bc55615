"""Many accuracy-only cells on one resident model, for the sensitivity and mixed studies.

Cells that differ by their rules alone share the data, the fp32 weights, every converted block, and the activations up to the
block where they part (`scan_schedule`, `scan_model`). The high-precision logits that the others are measured from are those of the
high-precision path, which goes first. Each cell still is one record, assembled from the same parts as in `run_trial`, with the
same predictions bit for bit, and written while the next cell computes.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from lowbit_vit.data.arrays import Dataset
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import ConfigError
from lowbit_vit.model.precision import import_formats, matmul_mode
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import NOT_IDENTITY, Trial
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.record import Record, write_record
from lowbit_vit.schema.workspace import NOW, Workspace
from lowbit_vit.trial.evaluate import Logits, assess
from lowbit_vit.trial.run import Origin, Stopwatch, check_available, load_backbone, load_data, model_facts, record_failure, success
from lowbit_vit.trial.scan_model import ScanModel, ScanRun
from lowbit_vit.trial.scan_schedule import Path as BlockPath
from lowbit_vit.trial.scan_schedule import Step, schedule

log = logging.getLogger(__name__)


def run_scan(trials: Sequence[Trial], workspace: Workspace, out: Path) -> list[Record]:
    """Run accuracy-only trials in this process; each record is written as soon as its cell is done.

    A cell that raises gets its record (skipped, oom, failed) as from `record_trial`, and the others go on; what breaks in a block
    that several cells share is the failure of each of them.

    Args:
        trials: with adaptation none or ptq, eager, without measurement; any mixture of weights and kernels.
        workspace: of their profile.
        out: folder for records and predictions.

    Returns:
        One record a trial, in the order of `trials`.

    Raises:
        ConfigError: a trial cannot be scanned: it trains, measures, or is captured or compiled.
        DataError: a record could not be written.
    """
    for trial in trials:
        if trial.adaptation == "qlora" or trial.measurement is not None or trial.execution != "eager":
            raise ConfigError(
                f"scan: {trial.label}: only accuracy-only, eager trials without training can be scanned; use lowbit-vit trial"
            )
    import_formats(trial.plan for trial in trials)
    records: dict[str, Record] = {}
    for _, group in groupby(sorted(trials, key=_shared), key=_shared):
        for record in _scan_group(list(group), workspace, out):
            records[record.trial_id] = record
    return [records[trial.trial_id] for trial in trials]


def _shared(trial: Trial) -> str:
    """What cells must share to run on one resident model: everything but the plan's rules and what identifies the cell."""
    bare = trial.model_copy(update={"plan": Plan(compute_dtype=trial.plan.compute_dtype)})
    return bare.model_dump_json(exclude=set(NOT_IDENTITY))


def _scan_group(trials: list[Trial], workspace: Workspace, out: Path) -> list[Record]:
    """Run cells that share a resident model."""
    first = trials[0]
    started = time.perf_counter()
    try:
        check_available(first)
        with matmul_mode(first.plan):
            dataset = load_data(first, workspace)
            model, origin = load_backbone(first, workspace, dataset)
        scanned = ScanModel(model, first.plan)
    except Exception as error:  # noqa: BLE001  (every cell of the group gets its record)
        return [record_failure(error, trial, out) for trial in trials]
    log.info("loaded in %.1f s", time.perf_counter() - started)
    with matmul_mode(first.plan), ThreadPoolExecutor(max_workers=1) as writer:
        group = _Group(scanned, origin, dataset, out, writer)
        try:
            group.run(trials)
        finally:
            (out / NOW).unlink(missing_ok=True)
    return [future.result() for future in group.records]


@dataclass
class _Group:
    """The cells of one resident model, and the records that are being written."""

    model: ScanModel
    origin: Origin
    dataset: Dataset
    out: Path
    writer: ThreadPoolExecutor
    records: list[Future[Record]] = field(default_factory=list)
    reference: Logits | None = None

    def run(self, trials: Sequence[Trial]) -> None:
        """Run the cells in their order, and hand each to the writer."""
        first = trials[0]
        cells = self._paths(trials)
        reference = None if first.study == "variants" else self.model.path(Plan(compute_dtype=first.plan.compute_dtype))
        run = ScanRun(self.model, self.dataset.eval_views["test"], first)
        steps = schedule(list(cells), first=reference, room=run.room()) if cells else []
        self.model.expect([step.path for step in steps if step.finishes])
        with progress_bar(f"scan of {len(trials)} cells", sum(step.blocks for step in steps), "blocks of all images") as bar:
            for step in steps:
                self._write_running(step, cells)
                try:
                    logits = run.run(step)
                except Exception as error:  # noqa: BLE001  (as record_trial)
                    # What was to be kept is missing from here on, with this error. Without the reference no cell can be measured.
                    lost = [] if not step.finishes else [step.path] if step.path != reference else list(cells)
                    self._fail(error, [trial for path in lost for trial in cells.pop(path, [])])
                else:
                    if logits is not None and step.path == reference:
                        self.reference = logits
                    if logits is not None:
                        self._finish(step.path, cells.pop(step.path, []), logits, run)
                if step.finishes:
                    self.model.release(step.path)
                bar.advance(step.blocks)
                if not cells:
                    break
        log.info("%d cells cost %s", len(trials), run.summary())

    def _paths(self, trials: Sequence[Trial]) -> dict[BlockPath, list[Trial]]:
        cells: dict[BlockPath, list[Trial]] = {}
        for trial in trials:
            try:
                cells.setdefault(self.model.path(trial.plan), []).append(trial)
            except Exception as error:  # noqa: BLE001  (as record_trial)
                self._fail(error, [trial])
        return cells

    def _write_running(self, step: Step, cells: Mapping[BlockPath, Sequence[Trial]]) -> None:
        """Write down every trial that has these blocks: `study.launch` reads the file if the process dies."""
        names = [trial.trial_id for path, under in cells.items() if path[: step.stop] == step.path[: step.stop] for trial in under]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / NOW).write_text("\n".join(names))

    def _finish(self, path: BlockPath, trials: Sequence[Trial], logits: Logits, run: ScanRun) -> None:
        """Let the record of each of a path's trials be written."""
        for trial in trials:
            seconds, evaluations = run.cost_since_last()
            try:
                model = self.model.model(path, trial.plan)
            except Exception as error:  # noqa: BLE001  (as record_trial)
                self._fail(error, [trial])
            else:
                self._submit(self._record, trial, logits, model, Stopwatch(seconds), evaluations)

    def _fail(self, error: Exception, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._submit(record_failure, error, trial, self.out)

    def _submit(self, work: Callable[..., Record], *arguments: Any) -> None:
        if self.records and self.records[-1].done():
            self.records[-1].result()  # a full disk ends the scan at once, not at its end
        self.records.append(self.writer.submit(work, *arguments))

    def _record(self, trial: Trial, logits: Logits, model: VisionTransformer, clock: Stopwatch, block_evaluations: int) -> Record:
        """Count, assemble and write; runs beside the next cell."""
        try:
            with clock.part("count"):
                facts = model_facts(model, trial, origin=self.origin, parameters=self.model.parameters)
            with clock.part("summarize"):
                evaluation, predictions = assess(
                    logits,
                    self.dataset,
                    trial,
                    seconds=clock.seconds["evaluate"],
                    reference_logits=self.reference,
                    block_evaluations=block_evaluations,
                )
            record = success(trial, origin=self.origin, facts=facts, evaluation=evaluation, clock=clock)
            write_record(record, self.out, predictions)
        except Exception as error:  # noqa: BLE001  (as record_trial)
            return record_failure(error, trial, self.out)
        return record
