import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.variants import rooflines
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.record import Ceilings, Work
from lowbit_vit.study.cells import cells

CEILINGS = Ceilings(matmul_flops_per_s=1e12, matmul_side=1024, copy_bytes_per_s=1e9, copy_bytes=2**27)


@pytest.mark.parametrize(
    ("flop", "least_bytes", "expected"),
    [(3e9, 1_000_000, (3.0, "compute")), (1e9, 5_000_000, (5.0, "memory")), (1e9, 1_000_000, (1.0, "compute"))],
)
def test_the_roofline_is_the_greater_of_two_times(flop: float, least_bytes: int, expected: tuple[float, str]) -> None:
    (result,) = results((0,))
    assert result.record.measurement is not None
    work = (Work(batch_size=1, flop=flop, least_bytes=least_bytes),)
    measured = result.record.measurement.model_copy(update={"work": work, "ceilings": CEILINGS})
    frame = rooflines(Frames([Result(result.record.model_copy(update={"measurement": measured}), None)]))
    assert frame.select("roofline_ms", "bound").rows() == [(pytest.approx(expected[0]), expected[1])]


def results(seeds: tuple[int, ...]) -> list[Result]:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    trial = cells(profile, "variants")[0]
    return [Result(synthetic.succeeded(trial.model_copy(update={"seed": seed}))[0], None) for seed in seeds]


def test_each_latency_stands_over_its_own_processs_roofline_seeds_averaged() -> None:
    found = results((0, 1))
    frame = rooflines(Frames(found))
    assert frame.get_column("batch_size").to_list() == [1, 32]
    first = frame.row(0, named=True)
    assert first["roofline_ms"] == pytest.approx(0.4)  # 400,000 bytes at 10^9 a second; 10^7 operations take 0.2 ms
    assert first["bound"] == "memory"
    medians = [result.latency[1].p50_ms for result in found]
    assert first["over_roofline"] == pytest.approx(sum(medians) / 2 / 0.4)
    assert first["records"].split() == [result.record.trial_id for result in found]
    assert frame.row(1, named=True)["bound"] == "compute"


def test_without_timings_there_is_no_roofline() -> None:
    (result,) = results((0,))
    frame = rooflines(Frames([Result(result.record.model_copy(update={"measurement": None}), None)]))
    assert frame.is_empty()
    assert frame.schema["over_roofline"] == pl.Float64
