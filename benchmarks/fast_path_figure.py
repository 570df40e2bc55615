"""Where the time goes, before and after: docs/fast-path.svg from benchmarks/records/fast_path.json. Needs no GPU.

    python benchmarks/fast_path_figure.py

Before: bitsandbytes, eager, as the paper runs it; what its kernels take is from the same model in a CUDA graph. After: the fast path,
with the sides on which no kernel starts early, whose times do not overlap. What a call takes beside its kernels is `idle`.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import vl_convert

from lowbit_vit.report.figures.costs import time_by_class
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.trial.trace import kernel_class

HERE = Path(__file__).parent
RECORD = HERE / "records" / "fast_path.json"
FIGURE = HERE.parent / "docs" / "fast-path.svg"


class Bar(NamedTuple):
    """One bar.

    Attributes:
        name: as printed.
        timed: the side whose median is the bar's length.
        kernels: the side whose kernels fill it.
    """

    name: str
    timed: str
    kernels: str


BARS = (
    Bar("before: int8, threshold 0, eager", "bitsandbytes int8, threshold 0, eager", "bitsandbytes int8, threshold 0, graph"),
    Bar("before: NF4, eager", "bitsandbytes NF4, eager", "bitsandbytes NF4, graph"),
    Bar("after: NF4", "NF4 fused, compiled, graph", "NF4 fused, compiled, graph"),
    Bar("after: W8A8", "W8A8, no kernel starts early, graph", "W8A8, no kernel starts early, graph"),
    Bar("after: fp8", "fp8, no kernel starts early, graph", "fp8, no kernel starts early, graph"),
    Bar("bf16, compiled", "bf16, compiled, graph", "bf16, compiled, graph"),
)


def main() -> None:
    """Draw the figure."""
    specification = time_by_class(frame(json.loads(RECORD.read_text()))) or {}
    # A reader's fonts may be wider than those that the picture is laid out with.
    specification["config"]["legend"]["columnPadding"] = 30
    room = {"left": 50, "top": 5, "right": 15, "bottom": 5}
    svg: str = vl_convert.vegalite_to_svg({**specification, "padding": room, "background": "white"})
    write_atomic(FIGURE, re.sub(r"gradient_\d+", "gradient", svg).encode())
    print(FIGURE)


def frame(record: dict[str, Any]) -> pl.DataFrame:
    """A row for each bar, batch size and class of kernels, microseconds of one forward."""
    rows = []
    for batch, groups in record["batches"].items():
        sides = next(group for group in groups.values() if group.get("kernels_us"))
        for order, bar in enumerate(BARS):
            spent: dict[str, float] = defaultdict(float)
            for name, microseconds in sides["kernels_us"][bar.kernels].items():
                spent[kernel_class(name)] += microseconds
            spent["idle"] = max(0.0, 1000 * sides["median_ms"][bar.timed] - sum(spent.values()))
            rows += [
                {"row": bar.name, "order": order, "batch_size": int(batch), "class": kind, "us": us, "records": ""}
                for kind, us in spent.items()
            ]
    return pl.DataFrame(rows)


if __name__ == "__main__":
    main()
