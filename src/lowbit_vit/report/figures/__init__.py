"""The figures of the report, with their titles and captions: drawn interactively in the page, and written as SVG and PNG beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import vl_convert

from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.allocation_tables import byte_words
from lowbit_vit.report.figures.arms import accuracy_against_latency, pareto_fronts, size_and_memory, time_by_class
from lowbit_vit.report.figures.blocks import calibration, heat_map, mixed, sensitivity
from lowbit_vit.report.figures.style import cut_words, finished
from lowbit_vit.schema.record import write_atomic

# ------------------------------------------------------------------------------------------------ a figure as a document

_FONT_ROOM = 1.4  # px a letter


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: of its files and of its anchor in the page, such as figure1.
        title: what it shows, in a few words.
        caption: how to read it.
        specification: Vega-Lite; null where what it shows has no finished trial.
        missing: says so then.
        table: the file below tables/ with the same numbers.
    """

    name: str
    title: str
    caption: str
    specification: dict[str, Any] | None
    missing: str
    table: str

    @property
    def label(self) -> str:
        """`Figure 1` of figure1."""
        return self.name.replace("figure", "Figure ")


def draw(figure: Figure, folder: Path) -> str | None:
    """Write `<name>.svg` and `<name>.png` (2 x, white background); returns the SVG's text with a clear background for the page.

    A figure without a specification leaves no files, not even old ones, and returns None.
    """
    if figure.specification is None:
        for stale in (folder / f"{figure.name}.svg", folder / f"{figure.name}.png"):
            stale.unlink(missing_ok=True)
        return None
    clear = _svg(figure)
    # On paper and in a slide it needs a sheet behind it.
    printed = re.sub(r"(<svg [^>]*>)", r'\1<rect x="-50%" width="200%" height="100%" fill="white"/>', clear, count=1)
    write_atomic(folder / f"{figure.name}.svg", printed.encode())
    write_atomic(folder / f"{figure.name}.png", vl_convert.svg_to_png(printed, scale=2))
    return clear


def _svg(figure: Figure) -> str:
    svg: str = vl_convert.vegalite_to_svg({**(figure.specification or {}), "background": None})
    # The drawing was laid out in one font and is shown in the reader's, which may be a fifth wider: names at the left need room for that.
    names = re.findall(r'<text text-anchor="end".*?</text>', svg)
    room = max((len(line) for name in names for line in re.split("<[^>]*>", name)), default=0) * _FONT_ROOM
    svg = re.sub(
        r' width="([\d.]+)" (height="[^"]*") viewBox="0 0 [\d.]+ ',
        lambda size: f' width="{float(size[1]) + room:g}" {size[2]} viewBox="{-room:g} 0 {float(size[1]) + room:g} ',
        svg,
        count=1,
    )
    # Vega counts the gradients of a process; a name of the figure's own makes equal figures equal files.
    return re.sub(r'(?<=id="gradient_)\d+(?=")|(?<=url\(#gradient_)\d+(?=\))', figure.name, svg)


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs no network; it sets `window.vegaEmbed`."""
    # The type stub misses the default. With a snippet the bundle would be made anew each time.
    return vl_convert.javascript_bundle()  # type: ignore[call-arg]


# -------------------------------------------------------------------------------------------------- the report's figures

_NO_ARM = "No arm of the variants study has finished."
_NO_CELLS = "The sensitivity study has no complete set of cells."


def all_figures(tables: Tables, notes: Mapping[str, str]) -> list[Figure]:
    """Every figure; `notes` are the paper's, by the figure's number: each ends that figure's caption."""
    named = {f"figure{number}": f" {note}" for number, note in notes.items()}
    return [replace(figure, caption=figure.caption + named.get(figure.name, "")) for figure in _figures(tables)]


def _figures(tables: Tables) -> list[Figure]:
    arms, cut = tables.paper_table, cut_words(finished(tables.paper_table))
    return [
        Figure(
            name="figure1",
            title="Top-1 against median latency",
            caption="Each point is an arm, by its number in the table above; +2: two more lie there. Upright bars: 95 % Wilson intervals "
            "over test images; level bars: 95 % order-statistic intervals of the median.",
            specification=accuracy_against_latency(arms),
            missing=_NO_ARM,
            table="paper_table.csv",
        ),
        Figure(
            name="figure2",
            title="Size on disk and peak memory",
            caption="The saved file with its quantization constants and adapters, and the peak while one batch ran. A resident set holds "
            f"the whole process, libraries included, so on a CPU it hardly depends on the weights.{cut}",
            specification=size_and_memory(arms),
            missing=_NO_ARM,
            table="paper_table.csv",
        ),
        Figure(
            name="figure3",
            title="Layer-wise sensitivity",
            caption="Mean KL from the high-precision model's predictions on the selection half; bars are 95 % intervals that hold for all "
            "blocks of a panel together. A diamond is a block that surely counts for more than the mean block: in quantizing it, or in "
            "what sparing it saves. Panels differ in scale.",
            specification=sensitivity(tables.sensitivity),
            missing=_NO_CELLS,
            table="sensitivity.csv",
        ),
        Figure(
            name="figure4",
            title="First and last blocks, the data's choice, and chance",
            caption=f"k blocks kept in high precision. {byte_words(tables.mixed)} Ticks are random plans; the band is their range, "
            "its darker part their middle half. Blocks were chosen on the selection half; this is the report half.",
            specification=mixed(tables.mixed, tables.random_bands),
            missing="The mixed study has no finished cell.",
            table="mixed.csv",
        ),
        Figure(
            name="figure5",
            title="One forward by kernel class",
            caption="One profiled forward: kernels on a GPU, with idle (wall minus busy) beside them; operators on a CPU, where idle time "
            f"is not measured.{cut_words(tables.kernel_classes)}",
            specification=time_by_class(tables.kernel_classes),
            missing="No arm has a kernel trace.",
            table="kernel_classes.csv",
        ),
        Figure(
            name="figure6",
            title="Pareto fronts",
            caption="Up and left is better. Filled points are on the front, which the dashed line joins; hollow ones are dominated: "
            "another point is at least as good in both, and better in one. Intervals overlap more than the lines suggest: see Figure 1.",
            specification=pareto_fronts(tables.fronts),
            missing="Nothing has both an accuracy and a size or a latency.",
            table="fronts.csv",
        ),
        Figure(
            name="figure7",
            title="Sensitivity at a glance",
            caption="Block by number format and direction. Colour is KL as a share of its line's greatest: lines differ in scale by "
            "orders of magnitude. Yellow in a line of “only” is a block that is costly to quantize; dark in a line of “all but”, one worth "
            "sparing.",
            specification=heat_map(tables.sensitivity),
            missing=_NO_CELLS,
            table="sensitivity.csv",
        ),
        Figure(
            name="figure8",
            title="Predicted against measured",
            caption="Each point is a plan of the mixed study: predicted from blocks measured alone on the selection half, measured on the "
            "report half. On the dashed line the prediction is right; in the panel of flips read off the KL, 95 % of counts are expected "
            "within the grey bars. Latency is predicted from the uniform arms, and shown of plans that were timed.",
            specification=calibration(tables.additivity),
            missing="No plan was run of which every block was measured alone.",
            table="additivity.csv",
        ),
    ]
