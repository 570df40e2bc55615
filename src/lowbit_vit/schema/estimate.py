"""Cheap estimates of what quantizing each linear costs, made without evaluating a quantized model: the document and its names.

Written by the `estimate` stage, read by the analysis, which says how well each estimator ranks what was measured. No torch.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from lowbit_vit.errors import DataError
from lowbit_vit.schema.plan import Frozen
from lowbit_vit.schema.stage_documents import read_stage_document

Estimator = Literal["weight_error", "activation_error", "gradient", "fisher"]
ESTIMATORS: tuple[Estimator, ...] = ("weight_error", "activation_error", "gradient", "fisher")
_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LinearEstimate(Frozen):
    """The estimates of one linear in one format. Their scales differ: only ranks and ratios within one estimator mean anything."""

    weights: str = Field(description="the format's name")
    name: str = Field(description="such as blocks.3.attention.q")
    weight_error: _Error = Field(description="squared error of the weights, summed")
    activation_error: _Error = Field(description="squared error of the outputs on real inputs, summed over an image, mean over images")
    gradient: _Error = Field(description="the same, each output's weighted by the squared gradient of the labels' loss")
    fisher: _Error = Field(description="the same, of the loss of labels drawn from the model's own predictions")


class Estimates(Frozen):
    """All estimates of one set of weights."""

    profile: str
    backbone_sha256: str
    images: int = Field(ge=1, description="of the selection half of the test split")
    seconds: float = Field(description="wall time of making them, the backbone loaded")
    linears: tuple[LinearEstimate, ...] = Field(min_length=1)

    def of(self, unit: str, weights: str, estimator: Estimator) -> float:
        """The estimate of a linear, or the sum over a block's, by name, in the format of this name.

        Raises:
            DataError: there is none.
        """
        found = [item for item in self.linears if item.weights == weights and f"{item.name}.".startswith(f"{unit}.")]
        if not found:
            raise DataError(f"estimates.json of {self.profile}: nothing on {weights}, {unit}; run lowbit-vit estimate {self.profile} again")
        return sum(float(getattr(item, estimator)) for item in found)


_ESTIMATES: TypeAdapter[Estimates] = TypeAdapter(Estimates)


def read_estimates(path: Path, *, profile: str) -> Estimates:
    """Read the document.

    Raises:
        DataError: it is missing or damaged; the message says what to run.
    """
    return read_stage_document(path, _ESTIMATES, advice=f"run lowbit-vit estimate {profile}")
