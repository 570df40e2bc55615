"""The progress bar of everything that takes more than a few seconds: rate and time left, on stderr."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

# A log is read later, line by line: seldom enough to stay short, often enough to show that something moves.
LINE_EVERY_S = 15.0


class AmountColumn(ProgressColumn):
    """Done, total and rate: `640/2040 images, 431.2 images/s`; bytes are scaled."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The mean rate since the start once finished, the recent one before."""
        total = "?" if task.total is None else self._show(task.total)
        rate = task.finished_speed or task.speed
        unit = "" if self._unit == "bytes" else f" {self._unit}"
        shown = "" if rate is None else f", {self._show(rate, digits=1)}{unit}/s"
        return Text(f"{self._show(task.completed)}/{total}{unit}{shown}")

    def _show(self, amount: float, digits: int = 0) -> str:
        return decimal(int(amount)) if self._unit == "bytes" else f"{amount:,.{digits}f}"


class Bar:
    """Handle of a running bar; where stderr is no terminal, a line every `LINE_EVERY_S` seconds takes its place."""

    def __init__(self, progress: Progress, task: TaskID, columns: Sequence[ProgressColumn]) -> None:
        self._progress = progress
        self._task = task
        self._columns = columns
        self._title = progress.tasks[task].description
        self._said = time.monotonic()

    def say(self, words: str) -> None:
        """Show something that changes beside the title."""
        self._progress.update(self._task, description=f"{self._title}, {words}")

    def advance(self, units: int = 1) -> None:
        """Move on by so many units."""
        self._progress.advance(self._task, units)
        if not self._progress.console.is_terminal and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            task = self._progress.tasks[self._task]
            if not task.finished:
                shown = [column.render(task) for column in self._columns]
                self._progress.console.print(*shown, "left")


@contextmanager
def progress_bar(title: str, total: int | None, unit: str) -> Iterator[Bar]:
    """Show a bar while the block runs; where stderr is no terminal, a line now and then and its last state are printed.

    Args:
        title: what is being done.
        total: units in all; None if not known.
        unit: what is counted, in the plural.
    """
    name, bar = TextColumn("{task.description}"), BarColumn(bar_width=20)
    amount, left = AmountColumn(unit), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(name, bar, amount, left, console=Console(stderr=True)) as progress:
        yield Bar(progress, progress.add_task(title, total=total), (name, amount, left))
