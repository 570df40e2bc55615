"""Many accuracy-only cells on one resident model: what makes the sensitivity and mixed studies affordable.

Cells that differ by their rules alone share the data, the fp32 weights, the high-precision logits and every converted block: a
block is converted once in each set of formats and then put in and out of one working model. Each cell still is one record,
assembled from the same parts as in `run_trial`, with the same predictions bit for bit.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from lowbit_vit.data.arrays import Dataset
from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.precision import apply_plan, audit, compute_dtype, convert_block, matmul_mode
from lowbit_vit.model.vit import VisionTransformer, encoder_linears
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.record import Record, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.evaluate import Logits, evaluate
from lowbit_vit.trial.run import (
    Origin,
    Stopwatch,
    check_available,
    high_precision_logits,
    load_backbone,
    load_data,
    model_facts,
    record_failure,
    success,
)

log = logging.getLogger(__name__)


def run_scan(trials: Sequence[Trial], workspace: Workspace, out: Path) -> list[Record]:
    """Run accuracy-only trials in this process; each record is written as soon as its cell is done.

    A cell that raises gets its record (skipped, oom, failed) as from `record_trial`, and the others go on.

    Args:
        trials: with adaptation none or ptq, eager, without measurement; any mixture of weights and kernels.
        workspace: of their profile.
        out: folder for records and predictions.

    Returns:
        One record a trial, in the order of `trials`.

    Raises:
        ConfigError: a trial cannot be scanned: it trains, measures, or is captured or compiled.
        DataError: a record could not be written.
    """
    for trial in trials:
        if trial.adaptation == "qlora" or trial.measurement is not None or trial.execution != "eager":
            raise ConfigError(
                f"scan: {trial.label}: only accuracy-only, eager trials without training can be scanned; use lowbit-vit trial"
            )
    records: dict[str, Record] = {}
    for _, group in groupby(sorted(trials, key=_resident), key=_resident):
        for record in _scan_group(list(group), workspace, out):
            records[record.trial_id] = record
    return [records[trial.trial_id] for trial in trials]


def _resident(trial: Trial) -> str:
    """What cells must share to run on one resident model: everything but the plan's rules and what identifies the cell."""
    bare = trial.model_copy(update={"plan": Plan(compute_dtype=trial.plan.compute_dtype)})
    return bare.model_dump_json(exclude={"label", "limits", "paper_row"})


def _scan_group(trials: list[Trial], workspace: Workspace, out: Path) -> Iterator[Record]:
    """Run cells that share a resident model."""
    first = trials[0]
    try:
        check_available(first)
        with matmul_mode(first.plan):
            dataset = load_data(first, workspace)
            model, origin = load_backbone(first, workspace, dataset)
            reference_logits = high_precision_logits(first, workspace, dataset) if first.study != "variants" else None
        resident = Resident(model, origin, first)
    except Exception as error:  # noqa: BLE001  (every cell of the group gets its record)
        yield from [record_failure(error, trial, out) for trial in trials]
        return
    for trial in trials:
        try:
            yield _scan_cell(resident, trial, dataset, reference_logits, out)
        except Exception as error:  # noqa: BLE001  (as record_trial)
            yield record_failure(error, trial, out)


def _scan_cell(resident: "Resident", trial: Trial, dataset: Dataset, reference_logits: Logits | None, out: Path) -> Record:
    clock = Stopwatch()
    with clock.part("quantize"):
        model = resident.with_plan(trial.plan)
    with clock.part("count"):
        facts = model_facts(model, trial, origin=resident.origin, parameters=resident.parameters, trained=False)
    with clock.part("evaluate"), matmul_mode(trial.plan):
        ready = partial(prepare, model, trial.execution)
        evaluation, predictions = evaluate(ready, dataset, trial, dtype=compute_dtype(trial.plan), reference_logits=reference_logits)
    record = success(trial, origin=resident.origin, facts=facts, evaluation=evaluation, clock=clock)
    write_record(record, out, predictions)
    return record


class Resident:
    """The fp32 weights, every block converted so far, and the one working model whose blocks are swapped."""

    def __init__(self, model: VisionTransformer, origin: Origin, trial: Trial) -> None:
        self.origin = origin
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._source = model
        self._dtype: torch.dtype = compute_dtype(trial.plan)
        self._working = copy.deepcopy(model)
        apply_plan(self._working, Plan(compute_dtype=trial.plan.compute_dtype))
        self._converted: dict[tuple[int, str], nn.Module] = {}

    def with_plan(self, plan: Plan) -> VisionTransformer:
        """The working model with every block in the plan's formats; valid until the next call.

        Raises:
            ConfigError: a pattern of the plan matches nothing.
            LowbitVitError: the model does not hold what the plan says.
        """
        formats = plan.resolve(encoder_linears(self._source))
        for index, block in enumerate(self._source.blocks):
            prefix = f"blocks.{index}."
            wanted = {name.removeprefix(prefix): weights for name, weights in formats.items() if name.startswith(prefix)}
            key = index, repr(wanted)
            if key not in self._converted:
                self._converted[key] = convert_block(block, wanted, self._dtype).eval()
            self._working.blocks[index] = self._converted[key]
        found = audit(self._working).by_format
        expected: dict[str, int] = {}
        for weights in formats.values():
            expected[weights.name] = expected.get(weights.name, 0) + 1
        if found != expected:
            raise LowbitVitError(f"plan {plan.name}: the model holds {found}, the plan says {expected}")
        return self._working.eval()
