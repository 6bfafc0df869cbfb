"""Searches or trainings side by side, as one HTML page: curves with bands over seeds, tables, cells.

Runs whose settings differ in nothing but the seed are one group: their curves are averaged.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import genotypes
from genotypes import AnyGenotype
from pictures import ancestry, looks, report, winner
from pictures.looks import Drawn, Hint
from pictures.tables import RecordedRun, RecordedTraining, candidates_trained, numbers
from pictures.words import duration, is_winner, short

NO_SETTINGS = ("seed", "save", "resume", "device", "data", "record")  # may differ within a group
DASHES = ("-", "--", ":", "-.")
CURVES = {  # name -> caption
    "lowest loss": "Lowest validation loss of a candidate up to each generation.",
    "mean loss": "Mean validation loss of the candidates of each generation.",
    "diversity": "Diversity of the population.",
    "training loss": "Loss on the training images.",
    "training error, %": "Error on the training images.",
}


@dataclass(frozen=True)
class Compared:
    """A run as it stands beside others: curves over `steps` of `unit`, and numbers or words by name."""

    name: str
    config: dict[str, Any]
    unit: str
    steps: np.ndarray  # (steps,), from 1
    curves: dict[str, np.ndarray]  # (steps,) each
    facts: dict[str, float | str]
    cell: AnyGenotype | None


def of_search(name: str, run: RecordedRun) -> Compared:
    """What is compared of a search."""
    best = numbers(run.generations, "best_loss")
    best = np.fmin.accumulate(np.where(np.isfinite(best), best, np.nan)) if best.size else best
    rows = [row for row in run.finalists if is_winner(row)]
    own = {column: float(numbers(rows, column)[0]) if rows else math.nan for column in WINNER.values()}
    facts: dict[str, float | str] = {
        "generations": float(len(run.generations)),
        "candidates trained": float(candidates_trained(run.history)),
        **{words: own[column] for words, column in WINNER.items()},
        "seconds": float(np.nansum(numbers(run.generations, "seconds"))),
    }
    if run.finished and run.cell is not None:
        facts["met first in"] = ancestry.origin(run.history, genotypes.to_json(run.cell), run.config)
    curves = {
        "lowest loss": best,
        "mean loss": numbers(run.generations, "mean_loss"),
        "diversity": numbers(run.generations, "diversity"),
    }
    steps = numbers(run.generations, "generation") + 1
    return Compared(name, run.config, "generation", steps, curves, facts, run.cell)


WINNER = {"validation error": "error", "test error": "test_error",
          "parameters": "parameters", "multiply-adds": "multiply_adds"}  # fmt: skip


def of_training(name: str, run: RecordedTraining) -> Compared:
    """What is compared of a training."""
    error = 100 * numbers(run.epochs, "error")
    curves = {"training loss": numbers(run.epochs, "loss"), "training error, %": error}
    facts: dict[str, float | str] = {
        "epochs": float(len(run.epochs)),
        "test error": run.test_error,
        "parameters": run.parameters,
        "multiply-adds": run.multiply_adds,
        "seconds": float(np.nansum(numbers(run.epochs, "seconds"))),
    }
    return Compared(name, run.config, "epoch", numbers(run.epochs, "epoch") + 1, curves, facts, run.cell)


def groups(runs: Sequence[Compared]) -> dict[str, list[Compared]]:
    """Runs by what tells them apart from the others, in words; within a group only the seeds differ."""
    by_settings: dict[str, list[Compared]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in NO_SETTINGS}
        by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    named: dict[str, list[Compared]] = {}
    differing = differences(runs)
    for group in by_settings.values():
        words = ", ".join(f"{key} {_text(group[0].config.get(key))}" for key in differing)
        name = group[0].name if len(group) == 1 else words or f"{group[0].name} and others"
        named[f"{name} (n {len(group)})" if len(group) > 1 else name] = group
    return named


def differences(runs: Sequence[Compared]) -> list[str]:
    """The settings in which runs differ, seeds and places aside."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NO_SETTINGS)
    return [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _breakable(name: str) -> str:
    """A run's name as HTML that may break after an underscore: a long one leaves room for numbers."""
    return escape(name).replace("_", "_<wbr>")


def _look(place: int) -> tuple[str, str]:
    """Colour and dash of a group's curves."""
    return looks.SERIES[place % len(looks.SERIES)], DASHES[place // len(looks.SERIES) % len(DASHES)]


def _legend(named: dict[str, list[Compared]]) -> str:
    """The groups and the looks of their curves; a list that wraps, however long the names are."""
    items = []
    for place, label in enumerate(named):
        colour, dash = _look(place)
        pattern = {"--": "6 3", ":": "2 2", "-.": "6 2 2 2"}.get(dash, "")
        line = f'<path d="M0 5h24" stroke="{colour}" stroke-width="3" stroke-dasharray="{pattern}"/>'
        items.append(f'<li><svg width="24" height="10" aria-hidden="true">{line}</svg> {escape(label)}</li>')
    return f'<ul class="keys">{"".join(items)}</ul>'


def _curve(axes: Any, name: str, named: dict[str, list[Compared]]) -> Drawn | None:
    """One curve of all groups: the mean over the seeds as far as all have got, and a band of one sd."""
    hints = []
    for place, (label, group) in enumerate(named.items()):
        length = min(len(run.steps) for run in group)
        if not length:
            continue
        steps = group[0].steps[:length]
        values = np.stack([run.curves[name][:length] for run in group])  # (runs, steps)
        values[~np.isfinite(values)] = np.nan
        if not np.isfinite(values).any(0).any():
            continue
        mean, sd = values.mean(0), values.std(0, ddof=1) if len(group) > 1 else np.zeros(length)
        colour, dash = _look(place)
        axes.plot(steps, mean, dash, color=colour, marker="o" if length == 1 else "", markersize=4)
        if len(group) > 1:
            axes.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
        for x, y, deviation in zip(steps, mean, sd, strict=True):
            spread = f" (sd {deviation:.4g} over {len(group)})" if len(group) > 1 else ""
            hints += (
                [Hint(f"{label}, {group[0].unit} {x:.0f}: {y:.4g}{spread}", x, y)] if np.isfinite(y) else []
            )
    if not hints:
        return None
    axes.set(xlabel=next(iter(named.values()))[0].unit, ylabel=name)
    banded = any(len(group) > 1 for group in named.values())
    return Drawn(CURVES[name] + (" Bands: one standard deviation over seeds." if banded else ""), hints)


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if name == "seconds":
        return duration(value)
    return f"{value:.2%}" if name.endswith("error") else short(value)


def _facts(named: dict[str, list[Compared]]) -> str:
    """A row for each run; behind a group of several, their mean and standard deviation."""
    columns = list(dict.fromkeys(name for group in named.values() for run in group for name in run.facts))
    rows, means = [], []
    for label, group in named.items():
        for run in group:
            values = [run.facts.get(name, math.nan) for name in columns]
            texts = [
                x if isinstance(x, str) else _number(name, x) for name, x in zip(columns, values, strict=True)
            ]
            rows.append([_breakable(run.name), escape(str(run.config.get("seed", "–"))), *map(escape, texts)])
        if len(group) > 1:
            means.append([f"mean of {escape(label)}", "", *(_mean(name, group) for name in columns)])
    heads = ["run", "seed", *(name if name != "seconds" else "time" for name in columns)]
    words = tuple(place for place, name in enumerate(heads) if name in ("run", "met first in"))
    return winner.table(heads, rows + means, words)


def _mean(name: str, group: list[Compared]) -> str:
    values = np.array([x for run in group if isinstance(x := run.facts.get(name, math.nan), float)])
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0
    return _number(name, mean) + (f" ± {_number(name, sd)}" if sd else "")


def page(runs: Sequence[Compared], drawings: Sequence[dict[str, str]]) -> str:
    """The whole comparison as HTML; `drawings`: the SVG files of each run's cell, as in a report."""
    named = groups(runs)
    figures = [
        looks.figure(f"curve{place}", partial(_curve, name=name, named=named))
        for place, name in enumerate(runs[0].curves)
    ]
    differing = differences(runs)
    settings = "<p>They differ in nothing but the seed and where they are kept.</p>"
    if differing:
        rows = [
            [_breakable(run.name), *(escape(_text(run.config.get(key))) for key in differing)] for run in runs
        ]
        settings = winner.table(["run", *differing], rows, (0,))
    cells = []
    for place, (run, drawn) in enumerate(zip(runs, drawings, strict=True)):
        pictures = "".join(
            f"<figure><h4>{report.title(cell)}</h4>{looks.inline(svg, f'{cell}{place}')}</figure>"
            for cell, svg in drawn.items()
        )
        cells.append(f"<div><h3>{escape(run.name)}</h3>{pictures or '<p>No cell yet.</p>'}</div>")
    kind = "searches" if runs[0].unit == "generation" else "trainings"
    body = [
        f"<header><h1>{len(runs)} {kind} compared</h1></header>",
        f"<section><h2>Results</h2>{_facts(named)}</section>",
        f'<section><h2>Curves</h2>{_legend(named)}<div class="plots">{"".join(figures)}</div></section>',
        f"<section><h2>Settings that differ</h2>{settings}</section>",
        f'<section><h2>Cells</h2><div class="cells beside">{"".join(cells)}</div></section>',
    ]
    return report.document(f"{len(runs)} {kind} compared", body)


def names(folders: Sequence[Path]) -> list[str]:
    """What each run is called: its folder's name, or its path where two folders have one name."""
    short_names = [folder.resolve().name for folder in folders]
    return [n if short_names.count(n) == 1 else str(f) for n, f in zip(short_names, folders, strict=True)]
