"""What is known of qualities after some comparisons, and after one more: an exact posterior that grows.

Qualities are asked for as they are now, after the last comparison: what was seen long ago is worth less where
qualities fade.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.blas import dtrsv
from scipy.linalg.lapack import dpotri
from scipy.sparse import csr_array, hstack
from scipy.special import ndtr

from encoding import Integers
from predictor.kernel import Kernel, Projected
from predictor.observations import JITTER, Observations


class Posterior:
    """Means and covariances of f at any architecture, in the scale of the bent differences.

    Let `known` be the effect of age (place 0) and the distinct architectures. A quantity q that is linear in
    qualities has the mean weights @ cov(known, q), and knowing what was seen takes
    cov(q, known) @ gain @ cov(known, q) from its variance: no question looks at the observations again.
    """

    def __init__(self, kernel: Kernel, logs: np.ndarray, seen: Observations, room: int) -> None:
        """`seen` are all observations so far; at most `room` more will be added."""
        self.kernel, self.logs, self.others, self.seen = kernel, logs, kernel.others(logs), seen
        errors = seen.variances[~seen.mean]
        self.usual = float(np.median(errors)) if len(errors) else 0.0
        self.now = float(seen.times[-1]) if len(seen) else 0.0
        self.places = {row.tobytes(): place for place, row in enumerate(seen.rows)}
        self.known: Projected = kernel.project(seen.rows, logs)
        # The room that is left has ones on the diagonal, so that BLAS works on the whole without a copy.
        self.factor = np.eye(len(seen) + room, order="F")
        self.gain, self.weights = np.zeros((len(seen.rows) + 1,) * 2), np.zeros(len(seen.rows) + 1)
        if not len(seen):
            return
        qualities = kernel.between(self.known, self.known, logs)
        qualities[np.diag_indices(len(qualities))] += self.others["own"]
        covariance = self._covariance(seen, seen.of(qualities))
        covariance[np.diag_indices(len(seen))] += seen.noise(self.others)
        factor = cholesky(covariance, lower=True)
        self.factor[: len(seen), : len(seen)] = factor
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        dependence = self._dependence()
        half = dependence.T @ inverse
        self.gain = dependence.T @ half.T
        self.weights = dependence.T @ cho_solve((factor, True), seen.targets)

    def _covariance(self, new: Observations, qualities: np.ndarray) -> np.ndarray:
        """Covariances of `new` with all that was seen, given those of new's qualities with all qualities."""
        fading = new.fading(self.seen, self.others["fade"])
        return self.seen.of(qualities.T).T * fading + new.shared(self.seen, self.others)

    def _dependence(self) -> csr_array:
        """How what was seen depends on `known` as it is now, (observations, known)."""
        left = np.exp(-self.others["fade"] * (self.now - self.seen.times))
        return csr_array(hstack([csr_array(self.seen.ages[:, None]), self.seen.matrix() * left[:, None]]))

    # ---- one more comparison

    def add(self, new: Observations) -> None:
        """Take in the observations of the comparison that follows; the result is as if built with them."""
        if not len(new):
            return
        fade = math.exp(-self.others["fade"] * (new.times[-1] - self.now))
        self.now = float(new.times[-1])
        self.gain[1:] *= fade
        self.gain[:, 1:] *= fade
        self.weights[1:] *= fade
        places = np.array([self._place(row) for row in new.rows])
        new.rows, new.first, new.second = self.seen.rows, places[new.first], places[new.second]
        for at in range(len(new)):
            self._grow(new.at([at]))

    def _place(self, row: Integers) -> int:
        """Where an architecture stands among the distinct ones; at the end, if it is new."""
        key = row.tobytes()
        if key not in self.places:
            self.places[key] = len(self.places)
            straight, mixed = self.kernel.project(row[None], self.logs)
            self.known = (np.concatenate([self.known[0], straight]), np.concatenate([self.known[1], mixed]))
            self.gain, self.weights = np.pad(self.gain, (0, 1)), np.pad(self.weights, (0, 1))
            self.seen.rows = np.concatenate([self.seen.rows, row[None]])
        return self.places[key]

    def _grow(self, one: Observations) -> None:
        """A row of the factor, and what it brings.

        With w the regression of the new observation on those before, r what is left of it, s^2 the variance
        of r, and u how r depends on `known`: gain += u u^T / s^2, weights += u r / s^2.
        """
        pair, count = np.array([one.first[0], one.second[0]]), len(self.seen)
        both = self.kernel.between((self.known[0][pair], self.known[1][pair]), self.known, self.logs)
        both[[0, 1], pair] += self.others["own"]
        qualities = (0.5 * (both[0] + both[1]) if one.mean[0] else both[0] - both[1])[None]
        across = np.zeros(len(self.factor))
        across[:count] = self._covariance(one, qualities)[0]
        itself = one.of(qualities.T)[0, 0] + one.shared(one, self.others)[0, 0] + one.noise(self.others)[0]
        row = dtrsv(self.factor, across, lower=1)
        left = max(float(itself - row @ row), JITTER)
        regression = dtrsv(self.factor, row, lower=1, trans=1)[:count]
        rest = one.targets[0] - regression @ self.seen.targets
        self.factor[count], self.factor[count, count] = row, math.sqrt(left)
        self.seen = self.seen.followed_by(one)
        dependence = self._dependence_of(np.append(-regression, 1.0))
        self.gain += np.outer(dependence, dependence / left)
        self.weights += dependence * (rest / left)

    def _dependence_of(self, factors: np.ndarray) -> np.ndarray:
        """How a sum of what was seen, with these factors, depends on `known`, (known,)."""
        seen = self.seen
        first, second = seen.coefficients() * (
            factors * np.exp(-self.others["fade"] * (self.now - seen.times))
        )
        size = len(seen.rows)
        on_rows = np.bincount(seen.first, first, size) + np.bincount(seen.second, second, size)
        return np.concatenate([[factors @ seen.ages], on_rows])

    # ---- questions

    def mean(self, rows: Integers) -> np.ndarray:
        """Posterior mean of f, (n,)."""
        return self.weights[1:] @ self._across(rows, self.kernel.project(rows, self.logs))

    def _across(self, rows: Integers, here: Projected) -> np.ndarray:
        """Covariances of the distinct architectures with `rows`, (distinct, n)."""
        across = self.kernel.between(self.known, here, self.logs)
        for column, row in enumerate(np.ascontiguousarray(rows, dtype=np.int64)):
            place = self.places.get(row.tobytes())
            if place is not None:
                across[place, column] += self.others["own"]
        return across

    def gap(
        self, rows: Integers, reference: Integers, ages: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of f(rows[i]) - f(reference[i]), (n,) each; a single reference serves all rows.

        With `ages` (n, 2), of the weights of both: of what the loss shows of it, minus the age's effect.
        """
        reference = np.atleast_2d(reference)
        straight, mixed = self.kernel.project(np.concatenate([rows, reference]), self.logs)
        here, there = ((straight[part], mixed[part]) for part in (slice(len(rows)), slice(len(rows), None)))
        older = np.zeros(len(rows)) if ages is None else ages[:, 0] - ages[:, 1]
        difference = self._across(rows, here) - self._across(reference, there)
        across = np.concatenate([self.others["age"] * older[None], difference])
        prior = self.kernel.paired(here, here, self.logs) + self.kernel.paired(there, there, self.logs)
        prior = prior - 2 * self.kernel.paired(here, there, self.logs) + self.others["age"] * older**2
        prior += 2 * self.others["own"] * (rows != reference).any(axis=1)
        variance = prior - (across * (self.gain @ across)).sum(0)
        return self.weights @ across, np.maximum(variance, 0)

    def beats(self, a: Integers, b: Integers, ages: np.ndarray | None = None) -> np.ndarray:
        """P(a[i] wins against b[i]) in a comparison of the usual noise, (n,)."""
        mean, variance = self.gap(a, b, ages)
        return ndtr(mean / np.sqrt(variance + self.others["noise"] + self.usual + JITTER))

    def improvement(self, rows: Integers, reference: Integers) -> np.ndarray:
        """Expected improvement E[max(0, f(x) - f(reference))], (n,)."""
        mean, variance = self.gap(rows, reference)
        deviation = np.sqrt(variance) + 1e-12
        z = mean / deviation
        return mean * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
