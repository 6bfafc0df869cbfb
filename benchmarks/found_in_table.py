"""Looks up in the table of NAS-Bench-201 what searches of its space found on images.

    python train_search.py --space nasbench201 --set cifar10 --save runs/a
    python benchmarks/found_in_table.py --table nasbench201_cifar10.csv --runs runs/a runs/b --json found.json

For each run: the true accuracy of its winner and how many cells are better; the best cell that it trained,
and what the best of as many random cells would have; and how the losses that the search saw, and those of its
finalists, rank the cells (Kendall's tau with the table). Runs of `--strategy random` go beside the others.
"""

from __future__ import annotations

import math
import reprlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import scipy.stats
from tables import Table

import genotypes
from common.flags import parse, run_script
from genotypes import NASBENCH201, CompleteCell, edges_of
from pictures.tables import RecordedRun, numbers, read_run, trained


@dataclass(frozen=True)
class Config:
    """Look up found cells in the table of NAS-Bench-201."""

    table: str
    """CSV file: arch (six integers joined by -), then columns of numbers"""
    runs: tuple[str, ...]
    """folders of finished searches with --space nasbench201"""
    truth: str | None = None
    """column of the table (default: the first)"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for what cannot be looked up."""
        if not self.runs:
            raise ValueError("--runs: needs a folder at least")
        evidence.check_output(self.json)


def position(cell: CompleteCell) -> tuple[int, ...]:
    """How the table names a cell: the operations of its edges 0-1, 0-2, 0-3, 1-2, 1-3, 2-3."""
    edges = sorted(edges_of(cell, "cell"), key=lambda edge: edge[1:])
    return tuple(NASBENCH201.index(operation) for operation, *_ in edges)


def truth_of(table: Table, text: str, run: RecordedRun) -> float:
    """The table's value for a cell as JSON. ValueError names the run where the table has no such cell."""
    cell = genotypes.from_json(text)
    try:
        if isinstance(cell, CompleteCell):
            return table.accuracy(position(cell))
    except (ValueError, KeyError):
        pass
    raise ValueError(f"--runs {run.folder}: {reprlib.repr(text)} is no cell of {table.name}")


def losses(run: RecordedRun) -> dict[str, float]:
    """The loss of each cell when it was last trained, by its JSON."""
    found: dict[str, float] = {}
    for row in trained(run.history):
        for side in "ab":
            found[row[f"genotype_{side}"]] = float(row[f"loss_{side}"])
    return {cell: loss for cell, loss in found.items() if math.isfinite(loss)}


def tau(losses: list[float], truths: list[float]) -> float | None:
    """Kendall's tau of minus the losses with the truth; None for fewer than three cells."""
    if len(losses) < 3:
        return None
    found = float(scipy.stats.kendalltau(np.negative(losses), truths).statistic)
    return found if math.isfinite(found) else None


def best_of(truths: np.ndarray, count: int) -> float:
    """The expected best of `count` cells drawn from the table, each as likely as any other."""
    below = np.arange(len(truths) + 1) / len(truths)  # the share of cells below each place
    return float((np.diff(below**count) * np.sort(truths)).sum())


def look_up(table: Table, truths: np.ndarray, run: RecordedRun) -> dict[str, Any]:
    """What one search found, in the table's numbers."""
    if not run.finished or run.cell is None:
        raise ValueError(f"--runs {run.folder}: the search has not chosen its winner yet")
    seen = losses(run)
    known = [truth_of(table, cell, run) for cell in seen]
    finalists = [row for row in run.finalists if math.isfinite(float(row["loss"]))]
    final = [truth_of(table, row["genotype"], run) for row in finalists]
    winner = truth_of(table, genotypes.to_json(run.cell), run)
    return {
        "run": str(run.folder),
        "strategy": run.config.get("strategy"),
        "seed": run.config.get("seed"),
        "winner": genotypes.to_dict(run.cell),
        "winner_accuracy": winner,
        "cells_above_the_winner": int((truths > winner).sum()),
        "trained_cells": len(seen),
        "best_trained": max(known, default=None),
        "mean_trained": float(np.mean(known)) if known else None,
        "best_of_as_many_random": best_of(truths, len(seen)) if seen else None,
        "tau_of_the_search": tau(list(seen.values()), known),
        "finalists": final,
        "tau_of_the_finalists": tau(numbers(finalists, "loss").tolist(), final),
    }


def line(found: dict[str, Any], cells: int) -> str:
    """One run in words."""
    taus = (found["tau_of_the_search"], found["tau_of_the_finalists"])
    search, finalists = ("-" if value is None else f"{value:.2f}" for value in taus)
    return (
        f"{found['run']}: winner {found['winner_accuracy']:.2f}, {found['cells_above_the_winner']} of {cells}"
        f" are better; trained {found['trained_cells']}, best {found['best_trained'] or math.nan:.2f}, of as "
        f"many random {found['best_of_as_many_random'] or math.nan:.2f}; tau of the search {search}, of the "
        f"finalists {finalists}"
    )


def main(config: Config) -> None:
    if not Path(config.table).is_file():
        print(f"skipped: {config.table} is not there")
        return
    table = Table(config.table, config.truth)
    if table.space.counts.tolist() != [len(NASBENCH201)] * 6:
        raise ValueError(f"--table {config.table}: not six edges with five operations each")
    truths = np.array([table.accuracy(tuple(row)) for row in table.rows.tolist()])
    found = [look_up(table, truths, read_run(Path(run))) for run in config.runs]
    for one in found:
        print(line(one, len(truths)))
    winners = [one["winner_accuracy"] for one in found]
    best, mean = truths.max(), truths.mean()
    print(f"winners: mean {np.mean(winners):.2f}; a random cell: {mean:.2f}, the best: {best:.2f}")
    result = {
        "table": {"name": table.name, "column": table.truth, "cells": len(truths)},
        "random_cell": {"mean": float(truths.mean()), "median": float(np.median(truths))},
        "best_cell": float(truths.max()),
        "runs": found,
    }
    if config.json is not None:
        evidence.write(config.json, evidence.provenance(asdict(config)) | result)


if __name__ == "__main__":
    run_script(main, parse(Config))
