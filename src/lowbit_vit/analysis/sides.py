"""Two runs side by side: where each is read from, which of their arms are the same, and what may be compared of them.

An arm is matched by what it is (plan, attention, layout, adaptation, execution, seed), not by its label: profiles name their
arms freely. The device is not part of it, so that a run on a CPU can stand beside one on a card.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.results import Result, load_all_results
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.config import STUDIES, Profile, Study, Trial, load_profile
from lowbit_vit.schema.packed import study_records
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace

# Settings of a trial that are no part of what its arm is; where two differ in them, that is said.
_SETTINGS = ("data", "backbone", "lora", "evaluation", "measurement", "device", "selection_seed")


@dataclass(frozen=True)
class Side:
    """One run.

    Attributes:
        name: as it was asked for.
        profile: that it ran.
        results: of each study, in the order of their files.
    """

    name: str
    profile: Profile
    results: dict[Study, list[Result]]


class ArmKey(NamedTuple):
    """What an arm is; the plan is its JSON."""

    study: Study
    plan: str
    attention: str
    qkv: str
    adaptation: str
    execution: str
    seed: int


@dataclass(frozen=True)
class Pair:
    """One arm on both sides; None: not there. At least one is."""

    first: Result | None
    second: Result | None

    @property
    def trial(self) -> Trial:
        """The arm's trial, the first side's where it has one."""
        result = self.first or self.second
        assert result is not None  # noqa: S101  (a pair of nothing is never made)
        return result.record.trial


def load_side(name: str, *, root: Path) -> Side:
    """Read a run: a profile's name, or a folder with records/, such as a committed reference run.

    Raises:
        ConfigError: it is neither, or the profile is wrong.
        DataError: there are no records, records of several profiles, or a damaged one.
    """
    workspace = _workspace(name, root=root)
    profile = load_profile(workspace.profile_file)
    results = load_all_results(workspace)
    if not any(results.values()):
        raise DataError(f"{workspace.reports / 'records'}: no records; run dvc repro report@{profile.name} first")
    return Side(name=name, profile=profile, results=results)


def _workspace(name: str, *, root: Path) -> Workspace:
    if (root / "profiles" / f"{name}.yaml").is_file():
        return Workspace(root=root, profile=name)
    folder = (root / name).resolve()
    if not (folder / "records").is_dir():
        known = ", ".join(sorted(path.stem for path in (root / "profiles").glob("*.yaml"))) or "none"
        raise ConfigError(f"{name}: neither a profile (there are: {known}) nor a folder with records/")
    records = [record for study in STUDIES for record in study_records(folder / "records" / study)]
    profiles = sorted({record.trial.profile for record in records})
    if len(profiles) != 1:
        raise DataError(f"{folder / 'records'}: records of {len(profiles)} profiles ({', '.join(profiles) or 'none'}); one is needed")
    return Workspace(root=root, profile=profiles[0], elsewhere=folder)


def arm_key(trial: Trial) -> ArmKey:
    """What the trial's arm is."""
    return ArmKey(
        study=trial.study,
        plan=trial.plan.model_dump_json(),
        attention=trial.attention,
        qkv=trial.qkv,
        adaptation=trial.adaptation,
        execution=trial.execution,
        seed=trial.seed,
    )


def match(first: Side, second: Side) -> list[Pair]:
    """Every arm of either side, by study, in the order of the first profile's arms and then of the files.

    An arm that a side holds for several devices is matched device by device.

    Raises:
        DataError: a side holds one arm twice.
    """
    pairs = []
    for study in STUDIES:
        ours, theirs = (_by_key(side, study) for side in (first, second))
        keys = list(dict.fromkeys([*ours, *theirs]))
        of_study = [pair for key in keys for pair in _matched(ours.get(key, {}), theirs.get(key, {}))]
        order = {arm.label: place for place, arm in enumerate(first.profile.variants.arms)} if study == "variants" else {}
        pairs += sorted(of_study, key=lambda pair: order.get(pair.trial.label, len(order)))
    return pairs


def _by_key(side: Side, study: Study) -> dict[ArmKey, dict[str, Result]]:
    found: dict[ArmKey, dict[str, Result]] = {}
    for result in side.results[study]:
        trial = result.record.trial
        devices = found.setdefault(arm_key(trial), {})
        if trial.device in devices:
            other = devices[trial.device].record
            raise DataError(f"{side.name}: {other.trial_id} and {trial.trial_id} are the same arm; compare runs that hold each arm once")
        devices[trial.device] = result
    return found


def _matched(ours: dict[str, Result], theirs: dict[str, Result]) -> Iterator[Pair]:
    if len(ours) <= 1 and len(theirs) <= 1:
        yield Pair(next(iter(ours.values()), None), next(iter(theirs.values()), None))
        return
    for device in dict.fromkeys([*ours, *theirs]):
        yield Pair(ours.get(device), theirs.get(device))


def same_test_images(first: Record, second: Record) -> bool:
    """Whether both were evaluated on the same ids with the same labels, so that their predictions can be paired."""
    if first.evaluation is None or second.evaluation is None:
        return False
    return first.evaluation.labels_sha256 == second.evaluation.labels_sha256


def right(result: Result) -> npt.NDArray[np.bool_]:
    """Which images the Top-1 answer gets right, bool [N].

    Raises:
        ValueError: the trial has no predictions.
    """
    if result.predictions is None:
        raise ValueError(f"{result.record.trial_id} has no predictions")
    answers: npt.NDArray[np.bool_] = result.predictions.right
    return answers


def card(record: Record) -> str | None:
    """What a timing was taken on, as a person names it: the GPU's model, or CPU, cores and threads; None: not recorded."""
    provenance = record.provenance
    if provenance is None or record.trial.device == "cuda":
        return None if provenance is None else provenance.gpu
    return f"{provenance.cpu}, {provenance.cpu_cores} cores, {provenance.threads} threads"


def timing_obstacle(first: Record, second: Record) -> str | None:
    """Why two timings say nothing about each other, or None where they were taken on the same kind of card."""
    one, two = card(first), card(second)
    if one is None or two is None:
        return "card not recorded"
    return None if one == two else f"different card: {one} / {two}"


def other_settings(first: Trial, second: Trial) -> list[str]:
    """Names of the settings, beyond what the arm is, in which two trials differ."""
    return [name for name in _SETTINGS if getattr(first, name) != getattr(second, name)]


def origins(side: Side) -> dict[str, str]:
    """What a side was made of, for a heading: cards, torch, backbone and images; several are joined."""
    records = [result.record for results in side.results.values() for result in results if result.record.status == "success"]
    timed = [record for record in records if record.measurement is not None] or records
    models = [record.model for record in records if record.model is not None]
    evaluations = [record.evaluation for record in records if record.evaluation is not None]
    packages = [{} if record.provenance is None else record.provenance.packages for record in timed]
    return {
        "profile": side.profile.name,
        "card": _joined(card(record) for record in timed),
        "torch": _joined(names.get("torch") for names in packages),
        "code": _joined(None if record.code_sha256 is None else record.code_sha256[:12] for record in records),
        "weights": _joined((model.base_sha256 or model.backbone_sha256)[:12] for model in models),
        "labels": _joined(evaluation.labels_sha256[:12] for evaluation in evaluations),
    }


def _joined(values: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys("not recorded" if value is None else value for value in values)) or "nothing"
