"""What the predictor believes before any comparison: covariances of qualities, and its hyperparameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from encoding import Features, Integers


class Projected(NamedTuple):
    """Features whose inner product is the linear part, (n, ...); those whose distance gives the interactions,
    (n, ...), and their squared lengths, (n,).
    """

    straight: np.ndarray
    mixed: np.ndarray
    squares: np.ndarray

    def at(self, places: Integers | slice) -> Projected:
        """Those at some places."""
        return Projected(*(part[places] for part in self))


# Logarithms behind those of the features, by name: centre and spread of their normal priors.
OTHERS = {
    "own": (-4.0, 2.0),  # variance of what is an architecture's own
    "noise": (-4.0, 2.0),  # variance of a difference beyond its standard error
    "level": (-2.0, 2.0),  # variance of a level, from comparison to comparison
    "walk": (-9.0, 3.0),  # variance that the level gains with each comparison
    "fade": (-10.0, 3.0),  # rate, per comparison, at which qualities become others
    "age": (-1.0, 2.0),  # variance of what a loss owes to the age of weights
}


class Kernel:
    """Covariance of qualities: a linear part per block of features, and the interactions of some blocks.

    k = sum_b w_b <x_b, y_b> + w exp(-sum_b r_b |x_b - y_b|^2 / 2) + o [x = y]. The hyperparameters are the
    logarithms of all w_b, w, all r_b, and `OTHERS`; each has a normal prior around `centre` with standard
    deviation `spread`.

    o is what is an architecture's own: no feature tells it, but it is there again when the architecture is.
    Without it, exact losses that are looked at twice would leave no noise at all, and all that the features
    do not tell would be forced upon them.
    """

    def __init__(self, features: Features) -> None:
        self.features, self.interacting = features, features.interacting()
        self.linear, mixed = len(features.names()), len(self.interacting)
        ends = np.cumsum(features.sizes)
        self._mixed_sizes = [features.sizes[place] for place in self.interacting]
        self._mixed = np.concatenate(
            [np.arange(ends[place] - features.sizes[place], ends[place]) for place in self.interacting]
        )  # where the features of the interacting blocks stand among all
        centre, spread = np.array(list(OTHERS.values())).T
        self.centre = np.concatenate(
            [np.full(self.linear, -1.5), [-0.5], np.full(mixed, -math.log(mixed)), centre]
        )
        self.spread = np.concatenate([np.full(self.linear, 1.5), [1.5], np.ones(mixed), spread])

    def others(self, logs: np.ndarray) -> dict[str, float]:
        """The hyperparameters of `OTHERS` themselves, by name."""
        return dict(zip(OTHERS, np.exp(logs[-len(OTHERS) :]).tolist(), strict=True))

    def project(self, rows: Integers, logs: np.ndarray) -> Projected:
        """The features of rows of choices, (n, positions), with their weights."""
        if not len(rows):
            return self.project(np.zeros((1, rows.shape[1]), dtype=np.int64), logs).at(slice(0))
        found = np.concatenate(self.features.blocks(rows), axis=1)
        weights, sizes = np.exp(0.5 * logs), self.features.sizes
        mixed = np.take(found, self._mixed, axis=1)
        mixed *= np.repeat(weights[self.linear + 1 :][: len(self.interacting)], self._mixed_sizes)
        found *= np.repeat(weights[: self.linear], sizes)
        return Projected(found, mixed, (mixed**2).sum(1))

    def between(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """Covariances of projected rows, (n, m), of different architectures."""
        found = self.interactions(x, y, logs)
        found += x.straight @ y.straight.T
        return found

    def interactions(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """The covariances without the linear part, (n, m)."""
        found = x.squares[:, None] + y.squares[None]  # a squared distance; in place from here on
        found -= x.mixed @ (2 * y.mixed).T
        found *= -0.5
        np.exp(np.minimum(found, 0, out=found), out=found)
        found *= math.exp(logs[self.linear])
        return found

    def paired(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """Covariances of row i with row i, of different architectures; one row of `y` serves all. (n,)"""
        distance = ((x.mixed - y.mixed) ** 2).sum(1)
        return (x.straight * y.straight).sum(1) + math.exp(logs[self.linear]) * np.exp(-0.5 * distance)

    def variances(self, x: Projected, logs: np.ndarray) -> np.ndarray:
        """Covariances of each row with itself, but for what is an architecture's own, (n,)."""
        return (x.straight**2).sum(1) + math.exp(logs[self.linear])
