"""The tables in the terminal: a line an arm, and the reason of what did not run."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import synthetic
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.report.columns import Table, to_terminal
from lowbit_vit.report.tables import result_table_of
from lowbit_vit.report.terminal import doctor_table, explain
from lowbit_vit.schema.config import load_profile

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.yaml"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("terminal") / "root", studies=("variants",))
    return load_results(workspace, "variants")


def printed(table: Table, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(to_terminal(table))
    return capture.get()


def test_every_arm_is_a_line_and_the_papers_come_first(results: list[Result]) -> None:
    table = result_table_of(results)
    assert len(table.rows) == 13
    lines = printed(table).splitlines()
    order = [next(i for i, line in enumerate(lines) if name in line) for name in ("Baseline ViT", "8-bit + FlashAttn2", "NF4, CUDA graph")]
    assert order == sorted(order)


def test_skipped_arms_say_why(results: list[Result]) -> None:
    assert printed(result_table_of(results)).count("skipped: needs CUDA") == 3


def test_square_brackets_in_a_label_are_text(results: list[Result]) -> None:
    trial = results[0].record.trial.model_copy(update={"label": "[red]NF4[/red]"})
    assert "[red]NF4[/red]" in printed(
        result_table_of([Result(results[0].record.model_copy(update={"trial": trial}), results[0].predictions)])
    )


@pytest.mark.parametrize("width", [140, 80, 60, 40])
@pytest.mark.parametrize("name", ["result", "doctor"])
def test_no_word_is_broken_at_any_width(results: list[Result], name: str, width: int) -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    table = result_table_of(results) if name == "result" else doctor_table(profile)
    lines = printed(table, width).splitlines()
    assert max(map(len, lines)) <= width
    told = {word for line in lines for word in re.sub("[│┃·:]", " ", line).split()}
    for line in table.lines("terminal"):
        assert {word for cell in line.cells for word in cell.text.replace(":", " ").split()} <= told


def test_no_records_make_an_empty_table() -> None:
    assert to_terminal(result_table_of([])).row_count == 0


@pytest.mark.parametrize("name", ["demo", "paper", "scratch"])
def test_doctor_has_a_line_for_every_arm_of_every_profile(name: str) -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / f"{name}.yaml")
    assert to_terminal(doctor_table(profile)).row_count == len(profile.variants.arms) + len(profile.sensitivity.formats) + 1


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_loads_and_its_explanation_loads_back_to_the_same(path: Path, tmp_path: Path) -> None:
    profile = load_profile(path)
    copy = tmp_path / path.name
    copy.write_text(explain(profile))
    assert load_profile(copy) == profile
