"""How each quantity is printed, in every table and sentence."""

from collections.abc import Callable, Iterable
from typing import Any

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 2) -> str:
    """Fixed decimals with thousands separators; a dash for a value that was not measured."""
    return DASH if value is None else f"{value:,.{digits}f}"


def decimals(digits: int) -> Callable[[float | None], str]:
    """`number` with so many decimals."""
    return lambda value: number(value, digits)


def milliseconds(value: float | None) -> str:
    """Three significant digits or more: 0.412, 4.12, 41.2, 412."""
    if value is None:
        return DASH
    return number(value, 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0)


def significant(value: float | None) -> str:
    """Three significant digits, for what spans orders of magnitude, such as a KL divergence."""
    return DASH if value is None else f"{value:.3g}"


def percent(rate: float | None, digits: int = 2) -> str:
    """A rate in 0..1 as a percentage without the sign."""
    return DASH if rate is None else f"{100 * rate:.{digits}f}"


def points(difference: float | None) -> str:
    """A difference of two rates in percentage points, signed, with a minus sign and not a hyphen."""
    return DASH if difference is None else f"{100 * difference:+.2f}".replace("-", MINUS)


def probability(p_value: float | None) -> str:
    """A p value; never 0."""
    if p_value is None:
        return DASH
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def within(low: str, high: str, print_value: Callable[[float | None], str]) -> Callable[[dict[str, Any]], str]:
    """What prints the interval between two keys of a row, as `low to high`; empty where there is none."""
    return lambda row: "" if row[low] is None else f"{print_value(row[low])} to {print_value(row[high])}"


def spread(row: dict[str, Any], name: str, text: str, *, digits: int, scale: float = 1.0) -> str:
    """`text` with `(range ...)` behind it where several seeds were averaged."""
    value = row.get(f"{name}_spread")
    return text if value is None else f"{text} (range {scale * value:.{digits}f})"


def process_words(counts: Iterable[int | None]) -> str:
    """What latencies are medians of, as one sentence, from the numbers of processes behind each; empty where there is none."""
    found = sorted({count for count in counts if count is not None})
    if not found:
        return ""
    if found == [1]:
        return "Latencies are of one process each, intervals within it: another process may differ by more."
    several = f"{found[-1]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"Latencies are medians of {several} processes, intervals between processes (six or more give one)."


def process_range(row: dict[str, Any]) -> str:
    """Least and greatest median of a process."""
    medians = [float(word) for word in row["process_medians_ms"].split() if word != "-"]
    return f"{milliseconds(min(medians))} to {milliseconds(max(medians))}"


def image_changes(row: dict[str, Any]) -> str:
    """Images that only the reference has right, and that only this one has."""
    return f"{MINUS}{row['lost']} +{row['gained']}"


def status_words(row: dict[str, Any]) -> str:
    """The status, the reason of what is not there, and which seeds it concerns."""
    if row["reason"] is None:
        return str(row["status"])
    missing = f"seed {row['failed_seeds']}" if " " not in str(row["failed_seeds"]) else f"seeds {row['failed_seeds']}"
    return f"success; {missing}: {row['reason']}" if row["status"] == "success" else str(row["reason"])
