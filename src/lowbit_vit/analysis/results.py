"""What every verb reads: the records of a profile with their per-image predictions, through one check, and what is computed of them.

Records lie loose, a file for each trial, or in the Parquet files of `analysis/archive.py`; the same is checked of both. Each trial
is checked against its predictions, and all trials against each other: records of different code, images or weights are never put side
by side, and pairs of images are the same image.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowbit_vit.analysis.archive import is_archived, read_archive
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import label_of
from lowbit_vit.schema.config import STUDIES, Study, Trial
from lowbit_vit.schema.metrics import Accuracy, LatencySummary, summarize_latency
from lowbit_vit.schema.predictions import Predictions, read_predictions
from lowbit_vit.schema.record import FIRST_EDITION, KernelTime, Record, read_record
from lowbit_vit.schema.workspace import Workspace

GPUS = "GPUs"  # an origin of timings alone
# Above both, a latency is the host's. Eager ViT-L/16 leaves an H200 idle for 61 % or more at batch 1, a CUDA graph for 11 % at most;
# between processes eager medians differ by a factor of up to two, those of graphs by 3 % (benchmarks/records/process_spread.json).
HOST_BOUND_IDLE, HOST_BOUND_SPREAD = 0.25, 1.10
_ADVICE = "run the study again, or copy the records again"


@dataclass(frozen=True)
class Result:
    """One trial: its record, its predictions if it succeeded, the records of its repeats, and what is computed of them."""

    record: Record
    predictions: Predictions | None
    repeats: tuple[Record, ...] = ()

    @cached_property
    def whole(self) -> Accuracy | None:
        """Accuracy on the whole test split; None without predictions, as of the next two."""
        return None if self.predictions is None else self.predictions.accuracy()

    @cached_property
    def selection(self) -> Accuracy | None:
        """Accuracy on the half that things are chosen on."""
        return None if self.predictions is None else self.predictions.accuracy(self.predictions.selection)

    @cached_property
    def report(self) -> Accuracy | None:
        """Accuracy on the half that nothing is chosen on."""
        return None if self.predictions is None else self.predictions.accuracy(~self.predictions.selection)

    @cached_property
    def latency(self) -> dict[int, LatencySummary]:
        """By batch size, in the order in which they were measured; empty where nothing was timed."""
        timed = () if self.record.measurement is None else self.record.measurement.latency
        repeats = {
            (item.batch_size, record.trial.process): item.samples_ms
            for record in self.repeats
            if record.measurement is not None
            for item in record.measurement.latency
        }
        return {
            item.batch_size: summarize_latency(
                item.samples_ms,
                batch_size=item.batch_size,
                repeats={process: samples for (batch, process), samples in repeats.items() if batch == item.batch_size},
            )
            for item in timed
        }

    def is_host_bound(self, batch_size: int) -> bool:
        """Whether the GPU waits for the host, and processes differ in how long: one median then says little of the variant.

        Without a trace nobody knows how long a GPU waits; that processes differ so much has no other cause that we saw.
        """
        traced = () if self.record.measurement is None else self.record.measurement.kernels
        idle = [(self.idle_us(item) or 0) / self.wall_us(item) for item in traced if item.batch_size == batch_size]
        waits = any(share > HOST_BOUND_IDLE for share in idle) if idle else self.record.trial.device == "cuda"
        return waits and self.latency[batch_size].spread > HOST_BOUND_SPREAD

    @property
    def records(self) -> tuple[Record, ...]:
        """Of every process."""
        return (self.record, *self.repeats)

    def wall_us(self, kernels: KernelTime) -> float:
        """Wall time of the forward that was traced: on a GPU the median latency, since the profiler slows the host."""
        return self.latency[kernels.batch_size].p50_ms * 1000 if kernels.wall_us is None else kernels.wall_us

    def idle_us(self, kernels: KernelTime) -> float | None:
        """Wall time in which no kernel ran; None: CPU."""
        return None if kernels.wall_us is not None else max(0.0, self.wall_us(kernels) - sum(kernels.by_class_us.values()))


class ArmKey(NamedTuple):
    """What an arm is; the plan is its JSON."""

    study: Study
    plan: str
    attention: str
    qkv: str
    adaptation: str
    execution: str
    seed: int


def arm_key(trial: Trial) -> ArmKey:
    """What the trial's arm is."""
    return ArmKey(
        study=trial.study,
        plan=trial.plan.model_dump_json(),
        attention=trial.attention,
        qkv=trial.qkv,
        adaptation=trial.adaptation,
        execution=trial.execution,
        seed=trial.seed,
    )


# -------------------------------------------------------------------------------------------------------------- reading


def load_results(workspace: Workspace, study: Study) -> list[Result]:
    """Read one study's records in the order of their files; a study that was not run gives an empty list.

    Raises:
        DataError: a record or its predictions are damaged, impossible, or of another profile, study or trial than where they lie; two
            are of different code, images or weights, or of one arm; or records are there twice, loose and in Parquet files.
    """
    return _of_profile(read_results(workspace.reports, (study,)), workspace)[study]


def load_all_results(workspace: Workspace) -> dict[Study, list[Result]]:
    """Read the records of every study.

    Raises:
        DataError: as `load_results`, over all studies.
    """
    return _of_profile(read_results(workspace.reports, STUDIES), workspace)


def read_results(reports: Path, studies: Sequence[Study]) -> dict[Study, list[Result]]:
    """Read the records of some studies in a folder that holds records/, of whatever profile.

    Raises:
        DataError: as `load_results`.
    """
    folder = reports / "records"
    _refuse_first_edition(folder)
    if is_archived(folder):
        found = _with_repeats([Result(record, predictions) for record, predictions in read_archive(folder)], folder)
        results = {study: [result for result in found if result.record.trial.study == study] for study in studies}
    else:
        results = {study: _with_repeats(list(_loose(folder / study, study)), folder) for study in studies}
    together = [result for study in studies for result in results[study]]
    require_comparable(together, folder)
    return results


def _with_repeats(found: Sequence[Result], folder: Path) -> list[Result]:
    """The first process of each trial with its repeats, in the order of the first ones."""
    repeats: dict[Hashable, list[Record]] = {}
    for result in found:
        if result.record.trial.process:
            repeats.setdefault((arm_key(result.record.trial), result.record.trial.device), []).append(result.record)
    grouped = []
    for result in found:
        if not result.record.trial.process:
            mine = repeats.pop((arm_key(result.record.trial), result.record.trial.device), [])
            grouped.append(replace(result, repeats=tuple(sorted(mine, key=lambda record: record.trial.process))))
    for record in (records[0] for records in repeats.values()):
        raise DataError(f"{folder}: {_name(record)}: repeats the timing of a trial that has no record; {_ADVICE}")
    return grouped


def _of_profile(results: dict[Study, list[Result]], workspace: Workspace) -> dict[Study, list[Result]]:
    for found in results.values():
        for result in found:
            profile = result.record.trial.profile
            if profile != workspace.profile:
                raise DataError(
                    f"{workspace.reports / 'records'}: {_name(result.record)}: key trial.profile: {profile}, but these are "
                    f"records of {workspace.profile}; name the right profile, or move the record away"
                )
    return results


def _refuse_first_edition(folder: Path) -> None:
    for path in sorted(folder.glob("*.packed")):
        raise DataError(
            f"{path}: packed records of the first edition; run the study again with this version, "
            f"or read them with commit {FIRST_EDITION} of this repository"
        )


def _loose(folder: Path, study: Study) -> Iterator[Result]:
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        record = read_record(path)
        if record.trial.study != study:
            raise DataError(f"{path}: key trial.study: {record.trial.study}, but it lies in {folder.name}/; move it, or delete it")
        arrays = path.with_suffix(".npz")
        if record.evaluation is None and arrays.exists():
            raise DataError(f"{arrays}: predictions, though {path.name} has no evaluation; delete it, or {_ADVICE}")
        yield Result(record, None if record.evaluation is None else read_predictions(arrays, record))


# ------------------------------------------------------------------------------------------------------- all together


def require_comparable(results: Sequence[Result], folder: Path) -> None:
    """Refuse results that cannot stand in one table: of several origins, of one arm twice, or of other images.

    Args:
        results: of one profile.
        folder: that holds the records, for the message.

    Raises:
        DataError: names two records and what differs.
    """
    require_one_origin([record for result in results for record in result.records], folder)
    _require_each_arm_once(results, folder)
    _require_each_role_once(results, folder)
    _require_same_images(results, folder)


def require_one_origin(records: Iterable[Record], folder: Path) -> None:
    """Refuse to compare what was not made by the same code from the same images and weights.

    Adapted weights differ from seed to seed, but all come from one backbone.

    Args:
        records: of one profile.
        folder: that holds the records, for the message.

    Raises:
        DataError: names two records and what differs.
    """
    first: dict[str, tuple[str | None, Record]] = {}
    for record in records:
        for what, value in _origin(record):
            before, other = first.setdefault(what, (value, record))
            if before != value and what == GPUS:
                raise DataError(
                    f"{folder}: {_name(other)} and {_name(record)} were timed on different GPUs ({before} and {value}), so they cannot be "
                    f"compared; choose one: lowbit-vit {record.trial.study} {record.trial.profile} --gpu KIND runs the others again"
                )
            if before != value:
                raise DataError(
                    f"{folder}: {_name(other)} and {_name(record)} are of different {what} (sha256 {_short(before)} and {_short(value)}), "
                    f"so they cannot be compared; run dvc repro report@{record.trial.profile}, which runs again what is out of date"
                )


def _origin(record: Record) -> Iterator[tuple[str, str | None]]:
    """What must be the same in all records that name it. A trial without a result has no images and no weights."""
    yield "code", record.code_sha256
    if record.formats_sha256 is not None:
        formats = sorted({rule.weights.format for rule in record.trial.plan.rules})
        yield f"code of {' and '.join(formats)}", record.formats_sha256
    if record.model is None:
        return
    if record.measurement is not None and record.trial.device == "cuda" and record.provenance is not None:
        yield GPUS, record.provenance.gpu
    yield "images", record.data_sha256
    adapted = record.trial.adaptation == "ptq"
    yield f"adapted weights of seed {record.trial.seed}" if adapted else "backbones", record.model.backbone_sha256
    yield "backbones", record.model.base_sha256


def _require_each_arm_once(results: Iterable[Result], folder: Path) -> None:
    """Two trials of one arm, device and seed would be averaged as seeds; two arms of one label would look like one."""
    arms: dict[Hashable, Record] = {}
    labels: dict[Hashable, Record] = {}
    for result in results:
        record, trial = result.record, result.record.trial
        other = arms.setdefault((arm_key(trial), trial.device), record)
        if other is not record:
            raise DataError(f"{folder}: {_name(other)} and {_name(record)} are the same arm, trial and seed; delete one, or {_ADVICE}")
        processes = [repeat.trial.process for repeat in result.repeats]
        if twice := [process for process in processes if processes.count(process) > 1]:
            raise DataError(f"{folder}: {_name(record)}: two records of its process {twice[0]}; delete one, or {_ADVICE}")
        named = labels.setdefault((trial.study, trial.label), record)
        if arm_key(named.trial)._replace(seed=0) != arm_key(trial)._replace(seed=0):
            raise DataError(f"{folder}: {_name(named)} and {_name(record)}: key trial.label: {trial.label!r} is of two arms; {_ADVICE}")


def _require_each_role_once(results: Iterable[Result], folder: Path) -> None:
    """A cell of the sensitivity or the mixed study says which parts it plays, and no other one plays them."""
    first: dict[Hashable, Record] = {}
    for result in results:
        record, trial = result.record, result.record.trial
        if not trial.roles and trial.study != "variants":
            raise DataError(f"{folder}: {_name(record)}: key trial.roles: must be given in this study; {_ADVICE}")
        for role in trial.roles:
            other = first.setdefault((trial.study, role), record)
            if other is not record:
                raise DataError(f"{folder}: {_name(other)} and {_name(record)}: key trial.roles: {label_of(role)!r} of both; {_ADVICE}")


def _require_same_images(results: Iterable[Result], folder: Path) -> None:
    """Image by image, all predictions must be of the same images with the same labels, in the same halves."""
    first: Result | None = None
    for result in results:
        predictions, evaluation = result.predictions, result.record.evaluation
        if predictions is None or evaluation is None:
            continue
        first = first or result
        before, named = first.predictions, first.record.evaluation
        if before is None or named is None:
            continue
        differ = {
            "column label of the predictions": not np.array_equal(predictions.label, before.label),
            "column selection of the predictions": not np.array_equal(predictions.selection, before.selection),
            "key evaluation.class_names": evaluation.class_names != named.class_names,
        }
        for what, wrong in differ.items():
            if wrong:
                raise DataError(
                    f"{folder}: {_name(first.record)} and {_name(result.record)}: {what} must be the same in all records; {_ADVICE}"
                )


def require_same_labels(first: Result, second: Result) -> bool:
    """Whether two results, also of different runs, are of the same prepared images, so that pairs can be compared.

    Raises:
        DataError: they are of the same prepared images, but their labels differ.
    """
    if first.predictions is None or second.predictions is None or first.record.data_sha256 != second.record.data_sha256:
        return False
    if not np.array_equal(first.predictions.label, second.predictions.label):
        raise DataError(
            f"{_name(first.record)} and {_name(second.record)}: column label of the predictions differs, but not key data_sha256; {_ADVICE}"
        )
    return True


def _name(record: Record) -> str:
    return f"{record.trial.study}/{record.trial_id}"


def _short(digest: str | None) -> str:
    return "not recorded" if digest is None else f"{digest[:12]}..."
