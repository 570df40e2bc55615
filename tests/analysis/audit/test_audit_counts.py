"""GRIM: counts over n always fit n; what is stated is held against the table, and what is not stated is at most doubted."""

from collections.abc import Sequence
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit_vit.analysis.audit import Context, Finding, ResultsTable, audit, load_table
from lowbit_vit.analysis.audit.accuracy import rates
from lowbit_vit.analysis.audit.readings import BATCHES, PUBLIC, Reading, Split, best_mixture, printable

ROUNDINGS = (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)


def table_of(folder: Path, top1: Sequence[str], top5: Sequence[str] = (), *, heading: str = "Top-1") -> ResultsTable:
    path = folder / "table.csv"
    columns = [top1, top5] if top5 else [top1]
    lines = [",".join([f"row {at}", *cells]) for at, cells in enumerate(zip(*columns, strict=True))]
    path.write_text("\n".join([",".join(["Model", heading, *(["Top-5"] if top5 else [])]), *lines]))
    return load_table(path)


def of(findings: Sequence[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def stated(images: int) -> Context:
    return Context.model_validate({"claims": {"images": images}})


def printed(images: int, counts: Sequence[int], *, digits: int = 4) -> list[str]:
    return [f"{count / images:.{digits}f}" for count in counts]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.integers(1, 9000), data=st.data(), digits=st.integers(1, 8), rounding=st.sampled_from(ROUNDINGS))
def test_whole_numbers_of_images_always_fit_however_they_are_rounded(
    images: int, data: st.DataObject, digits: int, rounding: str, tmp_path: Path
) -> None:
    exact = Decimal(data.draw(st.integers(0, images))) / Decimal(images)
    (cell,) = rates(table_of(tmp_path, [f"{exact.quantize(Decimal(1).scaleb(-digits), rounding=rounding):f}"]))
    assert Reading(images, "truncated" if rounding == ROUND_DOWN else "rounded").allows(cell)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.integers(1, 9000), data=st.data())
def test_what_single_precision_makes_of_a_percentage_fits(images: int, data: st.DataObject, tmp_path: Path) -> None:
    count = data.draw(st.integers(0, images))
    single = np.float32(count) / np.float32(images) * np.float32(100)
    (cell,) = rates(table_of(tmp_path, [f"{min(single, np.float32(100)):.6f}"], heading="Top-1 (%)"))
    assert Reading(images, "rounded").allows(cell)


@pytest.mark.parametrize(
    ("text", "images", "rounding", "fit"),
    [
        ("0.50", 2, "rounded", True),
        ("0.33", 3, "rounded", True),
        ("0.34", 3, "rounded", False),
        ("0.66", 3, "rounded", False),
        ("0.66", 3, "truncated", True),
        ("0.5954", 818, "rounded", True),
        ("0.5956", 818, "rounded", False),
        # 0.125 is a tie: to even, or up.
        ("0.12", 8, "rounded", True),
        ("0.13", 8, "rounded", True),
        # 100 * 0.29 is 28.999999999999996; 100 * 0.25 is 25.
        ("0.28", 100, "truncated", True),
        ("0.2400", 4, "truncated", False),
        ("1.00", 7, "truncated", True),
    ],
)
def test_known_rates(text: str, images: int, rounding: str, fit: bool, tmp_path: Path) -> None:
    assert Reading(images, "rounded" if rounding == "rounded" else "truncated").allows(rates(table_of(tmp_path, [text]))[0]) is fit


@pytest.mark.parametrize(("images", "resolution"), [(4000, 10000), (373, 1000), (96, 1000), (250, 1000), (7, 100)])
def test_the_share_of_printable_rates_is_that_of_counting_them(images: int, resolution: int, tmp_path: Path) -> None:
    digits = len(str(resolution)) - 1
    cells = rates(table_of(tmp_path, [f"{at / resolution:.{digits}f}" for at in range(resolution + 1)]))
    rounded = Reading(images, "rounded")
    assert sum(map(rounded.allows, cells)) == printable(images, "rounded", resolution)
    # Of the ties of a truncated rate only those count that floats lose; the share takes all of them.
    assert images + 1 <= sum(map(Reading(images, "truncated").allows, cells)) <= printable(images, "truncated", resolution)


def test_ties_are_counted_on_both_sides() -> None:
    # 4,000 images and two decimals of a per cent: every second count is a tie.
    assert printable(4000, "rounded", 10_000) / 10_001 == pytest.approx(0.6, abs=1e-3)


def test_a_loader_that_drops_its_last_batch_leaves_a_multiple() -> None:
    numbers = {reading.images for reading in Split(6149).readings}
    assert numbers == {6149, *(6149 - 6149 % batch for batch in BATCHES)}
    assert all(0 < number <= 6149 for number in numbers)


# ----------------------------------------------------------------------------------------------------- stated


def test_a_stated_number_of_images_is_held_against_the_table(tmp_path: Path) -> None:
    table = table_of(tmp_path, printed(373, [201, 215, 222]), printed(373, [301, 311, 325]))
    (right,) = of(audit(table, stated(373)), "split-size")
    assert (right.verdict, right.numbers["misfits"]) == ("holds", 0)


def test_an_impossible_rate_names_the_two_nearest_that_are_possible(tmp_path: Path) -> None:
    table = table_of(tmp_path, [*printed(373, [201, 215, 222], digits=5), "0.59650"])
    (wrong,) = of(audit(table, stated(373)), "split-size")
    assert (wrong.verdict, wrong.rows) == ("impossible", (3,))
    assert "222.49 of the stated 373 images; the nearest rates are 0.595174 (222 images) and 0.597855 (223 images)" in wrong.words
    assert wrong.hard


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("batch", [1, 16, 100])
def test_a_dropped_batch_and_another_rounding_are_readings(rounding: str, batch: int, tmp_path: Path) -> None:
    left = 6149 - 6149 % batch
    texts = [f"{(Decimal(count) / left).quantize(Decimal('0.0001'), rounding=rounding):f}" for count in range(4000, 5000, 37)]
    (found,) = of(audit(table_of(tmp_path, texts), stated(6149)), "split-size")
    assert found.verdict == "holds"


def test_one_rate_of_another_rounding_is_doubted_and_not_impossible(tmp_path: Path) -> None:
    counts = [3661, 3702, 3850, 3990, 4102, 4205, 4310, 4444]
    texts = printed(6149, counts)
    # 4,521 of 6,149 is .73524, printed .7353: of another rounding or batch alone.
    (found,) = of(audit(table_of(tmp_path, [*texts, "0.7353"]), stated(6149)), "split-size")
    assert (found.verdict, found.rows) == ("suspicious", (8,))


def test_rows_may_state_their_own_number(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Top-1 (%),Test images\none,33.333,3\ntwo,33.311,599\nthree,12.500,8\n")
    found = of(audit(load_table(path)), "split-size")
    assert [(finding.verdict, finding.rows) for finding in found] == [("holds", (0,)), ("impossible", (1,)), ("holds", (2,))]


def test_too_few_digits_for_the_stated_number_are_said(tmp_path: Path) -> None:
    (found,) = of(audit(table_of(tmp_path, ["0.81", "0.82"]), stated(50_000)), "split-size")
    assert found.verdict == "not checked"
    assert "too few digits" in found.words


# -------------------------------------------------------------------------------------------------------------------- not stated


@pytest.mark.parametrize("images", [50_000, 6_149, 1_020])
def test_a_public_split_that_explains_all_rates_ends_the_search(images: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(images)
    texts = printed(images, generator.integers(0, images, 60).tolist(), digits=6)
    findings = audit(table_of(tmp_path, texts))
    (found,) = of(findings, "split-size")
    assert (found.verdict, found.numbers["images"]) == ("holds", images)
    assert of(findings, "hidden-images") == []
    assert images in PUBLIC.values()


def test_what_some_split_explains_by_chance_is_no_evidence(tmp_path: Path) -> None:
    findings = audit(table_of(tmp_path, ["0.5954", "0.5330", "0.5956"]))
    (found,) = of(findings, "split-size")
    assert found.verdict == "not checked"
    assert of(findings, "hidden-images") == []


def test_an_unlisted_number_of_images_is_found_and_said_to_be_exact(tmp_path: Path) -> None:
    table = table_of(tmp_path, printed(373, [201, 215, 222, 250, 259]), printed(373, [301, 311, 317, 325, 331]))
    (found,) = of(audit(table), "hidden-images")
    assert (found.verdict, found.numbers["images"]) == ("exact", 373)


def test_a_number_and_not_its_divisor_is_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = printed(2_719, generator.choice(2_719, 40, replace=False).tolist(), digits=6)
    (found,) = of(audit(table_of(tmp_path, texts)), "hidden-images")
    assert (found.verdict, found.numbers["images"]) == ("exact", 2_719)


def test_rows_of_two_splits_are_doubted_never_impossible(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    one, other = (printed(images, generator.choice(images, 12, replace=False).tolist(), digits=5) for images in (1_213, 3_331))
    (found,) = of(audit(table_of(tmp_path, [*one, *other])), "hidden-images")
    assert found.verdict == "suspicious"
    assert {found.numbers["first"], found.numbers["second"]} == {1_213, 3_331}
    assert found.numbers["p"] < 1e-6


def test_rates_finer_than_any_number_that_is_searched_say_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    texts = [f"{rate:.2f}" for rate in generator.uniform(0, 1, 40)]
    assert [finding for finding in audit(table_of(tmp_path, texts)) if finding.fault] == []


def test_random_rates_are_doubted_no_more_often_than_is_said(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    doubted = 0
    for _ in range(60):
        texts = [f"{rate:.4f}" for rate in generator.uniform(0, 1, 20)]
        doubted += any(finding.fault for finding in audit(table_of(tmp_path, texts)))
    # At most .2 % a table; three of sixty would have a probability below 1e-4.
    assert doubted <= 2


def test_the_best_of_all_mixtures_is_corrected_for_all_that_were_searched(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    chances = []
    for _ in range(40):
        cells = rates(table_of(tmp_path, [f"{rate:.4f}" for rate in generator.uniform(0, 1, 12)]))
        mixture = best_mixture(cells, listed=frozenset(PUBLIC.values()))
        assert mixture is not None
        chances.append(mixture.p)
    # The bound is on the safe side: without two numbers in them, hardly any rates come near it.
    assert min(chances) > 0.02
    assert chances.count(1.0) >= 36


def test_a_split_that_the_digits_do_not_resolve_is_not_named(tmp_path: Path) -> None:
    (found,) = of(audit(table_of(tmp_path, ["0.81", "0.82", "0.84"])), "split-size")
    assert (found.verdict, "no listed split explains all 3 rates" in found.words) == ("not checked", True)


def test_the_smallest_difference_is_one_image(tmp_path: Path) -> None:
    table = table_of(tmp_path, ["0.5954", "0.5330", "0.5956"])
    (found,) = of(audit(table), "whole-image")
    assert (found.verdict, found.numbers["least_images"]) == ("exact", 3334)
    (fewer,) = of(audit(table, stated(818)), "whole-image")
    assert (fewer.verdict, fewer.rows) == ("suspicious", (0, 2))
    assert "cannot both be right" in fewer.words
    (enough,) = of(audit(table, stated(6149)), "whole-image")
    assert enough.verdict == "holds"


def test_the_nearest_rates_are_whole_numbers_of_images(tmp_path: Path) -> None:
    (cell,) = rates(table_of(tmp_path, ["0.5956"]))
    assert Split(818).nearest(cell) == (Fraction(487, 818), Fraction(488, 818))
