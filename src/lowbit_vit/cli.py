"""The command line: one verb for each DVC stage, and a few to look with.

Each verb imports what it needs inside itself, so that `lowbit-vit report` runs where there is no torch and `--help` is
quick. Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 `check` found a miss, or a defect of ours
(which shows its traceback); 2 a profile, plan or option is wrong; 3 data, checkpoint or record is missing or damaged; 4 this
machine cannot run it; 5 some trials failed; 6 another run holds the folder or the device; 130 interrupted.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler

from lowbit_vit.errors import LowbitVitError, Unavailable
from lowbit_vit.schema.config import Device, Execution, Profile, Study, TorchvisionVit, load_profile
from lowbit_vit.schema.workspace import Workspace

if TYPE_CHECKING:
    from lowbit_vit.analysis.programme import PairTerm
    from lowbit_vit.analysis.results import Result

EPILOG = (
    "Exit codes: 0 done · 1 check missed, or defect · 2 wrong profile or option · 3 missing or damaged data · "
    "4 this machine cannot run it · 5 some trials failed · 6 busy · 130 interrupted"
)

app = typer.Typer(
    name="lowbit-vit",
    help="What low-bit weights and fused attention really cost and give in Vision Transformers.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProfileName = Annotated[str, typer.Argument(metavar="PROFILE", help="a name in profiles/: demo, paper, scratch")]
Root = Annotated[Path, typer.Option("--root", help="the project's folder", show_default="this folder")]
Reports = Annotated[
    Path | None, typer.Option("--reports", help="folder with records/, such as a reference run", show_default="reports/PROFILE")
]
HERE = Path()


def main() -> None:
    """Run the command line; an error meant for the user is one line on stderr and its class's exit code."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    if "DVC_STAGE" in os.environ:
        from lowbit_vit.study.lifeline import stop_with_dvc

        stop_with_dvc()
    try:
        app()
    except LowbitVitError as error:
        print(f"lowbit-vit: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _open(name: str, root: Path, reports: Path | None = None) -> tuple[Profile, Workspace]:
    workspace = Workspace(root=root.resolve(), profile=name, elsewhere=None if reports is None else reports.resolve())
    return load_profile(workspace.profile_file), workspace


@app.command(epilog="Example: lowbit-vit data demo")
def data(profile: ProfileName, root: Root = HERE) -> None:
    """Decode the profile's images once into arrays under data/prepared/PROFILE."""
    from lowbit_vit.data.prepare import prepare_dataset

    settings, workspace = _open(profile, root)
    dataset = prepare_dataset(settings.data, folder=workspace.data, root=workspace.root, workers=os.cpu_count() or 1)
    counts = ", ".join(f"{split} {len(images.labels)}" for split, images in dataset.eval_views.items())
    print(f"{dataset.name}: {dataset.num_classes} classes; images: {counts}; {workspace.data.relative_to(workspace.root)}")


@app.command(epilog="Example: lowbit-vit fetch flowers-102 --to data/raw")
def fetch(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="flowers-102, or a torchvision ViT: vit_l_16, vit_b_16, ...")],
    to: Annotated[Path, typer.Option("--to", help="folder to put it in")] = Path("data/raw"),
) -> None:
    """Download a data set or ImageNet weights, checked against the known size and hash; says on what terms they are.

    A download that was cut off goes on where it stopped. http_proxy, https_proxy and no_proxy are respected;
    LOWBIT_VIT_OFFLINE=1 forbids the network: then only what is there already is checked.
    """
    from lowbit_vit.data.download import fetch_flowers, fetch_weights
    from lowbit_vit.data.remote_files import WEIGHTS
    from lowbit_vit.errors import ConfigError

    if what != "flowers-102" and what not in WEIGHTS:
        raise ConfigError(f"fetch: {what!r} is not known; allowed: flowers-102, {', '.join(WEIGHTS)}")
    try:
        print(fetch_flowers(to) if what == "flowers-102" else fetch_weights(what, to))
    except KeyboardInterrupt:
        print("lowbit-vit: interrupted; what came is kept, run the same command again to go on", file=sys.stderr)
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
    from lowbit_vit.own_data.new_profile import STAGES, write_profile
    from lowbit_vit.schema.environment import visible_gpu

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


@app.command(epilog="Example: lowbit-vit backbone demo")
def backbone(profile: ProfileName, root: Root = HERE) -> None:
    """Train or convert the high-precision backbone, and adapt it for the post-training trials."""
    from lowbit_vit.trial.backbone import make_backbone

    settings, workspace = _open(profile, root)
    make_backbone(settings, workspace)


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
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.study.container import find_image
    from lowbit_vit.study.sweep import run_study

    settings, workspace = _open(profile, root)
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
    from lowbit_vit.analysis.scores import write_scores

    _run("sensitivity", profile, root, _Place(isolation, image, runtime, unpinned, card))
    settings, workspace = _open(profile, root)
    print(write_scores(settings, workspace).relative_to(workspace.root))


@app.command(epilog="Example: lowbit-vit estimate demo")
def estimate(profile: ProfileName, root: Root = HERE) -> None:
    """Estimate what quantizing each linear costs, cheaply: errors of weights and outputs, gradients; beside what is measured."""
    from lowbit_vit.schema.record import write_atomic
    from lowbit_vit.study.cells import cells
    from lowbit_vit.trial.estimates import estimate as find

    settings, workspace = _open(profile, root)
    found = find(cells(settings, "sensitivity")[0], settings.sensitivity.formats, workspace)
    write_atomic(workspace.estimates, (found.model_dump_json(indent=1) + "\n").encode())
    print(f"{len(found.linears)} estimates; {workspace.estimates.relative_to(workspace.root)}")


@app.command(epilog="Example: lowbit-vit allocate paper --budget-mib 200 --out plans/small.json")
def allocate(
    profile: ProfileName,
    *,
    budget_mib: Annotated[float | None, typer.Option("--budget-mib", help="weights at most so large: the least KL")] = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="latency at most so long: the least KL")] = None,
    max_flips: Annotated[float | None, typer.Option("--max-flips", help="at most so many flips in 1,000 images: the fewest bytes")] = None,
    units: Annotated[Literal["blocks", "modules"], typer.Option("--units", help="what takes a format of its own")] = "blocks",
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="that may be used, such as nf4; may be given again", show_default="all measured")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="of --budget-ms", show_default="the largest measured")] = None,
    execution: Annotated[Execution, typer.Option("--execution", help="of --budget-ms")] = "eager",
    pairs: Annotated[bool, typer.Option("--pairs", help="with how blocks interact two by two (profile key mixed.pairs)")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="the plan's file", show_default="plans/PROFILE-BUDGET.json")] = None,
    skip_list: Annotated[Path | None, typer.Option("--skip-list", help="also write BitsAndBytesConfig's arguments here, as JSON")] = None,
    root: Root = HERE,
) -> None:
    """Choose each block's format from what was measured: the best plan under a budget, with its proof.

    Without a budget: the plans that `mixed` runs, each within the bytes of sparing the first and last blocks.
    """
    import json

    from lowbit_vit.analysis.allocation import allocate_within, asked_budget, study_plans
    from lowbit_vit.analysis.results import load_results
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.report.allocation import plan_lines
    from lowbit_vit.schema.allocation import plan_files_json
    from lowbit_vit.schema.estimate import read_estimates
    from lowbit_vit.schema.record import write_atomic
    from lowbit_vit.study.resume import load_scores

    settings, workspace = _open(profile, root)
    scores, results = load_scores(workspace), load_results(workspace, "sensitivity")
    asked = asked_budget(mib=budget_mib, ms=budget_ms, flips=max_flips)
    if asked is None:
        if out is not None or skip_list is not None or formats or pairs:
            raise ConfigError("allocate: --out, --skip-list, --format and --pairs need a budget")
        if not workspace.estimates.exists():
            logging.getLogger(__name__).warning("allocate: no plans by gradients: run lowbit-vit estimate %s before", profile)
        estimates = read_estimates(workspace.estimates, profile=profile) if workspace.estimates.exists() else None
        plans = study_plans(settings, scores, results, estimates)
        write_atomic(workspace.plans, plan_files_json(plans))
        print("\n".join(line for plan in plans for line in plan_lines(plan)))
        print(workspace.plans.relative_to(workspace.root))
        return
    timed = [*load_results(workspace, "variants"), *load_results(workspace, "mixed")] if budget_ms is not None else []
    terms = _pair_terms(workspace, results) if pairs else ()
    plan = allocate_within(
        asked, settings, scores, results, timed=timed, units=units, formats=formats, batch=batch, execution=execution, pairs=terms
    )
    path = out or workspace.root / "plans" / f"{profile}-{plan.name}.json"
    write_atomic(path, (plan.model_dump_json(indent=1) + "\n").encode())
    print("\n".join(plan_lines(plan)))
    print(path)
    if skip_list is not None:
        write_atomic(skip_list, (json.dumps(plan.skip_list(settings.backbone.depth), indent=1) + "\n").encode())
        print(skip_list)


def _pair_terms(workspace: Workspace, sensitivity: "Sequence[Result]") -> "tuple[PairTerm, ...]":
    # Tables need polars, which a machine that only runs studies may lack.
    from lowbit_vit.analysis.pairs import pair_terms, pairs
    from lowbit_vit.analysis.results import load_results
    from lowbit_vit.errors import ConfigError

    terms = pair_terms(pairs(load_results(workspace, "mixed"), sensitivity))
    if not terms:
        where = f"profiles/{workspace.profile}.yaml and run lowbit-vit mixed {workspace.profile}"
        raise ConfigError(f"allocate: no pairs were measured; put mixed.pairs: 4 into {where}")
    return terms


@app.command(epilog="Example: lowbit-vit export demo plans/demo-mib-1.json exported")
def export(
    profile: ProfileName,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="a plan's file, or the label or trial_id of a cell with a record")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="new or empty folder; an earlier export in it is replaced")],
    root: Root = HERE,
) -> None:
    """Write one cell's model for use elsewhere: weights and card, which lowbit_vit.load and `predict` read."""
    from lowbit_vit.export.model_folder import export_model

    card = export_model(*_open(profile, root), plan, to)
    measured = (
        "not measured" if card.measured is None else f"Top-1 {100 * card.measured.test.top1:.2f} % on {card.measured.test.images} images"
    )
    print(f"{to}: {card.label}, {measured}; {sum(file.stat().st_size for file in to.iterdir()):,} bytes")


@app.command(epilog="Example: lowbit-vit predict exported rose.jpg tulip.jpg")
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="what lowbit-vit export wrote")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="files")],
    top: Annotated[int, typer.Option("--top", min=1, help="classes to print of each image")] = 5,
    device: Annotated[Device, typer.Option("--device", help="to run on")] = "cpu",
) -> None:
    """Print the most likely classes of images with their probabilities: a table, or where stdout is no terminal, lines with tabs."""
    from lowbit_vit.report.predictions import prediction_lines, prediction_table
    from lowbit_vit.trial.predictor import load

    found = load(model, device).predict(images)
    predictions = [(str(image), prediction.top(top)) for image, prediction in zip(images, found, strict=True)]
    if sys.stdout.isatty():
        Console().print(prediction_table(predictions))
    else:
        print(prediction_lines(predictions), end="")


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


@app.command(epilog="Example: lowbit-vit report demo")
def report(profile: ProfileName, root: Root = HERE, reports: Reports = None) -> None:
    """Build tables, figures and report.html from the records alone. Needs no torch."""
    from lowbit_vit.report.page import build_report

    settings, workspace = _open(profile, root, reports)
    print(build_report(settings, workspace))


@app.command(epilog="Example: lowbit-vit pack demo --to reports/reference/mine")
def pack(
    profile: ProfileName,
    *,
    to: Annotated[Path, typer.Option("--to", help="folder of the reference run; the files go to records/ in it")],
    add: Annotated[bool, typer.Option("--add", help="keep the cells that are packed there and are not among these records")] = False,
    root: Root = HERE,
    reports: Reports = None,
) -> None:
    """Write each study's records and per-image predictions as one small file, which is read like the records. Needs no torch."""
    from lowbit_vit.analysis.packing import pack_records

    settings, workspace = _open(profile, root, reports)
    for path in pack_records(settings, workspace, to, add=add):
        print(f"{path}: {path.stat().st_size:,} bytes")


@app.command(epilog="Example: lowbit-vit show demo")
def show(
    profile: ProfileName,
    root: Root = HERE,
    reports: Reports = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown, for a README or an issue")] = False,
) -> None:
    """Print the result table and where the page is."""
    from lowbit_vit.analysis.results import require_one_origin
    from lowbit_vit.errors import DataError
    from lowbit_vit.report.terminal import result_markdown, result_table
    from lowbit_vit.schema.packed import study_records

    settings, workspace = _open(profile, root, reports)
    folder = workspace.records("variants")
    records = study_records(folder)
    if not records:
        raise DataError(f"{folder}: no records; run dvc repro report@{profile} first")
    require_one_origin(records, folder.parent)
    arms = [arm.label for arm in settings.variants.arms]
    if markdown:
        print(result_markdown(records, arms=arms), end="")
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(result_table(records, arms=arms))
    page = workspace.reports / "report.html"
    if page.is_file():
        console.print(f"The page: {page}", soft_wrap=True)
    else:
        console.print(f"No page yet: lowbit-vit report {profile}")


@app.command(epilog="Example: lowbit-vit audit paper/table1.csv --context paper/context.yaml")
def audit(
    file: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="a published table of results, its cells as printed")],
    context: Annotated[
        Path | None, typer.Option("--context", help="YAML: what is known beside the table, see docs/audit.md", show_default="none")
    ] = None,
    every_row: Annotated[bool, typer.Option("--rows", help="one line a finding, not one a check")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the findings as Markdown")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print every finding as JSON, with all numbers")] = False,
) -> None:
    """Check a published table of results against itself: arithmetic alone, no run.

    Exit code 1 if something in it is impossible in every reading, 0 if not.
    """
    from lowbit_vit.analysis.audit import audit as find
    from lowbit_vit.analysis.audit import load_context, load_table
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.report.findings import findings_json, findings_markdown, findings_table

    if markdown and as_json:
        raise ConfigError("audit: --markdown and --json are two forms of one output; give one of them")
    table = load_table(file)
    findings = find(table, None if context is None else load_context(context))
    if as_json:
        print(findings_json(findings), end="")
    elif markdown:
        print(findings_markdown(findings, table, every_row=every_row), end="")
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(findings_table(findings, table, title=f"{file}: the audit", every_row=every_row))
    if any(finding.hard for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: lowbit-vit claims demo")
def claims(
    profile: ProfileName,
    root: Root = HERE,
    reports: Reports = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print a Markdown table")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything, as JSON")] = False,
) -> None:
    """Judge every claim of paper/claims.yaml on the profile's records. Needs no torch."""
    from lowbit_vit.analysis.claims import ledger
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.report.claims import claims_json, claims_markdown, claims_table

    if markdown and as_json:
        raise ConfigError("claims: --markdown and --json are two forms of one output; give one of them")
    judged = ledger(*_open(profile, root, reports))
    if markdown or as_json:
        print(claims_markdown(judged) if markdown else claims_json(judged), end="")
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(claims_table(judged))


@app.command(epilog="Example: lowbit-vit artifact")
def artifact(root: Root = HERE) -> None:
    """Write ARTIFACT.md from the ledger and the committed reference runs. Needs no torch."""
    from lowbit_vit.report.artifact import artifact_markdown
    from lowbit_vit.schema.record import write_atomic

    write_atomic(root.resolve() / "ARTIFACT.md", artifact_markdown(root.resolve()).encode())
    print("ARTIFACT.md")


@app.command(epilog="Example: lowbit-vit compare demo reports/reference/cpu-2026-11")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a profile, or a folder with records/, such as a reference run")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    root: Root = HERE,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="also write every arm of every study to this file")] = None,
) -> None:
    """Put two runs side by side: paired tests of accuracy where the images are the same, latency where the card is."""
    from lowbit_vit.analysis.compare import compare_sides
    from lowbit_vit.analysis.sides import load_side
    from lowbit_vit.report.comparison import comparison_markdown, comparison_notes, comparison_table
    from lowbit_vit.schema.config import STUDIES
    from lowbit_vit.schema.record import write_atomic

    first, second = load_side(a, root=root.resolve()), load_side(b, root=root.resolve())
    margin = first.profile.statistics.margin
    frame = compare_sides(first, second, studies=STUDIES, margin=margin)
    if csv is not None:
        write_atomic(csv, frame.write_csv().encode())
    if markdown:
        print(comparison_markdown(frame, first, second, margin=margin), end="")
        return
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(comparison_table(frame, first, second, margin=margin))
    for note in comparison_notes(frame, first, second):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


@app.command(epilog="Example: lowbit-vit check demo reports/reference/cpu-2026-11")
def check(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a profile, or a folder with records/")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="the same, such as a reference run")],
    root: Root = HERE,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="also write the lines to this file")] = None,
) -> None:
    """Say number by number whether a run repeats a reference within tolerance; exit 1 where it does not."""
    from lowbit_vit.analysis.check import check_frame, check_run, misses
    from lowbit_vit.analysis.sides import load_side
    from lowbit_vit.errors import OutOfTolerance
    from lowbit_vit.report.comparison import check_markdown, check_summary, check_table
    from lowbit_vit.schema.record import write_atomic

    lines = check_run(load_side(run, root=root.resolve()), load_side(reference, root=root.resolve()))
    if csv is not None:
        write_atomic(csv, check_frame(lines).write_csv().encode())
    if markdown:
        print(check_markdown(lines), end="")
    else:
        Console(width=None if sys.stdout.isatty() else 180).print(check_table(lines))
    off = misses(lines)
    if off:
        raise OutOfTolerance(f"{check_summary(lines)}; the first that is off: {off[0].name} (see its line in the table)")


@app.command(epilog="Example: lowbit-vit checkpoints demo")
def checkpoints(
    profile: Annotated[str | None, typer.Argument(metavar="[PROFILE]", help="a name in profiles/", show_default="all of them")] = None,
    root: Root = HERE,
) -> None:
    """List backbones and adapters with how they were made, Top-1 and sha256; say which are missing or damaged."""
    from lowbit_vit.analysis.checkpoints import list_checkpoints
    from lowbit_vit.errors import DataError
    from lowbit_vit.report.checkpoints import checkpoint_table

    names = [profile] if profile is not None else sorted(file.stem for file in (root / "profiles").glob("*.yaml"))
    found = [checkpoint for name in names for checkpoint in list_checkpoints(*_open(name, root))]
    Console(width=None if sys.stdout.isatty() else 160).print(checkpoint_table(found))
    damaged = [checkpoint for checkpoint in found if checkpoint.state == "damaged"]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].file}: {damaged[0].problem}{more}")


@app.command(epilog="Example: lowbit-vit config demo")
def config(profile: ProfileName, root: Root = HERE) -> None:
    """Print the resolved profile, every value with what it means."""
    from lowbit_vit.schema.explain import explain

    settings, _ = _open(profile, root)
    print(explain(settings), end="")


@app.command(epilog="Example: lowbit-vit doctor demo")
def doctor(profile: Annotated[str, typer.Argument(metavar="[PROFILE]")] = "demo", root: Root = HERE) -> None:
    """Say what this machine can run, arm by arm, and why not."""
    from lowbit_vit.report.terminal import doctor_table

    settings, _ = _open(profile, root)
    Console(width=None if sys.stdout.isatty() else 140).print(doctor_table(settings))


@app.command(epilog="Example: lowbit-vit trial trial.json --out reports/one")
def trial(
    file: Annotated[Path, typer.Argument(metavar="TRIAL.json", help="one resolved trial, as in a record's key trial")],
    out: Annotated[Path, typer.Option("--out", help="folder for the record and its predictions")],
    root: Root = HERE,
) -> None:
    """Run one trial in this process and write its record."""
    from lowbit_vit.schema.config import load_trial
    from lowbit_vit.study.lifeline import stop_with_parent

    stop_with_parent()
    settings = load_trial(file)
    # After the file is read: this imports torch, and a file that is not there is said at once.
    from lowbit_vit.trial.run import record_trial

    record = record_trial(settings, Workspace(root=root.resolve(), profile=settings.profile), out)
    print(f"{record.trial_id}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
    if record.status in ("failed", "oom", "timeout"):
        sys.exit(5)


@app.command(epilog="Example: lowbit-vit scan trials.json --out reports/scan")
def scan(
    file: Annotated[Path, typer.Argument(metavar="TRIALS.json", help="a JSON list of accuracy-only trials on one backbone")],
    out: Annotated[Path, typer.Option("--out", help="folder for the records and predictions")],
    root: Root = HERE,
) -> None:
    """Run many accuracy-only trials in this process on one resident model."""
    from lowbit_vit.schema.config import load_trials
    from lowbit_vit.study.lifeline import stop_with_parent

    stop_with_parent()
    trials = load_trials(file)
    # After the file is read: this imports torch, and a file that is not there is said at once.
    from lowbit_vit.trial.scan import run_scan

    records = run_scan(trials, Workspace(root=root.resolve(), profile=trials[0].profile), out)
    print(f"{len(records)} trials done")


if __name__ == "__main__":
    main()
