"""What runs at once, on which GPU, and in which order."""

import json
from collections import defaultdict
from collections.abc import Callable

import pytest

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.record import read_record, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.cluster import Node, cluster_address, places_on
from lowbit_vit.study.places import Places, this_machine
from lowbit_vit.study.resume import missing_trials
from lowbit_vit.study.units import expected_seconds, make_units
from processes import launched

ALIKE: dict[str, float] = defaultdict(lambda: 1.0)
ProfileOf = Callable[..., Profile]


def on_gpu_only(trials: list[Trial]) -> list[Trial]:
    return [trial.model_copy(update={"device": "cuda"}) for trial in trials]


def format_of(trial: Trial) -> str:
    return next(iter({rule.weights.format for rule in trial.plan.rules} - {"high"}), "high")


def node(cpus: float, *, gpus: tuple[str, ...] = (), slot: bool = True) -> Node:
    resources = {"CPU": cpus, "GPU": float(len(gpus))} | {f"accelerator_type:{gpu}": 1.0 for gpu in gpus}
    return Node(name="n", identity="n", resources=resources | ({"profile_slot": 1.0} if slot else {}), code="", gpu=None)


def test_what_is_expected_to_take_longest_starts_first_and_what_is_unknown_before_it(
    workspace: Workspace, profile_of: ProfileOf, obedient: tuple[str, ...]
) -> None:
    trials = cells(profile_of("finish"), "sensitivity")
    folder = workspace.records("sensitivity")
    unknown = expected_seconds(trials, folder)
    assert set(unknown.values()) == {float("inf")}
    # One record of each format, high: 1 s, int8: 5 s, nf4: 3 s.
    seconds = {"high": 1.0, "int8": 5.0, "nf4": 3.0}
    formats = {trial.trial_id: format_of(trial) for trial in trials}
    for name, duration in seconds.items():
        trial = next(trial for trial in trials if formats[trial.trial_id] == name)
        record = launched([trial], workspace, command=obedient)[0]
        write_record(record.model_copy(update={"durations_s": {"all": duration}}), folder)
    expected = expected_seconds(trials, folder)
    assert {formats[trial_id]: value for trial_id, value in expected.items()} == seconds

    timed = [trial.model_copy(update={"measurement": profile_of("finish").measurement}) for trial in trials]
    by_format = {trial.trial_id: seconds[format_of(trial)] for trial in timed}
    units = make_units(timed, Places(cpus=4, gpus=0, cores=2), by_format)
    order = [by_format[unit.trials[0].trial_id] for unit in units]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == len(seconds)
    assert {tuple(sorted(unit.resources.items())) for unit in units} == {(("CPU", 2), ("profile_slot", 1))}


def test_a_timing_on_a_gpu_has_its_share_of_the_cores_and_one_on_the_cpu_all(
    profile_of: ProfileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    timed = cells(profile_of("finish"), "variants")
    places = Places(cpus=32, gpus=2, cores=32, slots=2)
    (on_cpu,), (on_gpu,) = (make_units(trials, places, ALIKE) for trials in (timed, on_gpu_only(timed)))
    assert (on_cpu.threads, on_cpu.resources) == (32, {"CPU": 32, "profile_slot": 1})
    assert (on_gpu.threads, on_gpu.resources) == (16, {"CPU": 1, "GPU": 1, "profile_slot": 1})


@pytest.mark.parametrize(("in_sight", "slots", "threads_of_scans"), [(1, 1, 8), (2, 2, 8), (4, 4, 8)])
def test_cards_that_are_not_in_sight_have_their_cores_too(
    in_sight: int, slots: int, threads_of_scans: int, profile_of: ProfileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in {"cpu_cores": 64, "gpu_count": in_sight, "gpu_place": (0, 4)}.items():
        monkeypatch.setattr(f"lowbit_vit.study.places.{name}", lambda value=value: value)
    here = this_machine()
    assert (here.slots, here.cores_of_gpu) == (slots, 16)
    timed, scanned = (cells(profile_of("finish"), study) for study in ("variants", "sensitivity"))
    assert {unit.threads for unit in make_units(on_gpu_only(timed), here, ALIKE)} == {16}
    many = [trial.model_copy(update={"seed": seed}) for seed in range(9) for trial in scanned]
    assert {unit.threads for unit in make_units(on_gpu_only(many), here, ALIKE)} == {threads_of_scans}


def test_cells_fill_all_places_in_chunks_of_a_bounded_size_and_each_cell_is_in_one(profile_of: ProfileOf) -> None:
    trials = cells(profile_of("finish"), "sensitivity")
    many = [trial.model_copy(update={"seed": seed}) for seed in range(100) for trial in trials]
    for places, trials_given in ((Places(cpus=2, gpus=0, cores=2), trials), (Places(cpus=64, gpus=0, cores=2), many)):
        units = make_units(trials_given, places, ALIKE)
        assert sorted(trial.trial_id for unit in units for trial in unit.trials) == sorted(trial.trial_id for trial in trials_given)
        assert len(units) >= min(places.cpus, len(trials_given) // 8)
        assert max(len(unit.trials) for unit in units) <= 64
        assert {unit.threads for unit in units} == {1}
    units = make_units(on_gpu_only(trials), Places(cpus=8, gpus=1, cores=8, gpu_kind="H100"), ALIKE)
    (shared,) = {tuple(unit.resources.items()) for unit in units}
    assert dict(shared) == {"CPU": 1, "GPU": 0.5, "accelerator_type:H100": 0.001}


def test_timings_are_taken_on_one_kind_of_gpu_and_need_a_slot(profile_of: ProfileOf) -> None:
    trials = on_gpu_only(cells(profile_of("finish"), "variants"))
    mixed = [node(8, gpus=("A100",)), node(16, gpus=("H100", "H100"))]
    with pytest.raises(ConfigError, match=r"^the cluster has A100, H100: times of different GPUs cannot be compared; choose with --gpu$"):
        places_on(mixed, trials, gpu_kind=None)
    assert places_on(mixed, trials, gpu_kind="A100") == Places(cpus=8, gpus=1, cores=8, gpu_kind="A100")
    # The only kind there is stays the kind, whatever joins later.
    assert places_on(mixed[:1], trials, gpu_kind=None).gpu_kind == "A100"
    with pytest.raises(Unavailable, match=r"^--gpu L4: no node of the cluster has one; there are: A100, H100$"):
        places_on(mixed, trials, gpu_kind="L4")
    with pytest.raises(Unavailable, match="no node takes timing trials"):
        places_on([node(8, gpus=("A100",), slot=False)], trials, gpu_kind=None)
    untimed = [trial.model_copy(update={"measurement": None}) for trial in trials]
    assert places_on(mixed, untimed, gpu_kind=None).gpu_kind is None


@pytest.mark.parametrize(("gpu", "counts"), [("NVIDIA A100-SXM4-80GB", True), ("NVIDIA A10", False), (None, False)])
def test_a_timing_of_another_gpu_than_the_chosen_one_is_taken_again(
    gpu: str | None, counts: bool, workspace: Workspace, profile_of: ProfileOf, obedient: tuple[str, ...]
) -> None:
    (trial,) = on_gpu_only(cells(profile_of("finish"), "variants"))
    launched([trial], workspace, command=obedient)
    path = workspace.records("variants") / f"{trial.trial_id}.json"
    facts = provenance("").model_copy(update={"gpu": gpu}).model_dump()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": facts}))
    assert read_record(path).status == "success"
    assert missing_trials([trial], workspace, why_not=lambda trials: {}) == []
    assert missing_trials([trial], workspace, why_not=lambda trials: {}, gpu_kind="A100-80G") == ([] if counts else [trial])


def test_the_job_api_is_refused_as_an_address_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for local in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", local)
        assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=http://127\.0\.0\.1:8265: that is the job API; use ray://"):
        cluster_address()
