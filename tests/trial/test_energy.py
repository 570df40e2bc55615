"""Energy of calls back to back. There is no GPU here: its counter is faked, and so is the clock, which calls and pauses move."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit_vit.schema.record import Energy
from lowbit_vit.trial import energy
from lowbit_vit.trial.energy import Counter, find_counter, measure_energy

IDLE, BUSY, STEP = 100.0, 600.0, 0.1  # W, W, s between two updates of the faked counter
CALL = 0.004  # s


class FakeGpu:
    """Counts 100 W when idle and 600 W in calls; the counter shows what was counted up to its last update."""

    def __init__(self) -> None:
        self.now, self.joules, self.shown, self.updated = 0.0, 0.0, 0.0, 0.0

    def spend(self, seconds: float, watts: float) -> None:
        for _ in range(4):
            self.now += seconds / 4
            self.joules += watts * seconds / 4
            if self.now - self.updated >= STEP:
                self.shown, self.updated = self.joules, self.now

    def call(self) -> None:
        self.spend(CALL, BUSY)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(time, "sleep", lambda seconds: fake.spend(seconds, IDLE))
    return fake


def counted(gpu: FakeGpu, joules: Callable[[], float]) -> Energy | None:
    counter = Counter(source="nvml", joules=joules, watts=lambda: BUSY)
    return measure_energy(gpu.call, counter, batch_size=8, seconds=1.0, device="cpu")  # of the CPU: this test has no events of CUDA


def test_joules_of_an_image_are_those_of_the_calls_alone(gpu: FakeGpu) -> None:
    found = counted(gpu, lambda: gpu.shown)
    assert found is not None
    assert found.joules / found.images == pytest.approx(BUSY * CALL / 8, rel=0.01)
    assert found.seconds >= 50 * STEP  # longer than asked for: a step of the counter is 2 % at most
    assert found.update_ms == pytest.approx(1000 * STEP, rel=0.03)
    assert found.idle_watts_before == pytest.approx(IDLE, rel=0.02)
    assert found.sampled_watts == BUSY


@pytest.mark.parametrize("at_joules", [0.0, 1e3], ids=["idle", "during calls"])
def test_a_counter_that_stands_still_gives_none(gpu: FakeGpu, caplog: pytest.LogCaptureFixture, at_joules: float) -> None:
    assert counted(gpu, lambda: min(gpu.shown, at_joules)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "energy, batch 8: the energy counter stood still for 5 s; none is recorded"
    ]


@pytest.mark.parametrize("after_s", [0.5, 3.0], ids=["idle", "during calls"])
def test_a_counter_that_goes_back_gives_none(gpu: FakeGpu, caplog: pytest.LogCaptureFixture, after_s: float) -> None:
    assert counted(gpu, lambda: gpu.shown if gpu.now < after_s else 0.0) is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("energy, batch 8: the energy counter went back from")


def test_without_a_counter_there_is_one_line(caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "gpu_handle", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert (find_counter("cpu"), find_counter("cuda")) == (None, None)
    assert [record.getMessage().split(";")[1] for record in caplog.records] == [" none is recorded"] * 2


def test_rapl_adds_packages_and_starts_anew_behind_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:0:0", "core")):
        (tmp_path / zone).mkdir()
        for file, content in (("name", name), ("energy_uj", "9000000"), ("max_energy_range_uj", "10000000")):
            (tmp_path / zone / file).write_text(f"{content}\n")
    counter = find_counter("cpu")
    assert counter is not None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("9500000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000\n")
    assert counter.joules() == pytest.approx(0.5 + 1.5)
