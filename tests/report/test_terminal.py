"""The tables in the terminal: a line an arm, and the reason of what did not run."""

import io

import pytest
from rich.console import Console

import synthetic
from lowbit_vit.report.columns import Table, to_terminal
from lowbit_vit.report.tables import result_table_of
from lowbit_vit.report.terminal import doctor_table
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.record import Record, read_records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("terminal") / "root", studies=("variants",))
    return read_records(workspace.records("variants"))


def printed(table: Table) -> str:
    console = Console(width=140, file=io.StringIO())
    with console.capture() as capture:
        console.print(to_terminal(table))
    return capture.get()


def test_every_arm_is_a_line_and_the_papers_come_first(records: list[Record]) -> None:
    table = result_table_of(records)
    assert len(table.rows) == 13
    lines = printed(table).splitlines()
    order = [next(i for i, line in enumerate(lines) if name in line) for name in ("Baseline ViT", "8-bit + FlashAttn2", "NF4, CUDA graph")]
    assert order == sorted(order)


def test_skipped_arms_say_why(records: list[Record]) -> None:
    assert printed(result_table_of(records)).count("skipped: needs CUDA") == 3


def test_square_brackets_in_a_label_are_text(records: list[Record]) -> None:
    trial = records[0].trial.model_copy(update={"label": "[red]NF4[/red]"})
    assert "[red]NF4[/red]" in printed(result_table_of([records[0].model_copy(update={"trial": trial})]))


def test_no_records_make_an_empty_table() -> None:
    assert to_terminal(result_table_of([])).row_count == 0


@pytest.mark.parametrize("name", ["demo", "paper", "scratch"])
def test_doctor_has_a_line_for_every_arm_of_every_profile(name: str) -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / f"{name}.yaml")
    assert to_terminal(doctor_table(profile)).row_count == len(profile.variants.arms) + len(profile.sensitivity.formats) + 1
