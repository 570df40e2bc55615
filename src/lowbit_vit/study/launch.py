"""Run one trial, or one scan of many accuracy-only cells, in a process or container of its own: JSON in, records out.

Every trial ends as a record: the one that its process wrote, or one that names how the process died. The process works in a scratch
folder beside the records.
"""

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import psutil

from lowbit_vit.errors import DataError
from lowbit_vit.schema.code_hash import code_sha256
from lowbit_vit.schema.config import Limits, Trial
from lowbit_vit.schema.record import Provenance, Record, Status, read_record, shorten
from lowbit_vit.schema.workspace import NOW, TRAINED, Workspace
from lowbit_vit.study.container import Container, Starter
from lowbit_vit.study.process import LIFELINE, RUN, SERVER_LOST, Process, exit_code, kill_group, start_fork, start_program

log = logging.getLogger(__name__)

Verb = Literal["trial", "scan"]
# Seconds between two looks at the process. A look costs some 50 us, so a timing trial is not disturbed.
_PERIOD = 0.1
# What docker and podman exit with when the process inside died of SIGKILL: the memory limit of a container does that.
_KILLED_INSIDE = 137


@dataclass(frozen=True)
class _Ending:
    """How a process ended: the status and reason of a trial that it left without a record."""

    status: Literal["failed", "oom", "timeout"]
    reason: str
    by_itself: bool = False
    at: tuple[str, ...] = ()  # ids of the trials that it was at, where it wrote them down


# A record, and the content of its predictions' file where it has one.
Finished = tuple[Record, bytes | None]


def launch(
    trials: Sequence[Trial], workspace: Workspace, *, verb: Verb, threads: int, command: Starter | None = None
) -> Iterator[Finished]:
    """Run a trial, or accuracy-only trials one after another, in a warm process of their own, each with the whole of its limits.

    If the process is killed, the record of the trial that ran gives the signal (of trials that share a block, the first: it fails in
    that block alone, too), and the others run in a new process. If it exits by itself before its first record (no backbone, no
    data), all trials get that reason.

    Args:
        trials: one for `trial`; for `scan`, of one profile and backbone, in the order in which they are run.
        workspace: where they run.
        verb: what the process does.
        threads: CPU threads of the process (OMP_NUM_THREADS).
        command: a program to start in the workspace's root, to which `VERB FILE --out FOLDER` is added, or a container, which
            starts with the command of its image; None: a fork of this program.

    Yields:
        For each trial, as soon as it is there, its record, whatever its status. A process that died leaves `failed`, one that
        outlived `limits.seconds` `timeout`, one whose own memory (resident without file pages, looked at every 0.1 s) passed
        `limits.memory_gib` `oom`.

    Raises:
        DataError: the process wrote what is no record.
        LowbitVitError: the process could not be forked.
        OSError: the program could not be started.
    """
    waiting = {trial.trial_id: trial for trial in trials}
    while waiting:
        before = len(waiting)
        ending = yield from _run_process(waiting, workspace, verb=verb, threads=threads, command=command)
        suspects = [trial_id for trial_id in ending.at if trial_id in waiting] or list(waiting)
        blamed = list(waiting) if ending.by_itself and len(waiting) == before else suspects[:1]
        for trial_id in blamed:
            yield without_result(waiting.pop(trial_id), status=ending.status, reason=ending.reason), None


def without_result(trial: Trial, *, status: Status, reason: str, provenance: Provenance | None = None) -> Record:
    """A record that holds nothing but its status and the reason."""
    why = shorten(reason)
    return Record(trial_id=trial.trial_id, status=status, reason=why, trial=trial, provenance=provenance, code_sha256=code_sha256())


def log_file(workspace: Workspace, trials: Sequence[Trial], verb: Verb) -> Path:
    """Where the output of the process goes: `reports/<profile>/logs/<trial_id>.log`, or `scan-<first trial_id>.log`."""
    name = trials[0].trial_id if verb == "trial" else f"scan-{trials[0].trial_id}"
    return workspace.reports / "logs" / f"{name}.log"


# ---------------------------------------------------------------------------------------------------------- the process


def _run_process(
    waiting: dict[str, Trial], workspace: Workspace, *, verb: Verb, threads: int, command: Starter | None
) -> Generator[Finished, None, _Ending]:
    """Start the process, take what it finishes out of `waiting`, and see the process to its end."""
    trials = list(waiting.values())
    scratch_root = scratch_folder(workspace)
    scratch_root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=scratch_root))
    out = scratch / "out"
    out.mkdir()
    if trials[0].process:
        (out / TRAINED).mkdir()
        for path in (workspace.reports / TRAINED).glob(f"{trials[0].first_process.trial_id}.*"):
            shutil.copyfile(path, out / TRAINED / path.name)
    request = scratch / "request.json"
    documents = [trial.model_dump_json() for trial in trials]
    request.write_text(documents[0] if verb == "trial" else f"[{','.join(documents)}]")
    output = log_file(workspace, trials, verb)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Relative, because the command stands in the record, and a folder of this machine means nothing elsewhere.
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
            ending = yield from _watch(process, waiting, out, limits=limits)
        finally:
            kill_group(process)
            if isinstance(command, Container):
                command.remove(scratch.name)
        for path in (out / TRAINED).glob("[!.]*"):
            (workspace.reports / TRAINED).mkdir(exist_ok=True)
            path.replace(workspace.reports / TRAINED / path.name)
        at = (out / NOW).read_text().split() if (out / NOW).exists() else ()
        return replace(ending or _ending(process, output, start), at=tuple(at))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_folder(workspace: Workspace) -> Path:
    """Beside the records, for a rename must not cross file systems; not among them, for the folder is an output of DVC."""
    return workspace.reports / ".scratch"


def _watch(process: Process, waiting: dict[str, Trial], out: Path, *, limits: Limits) -> Generator[Finished, None, _Ending | None]:
    """Yield what is finished until the process ends or breaks a limit (then the ending says which)."""
    started = time.monotonic()
    while True:
        exited = exit_code(process) is not None
        # A record appears by a rename, after its predictions, so it is whole.
        for path in sorted(out.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime_ns):
            if path.stem not in waiting:
                raise DataError(f"{path.name}: a record of a trial that was not asked for")
            record, arrays = read_record(path), path.with_suffix(".npz")
            predictions = arrays.read_bytes() if record.status == "success" and arrays.exists() else None
            for file in (path, arrays):
                file.unlink(missing_ok=True)
            del waiting[path.stem]
            yield record, predictions
            started = time.monotonic()
        if exited:
            return None
        if time.monotonic() - started > limits.seconds:
            return _Ending("timeout", f"still running after limits.seconds = {limits.seconds:g} s; stopped")
        used = _own_memory_gib(process.pid)
        if used > limits.memory_gib:
            more = f"more than limits.memory_gib = {limits.memory_gib:g}"
            return _Ending("oom", f"the process held {used:.2f} GiB of host memory, {more}; stopped")
        time.sleep(_PERIOD)


def _own_memory_gib(pid: int | None) -> float:
    """Resident memory of the process without pages of files: a memory-mapped data set costs nothing that can run out."""
    try:
        usage = psutil.Process(pid).memory_info()
    except psutil.Error:  # it has just ended
        return 0.0
    return float(usage.rss - getattr(usage, "shared", 0)) / 2**30


def _ending(process: Process, output: Path, start: int) -> _Ending:
    """The ending of a process that was not stopped from here."""
    code = exit_code(process) or 0  # it has ended
    if isinstance(process, BaseProcess) and code == SERVER_LOST:
        return _Ending("failed", "stopped: the process that it was forked from was killed, or the kernel was out of memory")
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; kill -9, or the kernel was out of memory" if -code == signal.SIGKILL else ""
        return _Ending("failed", f"killed by signal {-code} ({name}{hint})")
    if code == _KILLED_INSIDE:
        return _Ending("oom", "the container was killed: it held more than limits.memory_gib, or it was killed by hand")
    with output.open("rb") as stream:
        stream.seek(start)
        spoken = stream.read().decode(errors="replace").splitlines()
    said = next((line.strip()[:300] for line in reversed(spoken) if line.strip()), f"it said nothing; see {output.name}")
    return _Ending("failed", f"exit code {code} without a record: {said}", by_itself=True)
