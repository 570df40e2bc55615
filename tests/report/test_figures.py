"""Figures show every value that they should, by what is in their documents, and are written as SVG and PNG."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.figure_list import all_figures
from lowbit_vit.report.figures.accuracy import accuracy_against_latency
from lowbit_vit.report.figures.blocks import heat_map, sensitivity
from lowbit_vit.report.figures.costs import CLASS_NAMES, size_and_memory, time_by_class
from lowbit_vit.report.figures.document import Figure, draw, javascript
from lowbit_vit.report.figures.fronts import pareto_fronts
from lowbit_vit.report.figures.plans import STRATEGIES, calibration, mixed
from lowbit_vit.report.figures.style import MOST_ARMS, cut_words
from lowbit_vit.schema.config import STUDIES


@pytest.fixture(scope="module")
def tables() -> Tables:
    return synthetic.findings(*STUDIES).tables


def rows(specification: dict[str, Any] | None) -> list[dict[str, Any]]:
    """All data rows of a figure."""
    assert specification is not None
    return [row for data in specification["datasets"].values() for row in data]


def figure(specification: dict[str, Any] | None) -> Figure:
    return Figure("figure3", "title", "caption", specification, missing="missing", table="x.csv")


def test_figure_1_has_every_finished_arm_at_every_batch_size(tables: Tables) -> None:
    points = rows(accuracy_against_latency(tables.paper_table))
    assert all(row["p50_low_ms"] <= row["p50_ms"] <= row["p50_high_ms"] for row in points)
    finished = tables.paper_table.filter(pl.col("status") == "success")
    expected = [(name, float(f"{ms:.6g}")) for name, ms in finished.select("row", "p50_ms").rows()]
    assert sorted((row["row"], row["p50_ms"]) for row in points) == sorted(expected)
    # Each number is written once a panel, alone or beside its neighbours'.
    numbers = " ".join(row["label"] for row in points).split()
    assert sorted(map(int, numbers)) == sorted(finished.get_column("number").to_list())


def test_figure_2_shows_file_and_peak_memory(tables: Tables) -> None:
    bars = rows(size_and_memory(tables.paper_table))
    assert {row["panel"] for row in bars} == {"model file, MiB", "resident set, batch 32, MiB"}
    assert len(bars) == 2 * 10


def test_figure_3_has_every_block_of_every_format_and_direction(tables: Tables) -> None:
    points = rows(sensitivity(tables.sensitivity))
    assert len(points) == 2 * 2 * 8
    assert all(row["kl_low"] <= row["kl_mean"] <= row["kl_high"] for row in points)
    assert all(row["interval_low"] < row["interval_high"] for row in points)
    # Quantized alone, the synthetic models' last block costs most.
    assert {row["block"] for row in points if row["sensitive"] and "only" in row["panel"]} >= {7}


def test_figure_4_has_every_plan_both_ends_and_the_band(tables: Tables) -> None:
    points = rows(mixed(tables.mixed, tables.random_bands))
    for k in (2, 4):
        for metric in ("Top-1 %, more is better", "KL in nats, less is better", "flips in 1,000 images, less is better"):
            panel = [row["strategy"] for row in points if row["panel"] == f"k = {k}: {metric}"]
            assert panel.count("random") == {2: 28, 4: 39}[k]  # all pairs of 8 blocks, and as many fours as the profile asks for
            assert set(panel) == set(STRATEGIES)
    tops = [row for row in points if row["panel"].startswith("k = 2: Top-1") and row["strategy"] == "random"]
    assert all(row["least"] <= row["value"] <= row["greatest"] for row in tops)


def test_figure_5_has_every_class(tables: Tables) -> None:
    bars = rows(time_by_class(tables.kernel_classes))
    assert {row["class"] for row in bars} == set(CLASS_NAMES.values()) - {CLASS_NAMES["idle"]}


def test_figure_6_has_every_arm_and_plan_and_no_point_of_the_front_is_dominated(tables: Tables) -> None:
    points = rows(pareto_fronts(tables.fronts))
    assert len(points) == tables.fronts.height
    for panel in tables.fronts.partition_by("panel"):
        sign = 1 if panel.item(0, "less_is_better") else -1
        placed = [(row["x"], sign * row["y"], row["state"]) for row in panel.to_dicts()]
        for x, loss, state in placed:
            beaten = any(a <= x and b <= loss and (a, b) != (x, loss) for a, b, _ in placed)
            assert (state == "dominated") == beaten


def test_plans_have_fronts_of_kl_and_of_flips_against_bytes_and_against_latency(tables: Tables) -> None:
    plans = {panel: count for panel, count in tables.fronts.group_by("panel").len().rows() if panel.startswith("mixed plans")}
    assert set(plans) == {
        f"mixed plans: {loss} against {cost}" for loss in ("KL", "flips in 1,000 images") for cost in ("bytes of weights", "latency")
    }
    # Each plan has a weight; only those that were timed have a latency, here high precision and the optimum of both k.
    assert {count for panel, count in plans.items() if "bytes" in panel} == {tables.mixed.height}
    timed = tables.mixed.filter(pl.col("trial_id").is_in(tables.timed_plans.get_column("trial_id").implode()))
    assert {count for panel, count in plans.items() if "latency" in panel} == {timed.height}
    assert set(timed.get_column("strategy")) >= {"high precision", "milp"}


def test_figure_8_sets_every_prediction_beside_its_measurement(tables: Tables) -> None:
    points = rows(calibration(tables.additivity))
    timed = tables.additivity.get_column("p50_ms").drop_nulls()
    assert len(points) == 3 * tables.additivity.height + len(timed)
    intervals = [row for row in points if "expected_flips_low" in row]
    assert len(intervals) == tables.additivity.height
    assert all(row["expected_flips_low"] <= row["x"] <= row["expected_flips_high"] for row in intervals)
    assert calibration(tables.additivity.clear()) is None


def test_figure_7_has_a_cell_for_every_block_and_each_line_reaches_its_greatest(tables: Tables) -> None:
    cells = rows(heat_map(tables.sensitivity))
    assert len(cells) == 2 * 2 * 8
    for panel in {row["panel"] for row in cells}:
        assert max(row["share"] for row in cells if row["panel"] == panel) == 1.0


def test_every_figure_names_a_table_that_is_written_and_each_mark_its_records(tables: Tables) -> None:
    known = set(tables.variants["trial_id"]) | set(tables.sensitivity["trial_id"]) | set(tables.mixed["trial_id"])
    for shown in all_figures(tables, {}):
        assert shown.table.removesuffix(".csv") in vars(tables)
        assert all(set(row["records"].split()) <= known and row["records"] for row in rows(shown.specification))


def test_more_arms_than_a_reader_takes_in_are_cut_and_it_is_said(tables: Tables) -> None:
    one = tables.kernel_classes
    many = pl.concat([one.with_columns(pl.col("order") + 100 * copy, row=pl.format("{}, {}", "row", pl.lit(copy))) for copy in range(9)])
    arms = many.get_column("order").n_unique()
    assert arms > MOST_ARMS
    assert len({row["row"] for row in rows(time_by_class(many))}) == MOST_ARMS
    assert f"The first {MOST_ARMS} of {arms} arms" in cut_words(many)
    assert cut_words(tables.kernel_classes) == ""


def test_no_finished_trial_means_no_figure(tables: Tables) -> None:
    assert accuracy_against_latency(tables.paper_table.clear()) is None
    assert size_and_memory(tables.paper_table.clear()) is None
    assert sensitivity(tables.sensitivity.clear()) is None
    assert mixed(tables.mixed.clear(), tables.random_bands.clear()) is None
    assert heat_map(tables.sensitivity.clear()) is None
    assert time_by_class(tables.kernel_classes.clear()) is None
    assert pareto_fronts(tables.fronts.clear()) is None


def test_svg_and_png_are_written_and_the_pages_copy_has_no_background(tables: Tables, tmp_path: Path) -> None:
    drawn = figure(sensitivity(tables.sensitivity))
    inline = draw(drawn, tmp_path)
    svg = (tmp_path / "figure3.svg").read_text()
    ET.fromstring(svg)
    assert 'fill="white"' in svg
    assert inline is not None
    assert 'fill="white"' not in inline
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("chart", ["size", "kernels"])
def test_a_long_name_is_broken_into_lines_and_the_drawing_has_room_for_a_wider_font(tables: Tables, tmp_path: Path, chart: str) -> None:
    name = "9. NF4 of bitsandbytes, double quantization, compiled blocks, CUDA graph, " + 40 * "x"
    long = pl.when(pl.col("order") == 1).then(pl.lit(name)).otherwise("row").alias("row")
    made = {"size": (size_and_memory, tables.paper_table), "kernels": (time_by_class, tables.kernel_classes)}
    function, frame = made[chart]
    svg = ET.fromstring(draw(figure(function(frame.with_columns(long))), tmp_path) or "")
    labels = ["".join(text.itertext()) for text in svg.findall(".//{*}text") if text.get("text-anchor") == "end"]
    assert name.replace(" ", "") in {label.replace(" ", "") for label in labels}
    assert not [label for label in labels if "…" in label]
    left, *_ = map(float, (svg.get("viewBox") or "").split())
    assert left <= -20


def test_a_figure_that_can_no_longer_be_drawn_is_removed(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        (tmp_path / f"figure3.{suffix}").write_text("old")
    assert draw(figure(None), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_script_bundle_cannot_end_its_own_element() -> None:
    assert "</script" not in javascript().lower()
