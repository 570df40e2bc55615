"""Energy in the table of arms: joules of an image, images a kWh and cost, only where energy was counted."""

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.tables import with_cost
from lowbit_vit.analysis.variants import paper_table, variants
from lowbit_vit.report.tables import result_table, result_table_of
from lowbit_vit.schema.config import Prices
from lowbit_vit.schema.record import Energy, Record

PRICES = Prices(gpu_hour=3.6, currency="EUR")
COUNTED = Energy(
    batch_size=32,
    images=20_000,
    seconds=10.0,
    joules=6_000.0,
    source="nvml",
    update_ms=100.0,
    idle_watts_before=110.0,
    idle_watts_after=140.0,
    sampled_watts=598.0,
    clocks_before=None,
    clocks_during=None,
)


@pytest.fixture(scope="module")
def plain() -> list[Result]:
    return synthetic.findings("variants").results["variants"]


@pytest.fixture(scope="module")
def counted(plain: list[Result]) -> list[Result]:
    """The baseline as if its energy had been counted, at batch 32 alone."""
    place = next(i for i, result in enumerate(plain) if result.record.trial.label == "Baseline ViT")
    record = plain[place].record
    assert record.trial.measurement is not None
    assert record.measurement is not None
    asked = record.trial.measurement.model_copy(update={"energy_seconds": 5.0})
    trial = record.trial.model_copy(update={"measurement": asked})
    found = record.measurement.model_copy(update={"energy": (COUNTED,)})
    changed = record.model_copy(update={"trial": trial, "trial_id": trial.trial_id, "measurement": found})
    return [*plain[:place], Result(Record.model_validate(changed.model_dump()), plain[place].predictions), *plain[place + 1 :]]


def headings(results: list[Result]) -> list[str]:
    shown = result_table_of(results, prices=PRICES).shown("terminal")
    return [column.heading for column in shown if any(word in column.heading for word in ("J/image", "kWh", "EUR"))]


def test_columns_of_energy_are_there_only_where_it_was_counted(plain: list[Result], counted: list[Result]) -> None:
    assert headings(plain) == []
    assert not {"joules_per_image", "watts"} & set(variants(Frames(plain)).columns)
    assert headings(counted) == ["J/image, batch 32", "images/kWh, batch 32"]


def test_joules_and_cost_are_of_an_image(counted: list[Result]) -> None:
    frame = with_cost(paper_table(variants(Frames(counted))).with_columns(device=pl.lit("cuda"), number=1), PRICES)
    (row,) = frame.drop_nulls("joules_per_image").to_dicts()
    assert (row["joules_per_image"], row["images_per_kwh"], row["watts"]) == pytest.approx((0.3, 12e6, 600))
    assert row["cost_per_million"] == pytest.approx(0.5)  # 500 s of a GPU at 3.6 an hour
    (line,) = [line for line in result_table(frame, counted).lines("html") if any("600 W" in cell.note for cell in line.cells)]
    assert {"0.300", "12,000,000", "0.50"} <= {cell.text for cell in line.cells}


def test_a_cpu_has_no_price_of_a_gpu(counted: list[Result]) -> None:
    assert with_cost(paper_table(variants(Frames(counted))), PRICES)["cost_per_million"].count() == 0


def test_a_batch_size_counted_twice_is_refused(counted: list[Result]) -> None:
    dumped = next(result.record for result in counted if result.record.measurement and result.record.measurement.energy).model_dump()
    dumped["measurement"]["energy"] *= 2
    with pytest.raises(ValueError, match=r"measurement\.energy: batch sizes \[32, 32\], the trial asks for \[1, 32\]"):
        Record.model_validate(dumped)


def test_a_trial_that_asks_for_no_energy_keeps_the_identity_of_older_records(plain: list[Result], counted: list[Result]) -> None:
    both = zip(plain, counted, strict=True)
    assert [one.record.trial.label for one, other in both if one.record.trial_id != other.record.trial_id] == ["Baseline ViT"]
