"""A clean table has no finding against it; a table with one fault planted has the findings of that fault and no other."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lowbit_vit.analysis.audit import CHECKS, Case, Context, Finding, audit, load_context, load_table

PROJECT = Path(__file__).parents[3]
PAPER = load_context(PROJECT / "papers" / "vit-quantization-2025" / "context.yaml")

# ViT-L/16 as papers/vit-quantization-2025/context.yaml describes it, at batch 32 on 6149 images: sizes with constants, rates k / 6149.
HEADINGS = {
    "model": "Model",
    "size": "Model Size (MiB)",
    "mean": "Latency (ms)",
    "p50": "Latency P50 (ms)",
    "p95": "Latency P95 (ms)",
    "p99": "Latency P99 (ms)",
    "throughput": "Throughput (Img/s)",
    "vram": "Peak VRAM (MiB)",
    "cpu": "CPU Latency (ms)",
    "top1": "Top-1 Acc",
    "top5": "Top-5 Acc",
    "f1": "F1 Score",
    "kernel": "Total CUDA Kernel Time (us)",
    "attention": "Attention Kernel Time (us)",
}
CLEAN = """\
fp16,578.7,22.50,22.41,23.05,24.40,1422.22,653.80,14020.11,0.8863,0.9652,0.8801,20104.125,2540.125
nf4,164.7,25.60,25.52,26.11,27.30,1250.00,242.10,15031.52,0.8457,0.9480,0.8390,22913.250,2541.500
int8,291.5,41.30,41.22,42.05,43.41,774.82,367.40,16007.33,0.8668,0.9566,0.8604,38204.750,2539.750
nf4 fused,164.7,25.10,25.03,25.64,26.82,1274.90,240.90,15029.95,0.8452,0.9475,0.8388,22682.500,2310.250
int8 fused,291.5,40.80,40.71,41.52,42.90,784.31,366.20,16004.75,0.8663,0.9566,0.8597,37977.125,2312.375
"""
CONTEXT: dict[str, Any] = {
    "reference": "fp16",
    "claims": {"batch_size": 32, "images": 6149, "size_reduction": 0.7, "negligible_gain": 0.006, "memory_gib": 1},
    "test_images": 6149,
    "published_top1": {"one": 0.897, "another": 0.9},
    "model": PAPER.model,
    "gpu": PAPER.gpu,
    "cpu_peak_tflops": 9.2,
    "rows": {
        "fp16": {"weights": "fp16", "compute": "fp16", "attention": "sdpa"},
        "nf4": {"weights": "nf4", "block_size": 64, "compute": "fp16", "attention": "sdpa"},
        "int8": {"weights": "int8", "compute": "fp16", "product": "int8", "attention": "sdpa"},
        "nf4 fused": {"weights": "nf4", "block_size": 64, "compute": "fp16", "attention": "fa2"},
        "int8 fused": {"weights": "int8", "compute": "fp16", "product": "int8", "attention": "fa2"},
    },
    "twins": [{"plain": "nf4", "fused": "nf4 fused"}, {"plain": "int8", "fused": "int8 fused"}],
}


def run(
    folder: Path, *, cells: dict[tuple[int, str], str] | None = None, headings: dict[str, str] | None = None, **changes: Any
) -> tuple[Finding, ...]:
    """Audit the clean table with some cells, headings and keys of its context changed."""
    grid = list(csv.reader(CLEAN.splitlines()))
    for (row, column), text in (cells or {}).items():
        grid[row][list(HEADINGS).index(column)] = text
    path = folder / "table.csv"
    out = io.StringIO()
    csv.writer(out).writerows([list({**HEADINGS, **(headings or {})}.values()), *grid])
    path.write_text(out.getvalue())
    claims = {**CONTEXT["claims"], **changes.pop("claims", {})}
    rows = {**CONTEXT["rows"], **changes.pop("rows", {})}
    return audit(load_table(path), Context(**{**CONTEXT, **changes, "claims": claims, "rows": rows}))


def faults(findings: tuple[Finding, ...]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(finding.check, finding.verdict, finding.rows) for finding in findings if finding.fault}


@dataclass(frozen=True)
class Plant:
    """A change and the findings that it must cause."""

    name: str
    expected: set[tuple[str, str, tuple[int, ...]]]
    cells: dict[tuple[int, str], str] = field(default_factory=dict)
    headings: dict[str, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)


def _peaks(**changes: float) -> Any:
    assert PAPER.gpu is not None
    return PAPER.gpu.model_copy(update={"peak_tflops": {**PAPER.gpu.peak_tflops, **changes}})


def _slow_memory(gb_s: float = 20.0) -> Any:
    assert PAPER.gpu is not None
    return PAPER.gpu.model_copy(update={"bandwidth_gb_s": gb_s})


PLANTS = [
    Plant("a time of nothing", {("zero", "impossible", (0,))}, cells={(0, "attention"): "0.000000"}),
    Plant("a time copied", {("repeated", "suspicious", (1, 3))}, cells={(3, "cpu"): "15031.52"}),
    Plant("a digit dropped", {("digits", "suspicious", (0, 1, 2, 3, 4))}, cells={(1, "mean"): "25.6", (0, "mean"): "22.500"}),
    Plant("another batch claimed", {("batch-size", "suspicious", (0, 1, 2, 3, 4))}, context={"claims": {"batch_size": 16}}),
    Plant("a slipped digit", {("slipped-digit", "contradicts itself", (1,))}, cells={(1, "throughput"): "1350.00"}),
    Plant("P50 above P95", {("percentile-order", "impossible", (3,))}, cells={(3, "p50"): "25.93"}),
    Plant(
        "percentiles above the mean",
        {("mean-and-percentiles", "impossible", (0,))},
        cells={(0, "p50"): "60.00", (0, "p95"): "61.00", (0, "p99"): "62.00"},
    ),
    Plant(
        "a mean above P99",
        {("mean-and-percentiles", "suspicious", (4,))},
        cells={(4, "mean"): "52.00", (4, "throughput"): "615.38"},
    ),
    Plant("Top-5 below Top-1", {("top-5-order", "impossible", (0,))}, cells={(0, "top5"): "0.8011"}),
    Plant("a rate of other images", {("split-size", "suspicious", (2,))}, cells={(2, "top5"): "0.9568"}),
    Plant(
        "rates of fewer images than are stated",
        {("split-size", "impossible", (row,)) for row in range(5)} | {("whole-image", "suspicious", (1, 3))},
        cells={(3, "top1"): "0.8456"},
        context={"reference": None, "claims": {"images": 97, "negligible_gain": None}},
    ),
    Plant(
        "a difference that is not resolved",
        {("resolution", "underpowered", (0, 2))},
        cells={(2, "top1"): "0.8829", (2, "f1"): "0.8766", (4, "top1"): "0.8668", (4, "f1"): "0.8604"},
    ),
    Plant("a gain that is not resolved", {("negligible-gain", "underpowered", ())}, context={"claims": {"negligible_gain": 0.001}}),
    Plant(
        "a front by a hair",
        {("resolution", "underpowered", (0, 2)), ("frontier", "underpowered", (2,))},
        cells={(2, "top1"): "0.8865", (2, "f1"): "0.8803", (4, "top1"): "0.8668", (4, "f1"): "0.8604"},
    ),
    Plant("F1 without Top-1, twins", {("f1-beside-top1", "suspicious", (1, 3))}, cells={(3, "f1"): "0.8251"}, context={"reference": None}),
    Plant(
        "F1 without Top-1, reference",
        {("f1-beside-top1", "not supported", (0, 1))},
        cells={(1, "f1"): "0.8250", (3, "f1"): "0.8312"},
    ),
    Plant("far below others", {("published-accuracy", "suspicious", (0,))}, context={"published_top1": {"one": 0.999}}),
    Plant("a file too small", {("size", "impossible", (2,))}, cells={(2, "size"): "280.0"}),
    Plant("a file too large", {("size", "suspicious", (2,))}, cells={(2, "size"): "340.0"}),
    Plant("no constants", {("size-constants", "understated", (2,))}, cells={(2, "size"): "290.7"}),
    Plant("MiB called MB", {("megabytes", "understated", (0, 1, 2, 3, 4))}, headings={"size": "Model Size (MB)"}),
    Plant("a reduction overstated", {("size-reduction", "contradicts itself", (0, 1))}, context={"claims": {"size_reduction": 0.8}}),
    Plant(
        "a peak below the weights",
        {("vram-weights", "impossible", (3,))},
        cells={(3, "vram"): "150.90"},
        context={"claims": {"batch_size": None}},
    ),
    Plant(
        "no room to dequantize",
        {("vram-weights", "underspecified", (3,))},
        cells={(3, "vram"): "173.90"},
        context={"claims": {"batch_size": None}},
    ),
    Plant("no room for the batch", {("vram-batch", "suspicious", (4,))}, cells={(4, "vram"): "330.00"}),
    Plant("a twin that needs more", {("twin-memory", "suspicious", (2, 4))}, cells={(4, "vram"): "415.00"}),
    Plant(
        "models left in memory",
        {*(("resident-models", "suspicious", (row,)) for row in (0, 2, 4)), ("twin-memory", "suspicious", (2, 4))},
        cells={(0, "vram"): "750.60", (1, "vram"): "172.00", (2, "vram"): "463.50", (3, "vram"): "171.80", (4, "vram"): "877.40"},
        context={"model": None},
    ),
    Plant("memory that was not short", {("fits-already", "not supported", (0,))}, context={"claims": {"memory_gib": 16}}),
    Plant(
        "kernels faster than the GPU",
        {
            ("kernel-flop", "impossible", (1,)),
            ("kernel-bytes", "impossible", (1,)),
            ("kernel-unit", "suspicious", (1,)),
            ("kernel-share", "not supported", (0, 1)),
        },
        cells={(1, "kernel"): "22.913"},
    ),
    Plant("weights read too fast", {("kernel-bytes", "impossible", (0,))}, context={"gpu": _slow_memory()}),
    Plant(
        "a batch faster than the GPU",
        {("batch-flop", "suspicious", (0,))},
        context={"gpu": _peaks(fp16=170.0)},
    ),
    Plant("latency without kernels", {("kernel-share", "not supported", (0, 2))}, cells={(2, "kernel"): "21204.750"}),
    Plant("kernels longer than the call", {("kernel-share", "suspicious", (1,))}, cells={(1, "kernel"): "27913.250"}),
    Plant(
        "attention faster than a launch",
        {("attention-flop", "suspicious", (3,)), ("same-kernel", "suspicious", (3, 4))},
        cells={(3, "attention"): "20.250"},
    ),
    Plant(
        "attention faster than the GPU",
        {("attention-flop", "impossible", (3,)), ("same-kernel", "suspicious", (3, 4))},
        cells={(3, "attention"): "12.125"},
    ),
    Plant(
        "a twin without attention time",
        {("attention-gain", "confounded", (0, 1, 3))},
        cells={(1, "attention"): "N/A"},
    ),
    Plant("one kernel, two times", {("same-kernel", "suspicious", (3, 4))}, cells={(4, "attention"): "2912.375"}),
    Plant(
        "a fused kernel that is slower",
        {("twin-latency", "not supported", (2, 4))},
        cells={
            (4, column): text
            for column, text in zip(
                ("mean", "p50", "p95", "p99", "throughput"), ("41.90", "41.71", "42.52", "43.90", "763.72"), strict=True
            )
        },
    ),
    Plant(
        "no row in the compute dtype",
        {("missing-baseline", "confounded", (1, 2, 3, 4))},
        context={"rows": {"fp16": {"weights": "bf16", "compute": "bf16", "attention": "sdpa"}}},
    ),
]


def test_a_clean_table_has_nothing_against_it_and_every_check_was_asked(tmp_path: Path) -> None:
    findings = run(tmp_path)
    assert [finding for finding in findings if finding.verdict not in ("holds", "exact")] == []
    assert {finding.check for finding in findings} >= {"batch-size", "split-size", "whole-image", "resolution", "size", "kernel-share"}


# In this table a megabyte is 2^20 bytes, which its heading then has to say.
ALLOWED = {("megabytes", "understated", (0, 1, 2, 3, 4))}
# What is nearest to a fault and innocent: whose, and a table by cells, headings and context.
INNOCENT: list[tuple[str, set[str], dict[str, Any]]] = [
    ("cells without a number", {"missing"}, {"cells": {(2, "cpu"): "N/A", (3, "cpu"): "-"}}),
    ("a time that rounds to nothing", {"zero"}, {"cells": {(0, "attention"): "0.0"}}),
    ("equal times of four digits", {"repeated"}, {"cells": {(3, "p50"): "25.52"}}),
    ("zeros dropped", {"digits"}, {"cells": {(0, "mean"): "22.5", (1, "mean"): "25.6"}}),
    (
        "throughput of a pass of its own",
        {"batch-size", "slipped-digit"},
        {"cells": {(row, "throughput"): text for row, text in enumerate(("1424.10", "1247.50", "776.35", "1271.93", "786.20"))}},
    ),
    ("percentiles one digit apart", {"percentile-order"}, {"cells": {(0, "p50"): "23.06", (0, "mean"): "22.50"}}),
    (
        "a mean carried by a few calls",
        {"mean-and-percentiles"},
        {"cells": {(4, "p99"): "42.01", (4, "mean"): "43.10", (4, "throughput"): "742.46"}},
    ),
    ("Top-5 as high as Top-1", {"top-5-order"}, {"cells": {(0, "top5"): "0.8863"}}),
    ("images that are not stated", {"split-size", "hidden-images"}, {"claims": {"images": None}}),
    ("rates one image apart", {"whole-image"}, {"cells": {(3, "top1"): "0.8455"}}),
    ("a difference that is just resolved", {"resolution"}, {"cells": {(2, "top1"): "0.8740"}}),
    ("a gain that is just resolved", {"negligible-gain"}, {"claims": {"negligible_gain": 0.0057}}),
    ("a front that is resolved", {"frontier"}, {"cells": {(4, "top1"): "0.9040", (4, "f1"): "0.8974"}}),
    ("F1 as far from Top-1 as its images resolve", {"f1-beside-top1"}, {"cells": {(3, "f1"): "0.8480"}}),
    ("ten points below others", {"published-accuracy"}, {"published_top1": {"one": 0.985}}),
    ("constants double-quantized", {"size"}, {"cells": {(1, "size"): "151.3", (3, "size"): "151.3"}}),
    ("constants lost in rounding", {"size-constants"}, {"cells": {(2, "size"): "291"}}),
    ("a unit of 1024 that the context states", {"megabytes"}, {"headings": {"size": "Model Size (MB)"}, "megabyte": "MiB"}),
    ("a reduction that was rounded up", {"size-reduction"}, {"claims": {"size_reduction": 0.72}}),
    (
        "a peak in MB above weights in MiB",
        {"vram-weights"},
        {"cells": {(2, "vram"): "300.00", (4, "vram"): "302.00"}, "headings": {"vram": "Peak VRAM (MB)"}, "claims": {"batch_size": None}},
    ),
    ("room for one output", {"vram-batch"}, {"cells": {(4, "vram"): "340.00"}}),
    ("a twin's scratch space", {"twin-memory"}, {"cells": {(4, "vram"): "403.00"}}),
    ("a peak that other models do not explain", {"resident-models"}, {"cells": {(0, "vram"): "818.50"}}),
    ("half of the memory", {"fits-already"}, {"claims": {"memory_gib": 1.27}}),
    ("kernels at the peak", {"kernel-flop", "kernel-unit"}, {"gpu": _peaks(fp16=6.2), "claims": {"batch_size": None}}),
    ("weights at the bandwidth", {"kernel-bytes"}, {"gpu": _slow_memory(30.3)}),
    ("a batch at the peak", {"batch-flop"}, {"gpu": _peaks(fp16=176.0)}),
    ("kernels as long as the call", {"kernel-share"}, {"cells": {(1, "kernel"): "25604.999"}}),
    ("attention of a microsecond a block", {"attention-flop"}, {"cells": {(3, "attention"): "24.100", (4, "attention"): "24.150"}}),
    ("both twins' attention", {"attention-gain"}, {"cells": {(1, "attention"): "2540.375"}}),
    ("two runs of one kernel", {"same-kernel"}, {"cells": {(4, "attention"): "2541.000"}}),
    (
        "a fused kernel that is slower but for P95",
        {"twin-latency"},
        {
            "cells": {
                (4, column): text
                for column, text in zip(
                    ("mean", "p50", "p95", "p99", "throughput"), ("41.90", "41.71", "42.00", "43.90", "763.72"), strict=True
                )
            }
        },
    ),
    ("a reference in another dtype beside a row in this one", {"missing-baseline"}, {"reference": None}),
]


# Of columns that this table has not, or of no fault: test_audit_comparisons.py.
COMPARE = {"derived", "error", "energy", "format-size", "printed-twice", "constant", "equal-rows"}


def test_every_check_has_an_innocent_neighbour() -> None:
    assert {check for _, checks, _ in INNOCENT for check in checks} == {*CHECKS, "size-constants"} - COMPARE


@pytest.mark.parametrize("change", [change for _, _, change in INNOCENT], ids=[name for name, _, _ in INNOCENT])
def test_the_nearest_innocent_neighbour_has_nothing_against_it(change: dict[str, Any], tmp_path: Path) -> None:
    assert faults(run(tmp_path, **change)) - ALLOWED == set()


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_found_and_nothing_else(plant: Plant, tmp_path: Path) -> None:
    assert faults(run(tmp_path, cells=plant.cells, headings=plant.headings, **plant.context)) == plant.expected


def test_every_check_has_a_plant() -> None:
    # Numbers of images that the rates betray need rates of their own: test_audit_counts.py. Missing cells are no fault.
    planted = {check for plant in PLANTS for check, _, _ in plant.expected}
    assert {"hidden-images", "missing", *COMPARE} == set(CHECKS) - planted
    assert planted - set(CHECKS) == {"size-constants"}


# These look at the cells and columns that there are.
OF_WHAT_IS_THERE = {"missing", "zero", "repeated", "digits", *COMPARE}


@pytest.mark.parametrize("check", CHECKS)
def test_without_context_a_check_says_what_it_needs_or_needs_none(check: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model\none\ntwo\n")
    findings = CHECKS[check](Case(load_table(path), Context()))
    if check in OF_WHAT_IS_THERE:
        assert findings == []
    else:
        assert [finding.verdict for finding in findings] == ["not checked"]
        assert findings[0].words.startswith("not checked: needs ")
        assert findings[0].words != "not checked: needs "


def test_rows_that_the_context_passes_over_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Latency (ms)\none,1.50\ntwo,2.50\n")
    context = Context.model_validate({"rows": {"one": {"weights": "fp32", "compute": "fp32", "attention": "sdpa"}}})
    found = [finding for finding in audit(load_table(path), context) if finding.check == "rows"]
    assert [(finding.verdict, finding.rows) for finding in found] == [("not checked", (1,))]
    assert "two" in found[0].words


@pytest.mark.parametrize("binary", [False, True])
def test_throughput_measured_apart_agrees_roughly(binary: bool, tmp_path: Path) -> None:
    write: Callable[[str], int] = (tmp_path / "table.csv").write_text
    write(
        "Model,Latency (ms),Throughput (img/s)\na,20.13,1510.22\nb,40.27,745.91\n"
        if binary
        else "Model,Latency (ms),Throughput (img/s)\na,20.13,49.70\nb,40.27,24.11\n"
    )
    table = load_table(tmp_path / "table.csv")
    found = [finding for finding in audit(table, Context.model_validate({"claims": {"batch_size": 32}})) if finding.check == "batch-size"]
    assert {finding.verdict for finding in found} == ({"holds"} if binary else {"suspicious"})


def test_the_batch_of_the_claim_cannot_be_that_fast_even_image_by_image(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Latency (ms)\nfp16,0.30\n")
    keys = ("model", "gpu", "rows", "claims")
    known = {key: CONTEXT[key] for key in keys}
    context = Context(**{**known, "rows": {"fp16": CONTEXT["rows"]["fp16"]}, "claims": {"batch_size": 32}})
    (found,) = (finding for finding in audit(load_table(path), context) if finding.check == "batch-flop")
    assert (found.verdict, found.rows) == ("impossible", (0,))


OFF = [("8", "suspicious"), ("0.125", "contradicts itself"), ("1.03", "suspicious"), ("1.004", None)]


@pytest.mark.parametrize(("off", "verdict"), OFF)
def test_one_row_of_a_column_that_was_measured_apart(off: str, verdict: str | None, tmp_path: Path) -> None:
    # Twelve rows of batch 32, throughput .2 % apart from latency; one is off.
    rows = [(10 + 1.37 * at, 32_000 / (10 + 1.37 * at) * (1.002 if at % 2 else 0.998)) for at in range(12)]
    rows[5] = (rows[5][0], rows[5][1] * float(off))
    path = tmp_path / "table.csv"
    lines = [f"row {at},{one:.3f},{two:.3f}" for at, (one, two) in enumerate(rows)]
    path.write_text("\n".join(["Model,Latency (ms),Throughput (img/s)", *lines]))
    findings = audit(load_table(path), Context.model_validate({"claims": {"batch_size": 32}}))
    found = {(finding.verdict, finding.rows) for finding in findings if finding.fault}
    assert found == (set() if verdict is None else {(verdict, (5,))})


def test_the_sixteenth_digit_of_a_float_is_no_slip(tmp_path: Path) -> None:
    latencies = [16.353219032287598, 58.72002029418945, 109.00324249267578, 62.019962310791016]
    path = tmp_path / "table.csv"
    lines = [f"row {at},{latency!r},{1000 / latency * (1 + 1e-15)!r}" for at, latency in enumerate(latencies)]
    path.write_text("Model,Latency (ms),Throughput (img/s)\n" + "\n".join(lines))
    assert [finding for finding in audit(load_table(path)) if finding.fault] == []


def test_times_equal_by_chance_in_many_rows_are_not_doubted(tmp_path: Path) -> None:
    # 1,500 times of five digits between 10 and 11 ms: some ten equal pairs by chance.
    path = tmp_path / "table.csv"
    times = [10 + (at * 7919 % 10_007) / 10_007 for at in range(1_500)]
    path.write_text("Model,Latency (ms)\n" + "\n".join(f"row {at},{time:.3f}" for at, time in enumerate(times)))
    assert [finding for finding in audit(load_table(path)) if finding.fault] == []


@pytest.mark.parametrize("with_mean", [True, False])
def test_throughput_from_a_coarse_median_beside_a_mean_with_a_heavy_tail_is_innocent(with_mean: bool, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    heading = "Latency (ms)" if with_mean else "#Latency (ms)"
    lines = [f"row {at},{2.1 * at:.1f},{at}.1,{32_000 / (at + 0.1):.0f}" for at in (3, 4, 6, 7)]
    path.write_text("\n".join([f"Model,{heading},Latency P50 (ms),Throughput (img/s)", *lines]))
    findings = audit(load_table(path))
    assert [finding for finding in findings if finding.fault] == []
    (batch,) = (finding for finding in findings if finding.check == "batch-size")
    assert (batch.verdict, batch.numbers["batch"]) == ("exact", 32)
