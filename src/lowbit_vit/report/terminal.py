"""What verbs print that is no part of the report: profiles, the doctor's findings, weights, predictions. Needs neither torch nor polars."""

import json
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from lowbit_vit.analysis.checkpoints import Checkpoint
from lowbit_vit.errors import escape_controls
from lowbit_vit.report.columns import Column, Table
from lowbit_vit.report.number_format import number, percent
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.machine import DoctorRow, doctor

MIB = 1 << 20
Prediction = tuple[str, Sequence[tuple[str, float]]]  # an image, and its most likely classes with their probabilities


def explain(profile: Profile) -> str:
    """The resolved profile as YAML, with the description of each value as a comment; it loads back to an equal profile."""
    return "".join(f"{line}\n" for line in _explained(profile, indent=""))


def _explained(model: BaseModel, *, indent: str) -> Iterator[str]:
    for key, field in type(model).model_fields.items():
        value = getattr(model, key)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:{comment}"
            yield from _explained(value, indent=f"{indent}  ")
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            yield f"{indent}{key}:{comment}"
            yield from (f"{indent}- {_flow(item)}" for item in value)
        else:
            yield f"{indent}{key}: {_flow(value)}{comment}"


def _flow(value: object) -> str:
    """One-line YAML; JSON is YAML."""
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{key}: {_flow(getattr(value, key))}" for key in type(value).model_fields) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def doctor_table(profile: Profile) -> Table:
    """What this machine can run of a profile, arm by arm, and why not."""
    settings = (Column(name, name, kind="words") for name in ("precision", "attention", "adaptation", "execution", "device"))
    columns = (
        Column("study", "study", kind="words"),
        Column("arm", "label", kind="name"),
        *settings,
        Column("can run", _can_run, kind="words", style=lambda row: "green" if row.reason is None else "yellow"),
    )
    return Table(f"{profile.name}: what this machine can run", columns, doctor(profile))


def _can_run(row: DoctorRow) -> str:
    return "yes" if row.reason is None else f"no: {row.reason}"


def checkpoint_table(found: Sequence[Checkpoint]) -> Table:
    """One line a file of weights: how it was made, how good it is, its hash, and what is wrong with it."""
    styles = {"present": "green", "missing": "yellow", "damaged": "red"}
    columns = (
        Column("weights", lambda row: row.file.as_posix(), kind="name"),
        Column("made", lambda row: row.card.made if row.card else "", kind="words"),
        Column("val %", lambda row: _top1(row, "val"), percent),
        Column("test %", lambda row: _top1(row, "test"), percent),
        Column("MiB", lambda row: None if row.size_bytes is None else row.size_bytes / MIB, number),
        Column("sha256", lambda row: row.card.sha256[:16] if row.card else "", kind="words"),
        Column("state", _state, kind="words", style=lambda row: styles[row.state]),
    )
    note = "Top-1 in fp32; val is no held-out split where it was trained on. Licences are in the .json beside each file."
    return Table("", columns, found, note)


def _state(checkpoint: Checkpoint) -> str:
    return checkpoint.state if checkpoint.problem is None else f"{checkpoint.state}: {checkpoint.problem}"


def _top1(checkpoint: Checkpoint, split: str) -> float | None:
    accuracy = checkpoint.card.accuracy if checkpoint.card is not None else None
    return accuracy[split].top1 if accuracy is not None and split in accuracy else None


def prediction_table(predictions: Sequence[Prediction]) -> Table:
    """One line an image: its most likely classes with their probabilities in percent, best first."""
    ranks = range(max(len(classes) for _, classes in predictions))
    return Table("", (Column("image", lambda row: row[0], kind="name"), *map(_rank_column, ranks)), predictions)


def _rank_column(rank: int) -> Column:
    def shown(prediction: Prediction) -> str:
        _, classes = prediction
        return f"{classes[rank][0]} {100 * classes[rank][1]:.1f} %" if rank < len(classes) else ""

    return Column(f"{rank + 1}", shown, kind="words")


def prediction_lines(predictions: Sequence[Prediction]) -> str:
    r"""One line an image, by tabs: the image, then each class and its probability. Names hold no tab or line end (\t, \n; \ is \\)."""
    lines = ([_field(image), *(f"{_field(name)}\t{share:.6f}" for name, share in classes)] for image, classes in predictions)
    return "".join("\t".join(line) + "\n" for line in lines)


def _field(name: str) -> str:
    return escape_controls(name.replace("\\", r"\\"))


def prediction_json(predictions: Sequence[Prediction], faults: Sequence[tuple[str, str]]) -> str:
    """One JSON object a line: an image and its most likely classes, then each image that could not be read and why. In ASCII."""
    found = [
        {"image": image, "classes": [{"class": name, "probability": share} for name, share in classes]} for image, classes in predictions
    ]
    lines = [*found, *({"image": image, "error": reason} for image, reason in faults)]
    return "".join(json.dumps(line) + "\n" for line in lines)
