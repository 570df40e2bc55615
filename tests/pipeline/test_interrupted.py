"""A run may be stopped at any point, however rudely: going on gives the results of a run that nobody disturbed."""

import re
from pathlib import Path

import pytest

import projects
from interrupt import REMEDIES, finished_trials, interrupt, left_behind, results
from lowbit_vit.schema.config import STUDIES

pytestmark = [pytest.mark.data, pytest.mark.timeout(1800)]

TIMES = 30


def test_thirty_interrupts_change_no_result_and_repeat_no_finished_trial(reproduced: Path, tmp_path: Path) -> None:
    # The very files that `reproduced` was made from, before anything was run there; the checkout may be edited meanwhile.
    project = projects.clone_first(reproduced, tmp_path / "project")
    trials = len(finished_trials(reproduced, "tiny")) // 2
    attempts = interrupt(project, "tiny", times=TIMES, trials=trials, seed=0, reach=15)
    expected, found = results(reproduced, "tiny"), results(project, "tiny")
    assert found.keys() == expected.keys()
    assert not [path for path in expected if found[path] != expected[path]]
    assert all(record["attempts"] == 1 for path, record in found.items() if "/records/" in path and path.endswith(".json"))
    assert left_behind(project, "tiny") == []
    assert sum(attempts.by_signal.values()) + attempts.ended_before == TIMES
    assert len(attempts.by_signal) == 6
    # Or it was no test: some came while DVC itself was at work, some while weights were made, some while trials ran.
    assert attempts.by_stage["none"]
    assert attempts.by_stage["backbone"]
    assert any(attempts.by_stage[study] for study in STUDIES)


@pytest.mark.parametrize(("said", "file"), REMEDIES.items(), ids=REMEDIES.values())
@pytest.mark.parametrize("left", ["", "{"], ids=["empty", "half"])
def test_a_file_of_dvc_that_a_kill_cut_is_named_and_without_it_nothing_is_lost(said: str, file: str, left: str, project: Path) -> None:
    before = finished_trials(project, "tiny")
    (project / file).write_text(left)
    refused = projects.dvc(project, "repro", "report@tiny", check=False)
    assert refused.returncode != 0
    assert re.search(said, refused.stderr)
    (project / file).unlink()
    done = projects.dvc(project, "repro", "report@tiny")
    # Without dvc.lock, weights come from DVC's cache, and the studies find all their cells finished.
    assert "Running stage 'backbone@tiny'" not in done.stdout
    assert not re.search(r"cells, [1-9]\d* to run", done.stdout + done.stderr)
    assert finished_trials(project, "tiny") == before
    assert f"`{file}`" in (projects.ROOT / "README.md").read_text(encoding="utf-8")
