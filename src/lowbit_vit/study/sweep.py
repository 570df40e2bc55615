"""One study: every missing cell through Ray Tune, each cell's record in place at the end, or a clear word on what failed.

With RAY_ADDRESS it runs on that cluster (`cluster`), else on this machine, by a Ray of its own that nobody else can reach.
What is finished stays untouched: a study that was interrupted goes on where it was, from the records alone, so Tune's own
checkpoints are not used. A timing trial gets all CPUs, or a whole GPU, and a `profile_slot`: a machine has one, or one for each
of its cards where each can have cores of its own (`cores`), so that nothing else of the study runs on its card or its cores;
accuracy-only cells are scanned in chunks that share the machine.
"""

import fcntl
import functools
import logging
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from lowbit_vit.errors import DataError, LowbitVitError, TrialsFailed, Unavailable
from lowbit_vit.schema.code import is_current
from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.file_lock import hold
from lowbit_vit.schema.machine import cpu_cores, gpu_count, visible_gpu
from lowbit_vit.schema.record import Record, read_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cluster import cluster_address, connected, places_on, reasons_on, run_on_cluster, survey
from lowbit_vit.study.container import Container, Starter
from lowbit_vit.study.cores import keep_to_cores_of_card
from lowbit_vit.study.costs import expected_seconds
from lowbit_vit.study.finished import load_plans, load_scores, missing_trials, prune, starting_weights, why_not_here
from lowbit_vit.study.forked import take_servers_from
from lowbit_vit.study.grid import cells
from lowbit_vit.study.launch import COMMAND, is_forked, launch, launch_scan, own_variables, scratch_folder
from lowbit_vit.study.lifeline import unwinding_on_sigterm
from lowbit_vit.study.nursery import open_nursery
from lowbit_vit.study.progress import StudyProgress
from lowbit_vit.study.units import Unit, make_units, this_machine

log = logging.getLogger(__name__)

# The folders of Ray and of nurseries, and the file in each that its run has locked.
_PREFIX, _OWNER = "lowbit-", "owner"


def run_study(profile: Profile, study: Study, workspace: Workspace, *, command: Starter = COMMAND, card: str | None = None) -> list[Record]:
    """Bring the study's records up to date: every cell of the grid has one, and no other is there.

    It runs on the cluster that RAY_ADDRESS names, else on this machine.

    Args:
        profile: the profile.
        study: which study.
        workspace: its folders.
        command: what starts a trial's process or container; see `launch`.
        card: the kind of card that trials are to have, as Ray names it (H100); None: whichever.

    Returns:
        The records in the order of the grid; each is success or skipped.

    Raises:
        TrialsFailed: some trials did not succeed; the message names them. The others are in place.
        Busy: another run holds `reports/<profile>`.
        DataError: weights or scores are missing, a record cannot be written, or the code was changed during the study.
        LowbitVitError: a trial's process could not be run at all.
    """
    address = cluster_address()
    with _only_run(workspace, study), nullcontext() if address is None else connected(address):
        if isinstance(command, Container) and (stale := command.remove_stale(workspace)):
            log.info("%d containers of a killed run removed", stale)
        nodes = None if address is None else survey()
        scores = load_scores(workspace) if study == "mixed" else ()
        plans = load_plans(profile, workspace) if study == "mixed" else ()
        trials = cells(profile, study, scores=scores, plans=plans)
        folder = workspace.records(study)
        expected = expected_seconds(trials, folder)
        prune(workspace, study, keep={trial.trial_id for trial in trials})
        why_not = why_not_here if nodes is None else functools.partial(reasons_on, nodes)
        missing = missing_trials(trials, workspace, why_not=why_not, card=card)
        log.info("%s: %d cells, %d to run", study, len(trials), len(missing))
        if missing:
            for path in {starting_weights(trial, workspace) for trial in missing}:
                _require_weights(path, profile)
            title = f"{profile.name} {study}"
            if nodes is None:
                units = make_units(missing, replace(this_machine(), card=card), expected)
                _run_here(units, title, workspace, folder, command)
            else:
                places = places_on(nodes, missing, card=card)
                run_on_cluster(make_units(missing, places, expected), workspace, title=title, folder=folder, command=command)
        records = [read_record(folder / f"{trial.trial_id}.json") for trial in trials]
    failed = [record for record in records if record.status not in ("success", "skipped")]
    if failed:
        named = "; ".join(f"{record.trial.label!r} ({record.status}: {record.reason})" for record in failed)
        raise TrialsFailed(
            f"{study}: {len(failed)} of {len(records)} trials did not succeed: {named}; their output is in "
            f"reports/{profile.name}/logs, the same command runs them again"
        )
    _require_one_code(records, study)
    return records


def _require_one_code(records: Sequence[Record], study: Study) -> None:
    """A trial reads the sources when its process starts; whoever edits them during a study gets records of two codes.

    A container brings sources of its own.
    """
    other = sum(not is_current(record) for record in records)
    if other:
        raise DataError(
            f"{study}: {other} of {len(records)} trials ran with other code than this program's: it was changed meanwhile, or a "
            "container holds another version; run the same command again, with an image of this version"
        )


def _require_weights(path: Path, profile: Profile) -> None:
    if not path.is_file():
        from_root = Path(*path.parts[-3:])
        raise DataError(f"{from_root}: no such weights; run lowbit-vit backbone {profile.name}")


@contextmanager
def _only_run(workspace: Workspace, study: Study) -> Iterator[None]:
    """Hold the profile's reports folder."""
    with hold(workspace.reports / ".lock", named=f"reports/{workspace.profile}", doing=study):
        try:
            yield
        finally:
            # Nobody else works in this folder; an interrupted process had no time to clear its scratch.
            shutil.rmtree(scratch_folder(workspace), ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- Ray on this machine


def _run_unit(config: dict[str, int], *, units: Sequence[Unit], workspace: Workspace, command: Starter, nursery: Path | None) -> None:
    """The trainable. Runs in a Ray worker, which only waits for the process that does the work."""
    unit = units[config["unit"]]
    keep_to_cores_of_card()
    take_servers_from(nursery)
    if unit.timed:
        records = [launch(unit.trials[0], workspace, threads=unit.threads, command=command)]
    else:
        records = launch_scan(unit.trials, workspace, threads=unit.threads, command=command)
    tune.report({"records": len(records)})


def _run_here(units: list[Unit], title: str, workspace: Workspace, folder: Path, command: Starter) -> None:
    """Run every unit through Tune and make sure that every one came back."""
    progress = StudyProgress(title, [trial for unit in units for trial in unit.trials], folder)
    on_gpu = any("GPU" in unit.resources for unit in units)
    with progress, _nursery(units, workspace, command) as nursery, _ray(on_gpu=on_gpu) as storage:
        _require_resources(units)
        trainable = tune.with_resources(
            tune.with_parameters(_run_unit, units=units, workspace=workspace, command=command, nursery=nursery),
            lambda config: tune.PlacementGroupFactory([units[config["unit"]].resources]),
        )
        tuner = tune.Tuner(
            trainable,
            param_space={"unit": tune.grid_search(list(range(len(units))))},
            # An actor only waits, so it may wait for the next trial too: a new one costs 2 s.
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(storage_path=str(storage), verbose=0, callbacks=[_Follow(progress, units)]),
        )
        grid = tuner.fit()
        results = [grid[index] for index in range(len(grid))]
    # fit() does not raise when trials fail.
    errors = [_last_line(result.error) for result in results if result.error is not None]
    reported = sum(bool(result.metrics and result.metrics.get("records")) for result in results)
    if errors or grid.num_errors or reported != len(units):
        why = "; ".join(dict.fromkeys(errors)) or "Ray lost them"
        raise LowbitVitError(f"{title}: {len(units) - reported} of {len(units)} processes could not be run: {why}")


@contextmanager
def _nursery(units: Sequence[Unit], workspace: Workspace, command: Starter) -> Iterator[Path | None]:
    """Let one process import for all workers while Ray starts; None where nothing is forked.

    A worker whose trial has another number of threads than most cannot use it.
    """
    if not is_forked(command):
        yield None
        return
    ((threads, _),) = Counter(unit.threads for unit in units).most_common(1)
    environment = {**os.environ, **own_variables(threads)}
    card = visible_gpu() is not None  # as a worker asks that imports for itself
    # Not Ray's folder: Ray opens that to everyone.
    with _temporary_folder() as folder, open_nursery(folder / "nursery", environment, folder=workspace.root, card=card) as nursery:
        yield nursery


def _require_resources(units: Sequence[Unit]) -> None:
    """Tune would wait for ever for a card that is not there."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name in {name for unit in units for name in unit.resources if name not in there}:
        raise Unavailable(f"this machine has no {name}; it has: {', '.join(sorted(there))}")


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _Follow(tune.Callback):
    """Tells the progress what Tune starts and ends."""

    def __init__(self, progress: StudyProgress, units: Sequence[Unit]) -> None:
        self._progress = progress
        self._units = units

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we never do; a terminal cannot be pickled."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ten times a second; the progress looks once a second."""
        self._progress.look()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit was given to a worker."""
        self._progress.start(trial.trial_id, self._units[trial.config["unit"]].trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit came back."""
        self._progress.end(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit raised."""
        self._progress.end(trial.trial_id)


@contextmanager
def _ray(*, on_gpu: bool) -> Iterator[Path]:
    """Ray on this machine alone, without a network, its files in a folder of /tmp that is gone afterwards."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",  # no telemetry
        RAY_AIR_NEW_OUTPUT="0",  # else Tune prints tables whatever its verbosity is
        RAY_worker_niceness="0",  # Ray's 15 would let whatever else runs go before a timing trial
        RAY_memory_monitor_refresh_ms="0",  # launch watches memory, by the limits of the profile
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",  # no result files: our records are the results
        TUNE_DISABLE_SIGINT_HANDLER="1",  # Ctrl-C must raise here, where everything is ended
        TUNE_WARN_THRESHOLD_S="60",
    )
    # Ray lets in only who knows its token, and would keep one in the home folder: ours is new for each run of the program.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _temporary_folder() as folder, unwinding_on_sigterm() as prepare:
        try:
            ray.init(
                address="local",
                num_cpus=cpu_cores(),
                num_gpus=gpu_count() if on_gpu else 0,
                resources={"profile_slot": this_machine().slots},
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )
            prepare()
            yield folder
        finally:
            ray.shutdown()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is ours alone; those of runs that were killed are removed, which nobody else would do."""
    # Not TMPDIR: the names of sockets must stay below 108 bytes.
    parent = Path("/tmp")  # noqa: S108  (only folders whose lock was ours are removed)
    for left in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError), left.open("r+") as file:  # of another user, of a run that goes on, or just going
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with (folder / f".{_OWNER}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Path(file.name).rename(folder / _OWNER)  # seen by others only when it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
