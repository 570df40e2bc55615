"""Which number format each linear layer's weights take, and how sensitive each block was found to be.

Two of the three small JSON documents that one stage writes and a later one reads live here: a `Plan` (precision of each
module, by ordered patterns) and `SensitivityScores` (the measured cost of quantizing each block, which the `mixed` study
chooses from). Pure data: no torch.
"""

import fnmatch
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lowbit_vit.errors import ConfigError


class Frozen(BaseModel):
    """A document: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class HighPrecision(Frozen):
    """Weights stay floating point in the plan's compute dtype."""

    format: Literal["high"] = "high"

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        return "high"


class Int8(Frozen):
    """bitsandbytes LLM.int8: row-wise absmax int8 weights, int8 activations, outlier columns apart.

    Source: Dettmers et al., "LLM.int8()", 2022, https://arxiv.org/abs/2208.07339.
    """

    format: Literal["int8"]
    threshold: float = Field(ge=0.0, description="activation columns above it stay 16-bit; 0.0 turns the split off")

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        return f"int8-{self.threshold:g}"


class NF4(Frozen):
    """bitsandbytes NF4: 4-bit normal-float codes, one absmax per block of 64 weights.

    Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314.
    """

    format: Literal["nf4"]
    double_quantization: bool = Field(description="quantize the absmax constants to 8 bits as well")

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        return "nf4-dq" if self.double_quantization else "nf4"


class W8A8(Frozen):
    """Our int8 kernels: one scale a row of weights and, found anew in each forward, a row of activations; a block's parts fused.

    A block is in this format as a whole, with q, k and v in one layer. Runs on CUDA from compute capability 8.0 on.
    """

    format: Literal["w8a8"]

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        return "w8a8"


class FP8(Frozen):
    """As `W8A8` with e4m3 codes, 3 bits behind the point, instead of int8. From compute capability 8.9 on."""

    format: Literal["fp8"]

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        return "fp8"


class FusedNF4(Frozen):
    """NF4 with bitsandbytes' codes and our kernels; q, k and v in one layer. Runs on CUDA from compute capability 8.0 on."""

    format: Literal["nf4_fused"]
    double_quantization: bool = Field(description="as of nf4")
    products: Literal["16-bit", "int8", "fp8"] = Field(
        description="16-bit: in the compute dtype; else the weights become 8-bit codes on the way, and all is as in w8a8 or fp8"
    )

    @property
    def name(self) -> str:
        """Short name used in labels and tables."""
        form = "nf4-dq-fused" if self.double_quantization else "nf4-fused"
        return form if self.products == "16-bit" else f"{form}-{self.products}"


Fused = W8A8 | FP8 | FusedNF4  # the formats of our own kernels
Weights = HighPrecision | Int8 | NF4 | Fused
WeightFormat = Annotated[Weights, Field(discriminator="format")]
ComputeDtype = Literal["fp32", "tf32", "fp16", "bf16"]


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
    """The precision of every encoder linear: ordered rules, the last one that matches a module wins.

    Only the encoder's linears (q, k, v or qkv, out, fc1, fc2 of each block) are ever quantized; the head, the norms, the
    biases, the positions and the patch embedding stay in `compute_dtype`, as in the paper.
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
                raise ConfigError(
                    f"plan: pattern {rule.pattern!r} matches none of {len(names)} layers; names look like {names[0] if names else '-'}"
                )
            for name in matched:
                formats[name] = rule.weights
        return formats

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


def only(blocks: Iterable[int], weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to the linears of `blocks` and leaves every other block in high precision."""
    rules = tuple(Rule(pattern=f"blocks.{block}.*", weights=weights) for block in sorted(blocks))
    return Plan(compute_dtype=compute_dtype, rules=rules)


def all_but(blocks: Iterable[int], weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to every block except `blocks`, which stay in high precision."""
    kept = tuple(Rule(pattern=f"blocks.{block}.*", weights=HighPrecision()) for block in sorted(blocks))
    return Plan(compute_dtype=compute_dtype, rules=(Rule(pattern="blocks.*", weights=weights), *kept))


def only_linear(name: str, weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to one linear, such as blocks.3.attention.q, and leaves the others in high precision."""
    return Plan(compute_dtype=compute_dtype, rules=(Rule(pattern=name, weights=weights),))


def all_but_linear(name: str, weights: Weights, compute_dtype: ComputeDtype) -> Plan:
    """The plan that gives `weights` to every linear except one, which stays in high precision."""
    rules = (Rule(pattern="blocks.*", weights=weights), Rule(pattern=name, weights=HighPrecision()))
    return Plan(compute_dtype=compute_dtype, rules=rules)


class BlockScore(Frozen):
    """How much worse the model gets when one block, or one linear of it, is quantized, over several draws of evaluation images.

    The intervals are of the mean over the whole selection half, 95 % for all units of one format and direction together. The
    excess is the KL that the unit costs beyond the mean unit's: where a unit is spared, what sparing it saves beyond that.
    """

    block: int = Field(ge=0)
    module: str | None = Field(default=None, description="the linear inside the block, such as attention.q; null: the whole block")
    kl: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        min_length=1, description="mean KL(high precision || quantized) in nats, one a draw"
    )
    flips: tuple[int, ...] = Field(min_length=1, description="images whose Top-1 class changed, one count a draw")
    margin: tuple[float, ...] = Field(default=(), description="mean change of the margin, logits, one a draw; empty: an older file")
    top1: tuple[float, ...] = Field(default=(), description="Top-1, one a draw; empty: an older file")
    kl_interval: tuple[float, float] | None = Field(default=None, description="of the mean KL; null: an older file")
    excess_interval: tuple[float, float] | None = Field(default=None, description="of the excess; null: an older file")

    @property
    def name(self) -> str:
        """`blocks.3` or `blocks.3.attention.q`."""
        return f"blocks.{self.block}" + ("" if self.module is None else f".{self.module}")

    @property
    def sensitive(self) -> bool | None:
        """Whether it surely costs more than the mean unit; None: an older file, which has no interval."""
        return None if self.excess_interval is None else self.excess_interval[0] > 0


class SensitivityScores(Frozen):
    """What the `sensitivity` study found for one format and direction; `mixed` reads it to choose blocks."""

    profile: str
    backbone_sha256: str
    weights: WeightFormat
    direction: Literal["only", "all_but"]
    images: int = Field(ge=1, description="images in each draw, all from the selection half of the test split")
    blocks: tuple[BlockScore, ...] = Field(min_length=1)
    modules: tuple[BlockScore, ...] = Field(default=(), description="each linear, where sensitivity.units names modules")

    def most_sensitive(self, k: int) -> tuple[int, ...]:
        """The k blocks that cost most in mean KL, ties broken by the smaller block number, in ascending order."""
        if not 1 <= k <= len(self.blocks):
            raise ConfigError(f"mixed: k = {k} is outside 1..{len(self.blocks)}, the number of blocks that were scored")
        sign = -1.0 if self.direction == "only" else 1.0
        ranked = sorted(self.blocks, key=lambda score: (sign * sum(score.kl) / len(score.kl), score.block))
        return tuple(sorted(score.block for score in ranked[:k]))
