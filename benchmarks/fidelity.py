"""Fidelity as an input of the predictor's kernel: losses after few epochs and at the end, learned as one.

A Gaussian process on (cell, epoch): the covariance of two losses is that of the predictor between their
cells, plus what is a cell's own, each times how alike the epochs are, plus noise (a product of kernels as in
Swersky et al. 2013, "Multi-task Bayesian optimization"). How alike they are, what is own and the noise are
chosen by their posterior density.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize

from encoding import Integers
from search.prior import taught

# Logarithms of four numbers, centres of their normal priors, whose standard deviations are 1: the doublings
# of epochs after which losses are no longer alike, in what features tell and in what is a cell's own; the
# variance of that; the variance of the noise.
CENTRE = np.array([0.7, 0.7, -1.0, -1.0])
STEPS = 12  # of the choice
JITTER = 1e-6


class Fidelities:
    """Losses of cells after some epochs, as observations of one Gaussian process.

    `rows` (n, positions) are the cells. `losses` (n, epochs) are what all of them had after the first epochs,
    `ends` (m,) what the cells at `known` (m,) had after the last; all finite.
    """

    def __init__(
        self, rows: Integers, losses: np.ndarray, last: int, known: Integers, ends: np.ndarray
    ) -> None:
        count, epochs = losses.shape
        self.last, self.cells = np.log2(last), covariances(rows, losses[:, -1])
        self.places = np.concatenate([np.tile(np.arange(count), epochs), known])
        when = np.log2(np.arange(1, epochs + 1))
        self.times = np.concatenate([np.repeat(when, count), np.full(len(known), self.last)])
        self.targets = np.concatenate([standardised(column) for column in (*losses.T, ends) if len(column)])
        self.logs = minimize(self._objective, CENTRE, method="L-BFGS-B", options={"maxiter": STEPS}).x

    def expected(self) -> np.ndarray:
        """The expected loss of each cell after the last epoch, (n,), in standard deviations."""
        asked = np.arange(len(self.cells))
        across = self._covariance(self.logs, asked, np.full(len(asked), self.last))
        return across @ cho_solve(self._factor(self.logs), self.targets)

    def _covariance(self, logs: np.ndarray, cells: Integers, times: np.ndarray) -> np.ndarray:
        """Of losses of `cells` at `times`, (k,) each, with all that was seen, less noise; (k, seen)."""
        apart = (times[:, None] - self.times[None]) ** 2
        shared, own = (np.exp(-0.5 * apart / np.exp(2 * length)) for length in logs[:2])
        same = cells[:, None] == self.places[None]
        return self.cells[np.ix_(cells, self.places)] * shared + np.exp(logs[2]) * same * own

    def _factor(self, logs: np.ndarray) -> tuple[np.ndarray, bool]:
        found = self._covariance(logs, self.places, self.times)
        found[np.diag_indices(len(found))] += np.exp(logs[3]) + JITTER
        return cho_factor(found, lower=True)

    def _objective(self, logs: np.ndarray) -> float:
        """Minus the logarithm of the posterior density."""
        try:
            factor = self._factor(logs)
        except LinAlgError:
            return np.inf
        misfit = self.targets @ cho_solve(factor, self.targets) + ((logs - CENTRE) ** 2).sum()
        return float(0.5 * misfit + np.log(np.diag(factor[0])).sum())


def covariances(rows: Integers, losses: np.ndarray) -> np.ndarray:
    """Of the qualities of cells, (n, n), by a predictor that learned from `losses`; mean variance 1."""
    order = np.random.default_rng(0).permutation(len(rows))
    predictor = taught(rows[order], losses[order])
    predictor.posterior()
    kernel, logs = predictor.kernels[predictor.reading], predictor.hyperparameters
    projected = kernel.project(rows, logs)
    found = kernel.between(projected, projected, logs)
    return found / np.diag(found).mean()


def standardised(values: np.ndarray) -> np.ndarray:
    """With mean 0 and standard deviation 1."""
    return (values - values.mean()) / (values.std() or 1.0)
