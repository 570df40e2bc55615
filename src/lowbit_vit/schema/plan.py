"""The weight format of each encoder linear (`Plan`), and the measured sensitivity of each block (`SensitivityScores`). No torch."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lowbit_vit.errors import CONTROL, ConfigError

LABEL_LENGTH, TEXT_LENGTH = 200, 2000


def _one_line(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("control characters are not allowed")
    return text


Text = Annotated[str, Field(max_length=TEXT_LENGTH), AfterValidator(_one_line)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1, max_length=LABEL_LENGTH), AfterValidator(_one_line)]


class Frozen(BaseModel):
    """A document: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Format(Frozen):
    """What every weight format declares beside its settings. A new one: a class here, in `Weights`, and a module model/formats/<format>.py.

    Attributes:
        family: the name under which tables group formats and figures colour them.
        capability: compute capability that this project's kernels for the format need; None: other kernels. These kernels take q, k
            and v as one layer and activations in 16 bits, and are for whole models, not for scans of blocks.
        whole_blocks: whether all linears of a block must have it, since the block runs as one.
    """

    family: ClassVar[str]
    capability: ClassVar[tuple[int, int] | None] = None
    whole_blocks: ClassVar[bool] = False
    format: str

    @property
    def name(self) -> str:
        """Short name used in labels and tables: `format`, up to an underscore, and what the settings add."""
        return self.format

    @property
    def trained(self) -> "Format | None":
        """The format in which adapters over it are trained: its own, or one with the same weights; None: adapters are impossible."""
        return None if self.capability else self

    @property
    def host_sync(self) -> str | None:
        """Why a CUDA graph cannot hold its layers; None: it can."""
        return None

    @property
    def transformers(self) -> dict[str, object] | None:
        """Arguments of transformers' BitsAndBytesConfig; None: it has no such format."""
        return None


class HighPrecision(Format):
    """Weights stay floating point in the plan's compute dtype."""

    family = "floating point"
    format: Literal["high"] = "high"


class Int8(Format):
    """bitsandbytes LLM.int8: row-wise absmax int8 weights, int8 activations, outlier columns apart.

    Source: Dettmers et al., "LLM.int8()", 2022, https://arxiv.org/abs/2208.07339.
    """

    family = "int8"
    format: Literal["int8"]
    threshold: float = Field(ge=0.0, description="activation columns above it stay 16-bit; 0.0 turns the split off")

    @property
    def name(self) -> str:
        """Such as `int8-6`."""
        return f"int8-{self.threshold:g}"

    @property
    def host_sync(self) -> str | None:
        """With a threshold every layer waits for `outliers.any()`."""
        reason = f"int8 threshold {self.threshold:g} syncs with the host in each layer; a CUDA graph cannot hold that"
        return reason if self.threshold > 0 else None

    @property
    def transformers(self) -> dict[str, object]:
        """As of LLM.int8."""
        return {"load_in_8bit": True, "llm_int8_threshold": self.threshold}


class NF4(Format):
    """bitsandbytes NF4: 4-bit normal-float codes, one absmax per block of 64 weights.

    Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314.
    """

    family = "NF4"
    format: Literal["nf4"]
    double_quantization: bool = Field(description="quantize the absmax constants to 8 bits as well")

    @property
    def name(self) -> str:
        """`nf4` or `nf4-dq`."""
        return "nf4-dq" if self.double_quantization else "nf4"

    @property
    def transformers(self) -> dict[str, object]:
        """As of QLoRA."""
        return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": self.double_quantization}


class W8A8(Format):
    """int8 in this project's kernels: one scale a row of weights and, computed in each forward, a row of activations; blocks run fused."""

    family = "int8"
    capability = (8, 0)
    whole_blocks = True
    format: Literal["w8a8"]


class FP8(Format):
    """As `W8A8` with e4m3 codes, 3 bits behind the point, instead of int8."""

    family = "fp8"
    capability = (8, 9)
    whole_blocks = True
    format: Literal["fp8"]


class FusedNF4(Format):
    """NF4 with bitsandbytes' codes in this project's kernels; blocks with 8-bit GEMMs run fused."""

    family = "NF4"
    format: Literal["nf4_fused"]
    double_quantization: bool = Field(description="as of nf4")
    products: Literal["16-bit", "int8", "fp8"] = Field(description="of the GEMMs; 16-bit: in the compute dtype; else as in w8a8 or fp8")

    @property
    def name(self) -> str:
        """Such as `nf4-fused` or `nf4-dq-fused-fp8`."""
        form = "nf4-dq-fused" if self.double_quantization else "nf4-fused"
        return form if self.products == "16-bit" else f"{form}-{self.products}"

    @property
    def capability(self) -> tuple[int, int]:  # type: ignore[override]  # of the other formats a constant, as the next
        """That of the GEMMs."""
        return (8, 9) if self.products == "fp8" else (8, 0)

    @property
    def whole_blocks(self) -> bool:  # type: ignore[override]
        """Where the GEMMs are in 8 bits."""
        return self.products != "16-bit"

    @property
    def trained(self) -> NF4 | None:
        """NF4 of bitsandbytes, which has the same codes; adapters are added to weights in 16 bits while these are decoded."""
        return None if self.whole_blocks or self.double_quantization else NF4(format="nf4", double_quantization=False)


Fused = W8A8 | FP8 | FusedNF4  # the formats of this project's kernels
Weights = HighPrecision | Int8 | NF4 | Fused
WeightFormat = Annotated[Weights, Field(discriminator="format")]
ComputeDtype = Literal["fp32", "tf32", "fp16", "bf16"]

_CLASSES: tuple[type[Format], ...] = get_args(Weights)
FORMATS: tuple[str, ...] = tuple(get_args(cls.model_fields["format"].annotation)[0] for cls in _CLASSES)
FAMILIES = tuple(dict.fromkeys(cls.family for cls in _CLASSES))


def family_of(name: str) -> str:
    """The family of the format with this name, such as `NF4` of `nf4-dq-fused`; a name of no format is its own."""
    families = {form.partition("_")[0]: cls.family for form, cls in zip(FORMATS, _CLASSES, strict=True)}
    return families.get(name.partition("-")[0], name)


def linear_names(depth: int, *, fused: bool = False) -> list[str]:
    """The encoder linears of a ViT with `depth` blocks, in the order of the forward pass; `fused`: one linear for q, k and v."""
    projections = ("qkv",) if fused else ("q", "k", "v")
    places = [*(f"attention.{projection}" for projection in projections), "attention.out", "mlp.fc1", "mlp.fc2"]
    return [f"blocks.{block}.{place}" for block in range(depth) for place in places]


class Rule(Frozen):
    """One line of a plan: every encoder linear whose name matches `pattern` takes `weights`."""

    pattern: str = Field(min_length=1, description="shell-style, on names like blocks.3.attention.q")
    weights: WeightFormat


class Plan(Frozen):
    """The precision of every encoder linear: ordered rules, the last one that matches a linear wins.

    All other parameters (head, norms, biases, positions, patch embedding) stay in `compute_dtype`, as in the paper.
    """

    compute_dtype: ComputeDtype = Field(description="dtype of activations and of unquantized weights; tf32 is fp32 storage")
    rules: tuple[Rule, ...] = ()

    def resolve(self, modules: Iterable[str]) -> dict[str, Weights]:
        """Map each module name to its format.

        Raises:
            ConfigError: a rule's pattern matches no module at all.
        """
        names = list(modules)
        formats: dict[str, Weights] = dict.fromkeys(names, HighPrecision())
        for rule in self.rules:
            matched = fnmatch.filter(names, rule.pattern)
            if not matched:
                like = names[0] if names else "-"
                raise ConfigError(f"plan: pattern {rule.pattern!r} matches none of {len(names)} layers; names look like {like}")
            for name in matched:
                formats[name] = rule.weights
        return formats

    @property
    def trained(self) -> "Plan":
        """The plan of the model over which adapters are trained in place of this one's."""
        rules = tuple(rule.model_copy(update={"weights": rule.weights.trained or rule.weights}) for rule in self.rules)
        return self.model_copy(update={"rules": rules})

    @property
    def name(self) -> str:
        """`fp16`, `nf4/fp16`, or `mixed/fp16` when several formats are used."""
        used = list(dict.fromkeys(rule.weights.name for rule in self.rules))
        if not used:
            return self.compute_dtype
        return f"{used[0] if len(used) == 1 else 'mixed'}/{self.compute_dtype}"


def uniform(weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives every encoder linear the same format."""
    rules = () if isinstance(weights, HighPrecision) else (Rule(pattern="blocks.*", weights=weights),)
    return Plan(compute_dtype=compute_dtype, rules=rules)


def only(units: Iterable[int | str], weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to these blocks (3) or linears (blocks.3.attention.q), and leaves the others in high precision."""
    return Plan(compute_dtype=compute_dtype, rules=_rules(units, weights))


def all_but(units: Iterable[int | str], weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to all linears except those of these blocks or with these names."""
    return Plan(compute_dtype=compute_dtype, rules=(Rule(pattern="blocks.*", weights=weights), *_rules(units, HighPrecision())))


def _rules(units: Iterable[int | str], weights: Weights) -> tuple[Rule, ...]:
    patterns = (unit if isinstance(unit, str) else f"blocks.{unit}.*" for unit in sorted(units))
    return tuple(Rule(pattern=pattern, weights=weights) for pattern in patterns)


def spared_blocks(plan: Plan, depth: int) -> tuple[int, ...]:
    """The blocks of a model of `depth` blocks that a plan leaves wholly in high precision, ascending."""
    formats = plan.resolve(linear_names(depth))
    low = {int(name.split(".")[1]) for name, weights in formats.items() if not isinstance(weights, HighPrecision)}
    return tuple(block for block in range(depth) if block not in low)


class BlockScore(Frozen):
    """The cost of quantizing one block, or one linear of it, over several draws of evaluation images.

    Intervals are of the mean over the selection half, 95 % for all units of one format and direction together. The excess is the
    KL that quantizing the unit costs, or sparing it saves, beyond the mean unit's.
    """

    block: int = Field(ge=0)
    module: str | None = Field(default=None, description="the linear inside the block, such as attention.q; null: the whole block")
    kl: tuple[Finite, ...] = Field(min_length=1, description="mean KL(high precision || quantized) in nats, one a draw")
    flips: tuple[int, ...] = Field(min_length=1, description="images whose Top-1 class changed, one count a draw")
    margin: tuple[float, ...] = Field(min_length=1, description="mean change of the margin, logits, one a draw")
    top1: tuple[float, ...] = Field(min_length=1, description="Top-1, one a draw")
    kl_interval: tuple[float, float] = Field(description="of the mean KL")
    excess_interval: tuple[float, float] = Field(description="of the excess")

    @property
    def name(self) -> str:
        """`blocks.3` or `blocks.3.attention.q`."""
        return f"blocks.{self.block}" + ("" if self.module is None else f".{self.module}")

    @property
    def mean_kl(self) -> float:
        """Mean KL over the draws."""
        return sum(self.kl) / len(self.kl)

    @property
    def sensitive(self) -> bool:
        """Whether it surely costs more than the mean unit."""
        return self.excess_interval[0] > 0


class SensitivityScores(Frozen):
    """Result of the `sensitivity` study for one format and direction; `mixed` chooses blocks by it."""

    profile: str
    backbone_sha256: str
    weights: WeightFormat
    direction: Literal["only", "all_but"]
    images: int = Field(ge=1, description="images in each draw, all from the selection half of the test split")
    blocks: tuple[BlockScore, ...] = Field(min_length=1)
    modules: tuple[BlockScore, ...] = Field(default=(), description="each linear, where sensitivity.units names modules")

    @property
    def units(self) -> tuple[BlockScore, ...]:
        """The blocks, then the linears."""
        return (*self.blocks, *self.modules)

    def cost(self, kl: float) -> float:
        """What a unit with this KL costs: of a spared unit the negative, for it costs what sparing it saves."""
        return kl if self.direction == "only" else -kl

    def flips_per_1000(self, unit: BlockScore) -> float:
        """Mean over the draws of the images in 1,000 whose Top-1 class one of the units changes."""
        return 1000 * (sum(unit.flips) / len(unit.flips)) / self.images

    def most_sensitive(self, k: int, *, draw: int | None = None) -> tuple[int, ...]:
        """The k blocks that cost most, in mean KL or in that of one draw, ties broken by the smaller block number; ascending.

        Raises:
            ConfigError: there are fewer blocks.
        """
        if not 1 <= k <= len(self.blocks):
            raise ConfigError(f"mixed: k = {k} is outside 1..{len(self.blocks)}, the number of blocks that were scored")
        ranked = sorted(self.blocks, key=lambda unit: (-self.cost(unit.mean_kl if draw is None else unit.kl[draw]), unit.block))
        return tuple(sorted(unit.block for unit in ranked[:k]))


def shared_blocks(first: Sequence[object], second: Sequence[object]) -> int:
    """How many blocks two paths of one length begin with alike."""
    return next((boundary for boundary, (one, other) in enumerate(zip(first, second, strict=True)) if one != other), len(first))
