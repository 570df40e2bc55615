"""One study: every missing cell through Ray Tune, each cell's record in place at the end, or a clear word on what failed.

With RAY_ADDRESS it runs on that cluster, else on a cluster of one node: a Ray of its own on this machine (`cluster`, `schedule`).
What is finished stays untouched: a study that was interrupted goes on where it was, from the records alone (`resume`). A timing
trial gets all CPUs, or a whole GPU, and a `profile_slot`: a machine has one, or one for each of its GPUs where each can have cores
of its own (`places`), so that nothing else of the study runs on its GPU or its cores; accuracy-only cells are scanned in
chunks that share the machine.
"""

import functools
import logging
import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from lowbit_vit.errors import DataError, TrialsFailed
from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.file_lock import hold
from lowbit_vit.schema.record import Record, read_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.cluster import cluster_address, connected, own_ray, places_on, reasons_on, survey
from lowbit_vit.study.container import Container, Starter
from lowbit_vit.study.launch import scratch_folder
from lowbit_vit.study.places import this_machine
from lowbit_vit.study.resume import load_plans, load_scores, missing_trials, prune, repeatable, starting_weights, why_not_here
from lowbit_vit.study.schedule import RETRIES, RayLost, run_units
from lowbit_vit.study.units import expected_seconds, make_units

log = logging.getLogger(__name__)


def run_study(
    profile: Profile, study: Study, workspace: Workspace, *, command: Starter | None = None, gpu_kind: str | None = None
) -> list[Record]:
    """Bring the study's records up to date: every cell of the grid has one, and no other is there.

    It runs on the cluster that RAY_ADDRESS names, else on this machine.

    Args:
        profile: the profile.
        study: which study.
        workspace: its folders.
        command: what starts a trial's process or container; see `launch`.
        gpu_kind: the kind of GPU that trials are to have, as Ray names it (H100); None: any.

    Returns:
        The records in the order of the grid; each is success or skipped.

    Raises:
        TrialsFailed: some trials did not succeed, or Ray's own processes were lost again and again; the message names them. The
            others are in place.
        Busy: another run holds `reports/<profile>`.
        DataError: weights or scores are missing, a record cannot be written, or the code was changed during the study.
        LowbitVitError: a trial's process could not be run at all, or the cluster was lost.
    """
    with ExitStack() as held:
        held.enter_context(hold(workspace.reports / ".lock", named=f"reports/{workspace.profile}", doing=study))
        # No other process works in this folder; an interrupted one had no time to clear its scratch.
        held.callback(shutil.rmtree, scratch_folder(workspace), ignore_errors=True)
        for _ in range(RETRIES + 1):
            try:
                records = _complete(profile, study, workspace, command=command, gpu_kind=gpu_kind)
                break
            except RayLost as error:
                lost = str(error)
                log.warning("%s: a process of Ray's own was lost (%s)", study, lost)
        else:
            raise TrialsFailed(
                f"{study}: a process of Ray's own was lost {RETRIES + 1} times in a row ({lost}); finished trials are kept, run the same "
                "command again to go on"
            )
    failed = [record for record in records if record.status not in ("success", "skipped")]
    if failed:
        named = "; ".join(f"{record.trial.label!r} ({record.status}: {record.reason})" for record in failed)
        raise TrialsFailed(
            f"{study}: {len(failed)} of {len(records)} trials did not succeed: {named}; their output is in "
            f"reports/{profile.name}/logs, the same command runs them again"
        )
    return records


def _complete(profile: Profile, study: Study, workspace: Workspace, *, command: Starter | None, gpu_kind: str | None) -> list[Record]:
    """Run what is missing; the records in the order of the grid, whatever their status."""
    if isinstance(command, Container) and (stale := command.remove_stale(workspace)):
        log.info("%d containers of a killed run removed", stale)
    address = cluster_address()
    with nullcontext() if address is None else connected(address):
        nodes = None if address is None else survey()
        scores = load_scores(workspace) if study == "mixed" else ()
        plans = load_plans(profile, workspace) if study == "mixed" else ()
        trials = cells(profile, study, scores=scores, plans=plans)
        folder = workspace.records(study)
        expected = expected_seconds(trials, folder)
        prune(workspace, study, keep={trial.trial_id for trial in trials})
        why_not = why_not_here if nodes is None else functools.partial(reasons_on, nodes)
        missing = missing_trials(trials, workspace, why_not=why_not, gpu_kind=gpu_kind)
        log.info("%s: %d cells, %d to run", study, len(trials), len(missing))
        if missing:
            for path in {starting_weights(trial, workspace) for trial in missing}:
                if not path.is_file():
                    raise DataError(f"{Path(*path.parts[-3:])}: no such weights; run lowbit-vit backbone {profile.name}")
            places = replace(this_machine(), gpu_kind=gpu_kind) if nodes is None else places_on(nodes, missing, gpu_kind=gpu_kind)
            first, repeats = ([trial for trial in missing if (trial.process > 0) == repeat] for repeat in (False, True))
            with own_ray(make_units(missing, places, expected)) if nodes is None else nullcontext() as own:
                if first:
                    run_units(make_units(first, places, expected), workspace, title=f"{profile.name} {study}", command=command, own=own)
                # What a first process trained is there when its repeats begin.
                repeats = repeatable(repeats, workspace)
                if repeats:
                    title = f"{profile.name} {study}, repeats"
                    run_units(make_units(repeats, places, expected), workspace, title=title, command=command, own=own)
        return [read_record(folder / f"{trial.trial_id}.json") for trial in trials]
