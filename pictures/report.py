"""The report of a search as one HTML page: reads the tables of a run folder, writes the page.

The page needs nothing but itself, is readable on a phone and on paper, and follows the reader's choice of a
light or dark screen. It is made for a run at any moment: just begun, going on, without a predictor, finished.
"""

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import genotypes
from genotypes import PRIMITIVES, Genotype
from pictures import plots
from pictures.plots import Row, numbers, trained

TABLES = {
    "history": ("generation", "loss_a", "loss_b", "winner", "decided_by"),
    "generations": ("generation", "diversity"),
    "finalists": ("rank", "genotype"),
}


@dataclass
class Run:
    """What a run folder says. `cell` is the winner or, before it is chosen, the last generation's best."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    generations: list[Row] = field(default_factory=list)
    finalists: list[Row] = field(default_factory=list)
    cell: Genotype | None = None
    finished: bool = False
    incomplete: int = 0  # rows left out because they were cut off


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a search, were it only just begun."""
    if any((folder / f"{table}.csv").is_file() for table in ("history", "generations")):
        return True
    try:
        return "pop_size" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_run(folder: Path) -> Run:
    """Read a run, finished or not. ValueError names the file that is missing, damaged or no search's."""
    if not is_run(folder):
        raise ValueError(
            f"{folder}: no run of a search: no history.csv, generations.csv or config.json of one is there"
        )
    run = Run(folder)
    for table, columns in TABLES.items():
        rows, cut = _read_table(folder / f"{table}.csv", columns)
        setattr(run, table, rows)
        run.incomplete += cut
    settings = folder / "config.json"
    if settings.is_file():
        try:
            run.config = json.loads(settings.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{settings}: no valid JSON ({error})") from None
        if not isinstance(run.config, dict):
            raise ValueError(f"{settings}: not an object of settings")
    run.finished = (folder / "genotype.json").is_file()
    run.cell = genotypes.lookup(folder) if run.finished else _leader(run.history)
    return run


def _read_table(path: Path, needed: Iterable[str]) -> tuple[list[Row], int]:
    """The rows of a CSV file (none where it is absent), and how many were cut off. ValueError names it."""
    if not path.is_file():
        return [], 0
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no CSV table ({error})") from None
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{path}: not a table of a search: it lacks the column {missing[0]}")
    whole = [row for row in rows if None not in row.values() and None not in row]
    return whole, len(rows) - len(whole)


def _leader(history: list[Row]) -> Genotype | None:
    """The cell with the lowest loss among those trained in the last generation that has a finite one."""
    rows = trained(history)
    losses = np.stack([numbers(rows, "loss_a"), numbers(rows, "loss_b")])  # (2, rows)
    losses[~np.isfinite(losses)] = np.inf
    generation = np.where(np.isfinite(losses).any(0), numbers(rows, "generation"), -np.inf)
    if not np.isfinite(generation).any():
        return None
    losses[:, generation != generation.max()] = np.inf
    side, place = np.unravel_index(losses.argmin(), losses.shape)
    try:
        return genotypes.from_json(rows[place].get(f"genotype_{'ab'[side]}", ""))
    except ValueError:
        return None


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2128; --soft: #57606a; --line: #d8dee4;
  --tint: #f3f5f7; --accent: #1f5fad; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e3e8ee; --soft: #9aa5b1;
  --line: #333b45; --tint: #1f262e; --accent: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 66rem; font: 16px/1.5 system-ui, sans-serif;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { max-width: 46rem; }
.lead { color: var(--soft); margin: .3rem 0 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0 0; }
.facts div { background: var(--tint); border-radius: .5rem; padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.05rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.75rem 2rem; }
.cells { display: grid; gap: 1.5rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
.cells figure { overflow-x: auto; }
.cells svg { max-width: var(--width); min-width: min(42rem, var(--width)); }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .25rem; max-width: 34rem; }
.plots svg text { font-family: system-ui, sans-serif !important; }
.cells svg text { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; }
svg .graph > polygon { fill: none; }
svg .state path, svg .state ellipse { fill: var(--tint); stroke: var(--soft); }
svg .state text { fill: var(--ink); }
svg .concatenation path { stroke: var(--soft); }
svg .concatenation polygon { stroke: var(--soft); fill: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .75rem 0; padding: 0; list-style: none;
  font-size: .85rem; }
.keys i, .strip i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; }
.keys i { margin-right: .35rem; vertical-align: -.08rem; }
.strip i { width: .5rem; height: 1.1rem; border-radius: 0; margin-right: 1px; vertical-align: middle; }
.strip i:nth-child(2n) { margin-right: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
.left { text-align: left; }
.winner td { font-weight: 650; color: var(--accent); }
pre { background: var(--tint); border-radius: .5rem; padding: .75rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .8rem; }
summary { cursor: pointer; color: var(--accent); margin-top: .75rem; }
.settings { columns: 17rem; column-gap: 2rem; font-size: .85rem; margin: .75rem 0 0; }
.settings div { display: flex; gap: 1rem; justify-content: space-between; break-inside: avoid;
  border-bottom: 1px solid var(--line); padding: .15rem 0; }
.settings dt { color: var(--soft); }
.settings dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #ccc;
  --tint: #f3f5f7; --accent: #1f5fad; }
  body { max-width: none; padding: 0; font-size: 11pt; print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } section { break-inside: avoid; } .plots { grid-template-columns: 1fr 1fr; }
  .cells svg { min-width: 0; } .wide, .cells figure { overflow: visible; } table { font-size: 8.5pt; }
  th, td { white-space: normal; padding-right: .6rem; } }
"""


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


def _facts(run: Run) -> str:
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


def _cells(run: Run, drawings: dict[str, str]) -> str:
    """The winner's drawings and its genotype, or those of the best cell so far."""
    if run.cell is None:
        return "<h2>Cell</h2><p>No candidate was trained yet.</p>"
    figures = [
        f"<figure><h3>{cell.capitalize()} cell</h3>{plots.inline(svg, cell)}</figure>"
        for cell, svg in drawings.items()
    ]
    note = (
        "<p>The search is not finished: this cell has the lowest loss among those trained in the last "
        "generation.</p>"
    )
    use = f"<p>Train it at full size: <code>python train.py --arch {escape(str(run.folder))}</code></p>"
    return (
        f"<h2>{'The winner' if run.finished else 'The best cell so far'}</h2>{'' if run.finished else note}"
        f'<div class="cells">{"".join(figures)}</div><details><summary>Genotype</summary>'
        f"<pre>{escape(genotypes.to_json(run.cell))}</pre></details>{use if run.finished else ''}"
    )


def _strip(text: str) -> str:
    """A cell's operations as coloured bars, two for each node; their names appear on pointing at them."""
    try:
        genotype = genotypes.from_json(text)
    except ValueError:
        return "–"
    parts = []
    for edges in (genotype.normal, genotype.reduce):
        bars = (f'<i style="background:{plots.COLOURS[name]}" title="{name}"></i>' for name, _ in edges)
        parts.append(f'<span class="strip">{"".join(bars)}</span>')
    return " &emsp;".join(parts)


def _finalists(run: Run) -> str:
    """The table of the cells that were trained from scratch; columns without a value are left out."""
    if not run.finalists:
        return ""
    known = ("loss", "error", "difference", "standard_error", "test_error", "parameters", "multiply_adds")
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
        "to the full-size network. The bars are the operations of the normal and the reduction cell, two for "
        "each node.</p>"
        '<div class="wide"><table><thead><tr><th class="left">rank</th><th class="left">origin</th>'
        f'{heads}<th class="left">operations</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f"{_keys()}</section>"
    )


def _keys() -> str:
    """The colours of the operations."""
    items = (f'<li><i style="background:{plots.COLOURS[name]}"></i>{name}</li>' for name in PRIMITIVES)
    return f'<ul class="keys">{"".join(items)}</ul>'


def _plots(run: Run) -> str:
    """The sections with plots: course, operations, predictor."""
    history, generations = run.history, run.generations
    course = plots.figure("losses", lambda axes: plots.losses(axes, history, generations))
    course += plots.figure("diversity", lambda axes: plots.diversity(axes, generations))
    counts = plots.figure("normal-counts", lambda axes: plots.operations(axes, generations, "normal"))
    counts += plots.figure("reduce-counts", lambda axes: plots.operations(axes, generations, "reduce"))
    predictor = plots.figure("decisions", lambda axes: plots.decisions(axes, history, generations))
    predictor += plots.figure("calibration", lambda axes: plots.calibration(axes, history))
    sections = []
    for title, keys, pictures, without in (
        ("Course of the search", "", course, "No generation is finished yet."),
        ("Operations in the population", _keys(), counts, "No generation is finished yet."),
        ("Predictor", "", predictor, "No prediction was made so far, or the search has no predictor."),
    ):
        content = f'{keys}<div class="plots">{pictures}</div>' if pictures else f"<p>{without}</p>"
        sections.append(f"<section><h2>{title}</h2>{content}</section>")
    return "\n".join(sections)


def _settings(run: Run) -> str:
    """Every setting of the run."""
    texts = {
        str(key): value if isinstance(value, str) else json.dumps(value) for key, value in run.config.items()
    }
    items = (f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in texts.items())
    return f'<h2>Settings</h2><dl class="settings">{"".join(items)}</dl>' if texts else ""


def page(run: Run, drawings: dict[str, str]) -> str:
    """The whole report as HTML; `drawings` are the SVG files of run.cell, by name ("normal", "reduction")."""
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
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: cell search</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
