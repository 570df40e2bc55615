"""A table and a context are read exactly or refused in one line that says what to write instead."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit_vit.analysis.audit import Case, Context, audit, load_context, load_table
from lowbit_vit.analysis.audit.table import above
from lowbit_vit.errors import ConfigError, DataError


def write(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("heading", "text", "value"),
    [
        ("Latency (ms)", "16.30", Fraction("16.3")),
        ("latency_us", "16300", Fraction("16.3")),
        ("Mean latency [s]", "0.0163", Fraction("16.3")),
        ("Latency (\N{MICRO SIGN}s)", "16300", Fraction("16.3")),
        ("Latency (\N{GREEK SMALL LETTER MU}s)", "16300", Fraction("16.3")),
    ],
)
def test_headings_of_one_quantity_mean_the_same(heading: str, text: str, value: Fraction, tmp_path: Path) -> None:
    cell = load_table(write(tmp_path, f"Model,{heading}\none,{text}\n")).cell(0, "mean")
    assert cell is not None
    assert cell.exact == value
    assert cell.text == text


def test_a_cell_keeps_its_digits(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, "Model,Top-1 (%)\none,59.50\ntwo,N/A\n"))
    cell = table.cell(0, "top1")
    assert cell is not None
    assert (cell.low, cell.high) == (Fraction("0.59495"), Fraction("0.59505"))
    assert cell.shown == "59.50 %"
    assert table.cell(1, "top1") is None


def test_a_step_is_the_last_digit_that_counts(tmp_path: Path) -> None:
    text = "Model,Latency (ms),Throughput (img/s),Latency P50 (ms)\none,9.5,1230,16.353219032287598\ntwo,12.25,845,1.0\n"
    table = load_table(write(tmp_path, text))
    steps = {(row, quantity): cell.step for (row, quantity), cell in table.cells.items()}
    assert (steps[0, "mean"], steps[1, "mean"]) == (Fraction("0.1"), Fraction("0.01"))
    # Three significant digits at most in this column: 1230 may be any number from 1225 to 1235.
    assert (steps[0, "throughput"], steps[1, "throughput"]) == (Fraction(10), Fraction(1))
    assert float(steps[0, "p50"]) == pytest.approx(16.353219 * 2**-22)


@pytest.mark.parametrize(
    ("one", "other", "is_above"),
    [("1.25", "1.24", False), ("1.26", "1.24", True), ("1.29", "1.2", False), ("1.31", "1.2", True), ("1.2", "1.29", False)],
)
def test_a_number_is_above_another_if_it_was_so_before_both_were_rounded_or_truncated(
    one: str, other: str, is_above: bool, tmp_path: Path
) -> None:
    table = load_table(write(tmp_path, f"Model,Latency P50 (ms),Latency P95 (ms)\none,{one},{other}\n"))
    lower, upper = table.cell(0, "p50"), table.cell(0, "p95")
    assert lower is not None
    assert upper is not None
    assert above(lower, upper) is is_above


def test_images_and_batches_of_a_row_count_before_those_of_the_table(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, "Model,Test images,Batch size\none,100,8\ntwo,-,-\nthree,300,8\n"))
    row = {"weights": "fp32", "compute": "fp32", "attention": "sdpa", "images": 7, "batch_size": 2}
    case = Case(table, Context.model_validate({"claims": {"images": 50, "batch_size": 32}, "rows": {"three": row}}))
    assert [case.images(at) for at in table.rows] == [100, 50, 7]
    assert [case.batch_size(at) for at in table.rows] == [8, 32, 2]


def test_megabytes_are_read_as_the_context_says(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, "Model,Size (MB),Peak VRAM (MiB)\none,1.0,1.0\n"))
    size, vram = table.cell(0, "size"), table.binary.cell(0, "size")
    assert size is not None
    assert vram is not None
    assert (size.exact, vram.exact) == (Fraction(10**6), Fraction(2**20))
    assert table.column("vram") == table.binary.column("vram")


def test_a_column_that_starts_with_a_hash_is_left_out(tmp_path: Path) -> None:
    assert load_table(write(tmp_path, "Row,Model,#Notes\n0,one,anything at all\n")).headings == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Model,Latncy (ms)\none,1\n", "no column is known: 'Latncy (ms)' (did you mean latency (ms)?)"),
        ("Model,Wallclock (d)\none,1\n", "no column is known: 'Wallclock (d)'; headings are such as"),
        ("Model,Modle\none,1\n", "did you mean model?"),
        ("Model,Latency\none,1\n", "'Latency': the unit is missing; allowed: s, ms, us"),
        ("Model,Latency (min)\none,1\n", "'Latency (min)': unit 'min' is not known; allowed: s, ms, us"),
        ("Model,Latency (MB)\none,1\n", "unit 'mb' is not known; allowed: s, ms, us"),
        ("Latency (ms)\n1\n", "no column with the models' names; call it Model"),
        ("Model,Top-1\none,159.5\n", "row 0, Top-1: 159.5 is above 100 %"),
        ("Model,Top-1 (%)\none,159.5\n", "row 0, Top-1 (%): 159.5 is above 100 %"),
        ('Model,Latency (ms)\none,"1,23.45"\n', "'1,23.45' is not a number such as 12.50"),
        ("Model,Latency (ms)\none,12.5 / 13.5\n", "'12.5 / 13.5' is not a number such as 12.50"),
        (f"Model,Latency (ms)\none,{'1' * 5000}\n", f"'{'1' * 40}...' is not a number such as 12.50 (at most 30 digits), nor N/A"),
        ("Model,Test images\none,0\n", "row 0, Test images: 0 is no whole number of images from 1 on"),
        ("Model,Batch size\none,1.5\n", "row 0, Batch size: 1.5 is no whole number of images from 1 on"),
        ("Model,Latency (ms)\none,-3\n", "'-3' is not a number"),
        ("Model,Latency (ms)\none\n", "row 0: 1 cells under 2 headings"),
        ("Model,Latency (ms)\none,1\n,2\n", "row 1: Model is empty; give the row a name"),
        ("Model;Latency (ms)\none;1.234\ntwo;2.345\n", "1.234 may be 1.234 or 1234, and no number tells: give --decimal point or"),
        ('Model,Throughput (img/s)\none,"1,234"\ntwo,987\n', "1,234 may be 1.234 or 1234, and no number tells: give --decimal point or"),
        ("Model,Throughput (img/s)\none,1.234\ntwo,987\n", "1.234 may be 1.234 or 1234, and no number tells: give --decimal point or"),
        ("Model;Latency (ms)\none;1,5\ntwo;2.5\n", "'2.5' in row 1, Latency (ms) has a decimal point, '1,5' in row 0, Latency (ms) a"),
        ("Model,Top-1 (%)\none,0.8210\ntwo,0.8195\n", "row 0, Top-1 (%): 0.8210 is the highest rate: a share of 1, or per cent?"),
        (
            "Model,Latency (ms)\n\x1b]0;owned\x07\x1b[31mone,1\n",
            "line 2: the cell '\\x1b]0;owned\\x07\\x1b[31mone' holds control characters",
        ),
        ("Model\n", "at least one row"),
        ("", "at least one row"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_write(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load_table(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such table"):
        load_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8; save the table as UTF-8"):
        load_table(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("refrence: one\n", "key refrence: unknown key"),
        ("claims: {batch: 32}\n", "key claims.batch: unknown key"),
        ("megabyte: mb\n", "key megabyte: "),
        ("cpu_peak_tflops: .inf\n", "key cpu_peak_tflops: Input should be a finite number"),
        ("cpu_peak_tflops: .nan\n", "key cpu_peak_tflops: Input should be"),
        ("gpu: {name: A, peak_tflops: {fp32: 0}, bandwidth_gb_s: 1}\n", "key gpu.peak_tflops.fp32: Input should be greater than 0"),
        ("gpu: {name: A, peak_tflops: {fp32: -5}, bandwidth_gb_s: 1}\n", "key gpu.peak_tflops.fp32: Input should be greater than 0"),
        ("gpu: {name: A, peak_tflops: {fp32: 5}, bandwidth_gb_s: .inf}\n", "key gpu.bandwidth_gb_s: Input should be a finite number"),
        ("split_sizes: {test: 0}\n", "key split_sizes.test: Input should be greater than or equal to 1"),
        ("published_top1: {others: 95}\n", "key published_top1.others: Input should be less than 1"),
        ("claims: {images: -1}\n", "key claims.images: Input should be greater than or equal to 1"),
        ("claims: {batch_size: '32'}\n", "key claims.batch_size: "),
        ("rows: {one: {weights: nf4, compute: fp16, attention: sdpa}}\n", "block_size is needed with weights: nf4"),
        (
            "gpu: {name: A, peak_tflops: {fp32: 1}, bandwidth_gb_s: 1}\nrows: {one: {weights: fp16, compute: fp16, attention: sdpa}}\n",
            "gpu.peak_tflops lacks fp16, in which row 'one' computes",
        ),
        ("- a list\n", "expected a mapping of keys"),
        ("a: [\n", "not valid YAML"),
        ("claims: {batch_size: 32}\nclaims: {batch_size: 1}\n", "line 2: not valid YAML: key claims is given twice"),
    ],
)
def test_a_context_that_is_wrong_names_its_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "context.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_context(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_context_may_name_only_rows_of_the_table(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, "Model,Latency (ms)\none,1.0\n"))
    with pytest.raises(ConfigError, match="row 'two' is not in the table; its rows: one"):
        audit(table, Context(reference="two"))


# At most 1, for the rates; costs may be zero, or have more digits than a float.
_FINE = st.integers(0, 10**29).map(lambda digits: f"0.{digits:029d}"[:31])
_CELLS = st.one_of(
    st.sampled_from(["N/A", "0", "1", "0.00", f"0.{'0' * 29}"]), st.decimals(min_value=0, max_value=1, places=2).map(str), _FINE
)
# Columns of the papers table that hold numbers.
_MEASURED = 13
_ROW = st.lists(_CELLS, min_size=_MEASURED, max_size=_MEASURED)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grid=st.lists(_ROW, min_size=5, max_size=5))
def test_whatever_the_numbers_the_audit_ends_and_numbers_only_cells_that_are_there(grid: list[list[str]], tmp_path: Path) -> None:
    project = Path(__file__).parents[3]
    names = [line.split(",")[1] for line in (project / "papers" / "vit-quantization-2025" / "table.csv").read_text().splitlines()]
    heads = (project / "papers" / "vit-quantization-2025" / "table.csv").read_text().splitlines()[0].split(",")[2:]
    lines = [",".join(["Model", *heads]), *(",".join([name, *cells]) for name, cells in zip(names[1:], grid, strict=True))]
    table = load_table(write(tmp_path, "\n".join(lines)))
    for finding in audit(table, load_context(project / "papers" / "vit-quantization-2025" / "context.yaml")):
        assert set(finding.rows) <= set(table.rows)
        assert set(finding.columns) <= set(heads)
