"""The parts of a report on the winner: where it came from, and the cells that it was compared with."""

from html import escape

import numpy as np

import genotypes
from genotypes import PRIMITIVES, AnyGenotype, Genotype
from pictures import ancestry, looks, plots
from pictures.tables import RecordedRun, numbers
from pictures.words import chance, is_winner, short, value


def is_one_cell(genotype: AnyGenotype) -> bool:
    """Whether its normal and its reduction cell are the same, as `--cells normal` makes all."""
    return isinstance(genotype, Genotype) and genotype[:2] == genotype[2:]


def strip(text: str) -> str:
    """A cell's operations as coloured bars, in the order of its edges; pointing at them shows their names."""
    try:
        genotype = genotypes.from_json(text)
    except ValueError:
        return "–"
    parts = []
    for cell in genotypes.cells_of(genotype):
        bars = (
            f'<i style="background:{looks.colour(name)}" title="{escape(name)}, from {source}"></i>'
            for name, source in getattr(genotype, cell)
        )
        parts.append(f'<span class="strip">{"".join(bars)}</span>')
    return f'<span class="strips">{"".join(parts)}</span>'


def keys(*runs: RecordedRun) -> str:
    """The colours of the operations that the tables of some runs count."""
    names = (
        name
        for run in runs
        for cell in looks.CELLS
        for name in plots.counted_operations(run.generations, cell)
    )
    items = (
        f'<li><i style="background:{looks.colour(name)}"></i>{escape(name)}</li>'
        for name in list(dict.fromkeys(names)) or PRIMITIVES
    )
    return f'<ul class="keys">{"".join(items)}</ul>'


def table(heads: list[str], rows: list[list[str]], left: tuple[int, ...], marked: int = -1) -> str:
    """Rows of HTML as a table; on a narrow page each row is a block of named values.

    `left`: the columns of words, which stand left; `marked`: the row that stands out.
    """
    side = dict.fromkeys(left, ' class="left"')
    head = "".join(f"<th{side.get(place, '')}>{name}</th>" for place, name in enumerate(heads))
    lines = []
    for number, row in enumerate(rows):
        cells = (
            f'<td{side.get(place, "")} data-name="{heads[place]}">{text}</td>'
            for place, text in enumerate(row)
        )
        mark = ' class="winner"' if number == marked else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def finalists(run: RecordedRun) -> str:
    """The cells that were trained from scratch, random ones too; columns without a value are left out."""
    if not run.finalists:
        return ""
    scored = plots.has_training_loss(run.finalists)
    known = [*(["score"] if scored else []), "loss", "error", "difference", "standard_error", "test_error"]
    known += ["parameters", "multiply_adds", "latency", "memory"]
    columns = [column for column in known if np.isfinite(numbers(run.finalists, column)).any()]
    rows = []
    for row in run.finalists:
        place = f"{escape(row['rank'])}{' ★' if is_winner(row) else ''}"
        origin = escape(ancestry.origin(run.history, row["genotype"], run.config))
        values = (value(row, column) for column in columns)
        rows.append([place, *values, origin, strip(row["genotype"])])
    best = next((place for place, row in enumerate(run.finalists) if is_winner(row)), -1)
    for row in run.baseline:
        rows.append(["", *(value(row, column) for column in columns), "random cell", strip(row["genotype"])])
    units = {column: plots.NAMES[column] for column in ("latency", "memory")}
    named = (units.get(column, column.replace("_", " ")) for column in columns)
    heads = ["rank", *named, "met first in", "operations"]
    left, said = (0, len(heads) - 2, len(heads) - 1), chance(run)
    beside = f"<p>{escape(said[1])}</p>" if said else ""
    chosen = " by its score, validation plus training loss" if scored else ""
    kinds = ", the normal one first" if isinstance(run.cell, Genotype) else ""
    if kinds and run.config.get("cells") == "normal":
        kinds += ", which the reduction cell equals"
    return (
        "<section><h2>Finalists</h2><p>Each was trained from scratch and compared on the validation images; "
        f"★ marks the winner{chosen}, and the differences are those to its loss. Parameters and what else "
        "a cell costs belong to the full-size network. The bars are the operations of each cell, in the "
        f"order of its edges{kinds}.</p>{beside}{table(heads, rows, left, best)}{keys(run)}</section>"
    )


def descent(run: RecordedRun) -> str:
    """Where the winner came from: the pairs that its line lost, and what each move took from whom."""
    if not run.finished or run.cell is None:
        return ""
    cell = genotypes.to_json(run.cell)
    origin = ancestry.origin(run.history, cell, run.config)
    line = ancestry.line(run.history, cell, run.config)
    text = {
        0: "It is of the last population, and was not compared before it became a finalist.",
        1: "No move led to it, so the search's rule and its predictor had no part in making it.",
    }.get(
        len(line),
        "A learner that lost its pair moved towards the faster one, or where the predictor sent it.",
    )
    rows = []
    for one in line:
        loss = short(float(one.loss)) if one.loss else "–"
        made, kept = "first of its line", "–"
        if one.slower:
            made = f"<span>lost, moved towards</span> {strip(one.faster)}"
            kept = "{} kept, {} of the faster one, {} new".format(*ancestry.shares(one))
        rows.append([str(one.generation + 1), made, kept, loss, strip(one.cell)])
    heads = ["generation", "how it came about", "its edges", "loss there", "operations"]
    note = f"Met first in {origin}. {text}" if line else text
    if len(line) > 1:
        note += " An edge is an operation with its input."
    return (
        f"<section><h2>Where the winner came from</h2><p>{escape(note)}</p>"
        f"{table(heads, rows, (1, 2, 4), len(rows) - 1) if len(line) > 1 else ''}</section>"
    )
