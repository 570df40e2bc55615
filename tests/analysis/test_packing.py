"""Packed records: small, the same bytes again, and read like loose ones; test_altered_records.py has what is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.archive import PREDICTIONS, SAMPLES, TRIALS, round_cell
from lowbit_vit.analysis.claims.ledger import gather, judge
from lowbit_vit.analysis.results import load_all_results, load_results
from lowbit_vit.analysis.runs import load_run, pack_records
from lowbit_vit.analysis.tables import find
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import STUDIES, Profile
from lowbit_vit.schema.record import read_records, write_record
from lowbit_vit.schema.workspace import Workspace


class Forms:
    """One run's records, loose and packed."""

    def __init__(self, profile: Profile, loose: Workspace, folder: Path) -> None:
        self.profile, self.loose = profile, loose
        self.packed = replace(loose, elsewhere=folder)
        self.files = pack_records(profile, loose, folder)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    folder = tmp_path_factory.mktemp("packed")
    profile, workspace = synthetic.fill(folder / "root")
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.profile_file)
    (folder / "to").mkdir()
    # No record, so it is not packed, but a table is made of it.
    shutil.copy(workspace.estimates, folder / "to")
    return Forms(profile, workspace, folder / "to")


def test_records_come_back_whole_and_answers_with_their_classes_exact(forms: Forms) -> None:
    for study in STUDIES:
        loose, packed = load_results(forms.loose, study), load_results(forms.packed, study)
        assert [result.record for result in packed] == [round_cell(result.record, result.predictions)[0] for result in loose]
        for one, other in zip(loose, packed, strict=True):
            assert (one.predictions is None) == (other.predictions is None)
            assert (one.whole, one.selection, one.report, one.latency) == (other.whole, other.selection, other.report, other.latency)
            if one.predictions is not None and other.predictions is not None:
                for name in ("label", "best", "among5", "selection", "right"):
                    np.testing.assert_array_equal(getattr(other.predictions, name), getattr(one.predictions, name), strict=True)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.0, -1.5, 3.14159, -1e-30, 1e-45, 3.4e38, float(np.float32(1) + np.float32(2**-8)), 1.00390625, 1.01171875]
)
def test_rounding_keeps_seven_bits_the_sign_and_zero(forms: Forms, value: float) -> None:
    result = next(result for result in load_results(forms.loose, "sensitivity") if result.predictions is not None)
    assert result.predictions is not None
    margin = result.predictions.margin.copy()
    margin[0] = value
    record, stored = round_cell(result.record, replace(result.predictions, margin=margin))
    assert stored is not None
    assert record.evaluation is not None
    assert record.evaluation.predictions_sha256 == stored.sha256()
    assert np.sign(stored.margin[0]) == np.sign(np.float32(value))
    assert abs(stored.margin[0] - np.float32(value)) <= abs(np.float32(value)) * 2.0**-7
    again = round_cell(record, stored)
    assert again[0] == record


def test_the_files_say_what_is_rounded(forms: Forms) -> None:
    assert [path.name for path in forms.files] == [TRIALS, SAMPLES, PREDICTIONS]
    for path in forms.files:
        assert "kl is rounded to 10 significant bits, margin to 7" in pl.read_parquet_metadata(path)["lowbit-vit"]


def test_every_table_is_that_of_the_loose_records(forms: Forms) -> None:
    loose, packed = (find(forms.profile, workspace).tables for workspace in (forms.loose, forms.packed))
    for field in fields(loose):
        one, other = getattr(loose, field.name), getattr(packed, field.name)
        # A mean of differences of margins, of some thousandths of what is rounded; nothing shows it.
        for column in set(one.columns) - {"margin_mean"}:
            assert _same(one[column], other[column]), f"{field.name}.{column}"


def _same(one: pl.Series, other: pl.Series) -> bool:
    """Equal; floats to the rounding, which means over images keep better, and differences of them worse."""
    if not one.dtype.is_float():
        return one.equals(other)
    values = [series.to_numpy() for series in (one, other)]
    return bool(np.allclose(values[1], values[0], rtol=5e-3, atol=2e-5, equal_nan=True))


def test_the_ledger_judges_alike(forms: Forms) -> None:
    judged = []
    for workspace in (forms.loose, forms.packed):
        results = load_all_results(workspace)
        found = judge(synthetic.paper().ledger.claims, gather(forms.profile, results, synthetic.paper()))
        judged.append([(item.claim.id, item.verdict, item.words) for item in found])
    assert judged[0] == judged[1]


def test_a_folder_of_packed_studies_is_a_side(forms: Forms) -> None:
    side = load_run(str(forms.packed.reports), root=forms.loose.root)
    assert {study: len(results) for study, results in side.results.items()} == {
        study: len(read_records(forms.loose.records(study))) for study in STUDIES
    }


def test_it_is_small_and_the_same_again(forms: Forms, tmp_path: Path) -> None:
    loose = sum(path.stat().st_size for path in (forms.loose.reports / "records").rglob("*.*"))
    assert sum(path.stat().st_size for path in forms.files) < loose / 3
    again = pack_records(forms.profile, forms.loose, tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in forms.files]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Workspace]:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("project") / "root", studies=("variants",))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.profile_file)
    return profile, workspace


def test_records_that_come_in_two_pieces_are_those_that_came_at_once(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    folder, to = workspace.records("variants"), replace(workspace, elsewhere=tmp_path / "to")
    pack_records(profile, workspace, tmp_path / "at once")
    whole = load_results(replace(workspace, elsewhere=tmp_path / "at once"), "variants")
    late = {path.stem for path in sorted(folder.glob("*.npz"))[1:3]}
    shutil.copytree(folder, tmp_path / "late")
    for path in (*folder.iterdir(), *(tmp_path / "late").iterdir()):
        if (path.stem in late) is (path.parent == folder):
            path.unlink()
    pack_records(profile, workspace, to.reports)
    assert not late & {result.record.trial_id for result in load_results(to, "variants")}
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "late", folder)
    pack_records(profile, workspace, to.reports, add=True)
    joined = load_results(to, "variants")
    assert {result.record.trial_id: result.record for result in joined} == {result.record.trial_id: result.record for result in whole}
    pack_records(profile, workspace, to.reports)
    assert {result.record.trial_id for result in load_results(to, "variants")} == late


def test_what_is_added_must_be_of_the_same_code(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    pack_records(profile, workspace, tmp_path / "to")
    first, *_ = records = read_records(workspace.records("variants"))
    shutil.rmtree(workspace.records("variants"))
    other = first.trial.model_copy(update={"seed": 5})
    write_record(
        synthetic.unfinished(other, "failed", "other code").model_copy(update={"code_sha256": "f" * 64}), workspace.records("variants")
    )
    assert len(records) == 13
    with pytest.raises(DataError, match="are of different code"):
        pack_records(profile, workspace, tmp_path / "to", add=True)


def test_a_study_without_a_result_is_packed_as_well(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    trial = read_records(workspace.records("variants"))[0].trial
    shutil.rmtree(workspace.records("variants"))
    write_record(synthetic.unfinished(trial, "failed", "told to"), workspace.records("variants"))
    pack_records(profile, workspace, tmp_path / "to")
    (found,) = load_results(replace(workspace, elsewhere=tmp_path / "to"), "variants")
    assert (found.record.reason, found.predictions) == ("told to", None)


def test_no_records_say_what_to_run(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=())
    with pytest.raises(DataError, match="no records; run dvc repro report@demo first"):
        pack_records(profile, workspace, tmp_path / "to")


def test_records_are_never_packed_beside_loose_ones(project: tuple[Profile, Workspace]) -> None:
    profile, workspace = project
    with pytest.raises(DataError, match=r"records: holds loose records; pack into another folder"):
        pack_records(profile, workspace, workspace.reports)
    assert not list((workspace.reports / "records").glob("*.parquet"))


NEXT = "--- next ---\n"
ONE_BY_ONE = f"""
import json, sys
from lowbit_vit.cli import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    print({NEXT!r} if number else "", end="")
    sys.argv = ["lowbit-vit", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
assert not {{'torch', 'ray'}} & set(sys.modules)
"""


def test_the_verb_packs_and_show_reads_it_without_torch(project: tuple[Profile, Workspace], tmp_path: Path) -> None:
    _, workspace = project
    files = [tmp_path / "to" / "records" / name for name in (TRIALS, SAMPLES, PREDICTIONS)]
    verbs = [["pack", "demo", "--to", str(tmp_path / "to")], ["show", "demo"], ["show", "demo", "--reports", str(tmp_path / "to")]]
    commands = [[*arguments, "--root", str(workspace.root)] for arguments in verbs]
    run = subprocess.run([sys.executable, "-c", ONE_BY_ONE, json.dumps(commands)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    shown = run.stdout.split(NEXT)
    assert shown[0] == "".join(f"{path}: {path.stat().st_size:,} bytes\n" for path in files)
    assert shown[1] == shown[2] != ""
