"""How well a search's weight set tells cells apart: rank correlation of its estimates with training alone.

    python train_search.py --set digits --estimate weight_set --init_channels 8 --layers 3 --save runs/digits
    python benchmarks/weight_set.py --run runs/digits --cells 10 --json out.json

Estimates are validation losses of cells with the set's weights: as they are, and after one epoch of training,
as the search compares cells; each with and without re-estimating batch-norm. They are compared with test
accuracies of the same cells, trained from scratch as finalists are. Half of the cells are random, half are
those that the search ranks best; nothing of the run changes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import scipy.stats
import torch
from searches import open_or_begin, random_cells, test_errors

import genotypes
from common import distributed
from common.flags import check_range, parse, run_script
from common.run_folder import read_settings
from genotypes import AnyGenotype
from images import sets
from model_search import SHARED, WeightSet
from search.candidates import Job, Task, TrainedCandidate, train_all
from search.estimates import SharedWeights
from search.run import SearchRun
from train_search import Config as SearchConfig
from utils import derive_seed, say

ESTIMATES = {
    "as it is": "weights of the set",
    "as it is, batch-norm": "the same, batch-norm re-estimated",
    "epoch": "after one epoch from the set's weights",
    "epoch, batch-norm": "the same, batch-norm re-estimated",
}


@dataclass(frozen=True)
class Config:
    """Compare the weight set's estimates with training from scratch."""

    run: str
    """folder of a search"""
    cells: int = 20
    """random cells, and as many of the search's best"""
    repeats: int = 2
    """trainings of each cell from scratch, with other start values"""
    recalibrate: int = 8
    """batches that re-estimate batch-norm"""
    test_images: int | None = None
    """use only so many of the test images"""
    resamples: int = 1000
    """of the cells, for the bootstrap intervals"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "cells", 3)
        check_range(self, "repeats recalibrate resamples", 1)
        check_range(self, "test_images", 2)
        evidence.check_output(self.json)


def choose_cells(run: SearchRun, count: int) -> dict[str, list[AnyGenotype]]:
    """Random cells, and the best ones in the search's opinion."""
    random = random_cells(run.config, count, run.config.seed, "weight set cells")
    return {"random": random, "good": run.search.finalists(count)[:count]}


def trained_share(weight_set: WeightSet, known: set[str], cell: AnyGenotype) -> float:
    """Share of a cell's operations' weights that the search has trained at all."""
    names = [name for name in weight_set.weights(weight_set.network(cell)) if SHARED.match(name)]
    return sum(name in known for name in names) / len(names) if names else 1.0


def estimate(
    run: SearchRun, weight_set: WeightSet, cells: Sequence[AnyGenotype], batches: int
) -> list[dict[str, float]]:
    """The losses of each cell, by the names in ESTIMATES; infinite where training diverged.

    All cells see the same batches. The epoch has the learning rate and drop path of the last generation.
    """
    last = run.record.generations[-1]
    epoch = [(last["learning_rate"], last["drop_path_prob"])]
    plain, again = (
        run.task._replace(config=dataclasses.replace(run.config, recalibrate=count)) for count in (0, batches)
    )
    losses = []
    for cell in cells:
        job = Job(cell, ("estimate",), [])
        trained = _train(plain, weight_set, job._replace(schedule=epoch))
        after = run.task.weight_set("weight set")
        after.absorb(trained.weights)
        found = (
            _train(plain, weight_set, job),
            _train(again, weight_set, job),
            trained,
            _train(again, after, job) if trained.finite else trained,
        )
        finite = [x.loss if x.finite else math.inf for x in found]
        losses.append(dict(zip(ESTIMATES, finite, strict=True)))
    return losses


def _train(task: Task, weight_set: WeightSet, job: Job) -> TrainedCandidate:
    return train_all(task, weight_set, [job])[0]


def accuracies(
    run: SearchRun, test: sets.ImageSet, cells: Sequence[AnyGenotype], repeats: int
) -> list[list[float]]:
    """Test accuracies in [0, 1] of each cell, from scratch, one for each repeat."""
    found: list[list[float]] = [[] for _ in cells]
    step = distributed.world_size()
    for repeat in range(repeats):
        task = run.task._replace(seed=derive_seed(run.config.seed, "weight set", repeat))
        for first in range(0, len(cells), step):
            errors = test_errors(task, test, cells[first : first + step])
            for offset, error in enumerate(errors):
                found[first + offset].append(1 - error)
            say(f"repeat {repeat + 1}, cell {first + len(errors)} of {len(cells)}: {errors}")
    return found


def correlate(x: Sequence[float], y: Sequence[float], resamples: int) -> dict[str, dict[str, float | None]]:
    """Kendall's tau-b and Spearman's rho, with 95% intervals from resampling the cells (percentiles).

    None where a value does not exist, as with equal numbers only.
    """
    pairs = np.array([x, y])  # (2, cells)
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    result = {}
    for name, measure_of in (("kendall", scipy.stats.kendalltau), ("spearman", scipy.stats.spearmanr)):
        values = np.array([_correlation(measure_of, pairs[:, rows]) for rows in drawn])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (math.nan, math.nan)
        numbers = {"value": _correlation(measure_of, pairs), "low": float(low), "high": float(high)}
        result[name] = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return result


def _correlation(measure_of: Callable[..., Any], pairs: np.ndarray) -> float:
    if (pairs == pairs[:, :1]).all(axis=1).any():
        return math.nan  # one of the two is constant
    return float(measure_of(pairs[0], pairs[1]).statistic)


def compare(rows: Sequence[dict[str, Any]], resamples: int) -> dict[str, dict[str, Any]]:
    """Correlations by group of cells and estimate; "another training" is between the first two repeats."""
    found: dict[str, dict[str, Any]] = {}
    for group in ("all", "random", "good"):
        chosen = [row for row in rows if group in ("all", row["group"])]
        truth = [statistics.mean(row["accuracies"]) for row in chosen]
        found[group] = {
            name: correlate([-row["losses"][name] for row in chosen], truth, resamples) for name in ESTIMATES
        }
        if len(chosen[0]["accuracies"]) > 1:
            first, second = ([row["accuracies"][i] for row in chosen] for i in range(2))
            found[group]["another training"] = correlate(first, second, resamples)
    return found


def table(rows: Sequence[dict[str, Any]], found: dict[str, dict[str, Any]]) -> str:
    """A line for each group of cells and estimate, and one for each group's accuracies."""
    lines = [f"{'cells':8} {'estimate':22} {'Kendall':>8} {'95%':>16} {'Spearman':>9} {'95%':>16}"]
    for group, estimates in found.items():
        for name, values in estimates.items():
            figures = [
                f"{_text(values[key]['value']):>{width}} {_text(values[key]['low']):>7} to "
                f"{_text(values[key]['high']):>5}"
                for key, width in (("kendall", 8), ("spearman", 9))
            ]
            lines.append(f"{group:8} {name:22} {' '.join(figures)}")
    for group in ("random", "good"):
        chosen = [row for row in rows if row["group"] == group]
        means = [100 * statistics.mean(row["accuracies"]) for row in chosen]
        share = statistics.mean(row["trained_share"] for row in chosen)
        lines.append(
            f"{group}: test accuracy {statistics.mean(means):.2f}%, sd {statistics.stdev(means):.2f}, "
            f"n {len(means)}; the set has trained {share:.0%} of their operations' weights"
        )
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(config: Config) -> None:
    settings = read_settings(config.run, SearchConfig, "run")
    device = distributed.init(settings.device)
    torch.set_num_threads(settings.threads)
    run, test = open_or_begin(settings, Path(config.run), device, config.test_images)
    if not run.record.generations:
        raise ValueError(f"--run {config.run}: the search has not finished a generation")
    if not isinstance(run.estimate, SharedWeights):
        raise ValueError(f"--run {config.run}: its candidates trained alone, without a weight set")
    weight_set = run.estimate.weight_set
    known = set(weight_set.tensors)
    rows: list[dict[str, Any]] = []
    for group, cells in choose_cells(run, config.cells).items():
        shares = [trained_share(weight_set, known, cell) for cell in cells]
        losses = estimate(run, weight_set, cells, config.recalibrate)
        say(f"{len(cells)} {group} cells are estimated, and now train from scratch")
        alone = accuracies(run, test, cells, config.repeats)
        for cell, share, loss, values in zip(cells, shares, losses, alone, strict=True):
            described = {"group": group, "genotype": genotypes.to_dict(cell), "trained_share": share}
            rows.append(described | {"losses": loss, "accuracies": values})
    if distributed.is_main():
        found = compare(rows, config.resamples)
        print(table(rows, found))
        for row in rows:  # JSON has no infinity
            row["losses"] = {key: x if math.isfinite(x) else None for key, x in row["losses"].items()}
        origin = evidence.provenance(asdict(config) | {"settings": dataclasses.asdict(settings)})
        evidence.write(config.json, origin | {"correlations": found, "cells": rows})
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
