"""Checks of file sizes and peak memory: what must be in them, by the number of parameters and their formats."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations_with_replacement

from lowbit_vit.analysis.audit.check import LEVEL, Finding, Need, Verdict, about, at_least, check
from lowbit_vit.analysis.audit.context import DTYPE_BYTES, WEIGHT_BYTES, Case, Lacking, Model, Row, given
from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.table import Cell

MIB = 2**20
# Double quantization keeps the constants in 8 bits, with one fp32 constant for 256 of them (QLoRA, 2023, section 3).
_OUTER_BLOCK = 256
# A file also holds names, shapes and, in places, buffers.
_FILE_OVERHEAD = 1.05
# Twins do the same work, so their peaks differ by one kernel's scratch space at most.
_TWINS_APART = 0.10
# A share in whole per cents was rounded by up to this.
_CLAIM_ROUNDED = 0.005
# Models left in memory: the remainder must look like what rows without them need beside their weights.
_REMAINDER = (0.75, 1.25)
_MOST_MODELS = 2
# Sums of more sizes than these lie so densely that they explain any peak.
_MOST_SIZES = 50
_MOST_NAMED = 2
# Names of weight formats, as words of a row: fp16, int8, nf4, w8a8, 4-bit.
_FORMAT = re.compile(r"(?:(?:fp|bf|float|bfloat|int|nf|tf|w)[-_]?(\d{1,2})(?:a\d{1,2})?|(\d{1,2})[-_]?bits?)")
_BITS = (4, 8, 16, 32)
# Sizes are printed with three digits; two rows share as many by chance rarely.
_AS_PRINTED, _TELLING = 0.005, 3
# Heads and embeddings that are counted, and not stored.
_PARTLY = 0.05
_SIMULATED = "quantized in simulation only, or a row that was copied, would explain it"


@dataclass(frozen=True)
class Bytes:
    """What a row's parameters take, in bytes.

    Attributes:
        plain: the parameters alone; those that are not quantized in the size of the compute dtype.
        constants: of quantization, fp32.
        double: the same quantized again, of nf4.
    """

    plain: float
    constants: float
    double: float

    @property
    def whole(self) -> float:
        """Parameters with constants in fp32."""
        return self.plain + self.constants

    @property
    def least(self) -> float:
        """Parameters with the smallest constants that the format can have."""
        return self.plain + min(self.constants, self.double)

    def gives(self, cell: Cell) -> bool:
        """Whether a size is one of these sums to the last digit."""
        return any(_near(cell, size) for size in (self.plain, self.whole, self.plain + self.double))


def parameter_bytes(model: Model, row: Row) -> Bytes:
    """Bytes of a row's parameters, by arithmetic."""
    if not row.quantized:
        return Bytes(plain=model.parameters * WEIGHT_BYTES[row.weights], constants=0.0, double=0.0)
    rest = model.parameters - model.quantized_parameters
    plain = model.quantized_parameters * WEIGHT_BYTES[row.weights] + rest * DTYPE_BYTES[row.compute]
    if row.block_size is None:
        return Bytes(plain=plain, constants=4.0 * model.quantized_rows, double=4.0 * model.quantized_rows)
    blocks = model.quantized_parameters / row.block_size
    return Bytes(plain=plain, constants=4 * blocks, double=blocks + 4 * blocks / _OUTER_BLOCK)


def _near(cell: Cell, size: float) -> bool:
    return cell.low <= Fraction(size) <= cell.most


def _both(size: float) -> str:
    """Bytes in both units that are called a megabyte."""
    return f"{size / 1e6:.2f} MB ({size / MIB:.2f} MiB)"


def _most(case: Case, cell: Cell, quantity: Quantity) -> Fraction:
    """The most bytes that a cell can mean: where the context does not say what a megabyte is, as units of 1024."""
    binary = case.table.binary.cell(cell.row, quantity)
    return cell.most if binary is None or case.context.megabyte is not None else binary.most


@check("size", "size", "model", "rows")
def sizes(case: Case) -> Iterator[Finding]:
    """Does a model's size follow from its parameters, and are the constants of quantization in it?"""
    for decimal, row, model in case.sized("size"):
        bytes_, binary = parameter_bytes(model, row), case.table.binary.cell(decimal.row, "size")
        # MB that can only be MiB are said once, by `megabytes`.
        cell = binary if binary is not None and bytes_.gives(binary) else decimal
        known = {"parameters": bytes_.plain}
        if row.quantized:
            known |= {"parameters and fp32 constants": bytes_.whole, "double-quantized": bytes_.least}
        match = next((name for name, size in known.items() if _near(cell, size)), None)
        mib = {"plain_mib": bytes_.plain / MIB, "constants_mib": bytes_.constants / MIB, "double_mib": bytes_.double / MIB}
        numbers = {"printed_mib": cell.value / MIB, **mib}
        if match is None:
            yield _inexact(case, cell, most=_most(case, decimal, "size"), bytes_=bytes_, row=row, numbers=numbers)
            continue
        words = f"{case.label(cell)}: {cell.text} is {known[match] / MIB:.2f} MiB, {model.parameters:,} parameters in {row.weights}"
        if match == "parameters" and row.quantized and cell.most < bytes_.least:
            yield from _without_constants(case, cell, words=words, row=row, model=model, numbers=numbers)
        else:
            yield about((cell,), verdict="exact", words=words + ("" if match == "parameters" else f" ({match})"), **numbers)


def _without_constants(case: Case, cell: Cell, *, words: str, row: Row, model: Model, numbers: dict[str, float]) -> Iterator[Finding]:
    """A size that is the low-bit weights to the last digit."""
    short = f"{case.label(cell)}: {cell.text} leaves out the constants of {row.weights}, {numbers['constants_mib']:.2f} MiB in fp32"
    short += f" ({numbers['double_mib']:.2f} double-quantized)" if row.block_size is not None else ""
    short += f": {numbers['plain_mib'] + numbers['constants_mib']:.1f} MiB"
    if model.adapter_parameters is not None:
        adapter = 2 * model.adapter_parameters
        numbers = {**numbers, "adapter_mib": adapter / MIB}
        short += f"; adapters of rank 1 ({adapter / MIB:.2f} MiB in fp16) are not in it either" if adapter > cell.half else ""
    yield about((cell,), verdict="exact", words=f"{words}, to the last digit", **numbers)
    yield about((cell,), verdict="understated", words=short, **numbers).model_copy(update={"check": "size-constants"})


def _inexact(case: Case, cell: Cell, *, most: Fraction, bytes_: Bytes, row: Row, numbers: dict[str, float]) -> Finding:
    """A size that is none of the sums: too small in every unit that the heading may mean, or so large that more is in it."""
    words = f"{case.label(cell)}: {cell.shown} printed; {row.weights} needs {_both(bytes_.plain)} for parameters alone"
    words += f", {_both(bytes_.whole)} with constants" if row.quantized else ""
    verdict: Verdict = "suspicious"
    if most < bytes_.plain:
        verdict = "impossible"
        words += ": a compressed file, or fewer parameters than stated, would explain it"
    elif most < bytes_.least:
        verdict = "understated"
    elif cell.low <= bytes_.whole * _FILE_OVERHEAD:
        verdict = "holds"
    return about((cell,), verdict=verdict, words=words, **numbers)


@check("megabytes", "size", "model", "rows")
def megabytes(case: Case) -> Iterator[Finding]:
    """A column in MB that is exact in MiB understates its bytes."""
    heading = case.table.headings["size"]
    sizes = [(case.table.binary.cell(cell.row, "size"), row, model) for cell, row, model in case.sized("size")]
    binary = [cell for cell, row, model in sizes if cell is not None and parameter_bytes(model, row).gives(cell)]
    if binary and "mib" not in heading.lower() and "gib" not in heading.lower():
        cell = max(binary, key=lambda one: one.exact)
        words = (
            f"{heading}: {cell.text} counts units of 1024, to the last digit, as {len(binary)} of the rows do; in units of 1000 it is "
            f"{cell.value / 1e6:.1f} MB (megabyte: MiB in the context reads all columns so)"
        )
        yield about(binary, verdict="understated", words=words, printed=float(cell.text), mb=cell.value / 1e6)


def _bits(words: frozenset[str]) -> tuple[int | None, frozenset[str]]:
    """Bits of a weight by a row's words, where one format is named, and the other words."""
    formats = {word: int(found[1] or found[2]) for word in words if (found := _FORMAT.fullmatch(word))}
    bits = set(formats.values())
    return (bits.pop() if len(bits) == 1 else None), words - set(formats)


def _formats(case: Case) -> dict[int, tuple[int, frozenset[str], Cell]]:
    """Bits, other words and size of each row whose name has one format."""
    named = {cell.row: (*_bits(case.table.words[cell.row]), cell) for cell in case.table.column("size") if cell.exact}
    return {row: (bits, rest, cell) for row, (bits, rest, cell) in named.items() if bits is not None}


@check("format-size")
def format_sizes(case: Case) -> Iterator[Finding]:
    """Has a row of fewer bits the size of another format: of the same model's row, or of so many parameters?"""
    rows = _formats(case)
    for row, (bits, rest, cell) in rows.items():
        same = next((other for more, words, other in rows.values() if more > bits and words == rest and other.exact == cell.exact), None)
        if same is not None and len(cell.text.replace(".", "").strip("0")) >= _TELLING:
            words = f"{case.label(cell)}: {cell.shown} is the size of {case.label(same)} to the last digit"
            yield about((same, cell), verdict="suspicious", words=f"{words}: {_SIMULATED}", bits=bits)
            continue
        parameters = case.table.cell(row, "params")
        if parameters is None or case.model(row) is not None:
            continue
        each = {cell.value * 8 / parameters.value, (case.table.binary.cell(row, "size") or cell).value * 8 / parameters.value}
        of = next((more for more in _BITS if more > bits and any(abs(one / more - 1) <= _AS_PRINTED for one in each)), None)
        called = f"{case.label(cell)}: {cell.shown} for {parameters.shown} parameters"
        if of is not None and not any(bits * (1 - _AS_PRINTED) <= one <= bits * _FILE_OVERHEAD for one in each):
            words = f"{called} are {of} bits each, not {bits}"
            yield about((parameters, cell), verdict="suspicious", words=f"{words}: {_SIMULATED}", bits=bits, printed_bits=of)
        elif max(each) < bits * (1 - _PARTLY):
            words = f"{called} are {max(each):.1f} bits each, below {bits}"
            words += ": a compressed file, or parameters that are not stored, would explain it"
            yield about((parameters, cell), verdict="suspicious", words=words, bits=bits, printed_bits=max(each))


@check("size-reduction", "size", "reference", "claims.size_reduction")
def size_reduction(case: Case) -> Iterator[Finding]:
    """How much smaller is the smallest model than the reference, as printed and with constants?"""
    least, reference = given(case.context.claims.size_reduction), case.of_reference("size")
    if reference is None or not reference.exact:
        raise Lacking("a size above zero in the reference row")
    cell = min(case.table.column("size"), key=lambda one: one.exact)
    reduction = 1 - cell.value / reference.value
    words = f"{case.label(cell)} is {reduction:.1%} smaller than {case.label(reference)} as printed"
    numbers = {"reduction": reduction, "claimed": least}
    row, model = case.row(cell.row), case.model(cell.row)
    if model is not None and row is not None and row.quantized:
        numbers["reduction_with_constants"] = 1 - parameter_bytes(model, row).whole / reference.value
        words += f", {numbers['reduction_with_constants']:.1%} with constants"
    # What was rounded up to the claim is no contradiction of it.
    claimed = least - _CLAIM_ROUNDED
    verdict: Verdict = "holds"
    if float(1 - cell.low / reference.most) < claimed:
        verdict = "contradicts itself"
    elif numbers.get("reduction_with_constants", least) < claimed:
        verdict = "understated"
    yield about((reference, cell), verdict=verdict, words=f"{words}; claimed: at least {least:.0%}", **numbers)


@check("vram-weights", "vram", "model", "rows")
def weights_fit(case: Case) -> Iterator[Finding]:
    """Peak memory is at least the weights, constants included, and for nf4 one dequantized layer beside them."""
    for cell, row, model in case.sized("vram"):
        bytes_, most = parameter_bytes(model, row), _most(case, cell, "vram")
        # Dequantize, then multiply: the layer in the compute dtype, and its output, beside all weights.
        beside = DTYPE_BYTES[row.compute] * (model.largest_layer + model.layer_output)
        needed, double = bytes_.whole + beside, bytes_.least + beside
        numbers = {"peak_mib": cell.value / MIB, "weights_mib": bytes_.plain / MIB, "with_constants_mib": bytes_.least / MIB}
        if most < bytes_.least:
            words = (
                f"{case.label(cell)}: the peak {cell.shown} is below the weights' {_both(bytes_.least)}, whatever a megabyte is: a peak "
                f"that was counted from the loaded model on would explain it"
            )
            yield about((cell,), verdict="impossible", words=words, **numbers)
        elif row.weights == "nf4" and most < needed:
            fits = "double quantization" if double <= most else "a kernel that dequantizes by tiles"
            words = (
                f"{case.label(cell)}: fp32 constants, one dequantized layer and its output for one image come to {_both(needed)}, above "
                f"the peak {cell.shown}; {fits} would fit, and is not stated"
            )
            numbers |= {"needed_mib": needed / MIB, "needed_double_mib": double / MIB}
            yield about((cell,), verdict="underspecified", words=words, **numbers)


def _batches(case: Case) -> dict[int, int]:
    """The stated batch size of each row with a peak."""
    return {cell.row: batch for cell in case.table.column("vram") if (batch := case.batch_size(cell.row)) is not None}


@check("vram-batch", "vram", Need("the batch size, in the context or in a column", _batches), "model", "rows")
def batch_fits(case: Case) -> Iterator[Finding]:
    """Has the peak room for one layer's output at the claimed batch size?"""
    batches = _batches(case)
    for cell, row, model in case.sized("vram"):
        batch = batches.get(cell.row, 0)
        room = float(_most(case, cell, "vram")) - parameter_bytes(model, row).plain
        output = batch * model.layer_output * DTYPE_BYTES[row.compute]
        if 0 <= room < output:
            words = (
                f"{case.label(cell)}: the peak is {_both(room)} above the weights, and one layer's output at batch {batch} is "
                f"{_both(output)}: a peak of another batch size would explain it"
            )
            yield about((cell,), verdict="suspicious", words=words, room_mib=room / MIB, output_mib=output / MIB, batch=batch)


@check("twin-memory", "vram", "twins")
def twin_memory(case: Case) -> Iterator[Finding]:
    """A fused attention kernel needs no more memory than a plain one."""
    peaks = {cell.row: cell for cell in case.table.column("vram")}
    for twins in case.twins:
        if not set(twins) <= set(peaks):
            continue
        plain, fused = (peaks[row] for row in twins)
        if fused.exact > plain.exact * Fraction(1 + _TWINS_APART):
            more = (fused.value - plain.value) / MIB
            words = f"{case.label(fused)} peaks {more:.2f} MiB above {case.label(plain)}, whose weights are the same"
            yield about((plain, fused), verdict="suspicious", words=words, more_mib=more)


@check("resident-models", "vram", "size", Need("two rows with both", lambda case: len(case.table.together("vram", "size")) > 1))
def resident_models(case: Case) -> Iterator[Finding]:
    """Do peaks far above their weights equal the weights of other rows, left in memory?"""
    rows = [(vram, size, vram.exact - size.exact) for vram, size in case.table.together("vram", "size")]
    sizes = sorted({size.exact for _, size, _ in rows})
    # What rows without a second model need beside their weights.
    usual = [excess for _, _, excess in rows if 0 <= excess < sizes[0] / 2]
    if not usual:
        raise Lacking("a row whose peak is less than half a model above its weights")
    if len(sizes) > _MOST_SIZES:
        raise Lacking(f"at most {_MOST_SIZES} different sizes, whose sums leave room")
    low, high = min(usual) * Fraction(_REMAINDER[0]), max(usual) * Fraction(_REMAINDER[1])
    left = {models: sum(models) for count in range(1, _MOST_MODELS + 1) for models in combinations_with_replacement(sizes, count)}
    sums = sorted(map(Fraction, left.values()))
    far = [excess for _, _, excess in rows if excess > high]
    matched = sum(bisect_left(sums, excess - high) < bisect_right(sums, excess - low) for excess in far)
    p = at_least(matched, of=len(far), share=_covered(sums, low=low, high=high, most=max(far))) if far else 1.0
    if p > LEVEL:
        return
    for vram, size, excess in rows:
        fitting = {models: excess - total for models, total in left.items() if low <= excess - total <= high}
        if not fitting or excess <= high:
            continue
        counts = " or ".join(sorted({str(len(models)) for models in fitting}))
        readings = [(size.exact, *models, rest) for models, rest in fitting.items()]
        parted = " or ".join(" + ".join(f"{float(part / vram.scale):.1f}" for part in reading) for reading in readings[:_MOST_NAMED])
        words = (
            f"{case.label(vram)}: the peak {vram.shown} is {parted}: its weights, those of {counts} more, and what other "
            f"rows need beside theirs ({float(min(usual) / vram.scale):.1f} to {float(max(usual) / vram.scale):.1f}; p = {p:.1g})"
        )
        numbers = {"excess_mib": float(excess) / MIB, "p": p}
        numbers |= {f"remainder_{len(models)}_mib": float(rest) / MIB for models, rest in fitting.items()}
        yield about((vram, size), verdict="suspicious", words=words, **numbers)


def _covered(sums: list[Fraction], *, low: Fraction, high: Fraction, most: Fraction) -> float:
    """Share of the peaks between `high` and `most` above their weights that some sum explains: the chance of a match."""
    covered, end = Fraction(0), high
    for models in sums:
        start, stop = max(end, models + low), min(most, models + high)
        if stop > start:
            covered, end = covered + stop - start, stop
    return float(covered / (most - high))


@check("fits-already", "vram", "reference", "claims.memory_gib")
def fits_already(case: Case) -> Iterator[Finding]:
    """Is the reference too large for the memory that it is said to strain?"""
    gib, reference = given(case.context.claims.memory_gib), given(case.of_reference("vram"), "peak VRAM in the reference row")
    share = reference.value / (gib * 2**30)
    words = f"{case.label(reference)} peaks at {reference.text}, {share:.1%} of {gib:g} GiB"
    yield about((reference,), verdict="not supported" if share < 0.5 else "holds", words=words, share=share, memory_gib=gib)
