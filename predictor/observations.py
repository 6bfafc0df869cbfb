"""Comparisons as the linear algebra needs them: what is observed of which qualities, when, and how surely.

A comparison gives two observations: the difference of both qualities, and the mean of both, its level. Levels
of different comparisons have in common what drifts from comparison to comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter1d
from scipy.sparse import csr_array

from encoding import Integers

OFFSET = 10.0  # prior variance of what all levels share, in squared typical differences
WINDOW = 50  # comparisons before and after that share a level
QUANTILE = 0.25  # of the losers' excess loss: up to there quality is linear in the loss
JITTER = 1e-6  # keeps the Cholesky factor of exact differences defined


@dataclass
class Comparisons:
    """All that was told, one entry for each comparison, in its order."""

    pairs: Integers  # (n, 2, positions)
    differences: np.ndarray  # (n,) loss of the first minus loss of the second
    errors: np.ndarray  # (n,) their standard errors
    levels: np.ndarray  # (n,) the lower of both losses
    ages: np.ndarray  # (n, 2) of the weights of both

    def __len__(self) -> int:
        return len(self.differences)

    @classmethod
    def none(cls, positions: int) -> Comparisons:
        """No comparison yet, of architectures with so many choices."""
        pairs = np.empty((0, 2, positions), dtype=np.int64)
        return cls(pairs, np.empty(0), np.empty(0), np.empty(0), np.empty((0, 2)))

    @classmethod
    def of(cls, state: Mapping[str, Any], positions: int) -> Comparisons:
        """From `arrays()`, which may be lists now; ValueError where their lengths differ."""
        pairs = np.array(state["pairs"], dtype=np.int64).reshape(-1, 2, positions)
        differences, errors, levels = (
            np.array(state[name], dtype=np.float64) for name in ("differences", "errors", "levels")
        )
        ages = np.array(state.get("ages", np.zeros((len(pairs), 2))), dtype=np.float64).reshape(-1, 2)
        if not len(pairs) == len(differences) == len(errors) == len(levels) == len(ages):
            raise ValueError("predictor state: pairs and their numbers differ in number")
        return cls(pairs, differences, errors, levels, ages)

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays, by name."""
        return {name: array.copy() for name, array in self.__dict__.items()}

    def add(
        self, pair: Integers, difference: float, error: float, level: float, ages: tuple[float, float]
    ) -> None:
        """One more."""
        self.pairs = np.concatenate([self.pairs, pair[None]])
        self.differences = np.append(self.differences, float(difference))
        self.errors = np.append(self.errors, float(error))
        self.levels = np.append(self.levels, float(level))
        self.ages = np.concatenate([self.ages, np.array([ages], dtype=np.float64)])

    def at(self, places: slice | np.ndarray) -> Comparisons:
        """Some of them."""
        return Comparisons(*(array[places] for array in self.__dict__.values()))


class Bend:
    """Losses as arcsinh(excess / scale): qualities of bad networks are drawn together, good ones spread.

    A loss's excess is what it lies above the best of its time, among the `WINDOW` comparisons before and
    after, because a weight set drifts. Fixed by some comparisons, it serves those after them too.
    """

    def __init__(self, known: Comparisons) -> None:
        self.size = 2 * WINDOW + 1
        self.lowest = minimum_filter1d(known.levels, self.size, mode="nearest") if len(known) else np.empty(0)
        losers = known.levels - self.lowest + np.abs(known.differences)
        losers = losers[losers > 0]
        self.scale = float(np.quantile(losers, QUANTILE)) if len(losers) else 1.0
        self.typical, self.middle = 1.0, 0.0
        if len(losers):
            bent, heights, _ = self(known, np.arange(len(known)))
            size = np.sqrt(np.mean(bent**2)) or np.std(heights) * np.sqrt(2)
            self.typical = float(size) or 1.0
            self.middle = float(heights.mean()) / self.typical

    def __call__(self, known: Comparisons, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bent differences, their mean heights, and the slope at each, in typical differences; (n,) each."""
        lowest = self.lowest[np.minimum(places, len(self.lowest) - 1)]
        known = known.at(places)
        excess, sizes = known.levels - lowest, np.abs(known.differences)
        low, high = np.arcsinh(excess / self.scale), np.arcsinh((excess + sizes) / self.scale)
        middle = (excess + 0.5 * sizes) / self.scale
        slope = 1 / (self.typical * self.scale * np.sqrt(1 + middle**2))
        heights = (low + high) / (2 * self.typical) - self.middle
        return np.sign(known.differences) * (high - low) / self.typical, heights, slope


@dataclass
class Observations:
    """What is observed of which qualities: differences, and levels (`mean`), in order of time."""

    rows: Integers  # (m, positions) distinct architectures
    first: Integers  # (n,) place of the first architecture in `rows`
    second: Integers  # (n,)
    mean: np.ndarray  # (n,) bool: the mean of both qualities, not their difference
    times: np.ndarray  # (n,) number of the comparison
    ages: np.ndarray  # (n,) difference, or mean, of both ages
    targets: np.ndarray  # (n,)
    variances: np.ndarray  # (n,) known part of the noise

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, places: list[int]) -> Observations:
        """Some of them, with all of `rows`."""
        return Observations(self.rows, *(array[places] for array in self._each()))

    def followed_by(self, one: Observations) -> Observations:
        """These, and then `one` of the same `rows`."""
        return Observations(self.rows, *map(np.append, self._each(), one._each()))

    def _each(self) -> list[np.ndarray]:
        return [array for name, array in self.__dict__.items() if name != "rows"]

    def coefficients(self) -> np.ndarray:
        """What the first and the second architecture's qualities are multiplied with, (2, n)."""
        return np.stack([np.where(self.mean, 0.5, 1.0), np.where(self.mean, 0.5, -1.0)])

    def of(self, values: np.ndarray) -> np.ndarray:
        """What is observed of values (m, k), one row for each of `rows`; (n, k)."""
        first, second = self.coefficients()[:, :, None]
        return first * values[self.first] + second * values[self.second]

    def matrix(self) -> csr_array:
        """The matrix of `of`, (n, m)."""
        places = np.arange(len(self))
        where = (np.concatenate([places, places]), np.concatenate([self.first, self.second]))
        return csr_array((self.coefficients().ravel(), where), shape=(len(self), len(self.rows)))

    def fading(self, other: Observations, rate: float) -> np.ndarray:
        """How much of a quality is the same at both times, (n, other n)."""
        return np.exp(-rate * np.abs(self.times[:, None] - other.times[None]))

    def shared(self, other: Observations, others: dict[str, float]) -> np.ndarray:
        """Covariance of what is not quality: the levels' drift, the age of weights; (n, other n)."""
        both = self.mean[:, None] & other.mean[None]
        drift = OFFSET + others["walk"] * np.minimum(self.times[:, None], other.times[None])
        return both * drift + others["age"] * np.outer(self.ages, other.ages)

    def noise(self, others: dict[str, float]) -> np.ndarray:
        """Variance of what no two observations share, (n,)."""
        own = np.where(self.mean, others["level"] + others["noise"] / 4, others["noise"])
        return JITTER + own + self.variances


def observe(known: Comparisons, places: np.ndarray, bend: Bend, use_levels: bool) -> Observations:
    """What the comparisons at `places` say; one of equal architectures tells its level alone."""
    differences, heights, slope = bend(known, places)
    chosen = known.at(places)
    positions = chosen.pairs.shape[-1]
    rows, index = np.unique(chosen.pairs.reshape(-1, positions), axis=0, return_inverse=True)
    index = index.reshape(-1, 2)
    unequal = index[:, 0] != index[:, 1]
    at = np.concatenate([np.flatnonzero(unequal), np.arange(len(index) if use_levels else 0)])
    mean = np.arange(len(at)) >= unequal.sum()
    order = np.lexsort((mean, at))
    at, mean = at[order], mean[order]
    older, newer = chosen.ages[at].T
    return Observations(
        rows=rows,
        first=index[at, 0],
        second=index[at, 1],
        mean=mean,
        times=places[at].astype(np.float64),
        ages=np.where(mean, (older + newer) / 2, older - newer),
        targets=-np.where(mean, heights[at], differences[at]),
        variances=np.where(mean, 0.0, (chosen.errors * slope)[at] ** 2),
    )
