"""JSON documents that one stage writes and a later one reads, and the one way to read them. No torch."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import one_line
from lowbit_vit.schema.plan import Frozen

Document = TypeVar("Document")
Estimator = Literal["weight_error", "activation_error", "gradient", "fisher"]
ESTIMATORS: tuple[Estimator, ...] = ("weight_error", "activation_error", "gradient", "fisher")
_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def read_stage_document(path: Path, document: TypeAdapter[Document], *, advice: str) -> Document:
    """Read a JSON document.

    Args:
        path: of the file.
        document: what it must hold.
        advice: the command that makes it, such as "run lowbit-vit estimate demo".

    Raises:
        DataError: missing, unreadable or damaged; the message ends with the advice.
    """
    try:
        return document.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror}); {advice} again") from error
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; {advice} again") from None


class LinearEstimate(Frozen):
    """What quantizing one linear costs, estimated without evaluating a quantized model. Each estimator has a scale of its own."""

    weights: str = Field(description="the format's name")
    name: str = Field(description="such as blocks.3.attention.q")
    weight_error: _Error = Field(description="squared error of the weights, summed")
    activation_error: _Error = Field(description="squared error of the outputs on real inputs, summed over an image, mean over images")
    gradient: _Error = Field(description="the same, each output's weighted by the squared gradient of the labels' loss")
    fisher: _Error = Field(description="the same, of the loss of labels drawn from the model's own predictions")


class Estimates(Frozen):
    """All estimates of one set of weights, written by the `estimate` stage."""

    profile: str
    backbone_sha256: str
    images: int = Field(ge=1, description="of the selection half of the test split")
    seconds: float = Field(description="wall time, the backbone loaded")
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
    """Read what the `estimate` stage wrote.

    Raises:
        DataError: as `read_stage_document`.
    """
    return read_stage_document(path, _ESTIMATES, advice=f"run lowbit-vit estimate {profile}")
