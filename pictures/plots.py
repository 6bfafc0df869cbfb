"""The look of every picture, and the plots of a search's tables as SVG for a page.

One colour for an operation, in cells and in plots alike. Plots take their text colour from the page they
stand in, so that they follow its light or dark theme. matplotlib is imported only when something is plotted.
"""

import io
import re
import zlib
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

import utils
from pictures.tables import Row, numbers, trained

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
FIRST, SECOND = "#3B82D6", "#D9722E"  # two series: blue and orange, readable on white and on black
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


def figure(name: str, fill: Callable[[Any], str | None]) -> str:
    """A <figure> with inline SVG; `fill(axes)` fills it and returns the caption, or None for no figure."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(inks, INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15}
    style |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    style |= {"axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 8.5}
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(4.7, 3.0), layout="constrained")
        axes = canvas.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        caption = fill(axes)
        if caption is None:
            return ""
        if axes.get_legend_handles_labels()[0]:
            canvas.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.4)
        output = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(output, format="svg", transparent=True, metadata=nothing)
    return f"<figure>{inline(output.getvalue(), name)}<figcaption>{escape(caption)}</figcaption></figure>"


def _lines(axes: Any, generations: list[Row], *lines: tuple[str, str, str, str], scale: float = 1) -> int:
    """Plots columns of generations.csv, each (column, label, dash, colour); returns how many had values."""
    drawn = 0
    for column, label, dash, colour in lines:
        values = numbers(generations, column) * scale
        values[~np.isfinite(values)] = np.nan
        if np.isfinite(values).any():
            marker = "o" if np.isfinite(values).sum() == 1 else ""  # a line of one point would not show
            x = numbers(generations, "generation")
            axes.plot(x, values, dash, color=colour, label=label, marker=marker, markersize=4)
            drawn += 1
    return drawn


def _generations_axis(axes: Any, generation: np.ndarray) -> None:
    """The x axis, half a generation wider than the data at both ends: one generation alone has room too."""
    axes.set(xlabel="generation", xlim=(np.nanmin(generation) - 0.5, np.nanmax(generation) + 0.5))


def losses(axes: Any, history: list[Row], generations: list[Row]) -> str | None:
    """Every trained candidate's loss, fast and slow learners apart, with the generations' mean and best."""
    rows = trained(history)
    a, b, when = numbers(rows, "loss_a"), numbers(rows, "loss_b"), numbers(rows, "generation")
    finite = np.concatenate([a, b])
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    # A diverged network would flatten all others: what lies far beyond the quartiles goes to the top edge.
    low, high = np.percentile(finite, (25, 75))
    ceiling = finite[finite <= high + 6 * max(high - low, 1e-9)].max()
    room = 0.05 * max(ceiling - finite.min(), 1e-3)
    axes.set_ylim(finite.min() - room, ceiling + 2 * room)
    a_won = np.array([row["winner"] == "a" for row in rows], dtype=bool)
    sides = (("slow", np.where(a_won, b, a), SECOND, 0.12), ("fast", np.where(a_won, a, b), FIRST, -0.12))
    beyond = 0
    for label, loss, colour, shift in sides:
        out = ~(loss <= ceiling)  # NaN too
        # Very many points are drawn as pixels, to keep the page small.
        x, look = when + shift, {"color": colour, "rasterized": len(rows) > 3000}
        axes.scatter(x[~out], loss[~out], s=10, alpha=0.6, linewidths=0, label=label, **look)
        edge = axes.get_xaxis_transform()
        axes.scatter(x[out], np.full(out.sum(), 0.98), marker="x", s=18, transform=edge, **look)
        beyond += int(out.sum())
    _lines(axes, generations, ("mean_loss", "mean", "--", INK), ("best_loss", "best", "-", INK))
    _generations_axis(axes, when)
    axes.set(ylabel="validation loss")
    note = f" Not finite or far above the scale: {beyond} (crosses at the top)." if beyond else ""
    return f"Loss of each trained candidate, as fast or slow learner of its pair.{note}"


def diversity(axes: Any, generations: list[Row]) -> str | None:
    """The population's diversity."""
    if not _lines(axes, generations, ("diversity", "", "-", FIRST)):
        return None
    _generations_axis(axes, numbers(generations, "generation"))
    axes.set(ylabel="diversity")
    axes.set_ylim(bottom=0)
    return "Diversity of the population. Near zero, all cells are alike and the search has settled."


def counted(generations: list[Row], cell: str) -> list[str]:
    """The operations whose numbers generations.csv has for one kind of `CELLS`."""
    columns = generations[0] if generations else ()
    return [column.removeprefix(f"{cell}_") for column in columns if column.startswith(f"{cell}_")]


def operations(axes: Any, generations: list[Row], cell: str) -> str | None:
    """Edges of the population per operation, stacked, for one kind of `CELLS`."""
    counts = {name: numbers(generations, f"{cell}_{name}") for name in counted(generations, cell)}
    if not any(np.isfinite(count).any() for count in counts.values()):
        return None
    # Each generation is a step one unit wide, so that a single one shows too.
    generation = numbers(generations, "generation")
    x = np.repeat(generation, 2) + np.tile((-0.5, 0.5), len(generation))
    below = np.zeros(len(x))
    for name, count in counts.items():
        top = below + np.repeat(np.nan_to_num(count), 2)
        axes.fill_between(x, below, top, color=colour(name), linewidth=0)
        below = top
    _generations_axis(axes, generation)
    axes.set(ylabel="edges in the population", ylim=(0, max(below.max(), 1)))
    axes.grid(False)
    return f"Operations in the {CELLS[cell]}."


def decisions(axes: Any, history: list[Row], generations: list[Row]) -> str | None:
    """What the predictor decided alone, and how often it was right where it was checked."""
    if not np.isfinite(numbers(history, "probability")).any():  # it has not said anything, or there is none
        return None
    share = ("predicted_share", "decided by the predictor", "-", FIRST)
    if not _lines(axes, generations, share, scale=100):
        return None
    audits, right = numbers(generations, "audits"), numbers(generations, "audit_accuracy")
    known = np.isfinite(right) & (audits > 0)
    generation = numbers(generations, "generation")
    _generations_axis(axes, generation)
    audits, right = audits[known], right[known]
    axes.set(ylabel="%", ylim=(-4, 104))
    total = int(audits.sum())
    if not total:
        return (
            "Share of the pairs that the predictor decided without training. No such pair was audited so far."
        )
    axes.scatter(
        generation[known],
        100 * right,
        s=12 * audits,
        color=SECOND,
        alpha=0.8,
        lw=0,
        label="right when audited",
    )
    accuracy = float((audits * right).sum() / total)
    low, high = utils.wilson(accuracy, total)
    return (
        "Share of the pairs decided without training, and how often the predictor was right when audited: "
        f"{accuracy:.0%} of {total} (95% interval {low:.0%} to {high:.0%}). Larger dots: more audits."
    )


def reliability(probability: np.ndarray, a_won: np.ndarray, bins: int = 5) -> tuple[np.ndarray, float, float]:
    """How probabilities (n,) that a beats b agree with the outcomes (n,).

    Which cell is called a is arbitrary, so a pair counts for its favoured cell: probabilities from 0.5 to 1,
    in equal bins. Returns (bins, 3): pairs, mean probability, share that won; the expected calibration error
    (Naeini et al. 2015); and the error that perfect probabilities would show on average with as few pairs.
    """
    confidence = np.maximum(probability, 1 - probability)
    correct = np.where(probability == 0.5, 0.5, (probability > 0.5) == a_won)
    place = np.minimum((2 * (confidence - 0.5) * bins).astype(int), bins - 1)

    def error(outcome: np.ndarray) -> float:
        gaps = np.bincount(place, outcome - confidence, bins)
        return float(np.abs(gaps).sum() / len(confidence))

    count = np.bincount(place, minlength=bins)
    sums = np.stack([np.bincount(place, values, bins) for values in (confidence, correct)])
    means = sums / np.where(count, count, np.nan)
    rng = np.random.default_rng(0)
    chance = np.mean([error(rng.random(len(confidence)) < confidence) for _ in range(500)])
    return np.stack([count, *means], axis=1), error(correct), float(chance)


def calibration(axes: Any, history: list[Row]) -> str | None:
    """A reliability diagram over the pairs that have both a probability and a trained outcome."""
    rows = [row for row in trained(history) if row["winner"] in ("a", "b")]
    probability = numbers(rows, "probability")
    known = (probability >= 0) & (probability <= 1)
    if not known.any():
        return None
    a_won = np.array([row["winner"] == "a" for row in rows], dtype=bool)[known]
    bins, error, chance = reliability(probability[known], a_won)
    axes.plot((50, 100), (50, 100), ":", color=INK, linewidth=1.2, label="perfect")
    for count, confidence, share in bins[bins[:, 0] > 0]:
        low, high = utils.wilson(share, int(count))
        axes.plot((100 * confidence,) * 2, (100 * low, 100 * high), color=FIRST, linewidth=1.2, alpha=0.7)
        axes.plot(100 * confidence, 100 * share, "o", color=FIRST, markersize=5)
        axes.text(100 * confidence, 3, f"{int(count)}", ha="center", fontsize=8)
    axes.set(xlabel="predicted probability of the favoured cell, %", ylabel="how often it won, %")
    axes.set(xlim=(48.5, 101.5), ylim=(0, 104))
    return (
        f"Calibration over {int(known.sum())} trained pairs; at the bottom, the pairs behind each point; "
        f"bars: 95% intervals. Expected calibration error {error:.3f}; perfect probabilities would show "
        f"about {chance:.3f} with as few pairs."
    )
