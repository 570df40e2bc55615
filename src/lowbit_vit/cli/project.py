"""Verbs about a project's profiles, images and weights: data, fetch, new-profile, checkpoints, config, doctor."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lowbit_vit.cli.options import HERE, ProfileName, Root, console, open_profile
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.config import Device, TorchvisionVit

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit data demo")
def data(profile: ProfileName, root: Root = HERE) -> None:
    """Decode the profile's images once into arrays under data/prepared/PROFILE."""
    from lowbit_vit.data.prepare import prepare_dataset

    settings, workspace = open_profile(profile, root)
    dataset = prepare_dataset(settings.data, folder=workspace.data, root=workspace.root, workers=os.cpu_count() or 1)
    counts = ", ".join(f"{split} {len(images.labels)}" for split, images in dataset.eval_views.items())
    print(f"{dataset.name}: {dataset.num_classes} classes; images: {counts}; {workspace.data.relative_to(workspace.root)}")


@app.command(epilog="Example: lowbit-vit fetch flowers-102 --to data/raw")
def fetch(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="flowers-102, or a torchvision ViT: vit_l_16, vit_b_16, ...")],
    to: Annotated[Path, typer.Option("--to", help="folder to put it in")] = Path("data/raw"),
) -> None:
    """Download a data set or ImageNet weights, checked against the known size and hash; print their licence.

    http_proxy, https_proxy and no_proxy are respected; LOWBIT_VIT_OFFLINE=1 forbids the network: then only what is there
    already is checked.
    """
    from lowbit_vit.data.download import fetch_flowers, fetch_weights
    from lowbit_vit.data.remote_files import WEIGHTS

    if what != "flowers-102" and what not in WEIGHTS:
        raise ConfigError(f"fetch: {what!r} is not known; allowed: flowers-102, {', '.join(WEIGHTS)}")
    try:
        print(fetch_flowers(to) if what == "flowers-102" else fetch_weights(what, to))
    except KeyboardInterrupt:
        print("lowbit-vit: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)


@app.command(epilog="Example: lowbit-vit new-profile birds --data ../birds --backbone vit_b_16")
def new_profile(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the new profile: lower-case letters, digits, hyphens")],
    *,
    data: Annotated[Path, typer.Option("--data", help="folder of images: CLASS/, or train/CLASS/ and test/CLASS/, with val/ or not")],
    backbone: Annotated[str, typer.Option("--backbone", help="a torchvision ViT (vit_b_16, ...), its .pth file or a .safetensors of ours")],
    image_size: Annotated[int | None, typer.Option("--image-size", help="px that the model sees", show_default="the weights' own")] = None,
    device: Annotated[Device | None, typer.Option("--device", help="to run on", show_default="cuda where there is one")] = None,
    architecture: Annotated[
        TorchvisionVit | None, typer.Option("--architecture", help="of a .pth file", show_default="the file's name says it")
    ] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="of a .pth file", show_default="the file's name ends with it")] = None,
    root: Root = HERE,
) -> None:
    """Write a profile for your own images and weights, and enter it in the pipeline."""
    from lowbit_vit.new_profile import STAGES, write_profile
    from lowbit_vit.schema.machine import visible_gpu

    chosen: Device = device or ("cuda" if visible_gpu() else "cpu")
    made = write_profile(
        name,
        data=data,
        backbone=backbone,
        root=root,
        device=chosen,
        image_size=image_size,
        architecture=architecture,
        sha256=sha256,
    )
    counts = ", ".join(f"{split} {len(items)}" for split, items in made.source.splits.items())
    print(f"{made.path}: {len(made.source.class_names)} classes; images: {counts}; {made.backbone}; on {chosen}")
    print(f"{STAGES}: added {made.line}")
    print(f"Next: lowbit-vit doctor {name}, then dvc repro report@{name}")


@app.command(epilog="Example: lowbit-vit checkpoints demo")
def checkpoints(
    profile: Annotated[str | None, typer.Argument(metavar="[PROFILE]", help="a name in profiles/", show_default="all of them")] = None,
    root: Root = HERE,
) -> None:
    """List backbones and adapters with how they were made, Top-1 and sha256; say which are missing or damaged."""
    from lowbit_vit.analysis.checkpoints import list_checkpoints
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.terminal import checkpoint_table

    names = [profile] if profile is not None else sorted(file.stem for file in (root / "profiles").glob("*.yaml"))
    found = [checkpoint for name in names for checkpoint in list_checkpoints(*open_profile(name, root))]
    console(piped_width=160).print(to_terminal(checkpoint_table(found)))
    damaged = [checkpoint for checkpoint in found if checkpoint.state == "damaged"]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].file}: {damaged[0].problem}{more}")


@app.command(epilog="Example: lowbit-vit config demo")
def config(profile: ProfileName, root: Root = HERE) -> None:
    """Print the resolved profile, every value with what it means."""
    from lowbit_vit.report.terminal import explain

    settings, _ = open_profile(profile, root)
    print(explain(settings), end="")


@app.command(epilog="Example: lowbit-vit doctor demo")
def doctor(profile: Annotated[str, typer.Argument(metavar="[PROFILE]")] = "demo", root: Root = HERE) -> None:
    """Say what this machine can run, arm by arm, and why not; then look into images, weights and the folders to write to."""
    from lowbit_vit.new_profile import require_inputs
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.terminal import doctor_table
    from lowbit_vit.study.cells import cells

    settings, workspace = open_profile(profile, root)
    console().print(to_terminal(doctor_table(settings)))
    cells(settings, "variants")  # which two arms are one trial is known without the data
    require_inputs(settings, workspace)
