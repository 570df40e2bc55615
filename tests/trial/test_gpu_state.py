import pynvml
import pytest

from lowbit_vit.errors import Busy, Unavailable
from lowbit_vit.schema.config import Exclusive
from lowbit_vit.trial.gpu_state import GIB, allowed, exclusive, exclusive_among, require_memory, throttle_reasons


def test_a_gpu_is_ours_alone_unknown_or_shared() -> None:
    assert exclusive_among({7}, own=7) is True
    assert exclusive_among(set(), own=7) is None  # a container that shows no process
    assert exclusive_among({4021}, own=7) is None  # a container that shows this process by the host's number
    assert exclusive_among({7, 8}, own=7) is False
    assert exclusive_among({8, 9}, own=7) is False


@pytest.mark.parametrize("pids", [set(), {4021}, None], ids=["no process", "one foreign number", "no NVML"])
def test_where_nvml_cannot_tell_a_timing_is_refused_unless_told(pids: set[int] | None) -> None:
    with pytest.raises(Busy, match=r"measurement\.exclusive: assumed") as refused:
        allowed(pids, 7, "required")
    assert "\n" not in str(refused.value)
    assert allowed(pids, 7, "assumed") is None
    assert allowed(pids, 7, "waived") is None


@pytest.mark.parametrize("told", ["required", "assumed"])
def test_beside_another_process_a_timing_is_refused_by_its_number(told: Exclusive) -> None:
    with pytest.raises(Busy, match=r"pid 8, 9.*measurement\.exclusive: waived"):
        allowed({7, 8, 9}, 7, told)


def test_told_not_to_mind_the_record_says_that_the_gpu_was_shared() -> None:
    assert allowed({7, 8}, 7, "waived") is False


@pytest.mark.parametrize("told", ["required", "assumed", "waived"])
def test_alone_is_alone_whatever_was_told(told: Exclusive) -> None:
    assert allowed({7}, 7, told) is True
    assert exclusive("cpu", told) is None


def test_too_little_free_memory_says_how_much_and_what_to_do() -> None:
    require_memory(4 * GIB, free=5 * GIB, total=80 * GIB)
    with pytest.raises(Busy, match=r"3\.0 of 80\.0 GiB free .* at least 4\.0 GiB: stop what holds it"):
        require_memory(4 * GIB, free=3 * GIB, total=80 * GIB)
    with pytest.raises(Unavailable, match=r"at least 4\.0 GiB of GPU memory; this GPU has 2\.0 GiB"):
        require_memory(4 * GIB, free=GIB, total=2 * GIB)


def test_throttle_reasons_are_words() -> None:
    assert throttle_reasons(0) == "none"
    bits = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwSlowdown
    assert throttle_reasons(bits) == "SwPowerCap, HwSlowdown"
