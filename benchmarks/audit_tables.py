"""Tables of results as an honest author prints them, and the same with one fault planted: what the audit's error rates are measured on.

A table has one to four columns of accuracy, latency, throughput, file size and peak memory, which follow from one another as they would in
an evaluation: counts of images, percentiles of samples, bytes of weights. Each column is printed in a way of its own: decimals or
significant digits, zeros kept or dropped, rounded half up, half to even or truncated. The oracle that says whether a planted fault can
be seen shares no code with the audit, only its list of public splits: it prints every count of every reading and compares texts.
"""

import csv
import io
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from lowbit_vit.analysis.audit.readings import PUBLIC

IMAGES = (100, 599, 1_000, 5_000, 6_149, 7_500, 10_000, 30_000, 50_000, 50_889, 100_000)
ROUNDINGS = (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)
# Batch sizes of loaders that drop their last batch.
DROPPED = (2, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1024)
COLUMNS = ("top1", "top5", "mean", "p50", "p95", "p99", "throughput", "size", "vram")
PERCENTILES = ("p50", "p95", "p99")
SAMPLES = 200
# Two passes over one model and batch size agree this well.
APART = 0.0041
# A ViT-L/16 of 102 classes; bytes a parameter, and a constant for so many parameters.
PARAMETERS, QUANTIZED, ROWS = 303_406_182, 301_989_888, 221_184
OUTPUT = 806_912
FORMATS = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5}
_PRECISE = Context(prec=60)


@dataclass(frozen=True)
class Style:
    """How a column is printed.

    Attributes:
        digits: decimals, or significant digits.
        significant: which of the two.
        rounding: one of ROUNDINGS.
        zeros: whether zeros at the end are kept.
        scale: unit of the heading in the unit of the value.
    """

    digits: int
    significant: bool
    rounding: str
    zeros: bool
    scale: Fraction

    def text(self, value: Fraction) -> str:
        """A value as this column prints it."""
        return _text(value / self.scale, self.digits, self.significant, self.rounding, self.zeros)


@cache
def _text(value: Fraction, digits: int, significant: bool, rounding: str, zeros: bool) -> str:  # noqa: FBT001 (a cache's key)
    number = _PRECISE.divide(Decimal(value.numerator), Decimal(value.denominator))
    decimals = max(0, digits - number.adjusted() - 1) if significant and number else digits
    printed = number.quantize(Decimal(1).scaleb(-decimals), rounding=rounding, context=_PRECISE)
    text = f"{printed:f}"
    return text if zeros or "." not in text else text.rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Drawn:
    """A table with what it was made from.

    Attributes:
        values: of each column, by row, in units of the audit: shares, ms, images/s, bytes.
        styles: how each column is printed.
        context: what is known beside it, for `Context.model_validate`.
        images: test images of each row.
        batches: images a forward of each row.
        texts: cells that are not printed from their value.
        stated: whether images are stated in a column; batches likewise.
    """

    values: dict[str, list[Fraction]]
    styles: dict[str, Style]
    context: dict[str, Any]
    images: list[int]
    batches: list[int]
    texts: dict[tuple[str, int], str] = field(default_factory=dict)
    images_column: bool = False
    batches_column: bool = False

    @property
    def rows(self) -> range:
        """Indices of the rows."""
        return range(len(self.images))

    def cell(self, column: str, row: int) -> str:
        """A cell as printed."""
        return self.texts.get((column, row)) or self.styles[column].text(self.values[column][row])

    @property
    def csv(self) -> str:
        """The file."""
        headings = ["Model", *(_heading(column, self.styles[column].scale) for column in self.values)]
        headings += ["Test images"] * self.images_column + ["Batch size"] * self.batches_column
        out = io.StringIO()
        lines = [
            [f"row {row}", *(self.cell(column, row) for column in self.values)]
            + [str(self.images[row])] * self.images_column
            + [str(self.batches[row])] * self.batches_column
            for row in self.rows
        ]
        csv.writer(out).writerows([headings, *lines])
        return out.getvalue()


_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "mean": "Latency",
    "p50": "Latency P50",
    "p95": "Latency P95",
    "p99": "Latency P99",
    "throughput": "Throughput",
    "size": "Model size",
    "vram": "Peak VRAM",
}
_UNITS: dict[str, dict[str, Fraction]] = {
    "share": {"": Fraction(1), "%": Fraction(1, 100)},
    "time": {"ms": Fraction(1), "s": Fraction(1000), "us": Fraction(1, 1000)},
    "rate": {"img/s": Fraction(1)},
    # MB is what either author means.
    "bytes": {"MB": Fraction(10**6), "MiB": Fraction(2**20), "GB": Fraction(10**9)},
}
_KIND = {"top1": "share", "top5": "share", "throughput": "rate", "size": "bytes", "vram": "bytes"}


def _heading(column: str, scale: Fraction) -> str:
    units = _UNITS[_KIND.get(column, "time")]
    unit = next((name for name, size in units.items() if size == scale), "MB" if scale == 2**20 else "GB")
    return f"{_NAMES[column]} ({unit})" if unit else _NAMES[column]


def sound(chance: random.Random, *, rows: int | None = None, columns: tuple[str, ...] | None = None) -> Drawn:
    """A table without a fault. All that is not given is drawn."""
    count = rows or _rows(chance)
    chosen = columns or tuple(chance.sample(COLUMNS, chance.randint(1, 4)))
    images = chance.choice(IMAGES)
    evaluated = images - images % chance.choice(DROPPED) if chance.random() < 0.2 else images
    evaluated = evaluated or images
    batches = _batches(chance, count)
    formats = [chance.choice(list(FORMATS)) for _ in range(count)]
    values = _values(chance, count, evaluated, batches, formats)
    drawn = {column: values[column] for column in COLUMNS if column in chosen}
    stated, of_batch = chance.choice(("no", "claims", "column")), chance.choice(("no", "stated"))
    claims: dict[str, Any] = {"images": images} if stated == "claims" else {}
    if of_batch == "stated" and len(set(batches)) == 1 and chance.random() < 0.5:
        claims["batch_size"] = batches[0]
    context: dict[str, Any] = {"claims": claims}
    if {"size", "vram"} & set(chosen) and chance.random() < 0.8:
        context |= {"model": _model(), "rows": {f"row {row}": _row(formats[row]) for row in range(count)}}
    return Drawn(
        values=drawn,
        styles=_styles(chance, drawn),
        context=context,
        images=[images] * count,
        batches=batches,
        images_column=stated == "column",
        batches_column=of_batch == "stated" and "batch_size" not in claims,
    )


def _rows(chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.6:
        return chance.randint(5, 12)
    if kind < 0.95:
        return chance.randint(13, 60)
    return chance.randint(100, 300) if kind < 0.99 else 1_600


def _batches(chance: random.Random, count: int) -> list[int]:
    if chance.random() < 0.7:
        return [chance.choice((1, 8, 16, 32, 64, 128, 256))] * count
    return [chance.choice((1, 32, 128, 256, 512, 1024)) for _ in range(count)]


def _values(chance: random.Random, count: int, images: int, batches: list[int], formats: list[str]) -> dict[str, list[Fraction]]:
    """Every column's true values."""
    values: dict[str, list[Fraction]] = {column: [] for column in COLUMNS}
    middle, spread = chance.uniform(0.2, 0.95), chance.choice((0.01, 0.05, 0.2))
    computed = chance.choice(("mean", "p50", "apart"))
    speed = math.exp(chance.uniform(-1, 6))
    for row in range(count):
        rate = min(0.999, max(0.001, chance.gauss(middle, spread)))
        right = min(images, max(0, round(chance.gauss(images * rate, math.sqrt(images * rate * (1 - rate))))))
        missed = images - right
        also = min(missed, max(0, round(missed * chance.betavariate(3, 2))))
        values["top1"].append(Fraction(right, images))
        values["top5"].append(Fraction(right + also, images))
        base = speed * math.exp(chance.gauss(0, 0.7))
        noise = chance.choice((0.002, 0.02, 0.1))
        samples = sorted(base * math.exp(noise * chance.gauss(0, 1) + (chance.random() < 0.02) * chance.random()) for _ in range(SAMPLES))
        mean = Fraction(sum(samples)) / SAMPLES
        points = {name: Fraction(samples[at]) for name, at in zip(PERCENTILES, (99, 189, 197), strict=True)}
        values["mean"].append(mean)
        for name, value in points.items():
            values[name].append(value)
        latency = {"mean": mean, "p50": points["p50"], "apart": mean * Fraction(1 + chance.uniform(-APART, APART))}[computed]
        values["throughput"].append(1000 * batches[row] / latency)
        size = _bytes(formats[row])
        values["size"].append(Fraction(size * (1 + chance.uniform(0, 0.01))))
        # At least two outputs of the widest layer beside the weights.
        values["vram"].append(Fraction(size * 1.1 + batches[row] * 4 * OUTPUT * chance.uniform(2, 6)))
    return values


def _bytes(name: str) -> float:
    """Bytes of the parameters in a weight format, constants in fp32."""
    if name not in ("int8", "nf4"):
        return PARAMETERS * FORMATS[name]
    constants = 4 * ROWS if name == "int8" else 4 * QUANTIZED / 64
    return QUANTIZED * FORMATS[name] + 2 * (PARAMETERS - QUANTIZED) + constants


def _model() -> dict[str, Any]:
    layers = {"largest_layer": 4_194_304, "layer_output": OUTPUT, "blocks": 24, "flop": 123.1e9, "attention_flop": 3.8e9}
    return {"parameters": PARAMETERS, "quantized_parameters": QUANTIZED, "quantized_rows": ROWS, **layers}


def _row(name: str) -> dict[str, Any]:
    block = {"block_size": 64} if name == "nf4" else {}
    return {"weights": name, "compute": "fp16" if name in ("int8", "nf4") else name, "attention": "sdpa", **block}


def _styles(chance: random.Random, values: dict[str, list[Fraction]]) -> dict[str, Style]:
    """Columns of one kind are printed alike."""
    styles: dict[str, Style] = {}
    of_kind: dict[str, Style] = {}
    rounding = chance.choice(ROUNDINGS)
    for column, column_values in values.items():
        kind = _KIND.get(column, "time")
        if kind not in of_kind:
            scale = chance.choice([*_UNITS[kind].values(), *([Fraction(2**20)] if kind == "bytes" else [])])
            significant = chance.random() < 0.25
            digits = chance.randint(3, 6) if significant else chance.randint(*_decimals(kind, column_values, scale))
            of_kind[kind] = Style(digits, significant, rounding, chance.random() < 0.8, scale)
        styles[column] = of_kind[kind]
    return styles


def _decimals(kind: str, values: list[Fraction], scale: Fraction) -> tuple[int, int]:
    """From how many to how many decimals somebody would print: three significant digits of the least, at most six decimals."""
    if kind == "share":
        return (2, 6) if scale == 1 else (0, 6)
    least = float(min(values) / scale)
    fewest = max(0, 2 - math.floor(math.log10(least)))
    return min(fewest, 6), 6


# --------------------------------------------------------------------------------------------------------------- planted faults


@dataclass(frozen=True)
class Planted:
    """A table with a fault, the checks of which any may find it, its rows, and whether the oracle says that it can be seen."""

    fault: str
    table: Drawn
    checks: tuple[str, ...]
    rows: tuple[int, ...]
    decidable: bool


def readings(images: int) -> Iterator[int]:
    """A number of images and what dropped last batches leave of it, by the oracle's own list."""
    yield images
    for batch in DROPPED:
        if images > images % batch > 0:
            yield images - images % batch


def can_be_printed(text: str, images: int, style: Style) -> bool:
    """The oracle: whether some count of some reading is printed as `text`, every count near it printed and compared.

    Also in single precision, as an accuracy that was computed on a GPU.
    """
    decimals = len(text.partition(".")[2])
    alike = [replace(style, digits=decimals, significant=False, rounding=rounding) for rounding in ROUNDINGS]
    value, step = Fraction(text) * style.scale, style.scale / 10**decimals
    for number in readings(images):
        low, high = math.floor((value - 2 * step) * number), math.ceil((value + 2 * step) * number)
        for count in range(max(0, low), min(number, high) + 1):
            if any(Fraction(one.text(Fraction(count, number))) == Fraction(text) for one in alike):
                return True
            single = np.float32(count) / np.float32(number) * np.float32(1 / style.scale)
            if Fraction(f"{single:.{decimals}f}") == Fraction(text):
                return True
    return False


def impossible_rate(chance: random.Random) -> Planted:
    """One rate of a row is not of the images that are stated."""
    table = sound(chance, columns=chance.choice((("top1",), ("top1", "top5"), ("top1", "mean"))))
    table = replace(table, images_column=True, context={**table.context, "claims": {}})
    row = chance.choice(table.rows)
    style = table.styles["top1"]
    old = table.cell("top1", row)
    decimals = len(old.partition(".")[2])
    moved = Fraction(old) + Fraction(chance.choice((-1, 1)) * chance.randint(1, 40), 10**decimals)
    text = f"{float(moved):.{decimals}f}"
    if not 0 <= Fraction(text) * style.scale <= (table.values["top5"][row] if "top5" in table.values else 1):
        text = old
    return Planted(
        "one impossible rate",
        replace(table, texts={("top1", row): text}),
        ("split-size",),
        (row,),
        not can_be_printed(text, table.images[row], style),
    )


def swapped_percentiles(chance: random.Random) -> Planted:
    """P50 and P95 of a row change places."""
    table = sound(chance, columns=chance.choice((("p50", "p95"), ("mean", "p50", "p95", "p99"))))
    row = chance.choice(table.rows)
    low, high = table.cell("p50", row), table.cell("p95", row)
    apart = _units_apart(high, low)
    return Planted(
        "percentiles swapped",
        replace(table, texts={("p50", row): high, ("p95", row): low}),
        ("percentile-order",),
        (row,),
        apart >= 2,
    )


def top5_below_top1(chance: random.Random) -> Planted:
    """Top-1 and Top-5 of a row change places."""
    table = sound(chance, columns=("top1", "top5"))
    row = chance.choice(table.rows)
    low, high = table.cell("top1", row), table.cell("top5", row)
    texts = {("top1", row): high, ("top5", row): low}
    return Planted("Top-5 below Top-1", replace(table, texts=texts), ("top-5-order",), (row,), _units_apart(high, low) >= 2)


def _units_apart(high: str, low: str) -> Fraction:
    """Difference of two printed numbers in the coarser of their last digits."""
    coarser = min(len(high.partition(".")[2]), len(low.partition(".")[2]))
    return (Fraction(high) - Fraction(low)) * Fraction(10**coarser)


def throughput_off(chance: random.Random) -> Planted:
    """Images/s of a row are eight times too many, or an eighth."""
    table = sound(chance, columns=("mean", "throughput"))
    row = chance.choice(table.rows)
    factor = chance.choice((Fraction(8), Fraction(1, 8)))
    values = {**table.values, "throughput": [value * (factor if at == row else 1) for at, value in enumerate(table.values["throughput"])]}
    stated = table.batches_column or "batch_size" in table.context["claims"]
    # Where nothing is stated, the other rows must all be of one batch size.
    seen = stated or len(set(table.batches)) == 1
    return Planted("images/s off by a factor of 8", replace(table, values=values), ("batch-size", "slipped-digit"), (row,), seen)


def _below(chance: random.Random, column: str, fault: str, check: str) -> Planted:
    table = sound(chance, columns=(column,))
    formats = [chance.choice(list(FORMATS)) for _ in table.rows]
    sizes = [Fraction(_bytes(name)) for name in formats]
    more = Fraction(1) if column == "size" else Fraction(3, 2)
    row = chance.choice(table.rows)
    share = Fraction(chance.uniform(0.3, 1.0))
    values = [size * (share if at == row else more) for at, size in enumerate(sizes)]
    context = {"claims": {}, "model": _model(), "rows": {f"row {at}": _row(name) for at, name in enumerate(formats)}}
    changed = replace(table, values={column: values}, context=context)
    # The least that the format needs, double-quantized constants included where a peak holds them, against the most that is printed.
    name = formats[row]
    least = QUANTIZED * FORMATS[name] + 2 * (PARAMETERS - QUANTIZED) if name in ("int8", "nf4") else PARAMETERS * FORMATS[name]
    text = changed.cell(column, row)
    unit = 2**20 if changed.styles[column].scale < 10**9 else 2**30
    significant = changed.styles[column].significant
    digits = len(text.replace(".", "").strip("0")) if significant else 0
    step = Fraction(10) ** (len(text.partition(".")[0]) - digits) if significant else Fraction(1, 10 ** len(text.partition(".")[2]))
    return Planted(fault, changed, (check,), (row,), (Fraction(text) + 2 * step) * unit < least)


def size_below_bits(chance: random.Random) -> Planted:
    """A file is smaller than its parameters."""
    return _below(chance, "size", "a size below its bits", "size")


def peak_below_weights(chance: random.Random) -> Planted:
    """A peak is lower than the weights."""
    return _below(chance, "vram", "a peak below the weights", "vram-weights")


def two_splits(chance: random.Random) -> Planted:
    """A part of the rows is of another split, and nothing is stated."""
    table = sound(chance, columns=chance.choice((("top1",), ("top1", "top5"))), rows=chance.randint(8, 60))
    first, second = chance.sample(IMAGES, 2)
    images = [chance.choice((first, second)) for _ in table.rows]
    values = {
        column: [Fraction(round(value * number), number) for value, number in zip(column_values, images, strict=True)]
        for column, column_values in table.values.items()
    }
    # Fewer digits hide most numbers of images.
    digits = chance.randint(2, 4)
    style = Style(digits, significant=False, rounding=chance.choice(ROUNDINGS), zeros=True, scale=Fraction(1, 100))
    mixed = replace(table, values=values, styles=dict.fromkeys(values, style), images=images, images_column=False, context={})
    return Planted("rows of two splits", mixed, ("hidden-images",), (), _two_can_be_told(mixed, first, second))


def _two_can_be_told(table: Drawn, first: int, second: int) -> bool:
    """The oracle: the likelihood of the two true numbers over that of the best single one, against all pairs up to a million.

    Of rates printed to one last digit, all different. A number below the resolution prints one of n + 1 rates. A public split that
    explains all rates is an innocent reading.
    """
    style = next(iter(table.styles.values()))
    places = style.digits + (2 if style.scale != 1 else 0)
    different = {table.cell(column, row): table.images[row] for column in table.values for row in table.rows}
    resolution = 10**places
    if style.significant or not style.zeros or places > 6 or len(different) < 3:
        return False
    weights = [sum(number == one for number in different.values()) for one in (first, second)]
    if min(weights) == 0 or min(first, second) >= resolution:
        return False
    reach = zip(weights, (first, second), strict=True)
    pair = sum(count * math.log(count / len(different) / (min(number, resolution) + 1)) for count, number in reach)
    fitting = _single_numbers([Fraction(text) * style.scale for text in different], Fraction(1, resolution), style.rounding)
    if any(public in fitting for public in PUBLIC.values()):
        return False
    best = -len(different) * math.log(min([*fitting, resolution]) + 1)
    return pair - best - 2 * math.log(resolution) > math.log(1000)


def _single_numbers(rates: list[Fraction], step: Fraction, rounding: str) -> set[int]:
    """The numbers below the resolution of which every printed rate is a whole number."""
    low, high = (Fraction(0), step) if rounding == ROUND_DOWN else (-step / 2, step / 2)
    left: Any = np.arange(2, int(1 / step), dtype=np.int64)
    for rate in rates:
        # Over twice the resolution all bounds are whole.
        lower, upper, below = int((rate + low) * 2 / step), int((rate + high) * 2 / step), int(2 / step)
        left = left[-(-lower * left // below) <= upper * left // below]
    return set(left.tolist())


FAULTS: tuple[Callable[[random.Random], Planted], ...] = (
    impossible_rate,
    swapped_percentiles,
    throughput_off,
    size_below_bits,
    peak_below_weights,
    top5_below_top1,
    two_splits,
)
