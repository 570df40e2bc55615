"""Verbs that run trials, one for each study of a profile: backbone, variants, sensitivity, estimate, mixed, sweep."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowbit_vit.cli.options import HERE, ProfileName, Root, open_profile
from lowbit_vit.cli.plans import allocate
from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.config import Study

app = typer.Typer()

Isolation = Annotated[Literal["process", "container"], typer.Option("--isolation", help="what each trial gets to itself")]
Image = Annotated[str | None, typer.Option("--image", help="with container: NAME or NAME@sha256:...", show_default="lowbit-vit:DEVICE")]
Runtime = Annotated[Literal["docker", "podman"], typer.Option("--runtime", help="with container: what runs it")]
Unpinned = Annotated[bool, typer.Option("--unpinned", help="with container: take an image that the profile does not pin; records say so")]
Card = Annotated[
    str | None, typer.Option("--card", envvar="LOWBIT_VIT_CARD", help="kind of GPU, as Ray names it: H100, A100", show_default="any")
]


@dataclass(frozen=True)
class _Place:
    """Where the trials of a study are to run."""

    isolation: Literal["process", "container"]
    image: str | None
    runtime: Literal["docker", "podman"]
    unpinned: bool
    card: str | None


def _run(study: Study, profile: str, root: Path, place: _Place) -> None:
    from lowbit_vit.study.container import find_image
    from lowbit_vit.study.sweep import run_study

    settings, workspace = open_profile(profile, root)
    if place.isolation == "process" and (place.image is not None or place.unpinned):
        raise ConfigError("--image and --unpinned need --isolation container")
    try:
        if place.isolation == "container":
            pin = None if settings.container is None else settings.container.digest
            image = place.image or f"lowbit-vit:{settings.device}"
            container = find_image(image, runtime=place.runtime, pin=pin, unpinned=place.unpinned)
            records = run_study(settings, study, workspace, command=container, gpu_kind=place.card)
        else:
            records = run_study(settings, study, workspace, gpu_kind=place.card)
    except KeyboardInterrupt:
        # Said here: typer turns an interrupt that leaves the verb into a bare "Aborted."
        print("lowbit-vit: interrupted; finished trials are kept, run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    done = sum(record.status == "success" for record in records)
    skipped = sum(record.status == "skipped" for record in records)
    print(f"{study}: {done} trials done, {skipped} skipped; {workspace.records(study).relative_to(workspace.root)}")


@app.command(epilog="Example: lowbit-vit backbone demo")
def backbone(profile: ProfileName, root: Root = HERE) -> None:
    """Train or convert the high-precision backbone, and adapt it for the post-training trials."""
    from lowbit_vit.recipe.backbone import make_backbone

    settings, workspace = open_profile(profile, root)
    make_backbone(settings, workspace)


@app.command(epilog="Example: lowbit-vit variants demo")
def variants(
    profile: ProfileName,
    root: Root = HERE,
    isolation: Isolation = "process",
    image: Image = None,
    runtime: Runtime = "docker",
    unpinned: Unpinned = False,
    card: Card = None,
) -> None:
    """Fine-tune, evaluate and measure every declared arm, each in a process of its own."""
    _run("variants", profile, root, _Place(isolation, image, runtime, unpinned, card))


@app.command(epilog="Example: lowbit-vit sensitivity demo")
def sensitivity(
    profile: ProfileName,
    root: Root = HERE,
    isolation: Isolation = "process",
    image: Image = None,
    runtime: Runtime = "docker",
    unpinned: Unpinned = False,
    card: Card = None,
) -> None:
    """Quantize each block alone and spare each block alone; write the scores that `mixed` chooses from."""
    from lowbit_vit.analysis.sensitivity import write_scores

    _run("sensitivity", profile, root, _Place(isolation, image, runtime, unpinned, card))
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


@app.command(epilog="Example: lowbit-vit mixed demo")
def mixed(
    profile: ProfileName,
    root: Root = HERE,
    isolation: Isolation = "process",
    image: Image = None,
    runtime: Runtime = "docker",
    unpinned: Unpinned = False,
    card: Card = None,
) -> None:
    """Spare k blocks at equal bytes: first and last, last k, most sensitive k, random k."""
    _run("mixed", profile, root, _Place(isolation, image, runtime, unpinned, card))


@app.command(epilog="Example: RAY_ADDRESS=ray://head:10001 lowbit-vit sweep demo")
def sweep(
    profile: ProfileName,
    root: Root = HERE,
    isolation: Isolation = "process",
    image: Image = None,
    runtime: Runtime = "docker",
    unpinned: Unpinned = False,
    card: Card = None,
) -> None:
    """Run variants, sensitivity, estimate, allocate and mixed: the studies on the Ray cluster that RAY_ADDRESS names, else here."""
    variants(profile, root, isolation, image, runtime, unpinned, card)
    sensitivity(profile, root, isolation, image, runtime, unpinned, card)
    try:
        estimate(profile, root)
    except Unavailable as error:
        # The driver of a cluster has no card of its own, as a rule. What needs estimates is said to be missing.
        logging.getLogger(__name__).warning("estimate: left out: %s", error)
    allocate(profile, root=root)
    mixed(profile, root, isolation, image, runtime, unpinned, card)
