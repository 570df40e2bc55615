"""Checks of file sizes and peak memory: what must be in them, by the number of parameters and their formats."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations_with_replacement

from lowbit_vit.analysis.audit.context import DTYPE_BYTES, WEIGHT_BYTES, Context, Model, Row
from lowbit_vit.analysis.audit.finding import LEVEL, Finding, Verdict, about, at_least, not_checked
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable

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
    def least(self) -> float:
        """Parameters with the smallest constants that the format can have."""
        return self.plain + min(self.constants, self.double)


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


def _is_sum(cell: Cell, bytes_: Bytes) -> bool:
    """Whether a size is to the last digit one that arithmetic gives."""
    return any(_near(cell, size) for size in (bytes_.plain, bytes_.plain + bytes_.constants, bytes_.plain + bytes_.double))


def sizes(table: ResultsTable, context: Context) -> list[Finding]:
    """Does a model's size follow from its parameters, and are the constants of quantization in it?"""
    if not table.column("size") or context.model is None or not context.rows:
        return not_checked(
            "size", {"column model size": table.column("size"), "model in the context": context.model, "rows in the context": context.rows}
        )
    found = []
    for decimal, binary in zip(table.column("size"), table.binary.column("size"), strict=True):
        row = context.row(table, decimal.row)
        if row is not None:
            # MB that can only be MiB are said once, by `megabytes`.
            cell = binary if _is_sum(binary, parameter_bytes(context.model, row)) else decimal
            most = _most(table, context, decimal, "size")
            found += _size(table, cell, most=most, bytes_=parameter_bytes(context.model, row), row=row, model=context.model)
    return found


def _size(table: ResultsTable, cell: Cell, *, most: Fraction, bytes_: Bytes, row: Row, model: Model) -> list[Finding]:
    label = table.labels[cell.row]
    mib = {"plain_mib": bytes_.plain / MIB, "constants_mib": bytes_.constants / MIB, "double_mib": bytes_.double / MIB}
    numbers = {"printed_mib": cell.value / MIB, **mib}
    known = {"parameters": bytes_.plain, "parameters and fp32 constants": bytes_.plain + bytes_.constants, "double-quantized": bytes_.least}
    named = {name: size for name, size in known.items() if name == "parameters" or row.quantized}
    match = next((name for name, size in named.items() if _near(cell, size)), None)
    if match is None:
        return [_inexact(label, cell, most=most, bytes_=bytes_, row=row, numbers=numbers)]
    words = f"{label}: {cell.text} is {named[match] / MIB:.2f} MiB, {model.parameters:,} parameters in {row.weights}"
    if match != "parameters" or not row.quantized or cell.most >= bytes_.least:
        return [about("size", (cell,), verdict="exact", words=f"{words}{'' if match == 'parameters' else f' ({match})'}", **numbers)]
    short = f"{label}: {cell.text} leaves out the constants of {row.weights}, {mib['constants_mib']:.2f} MiB in fp32"
    short += f" ({mib['double_mib']:.2f} double-quantized)" if row.block_size is not None else ""
    short += f": {mib['plain_mib'] + mib['constants_mib']:.1f} MiB"
    if model.adapter_parameters is not None:
        adapter = 2 * model.adapter_parameters / MIB
        numbers["adapter_mib"] = adapter
        if 2 * model.adapter_parameters > cell.half:
            short += f"; adapters of rank 1 ({adapter:.2f} MiB in fp16) are not in it either"
    exact = about("size", (cell,), verdict="exact", words=f"{words}, to the last digit", **numbers)
    return [exact, about("size-constants", (cell,), verdict="understated", words=short, **numbers)]


def _inexact(label: str, cell: Cell, *, most: Fraction, bytes_: Bytes, row: Row, numbers: dict[str, float]) -> Finding:
    """A size that is none of the sums: too small in every unit that the heading may mean, or so large that more is in it."""
    whole = bytes_.plain + bytes_.constants
    words = f"{label}: {cell.shown} printed; {row.weights} needs {_both(bytes_.plain)} for parameters alone"
    words += f", {_both(whole)} with constants" if row.quantized else ""
    verdict: Verdict = "suspicious"
    if most < bytes_.plain:
        verdict = "impossible"
        words += ": a compressed file, or fewer parameters than stated, would explain it"
    elif most < bytes_.least:
        verdict = "understated"
    elif cell.low <= whole * _FILE_OVERHEAD:
        verdict = "holds"
    return about("size", (cell,), verdict=verdict, words=words, **numbers)


def _both(size: float) -> str:
    """Bytes in both units that are called a megabyte."""
    return f"{size / 1e6:.2f} MB ({size / MIB:.2f} MiB)"


def _most(table: ResultsTable, context: Context, cell: Cell, quantity: Quantity) -> Fraction:
    """The most bytes that a cell can mean: where the context does not say what a megabyte is, as units of 1024."""
    binary = table.binary.cell(cell.row, quantity)
    return cell.most if binary is None or context.megabyte is not None else binary.most


def megabytes(table: ResultsTable, context: Context) -> list[Finding]:
    """A column in MB that is exact in MiB understates its bytes."""
    heading = table.headings.get("size")
    if heading is None or context.model is None or not context.rows:
        return not_checked(
            "megabytes",
            {"column model size": table.column("size"), "model in the context": context.model, "rows in the context": context.rows},
        )
    binary = [
        cell
        for cell in table.binary.column("size")
        if (row := context.row(table, cell.row)) and _is_sum(cell, parameter_bytes(context.model, row))
    ]
    if not binary or "mib" in heading.lower() or "gib" in heading.lower():
        return []
    cell = max(binary, key=lambda one: one.exact)
    words = (
        f"{heading}: {cell.text} counts units of 1024, to the last digit, as {len(binary)} of the rows do; in units of 1000 it is "
        f"{cell.value / 1e6:.1f} MB (megabyte: MiB in the context reads all columns so)"
    )
    return [about("megabytes", binary, verdict="understated", words=words, printed=float(cell.text), mb=cell.value / 1e6)]


def size_reduction(table: ResultsTable, context: Context) -> list[Finding]:
    """How much smaller is the smallest model than the reference, as printed and with constants?"""
    least = context.claims.size_reduction
    column = table.column("size")
    reference = None if context.reference is None else table.cell(table.labels.index(context.reference), "size")
    if least is None or reference is None or not column or reference.exact == 0:
        return not_checked(
            "size-reduction",
            {
                "column model size": table.column("size"),
                "reference in the context": context.reference,
                "claims.size_reduction in the context": context.claims.size_reduction,
            },
        )
    cell = min(column, key=lambda one: one.exact)
    reduction = 1 - cell.value / reference.value
    words = f"{table.labels[cell.row]} is {reduction:.1%} smaller than {table.labels[reference.row]} as printed"
    numbers = {"reduction": reduction, "claimed": least}
    row = context.row(table, cell.row)
    if context.model is not None and row is not None and row.quantized:
        bytes_ = parameter_bytes(context.model, row)
        numbers["reduction_with_constants"] = 1 - (bytes_.plain + bytes_.constants) / reference.value
        words += f", {numbers['reduction_with_constants']:.1%} with constants"
    # What was rounded up to the claim is no contradiction of it.
    at_most = float(1 - cell.low / reference.most)
    verdict: Verdict = "contradicts itself" if at_most < least - _CLAIM_ROUNDED else "holds"
    if verdict == "holds" and numbers.get("reduction_with_constants", least) < least - _CLAIM_ROUNDED:
        verdict = "understated"
    said = f"{words}; claimed: at least {least:.0%}"
    return [about("size-reduction", (reference, cell), verdict=verdict, words=said, **numbers)]


def fits_already(table: ResultsTable, context: Context) -> list[Finding]:
    """Is the reference too large for the memory that it is said to strain?"""
    gib = context.claims.memory_gib
    reference = None if context.reference is None else table.cell(table.labels.index(context.reference), "vram")
    if gib is None or reference is None:
        return not_checked(
            "fits-already",
            {
                "column peak VRAM": table.column("vram"),
                "reference in the context": context.reference,
                "claims.memory_gib in the context": context.claims.memory_gib,
            },
        )
    share = reference.value / (gib * 2**30)
    words = f"{table.labels[reference.row]} peaks at {reference.text}, {share:.1%} of {gib:g} GiB"
    verdict: Verdict = "not supported" if share < 0.5 else "holds"
    return [about("fits-already", (reference,), verdict=verdict, words=words, share=share, memory_gib=gib)]


def weights_fit(table: ResultsTable, context: Context) -> list[Finding]:
    """Peak memory is at least the weights, constants included, and for nf4 one dequantized layer beside them."""
    if not table.column("vram") or context.model is None or not context.rows:
        return not_checked(
            "vram-weights",
            {"column peak VRAM": table.column("vram"), "model in the context": context.model, "rows in the context": context.rows},
        )
    found = []
    for cell in table.column("vram"):
        row = context.row(table, cell.row)
        if row is None:
            continue
        bytes_ = parameter_bytes(context.model, row)
        numbers = {"peak_mib": cell.value / MIB, "weights_mib": bytes_.plain / MIB, "with_constants_mib": bytes_.least / MIB}
        label = table.labels[cell.row]
        most = _most(table, context, cell, "vram")
        if most < bytes_.least:
            words = (
                f"{label}: the peak {cell.shown} is below the weights' {_both(bytes_.least)}, whatever a megabyte is: a peak that was "
                f"counted from the loaded model on would explain it"
            )
            found.append(about("vram-weights", (cell,), verdict="impossible", words=words, **numbers))
        elif row.weights == "nf4":
            # Dequantize, then multiply: the layer in the compute dtype, and its output, beside all weights.
            beside = DTYPE_BYTES[row.compute] * (context.model.largest_layer + context.model.layer_output)
            needed = bytes_.plain + bytes_.constants + beside
            if most < needed:
                double = bytes_.least + beside
                fits = "double quantization" if double <= most else "a kernel that dequantizes by tiles"
                words = (
                    f"{label}: fp32 constants, one dequantized layer and its output for one image come to {_both(needed)}, above the peak "
                    f"{cell.shown}; {fits} would fit, and is not stated"
                )
                numbers |= {"needed_mib": needed / MIB, "needed_double_mib": double / MIB}
                found.append(about("vram-weights", (cell,), verdict="underspecified", words=words, **numbers))
    return found


def batch_fits(table: ResultsTable, context: Context) -> list[Finding]:
    """Has the peak room for one layer's output at the claimed batch size?"""
    stated = {cell.row: batch for cell in table.column("vram") if (batch := context.batch_size(table, cell.row)) is not None}
    if not stated or context.model is None or not context.rows:
        return not_checked(
            "vram-batch",
            {
                "column peak VRAM": table.column("vram"),
                "the batch size, in the context or in a column": stated,
                "model in the context": context.model,
                "rows in the context": context.rows,
            },
        )
    found = []
    for cell in table.column("vram"):
        row, batch = context.row(table, cell.row), stated.get(cell.row)
        if row is None or batch is None:
            continue
        room = float(_most(table, context, cell, "vram")) - parameter_bytes(context.model, row).plain
        output = batch * context.model.layer_output * DTYPE_BYTES[row.compute]
        if 0 <= room < output:
            words = (
                f"{table.labels[cell.row]}: the peak is {_both(room)} above the weights, and one layer's output at batch {batch} is "
                f"{_both(output)}: a peak of another batch size would explain it"
            )
            numbers = {"room_mib": room / MIB, "output_mib": output / MIB, "batch": batch}
            found.append(about("vram-batch", (cell,), verdict="suspicious", words=words, **numbers))
    return found


def twin_memory(table: ResultsTable, context: Context) -> list[Finding]:
    """A fused attention kernel needs no more memory than a plain one."""
    if not table.column("vram") or not context.twins:
        return not_checked("twin-memory", {"column peak VRAM": table.column("vram"), "twins in the context": context.twins})
    found = []
    for twin in context.twins:
        plain, fused = (table.cell(table.labels.index(name), "vram") for name in (twin.plain, twin.fused))
        if plain is None or fused is None or fused.exact <= plain.exact * Fraction(1 + _TWINS_APART):
            continue
        more = (fused.value - plain.value) / MIB
        words = f"{twin.fused} peaks {more:.2f} MiB above {twin.plain}, whose weights are the same"
        found.append(about("twin-memory", (plain, fused), verdict="suspicious", words=words, more_mib=more))
    return found


def resident_models(table: ResultsTable, context: Context) -> list[Finding]:
    """Do peaks far above their weights equal the weights of other rows, left in memory?"""
    rows = [(vram, size) for row in table.rows if (vram := table.cell(row, "vram")) and (size := table.cell(row, "size"))]
    if len(rows) < 2:
        return not_checked(
            "resident-models",
            {"column peak VRAM": table.column("vram"), "column model size": table.column("size"), "two rows with both": len(rows) > 1},
        )
    smallest = min(size.exact for _, size in rows)
    # What rows without a second model need beside their weights.
    usual = [vram.exact - size.exact for vram, size in rows if 0 <= vram.exact - size.exact < smallest / 2]
    if not usual:
        return not_checked("resident-models", {"a row whose peak is less than half a model above its weights": usual})
    low, high = min(usual) * Fraction(_REMAINDER[0]), max(usual) * Fraction(_REMAINDER[1])
    others = sorted({size.exact for _, size in rows})
    if len(others) > _MOST_SIZES:
        return not_checked("resident-models", {f"at most {_MOST_SIZES} different sizes, whose sums leave room": False})
    left = [models for count in range(1, _MOST_MODELS + 1) for models in combinations_with_replacement(others, count)]
    sums = sorted(sum(models, start=Fraction(0)) for models in left)
    far = [vram.exact - size.exact for vram, size in rows if vram.exact - size.exact > high]
    matched = sum(bisect_left(sums, excess - high) < bisect_right(sums, excess - low) for excess in far)
    p = at_least(matched, of=len(far), share=_covered(sums, low=low, high=high, most=max(far))) if far else 1.0
    if p > LEVEL:
        return []
    found = []
    for vram, size in rows:
        excess = vram.exact - size.exact
        fitting = [(models, excess - sum(models)) for models in left if low <= excess - sum(models) <= high]
        if not fitting or excess <= high:
            continue
        counts = " or ".join(sorted({str(len(parts)) for parts, _ in fitting}))
        readings = [(size.exact, *parts, rest) for parts, rest in fitting]
        parted = " or ".join(" + ".join(f"{float(part / vram.scale):.1f}" for part in reading) for reading in readings[:_MOST_NAMED])
        words = (
            f"{table.labels[vram.row]}: the peak {vram.shown} is {parted}: its weights, those of {counts} more, and what other "
            f"rows need beside theirs ({float(min(usual) / vram.scale):.1f} to {float(max(usual) / vram.scale):.1f}; p = {p:.1g})"
        )
        numbers = {"excess_mib": float(excess) / MIB, "p": p}
        numbers |= {f"remainder_{len(parts)}_mib": float(rest) / MIB for parts, rest in fitting}
        found.append(about("resident-models", (vram, size), verdict="suspicious", words=words, **numbers))
    return found


def _covered(sums: list[Fraction], *, low: Fraction, high: Fraction, most: Fraction) -> float:
    """Share of the peaks between `high` and `most` above their weights that some sum explains: the chance of a match."""
    covered, end = Fraction(0), high
    for models in sums:
        start, stop = max(end, models + low), min(most, models + high)
        if stop > start:
            covered, end = covered + stop - start, stop
    return float(covered / (most - high))
