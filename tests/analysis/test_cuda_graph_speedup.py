import numpy as np
import pytest

import synthetic
from lowbit_vit.analysis.cuda_graph_speedup import MARGIN, cuda_graph_speedup
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.latencies import latency_ratio
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import margin_test
from lowbit_vit.report.number_format import DASH
from lowbit_vit.report.roofline_tables import graph_table, graph_words
from lowbit_vit.schema.config import load_profile
from lowbit_vit.study.cells import cells

EXACT, REFERENCE = "fp32, CUDA graph", "bf16, compiled, CUDA graph"
LABELS = [EXACT, "fp16, CUDA graph", "NF4", REFERENCE, "W8A8"]


def results(*labels: str, seed: int = 0) -> dict[str, Result]:
    """Synthetic trials of the scratch profile's arms, with the parts of a peak that a GPU would have."""
    profile = load_profile(synthetic.PROJECT / "profiles" / "scratch.yaml")
    found = {}
    for trial in cells(profile, "variants"):
        if trial.label not in labels or trial.label in found:
            continue
        seeded = trial.model_copy(update={"seed": seed})
        record, _ = synthetic.succeeded(seeded)
        assert record.measurement is not None
        assert record.model is not None
        peak = {"peak_allocated_bytes": record.model.weight_bytes + 76 * 2**20, "workspace_bytes": 66 * 2**20}
        memory = tuple(item.model_copy(update=peak) for item in record.measurement.memory)
        measured = record.model_copy(update={"measurement": record.measurement.model_copy(update={"memory": memory})})
        found[trial.label] = Result(measured, synthetic.predictions(seeded, with_kl=False))
    return found


def test_arms_in_graphs_stand_beside_16_bits_with_compiled_blocks() -> None:
    found = results(*LABELS)
    frame = cuda_graph_speedup(Frames(list(found.values()), arms=LABELS))
    assert frame["arm"].unique(maintain_order=True).to_list() == [label for label in LABELS if label != "NF4"]  # which is eager
    (row,) = (row for row in frame.to_dicts() if (row["arm"], row["batch_size"]) == ("W8A8", 32))
    arm, reference, exact = (found[label] for label in ("W8A8", REFERENCE, EXACT))
    assert arm.record.measurement is not None
    assert reference.record.measurement is not None
    ratio = latency_ratio(arm.latency[32], reference.latency[32], one_run=True)
    assert ratio.interval is not None
    assert (row["times"], row["times_low"], row["times_high"]) == (ratio.value, ratio.interval.low, ratio.interval.high)
    assert row["over_weights_mib"] == pytest.approx(10)

    mine, theirs, fp32 = (result.predictions for result in (arm, reference, exact))
    assert mine is not None
    assert theirs is not None
    assert fp32 is not None
    assert (row["flips"], row["flips_of_fp32"]) == (np.sum(mine.best != theirs.best), np.sum(mine.best != fp32.best))
    assert row["flips"] > 0
    assert row["reference_flips_of_fp32"] == np.sum(theirs.best != fp32.best)
    lost, gained = int(np.sum(theirs.right & ~mine.right)), int(np.sum(~theirs.right & mine.right))
    assert (row["lost"], row["gained"]) == (lost, gained)
    assert row["p_inferior"] == margin_test(lost, gained, images=synthetic.IMAGES, margin=MARGIN).p_inferior


def test_seeds_are_not_mixed_and_what_is_missing_is_null() -> None:
    first, second = results(REFERENCE), results("W8A8", seed=1)
    assert cuda_graph_speedup(Frames([*first.values(), *second.values()], arms=LABELS))["arm"].unique().to_list() == [REFERENCE]
    frame = cuda_graph_speedup(Frames([*first.values(), *results("W8A8").values()], arms=LABELS))
    assert frame["flips_of_fp32"].null_count() == frame.height
    assert frame["flips"].null_count() == 0


def test_without_the_reference_there_is_no_table() -> None:
    frame = cuda_graph_speedup(Frames(list(results(EXACT, "W8A8").values()), arms=LABELS))
    assert frame.is_empty()
    assert graph_words(frame) == ""
    assert not graph_table(frame).lines("html")


def test_the_printed_table_names_the_reference_and_its_own_flips() -> None:
    frame = cuda_graph_speedup(Frames(list(results(*LABELS).values()), arms=LABELS))
    table = graph_table(frame)
    assert all(len(row.cells) == len(table.shown("html")) for row in table.lines("html"))
    rows = {(row.cells[1].text, row.cells[2].text): row for row in table.lines("html")}
    assert rows[REFERENCE, "1"].cells[4].text == "reference"
    assert rows[REFERENCE, "1"].cells[6].text == DASH
    times, flips, accuracy = rows["W8A8", "1"].cells[4:7]
    assert float(times.note.split(" to ")[0]) <= float(times.text) <= float(times.note.split(" to ")[1])
    assert flips.note == "the reference 0"
    assert " images, p " in accuracy.note
    assert REFERENCE in graph_words(frame)
