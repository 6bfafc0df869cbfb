"""Compares search strategies on a table of trained networks, or on a surrogate of one, by trainings.

    python benchmarks/search_on_table.py --table nasbench201_cifar10.csv --json curves.json
    python benchmarks/search_on_table.py --table nasbench201_cifar10.csv \
        --observe accuracy_12_epochs --truth accuracy --json curves.json
    python benchmarks/search_on_table.py --surrogate nasbench301_surrogate.onnx \
        --encoding nasbench301_encoding.json --budgets 50 100 200 500 --json curves.json
    python benchmarks/search_on_table.py --table nasbench201_cifar10.csv --drift 1 --age 1 --noise 0.3 \
        --json drift.json

`ours` is the search of train_search.py with its defaults, through the same classes; `slow_fast` the same
without predictor, as published; `unpaired` has the predictor of `ours`, but no pairs. Reported is the true
accuracy of the architecture that a strategy would return after k trainings: the best observed one; for `ours`
and `unpaired` the first of the ranking, among those trained.

An architecture whose exact loss is known is not trained again. With `--drift`, `--age` and `--noise` losses
are those of shared weights (see looks.py), and every look is a training.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
from looks import Looks, SharedWeights
from strategies import COMPARED, STRATEGIES
from tables import Runs, open_problem, opened, start

from common.flags import check_range, parse, run_script
from utils import write_atomically


@dataclass(frozen=True)
class Config(Runs):
    """Compare search strategies by trainings."""

    strategies: tuple[str, ...] = COMPARED
    """any of ours, unpaired, slow_fast, random, evolution, local, gaussian_process; for an ablation also
    ours_without_ screen, decide, rank, levels, age, unpaired_without_age, and ours_with_ 4_proposals,
    64_proposals, confidence_0.9, half_audited"""
    drift: float = 0.0
    """losses fall, and their spread shrinks, as in recorded searches on images: 1 as much as there"""
    age: float = 0.0
    """networks of untrained weights lose more: 1 as in recorded searches on images"""
    noise: float = 0.0
    """of a training's loss, in standard deviations of random architectures"""

    def check(self) -> None:
        """ValueError names the flag, its value and what is allowed."""
        super().check()
        check_range(self, "drift age noise", 0, 1000)
        self.check_runs(self.strategies, STRATEGIES)


def curve(task: tuple[Config, str, int, int]) -> tuple[list[float], float]:
    """True accuracies of what a strategy returns after each training, and the seconds it took."""
    config, strategy, budget, seed = task
    problem = opened()
    begin = time.perf_counter()
    looks = Looks(problem)
    if config.drift or config.age or config.noise:
        looks = SharedWeights(problem, seed, config.drift, config.age, config.noise)
    returned = STRATEGIES[strategy](looks, budget, seed)
    accuracies = [problem.accuracy(architecture) for architecture in returned[:budget]]
    # A strategy that found nothing new any more keeps what it has.
    return accuracies + accuracies[-1:] * (budget - len(accuracies)), time.perf_counter() - begin


def print_table(results: dict[str, dict[str, Any]], budgets: tuple[int, ...]) -> None:
    """Means, a row per strategy."""
    print(f"{'trainings':18}" + "".join(f"{budget:>9}" for budget in budgets))
    for name, found in results.items():
        print(f"{name:18}" + "".join(f"{found[str(budget)]['mean']:9.3f}" for budget in budgets))


def draw(curves: dict[str, list[list[float]]], title: str, from_evaluation: int) -> bytes:
    """The mean curve of each strategy with its standard error, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, runs in curves.items():
        values = np.array(runs)[:, from_evaluation - 1 :]
        steps = np.arange(from_evaluation, from_evaluation + values.shape[1])
        mean, error = values.mean(0), values.std(0) / np.sqrt(len(values))
        axes.plot(steps, mean, label=name, linewidth=2.5 if name == "ours" else 1.2)
        axes.fill_between(steps, mean - error, mean + error, alpha=0.15)
    axes.set(xscale="log", xlabel="trainings", ylabel="true accuracy (%)", title=title)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    plt.close(figure)
    return picture.getvalue()


def main(config: Config) -> None:
    """Run every strategy with every seed; print, write, draw."""
    problem = open_problem(config)
    if problem is None:
        return
    budgets = tuple(sorted(set(config.budgets)))
    if budgets[-1] > problem.size:
        raise ValueError(f"--budgets {budgets[-1]}: the table has {problem.size} architectures")
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tasks = [(config, name, budgets[-1], seed) for name in config.strategies for seed in seeds]
    with ProcessPoolExecutor(config.processes, initializer=start, initargs=(config,)) as pool:
        finished = list(pool.map(curve, tasks))
    results: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[list[float]]] = {}
    for name in config.strategies:
        runs = [done for task, done in zip(tasks, finished, strict=True) if task[1] == name]
        curves[name] = [accuracies for accuracies, _ in runs]
        results[name] = {str(k): evidence.spread([run[k - 1] for run in curves[name]]) for k in budgets}
    print_table(results, budgets)
    if config.json is None:
        return
    seconds = {
        name: statistics.fmean(s for task, (_, s) in zip(tasks, finished, strict=True) if task[1] == name)
        for name in config.strategies
    }
    result = {
        "table": problem.name,
        "strategies": results,
        "seconds_per_run": seconds,
        **evidence.provenance(asdict(config)),
    }
    write_atomically(config.json, json.dumps(result, indent=1) + "\n")
    write_atomically(Path(config.json).with_suffix(".png"), draw(curves, problem.name, min(10, budgets[-1])))


if __name__ == "__main__":
    run_script(main, parse(Config))
