"""Whatever is in a file, it is tables that can be audited, or one line that names the file."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import EXAMPLES
from lowbit_vit.analysis.audit import audit, load_tables
from lowbit_vit.errors import DataError

TABLES = (
    "Model,Latency (ms),Top-1 (%),Params (M)\nViT fp32,12.5,82.10,86.6\nViT int8,6.25,81.95,86.6\nViT nf4,5.00,80.10,86.6\n",
    "sep=;\nModell;Method;Latency (ms);Speedup;Top-1 (%)\nViT;fp32;1.012,5;1,00;82,10\nViT;NF4;24,0;42,2;81,95 ± 0,1\n",
    "Table 1\t\t\nModel\tLatency (ms)\t\n\tP50\tP95\na\t1.5\t2.5\na\t-\t3.5\n",
    "# Results\n\n| Model | FPS ↑ | Size (MB) |\n|---|--:|--:|\n| **a** | 1,234.5 | 86 |\n| b | `99.5` | 44<sup>1</sup> |\n",
    r"\begin{tabular}{lr} \toprule \multirow{2}{*}{Model} & \multicolumn{2}{c}{Top-1 (\%)} \\ & IN-1k & ReaL \\ \midrule "
    r"a & 82{,}1 & $85{,}2_{\pm 1}$ \\ \textbf{b} & 77{,}5 & 1 \\ \end{tabular}",
    "<table><tr><th rowspan=2>Model<th colspan=2>Latency (ms)<tr><th>P50<th>P95<tr><td>a<td>1&nbsp;234<td>2.5</table>",
    "model,infer_samples_per_sec,infer_step_time,infer_batch_size,img_size,top1,top1_err\na,100.0,640.0,64,224,82.1,17.9\nb,50.0,1280.0,64,224,83,17\n",
)
PIECES = (
    *(
        ",",
        ";",
        "\t",
        "|",
        "\n",
        "\r",
        '"',
        "&",
        "\\\\",
        "<td rowspan=9999 colspan=99999>",
        "</table>",
        "<![",
        "<!--",
        "\\begin{tabular}",
        "\\multicolumn{2}",
    ),
    *(
        "%",
        "x",
        "±",
        "-",
        "1.234",
        "1,234",
        "1e9",
        "1e99",
        "0",
        "-1",
        "nan",
        "9" * 40,
        "1.2.3",
        "1'234",
        "\x1b[31m",
        "\x00",
        "\ud7ff",
        "\u200b",
        "²",
        "٣",
    ),
    *("Model", "Latency (ms)", "Top-1 (%)", "Speedup", "Energy (J)", "Power (W)", "Batch size", "#Params", "int8", "(", "[", "--- | ---"),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(TABLES))
    for _ in range(draw(st.integers(0, 4))):
        at, until = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        piece = draw(
            st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=4), st.just(text[at:until]))
        )
        cut = until if draw(st.booleans()) and until - at < 30 else at
        text = text[:at] + piece + text[cut:]
    encoding = draw(st.sampled_from((*("utf-8",) * 5, "utf-8-sig", "utf-16", "cp1252", "utf-16-le")))
    content = text.encode(encoding, errors="replace")
    for at, byte in draw(st.lists(st.tuples(st.integers(0, max(0, len(content) - 1)), st.integers(0, 127)), max_size=1)) if content else ():
        content = content[:at] + bytes([byte]) + content[at + 1 :]
    return content


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(content=mutated())
def test_a_mutated_file_ends_as_tables_or_as_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    try:
        tables = load_tables(path)
    except DataError as error:
        refused = str(error)
        tables = []
    else:
        refused = str(path)
    assert refused.startswith(str(path))
    assert refused.isprintable()
    for at, table in enumerate(tables):
        for finding in audit(table, before=tables[:at]):
            assert set(finding.rows) <= set(table.rows)
            assert finding.words.isprintable()
