"""Ways to search a table, each with the same number of trainings; used by search_on_table.py."""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from looks import Looks
from scipy.linalg import cho_solve, cholesky, solve_triangular

from encoding import Architecture, ChoiceSpace, Integers
from pair_predictor import PairPredictor
from predictor.posterior import expected_excess
from search.evaluated import Evaluated
from search.paired_search import Outcome, PairedSearch, Settings
from search.screening import promising

POPULATION, TOURNAMENT = 10, 10  # of regularised evolution
INITIAL = 10  # random architectures before the Gaussian processes
STARTING = 10  # random architectures of which local search takes the best
PROPOSALS = 16  # fresh architectures from which `unpaired` starts, as `ours` does
PATIENCE = 50  # comparisons (or tries) per training before a strategy counts as stuck


class Evaluations:
    """Trains one architecture at a time, remembers its loss, and the best after each training."""

    def __init__(self, looks: Looks, budget: int) -> None:
        self.looks, self.problem, self.budget = looks, looks.problem, budget
        self.losses: dict[Architecture, float] = {}
        self.incumbents: list[Architecture] = []

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return len(self.incumbents) >= self.budget

    def loss(self, architecture: Architecture) -> float:
        """The observed loss; trains the architecture if it is new."""
        if architecture not in self.losses:
            (value,), _ = self.looks.together(architecture)
            self.losses[architecture] = value
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


def paired(
    looks: Looks, budget: int, seed: int, tell_age: bool = True, **settings: Any
) -> list[Architecture]:
    """The search of train_search.py with its defaults apart from `settings`, until the budget is spent."""
    search = PairedSearch(
        space=looks.problem.space,
        settings=Settings(seed=seed, generations=10**9, **settings),
        accept=looks.problem.accept,
        age=looks.age if looks.ages and tell_age else None,
    )
    chosen: list[Architecture] = []
    for _ in range(PATIENCE * budget):
        for comparison in search.ask():
            outcome = None
            if comparison.decided_by != "predictor":
                before, best = looks.trainings, search.best()
                (a, b), error = looks.together(comparison.a, comparison.b)
                if looks.trainings - before == 2:  # after the first one, it is not told yet
                    chosen.append(best or comparison.a)
                outcome = Outcome(a, b, a - b, math.sqrt(2) * error)
            search.tell(comparison, outcome)
            if len(chosen) < looks.trainings:
                chosen.append(search.best() or comparison.a)
        if len(chosen) >= budget:
            break
    return chosen


def unpaired(looks: Looks, budget: int, seed: int, tell_age: bool = True) -> list[Architecture]:
    """Bayesian optimisation with the predictor of `ours`, its features, drift and age, but no pairs.

    One architecture is trained at a time; the next one has the highest expected improvement.
    """
    rng, evaluations = np.random.default_rng(seed), Evaluations(looks, budget)
    space = looks.problem.space
    returned: list[Architecture] = []
    predictor = PairPredictor(space=space)
    trained = Evaluated(space, predictor)
    for _ in range(PATIENCE * budget):
        if len(returned) >= budget:
            break
        row = evaluations.sample(rng)
        if len(trained.losses) >= INITIAL:
            fresh = np.stack([space.sample(rng) for _ in range(PROPOSALS)])
            known = trained.rows()
            banned = set(trained.losses)
            ranked = promising(space, predictor.posterior(), fresh, known, banned, rng)
            row = next((one for one in ranked if looks.problem.holds(space.architecture(one))), row)
        architecture = space.architecture(row)
        if architecture in trained:
            continue
        age = looks.age(architecture) if tell_age else 0.0
        (loss,), error = looks.together(architecture)
        predictor.add(architecture, architecture, 0.0, error, loss, (age, age))
        trained.add(architecture, loss)
        returned.append(trained.best() or architecture)
    return returned


def ours(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Slow-fast learning with the paired predictor."""
    return paired(looks, budget, seed)


def slow_fast(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Slow-fast learning as published, population 20."""
    return paired(looks, budget, seed, rank=False, screen=False, decide=False)


def random(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Random search."""
    rng, evaluations = np.random.default_rng(seed), Evaluations(looks, budget)
    while not evaluations.spent:
        evaluations.row_loss(evaluations.sample(rng))
    return evaluations.incumbents


def evolution(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Regularised evolution (Real et al. 2019): the oldest dies, a mutated winner of a tournament is born.

    Where the population has nothing new to offer any more, a random architecture joins it.
    """
    rng, evaluations = np.random.default_rng(seed), Evaluations(looks, budget)
    population: deque[Integers] = deque()
    idle = 0  # children since the last new one
    for _ in range(PATIENCE * budget):
        if len(population) < POPULATION or idle > PATIENCE:
            child = evaluations.sample(rng)
        else:
            drawn = rng.choice(len(population), size=TOURNAMENT, replace=False)
            parent = min((population[index] for index in drawn), key=evaluations.row_loss)
            child = evaluations.mutate(parent, rng)
        if len(population) == POPULATION:
            population.popleft()
        population.append(child)
        before = len(evaluations.losses)
        evaluations.row_loss(child)
        idle = 0 if len(evaluations.losses) > before else idle + 1
        if evaluations.spent:
            break
    return evaluations.incumbents


def local(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Local search from the best of ten (White et al. 2021): the first better neighbour in random order.

    Where there is none, it starts again from a random architecture.
    """
    rng, evaluations = np.random.default_rng(seed), Evaluations(looks, budget)
    space, holds = looks.problem.space, looks.problem.holds
    first = [evaluations.sample(rng) for _ in range(min(STARTING, budget))]
    here = min(first, key=evaluations.row_loss)
    while not evaluations.spent:
        evaluations.row_loss(here)
        improved = True
        while improved and not evaluations.spent:
            improved = False
            for row in rng.permutation(space.neighbours(here)):
                if evaluations.spent:
                    break
                if holds(space.architecture(row)) and evaluations.row_loss(row) < evaluations.row_loss(here):
                    here, improved = row, True
                    break
        here = evaluations.sample(rng)
    return evaluations.incumbents


def gaussian_process(looks: Looks, budget: int, seed: int) -> list[Architecture]:
    """Bayesian optimisation on absolute accuracies: kernel exp(-Hamming distance / length), expected
    improvement.

    Length and noise by marginal likelihood over a grid; candidates are random ones and neighbours of the
    best.
    """
    rng, evaluations = np.random.default_rng(seed), Evaluations(looks, budget)
    space = looks.problem.space
    for _ in range(PATIENCE * budget):
        if evaluations.spent:
            break
        if len(evaluations.losses) < INITIAL:
            evaluations.row_loss(evaluations.sample(rng))
            continue
        known = sorted(evaluations.losses, key=evaluations.losses.__getitem__)
        best = [space.choices(architecture) for architecture in known[:5]]
        drawn = np.stack([evaluations.sample(rng) for _ in range(200)])
        rows = np.concatenate([drawn, *(space.neighbours(row) for row in best)])
        candidates = {space.architecture(row): row for row in rows}
        fresh = [
            row for a, row in candidates.items() if a not in evaluations.losses and looks.problem.holds(a)
        ]
        if fresh:
            trained = np.stack([space.choices(architecture) for architecture in evaluations.losses])
            losses = np.array(list(evaluations.losses.values()))
            scores = _improvements(space, trained, losses, np.stack(fresh))
            evaluations.row_loss(fresh[int(np.argmax(scores))])
    return evaluations.incumbents


def _improvements(space: ChoiceSpace, trained: Integers, losses: np.ndarray, rows: Integers) -> np.ndarray:
    """Expected improvement of each row over the lowest loss, in standard deviations of the losses."""
    spread = losses.std() or 1.0
    targets = (losses - losses.mean()) / spread
    known, new = space.features(trained), space.features(rows)
    units = len(space.units)
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
    return expected_excess(targets.min() - cross.T @ solved, deviation)


STRATEGIES: dict[str, Callable[[Looks, int, int], list[Architecture]]] = {
    strategy.__name__: strategy
    for strategy in (ours, unpaired, slow_fast, random, evolution, local, gaussian_process)
}
# `ours` with one part off, or one setting that is not the default.
PARTS: dict[str, dict[str, Any]] = {
    "ours_without_screen": {"screen": False},
    "ours_without_decide": {"decide": False},
    "ours_without_rank": {"rank": False},
    "ours_without_levels": {"levels": False},
    "ours_without_age": {"tell_age": False},
    "ours_with_4_proposals": {"proposals": 4},
    "ours_with_64_proposals": {"proposals": 64},
    "ours_with_confidence_0.9": {"confidence": 0.9},
    "ours_with_half_audited": {"audit_share": 0.5},
}
COMPARED = tuple(STRATEGIES)  # by default
STRATEGIES |= {name: partial(paired, **settings) for name, settings in PARTS.items()}
STRATEGIES["unpaired_without_age"] = partial(unpaired, tell_age=False)
