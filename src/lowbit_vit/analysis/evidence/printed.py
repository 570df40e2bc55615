"""Checks that need no run: the audit's findings, sentences against the table, sums, what is stated, and what agrees.

Every number comes from `paper/table1.csv`, from the claim's own parameters, or from the audit of that table.
"""

from collections.abc import Callable, Sequence

from lowbit_vit.analysis.audit.finding import GOOD, Finding
from lowbit_vit.analysis.evidence.grounds import Grounds, Outcome, printed_number
from lowbit_vit.schema.claim import Claim, Verdict
from lowbit_vit.schema.claim_checks import AgreeCheck, AuditCheck, StatedCheck, SumCheck, TableCheck

MIB = 2**20
# The audit's faults, gravest first.
GRAVITY: tuple[Verdict, ...] = (
    "impossible",
    "contradicts itself",
    "understated",
    "confounded",
    "not supported",
    "underpowered",
    "suspicious",
    "underspecified",
)
_FORMULAS: dict[str, Callable[[Sequence[float]], float]] = {
    "quotient": lambda numbers: numbers[0] / numbers[1],
    "difference": lambda numbers: numbers[0] - numbers[1],
    "percent less": lambda numbers: 100 * (1 - numbers[0] / numbers[1]),
    "mib of 4-byte words": lambda numbers: 4 * numbers[0] / MIB,
}
_WORDS = {
    "quotient": "{0} / {1} = {value}",
    "difference": "{0} - {1} = {value}",
    "percent less": "{0} is {value} % less than {1}",
    "mib of 4-byte words": "4 x {0} bytes = {value} MiB",
}


def audited(check: AuditCheck, claim: Claim, grounds: Grounds) -> Outcome | None:
    """The gravest finding that the check asks about; None where the audit found nothing, which proves nothing either."""
    found = [finding for finding in grounds.audit if finding.check in check.rules and _concerns(finding, check, claim)]
    faults = [finding for finding in found if finding.fault]
    if faults:
        gravest = next(verdict for verdict in GRAVITY if any(finding.verdict == verdict for finding in faults))
        return Outcome(gravest, _sentence(next(finding.words for finding in faults if finding.verdict == gravest)))
    good = [finding for finding in found if finding.verdict in GOOD]
    return Outcome("holds", _sentence(good[0].words)) if good else None


def _concerns(finding: Finding, check: AuditCheck, claim: Claim) -> bool:
    """Whether a finding is about the claim's cell, or without one about a row and a column that the check names."""
    if claim.cell is not None:
        return claim.cell.row in finding.rows and claim.cell.column in finding.columns
    in_rows = check.rows is None or bool(set(finding.rows) & set(check.rows))
    return in_rows and (check.columns is None or bool(set(finding.columns) & set(check.columns)))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


def sentence_against_table(check: TableCheck, grounds: Grounds) -> Outcome:
    """`holds` where the quotient of the two cells lies in the bounds, else `contradicts itself`."""
    one, other = (printed_number(grounds, row, check.column) for row in (check.of_row, check.to_row))
    ratio = one / other
    inside = (check.at_least is None or ratio >= check.at_least) and (check.at_most is None or ratio <= check.at_most)
    allowed = bounds(check.at_least, check.at_most)
    words = f"{check.column}: {one:g} / {other:g} = {ratio:.3f}, {'within' if inside else 'outside'} {allowed}."
    return Outcome("holds" if inside else "contradicts itself", words)


def bounds(at_least: float | None, at_most: float | None) -> str:
    """The range of a check in words."""
    if at_least is None:
        return f"at most {at_most:g}"
    return f"at least {at_least:g}" if at_most is None else f"{at_least:g} to {at_most:g}"


def sum_of(check: SumCheck) -> Outcome:
    """`holds` where the formula gives the printed number to its last digit, else `contradicts itself`."""
    value = _FORMULAS[check.formula](check.numbers)
    agrees = abs(value - check.printed) <= 0.5 * 10**-check.digits + 1e-9
    numbers = [f"{number:,.15g}" for number in check.numbers]
    computed = _WORDS[check.formula].format(*numbers, value=f"{value:,.{check.digits + 1}f}")
    return Outcome("holds" if agrees else "contradicts itself", f"{computed}; printed: {check.printed:,.{check.digits}f}.")


def is_stated(check: StatedCheck, grounds: Grounds) -> Outcome:
    """`holds` where the paper states all that is needed, else `underspecified` or `not supported`, naming what is not there."""
    absent = [need for need in check.needs if grounds.stated[need] is None]
    if absent and check.what == "method":
        return Outcome("underspecified", f"Not stated: {', '.join(absent)}.")
    if absent:
        return Outcome("not supported", f"Not shown: {', '.join(absent)}.")
    places = dict.fromkeys(stated.place for need in check.needs if (stated := grounds.stated[need]) is not None)
    return Outcome("holds", f"Stated in {', '.join(places)}.")


def agree(check: AgreeCheck) -> Outcome:
    """`holds` where all statements give one value; else `contradicts itself`, or `not supported` where a source says otherwise."""
    values = {statement.value for statement in check.statements}
    about = f"{check.about[0].upper()}{check.about[1:]}"
    told = "; ".join(f"{item.place}: {item.value}" for item in check.statements)
    if len(values) == 1:
        return Outcome("holds", f"{about}: {told}.")
    inside = {item.value for item in check.statements if item.source is None}
    return Outcome("contradicts itself" if len(inside) > 1 else "not supported", f"{about}: {told}.")
