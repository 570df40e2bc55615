"""The audit's verb: one line a check, worst first; table, Markdown and JSON say the same; text stays text."""

import json
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from rich.console import Console

from command_line import call
from lowbit_vit.analysis.audit import Finding, ResultsTable, audit, load_table
from lowbit_vit.report.columns import to_markdown, to_terminal
from lowbit_vit.report.findings import findings_table, summary

ROOT = Path(__file__).parents[2]
PRINTED, CONTEXT = (f"papers/vit-quantization-2025/{name}" for name in ("table.csv", "context.yaml"))
NASTY = Finding(
    check="zero",
    rows=(),
    columns=("Latency | (ms)",),
    verdict="impossible",
    words="[bold]a[/] | <script> *b*",
    numbers={"cells": 1.0},
)
TABLE = ResultsTable(labels=("one",), headings=MappingProxyType({}), cells=MappingProxyType({}))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lowbit_vit", "audit", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_papers_audit_is_printed_with_its_counts_and_exits_1() -> None:
    shown = run(PRINTED, "--context", CONTEXT)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "slipped-digit" in shown.stdout
    assert "7 findings that no honest reading allows; of all 58: 6 impossible, 1 contradicts itself" in shown.stdout


def test_the_audit_starts_without_polars_and_torch() -> None:
    code = "import sys, lowbit_vit.analysis.audit, lowbit_vit.report.findings; print({'polars', 'torch', 'scipy.stats'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == "set()\n"


def test_a_table_without_a_hard_finding_exits_0(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Latency (ms)\none,12.50\ntwo,24.00\n")
    shown = call("audit", str(path), "--json")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_rows_of_one_check_are_one_line_with_three_examples_worst_first(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = [f"row {at},{20 + at}.50,{20 + at}.10,{0.5 + at / 1000:.4f}" for at in range(40)]
    path.write_text("Model,Latency P50 (ms),Latency P95 (ms),Top-1\n" + "\n".join(lines))
    table = load_table(path)
    findings = audit(table)
    first = summary(findings, table)[0]
    assert (first.verdict, first.check, first.rows) == ("impossible", "percentile-order", "40 of 40")
    assert first.words.startswith("row 0: ")
    assert first.words.endswith("Likewise row 1, row 2 and 37 more")
    assert len(summary(findings, table)) < 6
    assert [line.check for line in summary(findings, table, every_row=True)].count("percentile-order") == 40


def test_rates_are_counted_as_rates(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Top-1 (%),Test images\n" + "\n".join(f"row {at},{33.3111 + at:.4f},7" for at in range(5)))
    table = load_table(path)
    assert summary(audit(table), table)[0].rows == "5 of 5 rates"


def test_json_and_markdown_hold_the_same_findings() -> None:
    listed = json.loads(call("audit", PRINTED, "--context", CONTEXT, "--json").stdout)
    written = call("audit", PRINTED, "--context", CONTEXT, "--markdown", "--rows").stdout
    assert sorted(Finding.model_validate_json(json.dumps(finding)).check for finding in listed) == sorted(
        line.split(" | ")[1] for line in written.splitlines()[2:] if line.startswith("|")
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing.csv"], 3, "nothing.csv: no such table"),
        ([PRINTED, "--context", "nothing.yaml"], 2, "nothing.yaml: no such context file"),
        ([PRINTED, "--json", "--markdown"], 2, "give one of them"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(arguments: list[str], code: int, said: str) -> None:
    shown = call("audit", *arguments)
    assert (shown.returncode, shown.stdout) == (code, "")
    assert len(shown.stderr.strip().splitlines()) == 1
    assert said in shown.stderr


def test_text_stays_text() -> None:
    console = Console(width=100, record=True, file=sys.stderr)
    console.print(to_terminal(findings_table([NASTY], TABLE, title="[red]t[/]")))
    shown = console.export_text()
    assert "[bold]a[/] | <script> *b*" in shown
    assert "[red]t[/]" in shown
    line = to_markdown(findings_table([NASTY], TABLE)).splitlines()[2]
    assert line.endswith(r"\[bold\]a\[/\] \| &lt;script&gt; \*b\* |")
