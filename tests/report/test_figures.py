"""Figures show every value that they should, by what is in their documents, and are written as SVG and PNG."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Tables, find
from lowbit_vit.report import figures


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("figures") / "root")
    return find(profile, workspace).tables


def rows(specification: dict[str, Any] | None) -> list[dict[str, Any]]:
    """All data rows of a figure."""
    assert specification is not None
    return [row for data in specification["datasets"].values() for row in data]


def test_figure_1_has_every_finished_arm_at_every_batch_size(tables: Tables) -> None:
    points = rows(figures.accuracy_against_latency(tables.paper_table))
    finished = tables.paper_table.filter(pl.col("status") == "success")
    assert sorted((row["row"], row["mean_ms"]) for row in points) == sorted(finished.select("row", "mean_ms").rows())
    # Each number is written once a panel, alone or beside its neighbours'.
    numbers = " ".join(row["label"] for row in points).split()
    assert sorted(map(int, numbers)) == sorted(finished.get_column("number").to_list())


def test_figure_2_shows_file_and_peak_memory(tables: Tables) -> None:
    bars = rows(figures.size_and_memory(tables.paper_table))
    assert {row["panel"] for row in bars} == {"model file, MiB", "resident set, batch 32, MiB"}
    assert len(bars) == 2 * 10


def test_figure_3_has_every_block_of_every_format_and_direction(tables: Tables) -> None:
    points = rows(figures.sensitivity(tables.sensitivity))
    assert len(points) == 2 * 2 * 8
    assert all(row["kl_low"] <= row["kl_mean"] <= row["kl_high"] for row in points)


def test_figure_4_has_every_plan_both_ends_and_the_band(tables: Tables) -> None:
    points = rows(figures.mixed(tables.mixed, tables.random_bands))
    for k in (2, 4):
        for metric in ("Top-1 %, more is better", "KL in nats, less is better"):
            panel = [row["strategy"] for row in points if row["panel"] == f"k = {k}: {metric}"]
            assert panel.count("random") == 20
            assert set(panel) == set(figures.STRATEGIES)
    tops = [row for row in points if row["panel"].startswith("k = 2: Top-1") and row["strategy"] == "random"]
    assert all(row["least"] <= row["value"] <= row["greatest"] for row in tops)


def test_figure_5_has_every_class(tables: Tables) -> None:
    bars = rows(figures.time_by_class(tables.kernel_classes))
    assert {row["class"] for row in bars} == {"gemm", "quantize", "attention", "norm_elementwise", "copy", "other"}


def test_no_finished_trial_means_no_figure(tables: Tables) -> None:
    assert figures.accuracy_against_latency(tables.paper_table.clear()) is None
    assert figures.size_and_memory(tables.paper_table.clear()) is None
    assert figures.sensitivity(tables.sensitivity.clear()) is None
    assert figures.mixed(tables.mixed.clear(), tables.random_bands.clear()) is None
    assert figures.time_by_class(tables.kernel_classes.clear()) is None


def test_svg_and_png_are_written_and_the_pages_copy_has_no_background(tables: Tables, tmp_path: Path) -> None:
    figure = figures.Figure("figure3", "title", "caption", figures.sensitivity(tables.sensitivity))
    inline = figures.draw(figure, tmp_path)
    svg = (tmp_path / "figure3.svg").read_text()
    ET.fromstring(svg)
    assert 'fill="white"' in svg
    assert inline is not None
    assert 'fill="white"' not in inline
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_can_no_longer_be_drawn_is_removed(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        (tmp_path / f"figure3.{suffix}").write_text("old")
    assert figures.draw(figures.Figure("figure3", "title", "caption", None, "missing"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_script_bundle_cannot_end_its_own_element() -> None:
    assert "</script" not in figures.javascript().lower()
