"""A plan as a file: the format of each block or linear, why it was chosen, and its predicted cost.

`allocate` writes such files and `mixed` runs them (mixed.plans of a profile, reports/<profile>/plans.json). A file written by hand
needs name, compute dtype and entries alone. A linear that no entry names stays in high precision. No torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import read_yaml, validate
from lowbit_vit.schema.plan import ComputeDtype, Frozen, HighPrecision, Plan, Rule, WeightFormat, all_but, linear_names
from lowbit_vit.schema.stage_documents import read_stage_document

_HF_NAMES = {
    "attention.q": "attention.attention.query",
    "attention.k": "attention.attention.key",
    "attention.v": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


class Entry(Frozen):
    """One block (blocks.3) or one linear (blocks.3.attention.q) and its format."""

    unit: str = Field(pattern=r"^blocks\.\d+(\.(attention\.(q|k|v|out)|mlp\.(fc1|fc2)))?$")
    weights: WeightFormat


class Predicted(Frozen):
    """The whole model, predicted as the sum over units."""

    weight_bytes: int
    kl: float = Field(description="mean KL from high precision in nats, on the selection half")
    flips_per_1000: float = Field(description="images of 1,000 whose Top-1 class changes, read off the summed KL (analysis.flip_model)")
    flips_interval: tuple[float, float] | None = Field(default=None, description="95 % of counts on as many images lie in it")
    flips_summed_per_1000: float | None = Field(default=None, description="the units' flips, none of them in common: far too many")
    ms: float | None = Field(default=None, description="latency of one batch; null: no budget of it was given")


class Optimum(Frozen):
    """The solver's certificate."""

    minimized: Literal["kl", "flips", "gradient", "weight_bytes"]
    value: float
    bound: float = Field(description="no choice within the budget is better than this")
    gap: float = Field(description="value - bound, relative to the value; 0: a proven optimum")


class PlanFile(Frozen):
    """One plan; `allocate` gives all keys.

    k: the budget is the bytes of sparing the first and last k / 2 blocks.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    compute_dtype: ComputeDtype
    entries: tuple[Entry, ...]
    profile: str | None = None
    backbone_sha256: str | None = Field(default=None, description="null: of whatever weights")
    strategy: Literal["milp", "gradient"] | None = Field(default=None, description="null: made by hand")
    k: int | None = Field(default=None, ge=1)
    budget: str | None = None
    predicted: Predicted | None = None
    optimum: Optimum | None = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        units = [entry.unit for entry in self.entries]
        for index, unit in enumerate(units):
            block = ".".join(unit.split(".")[:2])
            if unit in units[:index]:
                raise ValueError(f"entries: {unit} is given twice")
            if unit != block and block in units:
                raise ValueError(f"entries: {unit} is given twice: by itself and with {block}")
        return self

    def plan(self, depth: int) -> Plan:
        """The plan for a model of `depth` blocks.

        Where whole blocks are spared from one format it is `all_but`'s, so that it is the same cell as an equal plan of a heuristic.

        Raises:
            ConfigError: an entry names a block that the model does not have.
        """
        for entry in self.entries:
            if int(entry.unit.split(".")[1]) >= depth:
                raise ConfigError(f"plan {self.name}: {entry.unit} is not there; the model has blocks.0 to blocks.{depth - 1}")
        low = {entry.unit: entry.weights for entry in self.entries if not isinstance(entry.weights, HighPrecision)}
        if len({weights.name for weights in low.values()}) == 1 and all(unit.count(".") == 1 for unit in low):
            spared = [block for block in range(depth) if f"blocks.{block}" not in low]
            return all_but(spared, next(iter(low.values())), self.compute_dtype)
        rules = tuple(Rule(pattern=unit if unit.count(".") > 1 else f"{unit}.*", weights=weights) for unit, weights in low.items())
        return Plan(compute_dtype=self.compute_dtype, rules=rules)

    def skip_list(self, depth: int) -> dict[str, object]:
        """Arguments of transformers' BitsAndBytesConfig that quantize Hugging Face's ViTForImageClassification by this plan.

        Raises:
            ConfigError: it mixes low-bit formats, which one BitsAndBytesConfig cannot.
        """
        formats = self.plan(depth).resolve(linear_names(depth))
        low = {weights.name: weights for weights in formats.values() if not isinstance(weights, HighPrecision)}
        if len(low) != 1:
            used = ", ".join(sorted(low)) or "no low-bit format"
            advice = "BitsAndBytesConfig takes exactly one: allocate with --format and one of them"
            raise ConfigError(f"plan {self.name}: uses {used}; {advice}")
        high = (name.split(".", 2) for name, weights in formats.items() if isinstance(weights, HighPrecision))
        skipped = [f"vit.encoder.layer.{block}.{_HF_NAMES[place]}" for _, block, place in high]
        (weights,) = low.values()
        if weights.transformers is None:
            raise ConfigError(f"weights {weights.name} have kernels of this project; BitsAndBytesConfig knows int8 and nf4")
        return {"llm_int8_skip_modules": [*skipped, "classifier"], **weights.transformers}


_FILES: TypeAdapter[tuple[PlanFile, ...]] = TypeAdapter(tuple[PlanFile, ...])


def load_plan_file(path: Path) -> PlanFile:
    """Read a plan, YAML or JSON.

    Raises:
        ConfigError: missing, not YAML, or a key or value is wrong; one line naming file, key and value.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such plan; lowbit-vit allocate writes one")
    return validate(PlanFile, read_yaml(path), path)


def load_plan_files(path: Path, *, profile: str) -> tuple[PlanFile, ...]:
    """Read the plans that the allocate stage made.

    Raises:
        DataError: the file is missing or damaged.
    """
    return read_stage_document(path, _FILES, advice=f"run lowbit-vit allocate {profile}")


def plan_files_json(files: Sequence[PlanFile]) -> bytes:
    """As `load_plan_files` reads it."""
    return ("[\n" + ",\n".join(file.model_dump_json(indent=1) for file in files) + "\n]\n").encode()
