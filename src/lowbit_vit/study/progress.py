"""What a running study shows on stderr: a bar with the time left and the running trials, and a line for each that ends.

Finished cells are seen by their records, wherever they run: a scan's cells count one by one.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.record import Record, read_record

log = logging.getLogger(__name__)

# Seconds between two looks at the records, and redraws a second: both so rare that a timing trial does not feel them.
_PERIOD = 1.0
_REDRAWS = 1.0


class StudyProgress:
    """Follows the records of the cells that a study still has to run. A context manager: the bar ends with the block."""

    def __init__(self, title: str, trials: Iterable[Trial], folder: Path) -> None:
        self._paths = {trial.trial_id: folder / f"{trial.trial_id}.json" for trial in trials}
        self._before = {trial_id: _stamp(path) for trial_id, path in self._paths.items()}
        self._running: dict[str, list[str]] = {}
        self._looked = 0.0
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
        self._task = self._progress.add_task(title, total=len(self._paths), now="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.look(now=True)
        self._progress.stop()

    def start(self, name: str, trials: Sequence[Trial]) -> None:
        """Note that a process with these trials was started."""
        self._running[name] = [trial.trial_id for trial in trials]
        if len(trials) == 1:
            self._progress.console.print(f"running   {trials[0].label}", markup=False, highlight=False)
        else:
            self._progress.console.print(f"running   {len(trials)} cells in one process", markup=False, highlight=False)
        self._show()

    def end(self, name: str) -> None:
        """Note that the process is gone."""
        self._running.pop(name, None)
        self.look(now=True)

    def look(self, *, now: bool = False) -> None:
        """Show what ended since the last look, at most once a second unless told."""
        if not now and time.monotonic() - self._looked < _PERIOD:
            return
        self._looked = time.monotonic()
        for trial_id, path in list(self._paths.items()):
            if _stamp(path) == self._before[trial_id]:
                continue
            del self._paths[trial_id]
            self._progress.advance(self._task)
            try:
                self._tell(read_record(path))
            except DataError as error:
                log.warning("%s", error)
        self._show()

    def _tell(self, record: Record) -> None:
        word = "finished" if record.status == "success" else record.status
        top1 = f"  Top-1 {record.evaluation.whole.top1:.1%}" if record.evaluation else ""
        why = f": {record.reason}" if record.reason else ""
        self._progress.console.print(f"{word:9} {record.trial.label}{top1}{why}", markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        waiting = sum(trial_id in self._paths for trials in self._running.values() for trial_id in trials)
        processes = "process" if len(self._running) == 1 else "processes"
        self._progress.update(self._task, now=f"{len(self._running)} {processes}, {waiting} cells in them" if self._running else "")


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
