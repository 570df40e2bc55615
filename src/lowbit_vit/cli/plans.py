"""Verbs for plans and the models made by them: allocate, recommend, export, predict."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lowbit_vit.cli.options import HERE, ProfileName, Reports, Root, console, open_profile
from lowbit_vit.errors import ConfigError, DataError, escape_controls
from lowbit_vit.schema.config import Device, Execution, Profile
from lowbit_vit.schema.workspace import Workspace

if TYPE_CHECKING:
    from lowbit_vit.analysis.programme import Budget
    from lowbit_vit.schema.allocation import PlanFile

app = typer.Typer()

BudgetMib = Annotated[float | None, typer.Option("--budget-mib", help="weights at most so large: the least KL")]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="latency at most so long: the least KL")]
MaxFlips = Annotated[float | None, typer.Option("--max-flips", help="at most so many flips in 1,000 images: the fewest bytes")]
UnitsOf = Annotated[Literal["blocks", "modules"], typer.Option("--units", help="what takes a format of its own")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="that may be used, such as nf4; may be given again", show_default="all measured")
]
Batch = Annotated[int | None, typer.Option("--batch", help="of the latency", show_default="the largest measured")]
ExecutionOf = Annotated[Execution, typer.Option("--execution", help="of the latency")]
Pairs = Annotated[bool, typer.Option("--pairs", help="with how blocks interact two by two (profile key mixed.pairs)")]


@app.command(epilog="Example: lowbit-vit allocate paper --budget-mib 200 --out plans/small.json")
def allocate(
    profile: ProfileName,
    *,
    budget_mib: BudgetMib = None,
    budget_ms: BudgetMs = None,
    max_flips: MaxFlips = None,
    units: UnitsOf = "blocks",
    formats: Formats = None,
    batch: Batch = None,
    execution: ExecutionOf = "eager",
    pairs: Pairs = False,
    out: Annotated[Path | None, typer.Option("--out", help="the plan's file", show_default="plans/PROFILE-BUDGET.json")] = None,
    skip_list: Annotated[Path | None, typer.Option("--skip-list", help="also write BitsAndBytesConfig's arguments here, as JSON")] = None,
    root: Root = HERE,
) -> None:
    """Choose each block's format from what was measured: the best plan under a budget, with its proof.

    Without a budget: the plans that `mixed` runs, each within the bytes of sparing the first and last blocks.
    """
    from lowbit_vit.analysis.allocation import asked_budget, study_plans
    from lowbit_vit.analysis.block_cells import gather_cells
    from lowbit_vit.analysis.results import load_results
    from lowbit_vit.schema.allocation import plan_files_json
    from lowbit_vit.schema.record import write_atomic
    from lowbit_vit.schema.stage_documents import read_estimates
    from lowbit_vit.study.resume import load_scores

    settings, workspace = open_profile(profile, root)
    asked = asked_budget(mib=budget_mib, ms=budget_ms, flips=max_flips)
    if asked is None:
        if out is not None or skip_list is not None or formats or pairs:
            raise ConfigError("allocate: --out, --skip-list, --format and --pairs need a budget")
        scores, cells = load_scores(workspace), gather_cells(load_results(workspace, "sensitivity"))
        if not workspace.estimates.exists():
            logging.getLogger(__name__).warning("allocate: no plans by gradients: run lowbit-vit estimate %s before", profile)
        estimates = read_estimates(workspace.estimates, profile=profile) if workspace.estimates.exists() else None
        plans = study_plans(settings, scores, cells, estimates)
        write_atomic(workspace.plans, plan_files_json(plans))
        print("\n".join(line for plan in plans for line in _plan_lines(plan)))
        print(workspace.plans.relative_to(workspace.root))
        return
    plan = _best_plan(settings, workspace, asked, units=units, formats=formats, batch=batch, execution=execution, pairs=pairs)
    path = out or workspace.root / "plans" / f"{profile}-{plan.name}.json"
    write_atomic(path, (plan.model_dump_json(indent=1) + "\n").encode())
    print("\n".join(_plan_lines(plan)))
    print(path)
    if skip_list is not None:
        write_atomic(skip_list, (json.dumps(plan.skip_list(settings.backbone.depth), indent=1) + "\n").encode())
        print(skip_list)


@app.command(epilog="Example: lowbit-vit recommend demo --budget-mib 0.3")
def recommend(
    profile: ProfileName,
    *,
    budget_mib: BudgetMib = None,
    budget_ms: BudgetMs = None,
    max_flips: MaxFlips = None,
    units: UnitsOf = "blocks",
    formats: Formats = None,
    batch: Batch = None,
    execution: ExecutionOf = "eager",
    pairs: Pairs = False,
    root: Root = HERE,
    reports: Reports = None,
) -> None:
    """Say in one sentence which model to deploy, what that rests on, and the command that exports it.

    Within a budget: the plan of `allocate`, or the best of the models that were run where the sensitivity study was not. Without: the
    smallest that was run that changes no more predictions than the profile's statistics.margin.
    """
    from lowbit_vit.analysis.allocation import asked_budget
    from lowbit_vit.analysis.programme import Budget
    from lowbit_vit.analysis.recommendation import as_planned, choose, measured_models
    from lowbit_vit.analysis.results import load_all_results
    from lowbit_vit.report.recommendation import evidence, planned_evidence, sentence, why_none, without_mixed
    from lowbit_vit.schema.record import write_atomic

    settings, workspace = open_profile(profile, root, reports)
    asked = asked_budget(mib=budget_mib, ms=budget_ms, flips=max_flips)
    results = load_all_results(workspace)
    models = measured_models(settings, results, batch=batch, execution=execution)
    if not any(model.low_bit for model in models):
        raise DataError(f"recommend: {why_none(settings)}")
    studied = workspace.sensitivity.exists()
    if asked is None or not studied:
        if formats or pairs or units != "blocks":
            raise ConfigError("recommend: --units, --format and --pairs need a budget and the sensitivity study")
        limit = asked or Budget("flips", 1000 * settings.statistics.margin)
        model = choose(models, limit)
        said = [*evidence(settings, model, limit), *([] if studied else [without_mixed(settings)])]
    else:
        plan = _best_plan(settings, workspace, asked, units=units, formats=formats, batch=batch, execution=execution, pairs=pairs)
        path = f"plans/{profile}-{plan.name}.json"
        write_atomic(workspace.root / path, (plan.model_dump_json(indent=1) + "\n").encode())
        model = as_planned(plan, settings, results, models, batch=batch, execution=execution)
        said = planned_evidence(settings, plan, path, model)
    print(sentence(model), *(f"  {line.about}: {line.text}" for line in said), sep="\n")


@app.command(epilog="Example: lowbit-vit export demo plans/demo-mib-1.json exported")
def export(
    profile: ProfileName,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="a plan's file, or the label or trial_id of a cell with a record")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="new or empty folder; an earlier export in it is replaced")],
    root: Root = HERE,
) -> None:
    """Write one cell's model for use elsewhere: weights and model card, which lowbit_vit.load and `predict` read."""
    from lowbit_vit.export import export_model

    card = export_model(*open_profile(profile, root), plan, to)
    measured = (
        "not measured" if card.measured is None else f"Top-1 {100 * card.measured.test.top1:.2f} % on {card.measured.test.images} images"
    )
    print(f"{to}: {card.label}, {measured}; {sum(file.stat().st_size for file in to.iterdir()):,} bytes")


@app.command(epilog="Example: lowbit-vit predict exported rose.jpg tulip.jpg")
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="what lowbit-vit export wrote")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="files, folders, or quoted patterns such as 'photos/**/*.jpg'")],
    top: Annotated[int, typer.Option("--top", min=1, help="classes to print of each image")] = 5,
    device: Annotated[Device, typer.Option("--device", help="to run on")] = "cpu",
    execution: Annotated[Execution, typer.Option("--execution", help="how a forward is launched")] = "eager",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
) -> None:
    """Print the most likely classes of images with their probabilities: a table, or where stdout is no terminal, lines with tabs.

    Images that cannot be read are listed on stderr after the others' classes; the exit code is then 3.
    """
    from lowbit_vit.data.folder import find_images
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.terminal import prediction_json, prediction_lines, prediction_table
    from lowbit_vit.trial.predictor import Faults, load

    predictor = load(model, device, execution=execution)
    files, faults = find_images(images)
    unread: Faults = {}
    found = predictor.predict(files, faults=unread) if files else []
    read = [str(file) for place, file in enumerate(files) if place not in unread]
    predictions = [(file, prediction.top(top)) for file, prediction in zip(read, found, strict=True)]
    faults += [(str(files[place]), str(fault).removeprefix(escape_controls(f"{files[place]}: "))) for place, fault in unread.items()]
    if as_json:
        print(prediction_json(predictions, faults), end="")
    elif not sys.stdout.isatty():
        print(prediction_lines(predictions), end="")
    elif predictions:
        console().print(to_terminal(prediction_table(predictions)))
    sys.stdout.flush()
    for image, reason in faults[:-1]:
        print(f"lowbit-vit: {escape_controls(f'{image}: {reason}')}", file=sys.stderr)
    if faults:
        image, reason = faults[-1]
        raise DataError(f"{image}: {reason}; images not predicted: {len(faults)} of {len(faults) + len(predictions)}")


def _best_plan(
    settings: Profile,
    workspace: Workspace,
    budget: "Budget",
    *,
    units: Literal["blocks", "modules"],
    formats: list[str] | None,
    batch: int | None,
    execution: Execution,
    pairs: bool,
) -> "PlanFile":
    """The best plan within a budget, from the records of the profile."""
    from lowbit_vit.analysis.allocation import allocate_within
    from lowbit_vit.analysis.block_cells import gather_cells
    from lowbit_vit.analysis.mixed import block_interactions, pair_terms
    from lowbit_vit.analysis.results import load_results
    from lowbit_vit.study.resume import load_scores

    scores, cells = load_scores(workspace), gather_cells(load_results(workspace, "sensitivity"))
    timed = [*load_results(workspace, "variants"), *load_results(workspace, "mixed")] if budget.quantity == "ms" else []
    terms = pair_terms(block_interactions(gather_cells(load_results(workspace, "mixed")), cells)) if pairs else ()
    if pairs and not terms:
        name = settings.name
        raise ConfigError(f"allocate: no pairs were measured; put mixed.pairs: 4 into profiles/{name}.yaml and run lowbit-vit mixed {name}")
    return allocate_within(
        budget, settings, scores, cells, timed=timed, units=units, formats=formats, batch=batch, execution=execution, pairs=terms
    )


def _plan_lines(plan: "PlanFile") -> list[str]:
    """What each format holds, what is predicted, and the solver's proof."""
    by_format: dict[str, list[str]] = {}
    for entry in plan.entries:
        by_format.setdefault(entry.weights.name, []).append(entry.unit.removeprefix("blocks."))
    lines = [f"{plan.name}: within {plan.budget}" if plan.budget else plan.name]
    lines += [f"  {name}: {' '.join(units)}" for name, units in sorted(by_format.items())]
    if plan.predicted is not None:
        predicted = plan.predicted
        ms = "" if predicted.ms is None else f", {predicted.ms:.3f} ms"
        low_high = predicted.flips_interval
        within = "" if low_high is None else f" ({low_high[0]:.3g} to {low_high[1]:.3g})"
        flips = f"{predicted.flips_per_1000:.3g}{within} flips in 1,000 images"
        lines.append(f"  predicted: {predicted.weight_bytes / 2**20:.4f} MiB, KL {predicted.kl:.4g} nats, {flips}{ms}")
    if plan.optimum is not None:
        optimum = plan.optimum
        lines.append(f"  least {optimum.minimized} {optimum.value:.6g}, bound {optimum.bound:.6g}, gap {optimum.gap:.2g}")
    return lines
