"""What analyses read of a trial's per-image predictions, be they its own file or packed with those of its study. No torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowbit_vit.schema.record import Predictions


@dataclass(frozen=True)
class Answers:
    """Of N test images, in the test split's order.

    Attributes:
        label: uint16 [N].
        best: uint16 [N], the most likely class.
        among5: bool [N], whether the label is among the five most likely classes.
        margin: float32 [N], the label's logit minus the best other.
        selection: bool [N], true in the selection half, false in the report half.
        kl: float32 [N], KL(high precision || this) in nats; None where no reference was at hand.
    """

    label: npt.NDArray[np.uint16]
    best: npt.NDArray[np.uint16]
    among5: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float32]
    selection: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float32] | None

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which images the most likely class gets right, bool [N]."""
        found: npt.NDArray[np.bool_] = self.best == self.label
        return found


def answers_of(predictions: Predictions) -> Answers:
    """The same of a predictions file."""
    return Answers(
        label=predictions.label,
        best=predictions.top5[:, 0],
        among5=(predictions.top5 == predictions.label[:, None]).any(axis=1),
        margin=predictions.margin,
        selection=predictions.selection,
        kl=predictions.kl,
    )
