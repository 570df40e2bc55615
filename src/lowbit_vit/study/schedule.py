"""Run the units of a study through Ray Tune, and put their records in place: a local study is a cluster of one node.

Tune runs in a task on the head node, since the submitter may be connected by ray://, and gives each unit to a node. A unit's
process finishes records, and each travels with its predictions through a queue of bounded length to the submitter, the only one
that writes among the study's records. A node that does not see the submitter's disk fetches the files that it lacks
(`node_files`) and sends the end of its log, too.

A unit whose Ray worker or node is lost is started again by Tune, at most twice. Tune's own state is never restored: what is
finished is known from the records.

Everything that travels is Ray's pickle between processes of one cluster, which token authentication guards (ray_jobs/README.md).
"""

import functools
import logging
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.util.queue import Queue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lowbit_vit.errors import DataError, LowbitVitError
from lowbit_vit.schema.code_hash import all_code_sha256, is_current
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.file_lock import temporary_folder
from lowbit_vit.schema.predictions import parse_predictions
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cluster import FOLDER_PREFIX, HEAD, TEMPORARY, last_line, other_code
from lowbit_vit.study.container import Starter
from lowbit_vit.study.launch import launch, log_file, without_result
from lowbit_vit.study.node_files import NodeFile, list_files, node_workspace, read_pieces
from lowbit_vit.study.places import keep_to_cores_of_gpu
from lowbit_vit.study.resume import put_record
from lowbit_vit.study.units import Unit

log = logging.getLogger(__name__)

# How often a unit is started again whose Ray worker or node was lost.
RETRIES = 2
# Messages that the queue holds before the nodes have to wait for the submitter; a record with its predictions is below 1 MB.
_HELD_MESSAGES = 64
_PERIOD_S = 0.25
_LOG_TAIL_BYTES = 64 * 1024
# Redraws of the bar a second: so few that a timing trial is not disturbed.
_REDRAWS = 1.0
_Kind = Literal["started", "wanted", "record", "log", "ended"]


class RayLost(Exception):
    """A process of Ray's that runs no unit was lost: Tune's own, or the queue's."""


# ----------------------------------------------------------------------------------------------------------- on the nodes


@dataclass(frozen=True)
class _Order:
    """What a node has to know to run any unit.

    Attributes:
        units: of the study, by number.
        workspace: the submitter's.
        files: that a unit may read, for nodes that do not see the submitter's disk; None: they see it.
        command: as of `launch`.
        code: the submitter's.
        messages: the queue of `_Message` to the submitter.
        folder: for files of Tune and of sockets, which the submitter removes; None: each process has its own.
    """

    units: tuple[Unit, ...]
    workspace: Workspace
    files: tuple[NodeFile, ...] | None
    command: Starter | None
    code: str
    messages: Queue
    folder: Path | None


@dataclass(frozen=True)
class _Message:
    """From a unit to the submitter.

    Attributes:
        unit: its number.
        kind: what happened.
        content: of `record`, what `launch` yields; of `wanted`, a file's sha256 and the queue for references to its pieces; of
            `log`, its name and end; of `ended`, why the unit could not be run, or None.
    """

    unit: int
    kind: _Kind
    content: Any = None


def _run_unit(config: dict[str, int], *, order: _Order) -> None:
    """The trainable. Runs in a Ray worker, which only waits for the process that does the work."""
    number = config["unit"]
    unit = order.units[number]
    keep_to_cores_of_gpu()
    # The processes that are started here must run this code too, whatever is installed on the node.
    own, paths = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    if paths.split(os.pathsep)[0] != own:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (own, paths)))

    def send(kind: _Kind, content: Any = None) -> None:
        order.messages.put(_Message(number, kind, content))

    send("started")
    try:
        _place_sockets(order.folder)
        if all_code_sha256() != order.code:  # of a node that joined late
            raise LowbitVitError(other_code(socket.gethostname(), all_code_sha256(), submitted=order.code))
        with _workspace_here(order, send) as workspace:
            # A timing has a process of its own, those of a round one after another.
            for trials in [unit.trials] if unit.verb == "scan" else [(trial,) for trial in unit.trials]:
                for finished in launch(trials, workspace, verb=unit.verb, threads=unit.threads, command=order.command):
                    send("record", finished)
                output = log_file(workspace, trials, unit.verb)
                if order.files is not None and output.exists():
                    send("log", (output.name, output.read_bytes()[-_LOG_TAIL_BYTES:]))
    except Exception as error:  # noqa: BLE001  (Tune would start it again, and it would raise again)
        send("ended", last_line(error))
    else:
        send("ended")


@functools.cache
def _place_sockets(folder: Path | None) -> None:
    """Put multiprocessing's sockets of this Ray worker where they are removed later: Ray ends its workers by a kill."""
    tempfile.tempdir = str(_held.enter_context(temporary_folder(folder or TEMPORARY, prefix=FOLDER_PREFIX)))


_held = ExitStack()


def _workspace_here(order: _Order, send: Callable[[_Kind, Any], None]) -> AbstractContextManager[Workspace]:
    if order.files is None:
        return nullcontext(order.workspace)
    answers: list[Queue] = []

    def fetch(file: NodeFile) -> Iterator[bytes]:
        if not answers:
            answers.append(Queue(actor_options={"num_cpus": 0}))
        send("wanted", (file.sha256, answers[0]))
        for piece in answers[0].get():
            yield ray.get(piece)

    return node_workspace(order.workspace.profile, order.files, fetch)


@ray.remote(num_cpus=0, max_retries=0, resources={HEAD: 0.001})
def _tune(order: _Order, numbers: list[int]) -> None:
    """Tune, on the head node: results reach the submitter through the queue."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="lowbit-tune-", dir=order.folder) as storage:
        trainable = tune.with_resources(
            tune.with_parameters(_run_unit, order=order),
            lambda config: tune.PlacementGroupFactory([order.units[config["unit"]].resources]),
        )
        tune.Tuner(
            trainable,
            param_space={"unit": tune.grid_search(numbers)},
            # An actor mostly waits, so it may wait for the next unit too: a new one costs 2 s.
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(storage_path=storage, verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)),
        ).fit()


# ------------------------------------------------------------------------------------------------------- on the submitter


def run_units(units: Sequence[Unit], workspace: Workspace, *, title: str, command: Starter | None, own: Path | None) -> None:
    """Run every unit on the Ray that is connected; at the end every trial has a record here.

    Args:
        units: of one study.
        workspace: of the study.
        title: for the progress.
        command: as of `launch`.
        own: the folder of a local Ray, whose one node is this machine; None: a running cluster, whose nodes see another disk.

    Raises:
        LowbitVitError: a process could not be run at all, or the cluster was lost.
        DataError: a record cannot be written.
        RayLost: a process of Ray's own was lost.
    """
    with _StudyProgress(title, sum(len(unit.trials) for unit in units)) as progress:
        submitter = _Submitter(units, workspace, command=command, own=own, progress=progress)
        try:
            tuning = _tune.remote(submitter.order, list(range(len(units))))
            over = False
            while not over:  # a message may be left when Tune has ended
                over = bool(ray.wait([tuning], timeout=_PERIOD_S)[0])
                for message in submitter.messages.get_nowait_batch(submitter.messages.qsize()):
                    submitter.handle(message)
            ray.get(tuning)
            submitter.close()
        except (ray.exceptions.ActorDiedError, ray.exceptions.WorkerCrashedError) as error:
            raise RayLost(last_line(error)) from error
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise LowbitVitError(
                f"{title}: the cluster was lost ({last_line(error)}); finished trials are kept, run the same command again to go on"
            ) from error


class _Submitter:
    """Handles what the units of one study send."""

    def __init__(
        self, units: Sequence[Unit], workspace: Workspace, *, command: Starter | None, own: Path | None, progress: "_StudyProgress"
    ) -> None:
        self._units, self._workspace, self._progress = tuple(units), workspace, progress
        self._waiting = [{trial.trial_id: trial for trial in unit.trials} for unit in units]  # those without a record, by unit
        self._running: set[int] = set()
        self._lost: Counter[str] = Counter()  # trial_id -> how often a Ray worker was lost that was at it
        self._refused: dict[int, str] = {}
        files = list_files(workspace, [trial for unit in units for trial in unit.trials]) if own is None else None
        self._files = {file.sha256: file for file in files or ()}
        self._pieces: dict[str, list[Any]] = {}  # sha256 -> references to what was put into the object store
        self.messages = Queue(_HELD_MESSAGES, actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}})
        self.order = ray.put(_Order(self._units, workspace, files, command, all_code_sha256(), self.messages, own))

    def close(self) -> None:
        """After Tune has ended: refuse what could not be run, and give each trial that is left without a record one that says so."""
        if self._refused:
            why = "; ".join(dict.fromkeys(self._refused.values()))
            raise LowbitVitError(f"{len(self._refused)} of {len(self._units)} processes could not be run: {why}")
        reason = f"its Ray worker or node was lost, {RETRIES + 1} times in a row"
        for number, trials in enumerate(self._waiting):
            for trial in list(trials.values()):
                self.handle(_Message(number, "record", (without_result(trial, status="failed", reason=reason), None)))

    def handle(self, message: _Message) -> None:
        """Do what a message asks for."""
        number, waiting = message.unit, self._waiting[message.unit]
        match message.kind:
            case "started":
                if number in self._running:  # it did not end
                    log.warning("a Ray worker or its node was lost: its process is run again")
                    self._lost.update(list(waiting)[:1])  # the trial that it was at
                self._running.add(number)
                self._progress.begin(number, list(waiting.values()) or self._units[number].trials)
            case "wanted":
                sha256, answer = message.content
                if sha256 not in self._pieces:
                    self._pieces[sha256] = [ray.put(piece) for piece in read_pieces(self._workspace.root / self._files[sha256].path)]
                answer.put(self._pieces[sha256])
            case "record":
                record, predictions = message.content
                if not is_current(record):
                    raise DataError(
                        f"{record.trial_id}: ran with other code than this program's: it was changed meanwhile, or a container holds "
                        "another version; run the same command again, with an image of this version"
                    )
                if waiting.pop(record.trial_id, None) is not None:  # else it was given up for lost and run again
                    record = put_record(record, predictions, self._workspace, lost=self._lost[record.trial_id])
                    self._progress.finish(record, predictions)
            case "log":
                name, end = message.content
                path = self._workspace.reports / "logs" / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(end)
            case "ended":
                self._running.discard(number)
                self._progress.end(number)
                if message.content is not None:
                    self._refused[number] = message.content


class _StudyProgress(Progress):
    """Output on stderr: a bar with the time left and the running trials, and a line for each that ends."""

    def __init__(self, title: str, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        super().__init__(*columns, console=Console(stderr=True), refresh_per_second=_REDRAWS, speed_estimate_period=600)
        self._running: dict[int, set[str]] = {}  # process -> ids of its trials without a record
        self._task = self.add_task(title, total=total, now="")

    def begin(self, process: int, trials: Sequence[Trial]) -> None:
        """Note that a process with these trials was started."""
        self._running[process] = {trial.trial_id for trial in trials}
        several = f"round {trials[0].process}, {len(trials)} timings" if trials[0].process else f"{len(trials)} cells in one process"
        self._say(f"running   {several if len(trials) > 1 else _name(trials[0])}")

    def finish(self, record: Record, predictions: bytes | None) -> None:
        """Note that a trial has its record, with the content of its predictions' file."""
        for trials in self._running.values():
            trials.discard(record.trial_id)
        word = "finished" if record.status == "success" else record.status
        top1 = f"  Top-1 {parse_predictions(predictions, source=record.trial_id).accuracy().top1:.1%}" if predictions else ""
        why = f": {record.reason}" if record.reason else ""
        self.advance(self._task)
        self._say(f"{word:9} {_name(record.trial)}{top1}{why}")

    def end(self, process: int) -> None:
        """Note that the process is gone."""
        self._running.pop(process, None)
        self._show()

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        waiting = sum(map(len, self._running.values()))
        processes = "process" if len(self._running) == 1 else "processes"
        self.update(self._task, now=f"{len(self._running)} {processes}, {waiting} cells in them" if self._running else "")


def _name(trial: Trial) -> str:
    return f"{trial.label}, process {trial.process}" if trial.process else trial.label
