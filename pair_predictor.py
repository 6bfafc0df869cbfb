"""Who would win? A Gaussian process on quality that learns from paired differences alone.

A comparison tells loss(a) - loss(b) with a known standard error. Whatever both networks share (the state of
the weight set, the epoch, the batches) cancels in it, so the difference is linear in the unknown qualities f:
difference = f(b) - f(a) + noise. A Gaussian process on f therefore has an exact posterior from differences
(Rasmussen and Williams 2006, section 2.2, with linear observations; Chu and Ghahramani 2005 treat bare
outcomes). P(a beats b) = 1 - P(b beats a) by construction.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.ndimage import minimum_filter1d
from scipy.sparse import csr_array
from scipy.special import ndtr

from encoding import Architecture, ChoiceSpace, Features, Integers

LEVELED = 60  # comparisons, the first ones, whose level is looked at
OFFSET = 10.0  # prior variance of what all levels share, in squared typical differences
WINDOW = 50  # comparisons before and after that share a level
STEADY = 0.5  # typical differences by which the loss of a network may change when it is trained again
QUANTILE = 0.25  # of the losers' excess loss: up to there quality is linear in the loss
JITTER = 1e-6  # keeps the Cholesky factor of exact differences defined
SMALLEST, LARGEST = -10.0, 4.0  # bounds of the hyperparameters' logarithms
REFITS = 1.1  # the hyperparameters are chosen anew after this growth of the data
STEPS = 25  # of the search for hyperparameters, per refit
CHECKS = 1.5  # the readings of the space are compared anew after this growth of the data,
ENOUGH = 150  # on at most this many comparisons


class PairPredictor:
    """P(a beats b), ranks and expected improvements, from the comparisons added so far.

    Quality f is minus the loss, up to a constant. `add` costs nothing; the next question refits.
    """

    def __init__(self, *, space: ChoiceSpace, levels: bool = True, without: Collection[str] = ()) -> None:
        self.space = space
        self.features = {reading: Features(space, reading, without) for reading in space.readings}
        self.use_levels = levels
        self.pairs: Integers = np.empty((0, 2, space.positions), dtype=np.int64)
        self.differences = np.empty(0)
        self.errors = np.empty(0)
        self.levels = np.empty(0)
        self.reading = next(iter(space.readings))
        self.hyperparameters = Kernel(self.features[self.reading]).centre
        self.fitted = 0  # comparisons known when the hyperparameters were last chosen
        self.checked = 0  # and when the readings were last compared
        self._posterior: Posterior | None = None

    def __len__(self) -> int:
        return len(self.differences)

    def add(
        self, a: Architecture, b: Architecture, difference: float, standard_error: float, level: float = 0.0
    ) -> None:
        """One comparison: the mean of loss(a) - loss(b), its standard error (0: exact), the lower loss.

        This `level` only says how coarse a difference is at that height; see `bend`. Raises ValueError
        for numbers that are not finite or a negative error: they would spoil all others.
        """
        numbers = (difference, standard_error, level)
        if not all(math.isfinite(number) for number in numbers) or standard_error < 0:
            raise ValueError(
                f"difference {difference}, standard error {standard_error}, level {level}: "
                "all must be finite, the error at least 0"
            )
        pair = np.stack([self.space.choices(a), self.space.choices(b)])
        self.pairs = np.concatenate([self.pairs, pair[None]])
        self.differences = np.append(self.differences, float(difference))
        self.errors = np.append(self.errors, float(standard_error))
        self.levels = np.append(self.levels, float(level))
        self._posterior = None

    def posterior(self) -> "Posterior":
        """The posterior given all comparisons; refits the hyperparameters when there are enough new ones."""
        if self._posterior is None:
            if len(self) >= max(3, self.fitted * REFITS):
                self._fit()
                self.fitted = len(self)
            self._posterior = Posterior(self._data(self.reading), self.hyperparameters)
        return self._posterior

    def _data(self, reading: str, first: int | None = None) -> "Data":
        numbers = (self.differences[:first], self.errors[:first], self.levels[:first])
        return Data(Kernel(self.features[reading]), self.pairs[:first], *numbers, self.use_levels)

    def _fit(self) -> None:
        readings, start = self.space.readings, self.hyperparameters
        if len(readings) > 1 and self.checked < ENOUGH and len(self) >= self.checked * CHECKS:
            self.checked = min(len(self), ENOUGH)
            lowest = math.inf
            for reading, odds in readings.items():
                trial = self._data(reading, self.checked)
                found, value = trial.maximise(trial.kernel.centre)
                if value - odds < lowest:
                    lowest, self.reading, start = value - odds, reading, found
        self.hyperparameters, _ = self._data(self.reading).maximise(start)

    def probability(self, a: Architecture, b: Architecture) -> float:
        """P(a beats b) in a comparison of the usual noise; 0.5 for equal architectures or without data."""
        return float(self.probabilities([a], [b])[0])

    def probabilities(self, a: Sequence[Architecture], b: Sequence[Architecture]) -> np.ndarray:
        """P(a[i] beats b[i]), (n,)."""
        return self.posterior().beats(self.rows(a), self.rows(b))

    def rows(self, architectures: Sequence[Architecture]) -> Integers:
        """Canonical choices, (n, positions)."""
        return np.stack([self.space.choices(architecture) for architecture in architectures])

    def quality(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Posterior mean of f, up to a constant and a scale, (n,)."""
        return self.posterior().mean(self.rows(architectures))

    def rank(self, architectures: Sequence[Architecture]) -> list[int]:
        """Indices of the architectures, best expected quality first; ties keep their order."""
        if not architectures:
            return []
        return np.argsort(-self.quality(architectures), kind="stable").tolist()

    def state_dict(self) -> dict[str, Any]:
        """All comparisons and the hyperparameters, as plain types and copies of arrays."""
        arrays = {name: getattr(self, name).copy() for name in self._arrays}
        return {"fitted": self.fitted, "checked": self.checked, "reading": self.reading, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, bit for bit. ValueError for the state of another space."""
        if state["reading"] not in self.space.readings:
            raise ValueError(f"predictor state: reading {state['reading']!r} is not one of this space")
        self.pairs = np.array(state["pairs"], dtype=np.int64).reshape(-1, 2, self.space.positions)
        for name in self._arrays[1:]:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        if not len(self.pairs) == len(self.differences) == len(self.errors) == len(self.levels):
            raise ValueError("predictor state: pairs and their numbers differ in number")
        self.fitted, self.checked = int(state["fitted"]), int(state["checked"])
        self.reading = str(state["reading"])
        self._posterior = None

    _arrays = ("pairs", "differences", "errors", "levels", "hyperparameters")


class Kernel:
    """Covariance of qualities: a linear part per block of features, and the interactions of some blocks.

    k = sum_b w_b <x_b, y_b> + w exp(-sum_b r_b |x_b - y_b|^2 / 2) + o [x = y]. The hyperparameters are the
    logarithms of all w_b, w, all r_b, o, the variance of the noise beyond the comparisons' own, and that of
    the level from comparison to comparison; each has a normal prior around `centre` with standard deviation
    `spread`.

    o is what is an architecture's own: no feature tells it, but it is there again when the architecture is.
    Without it, exact losses that are looked at twice would leave no noise at all, and all that the features
    do not tell would be forced upon them.
    """

    def __init__(self, features: Features) -> None:
        self.features, self.interacting = features, features.interacting()
        self.linear, mixed = len(features.names()), len(self.interacting)
        self.centre = np.concatenate(
            [np.full(self.linear, -1.5), [-0.5], np.full(mixed, -math.log(mixed)), [-4.0, -4.0, -2.0]]
        )
        self.spread = np.concatenate([np.full(self.linear, 1.5), [1.5], np.ones(mixed), [2.0, 2.0, 2.0]])

    def project(self, rows: Integers, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features whose inner product is the linear part, and whose distance gives the interactions."""
        blocks = self.features.blocks(rows)
        weights = np.exp(0.5 * logs)
        straight = [block * weight for block, weight in zip(blocks, weights, strict=False)]
        rates = weights[self.linear + 1 :]
        mixed = [blocks[index] * rate for index, rate in zip(self.interacting, rates, strict=False)]
        return np.concatenate(straight, axis=1), np.concatenate(mixed, axis=1)

    def between(
        self, x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray], logs: np.ndarray
    ) -> np.ndarray:
        """Covariances of projected rows, (n, m), of different architectures."""
        distance = (x[1] ** 2).sum(1)[:, None] + (y[1] ** 2).sum(1)[None] - 2 * x[1] @ y[1].T
        return x[0] @ y[0].T + math.exp(logs[self.linear]) * np.exp(-0.5 * np.maximum(distance, 0))


class Data:
    """Comparisons in the form the linear algebra needs: distinct architectures, who met whom, bent
    differences."""

    def __init__(
        self,
        kernel: Kernel,
        pairs: Integers,
        differences: np.ndarray,
        errors: np.ndarray,
        levels: np.ndarray,
        use_levels: bool,
    ) -> None:
        self.kernel = kernel
        positions = kernel.features.space.positions
        rows, index = np.unique(pairs.reshape(-1, positions), axis=0, return_inverse=True)
        self.rows: Integers = rows
        self.index = index.reshape(-1, 2)
        if not (use_levels and steady(self.index, differences, levels)):
            levels = np.zeros_like(levels)
        bent, slope, heights = bend(differences, levels)
        scale = float(np.sqrt(np.mean(bent**2))) if bent.any() else 1.0
        self.leveled = min(len(bent), LEVELED) if levels.any() else 0
        heights = heights[: self.leveled] / scale
        # Observed: quality of a minus quality of b; then, of the first comparisons, the mean of both.
        self.targets = -np.concatenate([bent / scale, heights - heights.mean() if len(heights) else heights])
        self.variances = (errors * slope / scale) ** 2
        self.usual = float(np.median(self.variances)) if len(bent) else 0.0
        self.observed = self._observed()

    def _observed(self) -> csr_array:
        """The matrix from qualities to what is observed of them, (observations, distinct)."""
        count, leveled = len(self.index), self.leveled
        a, b = self.index.T
        values = np.concatenate([np.ones(count), -np.ones(count), np.full(2 * leveled, 0.5)])
        each, second = np.arange(count), np.arange(leveled) + count
        places = (
            np.concatenate([each, each, second, second]),
            np.concatenate([a, b, a[:leveled], b[:leveled]]),
        )
        return csr_array((values, places), shape=(count + leveled, len(self.rows)))

    def covariance(self, qualities: np.ndarray, logs: np.ndarray) -> np.ndarray:
        """Covariances of what is observed, noise included, from those of the distinct qualities."""
        result = self.observed @ (self.observed @ qualities).T
        count = len(self.index)
        result[count:, count:] += OFFSET  # what all levels have in common is not known
        noise, drift = np.exp(logs[-2:])
        result[np.diag_indices(len(result))] += JITTER + np.concatenate(
            [noise + self.variances, np.full(self.leveled, drift + noise / 4)]
        )
        return result

    def maximise(self, start: np.ndarray, steps: int = STEPS) -> tuple[np.ndarray, float]:
        """Hyperparameters of highest posterior density, climbed from `start`, and minus its logarithm."""
        blocks = self.kernel.features.blocks(self.rows)
        products = [block @ block.T for block in blocks]
        halves = [np.diag(product) / 2 for product in products]
        distances = [
            np.maximum(halves[k][:, None] + halves[k][None] - products[k], 0) for k in self.kernel.interacting
        ]
        bounds = [(SMALLEST, LARGEST)] * len(start)
        from scipy.optimize import minimize  # here: it takes long to import, and --help needs none of it

        found = minimize(
            lambda logs: self._objective(logs, np.stack(products), np.stack(distances)),
            start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps},
        )  # fmt: skip
        return np.asarray(found.x), float(found.fun)

    def _objective(
        self, logs: np.ndarray, products: np.ndarray, distances: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Minus the log marginal likelihood and log prior, and the gradient (Rasmussen and Williams, 5.9)."""
        count, linear = len(self.index), self.kernel.linear
        weights = np.exp(logs)
        decay = weights[linear] * np.exp(-np.tensordot(weights[linear + 1 : -3], distances, axes=1))
        qualities = np.tensordot(weights[:linear], products, axes=1) + decay
        qualities[np.diag_indices(len(qualities))] += weights[-3]
        factor = cholesky(self.covariance(qualities, logs), lower=True)
        solved = cho_solve((factor, True), self.targets)
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        offset = (logs - self.kernel.centre) / self.kernel.spread
        value = 0.5 * self.targets @ solved + np.log(np.diag(factor)).sum() + 0.5 * offset @ offset
        slope = inverse - np.outer(solved, solved)  # twice the derivative by the covariance
        back = self.observed.T @ (self.observed.T @ slope).T
        first, second = np.trace(slope[:count, :count]), np.trace(slope[count:, count:])
        shaped = back * decay
        gradient = np.concatenate(
            [
                weights[:linear] * np.tensordot(products, back),
                [shaped.sum()],
                -weights[linear + 1 : -3] * np.tensordot(distances, shaped),
                weights[-3:] * [np.trace(back), first + second / 4, second],
            ]
        )
        return value, 0.5 * gradient + offset / self.kernel.spread


def steady(index: Integers, differences: np.ndarray, levels: np.ndarray) -> bool:
    """Whether losses of different comparisons may be compared: networks met again had about the same loss.

    A weight set that learns changes them; then only differences count. `index` (n, 2) numbers a and b.
    """
    losses = levels[:, None] + np.maximum(np.stack([differences, -differences], axis=1), 0)  # (n, 2)
    order = np.argsort(index.ravel(), kind="stable")
    again = np.diff(index.ravel()[order]) == 0
    changes = np.abs(np.diff(losses.ravel()[order]))[again]
    return not len(changes) or bool(np.median(changes) <= STEADY * np.median(np.abs(differences)))


def bend(differences: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of arcsinh(excess / scale) instead of losses, the slope at each, their means; (n,) each.

    A loss's excess is what it lies above the best of its time; qualities of bad networks are drawn together,
    those of good ones spread. `levels` are the lower losses of each comparison, compared only with
    those of the `WINDOW` comparisons before and after, because a weight set drifts.
    """
    if not differences.any():
        return differences.copy(), np.ones_like(differences), np.zeros_like(differences)
    excess = levels - minimum_filter1d(levels, 2 * WINDOW + 1, mode="nearest")
    sizes = np.abs(differences)
    losers = excess + sizes
    scale = float(np.quantile(losers[sizes > 0], QUANTILE))
    low, high = np.arcsinh(excess / scale), np.arcsinh(losers / scale)
    middle = (excess + 0.5 * sizes) / scale
    return np.sign(differences) * (high - low), 1 / (scale * np.sqrt(1 + middle**2)), (low + high) / 2


class Posterior:
    """Means and covariances of f at any architecture, in the scale of the bent differences."""

    def __init__(self, data: Data, logs: np.ndarray) -> None:
        self.data, self.logs = data, logs
        self.own = math.exp(logs[-3])
        if not len(data.targets):
            return
        self.known = data.kernel.project(data.rows, logs)
        self.places = {row.tobytes(): place for place, row in enumerate(data.rows)}
        qualities = data.kernel.between(self.known, self.known, logs)
        qualities[np.diag_indices(len(qualities))] += self.own
        self.factor = cholesky(data.covariance(qualities, logs), lower=True)
        # The weight of each distinct architecture in every mean.
        self.weights = data.observed.T @ cho_solve((self.factor, True), data.targets)

    def mean(self, rows: Integers) -> np.ndarray:
        """Posterior mean of f, (n,)."""
        if not len(self.data.targets):
            return np.zeros(len(rows))
        return self.weights @ self._cross(rows, self.data.kernel.project(rows, self.logs))

    def _cross(self, rows: Integers, here: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Covariances of the distinct architectures with `rows`, (distinct, n)."""
        cross = self.data.kernel.between(self.known, here, self.logs)
        for column, row in enumerate(np.ascontiguousarray(rows, dtype=np.int64)):
            place = self.places.get(row.tobytes())
            if place is not None:
                cross[place, column] += self.own
        return cross

    def _reduced(self, rows: Integers, here: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        cross = self._cross(rows, here)
        return self.weights @ cross, solve_triangular(self.factor, self.data.observed @ cross, lower=True)

    def gap(self, rows: Integers, reference: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of f(rows[i]) - f(reference[i]); a single reference serves all rows."""
        reference = np.atleast_2d(reference)
        here = self.data.kernel.project(rows, self.logs)
        there = self.data.kernel.project(reference, self.logs)
        variance = self._prior(here) + self._prior(there) - 2 * self._same(here, there)
        variance += 2 * self.own * (rows != reference).any(axis=1)
        if not len(self.data.targets):
            return np.zeros(len(rows)), np.maximum(variance, 0)
        mean, reduced = self._reduced(rows, here)
        reference_mean, reference_reduced = self._reduced(reference, there)
        variance = variance - ((reduced - reference_reduced) ** 2).sum(0)
        return mean - reference_mean, np.maximum(variance, 0)

    def _prior(self, here: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return (here[0] ** 2).sum(1) + math.exp(self.logs[self.data.kernel.linear])

    def _same(self, x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        distance = ((x[1] - y[1]) ** 2).sum(1)
        return (x[0] * y[0]).sum(1) + math.exp(self.logs[self.data.kernel.linear]) * np.exp(-0.5 * distance)

    def beats(self, a: Integers, b: Integers) -> np.ndarray:
        """P(a[i] wins against b[i]) in a comparison of the usual noise, (n,)."""
        mean, variance = self.gap(a, b)
        noise = math.exp(self.logs[-2]) + self.data.usual + JITTER
        return ndtr(mean / np.sqrt(variance + noise))

    def improvement(self, rows: Integers, reference: Integers) -> np.ndarray:
        """Expected improvement E[max(0, f(x) - f(reference))], (n,)."""
        mean, variance = self.gap(rows, reference)
        deviation = np.sqrt(variance) + 1e-12
        z = mean / deviation
        return mean * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
