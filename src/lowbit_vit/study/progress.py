"""What a running study shows on stderr: a bar with the time left and the running trials, and a line for each that ends."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.predictions import parse_predictions
from lowbit_vit.schema.record import Record

# Redraws a second: so rare that a timing trial does not feel them.
_REDRAWS = 1.0


class StudyProgress:
    """The cells that a study still has to run. A context manager: the bar ends with the block.

    Args:
        title: of the bar.
        total: cells.
    """

    def __init__(self, title: str, total: int) -> None:
        self._running: dict[int, set[str]] = {}  # process -> ids of its trials without a record
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=_REDRAWS, speed_estimate_period=600)
        self._task = self._progress.add_task(title, total=total, now="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, process: int, trials: Sequence[Trial]) -> None:
        """Note that a process with these trials was started."""
        self._running[process] = {trial.trial_id for trial in trials}
        self._say(f"running   {trials[0].label}" if len(trials) == 1 else f"running   {len(trials)} cells in one process")

    def finish(self, record: Record, predictions: bytes | None) -> None:
        """Note that a trial has its record, with the content of its predictions' file."""
        for trials in self._running.values():
            trials.discard(record.trial_id)
        word = "finished" if record.status == "success" else record.status
        top1 = f"  Top-1 {parse_predictions(predictions, source=record.trial_id).accuracy().top1:.1%}" if predictions else ""
        why = f": {record.reason}" if record.reason else ""
        self._progress.advance(self._task)
        self._say(f"{word:9} {record.trial.label}{top1}{why}")

    def end(self, process: int) -> None:
        """Note that the process is gone."""
        self._running.pop(process, None)
        self._show()

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        waiting = sum(map(len, self._running.values()))
        processes = "process" if len(self._running) == 1 else "processes"
        self._progress.update(self._task, now=f"{len(self._running)} {processes}, {waiting} cells in them" if self._running else "")
