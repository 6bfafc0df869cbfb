"""What one search sees of a table, and what that costs: exact losses, or losses on shared weights.

On weights that all candidates share, recorded searches on images (benchmarks/records/*-search-*) show this:
within a hundred trainings the mean loss falls by many times the spread of the cells, the spread falls to a
fraction, and of two candidates the one whose operations trained longer mostly wins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from tables import Problem

from encoding import Architecture

SAMPLED = 200  # random architectures that tell how far the losses of a table spread
FALL = 10.0  # standard deviations of random architectures by which losses fall
SHRINK = 4.0  # times that the spread at the beginning is the one at the end
LASTING = 40.0  # trainings after which a third of both is left
TRAINED = 3.0  # trainings after which an operation has gained two thirds of what it will
LOST = 3.0  # standard deviations that an architecture of untrained operations loses
CLIPPED = 4.0  # standard deviations: what does not learn at all is no worse


class Looks:
    """Exact losses of a table: known for good after one training."""

    ages = False  # whether weights have an age

    def __init__(self, problem: Problem) -> None:
        self.problem, self.trainings = problem, 0
        self._known: dict[Architecture, float] = {}

    def together(self, *architectures: Architecture) -> tuple[list[float], float]:
        """Losses of architectures that are trained at the same time, and the standard error of each."""
        new = [one for one in dict.fromkeys(architectures) if one not in self._known]
        self._known |= {one: self.problem.loss(one) for one in new}
        self.trainings += len(new)
        return [self._known[one] for one in architectures], 0.0

    def age(self, architecture: Architecture) -> float:
        """How far the weights have trained that an architecture would start from, in [0, 1]."""
        return 0.0


class SharedWeights(Looks):
    """Losses on shared weights; every look is a training, which changes those after it.

    `drift` and `age` are multiples of what was recorded; `noise` is that of a training, in standard
    deviations of random architectures.
    """

    def __init__(self, problem: Problem, seed: int, drift: float, age: float, noise: float) -> None:
        super().__init__(problem)
        self.drift, self.effect, self.noise, self.ages = drift, age, noise, age > 0
        self.rng = np.random.default_rng([seed, 1])
        self.used = np.zeros(problem.space.features(problem.space.lower[None].astype(np.int64)).shape[1])

    def _uses(self, architecture: Architecture) -> np.ndarray:
        """How often each operation is in an architecture."""
        return self.problem.space.features(self.problem.space.choices(architecture))[0]

    def age(self, architecture: Architecture) -> float:
        uses = self._uses(architecture)
        return float(uses @ (1 - np.exp(-self.used / TRAINED)) / uses.sum())

    def together(self, *architectures: Architecture) -> tuple[list[float], float]:
        middle, deviation = spread(self.problem)
        left = np.exp(-self.trainings / LASTING)
        scale = 1 + self.drift * (SHRINK - 1) * left
        common = self.drift * FALL * left + scale * self.noise * self.rng.normal()
        losses = []
        for one in architectures:
            standing = min((self.problem.loss(one) - middle) / deviation, CLIPPED)
            behind = self.effect * LOST * (1 - self.age(one))
            losses.append(float(common + scale * (standing + behind + self.noise * self.rng.normal())))
        for one in architectures:
            self.used += self._uses(one)
        self.trainings += len(architectures)
        return losses, float(scale * self.noise)


@lru_cache(maxsize=1)
def spread(problem: Problem) -> tuple[float, float]:
    """Median and standard deviation of the losses of random architectures.

    The latter is that of the middle half: some networks do not learn at all.
    """
    rng = np.random.default_rng(0)
    losses: list[float] = []
    while len(losses) < SAMPLED:
        architecture = problem.space.decode(problem.space.sample(rng))
        if problem.holds(architecture):
            losses.append(problem.loss(architecture))
    low, middle, high = np.quantile(losses, (0.25, 0.5, 0.75))
    return float(middle), float(high - low) / 1.349 or 1.0
