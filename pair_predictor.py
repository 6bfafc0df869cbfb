"""Who would win? A Gaussian process on quality that learns from paired differences alone.

A comparison tells loss(a) - loss(b) with a known standard error. Whatever both networks share (the state of
the weight set, the epoch, the batches) cancels in it, so the difference is linear in the unknown qualities f:
difference = f(b) - f(a) + noise. A Gaussian process on f therefore has an exact posterior from differences
(Rasmussen and Williams 2006, section 2.2, with linear observations; Chu and Ghahramani 2005 treat bare
outcomes). P(a beats b) = 1 - P(b beats a) by construction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from encoding import Architecture, ChoiceSpace, Integers

# Hyperparameters, all as natural logarithms: weight of the linear and of the interaction part of the kernel,
# length scale of the latter, noise variance beyond the comparisons' own. Differences are scaled to size one.
NAMES = ("linear", "interaction", "length", "noise")
CENTRE = np.log([0.5, 0.5, 0.5, 0.05])  # means and
SPREAD = np.array([1.5, 1.5, 1.0, 2.0])  # standard deviations of the normal prior on them
BOUNDS = [(-9.0, 4.0), (-9.0, 4.0), (-3.0, 2.0), (-12.0, 2.0)]
TAIL = 3.0  # differences far beyond this many typical ones count by their logarithm, up to a bound


class PairPredictor:
    """P(a beats b), ranks and expected improvements, from the comparisons added so far.

    Quality f is minus the loss, up to a constant. `add` costs nothing; the next question refits.
    """

    def __init__(self, *, space: ChoiceSpace, fit_every: float = 1.1) -> None:
        self.space = space
        self.fit_every = fit_every
        self.pairs: Integers = np.empty((0, 2, space.positions), dtype=np.int64)
        self.differences = np.empty(0)
        self.errors = np.empty(0)
        self.hyperparameters = CENTRE.copy()
        self.fitted = 0  # comparisons known when the hyperparameters were last chosen
        self._posterior: _Posterior | None = None

    def __len__(self) -> int:
        return len(self.differences)

    def add(self, a: Architecture, b: Architecture, difference: float, standard_error: float) -> None:
        """One comparison: the mean of loss(a) - loss(b) and its standard error (0 where it is exact).

        Raises ValueError for numbers that are not finite or a negative error: they would spoil all others.
        """
        if not (math.isfinite(difference) and math.isfinite(standard_error) and standard_error >= 0):
            raise ValueError(
                f"difference {difference} with standard error {standard_error}: both must be finite, "
                "the error at least 0"
            )
        pair = np.stack([self.space.choices(a), self.space.choices(b)])
        self.pairs = np.concatenate([self.pairs, pair[None]])
        self.differences = np.append(self.differences, float(difference))
        self.errors = np.append(self.errors, float(standard_error))
        self._posterior = None

    def posterior(self) -> "_Posterior":
        """The posterior given all comparisons; hyperparameters are chosen anew when there are enough new
        ones."""
        if self._posterior is None:
            data = _Data(self.space, self.pairs, self.differences, self.errors)
            if len(self) >= max(3, self.fitted * self.fit_every):
                self.hyperparameters = data.maximise(self.hyperparameters)
                self.fitted = len(self)
            self._posterior = _Posterior(data, self.hyperparameters)
        return self._posterior

    def probability(self, a: Architecture, b: Architecture) -> float:
        """P(a beats b) in a comparison of the usual noise; 0.5 for equal architectures or without data."""
        return float(self.probabilities([a], [b])[0])

    def probabilities(self, a: Sequence[Architecture], b: Sequence[Architecture]) -> np.ndarray:
        """P(a[i] beats b[i]), (n,)."""
        return self.posterior().beats(self.rows(a), self.rows(b))

    def rows(self, architectures: Sequence[Architecture]) -> Integers:
        """Canonical choices, (n, positions)."""
        return np.stack([self.space.choices(architecture) for architecture in architectures])

    def quality(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation of f in units of loss, up to a constant; (n,) each."""
        mean, variance = self.posterior().moments(self.rows(architectures))
        return mean, np.sqrt(variance)

    def rank(self, architectures: Sequence[Architecture]) -> list[int]:
        """Indices of the architectures, best expected quality first; ties keep their order."""
        if not architectures:
            return []
        return np.argsort(-self.quality(architectures)[0], kind="stable").tolist()

    def state_dict(self) -> dict[str, Any]:
        """All comparisons and the hyperparameters, as plain types and copies of arrays."""
        arrays = {name: getattr(self, name).copy() for name in self._arrays}
        return {"fitted": self.fitted, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`: the same answers, bit for bit."""
        pairs = np.array(state["pairs"], dtype=np.int64).reshape(-1, 2, self.space.positions)
        self.pairs = pairs
        for name in self._arrays[1:]:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        if not len(self.pairs) == len(self.differences) == len(self.errors):
            raise ValueError("predictor state: pairs, differences and errors differ in number")
        self.fitted = int(state["fitted"])
        self._posterior = None

    _arrays = ("pairs", "differences", "errors", "hyperparameters")


class _Data:
    """Comparisons in the form the linear algebra needs: distinct architectures and who met whom."""

    def __init__(
        self, space: ChoiceSpace, pairs: Integers, differences: np.ndarray, errors: np.ndarray
    ) -> None:
        self.space = space
        rows, index = np.unique(pairs.reshape(-1, space.positions), axis=0, return_inverse=True)
        self.rows = rows
        self.index = index.reshape(-1, 2)
        sizes = np.abs(differences[differences != 0])
        typical = TAIL * float(np.median(sizes)) if len(sizes) else 1.0
        bent = typical * np.clip(np.arcsinh(differences / typical), -2.0, 2.0)
        slope = 1.0 / np.sqrt(1.0 + (differences / typical) ** 2)
        self.scale = float(np.sqrt(np.mean(bent**2))) if len(sizes) else 1.0
        self.targets = -bent / self.scale  # quality of a minus quality of b
        self.variances = (errors * slope / self.scale) ** 2
        self.linear, self.distance = similarity(space, rows, rows)

    def paired(self, matrix: np.ndarray) -> np.ndarray:
        """Covariances of differences from those of architectures, (n, n)."""
        a, b = self.index.T
        rows = matrix[a] - matrix[b]
        return rows[:, a] - rows[:, b]

    def objective(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log marginal likelihood and log prior of the hyperparameters, with its gradient."""
        linear, interaction, length, noise = np.exp(logs)
        decay = np.exp(-self.distance / length)
        parts = [self.paired(linear * self.linear), self.paired(interaction * decay)]
        parts.append(self.paired(interaction * decay * self.distance / length))
        count = len(self.targets)
        parts.append(noise * np.eye(count))
        covariance = parts[0] + parts[1] + parts[3]
        covariance[np.diag_indices(count)] += self.variances + 1e-8
        factor = cho_factor(covariance, lower=True)
        solved = cho_solve(factor, self.targets)
        inverse = cho_solve(factor, np.eye(count))
        offset = (logs - CENTRE) / SPREAD
        value = 0.5 * self.targets @ solved + np.log(np.diag(factor[0])).sum() + 0.5 * offset @ offset
        gradient = [0.5 * (np.vdot(inverse, part) - solved @ part @ solved) for part in parts]
        return value, np.array(gradient) + offset / SPREAD

    def maximise(self, start: np.ndarray) -> np.ndarray:
        """The hyperparameters of highest posterior density, climbed from `start`."""
        found = minimize(
            self.objective, start, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 30}
        )
        return np.asarray(found.x)


def similarity(space: ChoiceSpace, a: Integers, b: Integers) -> tuple[np.ndarray, np.ndarray]:
    """Share of equal features, and squared feature distance in [0, 1], of rows a (n, .) and b (m, .)."""
    units = len(space.units)
    first, second = space.features(a), space.features(b)
    product = first @ second.T
    distance = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * product
    return product / units, np.maximum(distance, 0.0) / (2 * units)


class _Posterior:
    """Means and covariances of f at any architecture, in scaled units inside, in units of loss outside."""

    def __init__(self, data: _Data, logs: np.ndarray) -> None:
        self.data = data
        self.logs = logs
        self.noise = math.exp(logs[3])
        if not len(data.targets):
            return
        covariance = data.paired(self._kernel(data.linear, data.distance))
        covariance[np.diag_indices(len(data.targets))] += self.noise + data.variances + 1e-8
        self.factor = np.linalg.cholesky(covariance)
        self.solved = cho_solve((self.factor, True), data.targets)

    def _kernel(self, linear: np.ndarray, distance: np.ndarray) -> np.ndarray:
        weights = np.exp(self.logs)
        return weights[0] * linear + weights[1] * np.exp(-distance / weights[2])

    def joint(self, rows: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Scaled mean (n,) and covariance (n, n) of f."""
        prior = self._kernel(*similarity(self.data.space, rows, rows))
        mean, reduced = self._project(rows)
        return mean, prior - reduced.T @ reduced

    def _project(self, rows: Integers) -> tuple[np.ndarray, np.ndarray]:
        if not len(self.data.targets):
            return np.zeros(len(rows)), np.zeros((1, len(rows)))
        cross = self._kernel(*similarity(self.data.space, self.data.rows, rows))  # (distinct, n)
        a, b = self.data.index.T
        cross = cross[a] - cross[b]  # (comparisons, n)
        return cross.T @ self.solved, solve_triangular(self.factor, cross, lower=True)

    def moments(self, rows: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of f in units of loss, (n,) each."""
        mean, reduced = self._project(rows)
        prior = self._own(rows)
        variance = np.maximum(prior - (reduced**2).sum(0), 0.0)
        return mean * self.data.scale, variance * self.data.scale**2

    def _own(self, rows: Integers) -> np.ndarray:
        features = self.data.space.features(rows)
        linear = (features**2).sum(1) / len(self.data.space.units)
        return self._kernel(linear, np.zeros(len(rows)))

    def gap(self, rows: Integers, reference: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Scaled mean and variance of f(rows[i]) - f(reference[i]); `reference` may be one row."""
        reference = np.broadcast_to(np.atleast_2d(reference), rows.shape)
        mean_a, reduced_a = self._project(rows)
        mean_b, reduced_b = self._project(reference)
        prior = self._own(rows) + self._own(reference) - 2 * self._between(rows, reference)
        variance = prior - ((reduced_a - reduced_b) ** 2).sum(0)
        return mean_a - mean_b, np.maximum(variance, 0.0)

    def _between(self, a: Integers, b: Integers) -> np.ndarray:
        first, second = self.data.space.features(a), self.data.space.features(b)
        units = len(self.data.space.units)
        distance = ((first - second) ** 2).sum(1) / (2 * units)
        return self._kernel((first * second).sum(1) / units, distance)

    def beats(self, a: Integers, b: Integers) -> np.ndarray:
        """P(a[i] wins against b[i]) in a comparison of the usual noise, (n,)."""
        mean, variance = self.gap(a, b)
        errors = self.data.variances
        usual = float(np.median(errors)) if len(errors) else 0.0
        return ndtr(mean / np.sqrt(variance + self.noise + usual + 1e-12))

    def improvement(self, rows: Integers, reference: Integers) -> np.ndarray:
        """Expected improvement E[max(0, f(x) - f(reference))], scaled, (n,)."""
        mean, variance = self.gap(rows, reference)
        deviation = np.sqrt(variance) + 1e-12
        z = mean / deviation
        return mean * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
