"""Which figures the report has, with their titles and captions; the charts themselves are in `figures/`."""

from collections.abc import Mapping
from dataclasses import replace

from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.allocation_tables import byte_words
from lowbit_vit.report.figures.accuracy import accuracy_against_latency
from lowbit_vit.report.figures.blocks import heat_map, sensitivity
from lowbit_vit.report.figures.costs import size_and_memory, time_by_class
from lowbit_vit.report.figures.document import Figure
from lowbit_vit.report.figures.fronts import pareto_fronts
from lowbit_vit.report.figures.plans import calibration, mixed
from lowbit_vit.report.figures.style import cut_words, finished

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
