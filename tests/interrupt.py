"""Interrupt `dvc repro` of a profile again and again, let it finish, and compare with a run that nobody disturbed.

Ctrl-C, SIGTERM and SIGKILL, to DVC alone or to its whole process group, as a terminal, a batch system or the kernel sends
them. By hand, in a copy of the project of its own:    python tests/interrupt.py demo 30
"""

import argparse
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import projects

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
MARK = "LOWBIT_VIT_TEST_ATTEMPT"
# Seconds for DVC and all it started to be gone; a machine may be busy with other things.
PATIENCE = 120.0
# What DVC may say after a kill that met it writing, and what README.md says to delete then.
REMEDIES = {r"RWLock-file '\.dvc/tmp/rwlock'": ".dvc/tmp/rwlock", r"dvc\.lock' (is invalid|validation failed)": "dvc.lock"}
# Where a run was and what it cost are no results; which cells of a scan shared a block is a matter of what was left to do.
NO_RESULTS = {
    "provenance": True,
    "durations_s": True,
    "measurement": True,
    "training": {"seconds"},
    "evaluation": {"seconds", "block_evaluations"},
}


@dataclass
class Attempts:
    """What became of the interrupted runs."""

    by_signal: Counter[str] = field(default_factory=Counter)
    by_stage: Counter[str] = field(default_factory=Counter)
    ended_before: int = 0
    remedies: Counter[str] = field(default_factory=Counter)
    finished_after: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """One `dvc repro report@PROFILE` in a session of its own; its output is read as it comes."""

    def __init__(self, project: Path, profile: str) -> None:
        self.mark = uuid.uuid4().hex
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", f"report@{profile}"],
            cwd=project,
            env=projects.environment(project) | {MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:  # until the last process that holds it is gone
            self.lines.extend(output)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def stage(self) -> str:
        """The stage that it is at, or `none` before the first and after the last."""
        names = re.findall(r"Running stage '(\w+)@|(Updating lock file)", self.output)
        return names[-1][0] or "none" if names else "none"

    def wait_for(self, lines: int, *, then_seconds: float) -> None:
        """Until so many lines came and some time more has passed, or it ended."""
        while len(self.lines) < lines and self.process.poll() is None:
            time.sleep(0.02)
        deadline = time.monotonic() + then_seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.02)

    def interrupt(self, number: signal.Signals, *, group: bool) -> None:
        """Send the signal. DVC ignores a SIGINT of its own while a stage runs: whoever sees that presses Ctrl-C."""
        target = os.killpg if group else os.kill
        target(self.process.pid, number)
        if number == signal.SIGINT and not group:
            self.wait_for(0, then_seconds=1.0)
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGINT)

    def end(self, *, within: float | None = PATIENCE) -> int:
        """DVC's exit status, once it is gone."""
        return self.process.wait(timeout=within)

    def started(self) -> list[psutil.Process]:
        """All processes of this run that live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """End whatever is left of it, rudely."""
        for process in self.started():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._close()

    def _close(self) -> None:
        """Read what is left of the output, and close it."""
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "something still holds the output of a run that is gone"
        self.process.wait(PATIENCE)

    def require_gone(self) -> None:
        """No process that this run started lives on."""
        deadline = time.monotonic() + PATIENCE
        while left := self.started():
            assert time.monotonic() < deadline, f"left behind: {[' '.join(process.cmdline())[:200] for process in left]}"
            time.sleep(0.1)
        self._close()


def finished_trials(project: Path, profile: str) -> dict[str, bytes]:
    """Path -> bytes of every record that says success, and of its predictions."""
    files: dict[str, bytes] = {}
    for path in (project / "reports" / profile / "records").glob("*/[!.]*.json"):
        content = path.read_bytes()
        if json.loads(content)["status"] == "success":
            for file in (path, path.with_suffix(".npz")):
                files[str(file.relative_to(project))] = file.read_bytes()
    return files


def interrupt(project: Path, profile: str, *, times: int, trials: int, seed: int, reach: int) -> Attempts:
    """Interrupt the pipeline `times` times and let it finish.

    Args:
        project: a copy of the project (`projects.make_project`) in which nothing was run.
        profile: its profile.
        times: interrupts.
        trials: that an undisturbed run finishes. They are paced, so that the work lasts until the last interrupt.
        seed: of signals and moments.
        reach: lines of output; the latest interrupts come after twice as many.

    Raises:
        AssertionError: a finished trial was repeated or lost, a process was left behind, or a run stopped by itself.
    """
    generator = random.Random(seed)
    kinds = [(number, group) for number in SIGNALS for group in (True, False)]
    plan = [kinds[index % len(kinds)] for index in range(times)]
    generator.shuffle(plan)
    attempts, started = Attempts(), time.monotonic()
    runs: list[Run] = []
    try:
        _interrupt_and_finish(project, profile, plan, attempts, runs, generator=generator, trials=trials, reach=reach)
    finally:
        for run in runs:
            run.kill()
    attempts.seconds = time.monotonic() - started
    return attempts


def _interrupt_and_finish(
    project: Path,
    profile: str,
    plan: Sequence[tuple[signal.Signals, bool]],
    attempts: Attempts,
    runs: list[Run],
    *,
    generator: random.Random,
    trials: int,
    reach: int,
) -> None:
    before: dict[str, bytes] = {}
    for done, (number, group) in enumerate(plan):
        run = Run(project, profile)
        runs.append(run)
        # Most come early, for every run starts over with DVC. Where fewer trials are finished than their share, half come late.
        behind = len(before) / 2 / trials <= done / len(plan)
        lines = int(reach * (2 * generator.random() if behind and generator.random() < 0.5 else generator.random() ** 4))
        run.wait_for(lines, then_seconds=generator.uniform(0.1, 1.0 if lines else 2.0))
        if run.process.poll() is None:
            run.interrupt(number, group=group)
            kind = f"{number.name} to {'the group' if group else 'DVC'}"
            attempts.by_signal[kind] += 1
            attempts.by_stage[run.stage] += 1
            run.end()
            log.info("%s, stage %s; the last of %d lines: %s", kind, run.stage, len(run.lines), "".join(run.lines[-1:]).strip())
        else:
            attempts.ended_before += 1
            _require_known_end(run, project, attempts)
        if generator.random() < 0.5:  # else the next run starts while this one may still be going
            for earlier in runs:
                earlier.require_gone()
            runs.clear()
        after = finished_trials(project, profile)
        changed = [path for path, content in before.items() if after.get(path) != content]
        assert not changed, f"finished, and then run again or lost: {changed}\n{run.output}"
        before = after
        attempts.finished_after.append(len(after) // 2)
    for _ in range(1 + len(REMEDIES)):
        last = Run(project, profile)
        runs.append(last)
        if last.end(within=None) == 0:
            break
        _require_known_end(last, project, attempts)
    assert last.process.returncode == 0, last.output
    after = finished_trials(project, profile)
    assert {path: after.get(path) for path in before} == before
    for run in runs:
        run.require_gone()


def _require_known_end(run: Run, project: Path, attempts: Attempts) -> None:
    """A run that ended by itself succeeded, or DVC said which of its own files was cut: then do what README.md says."""
    if run.end() == 0:
        return
    for said, file in REMEDIES.items():
        if re.search(said, run.output) and "Running stage" not in run.output:
            (project / file).unlink()
            attempts.remedies[file] += 1
            return
    raise AssertionError(f"ended by itself with {run.process.returncode}:\n{run.output}")


def results(project: Path, profile: str) -> dict[str, Any]:
    """All that must not depend on interrupts: records without timings, predictions, scores, weights, images."""
    found: dict[str, Any] = {}
    reports = project / "reports" / profile
    for path in sorted((reports / "records").glob("*/*")):
        content = path.read_bytes()
        found[str(path.relative_to(project))] = _without(json.loads(content), NO_RESULTS) if path.suffix == ".json" else content
    files = [reports / "sensitivity.json", *(project / "checkpoints" / profile).glob("*.safetensors")]
    files += sorted((project / "data" / "prepared" / profile).iterdir())
    return found | {str(path.relative_to(project)): path.read_bytes() for path in files}


def _without(record: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in record.items():
        drop = keys.get(key)
        if drop is True:
            continue
        kept[key] = {name: inner for name, inner in value.items() if name not in drop} if drop and isinstance(value, dict) else value
    return kept


def left_behind(project: Path, profile: str) -> list[str]:
    """Files that a killed process left and no later run removed."""
    reports = project / "reports" / profile
    hidden = [*(reports / "records").rglob(".*"), *(project / "checkpoints" / profile).glob(".*"), *(reports / ".scratch").glob("*")]
    return [str(path.relative_to(project)) for path in [*hidden, *(project / "data" / "prepared").glob(".*.partial/*")]]


def main() -> None:
    """The same by hand, with any profile: an undisturbed run first, then the interrupted one, in two copies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("times", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reach", type=int, default=30, help="lines of output; the latest interrupts come after twice as many")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests/conftest.py says why
    with tempfile.TemporaryDirectory(prefix="interrupt-") as folder:
        calm, project = (projects.make_project(Path(folder) / name) for name in ("calm", "interrupted"))
        started = time.monotonic()
        projects.dvc(calm, "repro", f"report@{chosen.profile}")
        log.info("undisturbed: %.0f s", time.monotonic() - started)
        trials = len(finished_trials(calm, chosen.profile)) // 2
        attempts = interrupt(project, chosen.profile, times=chosen.times, trials=trials, seed=chosen.seed, reach=chosen.reach)
        log.info("%s", attempts)
        expected, found = results(calm, chosen.profile), results(project, chosen.profile)
        differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        sys.exit(f"not as undisturbed: {differing}" if differing else None)


if __name__ == "__main__":
    main()
