"""GRIM: counts over n always fit n; a hidden n is found where rates are many, and not where chance explains them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit_vit.analysis.audit import Context, Finding, ResultsTable, audit, load_table
from lowbit_vit.analysis.audit.counts import fits, found_images, granularity, rates


def table_of(folder: Path, top1: Sequence[str], top5: Sequence[str]) -> ResultsTable:
    path = folder / "table.csv"
    lines = [f"row {at},{one},{five}" for at, (one, five) in enumerate(zip(top1, top5, strict=True))]
    path.write_text("\n".join(["Model,Top-1,Top-5", *lines]))
    return load_table(path)


def of(findings: Sequence[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.integers(1, 9000), data=st.data(), digits=st.integers(1, 6))
def test_whole_numbers_of_images_always_fit_however_they_are_rounded(images: int, data: st.DataObject, digits: int, tmp_path: Path) -> None:
    right = sorted(data.draw(st.integers(0, images)) for _ in range(2))
    table = table_of(tmp_path, [f"{right[0] / images:.{digits}f}"], [f"{right[1] / images:.{digits}f}"])
    assert granularity(rates(table), images).misfits == ()


@pytest.mark.parametrize(
    ("text", "images", "fit"), [("0.50", 2, True), ("0.33", 3, True), ("0.34", 3, False), ("0.5954", 818, True), ("0.5956", 818, False)]
)
def test_known_rates(text: str, images: int, fit: bool, tmp_path: Path) -> None:
    assert fits(table_of(tmp_path, [text], ["1.0"]).column("top1")[0], images) is fit


def _printed(images: int, counts: Sequence[int]) -> list[str]:
    return [f"{count / images:.4f}" for count in counts]


def test_a_hidden_number_of_images_is_found_and_said_to_be_exact(tmp_path: Path) -> None:
    table = table_of(tmp_path, _printed(373, [201, 215, 222, 250, 259]), _printed(373, [301, 311, 317, 325, 331]))
    (found,) = of(audit(table), "hidden-images")
    assert (found.verdict, found.numbers["images"]) == ("exact", 373)


def test_a_rate_that_is_not_of_those_images_contradicts_the_others(tmp_path: Path) -> None:
    top1 = _printed(373, [201, 215, 222, 250, 259])
    top1[2] = "0.5959"  # 222.27 of 373
    table = table_of(tmp_path, top1, _printed(373, [301, 311, 317, 325, 331]))
    (found,) = of(audit(table), "hidden-images")
    assert (found.verdict, found.rows, found.columns) == ("contradicts itself", (2,), ("Top-1",))
    assert found.numbers["fitting"] == 9


def test_a_stated_number_of_images_is_asked_first(tmp_path: Path) -> None:
    table = table_of(tmp_path, _printed(373, [201, 215]), _printed(373, [301, 311]))
    (right,) = of(audit(table, Context.model_validate({"claims": {"images": 373}})), "split-size")
    (wrong,) = of(audit(table, Context.model_validate({"claims": {"images": 400}})), "split-size")
    assert (right.verdict, wrong.verdict) == ("holds", "contradicts itself")


def test_random_rates_hide_no_number_of_images_more_often_than_is_said(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        drawn = [f"{rate:.4f}" for rate in generator.uniform(0, 1, 10)]
        found += found_images(table_of(tmp_path, drawn[:5], drawn[5:])) is not None
    # At most 1 % by Bonferroni; 6 of 150 would have a probability below 0.5 %.
    assert found <= 5
