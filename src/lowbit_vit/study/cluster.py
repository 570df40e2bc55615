"""The Ray that a study runs on: one of its own on this machine, or a running cluster, and what its nodes can run.

The submitter connects to a running cluster by RAY_ADDRESS: from anywhere through `ray://HOST:10001`, on a node of the cluster (the
driver of a Ray job is) by the address that Ray gives. Its package travels with the connection, so the nodes run its code.
"""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.code_hash import all_code_sha256
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.file_lock import temporary_folder
from lowbit_vit.schema.machine import cpu_cores, gpu_count, provenance, visible_gpu
from lowbit_vit.study.places import Places, this_machine
from lowbit_vit.study.resume import why_not_here
from lowbit_vit.study.units import Unit

log = logging.getLogger(__name__)

# For the processes that run Tune and its trainables.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables whatever its verbosity is
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result files: the records are the results
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its state is never restored, and grows with the number of trials
}
_CONNECTIONS = 3
# Of the folders of own Rays and of sockets.
FOLDER_PREFIX = "lowbit-"
# Not TMPDIR: the names of sockets must stay below 108 bytes.
TEMPORARY = Path("/tmp")  # noqa: S108  (only folders whose lock was free are removed)
# A resource that the head node alone has.
HEAD = "node:__internal_head__"
_KIND = "accelerator_type:"


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
    """A connection to a running cluster; what it still runs for this program ends with it.

    Raises:
        Unavailable: there is none, or it refuses the connection.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # in a Ray job, this one is added to the job's own
    logging.getLogger("ray").setLevel(logging.ERROR)
    environment = {**_ENVIRONMENT, "LOWBIT_VIT_REVISION": provenance("").git_revision or "unknown"}
    package = Path(__file__).parents[1]
    runtime_env = {"py_modules": [str(package)], "excludes": ["__pycache__"], "env_vars": environment}
    with _until_shutdown(partial(_connect, address, runtime_env)):
        yield


def _connect(address: str, runtime_env: dict[str, Any]) -> None:
    """Connect, again where the head was too busy to start the process that serves a ray:// connection within Ray's 30 s."""
    for attempt in range(1, _CONNECTIONS + 1):
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, runtime_env=runtime_env)
            return
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if attempt == _CONNECTIONS or "Starting Ray client server failed" not in str(error):
                raise Unavailable(f"RAY_ADDRESS={address}: no cluster to work with: {last_line(error)}") from error
            log.info("%s: the head is busy, connecting again", address)
            ray.shutdown()


@contextmanager
def own_ray(units: Sequence[Unit]) -> Iterator[Path]:
    """A local Ray of one node, this machine, without a network; yields its folder in /tmp, which is gone afterwards.

    Args:
        units: to be run.

    Raises:
        Unavailable: this machine lacks a resource that a unit asks for; Tune would wait for it without end.
    """
    os.environ.update(
        _ENVIRONMENT,
        RAY_USAGE_STATS_ENABLED="0",  # no telemetry
        RAY_worker_niceness="0",  # Ray's 15 would let whatever else runs go before a timing trial
        RAY_memory_monitor_refresh_ms="0",  # launch watches memory, by the limits of the profile
    )
    # Ray admits processes by a token, and would keep one in the home folder; this one is new for each run of the program.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger("ray").setLevel(logging.ERROR)
    with temporary_folder(TEMPORARY, prefix=FOLDER_PREFIX) as folder:
        start = partial(
            ray.init,
            address="local",
            num_cpus=cpu_cores(),
            num_gpus=gpu_count() if any("GPU" in unit.resources for unit in units) else 0,
            resources={"profile_slot": this_machine().slots},
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
        with _until_shutdown(start):
            there = ray.cluster_resources()  # type: ignore[no-untyped-call]
            for name in {name for unit in units for name in unit.resources if name not in there}:
                raise Unavailable(f"this machine has no {name}; it has: {', '.join(sorted(there))}")
            yield folder


@contextmanager
def _until_shutdown(start: Callable[[], object]) -> Iterator[None]:
    """Start or reach a Ray, and shut it down at the end; SIGTERM unwinds as Ctrl-C does, so that processes and folders are cleared."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        start()
        signal.signal(signal.SIGTERM, _interrupt)  # after Ray has set a handler that ends the process on the spot
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: the one exception that Ray passes on from everywhere."""
    raise KeyboardInterrupt


def last_line(error: BaseException) -> str:
    """The last line of an error: its message without the traceback of another process that Ray puts before it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


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
    def gpu_kinds(self) -> tuple[str, ...]:
        """The kinds of GPU that it offers, as Ray names them."""
        return tuple(name.removeprefix(_KIND) for name in self.resources if name.startswith(_KIND))


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
            raise ConfigError(other_code(node.name, node.code, submitted=all_code_sha256()))
    return tuple(nodes)


def _on(identity: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(identity, soft=False)


def other_code(node: str, code: str, *, submitted: str) -> str:
    """The reason why a node's result cannot be used."""
    return f"node {node}: it runs other code (sha256 {code[:12]}) than the submitter ({submitted[:12]}); install the same everywhere"


@ray.remote(num_cpus=0, max_retries=0)
def _describe(identity: str, resources: dict[str, float]) -> Node:
    with _gpus_visible():
        gpu = visible_gpu()
    return Node(name=socket.gethostname(), identity=identity, resources=resources, code=all_code_sha256(), gpu=gpu.name if gpu else None)


def places_on(nodes: Sequence[Node], trials: Sequence[Trial], *, gpu_kind: str | None) -> Places:
    """What the trials can be run on.

    Args:
        nodes: of `survey`.
        trials: of one study; those that are timed are to have the same kind of GPU.
        gpu_kind: the one that was asked for; None: any.

    Raises:
        Unavailable: no node has that GPU, or none takes timing trials.
        ConfigError: timing trials, and several kinds of GPU to choose from.
    """
    timed = [trial for trial in trials if trial.measurement is not None]
    timed_on_gpu = any(trial.device == "cuda" for trial in timed)
    kinds = sorted({kind for node in nodes for kind in node.gpu_kinds})
    if gpu_kind is not None and gpu_kind not in kinds:
        raise Unavailable(f"--gpu {gpu_kind}: no node of the cluster has one; there are: {', '.join(kinds) or 'none'}")
    if timed_on_gpu and gpu_kind is None and len(kinds) > 1:
        raise ConfigError(f"the cluster has {', '.join(kinds)}: times of different GPUs cannot be compared; choose with --gpu")
    if timed_on_gpu and gpu_kind is None and kinds:
        gpu_kind = kinds[0]  # a node that joins later may bring another
    fit = [node for node in nodes if gpu_kind is None or gpu_kind in node.gpu_kinds]
    slots = [node for node in fit if node.resources.get("profile_slot", 0) >= 1]
    if timed and not slots:
        raise Unavailable("the cluster: no node takes timing trials; start nodes with ray start --resources '{\"profile_slot\": 1}'")
    return Places(
        cpus=int(sum(node.resources.get("CPU", 0) for node in fit)),
        gpus=int(sum(node.resources.get("GPU", 0) for node in fit)),
        cores=int(max(node.resources.get("CPU", 0) for node in slots or fit)),
        gpu_kind=gpu_kind,
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
    with _gpus_visible():
        return why_not_here(trials)


@contextmanager
def _gpus_visible() -> Iterator[None]:
    """Look at a node's GPUs without taking one: Ray may hide them from a task that asks for none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if hidden:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    try:
        yield
    finally:
        if hidden:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
