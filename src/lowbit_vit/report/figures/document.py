"""A figure as a document: drawn interactively in the page, and written as SVG and PNG beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert

from lowbit_vit.schema.record import write_atomic

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
