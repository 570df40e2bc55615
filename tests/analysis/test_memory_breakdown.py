import pytest

import synthetic
from lowbit_vit.analysis.frames import MIB, Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.variants import invariances, memory_breakdown
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.record import Memory
from lowbit_vit.study.cells import cells


def a_result(seed: int = 0) -> Result:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    trial = synthetic.with_invariance(cells(profile, "variants")[0])
    return Result(synthetic.succeeded(trial.model_copy(update={"seed": seed}))[0], None)


def on_a_gpu(result: Result) -> Result:
    record = result.record
    assert record.measurement is not None
    assert record.model is not None
    weights = record.model.weight_bytes
    memory = Memory(
        batch_size=1,
        peak_allocated_bytes=weights + 50 * MIB,
        peak_reserved_bytes=weights + 60 * MIB,
        process_bytes=None,
        peak_resident_bytes=None,
        before_bytes=weights + 2 * MIB,
        workspace_bytes=32 * MIB,
    )
    measured = record.measurement.model_copy(update={"memory": (memory,)})
    return Result(record.model_copy(update={"measurement": measured}), None)


def test_the_parts_of_a_peak_add_up_to_it() -> None:
    (row,) = memory_breakdown(Frames([on_a_gpu(a_result())])).to_dicts()
    assert (row["resident_mib"], row["workspace_mib"], row["activation_mib"]) == (2, 32, 16)
    assert row["weights_mib"] + 2 + 32 + 16 == pytest.approx(row["peak_mib"])
    assert row["process_mib"] is None


def test_records_of_a_cpu_have_no_parts() -> None:
    assert memory_breakdown(Frames([a_result()])).is_empty()


def test_batch_invariance_sums_images_and_flips_over_seeds_and_keeps_the_worst_logit() -> None:
    (row,) = invariances(Frames([a_result(0), a_result(1)])).to_dicts()
    assert (row["first_batch"], row["second_batch"], row["images"], row["flips"]) == (1, 32, 128, 2)
    assert row["max_abs_logit_difference"] == pytest.approx(4e-6)
    assert row["bit_equal"] is False
