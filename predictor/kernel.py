"""What the predictor believes before any comparison: covariances of qualities, and its hyperparameters."""

from __future__ import annotations

import math

import numpy as np

from encoding import Features, Integers

Projected = tuple[
    np.ndarray, np.ndarray
]  # features of the linear part and of the interactions, (n, ...) each

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
        centre, spread = np.array(list(OTHERS.values())).T
        self.centre = np.concatenate(
            [np.full(self.linear, -1.5), [-0.5], np.full(mixed, -math.log(mixed)), centre]
        )
        self.spread = np.concatenate([np.full(self.linear, 1.5), [1.5], np.ones(mixed), spread])

    def others(self, logs: np.ndarray) -> dict[str, float]:
        """The hyperparameters of `OTHERS` themselves, by name."""
        return dict(zip(OTHERS, np.exp(logs[-len(OTHERS) :]).tolist(), strict=True))

    def project(self, rows: Integers, logs: np.ndarray) -> Projected:
        """Features whose inner product is the linear part, and whose distance gives the interactions."""
        if not len(rows):
            straight, mixed = self.project(np.zeros((1, rows.shape[1]), dtype=np.int64), logs)
            return straight[:0], mixed[:0]
        blocks = self.features.blocks(rows)
        weights = np.exp(0.5 * logs)
        rates = weights[self.linear + 1 :]
        straight = np.concatenate([block * w for block, w in zip(blocks, weights, strict=False)], axis=1)
        scaled = [blocks[index] * rate for index, rate in zip(self.interacting, rates, strict=False)]
        return straight, np.concatenate(scaled, axis=1)

    def between(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """Covariances of projected rows, (n, m), of different architectures."""
        return x[0] @ y[0].T + self.interactions(x, y, logs)

    def interactions(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """The covariances without the linear part, (n, m)."""
        distance = (x[1] ** 2).sum(1)[:, None] + (y[1] ** 2).sum(1)[None] - 2 * x[1] @ y[1].T
        return math.exp(logs[self.linear]) * np.exp(-0.5 * np.maximum(distance, 0))

    def paired(self, x: Projected, y: Projected, logs: np.ndarray) -> np.ndarray:
        """Covariances of row i with row i, of different architectures; one row of `y` serves all. (n,)"""
        distance = ((x[1] - y[1]) ** 2).sum(1)
        return (x[0] * y[0]).sum(1) + math.exp(logs[self.linear]) * np.exp(-0.5 * distance)
