"""Comparisons, repetitions, formats' sizes: the formula is recognized, what does not follow is found, innocent tables are left alone."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import audit_comparisons
from audit_comparisons import Compared, Planted
from lowbit_vit.analysis.audit import Finding, audit, load_table

LATENCIES = ("40.00", "21.30", "17.70", "33.10", "12.40", "28.60", "9.15", "25.20", "14.70", "36.40", "19.90")


def of(check: str, found: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def audited(folder: Path, *texts: str) -> tuple[Finding, ...]:
    """The findings of the last of several tables."""
    tables = []
    for at, text in enumerate(texts):
        (folder / f"{at}.csv").write_text(text)
        tables.append(load_table(folder / f"{at}.csv"))
    return audit(tables[-1], before=tables[:-1])


def comparing(heading: str, printed: list[str], latencies: tuple[str, ...] = LATENCIES) -> str:
    lines = [f"row {at},{latency},{text}" for at, (latency, text) in enumerate(zip(latencies, printed, strict=True))]
    return "\n".join([f"Model,Latency (ms),{heading}", *lines]) + "\n"


def printed(formula: Callable[[float, float], float], form: str = "{:.2f}", **changed: str) -> list[str]:
    texts = [form.format(formula(40.0, float(latency))) for latency in LATENCIES]
    return [changed.get(f"row_{at}", text) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("heading", "form", "scale", "formula", "verdict"),
    [
        ("Speedup", "{:.2f}x", 1, "old / new", "exact"),
        ("Relative latency", "{:.3f}", 1, "new / old", "exact"),
        ("Latency reduction (%)", "{:.1f}", 100, "(old - new) / old", "exact"),
        ("Reduction", "{:.1f}%", 100, "(old - new) / old", "exact"),
        ("Latency reduction", "{:.1f}", 100, "(old - new) / old", "exact"),
        ("Latency change (%)", "{:.1f}", 100, "(new - old) / old", "exact"),
        ("Δ Latency", "{:.2f}", 1, "new - old", "exact"),
        ("Gain", "{:.2f}", 1, "old - new", "exact"),
        ("Improvement (%)", "{:.1f}", 100, "(old - new) / new", "noted"),
        ("Latency Improvement", "{:.2f}", 1, "1 + (old - new) / old", "noted"),
    ],
)
def test_the_formula_of_a_column_that_compares_is_named(
    heading: str, form: str, scale: int, formula: str, verdict: str, tmp_path: Path
) -> None:
    function = audit_comparisons.FORMULAS[formula]
    text = comparing(heading, printed(lambda old, new: scale * function(old, new), form))
    (found,) = of("derived", audited(tmp_path, text))
    assert f"{heading} is {formula} (Latency (ms), old in row 0) in 10 of 10 rows" in found.words
    assert (found.verdict, found.fault) == (verdict, False)


def test_a_speedup_that_does_not_follow_contradicts_its_two_cells(tmp_path: Path) -> None:
    text = comparing("Speedup", printed(lambda old, new: old / new, row_3="1.25"))
    (wrong,) = (finding for finding in audited(tmp_path, text) if finding.fault)
    assert (wrong.check, wrong.verdict, wrong.rows) == ("derived", "contradicts itself", (0, 3))
    assert "Speedup 1.25 does not follow from 40.00 and 33.10: old / new is 1.208 (" in wrong.words
    assert "in 9 of 10 rows: they cannot all be right" in wrong.words


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"row_3": "1.22"}, "within a per cent, as of another pass"),
        ({"row_3": "-"}, "a cell without a number"),
    ],
)
def test_a_speedup_that_is_nearly_right_or_missing_is_innocent(changed: dict[str, str], reason: str, tmp_path: Path) -> None:
    text = comparing("Speedup", printed(lambda old, new: old / new, **changed))
    assert [finding for finding in audited(tmp_path, text) if finding.fault] == [], reason


@pytest.mark.parametrize(("cell", "told"), [("0.69", ""), ("0.17", "(old - new) / old would give it")])
def test_a_cell_that_another_row_or_formula_gives_is_doubted_at_most(cell: str, told: str, tmp_path: Path) -> None:
    # 22.84 / 33.10, with a row of 22.84; or a reduction among speedups.
    latencies = (*LATENCIES[:10], "22.84")
    texts = [*printed(lambda old, new: old / new, row_3=cell)[:10], "1.75"]
    (wrong,) = (finding for finding in audited(tmp_path, comparing("Speedup", texts, latencies)) if finding.fault)
    assert (wrong.verdict, wrong.rows) == ("suspicious", (0, 3))
    assert told in wrong.words


def test_numbers_that_no_formula_gives_are_said_and_not_doubted(tmp_path: Path) -> None:
    text = comparing("Speedup", ["1.00", "1.91", "1.32", "0.77", "5.20", "1.03", "3.33", "2.41", "1.12", "2.95", "0.64"])
    (found,) = of("derived", audited(tmp_path, text))
    assert (found.verdict, found.words) == ("not checked", "Speedup: no formula that is known gives its numbers from other columns")


def test_a_percentage_beside_it_is_not_the_unit_of_a_speedup(tmp_path: Path) -> None:
    speedups, saved = printed(lambda old, new: old / new), printed(lambda old, new: 100 * (old - new) / old, "{:.1f}")
    lines = [f"row {at},{row[0]},{row[1]},{row[2]}" for at, row in enumerate(zip(LATENCIES, saved, speedups, strict=True))]
    text = "\n".join(["Model,Latency (ms),Latency reduction (%),Speedup", *lines]) + "\n"
    assert [found.verdict for found in of("derived", audited(tmp_path, text))] == ["exact", "exact"]


def test_a_formula_that_fits_too_few_rows_is_said_as_such(tmp_path: Path) -> None:
    text = "Model,Latency (ms),Speedup\nfp16,10.0,1.0x\nint8,6.1,1.64x\nint4,5.0,2.0x\n"
    (found,) = of("derived", audited(tmp_path, text))
    said = "Speedup fits old / new (Latency (ms), old in fp16), in too few rows to be evidence"
    assert (found.verdict, found.words) == ("not checked", said)


def test_each_row_is_compared_with_the_one_that_is_named_most_alike(tmp_path: Path) -> None:
    lines = [f"net{net},{weights},{10 * net + (0 if weights == 'fp16' else -4.21)}" for weights in ("fp16", "int8") for net in range(1, 7)]
    speedups = ["-"] * 6 + [f"{10 * net / (10 * net - 4.21):.2f}x" for net in range(1, 7)]
    text = "Model,Format,Latency (ms),Speedup vs FP16\n" + "\n".join(map(",".join, zip(lines, speedups, strict=True)))
    (found,) = of("derived", audited(tmp_path, text))
    assert "old / new (Latency (ms), old in the row without one that is named most alike) in 6 of 6 rows" in found.words


RATES = ("82.10", "79.35", "81.72", "77.41", "80.08", "74.66", "70.12", "83.57", "78.24", "69.91")


@pytest.mark.parametrize(("error", "verdict"), [("18.28", None), ("18.29", None), ("18.38", "contradicts itself")])
def test_an_error_rate_is_what_is_missing_to_100_per_cent(error: str, verdict: str | None, tmp_path: Path) -> None:
    errors = [f"{100 - float(rate):.2f}" for rate in RATES]
    errors[2] = error
    text = "Model,Top-1 (%),top1_err\n" + "".join(f"row {at},{rate},{errors[at]}\n" for at, rate in enumerate(RATES))
    found = of("error", audited(tmp_path, text))
    assert [(one.verdict, one.rows) for one in found if one.fault] == ([] if verdict is None else [(verdict, (2,))])
    assert "top1_err is 100 % - Top-1 (%)" in found[0].words


@pytest.mark.parametrize(
    ("heading", "energy", "says"),
    [
        ("Latency (ms)", lambda watt, time: watt * time / 1000, "Power (W) x Latency (ms)"),
        ("Throughput (img/s)", lambda watt, rate: watt / rate, "Power (W) / Throughput (img/s)"),
    ],
)
def test_energy_is_power_times_time(heading: str, energy: Callable[[float, float], float], says: str, tmp_path: Path) -> None:
    rows = [(311.0, 40.25), (287.0, 21.35), (402.0, 17.72), (355.0, 33.18), (298.0, 12.45), (266.0, 28.61), (391.0, 9.15)]
    cells = [f"{energy(*row):.3f}" for row in rows]
    lines = [f"row {at},{row[0]:.0f},{row[1]},{cell}" for at, (row, cell) in enumerate(zip(rows, cells, strict=True))]
    text = "\n".join([f"Model,Power (W),{heading},Energy (J)", *lines])
    (found,) = of("energy", audited(tmp_path, text))
    assert (found.verdict, f"Energy (J) is {says} in 7 of 7 rows" in found.words) == ("exact", True)
    (_, wrong) = of("energy", audited(tmp_path, text.replace(cells[4], f"{2 * float(cells[4]):.3f}")))
    assert (wrong.rows, wrong.fault) == ((4,), True)


@pytest.mark.parametrize(
    ("texts", "rows", "verdict"),
    [
        (("Model,Top-1\na,81.2\na,81.9\nb,79.1\n",), (0, 1), "suspicious"),
        (("Model,Top-1\na,81.2\na,81.20\nb,79.1\n",), None, None),  # one value
        (("Model,Top-1\na,81.2\na,81.9\nb,79.1\nb,79.3\n",), (0, 1, 2, 3), "noted"),  # every row was run twice
        (("Model,Batch size,Latency (ms)\na,1,1.25\na,8,7.50\n",), None, None),
        (("Model,Latency (ms),latency_s\na,12.5,0.0125\nb,13.5,0.0145\n",), (1,), "suspicious"),
        (("Model,Latency (ms),latency_s\na,12.5,0.0125\nb,13.5,0.014\n",), None, None),  # rounded
        (("Model,Size (MB),Size (MiB)\na,100.0,95.4\nb,50.0,50.0\n",), None, None),  # either megabyte
        (("Model,Top-1\na,81.23\nb,79.10\n", "Model,Top-1\nb,79.1\nA,81.32\n"), (1,), "suspicious"),
        (("Model,Top-1\na,81.23\nb,79.10\n", "Model,Top-1\nb,79.1\na,81.2\n"), None, None),  # rounded
        (("Model,Latency (ms)\na,8.5\nb,9.1\n", "Model,Latency (ms)\na,17.5\nb,18.1\n"), (0, 1), "noted"),  # another GPU
        (("Model,Batch size,Top-1\na,1,81.2\nb,1,79.1\n", "Model,Batch size,Top-1\na,8,81.5\nb,1,79.1\n"), None, None),
    ],
)
def test_a_cell_that_is_printed_with_two_values_is_found(
    texts: tuple[str, ...], rows: tuple[int, ...] | None, verdict: str | None, tmp_path: Path
) -> None:
    found = of("printed-twice", audited(tmp_path, *texts))
    assert [(one.verdict, one.rows) for one in found] == ([] if rows is None else [(verdict, rows)])


def test_constant_columns_and_equal_rows_are_noted_and_no_fault(tmp_path: Path) -> None:
    lines = ["a,12.53,81.23,1157.4", "b,12.53,81.23,1157.4", "c,9.87,80.11,1157.4", "d,9.87,79.02,1157.4"]
    found = audited(tmp_path, "Model,Latency (ms),Top-1 (%),Peak VRAM (MB)\n" + "\n".join(lines))
    assert [(one.check, one.verdict, one.rows) for one in found if one.check in {"constant", "equal-rows"}] == [
        ("constant", "noted", (0, 1, 2, 3)),
        ("equal-rows", "noted", (0, 1)),
    ]
    assert not any(one.fault for one in found)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ("ViT FP32,86.6,346.4\nViT INT8,86.6,346.4", (0, 1)),  # the row's beside it
        ("ViT FP32,86.6,346.4\nViT w8a8,86.6,173.2", (1,)),  # two bytes a parameter
        ("ViT FP32,86.6,346.4\nViT NF4,86.6,30.1", (1,)),  # fewer bits than four
        ("ViT FP32,86.6,346.4\nViT INT8,86.6,88.1", None),
        ("ViT FP32,86.6,330.3\nViT INT8,86.6,82.6", None),  # MiB
        ("ViT FP16,86.6,173.2\nViT BF16,86.6,173.2", None),
        ("ViT FP32,86.6,346.4\nDeiT INT8,346.0,346.4", None),  # another model
        ("ViT FP32,86.6,346.4\nViT NF4,86.6,61.2", None),  # in part
    ],
)
def test_a_format_with_another_formats_size_is_doubted(rows: str, wrong: tuple[int, ...] | None, tmp_path: Path) -> None:
    found = of("format-size", audited(tmp_path, f"Model,Params (M),Size (MB)\n{rows}\n"))
    assert [(one.verdict, one.rows) for one in found] == ([] if wrong is None else [("suspicious", wrong)])


# ----------------------------------------------------------------------------------------- drawn tables: benchmarks/audit_errors.py


def drawn(folder: Path, table: Compared, before: Compared | None = None) -> tuple[Finding, ...]:
    tables = []
    for each in filter(None, (before, table)):
        (folder / "table").write_text(each.text)
        tables.append(load_table(folder / "table", decimal="comma" if each.comma else "point"))
    return audit(tables[-1], before=tables[:-1])


def test_a_sound_table_that_compares_is_read_in_every_form_and_not_accused(tmp_path: Path) -> None:
    doubted = 0
    for number in range(40):
        table = audit_comparisons.sound(random.Random(f"compared {number}"))
        found = drawn(tmp_path, table)
        assert [finding for finding in found if finding.hard] == [], table.text
        doubted += any(finding.fault for finding in found)
    assert doubted <= 2


@pytest.mark.parametrize("plant", audit_comparisons.FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_comparison_that_can_be_seen_is_found(plant: Callable[[random.Random], Planted], tmp_path: Path) -> None:
    seen = found = 0
    for number in range(12):
        planted = plant(random.Random(f"planted {number}"))
        if planted.decidable:
            seen += 1
            said = [one for one in drawn(tmp_path, planted.table, planted.before) if one.fault and one.check == planted.check]
            found += any(planted.row in one.rows for one in said)
    assert found == seen >= 3
