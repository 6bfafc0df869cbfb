"""The report of a search as one HTML page.

It needs nothing but itself, is readable on a phone and on paper, and follows the reader's choice of a
light or dark screen. It is made for a run at any moment: just begun, going on, without a predictor, finished.
"""

import json
import re
import shlex
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import genotypes
from pictures import ancestry, looks, plots, winner
from pictures.tables import RecordedRun, candidates_trained, defaults, numbers, trained
from pictures.words import chance, duration, is_winner, value, verdict
from spaces import FULL_SIZE

LIMITS = ("max_parameters", "max_multiply_adds", "max_latency", "max_memory")
MEASURED = (  # column of finalists.csv, what its tile is called, unit
    ("latency", "latency at full size", "ms"),
    ("memory", "memory of training at full size", "GiB"),
)
FLAG = re.compile(r"(?<!\S)--\w+")


def training_command(arch: str | Path, settings: Mapping[str, Any], images: int | None = None) -> str:
    """The command line that trains `arch`, found by a search of these settings, on the same `images`.

    Its size is that of the limits, where the search had any; else it stands to the candidates' as the
    published network (36 channels, 20 cells) stands to the published candidates (16, 8). A cell of
    NAS-Bench-201 gets the size of its table's networks, and no auxiliary head.
    """
    limited = (
        any(settings.get(name) is not None for name in LIMITS) or len(settings.get("objectives", ())) > 1
    )
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


def _facts(run: RecordedRun) -> str:
    """The run in a few numbers, in rows of equal length where their count allows it."""
    done, planned = len(run.generations), run.config.get("generations")
    alone = len(run.history) - len(trained(run.history))
    facts = {
        "generations": f"{done} of {planned}" if planned else str(done),
        "candidates trained": f"{candidates_trained(run.history):,}",
        "pairs decided by the predictor": f"{alone:,} of {len(run.history):,}",
        "time in the search": duration(float(np.nansum(numbers(run.generations, "seconds")))),
    }
    for row in filter(is_winner, run.finalists):
        facts["winner's validation error"] = value(row, "error")
        facts["winner's test error"] = value(row, "test_error")
        if said := chance(run):
            facts["random cells beside it"] = said[0]
        facts["winner met first in"] = ancestry.origin(run.history, row["genotype"], run.config)
        facts["parameters at full size"] = value(row, "parameters")
        facts["multiply-adds at full size"] = value(row, "multiply_adds")
        for column, name, unit in MEASURED:
            if np.isfinite(numbers([row], column)[0]):  # only where the search was asked for it
                images = run.config.get(f"{column}_batch_size")
                facts[name] = f"{value(row, column)} {unit}" + (f", batch of {images}" if images else "")
    columns = next((count for count in (4, 5, 3) if len(facts) % count == 0), 4)
    items = (f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="facts" style="--columns:{columns}">{"".join(items)}</dl>'


def title(cell: str) -> str:
    """What a drawing is called: "normal cell", "reduction cell", "cell", or of "both" that they are one."""
    return {"cell": "cell", "both": "normal cell = reduction cell"}.get(cell, f"{cell} cell")


def _code(command: str) -> str:
    """Words of a command line as HTML; lines do not break within the name of a flag."""
    flags = FLAG.sub(r'<span class="flag">\g<0></span>', escape(command))
    return f"<code>{flags}</code>"


def _cells(run: RecordedRun, drawings: dict[str, str]) -> str:
    """The winner's drawings and its genotype, or those of the best cell so far."""
    if run.cell is None:
        return "<h2>Cell</h2><p>No candidate was trained yet.</p>"
    figures = [
        f"<figure><h3>{title(cell).capitalize()}</h3>{looks.inline(svg, cell)}</figure>"
        for cell, svg in drawings.items()
    ]
    note = (
        "<p>The search is not finished: this cell has the lowest loss among those trained in the last "
        "generation.</p>"
    )
    command = training_command(run.folder, run.config, run.images)
    use = f"<p>Train it at full size: {_code(command)}</p>"
    return (
        f"<h2>{'The winner' if run.finished else 'The best cell so far'}</h2>{'' if run.finished else note}"
        f'<div class="cells">{"".join(figures)}</div><details><summary>Genotype</summary>'
        f"<pre>{escape(genotypes.to_json(run.cell))}</pre></details>{use if run.finished else ''}"
    )


def _plots(run: RecordedRun) -> str:
    """The sections with plots: course, operations, predictor."""
    history, generations = run.history, run.generations
    course = looks.figure("losses", lambda axes: plots.losses(axes, history, generations))
    course += looks.figure("diversity", lambda axes: plots.diversity(axes, generations))
    counts = "".join(
        looks.figure(f"{cell}-counts", partial(plots.operations, generations=generations, cell=cell))
        for cell in looks.CELLS
    )
    predictor = looks.figure("decisions", lambda axes: plots.decisions(axes, history, generations))
    predictor += looks.figure("calibration", lambda axes: plots.calibration(axes, history))
    sections = []
    for title, before, pictures, without in (
        ("Course of the search", "", course, "<p>No generation is finished yet.</p>"),
        ("Operations in the population", winner.keys(run), counts, "<p>No generation is finished yet.</p>"),
        ("Predictor", f"<p>{escape(verdict(run))}</p>", predictor, f"<p>{escape(verdict(run))}</p>"),
    ):
        content = f'{before}<div class="plots">{pictures}</div>' if pictures else without
        sections.append(f"<section><h2>{title}</h2>{content}</section>")
    return "\n".join(sections)


def _front(run: RecordedRun) -> str:
    """The finalists by score and each cost, where the search had several objectives."""
    costs = [name for name in run.config.get("objectives", ()) if name != "error"]
    drawn = "".join(
        looks.figure(
            f"front-{cost}", partial(plots.front, finalists=run.finalists, front=run.front, cost=cost)
        )
        for cost in costs
    )
    if not drawn:
        return ""
    how = f"--arch '{run.folder}#NUMBER'"
    several = " What looks beaten in the plot of one cost has less of another." if len(costs) > 1 else ""
    return (
        f"<section><h2>The front</h2><p>No other finalist has a better score and costs no more.{several} "
        f"Train one with {_code(how)}; the numbers are those of front.csv.</p>"
        f'<div class="plots">{drawn}</div></section>'
    )


def _settings(run: RecordedRun) -> str:
    """Every setting of the run: first those that differ from the defaults of today, the others folded."""
    known = defaults("train_search.py")
    differ = {key: value for key, value in run.config.items() if key not in known or known[key] != value}
    alike = {key: value for key, value in run.config.items() if key not in differ}
    if not run.config:
        return ""
    first = _definitions(differ) if differ else "<p>All are the defaults.</p>"
    rest = f"<details><summary>{len(alike)} at their defaults</summary>{_definitions(alike)}</details>"
    return f"<section><h2>Settings</h2>{first}{rest if alike else ''}</section>"


def _definitions(settings: Mapping[str, Any]) -> str:
    texts = {
        str(key): value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()
    }
    items = (f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in texts.items())
    return f'<dl class="settings">{"".join(items)}</dl>'


def page(run: RecordedRun, drawings: dict[str, str]) -> str:
    """The whole report as HTML; `drawings` are the SVG files of run.cell, by the names of `title`."""
    name = escape(run.folder.resolve().name)
    about = [f"{key} {run.config[key]}" for key in ("set", "strategy", "seed") if key in run.config]
    lead = f"Cell search, {'finished' if run.finished else 'not finished'}. {', '.join(about)}"
    if run.incomplete:
        lead += f". Table rows left out because they were cut off: {run.incomplete}"
    body = [
        f'<header><h1>{name}</h1><p class="lead">{escape(lead)}</p></header>',
        _facts(run),
        _cells(run, drawings),
        winner.descent(run),
        winner.finalists(run),
        _front(run),
        _plots(run),
        _settings(run),
    ]
    return document(f"{name}: cell search", body)


def document(title: str, body: list[str]) -> str:
    """A page of HTML with its style; `title` is HTML."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
