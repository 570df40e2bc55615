"""Verbs that run trials: backbone, variants, sensitivity, estimate, mixed, sweep; and trial, scan, which a study starts as processes."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowbit_vit.cli.options import HERE, ProfileName, Root, open_profile
from lowbit_vit.cli.plans import allocate
from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.workspace import Workspace

app = typer.Typer()

Out = Annotated[Path, typer.Option("--out", help="folder for records and predictions")]
Isolation = Annotated[Literal["process", "container"], typer.Option("--isolation", help="what each trial gets to itself")]
Image = Annotated[str | None, typer.Option("--image", help="with container: NAME or NAME@sha256:...", show_default="lowbit-vit:DEVICE")]
Runtime = Annotated[Literal["docker", "podman"], typer.Option("--runtime", help="with container: what runs it")]
Unpinned = Annotated[bool, typer.Option("--unpinned", help="with container: take an image that the profile does not pin; records say so")]
GpuKind = Annotated[
    str | None, typer.Option("--gpu", envvar="LOWBIT_VIT_GPU", help="kind of GPU, as Ray names it: H100, A100", show_default="any")
]


@dataclass(frozen=True)
class _Place:
    """Where the trials of a study are to run."""

    isolation: Literal["process", "container"]
    image: str | None
    runtime: Literal["docker", "podman"]
    unpinned: bool
    gpu: str | None


_Verb = Callable[[str, Path, _Place], None]


def _study_verb(epilog: str) -> Callable[[_Verb], _Verb]:
    """Make a function of profile, root and `_Place` a verb, with an option for each field of `_Place`."""

    def register(verb: _Verb) -> _Verb:
        def command(
            profile: ProfileName,
            root: Root = HERE,
            isolation: Isolation = "process",
            image: Image = None,
            runtime: Runtime = "docker",
            unpinned: Unpinned = False,
            gpu: GpuKind = None,
        ) -> None:
            verb(profile, root, _Place(isolation, image, runtime, unpinned, gpu))

        app.command(verb.__name__, help=verb.__doc__, epilog=epilog)(command)
        return verb

    return register


def _run(study: Study, profile: str, root: Path, place: _Place) -> None:
    from lowbit_vit.schema.metrics import disturbance
    from lowbit_vit.study.container import find_image
    from lowbit_vit.study.sweep import run_study

    settings, workspace = open_profile(profile, root)
    if place.isolation == "process" and (place.image is not None or place.unpinned):
        raise ConfigError("--image and --unpinned need --isolation container")
    container = None
    try:
        if place.isolation == "container":
            pin = None if settings.container is None else settings.container.digest
            image = place.image or f"lowbit-vit:{settings.device}"
            container = find_image(image, runtime=place.runtime, pin=pin, unpinned=place.unpinned)
        records = run_study(settings, study, workspace, command=container, gpu_kind=place.gpu)
    except KeyboardInterrupt:
        # Caught here: typer turns an interrupt that leaves the verb into a bare "Aborted."
        print("lowbit-vit: interrupted; finished trials are kept, run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    done = sum(record.status == "success" for record in records)
    skipped = sum(record.status == "skipped" for record in records)
    disturbed = {f"{record.trial.label}, process {record.trial.process}": why for record in records if (why := disturbance(record))}
    for name, why in disturbed.items():
        print(f"{study}: {name}: timed beside other work ({why}); the same command times it again, at most twice", file=sys.stderr)
    print(f"{study}: {done} trials done, {skipped} skipped; {workspace.records(study).relative_to(workspace.root)}")


@app.command(epilog="Example: lowbit-vit backbone demo")
def backbone(profile: ProfileName, root: Root = HERE) -> None:
    """Train or convert the high-precision backbone, and adapt it for the post-training trials."""
    from lowbit_vit.recipe.backbone import make_backbone

    settings, workspace = open_profile(profile, root)
    make_backbone(settings, workspace)


@_study_verb("Example: lowbit-vit variants demo")
def variants(profile: str, root: Path, place: _Place) -> None:
    """Fine-tune, evaluate and measure every declared arm, each in a process of its own."""
    _run("variants", profile, root, place)


@_study_verb("Example: lowbit-vit sensitivity demo")
def sensitivity(profile: str, root: Path, place: _Place) -> None:
    """Quantize each block alone and spare each block alone; write the scores that `mixed` chooses from."""
    from lowbit_vit.analysis.sensitivity import write_scores

    _run("sensitivity", profile, root, place)
    settings, workspace = open_profile(profile, root)
    print(write_scores(settings, workspace).relative_to(workspace.root))


@app.command(epilog="Example: lowbit-vit estimate demo")
def estimate(profile: ProfileName, root: Root = HERE) -> None:
    """Estimate what quantizing each linear costs, cheaply: errors of weights and outputs, gradients; beside what is measured."""
    from lowbit_vit.schema.record import write_atomic
    from lowbit_vit.study.cells import cells
    from lowbit_vit.trial.estimates import estimate as find

    settings, workspace = open_profile(profile, root)
    found = find(cells(settings, "sensitivity")[0], settings.sensitivity.formats, workspace)
    write_atomic(workspace.estimates, (found.model_dump_json(indent=1) + "\n").encode())
    print(f"{len(found.linears)} estimates; {workspace.estimates.relative_to(workspace.root)}")


@_study_verb("Example: lowbit-vit mixed demo")
def mixed(profile: str, root: Path, place: _Place) -> None:
    """Spare k blocks at equal bytes: first and last, last k, most sensitive k, random k."""
    _run("mixed", profile, root, place)


@_study_verb("Example: RAY_ADDRESS=ray://head:10001 lowbit-vit sweep demo")
def sweep(profile: str, root: Path, place: _Place) -> None:
    """Run variants, sensitivity, estimate, allocate and mixed: the studies on the Ray cluster that RAY_ADDRESS names, else here."""
    variants(profile, root, place)
    sensitivity(profile, root, place)
    try:
        estimate(profile, root)
    except Unavailable as error:
        # The driver of a cluster usually has no GPU. What needs estimates is then reported as missing.
        logging.getLogger(__name__).warning("estimate: left out: %s", error)
    allocate(profile, root=root)
    mixed(profile, root, place)


@app.command(epilog="Example: lowbit-vit trial trial.json --out reports/one")
def trial(
    file: Annotated[Path, typer.Argument(metavar="TRIAL.json", help="one resolved trial, as in a record's key trial")],
    out: Out,
    root: Root = HERE,
) -> None:
    """Run one trial in this process and write its record."""
    from lowbit_vit.schema.config import load_trial
    from lowbit_vit.study.process import stop_with_parent

    stop_with_parent()
    settings = load_trial(file)
    # After the file is read: this imports torch, and a missing file is reported at once.
    from lowbit_vit.trial.run import record_trial

    record = record_trial(settings, Workspace(root=root.resolve(), profile=settings.profile), out)
    print(f"{record.trial_id}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
    if record.status in ("failed", "oom", "timeout"):
        sys.exit(5)


@app.command(epilog="Example: lowbit-vit scan trials.json --out reports/scan")
def scan(
    file: Annotated[Path, typer.Argument(metavar="TRIALS.json", help="a JSON list of accuracy-only trials on one backbone")],
    out: Out,
    root: Root = HERE,
) -> None:
    """Run many accuracy-only trials in this process on one resident model."""
    from lowbit_vit.schema.config import load_trials
    from lowbit_vit.study.process import stop_with_parent

    stop_with_parent()
    trials = load_trials(file)
    # After the file is read: this imports torch, and a missing file is reported at once.
    from lowbit_vit.trial.scan import run_scan

    records = run_scan(trials, Workspace(root=root.resolve(), profile=trials[0].profile), out)
    print(f"{len(records)} trials done")
