"""Which cores the processes of a GPU get."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lowbit_vit.study import places
from lowbit_vit.study.places import cores_of_gpu, keep_to_cores_of_gpu, neighbours, timing_slots


@pytest.mark.parametrize(("count", "gpus"), [(32, 2), (16, 2), (9, 4), (128, 8)])
def test_gpus_have_equal_shares_that_do_not_meet(count: int, gpus: int) -> None:
    usable = list(range(3, 3 + count))
    shares = [cores_of_gpu(usable, index=index, gpus=gpus) for index in range(gpus)]
    assert {len(share) for share in shares} == {count // gpus}
    assert len(set().union(*shares)) == gpus * (count // gpus)
    assert set().union(*shares) <= set(usable)


@pytest.mark.parametrize(("count", "gpus", "slots"), [(32, 2, 2), (4, 2, 2), (3, 2, 1), (16, 1, 1), (2, 0, 1), (128, 8, 8), (8, 8, 1)])
def test_a_machine_times_on_all_gpus_at_once_only_with_cores_for_each(count: int, gpus: int, slots: int) -> None:
    assert timing_slots(cores=count, gpus=gpus) == slots


def test_no_physical_core_and_no_socket_is_shared_by_two_gpus(tmp_path: Path) -> None:
    # Two sockets of four cores with two threads each, numbered as Linux often does: the second threads after all first ones.
    for number in range(16):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{number % 8 // 4}\n")
        (folder / "core_id").write_text(f"{number % 4}\n")
    ordered = neighbours(range(16), system=tmp_path)
    assert cores_of_gpu(ordered, index=0, gpus=2) == [0, 8, 1, 9, 2, 10, 3, 11]
    assert cores_of_gpu(ordered, index=1, gpus=2) == [4, 12, 5, 13, 6, 14, 7, 15]
    assert neighbours({5, 3, 4}, system=tmp_path / "nothing") == [3, 4, 5]


def allowed_in_a_child() -> set[int]:
    told = "import os; print(*sorted(os.sched_getaffinity(0)))"
    return {int(word) for word in subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()}


def seen_from_a_thread() -> set[int]:
    found: list[set[int]] = []

    def look() -> None:
        keep_to_cores_of_gpu()
        found.append(allowed_in_a_child())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_what_a_thread_starts_is_kept_to_its_gpus_cores_and_the_process_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    usable = neighbours(before)
    if len(usable) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setattr(places, "timing_slots", lambda **_: 2)
    for index in (1, 0):
        monkeypatch.setattr(places, "gpu_place", lambda index=index: (index, 2))
        assert seen_from_a_thread() == set(cores_of_gpu(usable, index=index, gpus=2))
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("place", [None, (0, 1)])
def test_without_a_second_gpu_nothing_is_kept(place: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "gpu_place", lambda: place)
    assert seen_from_a_thread() == os.sched_getaffinity(0)
