"""The progress bar of what takes more than a few seconds: rate and time left, on stderr."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 15.0  # in a log: it stays short, and shows that something moves


class AmountColumn(ProgressColumn):
    """Done, total and rate: `640/2040 images, 431.2 images/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The mean rate since the start once finished, the recent one before; none of the first second, which says nothing."""
        rate = task.completed / task.finished_time if task.finished_time else task.speed
        shown = "" if rate is None or (task.elapsed or 0) < 1 else f", {rate:,.1f} {self._unit}/s"
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} {self._unit}{shown}")


class Bar:
    """A running bar; where stderr is no terminal, it prints a line every `LINE_EVERY_S` seconds."""

    def __init__(self, progress: Progress, task: TaskID, columns: Sequence[ProgressColumn]) -> None:
        self._progress = progress
        self._task = task
        self._columns = columns
        self._title = progress.tasks[task].description
        self._said = time.monotonic()

    def say(self, words: str) -> None:
        """Show something that changes beside the title."""
        self._progress.update(self._task, description=f"{self._title}, {words}")

    def advance(self, units: float = 1) -> None:
        """Move on by so many units."""
        self._progress.advance(self._task, units)
        if not self._progress.console.is_terminal and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            task = self._progress.tasks[self._task]
            if not task.finished:
                shown = [column.render(task) for column in self._columns]
                self._progress.console.print(*shown, "left")


@contextmanager
def progress_bar(title: str, total: float, unit: str) -> Iterator[Bar]:
    """Show a bar while the block runs; where stderr is no terminal, print a line now and then and its last state.

    Args:
        title: of the task.
        total: units in all.
        unit: in the plural.
    """
    name, bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)
    amount, left = AmountColumn(unit), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(name, bar, amount, left, console=Console(stderr=True)) as progress:
        yield Bar(progress, progress.add_task(title, total=total), (name, amount, left))
