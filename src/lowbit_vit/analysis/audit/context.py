"""What is known beside a table: what the text claims, the model, the GPU, the splits, what each row is. Everything is optional."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, FiniteFloat, model_validator

from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.table import Cell, ResultsTable
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import read_yaml, validate
from lowbit_vit.schema.plan import Frozen

_MOST_NAMED = 30
Given = TypeVar("Given")
# JSON and YAML know infinity and NaN; no size, peak or rate is one.
Positive = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(gt=0, lt=1)]
Images = Annotated[int, Field(ge=1)]
Weights = Literal["fp32", "fp16", "bf16", "int8", "nf4"]
Dtype = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
WEIGHT_BYTES: dict[Weights, float] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "nf4": 0.5}
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


class Claims(Frozen):
    """Numbers from the text around the table."""

    batch_size: Images | None = Field(default=None, description="images a forward, of latency, throughput and memory")
    images: Images | None = Field(default=None, description="test images")
    size_reduction: Share | None = Field(default=None, description="the smallest model is at least this much smaller")
    negligible_gain: Share | None = Field(default=None, description="a gain of Top-1, as a rate, that is called none")
    memory_gib: Positive | None = Field(default=None, description="device memory that the reference is said to strain")


class Model(Frozen):
    """Sizes of a model: of the one that all rows share, or of a row's."""

    parameters: int = Field(ge=1)
    quantized_parameters: int = Field(ge=0, description="those that a quantized row holds in low precision")
    quantized_rows: int = Field(ge=0, description="output rows of the quantized layers: int8 has one fp32 scale each")
    largest_layer: int = Field(ge=1, description="parameters of the largest quantized layer")
    layer_output: int = Field(ge=1, description="elements a layer puts out for one image, at most")
    blocks: int = Field(ge=1, description="encoder blocks: attention kernels in one forward")
    flop: Positive = Field(description="of one image's forward; a multiply-add counts 2")
    attention_flop: Positive = Field(description="of it, the two products inside attention")
    adapter_parameters: int | None = Field(default=None, ge=1, description="of adapters of rank 1")


class Gpu(Frozen):
    """The GPU of latency and kernel time."""

    name: str
    peak_tflops: dict[Dtype, Positive] = Field(description="dense, by dtype of the factors")
    bandwidth_gb_s: Positive


class Row(Frozen):
    """What a row of the table is."""

    weights: Weights
    block_size: int | None = Field(default=None, ge=1, description="of nf4: parameters that share a constant")
    compute: Dtype = Field(description="of activations; the parameters that are not quantized have its size")
    product: Dtype | None = Field(default=None, description="of the factors of the layers' products; null: as compute")
    attention: str = Field(min_length=1, description="name of the attention kernel")
    images: Images | None = Field(default=None, description="test images, where not all rows have the same")
    batch_size: Images | None = Field(default=None, description="images a forward, where not all rows have the same")
    model: Model | None = Field(default=None, description="sizes of its model, where not all rows have the same")

    @model_validator(mode="after")
    def _blocks_belong_to_nf4(self) -> Self:
        if (self.weights == "nf4") != (self.block_size is not None):
            raise ValueError("block_size is needed with weights: nf4, and only there")
        return self

    @property
    def quantized(self) -> bool:
        """Whether the weights are low-bit."""
        return self.weights in ("int8", "nf4")


class Twin(Frozen):
    """Two rows that differ in their attention kernel alone."""

    plain: str
    fused: str = Field(description="the one that is said to be faster")


class Context(Frozen):
    """All that is known beside the table."""

    megabyte: Literal["MB", "MiB"] | None = Field(
        default=None, description="what MB in a heading means: 10^6 bytes, or 2^20; null: not known, either may be meant"
    )
    reference: str | None = Field(default=None, description="row that the others are compared with")
    claims: Claims = Claims()
    split_sizes: dict[str, Images] = Field(default={}, description="images that the accuracies may be of, by name")
    test_images: Images | None = Field(default=None, description="images of the largest split without training images")
    published_top1: dict[str, Share] = Field(default={}, description="of the same model and data, by source, as shares of 1")
    model: Model | None = None
    gpu: Gpu | None = None
    cpu_peak_tflops: Positive | None = Field(default=None, description="fp32, of the fastest host that may be meant")
    rows: dict[str, Row] = Field(default={}, description="by the row's name")
    twins: tuple[Twin, ...] = ()

    @model_validator(mode="after")
    def _gpu_knows_the_dtypes(self) -> Self:
        for name, row in self.rows.items():
            for dtype in (row.compute, row.product or row.compute):
                if self.gpu is not None and dtype not in self.gpu.peak_tflops:
                    raise ValueError(f"gpu.peak_tflops lacks {dtype}, in which row {name!r} computes")
        return self

    def parted(self, tables: Sequence[ResultsTable]) -> list["Context"]:
        """What is known beside each of several tables: of what names rows, that of rows that it has.

        Raises:
            ConfigError: a row is named that no table has.
        """
        self.refuse_unknown([label for table in tables for label in table.labels])
        parts = []
        for table in tables:
            own = set(table.labels)
            rows = {name: row for name, row in self.rows.items() if name in own}
            twins = tuple(twin for twin in self.twins if {twin.plain, twin.fused} <= own)
            reference = self.reference if self.reference in own else None
            parts.append(self.model_copy(update={"rows": rows, "twins": twins, "reference": reference}))
        return parts

    def refuse_unknown(self, labels: Sequence[str]) -> None:
        """Raise a ConfigError if a row is named that is not among these."""
        twins = [name for twin in self.twins for name in (twin.plain, twin.fused)]
        for name in (*self.rows, *twins, *([] if self.reference is None else [self.reference])):
            if name not in labels:
                more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
                raise ConfigError(f"context: row {name!r} is not in the table; its rows: {', '.join(labels[:_MOST_NAMED])}{more}")


def load_context(path: Path) -> Context:
    """Read and validate a context file.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; one line, naming file, key, value.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such context file")
    return validate(Context, read_yaml(path), path)


@dataclass(frozen=True, eq=False)
class Case:
    """A table with its context, and the tables given before it: the input of every check.

    Cases are compared by identity, so that results can be cached by case.

    Raises:
        ConfigError: the context names a row that the table does not have.
    """

    table: ResultsTable
    context: Context
    before: tuple[ResultsTable, ...] = ()

    def __post_init__(self) -> None:
        self.context.refuse_unknown(self.table.labels)

    @cached_property
    def _of_all(self) -> Model | None:
        """The model that all rows share, which is of one image size."""
        return self.context.model if len({cell.exact for cell in self.table.column("image_size")}) < 2 else None

    def model(self, index: int) -> Model | None:
        """Sizes of a row's model: its own, or that of all rows."""
        row = self.row(index)
        return row.model if row is not None and row.model else self._of_all

    @property
    def gpu(self) -> Gpu:
        """For checks that need it."""
        return given(self.context.gpu)

    @property
    def twins(self) -> list[tuple[int, int]]:
        """Rows of each pair, the plain one first."""
        index = self.table.labels.index
        return [(index(twin.plain), index(twin.fused)) for twin in self.context.twins]

    def label(self, cell: Cell) -> str:
        """Name of a cell's row."""
        return self.table.labels[cell.row]

    def row(self, index: int) -> Row | None:
        """What the table's row `index` is, if that is known."""
        return self.context.rows.get(self.table.labels[index])

    def described(self, quantity: Quantity) -> list[tuple[Cell, Row]]:
        """The cells of a column whose rows the context describes, with what they are."""
        return [(cell, row) for cell in self.table.column(quantity) if (row := self.row(cell.row)) is not None]

    def sized(self, quantity: Quantity) -> list[tuple[Cell, Row, Model]]:
        """Those of them whose model's sizes are known as well."""
        return [(cell, row, model) for cell, row in self.described(quantity) if (model := self.model(cell.row)) is not None]

    def of_reference(self, quantity: Quantity) -> Cell | None:
        """The cell of the row that the others are compared with."""
        name = self.context.reference
        return None if name is None else self.table.cell(self.table.labels.index(name), quantity)

    def images(self, index: int) -> int | None:
        """Test images that are stated of a row: in `rows`, in the table's column, or for the whole table."""
        row, cell = self.row(index), self.table.cell(index, "images")
        return (row and row.images) or (int(cell.exact) if cell is not None else self.context.claims.images)

    def batch_size(self, index: int) -> int | None:
        """Images a forward that are stated of a row, likewise."""
        row, cell = self.row(index), self.table.cell(index, "batch")
        return (row and row.batch_size) or (int(cell.exact) if cell is not None else self.context.claims.batch_size)


class Lacking(Exception):
    """A check cannot be made: names what the case lacks beyond what the check declares to need."""


def given(value: Given | None, name: str = "a key that the check does not declare") -> Given:
    """A value that a check needs.

    Raises:
        Lacking: there is none; `name` says what it is, where the check does not declare it.
    """
    if value is None:
        raise Lacking(name)
    return value
