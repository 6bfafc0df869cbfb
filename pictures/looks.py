"""The look of every picture: a colour for each operation, in cells and plots alike; a plot as SVG in a page.

Plots take their text colour from the page they stand in, so that they follow its light or dark theme, and
show values on pointing at them without any script. matplotlib is imported only when something is plotted.
"""

import io
import re
import zlib
from collections.abc import Callable, Iterable
from html import escape
from typing import Any, NamedTuple

# One hue for a kind of operation, a darker shade for a larger kernel; told apart under red-green blindness by
# lightness: separable blue, dilated orange, pooling green, identity grey.
COLOURS = {
    "max_pool_3x3": "#00796B",
    "avg_pool_3x3": "#6BC4B5",
    "skip_connect": "#8A929C",
    "sep_conv_3x3": "#5BA7F0",
    "sep_conv_5x5": "#1F5FAD",
    "sep_conv_7x7": "#123A6E",
    "dil_conv_3x3": "#F4B042",
    "dil_conv_5x5": "#C65D21",
    "conv_7x1_1x7": "#8E5BB5",
    "none": "#D0D5DB",
    "nor_conv_1x1": "#B39DDB",
    "nor_conv_3x3": "#5E35B1",
}
OTHERS = ("#D64550", "#A83E7D", "#7A6A00", "#E07BB0", "#4E7D2C", "#9C5A3C")  # for operations of your own
CELLS = {"normal": "normal cells", "reduce": "reduction cells", "cell": "cells"}
# Lines side by side, readable on white and on black; two alone are blue and orange.
SERIES = ("#3B82D6", "#D9722E", "#2E9E6B", "#8E5BB5", "#B08A00", "#8A929C", "#C2185B", "#00838F")
FIRST, SECOND = SERIES[:2]
INK = "#010203"  # in a plot this stands for the page's text colour: `inline` makes it currentColor


def colour(operation: str) -> str:
    """The colour of an operation; of one that has none above, always the same one of `OTHERS`."""
    return COLOURS.get(operation) or OTHERS[zlib.crc32(operation.encode()) % len(OTHERS)]


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a #RRGGBB colour (relative luminance of WCAG 2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#FFFFFF"


def inline(svg: str, prefix: str) -> str:
    """An SVG file as an element of a page: no header, its identifiers made unique by a prefix, and its width
    turned into the variable --width of its style, for the page to use.
    """
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:xlink)?|xml:space)="[^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)  # the page's own
    svg = re.sub(r'<svg width="([\d.]+pt)" height="[^"]*"', r'<svg style="--width:\1"', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    return re.sub(INK, "currentColor", svg, flags=re.IGNORECASE)


class Hint(NamedTuple):
    """A value that is shown on pointing at its place: a rectangle in the plot's numbers, or a point of it."""

    text: str
    left: float
    bottom: float
    right: float | None = None
    top: float | None = None


class Drawn(NamedTuple):
    """What was put into axes."""

    caption: str
    hints: Iterable[Hint] = ()


def _pointed_at(axes: Any, height: float, hints: Iterable[Hint]) -> str:
    """The hints as rectangles that are not seen, at least 8 points wide and high; later ones lie above."""
    areas = []
    for hint in hints:
        corners = (hint.left, hint.bottom), (hint.right or hint.left, hint.top or hint.bottom)
        (left, bottom), (right, top) = axes.transData.transform(corners).tolist()
        x, y = min(left, (left + right) / 2 - 4), min(height - top, height - (bottom + top) / 2 - 4)
        size = f'width="{max(8, right - left):.1f}" height="{max(8, top - bottom):.1f}"'
        title = f"<title>{escape(hint.text)}</title>"
        areas.append(f'<rect class="hint" x="{x:.1f}" y="{y:.1f}" {size}>{title}</rect>')
    return "".join(areas)


def figure(name: str, fill: Callable[[Any], Drawn | None]) -> str:
    """A <figure> with inline SVG; `fill(axes)` fills it and says what it drew, or None for no figure."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(inks, INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15}
    style |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    style |= {"axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 8.5}
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(4.7, 3.0), dpi=72, layout="constrained")  # 72: a point is a pixel, as in SVG
        axes = canvas.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        drawn = fill(axes)
        if drawn is None:
            return ""
        if axes.get_legend_handles_labels()[0]:
            canvas.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.4)
        output = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(output, format="svg", transparent=True, metadata=nothing, dpi=72)
        areas = _pointed_at(axes, 72 * canvas.get_figheight(), drawn.hints)
    picture = inline(output.getvalue(), name).rstrip().removesuffix("</svg>")
    return f"<figure>{picture}{areas}</svg><figcaption>{escape(drawn.caption)}</figcaption></figure>"
