"""Two GPUs of one machine: what Ray gives out, and what each process sees of it.

The GPUs are faked: Ray is told that there are two, and the processes compute nothing. What two real GPUs do to each other's times
needs a machine that has them.
"""

import itertools
from collections import Counter
from collections.abc import Callable

import pytest

from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study import cluster, places, sweep
from lowbit_vit.study.cells import cells


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cluster, places):
        monkeypatch.setattr(module, "gpu_count", lambda: 2)
        monkeypatch.setattr(module, "cpu_cores", lambda: 4)  # a scan takes one, and each GPU has two scans
    monkeypatch.setattr(sweep, "why_not_here", lambda trials: {})  # which says that a GPU is missing
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # whoever sets it decides how many threads a trial has


@pytest.mark.usefixtures("two_cards")
def test_every_cell_has_a_record_and_its_process_one_gpu_that_scans_share_and_a_timing_trial_has_to_itself(
    workspace: Workspace, profile_of: Callable[..., Profile], obedient: tuple[str, ...]
) -> None:
    whole = profile_of("occupy 1", "occupy 1", "occupy 1")
    # Plain fp32 attention on a GPU is math or efficient; the profile's flash is the CPU's.
    of_study = {"attention": "math"}
    profile = whole.model_copy(
        update={
            "device": "cuda",
            "sensitivity": whole.sensitivity.model_copy(update=of_study),
            "mixed": whole.mixed.model_copy(update=of_study),
        }
    )

    def run(study: Study) -> Counter[str]:
        (workspace.root / "gpus.txt").unlink(missing_ok=True)
        records = sweep.run_study(profile, study, workspace, command=obedient)
        assert [(record.trial, record.status) for record in records] == [(cell, "success") for cell in cells(profile, study)]
        # Going on starts nothing and touches nothing.
        before = {path: path.read_bytes() for path in workspace.records(study).iterdir()}
        assert len(before) == 2 * len(records)
        assert sweep.run_study(profile, study, workspace, command=("/no/such/program",)) == records
        assert {path: path.read_bytes() for path in workspace.records(study).iterdir()} == before
        return Counter((workspace.root / "gpus.txt").read_text().splitlines())

    (workspace.root / "together.txt").write_text("4")
    seen = run("sensitivity")
    # Four at once, two on each GPU, and a fifth where one of them ends.
    assert set(seen) == {"scan 0", "scan 1"}
    assert (min(seen.values()), seen.total()) == (2, 5)
    # Two at once, or they would wait for each other for ever: a slot for each GPU.
    (workspace.root / "together.txt").write_text("2")
    timed = run("variants")
    assert set(timed) == {"trial 0", "trial 1"}
    assert timed.total() == 3
    lines = [line.split() for line in (workspace.root / "times.txt").read_text().splitlines()]
    assert {threads for _, _, threads, _ in lines} == {"2"}
    for gpu in ("0", "1"):
        spans = sorted((float(start), float(end)) for start, end, _, of_gpu in lines if of_gpu == gpu)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
