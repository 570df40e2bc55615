"""Tables as people publish them are read: their headings, their forms, their numbers, rows that several columns name."""

from fractions import Fraction
from pathlib import Path

import pytest

from command_line import call
from lowbit_vit.analysis.audit import ResultsTable, audit, load_table, load_tables
from lowbit_vit.analysis.audit.headings import read_heading
from lowbit_vit.errors import DataError


def table_of(folder: Path, text: str, encoding: str = "utf-8") -> ResultsTable:
    path = folder / "table.csv"
    path.write_text(text, encoding=encoding)
    return load_table(path)


@pytest.mark.parametrize(
    ("heading", "quantity", "unit"),
    [
        ("top1", "top1", ""),
        ("acc@1", "top1", ""),
        ("Accuracy (%) ↑", "top1", "%"),
        ("Accuracy (%) Top-5", "top5", "%"),
        ("ImageNet Top-1 Acc. [%]", "top1", "%"),
        ("Top-1 ± std (%)", "top1", "%"),
        ("top1_err", "top1_error", ""),
        ("param_count", "params", "m"),
        ("Params (M)", "params", "m"),
        ("#Params (M)", "params", "m"),
        ("GMACs", "macs", "g"),
        ("FLOPs (G)", "flop", "g"),
        ("infer_samples_per_sec", "throughput", "samples per sec"),
        ("Images/s", "throughput", "images/s"),
        ("FPS ↑", "throughput", "fps"),
        ("infer_step_time", "mean", "ms"),
        ("Latency (ms/image)", "mean", "ms"),
        ("Latency / ms", "mean", "ms"),
        ("Latency P95 (\N{MICRO SIGN}s)", "p95", "\N{MICRO SIGN}s"),
        ("infer_batch_size", "batch", ""),
        ("BS", "batch", ""),
        ("img_size", "image_size", ""),
        ("Peak GPU memory (GB)", "vram", "gb"),
        ("Power draw (W)", "power", "w"),
        ("Energy (mJ)", "energy", "mj"),
    ],
)
def test_a_heading_in_use_names_its_quantity_and_unit(heading: str, quantity: str, unit: str) -> None:
    read = read_heading(heading)
    assert (read.quantity, read.unit, read.more, read.derived) == (quantity, unit, "", False)


@pytest.mark.parametrize(
    "heading", ["Patch size", "P90 latency (ms)", "Training time (h)", "Calibration images", "Top-1 / Top-5", "crop_pct"]
)
def test_a_heading_that_only_holds_a_known_word_is_of_something_else(heading: str) -> None:
    assert read_heading(heading).quantity is None


@pytest.mark.parametrize(
    ("heading", "of"), [("Speedup", None), ("Latency Improvement", "mean"), ("Size reduction (%)", "size"), ("Δ Top-1", "top1")]
)
def test_a_column_that_compares_is_known_by_its_heading(heading: str, of: str | None) -> None:
    read = read_heading(heading)
    assert (read.derived, read.quantity, read.of) == (True, None, of)


@pytest.mark.parametrize(
    ("heading", "quantity", "batch"),
    [
        ("Latency (bs=1)", "mean", 1),
        ("latency_ms_b32", "mean", 32),
        ("Throughput @ bs 64", "throughput", 64),
        ("Latency, batch size: 8 (ms)", "mean", 8),
        ("Batch 128 throughput (img/s)", "throughput", 128),
        ("bs16_p95_latency_ms", "p95", 16),
        ("Peak memory [MiB, B=4]", "vram", 4),
        ("vit_b16_latency_ms", "mean", 0),
        ("Latency B0 (ms)", "mean", 0),
        ("Batch size", "batch", 0),
    ],
)
def test_a_heading_may_name_the_batch_size(heading: str, quantity: str, batch: int) -> None:
    read = read_heading(heading)
    assert (read.quantity, read.batch, read.text) == (quantity, batch, heading)


PLAIN = {("a", "mean"): "12.5", ("b", "mean"): "24.0", ("a", "top1"): "82.10", ("b", "top1"): "81.95"}
FORMS = {
    "commas": "Model,Latency (ms),Top-1 (%)\na,12.5,82.10\nb,24.0,81.95\n",
    "semicolons, decimal commas": "Model;Latency (ms);Top-1 (%)\na;12,5;82,10\nb;24,0;81,95\n",
    "tabs": "Model\tLatency (ms)\tTop-1 (%)\na\t12.5\t82.10\nb\t24.0\t81.95\n",
    "Excel's sep": "sep=;\nModel;Latency (ms);Top-1 (%)\na;12.5;82.10\nb;24.0;81.95\n",
    "a BOM": "\ufeffModel,Latency (ms),Top-1 (%)\na,12.5,82.10\nb,24.0,81.95\n",
    "lines of Windows": "Model,Latency (ms),Top-1 (%)\r\na,12.5,82.10\r\nb,24.0,81.95\r\n",
    "empty columns at the end": "Model,Latency (ms),Top-1 (%),,\na,12.5,82.10,,\nb,24.0,81.95,,\n",
    "per cent and unit in the cells": "Model,Latency,Top-1\na,12.5 ms,82.10%\nb,24.0 ms,81.95 %\n",
    "per cent without a sign": "Model,Latency (ms),top1\na,12.5,82.10\nb,24.0,81.95\n",
    "spread and differences": "Model,Latency (ms),Top-1 (%)\na,12.5 ± 0.1,82.10 (+0.15)\nb,24.0±0.2,81.95 ↓0.15\n",
    "marks of the best": "Model,Latency (ms),Top-1 (%)\na,**12.5**,82.10*\nb,24.0†,81.95\n",
    "title and note": "Table 3: our results,,\n,,\nModel,Latency (ms),Top-1 (%)\na,12.5,82.10\nb,24.0,81.95\nmeasured on a T4,,\n",
    "headings repeated": "Model,Latency (ms),Top-1 (%)\na,12.5,82.10\nModel,Latency (ms),Top-1 (%)\nb,24.0,81.95\n",
    "merged headings": "Model,Latency,Accuracy\n,(ms),Top-1 (%)\na,12.5,82.10\nb,24.0,81.95\n",
    "units below the headings": "Model,Latency,Top-1\n,ms,%\na,12.5,82.10\nb,24.0,81.95\n",
    "a heading over two lines": 'Model,"Latency\n(ms)",Top-1 (%)\na,12.5,82.10\nb,24.0,81.95\n',
    "Markdown": "# Results\n\n| Model | Latency (ms) ↓ | Top-1 (%) |\n|:--|--:|--:|\n"
    "| **a** | 12.5 | `82.10` |\n| [b](http://b) | 24.0 | 81.95<sup>1</sup> |\n",
    "LaTeX": r"""\begin{table}\begin{tabular}{l|c@{\hskip 2pt}r} \toprule % a comment
        \multirow{2}{*}{Model} & \multicolumn{1}{c}{Latency} & \makecell{Top-1\\(\%)} \\ \cmidrule(lr){2-3} & (ms) & \\ \midrule
        a~\cite{a} & $12{,}5_{\pm 0{,}1}$ & \textbf{\underline{82{,}10}}\textsuperscript{1} \\ [2pt]
        \rowcolor{gray!10} b & 24{,}0 & 81{,}95 \\
        \bottomrule \end{tabular}\end{table}""",
    "HTML": "<p>x</p><table><thead><tr><th rowspan=2>Model<th colspan=2>Ours</tr><tr><th>Latency (ms)<th>Top-1 (%)</tr></thead>"
    "<tr><td>a</td><td>12.5</td><td>82.10<sup>*</sup></td></tr><tr><td>b<td>24.0<td>81.95</table>",
}


@pytest.mark.parametrize("form", FORMS)
def test_one_table_is_read_alike_in_every_form(form: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, FORMS[form])
    assert {(table.labels[row], quantity): cell.text for (row, quantity), cell in table.cells.items()} == PLAIN
    assert {quantity: float(table.column(quantity)[0].exact) for quantity in table.headings} == {"mean": 12.5, "top1": 0.821}
    assert table.unread == ()


def test_utf_16_as_excel_writes_it_is_read(tmp_path: Path) -> None:
    assert len(table_of(tmp_path, FORMS["tabs"], encoding="utf-16").cells) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", "1234.5"),
        ("1.234,5", "1234.5"),
        ("1,234,567", "1234567"),
        ("1 234.5", "1234.5"),
        ("1\N{NARROW NO-BREAK SPACE}234,5", "1234.5"),
        ("1'234.5", "1234.5"),
        (".5", "0.5"),
        ("1.5e3", "1500"),
        ("2.5e-3", "0.0025"),
        ("2.5 ms", "2.5"),
        ("2.5 s", "2500"),
        ("0,123", "0.123"),
    ],
)
def test_a_number_is_read_whatever_its_separators(text: str, value: str, tmp_path: Path) -> None:
    cell = table_of(tmp_path, f"Model\tLatency (ms)\na\t{text}\n").cell(0, "mean")
    assert cell is not None
    assert cell.exact == Fraction(value)


@pytest.mark.parametrize("text", ["-", "\N{EN DASH}", "N/A", "OOM", "OOM (24 GB)", "diverged", "<0.1", "~12", ""])
def test_a_cell_without_a_value_is_missing(text: str, tmp_path: Path) -> None:
    assert [cell.row for cell in table_of(tmp_path, f"Model,Latency (ms)\na,12.5\nb,{text}\n").column("mean")] == [0]


@pytest.mark.parametrize(("decimal", "value"), [("point", 1.234), ("comma", 1234)])
def test_what_is_ambiguous_is_read_as_the_answer_says(decimal: str, value: float, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("Model;Latency (ms)\na;1.234\nb;2.345\n")
    with pytest.raises(DataError, match="give --decimal point or --decimal comma"):
        load_table(tmp_path / "table.csv")
    shown = call("audit", str(tmp_path / "table.csv"), "--decimal", decimal)
    assert shown.returncode == 0
    assert load_table(tmp_path / "table.csv", decimal=decimal).column("mean")[0].value == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "Model,Top-1 (%)\na,90.056\nb,89.956\n",  # as timm prints them
        "Model,Latency (ms)\na,1.234\nb,2.345\n",  # commas part the cells
        'Model,Latency (ms),Throughput (img/s)\na,12.5,"1,234"\nb,24.0,987\n',  # another number tells
    ],
)
def test_what_other_cells_tell_is_not_asked(text: str, tmp_path: Path) -> None:
    assert len(table_of(tmp_path, text).labels) == 2


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Model,Method,Top-1\nViT,fp32,82.1\nViT,NF4,81.9\n", ("ViT fp32", "ViT NF4")),
        ("Model,Method,Top-1\nViT,fp32,82.1\nDeiT,NF4,81.9\n", ("ViT", "DeiT")),
        ("Model,Batch size,Latency (ms)\nViT,1,2.1\nViT,8,8.9\n", ("ViT 1", "ViT 8")),
        ("model,img_size,top1\nViT,224,82.1\nViT,384,83.9\n", ("ViT 224", "ViT 384")),
        ("Model,W/A,Top-1\nViT,8/8,82.1\n,4/4,81.9\n", ("ViT 8/8", "ViT 4/4")),
        ("Model,Bits,Top-1\nViT,8,82.1\nViT,4,81.9\n", ("ViT 8", "ViT 4")),
        ("Model,Top-1,Top-5\nImageNet,,\nViT,82.1,96.1\nReaL,,\nViT,87.1,97.9\n", ("ImageNet ViT", "ReaL ViT")),
        (",top1\nViT,82.1\nDeiT,81.9\n", ("ViT", "DeiT")),
        ("Model,Top-1\nViT,82.1\nViT,81.9\n", ("ViT", "ViT (2)")),
    ],
)
def test_rows_are_named_by_as_many_columns_as_tell_them_apart(text: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    assert table_of(tmp_path, text).labels == labels


def test_columns_that_are_not_known_are_listed_once_and_are_no_error(tmp_path: Path) -> None:
    text = "Model,crop_pct,Latency (ms),Latency T4 (ms),Latency A100 (ms),Latncy (ms),Throughput,,#notes\na,0.9,1.5,3.1,1.1,2,n/k,7,x\n"
    (found,) = (finding for finding in audit(table_of(tmp_path, text)) if finding.check == "columns")
    assert (found.verdict, found.fault) == ("not checked", False)
    for told in (
        "'crop_pct'",
        "'Latency T4 (ms)'",
        "'Latncy (ms)' (did you mean latency (ms)?)",
        "'Throughput': the unit is missing",
        "'column 8'",
    ):
        assert found.words.count(told) == 1
    assert "notes" not in found.words


def test_columns_that_all_say_the_same_more_are_read(tmp_path: Path) -> None:
    table = table_of(tmp_path, "Model,T4 latency (ms),T4 throughput (img/s)\na,10.0,100\n")
    assert set(table.headings) == {"mean", "throughput"}


def test_columns_of_several_batch_sizes_are_a_table_each_and_are_not_held_against_each_other(tmp_path: Path) -> None:
    head = "Model,Top-1 (%),Latency (bs=1) (ms),Throughput @ bs 1 (img/s),latency_ms_b32,throughput_b32 (img/s)\n"
    path = tmp_path / "table.csv"
    path.write_text(f"{head}a,81.23,5.00,200,40.0,800\nb,80.11,4.00,250,32.0,1000\nc,79.90,8.00,125,64.0,50\n")
    first, second = load_tables(path)
    assert [set(table.headings) for table in (first, second)] == [{"top1", "mean", "throughput"}, {"mean", "throughput"}]
    assert [cell.exact for cell in second.column("batch")] == [32, 32, 32]
    assert [finding for finding in audit(first) if finding.fault] == []
    # 64 ms for 32 images are 500 images/s.
    found = [finding for finding in audit(second, before=[first]) if finding.fault]
    assert {(finding.check, finding.rows) for finding in found} == {("slipped-digit", (2,))}


def test_a_column_that_names_no_batch_size_is_not_held_against_those_of_several(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Model,Throughput (img/s),Latency (bs=1) (ms),Latency (bs=8) (ms)\na,3000,5.00,9.00\n")
    assert [[*table.headings] for table in load_tables(path)] == [["throughput"], ["mean"], ["mean"]]
    path.write_text("Model,Throughput (img/s),Latency (bs=1) (ms)\na,3000,5.00\n")
    (table,) = load_tables(path)
    assert (set(table.headings), table.column("batch")) == ({"throughput", "mean"}, [])


def test_several_tables_are_audited_in_one_call_and_what_holds_no_results_is_left_out(tmp_path: Path) -> None:
    first, second = tmp_path / "first.md", tmp_path / "second.csv"
    first.write_text(
        "| Name | City |\n|--|--|\n| x | y |\n\n| Model | Top-1 |\n|--|--|\n| a | 81.23 |\n\n| Model | Top-1 |\n|--|--|\n| b | 80.1 |\n"
    )
    second.write_text("Model,Latency P50 (ms),Latency P95 (ms)\na,9.5,3.5\n")
    assert [table.name for table in load_tables(first)] == [f"{first}, table 2", f"{first}, table 3"]
    shown = call("audit", str(first), str(second), "--markdown")
    assert shown.returncode == 1
    assert [line for line in shown.stdout.splitlines() if line.startswith("**")] == [
        f"**{name}**".replace("_", "\\_") for name in (f"{first}, table 2", f"{first}, table 3", second)
    ]


def test_a_context_of_several_tables_names_rows_of_any_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"Model,Top-1\n{name},81.23\n")
    row = "{weights: fp32, compute: fp32, attention: sdpa}"
    (tmp_path / "context.yaml").write_text(f"reference: a\nrows: {{a: {row}, b: {row}}}\n")
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    assert call("audit", *files, "--context", str(tmp_path / "context.yaml"), "--json").returncode == 0
    (tmp_path / "context.yaml").write_text("reference: c\n")
    shown = call("audit", *files, "--context", str(tmp_path / "context.yaml"))
    assert (shown.returncode, "row 'c' is not in the table; its rows: a, b" in shown.stderr) == (2, True)
