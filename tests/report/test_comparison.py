"""Two runs side by side and a check, as people read them; and the two verbs with their exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

import synthetic
from command_line import call
from lowbit_vit.analysis.archive import TRIALS
from lowbit_vit.analysis.check import check_run
from lowbit_vit.analysis.compare import compare_runs
from lowbit_vit.analysis.runs import load_run
from lowbit_vit.report.columns import Table, escape_markdown, to_markdown, to_terminal
from lowbit_vit.report.comparison import check_summary, check_table, comparison_notes, comparison_table
from lowbit_vit.schema.config import STUDIES

ROOT = synthetic.PROJECT
CPU, H200 = "reports/reference/cpu", "reports/reference/h200"


def shown(table: Table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(to_terminal(table))
    console.file.close()
    return console.export_text()


def lowbit_vit(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lowbit_vit", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_table_has_every_arm_of_both_sides_and_says_what_is_missing() -> None:
    first, second = load_run(CPU, root=ROOT), load_run(H200, root=ROOT)
    frame = compare_runs(first, second, studies=STUDIES, margin=0.01)
    text = shown(comparison_table(frame, first, second, margin=0.01))
    markdown = call("compare", CPU, H200, "--markdown").stdout
    for side in (first, second):
        for result in side.results["variants"]:
            assert escape_markdown(result.record.trial.label) in markdown
    assert "B not in this run" in text
    notes = comparison_notes(frame, first, second)
    assert "processor: A AMD EPYC, 2 cores, 2 threads; B NVIDIA H200" in notes
    assert any(note.startswith("sensitivity: ") and "cells have accuracy on both sides" in note for note in notes)
    assert all(f"- {escape_markdown(note)}\n" in markdown for note in notes)


def test_a_check_shows_expected_found_tolerance_and_verdict_of_every_line() -> None:
    side = load_run(H200, root=ROOT)
    lines = check_run(side, side)
    text, markdown = shown(check_table(lines)), to_markdown(check_table(lines))
    assert check_summary(lines) == "337 numbers: 337 within tolerance, 0 out of it, 0 not compared"
    for said in ("expected", "found", "tolerance", "verdict", "606,812,364"):
        assert said in text
        assert said in markdown
    assert markdown.count("\n| variants: ") == len(lines)


def test_text_of_records_stays_text_in_markdown(tmp_path: Path) -> None:
    profile = load_run(CPU, root=ROOT).profile
    label = "<script>alert(1)</script> | x"
    synthetic.fill(tmp_path / "root", profile=synthetic.relabel(profile, profile.variants.arms[0].label, label), studies=("variants",))
    shutil.copy(ROOT / "profiles" / "demo.yaml", tmp_path / "root" / "profiles")
    side = load_run("demo", root=tmp_path / "root")
    compared = comparison_table(compare_runs(side, side, studies=("variants",), margin=0.01), side, side, margin=0.01)
    for markdown in (to_markdown(compared), to_markdown(check_table(check_run(side, side)))):
        assert "<script>" not in markdown
        assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| x" in markdown


def test_compare_prints_a_table_and_writes_every_study_as_csv(tmp_path: Path) -> None:
    run = call("compare", CPU, CPU, "--markdown", "--csv", str(tmp_path / "compared.csv"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("| arm | seed |")
    assert run.stderr == ""
    assert set(pl.read_csv(tmp_path / "compared.csv")["study"]) == set(STUDIES)


def test_check_exits_with_0_where_a_run_repeats_its_reference() -> None:
    run = call("check", H200, H200)
    assert run.returncode == 0, run.stderr
    assert "337 within tolerance, 0 out of it" in run.stdout


def test_check_exits_with_1_and_names_the_planted_fault(tmp_path: Path) -> None:
    shutil.copytree(ROOT / CPU, tmp_path / "run")
    path = tmp_path / "run" / "records" / TRIALS
    trials = pl.read_parquet(path)
    of_bf16 = pl.col("trial_id").str.starts_with("bf16-") & (pl.col("study") == "variants")
    (model,) = trials.filter(of_bf16)["model"].to_list()
    heavier = json.loads(model)
    heavier["weight_bytes"] += 1
    trials.with_columns(model=pl.when(of_bf16).then(pl.lit(json.dumps(heavier))).otherwise("model")).write_parquet(path)
    run = lowbit_vit("check", str(tmp_path / "run"), CPU, "--csv", str(tmp_path / "lines.csv"))
    assert run.returncode == 1
    (said,) = run.stderr.strip().splitlines()
    assert said.startswith("lowbit-vit: ")
    assert "1 out of it" in said
    assert "variants, bf16, seed 0: weights, bytes" in said
    off = pl.read_csv(tmp_path / "lines.csv").filter(pl.col("verdict") == "miss")
    assert off.select("arm", "metric").rows() == [("bf16", "weights, bytes")]


@pytest.mark.parametrize("verb", ["compare", "check"])
def test_what_is_no_run_is_one_line_and_exit_code_2(verb: str) -> None:
    run = call(verb, "nothing", CPU)
    assert run.returncode == 2
    assert run.stderr.startswith("lowbit-vit: nothing: neither a profile (there are: demo, ")
