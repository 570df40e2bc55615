"""Two runs: where each is read from, which of their arms are the same, and what may be compared of them.

An arm is matched by what it is (plan, attention, layout, adaptation, execution, seed), not by its label: profiles name their
arms freely. The device is not part of it, so that a run on a CPU can stand beside one on a GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.analysis.results import ArmKey, Result, arm_key, load_all_results, read_results
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.config import STUDIES, Profile, Study, Trial, load_profile
from lowbit_vit.schema.record import Provenance, Record
from lowbit_vit.schema.workspace import Workspace

# Settings of a trial that are no part of what its arm is; where two differ in them, that is said.
_SETTINGS = ("data", "backbone", "lora", "evaluation", "measurement", "device", "selection_seed")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: as it was asked for.
        profile: that it ran.
        results: of each study, in the order of their files.
    """

    name: str
    profile: Profile
    results: dict[Study, list[Result]]


@dataclass(frozen=True)
class Pair:
    """One arm of both runs; None: not there. At least one is."""

    first: Result | None
    second: Result | None

    @property
    def trial(self) -> Trial:
        """The arm's trial, the first run's where it has one."""
        result = self.first or self.second
        assert result is not None  # noqa: S101  (a pair of nothing is never made)
        return result.record.trial


def load_run(name: str, *, root: Path) -> Run:
    """Read a run: a profile's name, or a folder with records/, such as a committed reference run.

    Raises:
        ConfigError: it is neither, or the profile is wrong.
        DataError: there are no records, records of several profiles, or a damaged one.
    """
    if (root / "profiles" / f"{name}.yaml").is_file():
        workspace = Workspace(root=root, profile=name)
        profile = load_profile(workspace.profile_file)
        return Run(name=name, profile=profile, results=_some(load_all_results(workspace), workspace.reports, name))
    folder = (root / name).resolve()
    if not (folder / "records").is_dir():
        known = ", ".join(sorted(path.stem for path in (root / "profiles").glob("*.yaml"))) or "none"
        raise ConfigError(f"{name}: neither a profile (there are: {known}) nor a folder with records/")
    results = _some(read_results(folder, STUDIES), folder, "PROFILE")
    profiles = sorted({result.record.trial.profile for found in results.values() for result in found})
    if len(profiles) != 1:
        raise DataError(
            f"{folder / 'records'}: key trial.profile: records of {len(profiles)} profiles ({', '.join(profiles)}); one is needed"
        )
    return Run(name=name, profile=load_profile(Workspace(root=root, profile=profiles[0]).profile_file), results=results)


def _some(results: dict[Study, list[Result]], reports: Path, profile: str) -> dict[Study, list[Result]]:
    if not any(results.values()):
        raise DataError(f"{reports / 'records'}: no records; run dvc repro report@{profile} first")
    return results


def match(first: Run, second: Run) -> list[Pair]:
    """Every arm of either run, by study, in the order of the first profile's arms and then of the files.

    An arm that a run holds for several devices is matched device by device.
    """
    pairs = []
    for study in STUDIES:
        ours, theirs = (_by_key(run.results[study]) for run in (first, second))
        of_study = [pair for key in dict.fromkeys([*ours, *theirs]) for pair in _matched(ours.get(key, {}), theirs.get(key, {}))]
        order = {arm.label: place for place, arm in enumerate(first.profile.variants.arms)} if study == "variants" else {}
        pairs += sorted(of_study, key=lambda pair: order.get(pair.trial.label, len(order)))
    return pairs


def _by_key(results: Sequence[Result]) -> dict[ArmKey, dict[str, Result]]:
    found: dict[ArmKey, dict[str, Result]] = {}
    for result in results:
        found.setdefault(arm_key(result.record.trial), {})[result.record.trial.device] = result
    return found


def _matched(ours: dict[str, Result], theirs: dict[str, Result]) -> Iterator[Pair]:
    if len(ours) <= 1 and len(theirs) <= 1:
        yield Pair(next(iter(ours.values()), None), next(iter(theirs.values()), None))
        return
    for device in dict.fromkeys([*ours, *theirs]):
        yield Pair(ours.get(device), theirs.get(device))


def processor(record: Record) -> str | None:
    """What a timing was taken on, as a person names it: the GPU's model, or CPU, cores and threads; None: not recorded."""
    provenance = record.provenance
    if provenance is None or record.trial.device == "cuda":
        return None if provenance is None else provenance.gpu
    return cpu_words(provenance)


def cpu_words(provenance: Provenance) -> str:
    """The CPU with its cores and a trial's threads."""
    cores, threads = provenance.cpu_cores, provenance.threads
    return f"{provenance.cpu}, {cores} core{'s' * (cores != 1)}, {threads or 'unknown'} thread{'s' * (threads != 1)}"


def timing_obstacle(first: Record, second: Record) -> str | None:
    """Why two timings say nothing about each other, or None where they were taken on the same kind of processor."""
    one, two = processor(first), processor(second)
    if one is None or two is None:
        return "processor not recorded"
    return None if one == two else f"different processor: {one} / {two}"


def other_settings(first: Trial, second: Trial) -> list[str]:
    """Names of the settings, beyond what the arm is, in which two trials differ."""
    return [name for name in _SETTINGS if getattr(first, name) != getattr(second, name)]


def origins(run: Run) -> dict[str, str]:
    """What a run was made of, for a heading: processors, torch, backbone and images; several are joined."""
    records = [result.record for results in run.results.values() for result in results if result.record.status == "success"]
    timed = [record for record in records if record.measurement is not None] or records
    models = [record.model for record in records if record.model is not None]
    packages = [{} if record.provenance is None else record.provenance.packages for record in timed]
    return {
        "profile": run.profile.name,
        "processor": _joined(processor(record) for record in timed),
        "torch": _joined(names.get("torch") for names in packages),
        "code": _joined(record.code_sha256[:12] for record in records),
        "weights": _joined(model.base_sha256[:12] for model in models),
        "images": _joined(record.data_sha256 and record.data_sha256[:12] for record in records),
    }


def _joined(values: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys("not recorded" if value is None else value for value in values)) or "nothing"
