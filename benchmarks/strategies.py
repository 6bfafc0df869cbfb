"""Ways to search a table, each with the same budget of distinct architectures; used by search_on_table.py."""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import ndtr
from tables import Problem

from encoding import Architecture, Integers
from search.paired_search import Outcome, PairedSearch, Settings

POPULATION, TOURNAMENT = 20, 5  # of regularised evolution
INITIAL = 10  # random architectures before the Gaussian process
PATIENCE = 50  # comparisons (or tries) per evaluation before a strategy counts as stuck


class Evaluations:
    """Counts distinct architectures and keeps the best observed after each; equal ones cost nothing again."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem, self.budget = problem, budget
        self.losses: dict[Architecture, float] = {}
        self.incumbents: list[Architecture] = []

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return len(self.incumbents) >= self.budget

    def loss(self, architecture: Architecture) -> float:
        """The observed loss; evaluates the architecture if it is new."""
        if architecture not in self.losses:
            self.losses[architecture] = value = self.problem.loss(architecture)
            best = self.incumbents[-1] if self.incumbents else architecture
            self.incumbents.append(architecture if value < self.losses[best] else best)
        return self.losses[architecture]

    def sample(self, rng: np.random.Generator) -> Integers:
        """A random architecture of the problem, as choices."""
        while True:
            row = self.problem.space.read(self.problem.space.sample(rng))
            if self.problem.holds(self.problem.space.architecture(row)):
                return row

    def mutate(self, row: Integers, rng: np.random.Generator) -> Integers:
        """A random neighbour that the problem holds (the row itself if there is none)."""
        for _ in range(PATIENCE):
            child = self.problem.space.mutate(row, rng)
            if self.problem.holds(self.problem.space.architecture(child)):
                return child
        return row

    def row_loss(self, row: Integers) -> float:
        """`loss` of choices."""
        return self.loss(self.problem.space.architecture(row))


def paired(problem: Problem, budget: int, seed: int, **settings: Any) -> list[Architecture]:
    """The search of train_search.py with its defaults apart from `settings`, until the budget is spent."""
    search = PairedSearch(
        space=problem.space,
        settings=Settings(seed=seed, generations=10**9, **settings),
        accept=problem.accept,
    )
    evaluations = Evaluations(problem, budget)
    chosen: list[Architecture] = []
    for _ in range(PATIENCE * budget):
        for comparison in search.ask():
            outcome = None
            if comparison.decided_by != "predictor":
                before, best = len(evaluations.losses), search.best()
                a, b = evaluations.loss(comparison.a), evaluations.loss(comparison.b)
                if len(evaluations.losses) - before == 2:  # after the first one, it is not told yet
                    chosen.append(best or comparison.a)
                outcome = Outcome.exact(a, b)
            search.tell(comparison, outcome)
            if len(chosen) < len(evaluations.losses):
                chosen.append(search.best() or comparison.a)
        if len(chosen) >= budget:
            break
    return chosen


def ours(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Slow-fast learning with the paired predictor."""
    return paired(problem, budget, seed)


def slow_fast(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Slow-fast learning as published, population 20."""
    return paired(problem, budget, seed, rank=False, screen=False, decide=False)


def random(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Random search."""
    rng, evaluations = np.random.default_rng(seed), Evaluations(problem, budget)
    while not evaluations.spent:
        evaluations.row_loss(evaluations.sample(rng))
    return evaluations.incumbents


def evolution(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Regularised evolution (Real et al. 2019): the oldest dies, a mutated winner of a tournament is born."""
    rng, evaluations = np.random.default_rng(seed), Evaluations(problem, budget)
    population: deque[Integers] = deque()
    for _ in range(PATIENCE * budget):
        if len(population) < POPULATION:
            child = evaluations.sample(rng)
        else:
            drawn = rng.choice(len(population), size=TOURNAMENT, replace=False)
            parent = min((population[index] for index in drawn), key=evaluations.row_loss)
            child = evaluations.mutate(parent, rng)
            population.popleft()
        population.append(child)
        evaluations.row_loss(child)
        if evaluations.spent:
            break
    return evaluations.incumbents


def local(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Local search: the first better neighbour in random order, a random restart where there is none."""
    rng, evaluations = np.random.default_rng(seed), Evaluations(problem, budget)
    while not evaluations.spent:
        here, improved = evaluations.sample(rng), True
        evaluations.row_loss(here)
        while improved and not evaluations.spent:
            improved = False
            for row in rng.permutation(problem.space.neighbours(here)):
                if evaluations.spent:
                    break
                if problem.holds(problem.space.architecture(row)) and evaluations.row_loss(
                    row
                ) < evaluations.row_loss(here):
                    here, improved = row, True
                    break
    return evaluations.incumbents


def gaussian_process(problem: Problem, budget: int, seed: int) -> list[Architecture]:
    """Bayesian optimisation on absolute accuracies: kernel exp(-Hamming distance / length), expected
    improvement.

    Length and noise by marginal likelihood over a grid; candidates are random ones and neighbours of the
    best.
    """
    rng, evaluations = np.random.default_rng(seed), Evaluations(problem, budget)
    for _ in range(PATIENCE * budget):
        if evaluations.spent:
            break
        if len(evaluations.losses) < INITIAL:
            evaluations.row_loss(evaluations.sample(rng))
            continue
        known = sorted(evaluations.losses, key=evaluations.losses.__getitem__)
        best = [problem.space.choices(architecture) for architecture in known[:5]]
        drawn = np.stack([evaluations.sample(rng) for _ in range(200)])
        rows = np.concatenate([drawn, *(problem.space.neighbours(row) for row in best)])
        candidates = {problem.space.architecture(row): row for row in rows}
        fresh = [row for a, row in candidates.items() if a not in evaluations.losses and problem.holds(a)]
        if fresh:
            trained = np.stack([problem.space.choices(architecture) for architecture in evaluations.losses])
            losses = np.array(list(evaluations.losses.values()))
            scores = _improvements(problem, trained, losses, np.stack(fresh))
            evaluations.row_loss(fresh[int(np.argmax(scores))])
    return evaluations.incumbents


def _improvements(problem: Problem, trained: Integers, losses: np.ndarray, rows: Integers) -> np.ndarray:
    """Expected improvement of each row over the lowest loss, in standard deviations of the losses."""
    spread = losses.std() or 1.0
    targets = (losses - losses.mean()) / spread
    known, new = problem.space.features(trained), problem.space.features(rows)
    units = len(problem.space.units)
    distance, across = 1 - known @ known.T / units, 1 - known @ new.T / units
    lowest: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for length in (0.1, 0.2, 0.4, 0.8, 1.6):
        for noise in (1e-4, 1e-2, 1e-1):
            covariance = np.exp(-distance / length) + noise * np.eye(len(trained))
            factor = cholesky(covariance, lower=True)
            solved = cho_solve((factor, True), targets)
            value = 0.5 * targets @ solved + np.log(np.diag(factor)).sum()
            if lowest is None or value < lowest[0]:
                lowest = (value, length, factor, solved)
    assert lowest is not None
    _, length, factor, solved = lowest
    cross = np.exp(-across / length)
    deviation = np.sqrt(np.maximum(1 - (solve_triangular(factor, cross, lower=True) ** 2).sum(0), 1e-12))
    gain = targets.min() - cross.T @ solved
    z = gain / deviation
    return gain * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


STRATEGIES: dict[str, Callable[[Problem, int, int], list[Architecture]]] = {
    strategy.__name__: strategy for strategy in (ours, slow_fast, random, evolution, local, gaussian_process)
}
# `ours` with one part off, or one setting that is not the default.
PARTS: dict[str, dict[str, Any]] = {
    "ours_without_screen": {"screen": False},
    "ours_without_decide": {"decide": False},
    "ours_without_rank": {"rank": False},
    "ours_without_levels": {"levels": False},
    "ours_with_4_proposals": {"proposals": 4},
    "ours_with_64_proposals": {"proposals": 64},
    "ours_with_confidence_0.9": {"confidence": 0.9},
    "ours_with_half_audited": {"audit_share": 0.5},
}
COMPARED = tuple(STRATEGIES)  # by default
STRATEGIES |= {name: partial(paired, **settings) for name, settings in PARTS.items()}
