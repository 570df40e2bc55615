"""The audit's verb: table, Markdown and JSON say the same; faults found are success; text stays text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from command_line import call
from lowbit_vit.analysis.audit import Finding
from lowbit_vit.report.findings import findings_markdown, findings_table

ROOT = Path(__file__).parents[2]
NASTY = Finding(
    check="zero",
    rows=(),
    columns=("Latency | (ms)",),
    verdict="impossible",
    words="[bold]a[/] | <script> *b*",
    numbers={"cells": 1.0},
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lowbit_vit", "audit", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_papers_audit_is_printed_with_its_counts_and_exits_0() -> None:
    shown = run("paper/table1.csv", "--context", "paper/context.yaml")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "slipped-digit" in shown.stdout
    assert "54 faults of 62 findings" in shown.stdout


def test_json_and_markdown_hold_the_same_findings() -> None:
    listed = json.loads(call("audit", "paper/table1.csv", "--context", "paper/context.yaml", "--json").stdout)
    written = call("audit", "paper/table1.csv", "--context", "paper/context.yaml", "--markdown").stdout
    assert [Finding.model_validate_json(json.dumps(finding)).check for finding in listed] == [
        line.split(" | ")[0].removeprefix("| ") for line in written.splitlines()[2:] if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing.csv"], 3, "nothing.csv: no such table"),
        (["paper/table1.csv", "--context", "nothing.yaml"], 2, "nothing.yaml: no such context file"),
        (["paper/table1.csv", "--json", "--markdown"], 2, "give one of them"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(arguments: list[str], code: int, said: str) -> None:
    shown = call("audit", *arguments)
    assert (shown.returncode, shown.stdout) == (code, "")
    assert len(shown.stderr.strip().splitlines()) == 1
    assert said in shown.stderr


def test_text_stays_text() -> None:
    console = Console(width=100, record=True, file=sys.stderr)
    console.print(findings_table([NASTY], title="[red]t[/]"))
    shown = console.export_text()
    assert "[bold]a[/] | <script> *b*" in shown
    assert "[red]t[/]" in shown
    line = findings_markdown([NASTY]).splitlines()[2]
    assert line.endswith(r"\[bold\]a\[/\] \| &lt;script&gt; \*b\* |")
