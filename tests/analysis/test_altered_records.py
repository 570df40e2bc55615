"""A record that was altered is refused, in one line that names file and field, by every verb and in both forms of records."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import synthetic
from command_line import call
from lowbit_vit.analysis.archive import PREDICTIONS, SAMPLES, TRIALS
from lowbit_vit.analysis.results import load_all_results, require_same_labels
from lowbit_vit.analysis.runs import pack_records
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Study, Trial
from lowbit_vit.schema.predictions import Predictions, load_predictions
from lowbit_vit.schema.record import FIRST_EDITION, read_records, shorten
from lowbit_vit.schema.workspace import Workspace

LONG = "x" * 3_000
NESTED = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True)
class Source:
    """One run, with loose records and, below another root, with Parquet files; and the id of the trial that is altered."""

    loose: Workspace
    packed: Path
    trial_id: str


class Loose:
    """A copy of a run of which one record is altered: one that was trained, evaluated and timed.

    Attributes:
        reports: the folder that holds records/.
        workspace: with them.
        trial_id: of the record.
        content: its JSON, samples included.
        arrays: its predictions.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.workspace = Workspace(root=folder / "root", profile="demo")
        shutil.copytree(source.packed if isinstance(self, Archived) else source.loose.root, folder / "root")
        self.records = self.workspace.reports / "records"
        self.trial_id = source.trial_id
        path = source.loose.records("variants") / f"{self.trial_id}.json"
        self.content: dict[str, Any] = json.loads(path.read_text())
        self.arrays: dict[str, Any] = load_predictions(path.with_suffix(".npz")).columns()

    def set(self, keys: str, value: object) -> None:
        """Set what `measurement.latency.0.samples_ms` names; `value` may be a function of what is there."""
        at: Any = self.content
        *way, last = [int(key) if key.isdigit() else key for key in keys.split(".")]
        for key in way:
            at = at[key]
        at[last] = value(at[last]) if callable(value) else value

    def rehash(self) -> None:
        """Let the record name the predictions as they are, which an attentive forger does."""
        self.content["evaluation"]["predictions_sha256"] = Predictions(**{"kl": None, **self.arrays}).sha256()

    def write(self) -> None:
        """Write both files."""
        path = self.records / "variants" / f"{self.trial_id}.json"
        path.write_text(json.dumps(self.content))
        np.savez(path.with_suffix(".npz"), **self.arrays)


class Archived(Loose):
    """The same records in Parquet files."""

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source, folder)
        stored = pl.read_parquet(self.records / PREDICTIONS).filter(pl.col("trial_id") == self.trial_id)
        self.arrays = {name: stored[name].to_numpy() for name in self.arrays}
        self.rehash()

    def write(self) -> None:
        """Replace the record's rows."""
        content = json.loads(json.dumps(self.content))
        study = content["trial"].pop("study")
        latency = content["measurement"]["latency"] if content["measurement"] else []
        calls = [(self.trial_id, 0, item["batch_size"], number, ms) for item in latency for number, ms in enumerate(item.pop("samples_ms"))]
        trials = pl.read_parquet(self.records / TRIALS)
        row = {
            name: json.dumps(content[name]) if isinstance(content.get(name), dict | list) else content.get(name) for name in trials.columns
        } | {"study": study}
        assert set(content) <= set(trials.columns), "a key that has no column cannot be altered here"
        others = pl.col("trial_id") != self.trial_id
        self._put(TRIALS, pl.concat([trials.filter(others), pl.DataFrame([row], schema=trials.schema)]))
        samples = pl.read_parquet(self.records / SAMPLES)
        self._put(SAMPLES, pl.concat([samples.filter(others), pl.DataFrame(calls, schema=samples.schema, orient="row")]))
        images = pl.read_parquet(self.records / PREDICTIONS)
        count = len(next(iter(self.arrays.values())))
        columns = {"trial_id": [self.trial_id] * count, "image": range(count), "kl": [None] * count, **self.arrays}
        mine = pl.DataFrame({name: pl.Series(name, columns[name], dtype=dtype) for name, dtype in images.schema.items()})
        self._put(PREDICTIONS, pl.concat([images.filter(others), mine]))

    def _put(self, name: str, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.records / name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("altered")
    profile, workspace = synthetic.fill(folder / "root", studies=("variants",))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.profile_file)
    shutil.copytree(folder / "root", folder / "packed", ignore=shutil.ignore_patterns("records"))
    pack_records(profile, workspace, folder / "packed" / "reports" / "demo")
    trained = next(record for record in read_records(workspace.records("variants")) if record.training is not None)
    return Source(workspace, folder / "packed", trained.trial_id)


def refusal(workspace: Workspace) -> str:
    """The one line in which the reader refuses."""
    with pytest.raises(DataError) as caught:
        load_all_results(workspace)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1_200
    return message


# --------------------------------------------------------------------------------------- one value of the record altered

# Key, value, and what is said of it. What is computed has no key at all.
FIELDS: list[tuple[str, Any, str]] = [
    ("evaluation.whole", {"images": 600, "top1": 0.5, "top5": 0.9, "macro_f1": 0.5}, "evaluation.whole: unknown key"),
    ("evaluation.images_per_s", -1.0, "evaluation.images_per_s: unknown key"),
    ("evaluation.labels_sha256", "0" * 64, "evaluation.labels_sha256: unknown key"),
    ("measurement.latency.0.p50_ms", math.nan, "latency.0.p50_ms: unknown key"),
    ("measurement.latency.0.mean_ms", math.inf, "latency.0.mean_ms: unknown key"),
    ("measurement.kernels.0.idle_us", 1.0, "kernels.0.idle_us: unknown key"),
    ("training.images_per_s", 1.0, "training.images_per_s: unknown key"),
    ("model.layers.linears", 1, "model.layers.linears: unknown key"),
    ("evaluation.seconds", math.nan, "evaluation.seconds"),
    ("evaluation.seconds", 0.0, "evaluation.seconds"),
    ("evaluation.seconds", "1", "evaluation.seconds"),
    ("evaluation.split", "train", "evaluation.split"),
    ("evaluation.class_names", ["one"], "evaluation.class_names"),
    ("evaluation.class_names", None, "evaluation.class_names"),
    ("evaluation.class_names.3", "a\nb", "evaluation.class_names.3: control characters"),
    ("evaluation.class_names.3", LONG, "evaluation.class_names.3"),
    ("evaluation.class_names.3", "other", "key evaluation.class_names must be the same in all records"),
    ("evaluation.class_names", lambda names: names[:5], "column (label|best): a class beyond the 5"),
    ("evaluation.block_evaluations", -1, "evaluation.block_evaluations"),
    ("evaluation.predictions_sha256", "0" * 64, "its sha256 is not evaluation.predictions_sha256"),
    ("evaluation.predictions_sha256", "none", "evaluation.predictions_sha256"),
    ("evaluation", None, "evaluation: must be given"),
    ("measurement", None, "measurement: must be given"),
    ("training", None, "training: must be given"),
    ("model", None, "model: must be given"),
    ("provenance", None, "provenance: must be given"),
    ("data_sha256", None, "data_sha256: must be given"),
    ("data_sha256", "0" * 64, "are of different images"),
    ("code_sha256", None, "code_sha256"),
    ("code_sha256", "0" * 64, "are of different code"),
    ("code_sha256", "0" * 63, "code_sha256"),
    ("formats_sha256", "none", "formats_sha256"),
    ("status", "failed", "(reason|evaluation|training|model|data_sha256): must be"),
    ("status", "fine", "status"),
    ("reason", "because", "reason: must be null"),
    ("attempts", 0, "attempts"),
    ("attempts", 10**12, "attempts"),
    ("durations_s.load", -1.0, "durations_s.load"),
    ("durations_s.load", math.inf, "durations_s.load"),
    ("durations_s", {LONG: 1.0}, "durations_s"),
    ("trial.seed", 7, "trial_id"),
    ("trial.study", "mixed", "(trial_id|trial.study)"),
    ("trial.profile", "paper", "trial_id"),
    ("trial.selection_seed", 9, "trial_id"),
    ("trial.adaptation", "none", "trial_id"),
    ("trial.label", "", "trial.label"),
    ("trial.label", "a\x1bb", "trial.label: control characters"),
    ("trial.label", "right\u202eleft", "trial.label: control characters"),
    ("trial.label", "x" * 10_000_000, "trial.label"),
    ("trial.label", "NF4, CUDA graph", "key trial.label: 'NF4, CUDA graph' is of two arms"),
    ("trial.new", 1, "trial.new: unknown key"),
    ("trial.evaluation.batch_size", 0, "trial.evaluation.batch_size"),
    ("trial.measurement.batch_sizes", [0], "trial.measurement"),
    ("trial.limits.seconds", math.nan, "trial.limits.seconds"),
    ("model.parameters", 0, "model.parameters"),
    ("model.parameters", 10**30, "model.parameters"),
    ("model.trainable_parameters", -1, "model.trainable_parameters"),
    ("model.weight_bytes", 0, "model.weight_bytes"),
    ("model.weight_bytes", True, "model.weight_bytes"),
    ("model.file_bytes", -1, "model.file_bytes"),
    ("model.file_bytes", 1.5, "model.file_bytes"),
    ("model.layers.by_format", {}, "model.layers.by_format"),
    ("model.layers.by_format", {"int4": 48}, "model.layers.by_format: int4"),
    ("model.layers.by_format", {"high": -48}, "model.layers.by_format.high"),
    ("model.backbone_sha256", "0" * 64, "model.base_sha256"),
    ("model.base_sha256", "0" * 64, "model.base_sha256"),
    ("training.loss", [], "training.loss"),
    ("training.loss", lambda loss: loss[1:], "training.loss: "),
    ("training.loss.0", math.nan, "training.loss.0"),
    ("training.steps", 0, "training.steps"),
    ("training.seconds", -1.0, "training.seconds"),
    ("training.peak_allocated_bytes", -1, "training.peak_allocated_bytes"),
    ("measurement.latency", [], "measurement.latency: batch sizes"),
    ("measurement.latency", lambda items: items[:1], "measurement.(latency: batch sizes|latency)|batch size"),
    ("measurement.latency", lambda items: items[::-1], "measurement.latency: batch sizes"),
    ("measurement.latency.0.samples_ms.3", math.nan, "measurement.latency.0.samples_ms.3"),
    ("measurement.latency.0.samples_ms.3", -1.0, "measurement.latency.0.samples_ms.3"),
    ("measurement.latency.0.samples_ms.3", 0.0, "measurement.latency.0.samples_ms.3"),
    ("measurement.latency.0.samples_ms.3", 1e300, "measurement.latency.0.samples_ms.3"),
    ("measurement.latency.0.samples_ms", [], "measurement.latency.0.samples_ms"),
    ("measurement.latency.0.samples_ms", lambda samples: samples[:5], "measurement.latency.0.samples_ms"),
    ("measurement.latency.0.samples_ms", lambda samples: samples * 50, "measurement.latency.samples_ms: .* samples"),
    ("measurement.latency.0.first_call_ms", -1.0, "measurement.latency.0.first_call_ms"),
    ("measurement.latency.0.clocks_before", {"sm_mhz": -1, "memory_mhz": 1, "temperature_c": 1, "throttle_reasons": ""}, "sm_mhz"),
    ("measurement.memory.0.peak_resident_bytes", -1, "measurement.memory.0.peak_resident_bytes"),
    ("measurement.memory.0.peak_allocated_bytes", 5, "measurement.memory.peak_allocated_bytes: must be null on cpu"),
    ("measurement.memory.0.process_bytes", 5, "measurement.memory.process_bytes: must be null on cpu"),
    ("measurement.memory", [], "measurement.memory: batch sizes"),
    ("measurement.kernels", [], "measurement.kernels: batch sizes"),
    ("measurement.kernels.0.by_class_us.gemm", -1.0, "by_class_us.gemm"),
    ("measurement.kernels.0.by_class_us", {"magic": 1.0}, "by_class_us"),
    ("measurement.kernels.0.wall_us", None, "measurement.kernels.wall_us: must be given on cpu"),
    ("measurement.kernels.0.launches", 3, "measurement.kernels.launches: must be null on cpu"),
    ("measurement.kernels.0.attention_kernels", [], "attention_kernels"),
    ("measurement.kernels.0.attention_kernels.0", LONG, "attention_kernels.0"),
    ("measurement.work", [], "measurement.work: batch sizes"),
    ("measurement.work.0.flop", 0.0, "measurement.work.0.flop"),
    ("measurement.work.0.least_bytes", -1, "measurement.work.0.least_bytes"),
    ("measurement.work.0.batch_size", 0, "measurement.work.0.batch_size"),
    ("measurement.ceilings", None, "measurement.ceilings"),
    ("measurement.ceilings.matmul_flops_per_s", 0.0, "measurement.ceilings.matmul_flops_per_s"),
    ("measurement.ceilings.copy_bytes_per_s", math.inf, "measurement.ceilings.copy_bytes_per_s"),
    (
        "measurement.invariance",
        {"images": 8, "batch_sizes": [1, 32], "flips": 0, "max_abs_logit_difference": 0.0, "bit_equal": True},
        "measurement.invariance: must be null",
    ),
    (
        "measurement.invariance",
        {"images": 8, "batch_sizes": [1, 32], "flips": 9, "max_abs_logit_difference": 0.0, "bit_equal": True},
        "measurement.invariance: flips 9 of 8",
    ),
    ("provenance.started_utc", "yesterday", "provenance.started_utc"),
    ("provenance.cpu", LONG, "provenance.cpu"),
    ("provenance.cpu_cores", 0, "provenance.cpu_cores"),
    ("provenance.memory_gib", -1.0, "provenance.memory_gib"),
    ("provenance.command", "two\nlines", "provenance.command: control characters"),
    ("provenance.packages", {"torch": "1\n2"}, "provenance.packages"),
    ("record_version", 4, "record_version '4'; this program reads 3"),
    ("record_version", 2, f"record_version 2 is of the first edition; run the study again .* commit {FIRST_EDITION}"),
    ("record_version", 1, "record_version 1 is of the first edition"),
]


@pytest.fixture(params=[Loose, Archived])
def run(request: pytest.FixtureRequest, source: Source, tmp_path: Path) -> Loose:
    made: Loose = request.param(source, tmp_path)
    return made


def test_what_is_not_altered_is_read(run: Loose) -> None:
    run.write()
    assert len(load_all_results(run.workspace)["variants"]) == 13


@pytest.mark.parametrize(("keys", "value", "said"), FIELDS, ids=[f"{keys} {str(value)[:20]!r}" for keys, value, _ in FIELDS])
def test_an_altered_value_is_refused(run: Loose, keys: str, value: object, said: str) -> None:
    run.set(keys, value)
    run.write()
    assert re.search(said, message := refusal(run.workspace)), message
    assert run.trial_id in message


# ------------------------------------------------------------------------------------------------- predictions altered

Arrays = dict[str, Any]


def flipped(arrays: Arrays) -> Arrays:
    """Answers that were wrong are right, without a word to the other columns."""
    return {**arrays, "best": np.where(arrays["among5"], arrays["label"], arrays["best"])}


def one(name: str, value: Any) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        column = arrays[name].copy()
        column[3] = value(column[3]) if callable(value) else value
        return {**arrays, name: column}

    return change


def turned(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: ~arrays[name]}


PREDICTED: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "answers made right": (flipped, "column margin: not of the sign that column best says"),
    "labels shifted": (lambda arrays: {**arrays, "label": np.roll(arrays["label"], 1)}, "column (margin|among5)"),
    "labels and answers shifted": (
        lambda arrays: {name: np.roll(column, 1) if name != "selection" else column for name, column in arrays.items()},
        "column label of the predictions must be the same in all records",
    ),
    "halves swapped": (turned("selection"), "column selection of the predictions must be the same in all records"),
    "halves of other sizes": (one("selection", lambda value: not value), "column selection: does not hold half"),
    "a label beyond the classes": (one("label", 999), "column label: a class beyond"),
    "an answer beyond the classes": (one("best", 999), "column best: a class beyond"),
    "Top-5 below Top-1": (lambda arrays: {**arrays, "among5": np.zeros(len(arrays["label"]), bool)}, "column among5: false where"),
    "a margin that is no number": (one("margin", np.nan), "column margin: NaN or infinite"),
    "an infinite margin": (one("margin", np.inf), "column margin: NaN or infinite"),
    "a margin of the other sign": (one("margin", lambda value: -value), "column margin: not of the sign"),
    "a KL where none belongs": (lambda arrays: {**arrays, "kl": np.abs(arrays["margin"])}, "column kl: must be given in this study"),
    "fewer images": (lambda arrays: {name: column[:500] for name, column in arrays.items()}, "column selection|column label of the pred"),
    "no images": (lambda arrays: {name: column[:0] for name, column in arrays.items()}, "column label: 0 images|no predictions"),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_altered_predictions_are_refused_though_their_hash_is_right(run: Loose, name: str) -> None:
    change, said = PREDICTED[name]
    run.arrays = change(run.arrays)
    run.rehash()
    run.write()
    assert re.search(said, message := refusal(run.workspace)), message
    assert run.trial_id in message


def test_altered_predictions_are_refused_by_their_hash(run: Loose) -> None:
    run.arrays = one("margin", lambda value: 2 * value)(run.arrays)
    run.write()
    assert "its sha256 is not evaluation.predictions_sha256" in refusal(run.workspace)


SHAPES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "two dimensions": (
        lambda arrays: {**arrays, "label": arrays["label"][:, None]},
        r"column label: uint16 \[600, 1\], must be uint16 \[N\]",
    ),
    "lengths that differ": (lambda arrays: {**arrays, "best": arrays["best"][:500]}, "column best: 500 images, column label has 600"),
    "another type": (lambda arrays: {**arrays, "label": arrays["label"].astype(np.int64)}, "column label: int64"),
    "text": (lambda arrays: {**arrays, "label": arrays["label"].astype(str)}, "column label: <U"),
    "objects": (lambda arrays: {**arrays, "label": arrays["label"].astype(object)}, "not a predictions file"),
    "a column missing": (lambda arrays: {name: column for name, column in arrays.items() if name != "margin"}, "column margin is missing"),
    "a column too many": (lambda arrays: {**arrays, "loss": arrays["margin"]}, "column 'loss' is of another version"),
    "of the first edition": (lambda arrays: {"label": arrays["label"], "top5": arrays["label"][:, None]}, "column best is missing"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_predictions_file_of_another_form_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    run = Loose(source, tmp_path)
    change, said = SHAPES[name]
    run.arrays = change(run.arrays)
    run.write()
    assert re.search(said, message := refusal(run.workspace)), message


# ---------------------------------------------------------------------------------------------------- files altered


def whole(name: str, content: str | bytes) -> Callable[[Path, str], None]:
    def write(folder: Path, trial_id: str) -> None:
        (folder / name.format(trial_id)).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def renamed(folder: Path, trial_id: str) -> None:
    for suffix in (".json", ".npz"):
        shutil.copy(folder / f"{trial_id}{suffix}", folder / f"a-copy{suffix}")


def moved(folder: Path, trial_id: str) -> None:
    (folder.parent / "mixed").mkdir()
    for suffix in (".json", ".npz"):
        (folder / f"{trial_id}{suffix}").rename(folder.parent / "mixed" / f"{trial_id}{suffix}")


def again(**changes: object) -> Callable[[Path, str], None]:
    """The same arm once more, as another trial; under another label, if that is among the changes."""

    def write(folder: Path, trial_id: str) -> None:
        content = json.loads((folder / f"{trial_id}.json").read_text())
        content["trial"] |= changes
        content["trial_id"] = Trial.model_validate(content["trial"]).trial_id
        (folder / f"{content['trial_id']}.json").write_text(json.dumps(content))
        shutil.copy(folder / f"{trial_id}.npz", folder / f"{content['trial_id']}.npz")

    return write


def removed(suffix: str) -> Callable[[Path, str], None]:
    return lambda folder, trial_id: (folder / f"{trial_id}{suffix}").unlink()


def twice(folder: Path, trial_id: str) -> None:
    path = folder / f"{trial_id}.json"
    path.write_text(path.read_text().replace('"attempts": 1', '"attempts": 2, "attempts": 1'))


def others_predictions(folder: Path, trial_id: str) -> None:
    mine = (folder / f"{trial_id}.npz").read_bytes()
    other = next(path for path in sorted(folder.glob("*.npz")) if path.read_bytes() != mine)
    shutil.copy(other, folder / f"{trial_id}.npz")


FILES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "deeply nested JSON": (whole("{}.json", NESTED), "not a record"),
    "deeply nested JSON in a field": (whole("{}.json", '{"record_version": 3, "trial": ' + NESTED + "}"), "not a record"),
    "an integer of 5,000 digits": (whole("{}.json", '{"record_version": 3, "attempts": ' + "9" * 5_000 + "}"), "not a record"),
    "no JSON": (whole("{}.json", "{"), "not a record"),
    "no text": (whole("{}.json", b"\xff\xfe\x00"), "not a record"),
    "a list": (whole("{}.json", "[3]"), "record_version 'None'"),
    "a version that is text": (whole("{}.json", '{"record_version": "3"}'), "record_version '3'"),
    "a version that is true": (whole("{}.json", '{"record_version": true}'), "record_version 'True'"),
    "a key that is there twice": (twice, "key 'attempts' is there twice"),
    "a name that is not the trial's": (renamed, "a-copy.json: key trial_id: "),
    "another study's folder": (moved, "key trial.study: variants, but it lies in mixed/"),
    "an arm twice": (again(selection_seed=99), "are the same arm, trial and seed"),
    "a profile that is not the folder's": (again(profile="scratch", seed=5), "key trial.profile: scratch, but these are records of demo"),
    "a label of two arms": (again(attention="math"), "key trial.label: .* is of two arms"),
    "no predictions": (removed(".npz"), "not a predictions file"),
    "another's predictions": (others_predictions, "its sha256 is not evaluation.predictions_sha256"),
    "predictions that are no zip": (whole("{}.npz", b"PK\x03\x04 no zip"), "not a predictions file"),
    "packed records of the first edition": (whole("../variants.packed", "lowbit-vit packed records, version 1"), "first edition"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    run = Loose(source, tmp_path)
    change, said = FILES[name]
    change(run.records / "variants", run.trial_id)
    assert re.search(said, message := refusal(run.workspace)), message


def frames(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        change(pl.read_parquet(folder / name)).write_parquet(folder / name)

    return write


def unlinked(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def both(folder: Path) -> None:
    (folder / "variants").mkdir()
    (folder / "variants" / "some.json").write_text("{}")


def replaced(column: str, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """The last row that has a value there gets another one."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame[column].to_list()
        values[max(place for place, old in enumerate(values) if old is not None)] = value
        return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))

    return change


TABLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file missing": (unlinked(SAMPLES), rf"{SAMPLES}: could not be read"),
    "only one file": (lambda folder: [unlinked(name)(folder) for name in (TRIALS, PREDICTIONS)] and None, rf"{TRIALS}: could not be read"),
    "no Parquet": (written(TRIALS, b"PAR1"), rf"{TRIALS}: not a Parquet file"),
    "cut off": (lambda folder: (folder / TRIALS).write_bytes((folder / TRIALS).read_bytes()[:-20]) and None, "not a Parquet file"),
    "records loose as well": (both, "records are there twice"),
    "a trial twice": (frames(TRIALS, lambda frame: pl.concat([frame, frame[:1]])), f"{TRIALS}: column trial_id: .* there twice"),
    "a trial without a name": (frames(TRIALS, replaced("trial_id", None)), f"{TRIALS}: column trial_id"),
    "a trial gone": (frames(TRIALS, lambda frame: frame[:-1]), "column trial_id: .* is not in trials.parquet"),
    "predictions gone": (frames(PREDICTIONS, lambda frame: frame[:0]), "has an evaluation but no predictions"),
    "samples gone": (frames(SAMPLES, lambda frame: frame[:0]), "samples_ms"),
    "samples of another batch size": (frames(SAMPLES, replaced("batch_size", 5)), f"{SAMPLES}: .*: samples of a batch size"),
    "samples in another order": (frames(SAMPLES, lambda frame: frame[::-1]), f"{SAMPLES}: .*: column call"),
    "samples of another trial": (frames(SAMPLES, replaced("trial_id", "other")), f"{SAMPLES}: column trial_id: 'other' is not in"),
    "samples of two processes": (frames(SAMPLES, replaced("process", 1)), f"{SAMPLES}: .*: column call"),
    "a sample that is null": (frames(SAMPLES, replaced("ms", None)), f"{SAMPLES}: column ms: 1 values are null"),
    "images in another order": (frames(PREDICTIONS, replaced("image", 0)), f"{PREDICTIONS}: .*: column image: must count from 0"),
    "an image that is null": (frames(PREDICTIONS, replaced("best", None)), f"{PREDICTIONS}: column best: 1 values are null"),
    "a KL of one image": (
        frames(PREDICTIONS, lambda frame: frame.with_columns(kl=pl.when(pl.col("image") == 0).then(0.0).cast(pl.Float32))),
        f"{PREDICTIONS}: .*: column kl: 599 of 600",
    ),
    "a column missing": (frames(TRIALS, lambda frame: frame.drop("reason")), f"{TRIALS}: column 'reason': missing"),
    "a column too many": (
        frames(TRIALS, lambda frame: frame.with_columns(top1=pl.lit(1.0))),
        f"{TRIALS}: column 'top1': .* no such column",
    ),
    "another type": (frames(SAMPLES, lambda frame: frame.with_columns(pl.col("ms").cast(pl.Float32))), f"{SAMPLES}: column 'ms': Float32"),
    "no JSON in a column": (frames(TRIALS, replaced("model", "{")), f"{TRIALS}: .*: column model: not JSON"),
    "nested JSON in a column": (frames(TRIALS, replaced("model", NESTED)), f"{TRIALS}: .*: column model: not JSON"),
    "a list for an object": (frames(TRIALS, replaced("trial", "[]")), f"{TRIALS}: .*: column trial: must be a JSON object"),
    "a study twice": (
        frames(TRIALS, replaced("trial", '{"study": "mixed"}')),
        f"{TRIALS}: .*: column trial: must be a JSON object without",
    ),
    "no such study": (frames(TRIALS, replaced("study", "others")), f"{TRIALS}: .*: key trial.study"),
    "another study": (frames(TRIALS, replaced("study", "mixed")), f"{TRIALS}: .*: key .*trial_id"),
    "no object of latencies": (
        frames(TRIALS, replaced("measurement", '{"latency": [3]}')),
        f"{TRIALS}: .*: column measurement: latency must hold objects",
    ),
    "a key twice": (frames(TRIALS, replaced("durations_s", '{"load": 1.0, "load": 2.0}')), "key 'load' is there twice"),
}


@pytest.mark.parametrize("name", TABLES)
def test_an_altered_table_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    run = Archived(source, tmp_path)
    change, said = TABLES[name]
    change(run.records)
    assert re.search(said, message := refusal(run.workspace)), message


# ------------------------------------------------------------------------------------------------- a cell's part altered


@pytest.fixture(scope="module")
def cells_of_studies(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return synthetic.fill(tmp_path_factory.mktemp("cells") / "root")[1]


def other_block(roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**roles[0], "block": (roles[0]["block"] + 1) % 8}]


ROLES: dict[str, tuple[Study, str, Callable[[dict[str, Any]], object], str]] = {
    "none": ("sensitivity", "only block 3", lambda trial: trial.update(roles=[]), "key trial.roles: must be given"),
    "another block": (
        "sensitivity",
        "only block 3",
        lambda trial: trial.update(roles=other_block(trial["roles"])),
        "is not that of trial.roles",
    ),
    "another block, label and all": (
        "sensitivity",
        "nf4, only block 3",
        lambda trial: trial.update(roles=other_block(trial["roles"]), label="nf4, only block 4"),
        "trial.roles: nf4, only block 4 is not what the plan does",
    ),
    "another direction": (
        "sensitivity",
        "nf4, only block 3",
        lambda trial: trial.update(roles=[{**trial["roles"][0], "kind": "all_but"}], label="nf4, all but block 3"),
        "trial.roles: nf4, all but block 3 is not what the plan does",
    ),
    "the reference": (
        "sensitivity",
        "nf4, only block 3",
        lambda trial: trial.update(roles=[{"kind": "reference"}], label="high precision"),
        "trial.roles: high precision is not what the plan does",
    ),
    "another number of spared blocks": (
        "mixed",
        "random 0, k=2",
        lambda trial: trial.update(roles=[{"kind": "random", "k": 3, "index": 0}], label="random 0, k=3"),
        "trial.roles: random 0, k=3 is not what the plan does",
    ),
    "no such part": ("mixed", "random 0, k=2", lambda trial: trial.update(roles=[{"kind": "queen"}]), "trial.roles.0"),
}


@pytest.mark.parametrize("name", ROLES)
def test_a_cell_whose_part_is_altered_is_refused(cells_of_studies: Workspace, tmp_path: Path, name: str) -> None:
    study, label, change, said = ROLES[name]
    shutil.copytree(cells_of_studies.root, tmp_path / "root")
    workspace = Workspace(root=tmp_path / "root", profile="demo")
    for path in workspace.records(study).glob("*.json"):
        content = json.loads(path.read_text())
        if label in content["trial"]["label"].split(" = ") or content["trial"]["label"].endswith(label):
            change(content["trial"])
            path.write_text(json.dumps(content))
            break
    assert re.search(said, message := refusal(workspace)), message
    assert path.stem in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_kl_that_cannot_be_is_refused(cells_of_studies: Workspace, tmp_path: Path, value: float) -> None:
    shutil.copytree(cells_of_studies.root, tmp_path / "root")
    workspace = Workspace(root=tmp_path / "root", profile="demo")
    path = min(workspace.records("sensitivity").glob("*.json"))
    content, predictions = json.loads(path.read_text()), load_predictions(path.with_suffix(".npz"))
    assert predictions.kl is not None
    predictions.kl[3] = value
    content["evaluation"]["predictions_sha256"] = predictions.sha256()
    path.write_text(json.dumps(content))
    path.with_suffix(".npz").write_bytes(predictions.to_bytes())
    assert f"{path.stem}.npz: column kl: negative, NaN or infinite" in refusal(workspace)


# ------------------------------------------------------------------------------------------------- all verbs, one reader

VERBS = (["show", "demo"], ["claims", "demo"], ["compare", "demo", "demo"], ["check", "demo", "demo"], ["report", "demo"])


@pytest.mark.parametrize("verb", VERBS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        ("evaluation.whole", {"top1": 0.5}, "evaluation.whole: unknown key"),
        ("measurement.latency.0.samples_ms.3", -1.0, "measurement.latency.0.samples_ms.3"),
        ("status", "failed", "must be"),
        ("evaluation", None, "evaluation: must be given"),
        ("trial.label", "x" * 10_000_000, "trial.label"),
    ],
)
def test_every_verb_refuses_in_the_same_line(run: Loose, verb: list[str], keys: str, value: object, said: str) -> None:
    run.set(keys, value)
    run.write()
    done = call(*verb, "--root", str(run.workspace.root))
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line == f"lowbit-vit: {refusal(run.workspace)}"
    assert said in line


def test_labels_that_were_shifted_in_every_record_are_seen_beside_another_run(source: Source) -> None:
    first = next(result for result in load_all_results(source.loose)["variants"] if result.predictions is not None)
    assert first.predictions is not None
    second = replace(first, predictions=replace(first.predictions, label=np.roll(first.predictions.label, 1)))
    assert require_same_labels(first, first)
    with pytest.raises(DataError, match="column label of the predictions differs, but not key data_sha256"):
        require_same_labels(first, second)


@pytest.mark.parametrize(("text", "line"), [("a\nb\x1bc ", "a b c"), (LONG, "x" * 1_997 + "..."), ("NF4 läuft", "NF4 läuft")])
def test_a_reason_is_shortened_by_its_writer(source: Source, text: str, line: str) -> None:
    record = read_records(source.loose.records("variants"))[0]
    assert shorten(text) == line
    assert synthetic.unfinished(record.trial, "failed", shorten(text)).reason == line
