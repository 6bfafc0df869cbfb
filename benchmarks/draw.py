"""Draws what a record holds, each kind as its own picture; nothing is measured.

    python benchmarks/draw.py benchmarks/records/2026-11-26-image-table/estimates.json --out estimates.svg
    python benchmarks/draw.py benchmarks/records/2026-11-24-trainings/cifar-* --out trainings.svg
    cd benchmarks/records/2026-11-24-search-tables
    python ../../draw.py nasbench201.json darts_*.json --out searches.svg         # a panel for each table

Records: JSON of `search_on_table.py`, `search_on_images.py`, `estimates.py` or `predictor_on_table.py`, or
folders of trainings (`card.json`, `epochs.csv`). All records of one picture are of one kind.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

from common.flags import check_new_file, parse, run_script
from utils import wilson, write_atomically

Record = dict[str, Any]
TABLES = {
    "nasbench201_cifar10": "NAS-Bench-201, CIFAR-10",
    "nasbench301_surrogate": "DARTS space, NAS-Bench-301",
}
IMAGES = {"folder": "CIFAR-10 as JPEG files", "fashion_mnist": "Fashion-MNIST"}
COLOURS = (  # ours first
    *("#C2410C", "#1F5FAD", "#8A929C", "#00796B", "#8E5BB5"),
    *("#B08A00", "#5BA7F0", "#C2185B", "#4E7D2C"),
)
STRATEGIES = ("ours", "slow_fast", "random", "evolution", "local", "gaussian_process")
MARKS = "osD^v<>"


@dataclass(frozen=True)
class Config:
    """Draw records."""

    records: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")]
    """JSON files, or folders of trainings"""
    out: str
    """picture to write, by its ending .svg, .png or .pdf"""
    overwrite: bool = False
    """replace it if it is there"""

    def check(self) -> None:
        """ValueError names what cannot be drawn or written."""
        if not self.records:
            raise ValueError("RECORD: give at least one JSON file or folder of a training")
        if Path(self.out).suffix not in (".svg", ".png", ".pdf"):
            raise ValueError(f"--out {self.out}: must end in .svg, .png or .pdf")
        if not (self.overwrite and Path(self.out).is_file()):
            check_new_file("out", self.out)


def read(path: Path) -> tuple[str, Record]:
    """A record and its kind, which is the name of one of `PANELS`. ValueError names a file that is none."""
    try:
        if path.is_dir():
            with open(path / "epochs.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            card = json.loads((path / "card.json").read_text())
            return "training", {"name": path.name, "epochs": rows, "card": card}
        found = json.loads(path.read_text())
        keys = {"strategies": "search", "estimates": "estimates", "pairs": "predictor"}
        kind = next((kind for key, kind in keys.items() if key in found), None)
        if kind == "search" and "searches" in found:
            kind = "images"
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no record ({error})") from None
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: no such file") from None
    if kind is None or (kind == "search" and "table" not in found):
        raise ValueError(
            f"{path}: not a record of search_on_table, search_on_images, estimates or predictor_on_table"
        )
    return kind, found


def panel_of(kind: str, record: Record) -> str:
    """Which panel a record goes into: its title. A search's is the table and the column that is observed."""
    if kind == "search":
        epochs = " (12 epochs observed)" if record["config"].get("observe") == "accuracy_12_epochs" else ""
        return str(TABLES.get(record["table"], record["table"])) + epochs
    if kind == "images":
        settings = record["config"]["search"]
        return str(IMAGES.get(settings["set"], settings["set"]))
    if kind == "predictor":
        return str(TABLES.get(record["table"], record["table"]))
    if kind == "estimates":
        return f"{record['gain']['cells']} cells, each trained from scratch"
    network = record["card"]["network"]
    return f"{record['card']['images']['set']}, {network['C']} channels, {network['layers']} cells"


def search(axes: Any, records: list[Record]) -> None:
    """Accuracy of what a strategy returns, over evaluations: means and standard errors."""
    found = {name: rows for record in records for name, rows in record["strategies"].items()}
    names = [name for name in STRATEGIES if name in found] + [
        name for name in found if name not in STRATEGIES
    ]
    for place, name in enumerate(names):
        budgets = sorted(map(int, found[name]))
        rows = [found[name][str(budget)] for budget in budgets]
        errors = [(row["sd"] or 0) / math.sqrt(len(row["values"])) for row in rows]
        width, colour = 2.6 if name == "ours" else 1.3, COLOURS[place % len(COLOURS)]
        look = {
            "label": name.replace("_", " "),
            "linewidth": width,
            "color": colour,
            "markersize": 4,
            "capsize": 2,
        }
        means = [row["mean"] for row in rows]
        axes.errorbar(budgets, means, errors, marker=MARKS[place % len(MARKS)], elinewidth=1, **look)
    ticks = sorted({int(budget) for rows in found.values() for budget in rows})
    axes.set(xscale="log", xlabel="distinct architectures evaluated", ylabel="true accuracy, %")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def images(axes: Any, records: list[Record]) -> None:
    """Test errors of the winners: a dot for each search, a line for each seed, means with 95% intervals."""
    from scipy import stats

    (record,) = records
    found = record["searches"]
    names = sorted(found, key=lambda name: (name != "ours", record["strategies"][name]["test_error"]["mean"]))
    errors = {name: {run["seed"]: 100 * run["test_error"] for run in found[name]} for name in names}
    for seed in sorted(set().union(*errors.values())):
        line = [errors[name].get(seed, math.nan) for name in names]
        axes.plot(range(len(names)), line, "o-", color="#8A929C", linewidth=0.7, markersize=3, alpha=0.6)
    for place, name in enumerate(names):
        values = list(errors[name].values())
        mean, count = sum(values) / len(values), len(values)
        deviation = record["strategies"][name]["test_error"]["sd"] or 0.0
        half = 100 * deviation / math.sqrt(count) * stats.t.ppf(0.975, count - 1) if count > 1 else 0.0
        axes.errorbar(
            place, mean, half, marker="D", color=COLOURS[place % len(COLOURS)], capsize=4, linewidth=2
        )
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set(ylabel="test error of the winner, %", xlim=(-0.5, len(names) - 0.5))


# These are held against other cells than all others.
OF_SOME_CELLS = {"epoch as an input, ends of a quarter", "training loss, cells without an end"}


def estimates(axes: Any, records: list[Record]) -> None:
    """Rank correlation of estimates over their cost in epochs, with intervals, and the frontier."""
    (record,) = records  # titles are one record's
    kinds: dict[str, list[Record]] = {}
    for name, row in record["estimates"].items():
        kinds.setdefault(name.rpartition(", ")[0] if name[-1].isdigit() else name, []).append(row)
    kinds = {kind: rows for kind, rows in kinds.items() if kind not in OF_SOME_CELLS}
    found = [row for rows in kinds.values() for row in rows]
    last = max(row["epochs"] for row in found)
    for place, (kind, rows) in enumerate(sorted(kinds.items(), key=lambda item: -item[1][-1]["tau"])):
        rows = sorted(rows, key=lambda row: row["epochs"])
        # Several kinds at one cost stand beside each other, so that their intervals can be told apart.
        x = [row["epochs"] + (place - (len(kinds) - 1) / 2) * 0.006 * last for row in rows]
        tau = [row["tau"] for row in rows]
        bars = [[row["tau"] - row["low"] for row in rows], [row["high"] - row["tau"] for row in rows]]
        look = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKS[place % len(MARKS)],
            "markersize": 3.5,
        }
        axes.errorbar(x, tau, bars, label=kind, linewidth=1.2, elinewidth=0.7, alpha=0.9, **look)
    frontier: list[Record] = []
    for row in sorted(found, key=lambda row: (row["epochs"], -row["tau"])):
        if not frontier or row["tau"] > frontier[-1]["tau"]:
            frontier.append(row)
    best = [
        [row["epochs"] for row in frontier] + [last],
        [row["tau"] for row in frontier] + [frontier[-1]["tau"]],
    ]
    axes.step(*best, where="post", color="#F4B042", linewidth=6, alpha=0.4, label="best for its cost")
    axes.set(xlabel="epochs of the cell that it costs", ylabel="Kendall's tau with the test accuracy")
    axes.set_ylim(min(0.0, *(row["low"] for row in found)), 1)


def predictor(axes: Any, records: list[Record]) -> None:
    """How often the cell won that the predictor favoured, by its probability, with 95% Wilson intervals."""
    (record,) = records
    axes.plot([0, 1], [0, 1], color="#8A929C", linestyle=":", label="perfect")
    for place, (number, result) in enumerate(record["pairs"].items()):
        claims, shares, counts = zip(*result["reliability"], strict=True)
        limits = [wilson(share, int(count)) for share, count in zip(shares, counts, strict=True)]
        bars = [[s - low for s, (low, _) in zip(shares, limits, strict=True)],
                [high - s for s, (_, high) in zip(shares, limits, strict=True)]]  # fmt: skip
        look = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKS[place % len(MARKS)],
            "markersize": 3.5,
        }
        axes.errorbar(
            claims, shares, bars, label=f"after {number} pairs", linewidth=1, elinewidth=1, capsize=2, **look
        )
    axes.set(xlabel="predicted probability", ylabel="share that won", xlim=(0, 1), ylim=(0, 1))


def training(axes: Any, records: list[Record]) -> None:
    """The error on the training images after each epoch; the test error at the end is in the legend."""
    for place, record in enumerate(records):
        error = [100 * float(row["error"]) for row in record["epochs"]]
        epochs = [int(row["epoch"]) + 1 for row in record["epochs"]]
        label = f"{record['name']} (test {record['card']['result']['test_error']:.2%})"
        axes.plot(epochs, error, label=label, color=COLOURS[place % len(COLOURS)], linewidth=1.6)
    axes.set(xlabel="epoch", ylabel="training error, %")
    axes.set_ylim(bottom=0)


PANELS: dict[str, Callable[[Any, list[Record]], None]] = {
    "search": search,
    "images": images,
    "estimates": estimates,
    "predictor": predictor,
    "training": training,
}
SEEN = {  # the line above the panels
    "search": "Which search finds the better architecture (mean and standard error over seeds)",
    "images": "Winners of searches of equal cost, trained anew (95% intervals)",
    "estimates": "How well short estimates rank cells (95% intervals)",
    "predictor": "How honest the predictor's probabilities are (95% intervals)",
    "training": "Training of a full network: error on the training images",
}


def draw(records: list[tuple[str, Record]], format: str) -> bytes:
    """The picture of some records of one kind, a panel for each table or data set."""
    import matplotlib
    from matplotlib.figure import Figure

    kinds = {kind for kind, _ in records}
    if len(kinds) > 1:
        raise ValueError(f"RECORD: one picture is of one kind, and these are {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    panels: dict[str, list[Record]] = {}
    for number, (_, record) in enumerate(records):
        title = panel_of(kind, record)
        alone = kind in ("images", "estimates", "predictor") and title in panels
        panels.setdefault(f"{title} ({number + 1})" if alone else title, []).append(record)
    style: dict[Any, Any] = {"svg.hashsalt": kind, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.grid": True, "grid.alpha": 0.2, "axes.axisbelow": True, "legend.frameon": False}
    with matplotlib.rc_context(style):
        wide = kind in ("estimates", "training") and len(panels) == 1
        named = max(len(record["searches"]) for _, record in records) if kind == "images" else 0
        width = 7.5 if wide else max(4.4, 0.65 * named)  # names stand beside each other
        size = (width * len(panels) + (0 if wide or len(panels) > 1 else 1.5), 4.3)
        figure = Figure(figsize=size, layout="constrained")
        for axes, (title, group) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            PANELS[kind](axes, group)
            axes.set_title(title, fontsize=10)
        figure.suptitle(SEEN[kind], fontsize=11, fontweight="bold")
        labels = {
            name: mark
            for axes in figure.axes
            for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        columns = 7 if len(panels) > 2 else 3
        if labels:
            small = 9 if len(labels) <= 3 * columns else 8
            place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "fontsize": small}
            figure.legend(labels.values(), labels.keys(), **place)
        output = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
        figure.savefig(output, format=format, dpi=150, facecolor="white", metadata=metadata)
    return output.getvalue()


def main(config: Config) -> None:
    records = [read(Path(path)) for path in config.records]
    try:
        picture = draw(records, Path(config.out).suffix[1:])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"RECORD: an entry is missing or not what the program writes ({error})") from None
    write_atomically(config.out, picture)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_script(main, parse(Config))
