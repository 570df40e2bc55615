import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import Measurement, Views
from lowbit_vit.schema.metrics import summarize_latency
from lowbit_vit.schema.record import LEAST_SAMPLES, MeasurementResult
from lowbit_vit.trial import energy, memory
from lowbit_vit.trial import measure as measuring
from lowbit_vit.trial.energy import Counter
from lowbit_vit.trial.measure import compare_logits, measure

VIEWS = Views(image_size=8, eval_resize=8, train_resize=8, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
ARCH = Architecture(name="small", image_size=8, patch_size=4, depth=2, heads=2, width=64, mlp_width=64)
CONFIG = Measurement(batch_sizes=(1, 8), warmup=2, samples=80, seconds=20, trace=True)


def run(config: Measurement) -> MeasurementResult:
    torch.manual_seed(0)
    model = VisionTransformer(ARCH, num_classes=3, attention="flash", qkv="separate").eval()
    pixels = np.random.default_rng(0).integers(0, 255, size=(5, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(5, dtype=np.int64), tuple("abcde"))
    ready = partial(prepare, model, "eager")
    return measure(ready, config, images, VIEWS, model=model, attention="flash", device="cpu", dtype=torch.float32)


def test_every_pass_covers_every_batch_size_even_beyond_the_number_of_images() -> None:
    result = run(CONFIG)
    assert [latency.batch_size for latency in result.latency] == [1, 8]
    assert [memory.batch_size for memory in result.memory] == [1, 8]
    assert [kernels.batch_size for kernels in result.kernels] == [1, 8]
    assert result.exclusive is None
    for latency in result.latency:
        assert len(latency.samples_ms) == 80
        assert (latency.clocks_before, latency.clocks_after) == (None, None)
        assert latency.host is not None
        assert latency.host.launch_us is None
        assert 1 < latency.host.python_loop_ns <= latency.host.python_loop_most_ns < 1e5
    assert [work.batch_size for work in result.work] == [1, 8]
    assert result.work[1].flop == 8 * result.work[0].flop
    assert result.work[0].least_bytes < result.work[1].least_bytes
    assert result.invariance is None


def test_energy_is_counted_at_every_batch_size_where_there_is_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_SETTLE_S": 0.0, "_IDLE_S": 0.0, "_UPDATES": 1}.items():
        monkeypatch.setattr(energy, name, value)
    config = CONFIG.model_copy(update={"samples": 10, "trace": False, "energy_seconds": 0.05})
    faked = Counter(source="rapl", joules=lambda: 50 * time.perf_counter())  # a machine that takes 50 W
    monkeypatch.setattr(measuring, "find_counter", lambda _: faked)
    found = run(config).energy
    assert [counted.batch_size for counted in found] == [1, 8]
    for counted in found:
        assert counted.joules / counted.seconds == pytest.approx(50, rel=0.02)
        assert counted.images % counted.batch_size == 0
    monkeypatch.setattr(measuring, "find_counter", lambda _: None)
    assert measuring._energy(lambda _: torch.clone, torch.zeros, config, "cpu") == ()


def test_the_devices_ceilings_stand_beside_every_timing() -> None:
    ceilings = run(CONFIG.model_copy(update={"batch_sizes": (1,), "samples": 10, "trace": False})).ceilings
    assert ceilings is not None
    assert ceilings.matmul_flops_per_s > 1e7  # the slowest machine is no slower than this, whatever else it does
    assert ceilings.copy_bytes_per_s > 1e6
    assert (ceilings.matmul_side, ceilings.copy_bytes) == (1024, 2 * 64 * 2**20)


def test_batch_invariance_is_measured_where_the_profile_asks() -> None:
    found = run(CONFIG.model_copy(update={"samples": 10, "trace": False, "batch_sizes": (1, 4), "invariance_images": 4})).invariance
    assert found is not None
    assert (found.images, found.batch_sizes) == (4, (1, 4))
    assert 0 <= found.max_abs_logit_difference < 1e-4  # fp32
    assert found.bit_equal == (found.max_abs_logit_difference == 0)


def test_equal_logits_are_bit_equal_and_one_changed_class_is_one_flip() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    same = compare_logits(logits, logits.copy(), batch_sizes=(1, 32))
    assert (same.images, same.flips, same.max_abs_logit_difference, same.bit_equal) == (20, 0, 0.0, True)
    other = logits.copy()
    other[3, logits[3].argmin()] += 100
    changed = compare_logits(logits, other, batch_sizes=(1, 32))
    assert (changed.flips, changed.bit_equal) == (1, False)
    assert 99 < changed.max_abs_logit_difference < 101


def test_the_least_bit_counts() -> None:
    logits = np.ones((2, 3), dtype=np.float32)
    other = logits.copy()
    other[0, 0] = np.nextafter(np.float32(1), np.float32(2))
    found = compare_logits(logits, other, batch_sizes=(1, 2))
    assert (found.flips, found.bit_equal) == (0, False)
    assert found.max_abs_logit_difference > 0


def test_each_call_of_the_warm_up_runs_and_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = VisionTransformer.forward

    def forward(self: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", forward)
    counts = []
    for warmup in (2, 7):
        calls.clear()
        latency = run(CONFIG.model_copy(update={"batch_sizes": (1,), "samples": 20, "warmup": warmup, "trace": False})).latency[0]
        assert len(latency.samples_ms) == 20
        counts.append(len(calls))
    assert counts[1] - counts[0] == 5


def test_sampling_stops_when_its_time_is_up_but_not_before_ten_samples() -> None:
    result = run(CONFIG.model_copy(update={"batch_sizes": (1,), "samples": 5000, "seconds": 1e-6, "trace": False}))
    assert len(result.latency[0].samples_ms) == LEAST_SAMPLES
    summary = summarize_latency(result.latency[0].samples_ms, batch_size=1)
    assert summary.p50_ci_ms is not None
    assert summary.p95_ms is None
    assert result.kernels == ()


def the_kernel_resets_peaks() -> bool:
    """Whether this kernel does what proc(5) says: there are sandboxes whose clear_refs can be written and does nothing."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return False
    np.ones(64 * 2**20, dtype=np.uint8)
    reset.write_text("5")
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) - int(fields["VmRSS"].split()[0]) < 32 * 2**10  # kB


@pytest.mark.parametrize(("past_peak", "recorded"), [(2**31, None), (2**30 + 2**20, 2**30 + 2**20)])
def test_a_resident_peak_that_is_not_reset_is_null(past_peak: int, recorded: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: 1)  # some sandboxes take the request and do nothing
    monkeypatch.setattr(memory, "_status_bytes", {"VmHWM": past_peak, "VmRSS": 2**30}.get)
    measured = run(CONFIG.model_copy(update={"batch_sizes": (1,), "trace": False})).memory[0]
    assert measured.peak_resident_bytes == recorded


@pytest.mark.skipif(not the_kernel_resets_peaks(), reason="this kernel does not reset a process's resident peak")
def test_the_resident_peak_is_of_the_call_and_not_of_the_past() -> None:
    past = np.ones(200 * 2**20, dtype=np.uint8)
    size = past.nbytes
    held = run(CONFIG.model_copy(update={"batch_sizes": (1,), "trace": False})).memory[0].peak_resident_bytes
    del past
    freed = run(CONFIG.model_copy(update={"batch_sizes": (1,), "trace": False})).memory[0].peak_resident_bytes
    assert held is not None
    assert freed is not None
    assert held - freed > size / 2
