"""The cells of the sensitivity or the mixed study, gathered once: image by image as arrays, and as rows of a frame.

Blocks are chosen on the selection half of the test images, so what a row says of accuracy, KL and flips is of the report half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.programme import MIB
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import compare, wilson
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import CellRole, Reference, label_of
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import ModelFacts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Half:
    """One half of the test images, as every cell sees it.

    Attributes:
        right: bool [cells, images], whether the most likely class is the label.
        flips: float64 [cells, images], 1 where the most likely class is not the high-precision model's, else 0; NaN without that model.
        kl: float64 [cells, images], KL(high precision || cell) in nats.
        margin: float64 [cells, images], the label's logit minus the best other.
    """

    right: npt.NDArray[np.bool_]
    flips: Floats
    kl: Floats
    margin: Floats


@dataclass(frozen=True)
class BlockCells:
    """The cells of one study; a cell that plays several parts is there for each of them.

    Attributes:
        parts: every part with its result, in the order of the records.
        place: the row of each part in the arrays, of those that have predictions.
        selection: the half that blocks are chosen on.
        report: the other half.
    """

    parts: tuple[tuple[CellRole, Result], ...]
    place: dict[CellRole, int]
    selection: Half
    report: Half

    @property
    def models(self) -> dict[CellRole, ModelFacts]:
        """Sizes and weights of the cells that succeeded."""
        return {role: result.record.model for role, result in self.parts if result.record.model is not None}


def gather_cells(results: Sequence[Result]) -> BlockCells:
    """The cells of one study, whose predictions are of the same images.

    Raises:
        DataError: predictions without KL.
    """
    parts = tuple((role, result) for result in results for role in result.record.trial.roles)
    found = {role: result.predictions for role, result in parts if result.predictions is not None}
    for role, predictions in found.items():
        if predictions.kl is None:
            raise DataError(f"{label_of(role)}: its predictions hold no KL; delete its record and run the study again")
    halves = [_half(list(found.values()), found.get(Reference()), selection=selection) for selection in (True, False)]
    return BlockCells(parts, {role: place for place, role in enumerate(found)}, *halves)


def _half(cells: Sequence[Predictions], high: Predictions | None, *, selection: bool) -> Half:
    if not cells:
        nothing = np.zeros((0, 1))  # one image, so that a mean over images is defined
        return Half(nothing.astype(np.bool_), nothing, nothing, nothing)
    images = cells[0].selection == selection
    # float64: a mean of float32 would depend on numpy's order of summation.
    kl, margin = (np.stack([getattr(cell, name)[images] for cell in cells]).astype(np.float64) for name in ("kl", "margin"))
    best = np.stack([cell.best[images] for cell in cells])
    flips = np.full(best.shape, np.nan) if high is None else (best != high.best[images]).astype(np.float64)
    return Half(right=best == cells[0].label[images], flips=flips, kl=kl, margin=margin)


# What the part is and what the cell is; then what came of it.
_PART: dict[str, type] = {"kind": str, "weights": str, "block": int, "module": str, "k": int, "index": int}
_PART |= {"label": str, "weight_bytes": int, "flips": int}
_OUTCOME: dict[str, type] = {"status": str, "reason": str, "images": int, "top1": float, "top1_low": float, "top1_high": float}
_OUTCOME |= {"kl": float, "lost": int, "gained": int, "difference": float, "difference_low": float, "difference_high": float}
_OUTCOME |= {"p_value": float, "weight_mib": float, "file_mib": float, "trial_id": str}
_COLUMNS = _PART | _OUTCOME
OUTCOME = tuple(_OUTCOME)


def cell_rows(cells: BlockCells, *, against: CellRole | None = None) -> pl.DataFrame:
    """One row a part, in the order of `cells.parts`; nulls for what there is not.

    Flips are counted, KL is a mean in nats, Top-1 has Wilson's interval, and its difference from the cell `against` is paired.
    """
    baseline = cells.report.right[cells.place[against]] if against in cells.place else None
    baseline_id = next((result.record.trial_id for role, result in cells.parts if role == against), None)
    rows: list[dict[str, object]] = []
    for role, result in cells.parts:
        record, model, place = result.record, result.record.model, cells.place.get(role)
        row = {**role.model_dump(include={*_COLUMNS}), "label": record.trial.label}
        row |= {"status": record.status, "reason": record.reason, "trial_id": record.trial_id}
        if model is not None:
            sizes = {"weight_mib": model.weight_bytes / MIB, "file_mib": model.file_bytes / MIB}
            row |= {"weight_bytes": model.weight_bytes, **sizes}
        if place is not None:
            right, flips = cells.report.right[place], float(cells.report.flips[place].sum())
            interval = wilson(int(right.sum()), len(right))
            row |= {"images": len(right), "top1": float(right.mean()), "top1_low": interval.low, "top1_high": interval.high}
            row |= {"kl": float(cells.report.kl[place].mean()), "flips": None if np.isnan(flips) else int(flips)}
            if baseline is not None and record.trial_id != baseline_id:
                row |= compare(baseline, right).columns()
        rows.append(row)
    return pl.DataFrame(rows, schema=_COLUMNS)
