"""A record is written whole or not at all, and only what this program understands is read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.predictions import Predictions, load_predictions
from lowbit_vit.schema.record import (
    Record,
    read_record,
    read_records,
    sha256,
    write_atomic,
    write_record,
)

DEMO = Path(__file__).parents[2] / "profiles" / "demo.yaml"


@pytest.fixture
def record() -> Record:
    profile = load_profile(DEMO)
    trial = Trial(
        profile="demo",
        study="mixed",
        label="<b>label</b>",
        data=profile.data,
        backbone=profile.backbone,
        plan=Plan(compute_dtype="fp32"),
        attention="math",
        qkv="separate",
        adaptation="none",
        lora=None,
        execution="eager",
        device="cpu",
        evaluation=profile.evaluation,
        measurement=None,
        limits=profile.limits,
        selection_seed=profile.selection_seed,
        seed=0,
    )
    return Record(
        trial_id=trial.trial_id, status="failed", reason="killed by signal 9", trial=trial, provenance=None, code_sha256="ab" * 32
    )


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(
        label=np.arange(6, dtype=np.uint16),
        best=np.arange(6, dtype=np.uint16)[::-1].copy(),
        among5=np.array([True] * 5 + [False]),
        margin=np.linspace(-1, 1, 6, dtype=np.float32),
        selection=np.array([True, False] * 3),
        kl=None,
    )


def test_record_and_predictions_survive_the_disk(tmp_path: Path, record: Record, predictions: Predictions) -> None:
    path = write_record(record, tmp_path / "records", predictions.to_bytes())
    assert read_record(path) == record
    assert read_records(tmp_path) == [record]
    loaded = load_predictions(path.with_suffix(".npz"))
    assert loaded.kl is None
    assert loaded.sha256() == predictions.sha256()
    for name in ("label", "best", "among5", "margin", "selection"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(predictions, name), strict=True)


@pytest.mark.parametrize("name", ["label", "best", "among5", "margin", "selection", "kl"])
def test_the_hash_of_predictions_is_of_every_value(predictions: Predictions, name: str) -> None:
    column = np.zeros(6, np.float32) if name == "kl" else getattr(predictions, name).copy()
    column[-1] = not column[-1] if column.dtype == bool else column[-1] + 1
    assert Predictions(**{**vars(predictions), name: column}).sha256() != predictions.sha256()


def test_equal_predictions_are_equal_bytes(predictions: Predictions) -> None:
    assert sha256(predictions.to_bytes()) == sha256(predictions.to_bytes())


def test_no_records_is_an_empty_list(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"record_version": 4}, "record_version '4'; this program reads 3"),
        ({"record_version": None}, "record_version 'None'"),
        ({"record_version": 2}, "record_version 2 is of the first edition; run the study again"),
        ({"status": "fine"}, "status"),
        ({"latency": 3}, "latency: unknown key"),
    ],
)
def test_a_record_of_another_schema_is_refused(tmp_path: Path, record: Record, change: dict[str, object], said: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record.model_dump(mode="json") | change))
    with pytest.raises(DataError, match=said):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"record\.json"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"some\.npz: not a predictions file"):
        load_predictions(path)


WRITE_BEYOND_THE_LIMIT = """
import pathlib, resource, sys
from lowbit_vit.errors import DataError
from lowbit_vit.schema.record import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomic(pathlib.Path(sys.argv[1]), b"x" * 10_000)
except DataError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_record_intact(tmp_path: Path) -> None:
    # No file of the child may exceed 4 KiB: its write fails half-way, as on a full disk.
    path = tmp_path / "record.json"
    write_atomic(path, b"old")
    child = subprocess.run([sys.executable, "-c", WRITE_BEYOND_THE_LIMIT, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written (File too large); the old file is intact" in child.stdout
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
