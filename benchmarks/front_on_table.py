"""Fronts of error and cost on a table of trained networks, or on a surrogate of one, by trainings.

    python benchmarks/front_on_table.py --surrogate nasbench301_surrogate.onnx \
        --encoding nasbench301_encoding.json --objectives error parameters --json front.json
    python benchmarks/front_on_table.py --table nasbench201_cifar10.csv --objectives error multiply_adds

The cost is that of the full-size network; the error is the table's. Reported is the hypervolume (pymoo's) of
all that a strategy has trained, as a share of the box between the least of each objective that any strategy
met and the most that 99% of random architectures have. `ours` is what `train_search.py --objectives` runs;
`nsga2` is pymoo's NSGA-II with integer operators; `single` is the search for the lowest error alone.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
from strategies import PATIENCE
from table_space import TableSpace
from tables import Problem, Runs, open_problem, opened, start

import genotypes
from cells import NASBENCH201
from common.flags import check_range, parse, run_script
from encoding import Architecture
from genotypes import CompleteCell
from model_search import FullSize
from search.paired_search import Outcome, PairedSearch, Settings

COSTS = ("parameters", "multiply_adds")
REFERENCE = 2000  # random architectures that set the box
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of the table of NAS-Bench-201

ORDER = [EDGES.index(edge) for edge in ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))]  # by node


@dataclass(frozen=True)
class Config(Runs):
    """Compare fronts by trainings."""

    objectives: tuple[str, ...] = ("error", "parameters")
    """error, and parameters or multiply_adds of the full-size network, or both"""
    strategies: tuple[str, ...] = ("ours", "nsga2", "random", "single")
    """any of ours, single, random, nsga2"""
    seeds: int = 10
    """runs of each strategy"""
    population: int = 20
    """of NSGA-II"""

    def check(self) -> None:
        """ValueError names the flag, its value and what is allowed."""
        super().check()
        check_range(self, "population", 2)
        self.check_runs(self.strategies, STRATEGIES)
        costs = set(self.objectives[1:])
        if self.objectives[:1] != ("error",) or not costs or costs - set(COSTS):
            given = " ".join(self.objectives)
            raise ValueError(f"--objectives {given}: error first, then of {', '.join(COSTS)}")


class World:
    """A problem with costs: what a strategy may train, and everything that it has trained."""

    def __init__(self, problem: Problem, objectives: tuple[str, ...]) -> None:
        self.problem, self.space = problem, problem.space
        self.places = [COSTS.index(name) for name in objectives[1:]]
        table = isinstance(problem.space, TableSpace)
        self.size = FullSize(C=16 if table else 36, layers=15 if table else 20, num_classes=10)
        self.trained: dict[Architecture, tuple[float, ...]] = {}
        self.order: list[tuple[float, ...]] = []

    def costs(self, architecture: Architecture) -> tuple[float, ...]:
        """Those of the objectives, in millions."""
        cell = architecture if isinstance(architecture, genotypes.Genotype) else complete_cell(architecture)
        counted = self.size(cell)
        return tuple(counted[place] / 1e6 for place in self.places)

    def loss(self, architecture: Architecture) -> float:
        """What a search sees; the architecture is trained, if it was not."""
        if architecture not in self.trained:
            error = 100 - self.problem.accuracy(architecture)
            self.trained[architecture] = (error, *self.costs(architecture))
            self.order.append(self.trained[architecture])
        return self.problem.loss(architecture)

    def random(self) -> np.ndarray:
        """The objectives of random architectures, (n, objectives); the same for all strategies."""
        rng = np.random.default_rng(0)
        drawn = [self.space.decode(self.space.sample(rng)) for _ in range(REFERENCE)]
        return np.array([(100 - self.problem.accuracy(one), *self.costs(one)) for one in drawn])


def complete_cell(choices: Architecture) -> CompleteCell:
    """The cell of NAS-Bench-201 that a row of its table means."""
    return CompleteCell(tuple((NASBENCH201[choices[place]], EDGES[place][0]) for place in ORDER))


def paired(world: World, budget: int, seed: int, costs: bool) -> None:
    """The search of train_search.py with its defaults, until the budget is spent."""
    search = PairedSearch(
        space=world.space,
        settings=Settings(seed=seed, generations=10**9, again=False),
        costs=world.costs if costs else None,
    )
    for _ in range(PATIENCE * budget):
        for comparison in search.ask():
            outcome = None
            if comparison.decided_by != "predictor":
                outcome = Outcome.exact(world.loss(comparison.a), world.loss(comparison.b))
            search.tell(comparison, outcome)
        if len(world.order) >= budget:
            return


def random(world: World, budget: int, seed: int) -> None:
    """Random architectures."""
    rng = np.random.default_rng(seed)
    while len(world.order) < budget:
        world.loss(world.space.decode(world.space.sample(rng)))


def nsga2(world: World, budget: int, seed: int, population: int) -> None:
    """pymoo's NSGA-II on the vectors' integer parts, with its operators for integers."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as Task
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    space = world.space
    highest, objectives = space.upper.astype(int) - 1, 1 + len(world.places)
    task = Task(n_var=space.positions, n_obj=objectives, xl=0, xu=highest, vtype=int)
    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(task, termination=("n_gen", 10**6), seed=seed, verbose=False)
    for _ in range(PATIENCE * budget):
        if len(world.order) >= budget:
            return
        asked = algorithm.ask()
        values = []
        for vector in asked.get("X"):
            architecture = space.decode(vector + 0.5)
            world.loss(architecture)
            values.append(world.trained[architecture])
        asked.set("F", np.array(values))
        algorithm.tell(infills=asked)


STRATEGIES = ("ours", "single", "random", "nsga2")


def run(world: World, config: Config, strategy: str, budget: int, seed: int) -> None:
    """Train so many architectures."""
    if strategy == "random":
        random(world, budget, seed)
    elif strategy == "nsga2":
        nsga2(world, budget, seed, config.population)
    else:
        paired(world, budget, seed, costs=strategy == "ours")


def trained(task: tuple[Config, str, int]) -> np.ndarray:
    """The objectives of all that a strategy trained, in its order, (trainings, objectives)."""
    config, strategy, seed = task
    world = World(opened(), config.objectives)
    run(world, config, strategy, max(config.budgets), seed)
    return np.array(world.order)


def hypervolumes(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, budgets: tuple[int, ...]
) -> list[float]:
    """After each budget, as a share of the box from `low` to `high`."""
    from pymoo.indicators.hv import Hypervolume

    measure = Hypervolume(ref_point=np.ones(len(low)))
    return [float(measure((values[:budget] - low) / (high - low))) for budget in budgets]


def main(config: Config) -> None:
    problem = open_problem(config)
    if problem is None:
        return
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tasks = [(config, name, seed) for name in config.strategies for seed in seeds]
    with ProcessPoolExecutor(config.processes, initializer=start, initargs=(config,)) as pool:
        orders = list(pool.map(trained, tasks))
    drawn = World(problem, config.objectives).random()
    low, high = np.concatenate([drawn, *orders]).min(axis=0), np.quantile(drawn, 0.99, axis=0)
    found: dict[str, Any] = {}
    print(f"{'trainings':12}" + "".join(f"{budget:>16}" for budget in config.budgets))
    for name in config.strategies:
        runs = [
            hypervolumes(order, low, high, config.budgets)
            for (_, other, _), order in zip(tasks, orders, strict=True)
            if other == name
        ]
        found[name] = {
            str(budget): evidence.spread(list(values))
            for budget, values in zip(config.budgets, zip(*runs, strict=True), strict=True)
        }
        cells = (f"{one['mean']:.4f} ({one['sd'] or 0:.4f})" for one in found[name].values())
        print(f"{name:12}" + "".join(f"{text:>16}" for text in cells))
    box = {"least": low.tolist(), "most": high.tolist()}
    evidence.write(config.json, evidence.provenance(asdict(config)) | {"box": box, "hypervolume": found})


if __name__ == "__main__":
    run_script(main, parse(Config))
