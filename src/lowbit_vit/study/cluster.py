"""A study on a running Ray cluster: the nodes' own disks, records streamed back, each written once by who submitted it.

The submitter connects by RAY_ADDRESS: from anywhere through `ray://HOST:10001`, on a node of the cluster (the driver of a Ray
job is) by the address that Ray gives. Its package travels with the connection, so the nodes run its code. Tune runs in one task
on the head node and gives each unit to a node; the unit fetches what it lacks and sends records, predictions and the
log's end through the exchange, a small actor on the head node that holds a bounded number of messages.

Everything that travels is Ray's pickle between processes of one cluster, which token authentication guards (ray_jobs/README.md).
Tune's own state is never restored: what is finished is known from the records, which are JSON.
"""

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, Unavailable
from lowbit_vit.schema.code import all_code_sha256, is_current
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.machine import provenance, visible_gpu
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.container import Starter
from lowbit_vit.study.cores import keep_to_cores_of_card
from lowbit_vit.study.finished import why_not_here
from lowbit_vit.study.launch import COMMAND, launch, launch_scan, log_file, put_record, write_without_result
from lowbit_vit.study.lifeline import unwinding_on_sigterm
from lowbit_vit.study.node_files import NodeFile, list_files, node_workspace, read_pieces
from lowbit_vit.study.progress import StudyProgress
from lowbit_vit.study.units import Places, Unit

log = logging.getLogger(__name__)

# How often a trial is started on nodes that are lost with it, before it counts as failed.
_TRIES = 3
# Messages that the exchange holds before the nodes have to wait for the submitter; a record with its predictions is below 1 MB.
_HELD_MESSAGES = 64
_PERIOD_S = 0.5
_CONNECTIONS = 3
_LOG_TAIL_BYTES = 64 * 1024
_HEAD = "node:__internal_head__"
_CARD = "accelerator_type:"


# ---------------------------------------------------------------------------------------------------------- the connection


def cluster_address() -> str | None:
    """RAY_ADDRESS; None where this machine is to run the study alone.

    Raises:
        ConfigError: it is the address of the job API, which takes programs and gives back no records.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        raise ConfigError(f"RAY_ADDRESS={address}: that is the job API; use ray://HOST:10001 here, or ray job submit (ray_jobs/README.md)")
    return None if address in ("", "local") else address


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a running cluster; whatever it still runs for us ends with it.

    Raises:
        Unavailable: there is none, or it refuses us.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # in a Ray job, ours is added to the job's own
    logging.getLogger("ray").setLevel(logging.ERROR)
    environment = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result files: our records are the results
        "TUNE_WARN_THRESHOLD_S": "60",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its state is never restored, and grows with the number of trials
        "LOWBIT_VIT_REVISION": provenance("").git_revision or "unknown",
    }
    package = Path(__file__).parents[1]
    with unwinding_on_sigterm() as prepare:
        try:
            _connect(address, {"py_modules": [str(package)], "excludes": ["__pycache__"], "env_vars": environment})
            prepare()
            yield
        finally:
            ray.shutdown()


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _connect(address: str, runtime_env: dict[str, Any]) -> None:
    """Connect, again where the head was too busy to start the process that serves a ray:// connection within Ray's 30 s."""
    for attempt in range(1, _CONNECTIONS + 1):
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, runtime_env=runtime_env)
            return
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if attempt == _CONNECTIONS or "Starting Ray client server failed" not in str(error):
                raise Unavailable(f"RAY_ADDRESS={address}: no cluster to work with: {_last_line(error)}") from error
            log.info("%s: the head is busy, connecting again", address)
            ray.shutdown()


# --------------------------------------------------------------------------------------------------------------- its nodes


@dataclass(frozen=True)
class Node:
    """One node, as it described itself."""

    name: str
    identity: str
    resources: dict[str, float]
    code: str
    gpu: str | None

    @property
    def cards(self) -> tuple[str, ...]:
        """The kinds of card that it offers, as Ray names them."""
        return tuple(name.removeprefix(_CARD) for name in self.resources if name.startswith(_CARD))


def survey() -> tuple[Node, ...]:
    """Ask every node what it is.

    Raises:
        Unavailable: no node answers.
        ConfigError: a node runs other code than the submitter.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    asked = [_describe.options(scheduling_strategy=_on(node["NodeID"])).remote(node["NodeID"], node["Resources"]) for node in alive]
    nodes = []
    for answer in asked:
        with suppress(ray.exceptions.RayActorError, ray.exceptions.TaskUnschedulableError, ray.exceptions.WorkerCrashedError):
            nodes.append(ray.get(answer))
    if not nodes:
        raise Unavailable("the cluster: no node answers")
    for node in nodes:
        if node.code != all_code_sha256():
            raise ConfigError(_other_code(node.name, node.code, submitted=all_code_sha256()))
    return tuple(nodes)


def _on(identity: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(identity, soft=False)


def _other_code(node: str, code: str, *, submitted: str) -> str:
    return f"node {node}: it runs other code (sha256 {code[:12]}) than the submitter ({submitted[:12]}); install the same everywhere"


@ray.remote(num_cpus=0, max_retries=0)
def _describe(identity: str, resources: dict[str, float]) -> Node:
    with _cards_in_sight():
        gpu = visible_gpu()
    return Node(name=socket.gethostname(), identity=identity, resources=resources, code=all_code_sha256(), gpu=gpu.name if gpu else None)


def places_on(nodes: Sequence[Node], trials: Sequence[Trial], *, card: str | None) -> Places:
    """What the trials can be run on.

    Args:
        nodes: of `survey`.
        trials: of one study; those that are timed are to have the same kind of card.
        card: the kind that was asked for; None: whichever there is.

    Raises:
        Unavailable: no node has that card, or none takes timing trials.
        ConfigError: timing trials, and several kinds of card to choose from.
    """
    timed = [trial for trial in trials if trial.measurement is not None]
    timed_on_card = any(trial.device == "cuda" for trial in timed)
    cards = sorted({card for node in nodes for card in node.cards})
    if card is not None and card not in cards:
        raise Unavailable(f"--card {card}: no node of the cluster has one; there are: {', '.join(cards) or 'none'}")
    if timed_on_card and card is None and len(cards) > 1:
        raise ConfigError(f"the cluster has {', '.join(cards)}: times of different cards cannot be compared; choose with --card")
    if timed_on_card and card is None and cards:
        card = cards[0]  # a node that joins later may bring another
    fit = [node for node in nodes if card is None or card in node.cards]
    slots = [node for node in fit if node.resources.get("profile_slot", 0) >= 1]
    if timed and not slots:
        raise Unavailable("the cluster: no node takes timing trials; start nodes with ray start --resources '{\"profile_slot\": 1}'")
    return Places(
        cpus=int(sum(node.resources.get("CPU", 0) for node in fit)),
        gpus=int(sum(node.resources.get("GPU", 0) for node in fit)),
        cores=int(max(node.resources.get("CPU", 0) for node in slots or fit)),
        card=card,
        slots=int(max((node.resources["profile_slot"] for node in slots), default=1)),
    )


def reasons_on(nodes: Sequence[Node], trials: Sequence[Trial]) -> dict[str, str]:
    """trial_id -> why no node can run it, for those that none can: each kind of node is asked once."""
    kinds = {node.gpu: node for node in nodes}.values()
    asked = [_why_not.options(scheduling_strategy=_on(node.identity)).remote(list(trials)) for node in kinds]
    answers: list[dict[str, str]] = ray.get(asked)
    shared = set.intersection(*(set(answer) for answer in answers))
    return {trial_id: answers[0][trial_id] for trial_id in shared}


@ray.remote(num_cpus=0)
def _why_not(trials: list[Trial]) -> dict[str, str]:
    with _cards_in_sight():
        return why_not_here(trials)


@contextmanager
def _cards_in_sight() -> Iterator[None]:
    """Look at a node's cards without taking one: Ray may hide them from a task that asks for none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if hidden:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    try:
        yield
    finally:
        if hidden:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


# ------------------------------------------------------------------------------------------------------------ the exchange


@dataclass(frozen=True)
class _Message:
    """From a node to the submitter."""

    unit: int
    kind: str  # started, record, log, ended, wanted
    name: str = ""  # of the log, or the sha256 of a wanted file
    content: bytes = b""  # of the record's JSON or of the log's end; the reason why a unit could not be run
    predictions: bytes | None = None


class _Exchange:
    """An actor on the head node between the units and the submitter."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[_Message] = asyncio.Queue(_HELD_MESSAGES)
        self._offered: dict[str, list[Any]] = {}
        self._arrived: dict[str, asyncio.Event] = {}

    async def send(self, message: _Message) -> None:
        """Wait until there is room: a submitter that is slow, or has been stopped, slows the nodes down."""
        await self._messages.put(message)

    async def receive(self, seconds: float) -> list[_Message]:
        """What has come, after at most so many seconds."""
        deadline = time.monotonic() + seconds
        # Not wait_for: before Python 3.12 it may drop a message that comes as the time runs out.
        while self._messages.empty() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return [self._messages.get_nowait() for _ in range(self._messages.qsize())]

    async def pieces(self, sha256: str) -> list[Any]:
        """References to a file's pieces in the object store; the submitter is asked for a file once."""
        if sha256 not in self._arrived:
            self._arrived[sha256] = asyncio.Event()
            await self._messages.put(_Message(unit=-1, kind="wanted", name=sha256))
        await self._arrived[sha256].wait()
        return self._offered[sha256]

    async def offer(self, sha256: str, pieces: list[Any]) -> None:
        """Answer `pieces`."""
        self._offered[sha256] = pieces
        self._arrived[sha256].set()


# ----------------------------------------------------------------------------------------------------------- on the nodes


@dataclass(frozen=True)
class _Order:
    """What a node has to know to run any unit."""

    profile: str
    code: str
    units: tuple[Unit, ...]
    files: tuple[NodeFile, ...]
    command: Starter | None  # None: this program, by the node's own Python
    exchange: Any


def _run_unit(config: dict[str, int], *, order: _Order) -> None:
    """The trainable: run one unit in a workspace of its own and send what comes of it."""
    number = config["unit"]
    unit, exchange = order.units[number], order.exchange
    keep_to_cores_of_card()

    def send(kind: str, **content: Any) -> None:
        ray.get(exchange.send.remote(_Message(unit=number, kind=kind, **content)))

    def fetch(file: NodeFile) -> Iterable[bytes]:
        for piece in ray.get(exchange.pieces.remote(file.sha256)):
            yield ray.get(piece)

    # The processes that we start are to run this code too, whatever is installed here. Said once: a process that is kept for
    # the next unit must find the environment as it was, or `forked` would import everything again.
    ours, said = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    if said.split(os.pathsep)[0] != ours:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ours, said)))
    send("started")
    try:
        if all_code_sha256() != order.code:  # of a node that joined late
            raise ConfigError(_other_code(socket.gethostname(), all_code_sha256(), submitted=order.code))
        with node_workspace(order.profile, order.files, fetch) as workspace, ThreadPoolExecutor(max_workers=1) as pool:
            _stream(pool.submit(_launch, unit, workspace, order.command or COMMAND), unit, workspace, send)
    except (LowbitVitError, OSError) as error:
        send("ended", content=_last_line(error).encode())
    else:
        send("ended")


def _launch(unit: Unit, workspace: Workspace, command: Starter) -> None:
    if unit.timed:
        launch(unit.trials[0], workspace, threads=unit.threads, command=command)
    else:
        launch_scan(unit.trials, workspace, threads=unit.threads, command=command)


def _stream(running: "Future[None]", unit: Unit, workspace: Workspace, send: Any) -> None:
    """Send each record as soon as it is in place, and the log's end when all is over."""
    waiting = {trial.trial_id: workspace.records(trial.study) / f"{trial.trial_id}.json" for trial in unit.trials}
    over = False
    while not over:
        over = bool(wait([running], timeout=_PERIOD_S).done)
        for trial_id, path in list(waiting.items()):
            if path.exists():
                arrays = path.with_suffix(".npz")
                send("record", content=path.read_bytes(), predictions=arrays.read_bytes() if arrays.exists() else None)
                del waiting[trial_id]
    output = log_file(workspace, unit.trials, "trial" if unit.timed else "scan")
    if output.exists():
        send("log", name=output.name, content=_tail(output))
    running.result()


def _tail(output: Path) -> bytes:
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _LOG_TAIL_BYTES))
        return file.read()


@ray.remote(num_cpus=0, max_retries=0)
def _conduct(order: _Order, numbers: list[int]) -> None:
    """Tune, on the head node. What comes of a unit, the submitter learns from its messages."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="lowbit-tune-") as storage:
        trainable = tune.with_resources(
            tune.with_parameters(_run_unit, order=order),
            lambda config: tune.PlacementGroupFactory([order.units[config["unit"]].resources]),
        )
        tune.Tuner(
            trainable,
            param_space={"unit": tune.grid_search(numbers)},
            # An actor mostly waits, so it may wait for the next unit too: a new one costs 2 s.
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()


# ------------------------------------------------------------------------------------------------------- on the submitter


class _Submitter:
    """Runs units on the cluster and puts their records in place."""

    def __init__(self, units: Sequence[Unit], workspace: Workspace, command: Starter, progress: StudyProgress) -> None:
        trials = [trial for unit in units for trial in unit.trials]
        self._workspace, self._progress = workspace, progress
        self._units = tuple(units)
        self._wanted = {trial.trial_id: trial for trial in trials}
        self._open = dict.fromkeys(range(len(units)))  # units that have not ended, in order
        self._started: set[int] = set()
        self._lost: dict[str, int] = {}
        self._refused: dict[str, None] = {}
        files = list_files(workspace, trials)
        self._files = {file.sha256: file for file in files}
        self._exchange: Any = ray.remote(_Exchange).options(num_cpus=0, resources={_HEAD: 0.001}).remote()
        self._order = ray.put(
            _Order(
                profile=workspace.profile,
                code=all_code_sha256(),
                units=self._units,
                files=files,
                command=None if command == COMMAND else command,
                exchange=self._exchange,
            )
        )

    def run(self) -> None:
        """Every unit, those again that were lost with their node; at the end every trial has a record."""
        for attempt in range(1, _TRIES + 1):
            self._started.clear()
            self._follow(_conduct.options(resources={_HEAD: 0.001}).remote(self._order, list(self._open)))
            if self._refused:
                raise LowbitVitError(f"{len(self._open)} processes could not be run: {'; '.join(self._refused)}")
            for number in self._started & set(self._open):
                for trial in self._waiting(number)[:1]:  # the one that it was at
                    self._lost[trial.trial_id] = self._lost.get(trial.trial_id, 0) + 1
            if not self._open:
                return
            if attempt < _TRIES:
                log.warning("%d of %d processes were lost with their nodes: run again", len(self._open), len(self._units))
        for number in self._open:
            for trial in self._waiting(number):
                write_without_result(
                    trial, self._workspace, status="failed", reason=f"its node or Ray worker was lost, {_TRIES} times in a row"
                )

    def _waiting(self, number: int) -> list[Trial]:
        return [trial for trial in self._units[number].trials if trial.trial_id in self._wanted]

    def _follow(self, conductor: Any) -> None:
        """Handle messages until Tune has ended and nothing is left of them."""
        over = False
        while True:
            messages = ray.get(self._exchange.receive.remote(0.1 if over else _PERIOD_S))
            for message in messages:
                self._handle(message)
            self._progress.look()
            if over and not messages:
                return
            if not over and ray.wait([conductor], timeout=0)[0]:
                over = True
                try:
                    ray.get(conductor)
                except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError) as error:
                    log.warning("Tune ended early: %s", _last_line(error))

    def _handle(self, message: _Message) -> None:
        match message.kind:
            case "wanted":
                self._offer(self._files[message.name])
            case "started":
                self._started.add(message.unit)
                self._progress.start(str(message.unit), self._units[message.unit].trials)
            case "record":
                self._settle(message)
            case "log":
                path = self._workspace.reports / "logs" / Path(message.name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(message.content)
            case "ended":
                self._progress.end(str(message.unit))
                if message.content:
                    self._refused[message.content.decode()] = None
                else:
                    self._open.pop(message.unit, None)

    def _offer(self, file: NodeFile) -> None:
        """Put a file into the object store, piece by piece; only who lacks it asks."""
        pieces = [ray.put(piece) for piece in read_pieces(self._workspace.root / file.path)]
        ray.get(self._exchange.offer.remote(file.sha256, pieces))

    def _settle(self, message: _Message) -> None:
        """Write a record once: a unit that was given up for lost may still have sent one."""
        try:
            record = Record.model_validate_json(message.content)
        except ValidationError as error:
            raise DataError(f"a node sent what is no record: {error.errors()[0]['msg']}") from None
        if record.trial.trial_id != record.trial_id or not is_current(record):
            raise DataError(f"{record.trial_id}: a node sent the record of another trial or of other code")
        if self._wanted.pop(record.trial_id, None) is not None:
            put_record(record, self._workspace, predictions=message.predictions, lost=self._lost.get(record.trial_id, 0))


def run_on_cluster(units: Sequence[Unit], workspace: Workspace, *, title: str, folder: Path, command: Starter) -> None:
    """Run every unit on the cluster that is connected, and write its records here.

    Raises:
        LowbitVitError: a process could not be run at all, or the cluster was lost.
        DataError: a record cannot be written.
    """
    progress = StudyProgress(title, [trial for unit in units for trial in unit.trials], folder)
    try:
        with progress:
            _Submitter(units, workspace, command, progress).run()
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise LowbitVitError(
            f"{title}: the cluster was lost ({_last_line(error)}); finished trials are kept, run the same command again to go on"
        ) from error
