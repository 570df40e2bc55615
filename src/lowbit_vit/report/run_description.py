"""What was run: the model, its weights, the images and the machines in words, and what stands behind each number of the page."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.runs import cpu_words
from lowbit_vit.schema.config import DataConfig, DigitsData, FlowersData, FolderData, Profile, SmallVit
from lowbit_vit.schema.record import Provenance, Record


@dataclass(frozen=True)
class Machine:
    """One place where records were made, with how many of them."""

    name: str
    records: int
    facts: tuple[tuple[str, str], ...]


def model_words(profile: Profile) -> str:
    """The architecture and where its weights come from."""
    architecture = profile.backbone.architecture
    if isinstance(architecture, SmallVit):
        size = f"{architecture.depth} blocks of width {architecture.width}, patches of {architecture.patch_size} px"
        name = f"a small ViT ({size})"
    else:
        name = f"ViT {architecture.removeprefix('vit_').replace('_', '/').upper()}"
    if profile.backbone.weights == "scratch":
        return f"{name}, weights trained from scratch for this run, not pretrained"
    if profile.backbone.weights == "ours":
        return f"{name}, weights of {profile.backbone.checkpoint}, trained by this program before"
    return f"{name}, torchvision's weights {Path(str(profile.backbone.checkpoint)).name} with a new head"


def image_words(profile: Profile, records: Sequence[Record] = ()) -> str:
    """Which images, and at which size: those of the records, or of the profile where there is none."""
    return " or ".join(dict.fromkeys(_image_words(record.trial.data) for record in records)) or _image_words(profile.data)


def _image_words(data: DataConfig) -> str:
    side = data.views.image_size
    match data:
        case DigitsData():
            name = "scikit-learn's 8 x 8 scanned digits"
        case FlowersData():
            kind = "original files" if data.images == "original" else "256-px copies, not the original files"
            name = f"Oxford Flowers-102 ({kind}), official split"
        case FolderData():
            name = f"the images in {data.root}"
    return f"{name}, seen at {side} x {side} px"


def accuracy_words(profile: Profile, results: Sequence[Result]) -> str:
    """What every accuracy on the page is measured on: images, split, n, seeds."""
    counts = sorted({result.whole.images for result in results if result.whole is not None})
    seeds = sorted({result.record.trial.seed for result in results if result.whole is not None})
    records = [result.record for result in results]
    if not counts:
        return "No accuracy was measured."
    n = " or ".join(f"{count:,}" for count in counts)
    which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"Accuracy is on the test split (n = {n} images) of {image_words(profile, records)}; {model_words(profile)}; {which}."


def adaptation_words(profile: Profile) -> str:
    """The LoRA settings, or that there is none."""
    lora = profile.lora
    if lora is None:
        return "No adapters: every trial quantizes the backbone as it is."
    training = lora.training
    return (
        f"LoRA on q and v, rank {lora.rank}, alpha {lora.alpha:g}, {training.epochs} epochs at {training.learning_rate:g}, "
        f"batch {training.batch_size}. "
        "qlora: quantize, then train adapters and head. ptq: train in high precision, merge, then quantize."
    )


def machines(records: Sequence[Record]) -> list[Machine]:
    """Each machine and software state that made records, most records first."""
    groups: dict[tuple[tuple[str, str], ...], list[Provenance]] = {}
    for record in records:
        if record.provenance is not None:
            groups.setdefault(host_facts(record.provenance), []).append(record.provenance)
    names = {facts: items[0].gpu or f"{items[0].cpu}, {items[0].cpu_cores} cores" for facts, items in groups.items()}
    found = [Machine(name=names[facts], records=len(items), facts=facts) for facts, items in groups.items()]
    return sorted(found, key=lambda machine: -machine.records)


def host_facts(provenance: Provenance) -> tuple[tuple[str, str], ...]:
    """Machine, software, code revision and image of one record, by name, without what is unknown."""
    dirty = {True: " with uncommitted changes", False: "", None: ""}[provenance.git_dirty]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(provenance.packages.items()))
    facts = {
        "GPU": provenance.gpu and f"{provenance.gpu}, {provenance.gpu_memory_gib or 0:.0f} GiB, {provenance.gpu_uuid or 'no UUID'}",
        "driver, CUDA": provenance.driver and f"{provenance.driver}, {provenance.cuda or 'unknown'}",
        "CPU": cpu_words(provenance),
        "memory": f"{provenance.memory_gib:.1f} GiB",
        "system": f"{provenance.host_os}, Python {provenance.python}",
        "packages": packages,
        "git revision": f"{provenance.git_revision}{dirty}" if provenance.git_revision else "unknown (not run from a git checkout)",
        "container image": provenance.image_digest or "none",
    }
    return tuple((name, value) for name, value in facts.items() if value)


def exclusive_words(records: Sequence[Record]) -> str:
    """Whether the timings on a GPU had it alone, with how many of each; empty where there is none."""
    found = [record.measurement.exclusive for record in records if record.measurement is not None and record.trial.device == "cuda"]
    kinds = {
        True: "with the GPU alone, as NVML shows",
        None: "where NVML could not tell whether the GPU was shared",
        False: "beside other processes, because the profile says so",
    }
    parts = [f"{found.count(kind)} {words}" for kind, words in kinds.items() if kind in found]
    return f"Timings on a GPU: {'; '.join(parts)}." if parts else ""


def weight_hashes(records: Sequence[Record]) -> list[tuple[str, int]]:
    """sha256 of each checkpoint that trials started from, with the number of trials."""
    return Counter(record.model.backbone_sha256 for record in records if record.model is not None).most_common()


def provenance_document(records: Sequence[Record], *, packed: bool = False) -> dict[str, Any]:
    """`entries`: trial id, and its study, seed, status, start and a place in the list of `shared` of each kind in `kinds`.

    `packed`: whether the records lie in Parquet files.

    The page refers to a record by its place in `entries`. A place is null where the record does not know: the process died
    before it could say.
    """
    kinds = ("label", "command", "host", "code", "data", "weights")
    shared: dict[str, dict[Any, int]] = {name: {} for name in kinds}  # a value and its place, in the order of first use
    entries = []
    for record in records:
        made = record.provenance
        model = record.model
        values = {
            "label": record.trial.label,
            "command": made.command if made else None,
            "host": host_facts(made) if made else None,
            "code": record.code_sha256,
            "data": record.data_sha256,
            "weights": model.backbone_sha256 if model else None,
        }
        places = [None if value is None else shared[name].setdefault(value, len(shared[name])) for name, value in values.items()]
        about = [record.trial.study, record.trial.seed, record.status, made.started_utc if made else None, *places]
        entries.append([record.trial_id, about])
    return {"entries": entries, "kinds": kinds, "shared": {name: list(values) for name, values in shared.items()}, "packed": packed}


def places(records: Sequence[Record]) -> Callable[[str], str]:
    """What turns trial ids, separated by spaces, into their places in `entries`: a tenth of the bytes."""
    known = {record.trial_id: str(place) for place, record in enumerate(records)}
    return lambda trial_ids: " ".join(known[trial_id] for trial_id in trial_ids.split())


def with_places(specification: dict[str, Any], to_places: Callable[[str], str]) -> dict[str, Any]:
    """A figure's document with places for trial ids in its data's field `records`."""
    datasets = {
        name: [{**row, "records": to_places(row["records"])} if row.get("records") else row for row in rows]
        for name, rows in specification["datasets"].items()
    }
    return {**specification, "datasets": datasets}
