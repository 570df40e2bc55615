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

    def flips(self, reference: "Answers") -> npt.NDArray[np.bool_]:
        """Which images' most likely class is not the reference's, bool [N]."""
        found: npt.NDArray[np.bool_] = self.best != reference.best
        return found

    @property
    def report_kl(self) -> npt.NDArray[np.float64] | None:
        """KL of the report half's images; float64, for a mean of float32 would depend on numpy's order of summation."""
        return None if self.kl is None else self.kl[~self.selection].astype(np.float64)


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
