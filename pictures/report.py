"""The report of a search as one HTML page.

It needs nothing but itself, is readable on a phone and on paper, and follows the reader's choice of a
light or dark screen. It is made for a run at any moment: just begun, going on, without a predictor, finished.
"""

import json
import math
import shlex
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import genotypes
from genotypes import PRIMITIVES
from pictures import plots
from pictures.tables import RecordedRun, Row, numbers, trained
from spaces import FULL_SIZE

LIMITS = ("max_parameters", "max_multiply_adds", "max_latency")


def short(value: float) -> str:
    """A number for a reader: 3.93 M for 3930000, else four significant digits; a dash where there is none."""
    if math.isnan(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if size <= abs(value) < math.inf:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as "2 h 05 min", "3 min 20 s" or "42 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def training_command(arch: str | Path, settings: Mapping[str, Any], images: int | None = None) -> str:
    """The command line that trains `arch`, found by a search of these settings, on the same `images`.

    Its size is that of the limits, where the search had any; else it stands to the candidates' as the
    published network (36 channels, 20 cells) stands to the published candidates (16, 8). A cell of
    NAS-Bench-201 gets the size of its table's networks, and no auxiliary head.
    """
    limited = any(settings.get(name) is not None for name in LIMITS)
    channels, layers = settings.get("init_channels", 16), settings.get("layers", 8)
    graph = settings.get("space", "darts") == "nasbench201"
    if limited or graph:
        C, cells = FULL_SIZE["nasbench201" if graph else "darts"]
        size = settings.get("full_channels") or C, settings.get("full_layers") or cells
    else:
        size = max(1, round(channels * 36 / 16)), max(1, round(layers * 20 / 8))
    name, data = settings.get("set", "cifar10"), settings.get("data", "data")
    words = ["python", "train.py", "--arch", str(arch), "--set", name]
    words += ["--data", data] if name == "folder" or data != "data" else []
    words += ["--image_size", settings["image_size"]] if settings.get("image_size") else []
    words += ["--init_channels", size[0], "--layers", size[1]]
    batch_size = min(settings.get("batch_size", 256), images or 128)
    words += ["--batch_size", batch_size] if batch_size < 128 else []
    words += ["--auxiliary", "--cutout"] if name in ("cifar10", "cifar100") and not graph else []
    return shlex.join(str(word) for word in words)


def _is_winner(row: Row) -> bool:
    return row.get("winner", "").strip().lower() in ("1", "true", "yes")


def _value(row: Row, column: str) -> str:
    """A number of finalists.csv for a reader; an error, there a share, as percent."""
    value = float(numbers([row], column)[0])
    return (
        f"{value:.2%}"
        if column.endswith("error") and column != "standard_error" and math.isfinite(value)
        else short(value)
    )


def _facts(run: RecordedRun) -> str:
    """The run in a few numbers."""
    done, planned = len(run.generations), run.config.get("generations")
    alone = len(run.history) - len(trained(run.history))
    facts = {
        "generations": f"{done} of {planned}" if planned else str(done),
        "candidates trained": f"{2 * len(trained(run.history)):,}",
        "pairs decided by the predictor": f"{alone:,} of {len(run.history):,}",
        "time in the search": duration(float(np.nansum(numbers(run.generations, "seconds")))),
    }
    for row in filter(_is_winner, run.finalists):
        facts["winner's validation error"] = _value(row, "error")
        facts["winner's test error"] = _value(row, "test_error")
        facts["parameters at full size"] = _value(row, "parameters")
        facts["multiply-adds at full size"] = _value(row, "multiply_adds")
    items = (f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def title(cell: str) -> str:
    """What a drawing is called: "normal cell", "reduction cell", or "cell"."""
    return cell if cell == "cell" else f"{cell} cell"


def _cells(run: RecordedRun, drawings: dict[str, str]) -> str:
    """The winner's drawings and its genotype, or those of the best cell so far."""
    if run.cell is None:
        return "<h2>Cell</h2><p>No candidate was trained yet.</p>"
    figures = [
        f"<figure><h3>{title(cell).capitalize()}</h3>{plots.inline(svg, cell)}</figure>"
        for cell, svg in drawings.items()
    ]
    note = (
        "<p>The search is not finished: this cell has the lowest loss among those trained in the last "
        "generation.</p>"
    )
    command = training_command(run.folder, run.config, run.images)
    use = f"<p>Train it at full size: <code>{escape(command)}</code></p>"
    return (
        f"<h2>{'The winner' if run.finished else 'The best cell so far'}</h2>{'' if run.finished else note}"
        f'<div class="cells">{"".join(figures)}</div><details><summary>Genotype</summary>'
        f"<pre>{escape(genotypes.to_json(run.cell))}</pre></details>{use if run.finished else ''}"
    )


def _strip(text: str) -> str:
    """A cell's operations as coloured bars, in the order of its edges; pointing at them shows their names."""
    try:
        genotype = genotypes.from_json(text)
    except ValueError:
        return "–"
    parts = []
    for cell in genotypes.cells_of(genotype):
        bars = (
            f'<i style="background:{plots.colour(name)}" title="{escape(name)}"></i>'
            for name, _ in getattr(genotype, cell)
        )
        parts.append(f'<span class="strip">{"".join(bars)}</span>')
    return " &emsp;".join(parts)


def _finalists(run: RecordedRun) -> str:
    """The table of the cells that were trained from scratch; columns without a value are left out."""
    if not run.finalists:
        return ""
    known = (
        "loss",
        "error",
        "difference",
        "standard_error",
        "test_error",
        "parameters",
        "multiply_adds",
        "latency",
    )
    columns = [column for column in known if np.isfinite(numbers(run.finalists, column)).any()]
    lines = []
    for row in run.finalists:
        values = "".join(f"<td>{_value(row, column)}</td>" for column in columns)
        star, mark = (" ★", ' class="winner"') if _is_winner(row) else ("", "")
        lines.append(
            f'<tr{mark}><td class="left">{escape(row["rank"])}{star}</td>'
            f'<td class="left">{escape(row.get("origin", ""))}</td>{values}'
            f'<td class="left">{_strip(row["genotype"])}</td></tr>'
        )
    heads = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in columns)
    return (
        "<section><h2>Finalists</h2><p>Each was trained from scratch and compared on the validation images; "
        "★ marks the winner, and the differences are those to its loss. Parameters and multiply-adds belong "
        "to the full-size network. The bars are the operations of each cell, the normal one first, in the "
        "order of its edges.</p>"
        '<div class="wide"><table><thead><tr><th class="left">rank</th><th class="left">origin</th>'
        f'{heads}<th class="left">operations</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f"{_keys(run)}</section>"
    )


def _keys(run: RecordedRun) -> str:
    """The colours of the operations."""
    counted = (name for cell in plots.CELLS for name in plots.counted(run.generations, cell))
    names = list(dict.fromkeys(counted)) or PRIMITIVES
    items = (f'<li><i style="background:{plots.colour(name)}"></i>{escape(name)}</li>' for name in names)
    return f'<ul class="keys">{"".join(items)}</ul>'


def _plots(run: RecordedRun) -> str:
    """The sections with plots: course, operations, predictor."""
    history, generations = run.history, run.generations
    course = plots.figure("losses", lambda axes: plots.losses(axes, history, generations))
    course += plots.figure("diversity", lambda axes: plots.diversity(axes, generations))
    counts = "".join(
        plots.figure(f"{cell}-counts", partial(plots.operations, generations=generations, cell=cell))
        for cell in plots.CELLS
    )
    predictor = plots.figure("decisions", lambda axes: plots.decisions(axes, history, generations))
    predictor += plots.figure("calibration", lambda axes: plots.calibration(axes, history))
    sections = []
    for title, keys, pictures, without in (
        ("Course of the search", "", course, "No generation is finished yet."),
        ("Operations in the population", _keys(run), counts, "No generation is finished yet."),
        ("Predictor", "", predictor, "No prediction was made so far, or the search has no predictor."),
    ):
        content = f'{keys}<div class="plots">{pictures}</div>' if pictures else f"<p>{without}</p>"
        sections.append(f"<section><h2>{title}</h2>{content}</section>")
    return "\n".join(sections)


def _settings(run: RecordedRun) -> str:
    """Every setting of the run."""
    texts = {
        str(key): value if isinstance(value, str) else json.dumps(value) for key, value in run.config.items()
    }
    items = (f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in texts.items())
    return f'<h2>Settings</h2><dl class="settings">{"".join(items)}</dl>' if texts else ""


def page(run: RecordedRun, drawings: dict[str, str]) -> str:
    """The whole report as HTML; `drawings` are the SVG files of run.cell, by name ("normal", ...)."""
    name = escape(run.folder.resolve().name)
    about = [f"{key} {run.config[key]}" for key in ("set", "strategy", "seed") if key in run.config]
    lead = f"Cell search, {'finished' if run.finished else 'not finished'}. {', '.join(about)}"
    if run.incomplete:
        lead += f". Table rows left out because they were cut off: {run.incomplete}"
    body = [
        f'<header><h1>{name}</h1><p class="lead">{escape(lead)}</p></header>',
        _facts(run),
        _cells(run, drawings),
        _finalists(run),
        _plots(run),
        _settings(run),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: cell search</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
