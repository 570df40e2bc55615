"""Records and per-image predictions of all studies of a run in three Parquet files, for reference runs that are committed.

`records/trials.parquet` has one row a trial: the keys of the record, those that hold further keys as JSON text. `samples.parquet`
has one row a timed call: trial_id, process, batch_size, call (from 0), ms. `predictions.parquet` has one row an image of a trial:
trial_id, image (from 0), and the columns of `schema/predictions.py`. The order is that of the trials.

`kl` is rounded to 10 significant bits and `margin` to 7, which the file's metadata says, and `evaluation.predictions_sha256` is of what was
rounded; whatever is counted (Top-1, Top-5, F1, flips) stays exact.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.errors import DataError, first_line
from lowbit_vit.schema.predictions import COLUMNS, Predictions, check_predictions, predictions_of
from lowbit_vit.schema.record import Record, parse_json, parse_record, write_atomic

TRIALS, SAMPLES, PREDICTIONS = "trials.parquet", "samples.parquet", "predictions.parquet"
_BITS = {"kl": 9, "margin": 6}  # of the mantissa's 23, with the leading one 10 and 7 significant bits
_NOTE = "kl is rounded to 10 significant bits, margin to 7 (of the mantissa 9 and 6, to nearest even); all else is exact"
_AGAIN = "copy it again, or pack the records again"

# The record's keys that are plain values are columns as they are; the others are JSON text.
_PLAIN: dict[str, Any] = {
    "record_version": pl.Int64,
    "trial_id": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "code_sha256": pl.String,
    "formats_sha256": pl.String,
    "data_sha256": pl.String,
    "attempts": pl.Int64,
}
_JSON = ("trial", "provenance", "model", "training", "evaluation", "measurement", "durations_s")
_TRIALS_SCHEMA: dict[str, Any] = {"study": pl.String, **_PLAIN, **dict.fromkeys(_JSON, pl.String)}
_SAMPLES_SCHEMA: dict[str, Any] = {
    "trial_id": pl.String,
    "process": pl.UInt16,
    "batch_size": pl.UInt32,
    "call": pl.UInt32,
    "ms": pl.Float64,
}
_PREDICTIONS_SCHEMA: dict[str, Any] = {
    "trial_id": pl.String,
    "image": pl.UInt32,
    **{name: {np.uint16: pl.UInt16, np.bool_: pl.Boolean, np.float32: pl.Float32}[dtype] for name, dtype in COLUMNS.items()},
}

Cell = tuple[Record, Predictions | None]


def is_archived(folder: Path) -> bool:
    """Whether the records below `records/` are in Parquet files rather than loose.

    Raises:
        DataError: both are there.
    """
    loose = next((path for path in sorted(folder.glob("*/*.json")) if not path.name.startswith(".")), None)
    there = next((folder / name for name in (TRIALS, SAMPLES, PREDICTIONS) if (folder / name).exists()), None)
    if loose is not None and there is not None:
        raise DataError(f"{there} and {loose}: records are there twice, in Parquet files and loose; delete one of the two")
    return there is not None


# -------------------------------------------------------------------------------------------------------------- writing


def write_archive(cells: Iterable[Cell], folder: Path) -> list[Path]:
    """Write the three files; returns them.

    Raises:
        DataError: the disk is full or not writable.
    """
    rounded = [round_cell(record, predictions) for record, predictions in cells]
    frames = {
        TRIALS: pl.DataFrame([_row(record) for record, _ in rounded], schema=_TRIALS_SCHEMA),
        SAMPLES: pl.DataFrame([row for record, _ in rounded for row in _samples(record)], schema=_SAMPLES_SCHEMA, orient="row"),
        PREDICTIONS: pl.concat(
            [pl.DataFrame(schema=_PREDICTIONS_SCHEMA), *(_images(record, found) for record, found in rounded if found is not None)]
        ),
    }
    for name, frame in frames.items():
        write_atomic(folder / name, _parquet(frame))
    return [folder / name for name in frames]


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    # One group and one page for each column: zstd finds what repeats from trial to trial.
    rows, page = max(1, frame.height), 2**26
    note = {"lowbit-vit": _NOTE}
    frame.write_parquet(buffer, compression="zstd", compression_level=19, row_group_size=rows, data_page_size=page, metadata=note)
    return buffer.getvalue()


def round_cell(record: Record, predictions: Predictions | None) -> Cell:
    """The predictions as they are stored, and the record that names their hash."""
    if predictions is None or record.evaluation is None:
        return record, None
    kl = None if predictions.kl is None else _round(predictions.kl, bits=_BITS["kl"])
    stored = replace(predictions, margin=_round(predictions.margin, bits=_BITS["margin"]), kl=kl)
    evaluation = record.evaluation.model_copy(update={"predictions_sha256": stored.sha256()})
    return record.model_copy(update={"evaluation": evaluation}), stored


def _round(values: npt.NDArray[np.float32], *, bits: int) -> npt.NDArray[np.float32]:
    """To the nearest float32 with so many bits of mantissa, ties to even; the sign stays, and only 0 becomes 0."""
    dropped = 23 - bits
    stored = values.view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1) + ((stored >> np.uint32(dropped)) & np.uint32(1))
    kept = (stored + half) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    # What is too small to keep a bit, or would become infinite, stays.
    found: npt.NDArray[np.float32] = kept.view(np.float32)
    return np.where(np.isfinite(found) & ((found == 0) == (values == 0)), found, values)


def _row(record: Record) -> dict[str, Any]:
    content = record.model_dump(mode="json")
    study = content["trial"].pop("study")
    for item in (content["measurement"] or {}).get("latency", ()):
        del item["samples_ms"]
    nested = {name: None if content[name] is None else json.dumps(content[name]) for name in _JSON}
    return {"study": study, **{name: content[name] for name in _PLAIN}, **nested}


def _samples(record: Record) -> Iterable[tuple[str, int, int, int, float]]:
    timed = () if record.measurement is None else record.measurement.latency
    for item in timed:
        yield from ((record.trial_id, record.trial.process, item.batch_size, call, ms) for call, ms in enumerate(item.samples_ms))


def _images(record: Record, predictions: Predictions) -> pl.DataFrame:
    images = len(predictions.label)
    columns: dict[str, Any] = {
        "trial_id": [record.trial_id] * images,
        "image": np.arange(images),
        "kl": [None] * images,
    } | predictions.columns()
    return pl.DataFrame({name: pl.Series(name, columns[name], dtype=dtype) for name, dtype in _PREDICTIONS_SCHEMA.items()})


# -------------------------------------------------------------------------------------------------------------- reading


def read_archive(folder: Path) -> list[Cell]:
    """The records with their predictions, checked against each other, in their order in the file.

    Raises:
        DataError: a file is missing, damaged or of another form, or a record or its predictions are impossible.
    """
    trials, samples, images = (
        _read(folder / name, schema)
        for name, schema in ((TRIALS, _TRIALS_SCHEMA), (SAMPLES, _SAMPLES_SCHEMA), (PREDICTIONS, _PREDICTIONS_SCHEMA))
    )
    ids = trials["trial_id"].to_list()
    if len(set(ids)) < len(ids) or None in ids:
        twice = next(trial_id for trial_id in ids if trial_id is None or ids.count(trial_id) > 1)
        raise DataError(f"{folder / TRIALS}: column trial_id: {str(twice)[:200]!r} is missing or there twice; {_AGAIN}")
    calls, predictions = _by_trial(samples, folder / SAMPLES, ids), _by_trial(images, folder / PREDICTIONS, ids)
    cells = []
    for row in trials.iter_rows(named=True):
        source = f"{folder / TRIALS}: {row['trial_id'][:200]}"
        record = _record(row, calls.get(row["trial_id"]), source, folder)
        cells.append((record, _predictions(record, predictions.get(row["trial_id"]), folder)))
    return cells


def _read(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path.read_bytes(), hive_partitioning=False)
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror}); {_AGAIN}") from error
    except (Exception, pl.exceptions.PanicException) as error:
        raise DataError(f"{path}: not a Parquet file of records ({type(error).__name__}); {_AGAIN}") from error
    for name in dict.fromkeys([*schema, *frame.columns]):
        if frame.schema.get(name) != schema.get(name):
            found, wanted = frame.schema.get(name, "missing"), schema.get(name, "no such column")
            raise DataError(f"{path}: column {name[:60]!r}: {found}, must be {wanted}; {_AGAIN}")
    if frame.columns != list(schema):
        raise DataError(f"{path}: columns are not in the order {', '.join(schema)}; {_AGAIN}")
    return frame


def _by_trial(frame: pl.DataFrame, path: Path, ids: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Rows of each trial; every one belongs to a trial, and no value but a KL is null."""
    empty = [name for name in frame.columns if name != "kl" and frame[name].null_count()]
    if empty:
        raise DataError(f"{path}: column {empty[0]}: {frame[empty[0]].null_count()} values are null; {_AGAIN}")
    parts = {str(key[0]): part for key, part in frame.partition_by("trial_id", as_dict=True, maintain_order=True).items()}
    if strange := set(parts) - set(ids):
        raise DataError(f"{path}: column trial_id: {sorted(strange)[0][:200]!r} is not in {TRIALS}; {_AGAIN}")
    return parts


def _record(row: dict[str, Any], calls: pl.DataFrame | None, source: str, folder: Path) -> Record:
    content: dict[str, Any] = {name: row[name] for name in _PLAIN}
    for name in _JSON:
        try:
            content[name] = None if row[name] is None else parse_json(row[name])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: column {name}: not JSON ({first_line(error)}); {_AGAIN}") from error
    if not isinstance(content["trial"], dict) or "study" in content["trial"]:
        raise DataError(f"{source}: column trial: must be a JSON object without the key study, which has a column; {_AGAIN}")
    content["trial"]["study"] = row["study"]
    timed = content["measurement"].get("latency") if isinstance(content["measurement"], dict) else None
    if isinstance(timed, list):
        found = {} if calls is None else {key[0]: part for key, part in calls.partition_by("batch_size", as_dict=True).items()}
        for item in timed:
            if not isinstance(item, dict) or "samples_ms" in item:
                raise DataError(f"{source}: column measurement: latency must hold objects without samples_ms; {_AGAIN}")
            part = found.pop(item.get("batch_size"), None) if isinstance(item.get("batch_size"), int) else None
            item["samples_ms"] = [] if part is None else _in_order(part, source, folder)
        calls = None if not found else calls
    if calls is not None:
        raise DataError(f"{folder / SAMPLES}: {row['trial_id'][:200]}: samples of a batch size that its measurement lacks; {_AGAIN}")
    return parse_record(json.dumps(content), source=source)


def _in_order(part: pl.DataFrame, source: str, folder: Path) -> list[float]:
    if part["call"].to_list() != list(range(part.height)) or part["process"].n_unique() > 1:
        raise DataError(f"{folder / SAMPLES}: {source.rsplit(': ', 1)[1]}: column call: must count from 0, of one process; {_AGAIN}")
    return part["ms"].to_list()


def _predictions(record: Record, part: pl.DataFrame | None, folder: Path) -> Predictions | None:
    source = f"{folder / PREDICTIONS}: {record.trial_id}"
    if part is None:
        if record.evaluation is not None:
            raise DataError(f"{source}: has an evaluation but no predictions; {_AGAIN}")
        return None
    if part["image"].to_list() != list(range(part.height)):
        raise DataError(f"{source}: column image: must count from 0; {_AGAIN}")
    missing = part["kl"].null_count()
    if missing not in (0, part.height):
        raise DataError(f"{source}: column kl: {missing} of {part.height} values are null; {_AGAIN}")
    names = [name for name in COLUMNS if name != "kl" or not missing]
    predictions = predictions_of({name: part[name].to_numpy() for name in names}, source=source)
    check_predictions(predictions, record, source=source)
    return predictions
