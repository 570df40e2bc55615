"""Run one trial, or one scan of many accuracy-only cells, in a process or container of its own: JSON in, JSON out.

Every trial ends as a record: the one that its process wrote, or one that says how the process died. The process works in a scratch
folder beside the records; what it finishes is moved into place atomically, so that a record is there whole or not at all.
"""

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import psutil

from lowbit_vit.errors import DataError
from lowbit_vit.schema.code import code_sha256
from lowbit_vit.schema.config import Limits, Trial
from lowbit_vit.schema.record import Provenance, Record, Status, read_record, sha256, write_record
from lowbit_vit.schema.workspace import NOW, Workspace
from lowbit_vit.study.container import Container, Starter
from lowbit_vit.study.lifeline import LIFELINE
from lowbit_vit.study.process import RUN, SERVER_LOST, Process, exit_code, kill_group, start_fork, start_program

log = logging.getLogger(__name__)

# Seconds between two looks at the process. A look costs some 50 us, so a timing trial does not feel it.
_PERIOD = 0.1
# What docker and podman exit with when the process inside died of SIGKILL: the memory limit of a container does that.
_KILLED_INSIDE = 137


@dataclass(frozen=True)
class _Ending:
    """How a process ended: what to say of a trial that it left without a record."""

    status: Literal["failed", "oom", "timeout"]
    reason: str
    by_itself: bool = False
    at: tuple[str, ...] = ()  # ids of the trials that it was at, where it said so


def launch(trial: Trial, workspace: Workspace, *, threads: int, command: Starter | None = None) -> Record:
    """Run one trial in a process of its own with the whole of `trial.limits`, and put its record among the study's.

    Args:
        trial: any trial.
        workspace: where it runs and where its record goes.
        threads: CPU threads of the process (OMP_NUM_THREADS).
        command: a program to start in the workspace's root, to which `trial FILE --out FOLDER` is added, or a container, which
            starts with the command of its image; None: a fork of this program.

    Returns:
        The record, whatever its status. A process that died leaves `failed`, one that outlived `limits.seconds` `timeout`,
        one whose own memory (resident without file pages, looked at every 0.1 s) passed `limits.memory_gib` `oom`.

    Raises:
        DataError: the record cannot be written.
        LowbitVitError: the process could not be forked.
        OSError: the program could not be started.
    """
    records, ending = _run_process("trial", [trial], workspace, threads=threads, command=command)
    return records[0] if records else _conclude(trial, ending, workspace)


def launch_scan(trials: Sequence[Trial], workspace: Workspace, *, threads: int, command: Starter | None = None) -> list[Record]:
    """Run accuracy-only trials one after another in one warm process; the limits are those of each trial.

    If the process dies, the trial that it was at is to blame (of those that share the block that it was at, the first: it would
    have died of that block alone, too) and the rest goes on in a new process. If it gives up by itself before its first record
    (no backbone, no data), the same would happen to all, and all get that reason.

    Args:
        trials: of one profile and backbone, in the order in which they are run.
        workspace: as in `launch`.
        threads: as in `launch`.
        command: as in `launch`, with `scan`.

    Returns:
        One record a trial.

    Raises:
        DataError: a record cannot be written.
        LowbitVitError: a process could not be forked.
    """
    waiting, records = list(trials), list[Record]()
    while waiting:
        finished, ending = _run_process("scan", waiting, workspace, threads=threads, command=command)
        done = {record.trial_id for record in finished}
        waiting = [trial for trial in waiting if trial.trial_id not in done]
        records += finished
        suspects = [trial for trial in waiting if trial.trial_id in ending.at] or waiting
        blamed = waiting if ending.by_itself and not finished else suspects[:1]
        records += [_conclude(trial, ending, workspace) for trial in blamed]
        waiting = [trial for trial in waiting if trial not in blamed]
    return records


def log_file(workspace: Workspace, trials: Sequence[Trial], verb: str) -> Path:
    """Where the output of the process goes: `reports/<profile>/logs/<trial_id>.log`, or `scan-<first trial_id>.log`."""
    name = trials[0].trial_id if verb == "trial" else f"scan-{trials[0].trial_id}"
    return workspace.reports / "logs" / f"{name}.log"


# ---------------------------------------------------------------------------------------------------------- the process


def _run_process(
    verb: Literal["trial", "scan"], trials: Sequence[Trial], workspace: Workspace, *, threads: int, command: Starter | None
) -> tuple[list[Record], _Ending]:
    """Start the process, see it to its end, and return what it finished, in order of finishing."""
    scratch_root = scratch_folder(workspace)
    scratch_root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=scratch_root))
    out = scratch / "out"
    out.mkdir()
    request = scratch / "request.json"
    documents = [trial.model_dump_json() for trial in trials]
    request.write_text(documents[0] if verb == "trial" else f"[{','.join(documents)}]")
    output = log_file(workspace, trials, verb)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Relative, because the command stands in the record, and a folder of this machine says nothing elsewhere.
    arguments = tuple(str(path.relative_to(workspace.root)) for path in (request, out))
    start = output.stat().st_size if output.exists() else 0
    limits = trials[0].limits
    variables = {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    process: Process
    try:
        if command is None:
            work = (verb, *arguments, str(workspace.root))
            process = start_fork(RUN, work, folder=workspace.root, output=output, variables=variables)
        else:
            program = command
            if isinstance(program, Container):
                program.admit(scratch, out)
                environment = {**variables, LIFELINE: "stdin"}
                program = program.command(scratch.name, workspace, scratch, limits=limits, environment=environment)
            work = (verb, arguments[0], "--out", arguments[1])
            process = start_program([*program, *work], folder=workspace.root, output=output, variables=variables)
        try:
            records, ending = _watch(process, trials, out, workspace, limits=limits)
        finally:
            kill_group(process)
            if isinstance(command, Container):
                command.remove(scratch.name)
        if ending is None:
            ending = _ending(process, output, start)
        at = (out / NOW).read_text().split() if (out / NOW).exists() else ()
        return records, replace(ending, at=tuple(at))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_folder(workspace: Workspace) -> Path:
    """Beside the records, for a rename must not cross file systems; not among them, for the folder is an output of DVC."""
    return workspace.reports / ".scratch"


def _watch(
    process: Process, trials: Sequence[Trial], out: Path, workspace: Workspace, *, limits: Limits
) -> tuple[list[Record], _Ending | None]:
    """Move records into place as they appear, until the process ends or breaks a limit (then the ending says which)."""
    wanted = {trial.trial_id: trial for trial in trials}
    records: list[Record] = []
    started = time.monotonic()
    while True:
        exited = exit_code(process) is not None
        fresh = _collect(out, wanted, workspace)
        records += fresh
        if exited:
            return records, None
        if fresh:
            started = time.monotonic()
        if time.monotonic() - started > limits.seconds:
            return records, _Ending("timeout", f"still running after limits.seconds = {limits.seconds:g} s; stopped")
        used = _own_memory_gib(process.pid)
        if used > limits.memory_gib:
            return records, _Ending(
                "oom", f"the process held {used:.2f} GiB of host memory, more than limits.memory_gib = {limits.memory_gib:g}; stopped"
            )
        time.sleep(_PERIOD)


def _own_memory_gib(pid: int | None) -> float:
    """Resident memory of the process without pages of files: a memory-mapped data set costs nothing that can run out."""
    try:
        usage = psutil.Process(pid).memory_info()
    except psutil.Error:  # it has just ended
        return 0.0
    return float(usage.rss - getattr(usage, "shared", 0)) / 2**30


def _ending(process: Process, output: Path, start: int) -> _Ending:
    """Say how a process that ended without our doing left its missing trials."""
    code = exit_code(process) or 0  # it has ended
    if isinstance(process, BaseProcess) and code == SERVER_LOST:
        return _Ending("failed", "stopped: the process that it was forked from was killed, or the kernel was out of memory")
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; kill -9, or the kernel was out of memory" if -code == signal.SIGKILL else ""
        return _Ending("failed", f"killed by signal {-code} ({name}{hint})")
    if code == _KILLED_INSIDE:
        return _Ending("oom", "the container was killed: it held more than limits.memory_gib, or somebody killed it")
    return _Ending("failed", f"exit code {code} without a record: {_last_line(output, start)}", by_itself=True)


def _last_line(output: Path, start: int) -> str:
    with output.open("rb") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    spoken = [line for line in lines if line]
    return spoken[-1][:300] if spoken else f"it said nothing; see {output.name}"


# ---------------------------------------------------------------------------------------------------------- the records


def _collect(out: Path, wanted: dict[str, Trial], workspace: Workspace) -> list[Record]:
    """Move the finished records of the scratch folder into the study's; a record appears there by a rename, so it is whole."""
    records = []
    for path in sorted(out.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime_ns):
        trial = wanted.get(path.stem)
        if trial is None:
            raise DataError(f"{path.name}: a record of a trial that was not asked for")
        record = read_record(path)
        records.append(_settle(record, workspace, predictions=path.with_suffix(".npz")))
        path.unlink()
    return records


def _conclude(trial: Trial, ending: _Ending, workspace: Workspace) -> Record:
    """Write the record of a trial whose process could not."""
    return write_without_result(trial, workspace, status=ending.status, reason=ending.reason)


def write_without_result(
    trial: Trial, workspace: Workspace, *, status: Status, reason: str, provenance: Provenance | None = None
) -> Record:
    """Write a record that holds nothing but its status and the reason, in place of what was there.

    Raises:
        DataError: it cannot be written.
    """
    record = Record(trial_id=trial.trial_id, status=status, reason=reason, trial=trial, provenance=provenance, code_sha256=code_sha256())
    return _settle(record, workspace, predictions=None)


def _settle(record: Record, workspace: Workspace, *, predictions: Path | None) -> Record:
    """Put a record in its place: predictions first, so that a JSON that says success always has them."""
    folder = workspace.records(record.trial.study)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = folder / f"{record.trial_id}.npz"
    record = record.model_copy(update={"attempts": _attempts(folder / f"{record.trial_id}.json")})
    if record.status == "success" and predictions is not None and predictions.exists():
        predictions.replace(arrays)
        write_record(record, folder)
    else:
        write_record(record, folder)
        arrays.unlink(missing_ok=True)
    return record


def put_record(record: Record, workspace: Workspace, *, predictions: bytes | None, lost: int) -> Record:
    """Put a record that was made on another machine in its place among the study's.

    Args:
        record: as that machine wrote it.
        workspace: of this one.
        predictions: the npz file's content; None if there is none.
        lost: how often the trial was started in vain before, without leaving a record.

    Raises:
        DataError: the predictions are not those that the record names, or they cannot be written.
    """
    if record.evaluation is not None and (predictions is None or sha256(predictions) != record.evaluation.predictions_sha256):
        raise DataError(f"{record.trial_id}: the predictions that came with the record are not those that it names; run again")
    folder = workspace.records(record.trial.study)
    attempts = _attempts(folder / f"{record.trial_id}.json") + lost
    if predictions is None:
        (folder / f"{record.trial_id}.npz").unlink(missing_ok=True)
    record = record.model_copy(update={"attempts": attempts})
    write_record(record, folder, predictions)
    return record


def _attempts(path: Path) -> int:
    """How often this trial has now been tried without success in between."""
    try:
        before = read_record(path)
    except DataError:  # none, or not readable: it is replaced
        return 1
    return 1 if before.status in ("success", "skipped") else before.attempts + 1
