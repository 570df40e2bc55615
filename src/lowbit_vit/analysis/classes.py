"""The variants study class by class, under the classes' own names: where each arm loses images, and to what.

Counts are summed over an arm's seeds. An arm's losses are counted against the first arm's trial with the same seed,
image by image, as in `arms`.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.results import Result

SCHEMA: dict[str, Any] = {
    "order": pl.Int64,
    "arm": pl.String,
    "label": pl.Int64,
    "class": pl.String,
    "seeds": pl.Int64,
    "images": pl.Int64,
    "correct": pl.Int64,
    "top1": pl.Float64,
    "lost": pl.Int64,
    "gained": pl.Int64,
    "taken_for": pl.String,
    "taken_for_images": pl.Int64,
}


def classes(results: Sequence[Result], *, arms: Sequence[str]) -> pl.DataFrame:
    """One row for each arm and class of the test images, in the order of `arms` (the profile's labels) and of the labels.

    `lost` and `gained` count images that the baseline has right and the arm wrong, and the other way round; null for the
    baseline and where there is none on the same images. `taken_for` is the class that most of a class's wrong images were
    taken for, `taken_for_images` how many; null where none was wrong. A record without class names shows their numbers.
    """
    place = {label: index for index, label in enumerate(arms)}
    done = [result for result in results if result.predictions is not None]
    baselines = {result.record.trial.seed: result for result in done if result.record.trial.label in arms[:1]}
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for result in done:
        by_arm[result.record.trial.label].append(result)
    rows = [
        {"order": place.get(arm, len(place)), "arm": arm, "seeds": len(members), **row}
        for arm, members in by_arm.items()
        for row in _class_rows(members, [baselines.get(member.record.trial.seed) for member in members])
    ]
    return pl.DataFrame(rows, schema=SCHEMA).sort("order", "arm", "label")


def most_lost(frame: pl.DataFrame, *, most: int = 3) -> pl.DataFrame:
    """For each arm, the classes that lose most images against the baseline, at most `most`, none without a loss.

    Args:
        frame: as `classes` returns it.
        most: rows an arm.
    """
    lossy = frame.filter(pl.col("lost") > 0).sort("order", "arm", "lost", "label", descending=[False, False, True, False])
    return lossy.group_by("order", "arm", maintain_order=True).head(most)


def _class_rows(members: Sequence[Result], baselines: Sequence[Result | None]) -> list[dict[str, Any]]:
    """The classes of one arm; `baselines` are those of its members, in their order."""
    label, best, against = [], [], []
    for member, baseline in zip(members, baselines, strict=True):
        if member.predictions is None:
            continue
        label.append(member.predictions.label.astype(np.int64))
        best.append(member.predictions.best.astype(np.int64))
        comparable = baseline is not None and baseline is not member
        against.append(baseline.predictions if comparable and baseline is not None else None)
    labels, predicted = np.concatenate(label), np.concatenate(best)
    right = labels == predicted
    reference = None
    if all(predictions is not None for predictions in against):
        reference = np.concatenate([predictions.right for predictions in against if predictions is not None])
    names = _names(members)
    return [
        _class_row(number, names, own=labels == number, right=right, predicted=predicted, reference=reference)
        for number in np.unique(labels).tolist()
    ]


def _class_row(
    number: int,
    names: dict[int, str],
    *,
    own: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.int64],
    reference: npt.NDArray[np.bool_] | None,
) -> dict[str, Any]:
    wrong = np.bincount(predicted[own & ~right])
    taken = int(wrong.argmax()) if wrong.size else None
    return {
        "label": number,
        "class": names.get(number, str(number)),
        "images": int(own.sum()),
        "correct": int((own & right).sum()),
        "top1": float(right[own].mean()),
        "lost": None if reference is None else int((own & reference & ~right).sum()),
        "gained": None if reference is None else int((own & ~reference & right).sum()),
        "taken_for": None if taken is None else names.get(taken, str(taken)),
        "taken_for_images": None if taken is None else int(wrong[taken]),
    }


def _names(members: Sequence[Result]) -> dict[int, str]:
    """Class names by label."""
    for member in members:
        evaluation = member.record.evaluation
        if evaluation is not None:
            return dict(enumerate(evaluation.class_names))
    return {}
