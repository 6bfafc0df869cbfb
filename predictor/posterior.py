"""What is known of qualities after some comparisons, and after one more: an exact posterior that grows.

Qualities are asked for as they are now, after the last comparison: what was seen long ago is worth less where
qualities fade.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.blas import dger, dtrsv
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

    def __init__(
        self,
        kernel: Kernel,
        logs: np.ndarray,
        seen: Observations,
        room: int,
        expected: Callable[[Integers], np.ndarray],
    ) -> None:
        """`seen` are all observations so far, less what was expected; at most `room` more will be added.

        `expected` are the means of rows (n, positions) before any observation, (n,).
        """
        self.expected = expected
        self.kernel, self.logs, self.others, self.seen = kernel, logs, kernel.others(logs), seen
        errors = seen.variances[~seen.mean]
        self.usual = float(np.median(errors)) if len(errors) else 0.0
        self.begun = self.now = float(seen.times[-1]) if len(seen) else 0.0
        self.places = {row.tobytes(): place for place, row in enumerate(seen.rows)}
        # All arrays have room for what will be added, so that nothing is copied to make them grow; the factor
        # has ones on its diagonal there, so that BLAS can work on the whole. Gain and weights are those of
        # qualities as they were when this began, from which `_across` goes to those of now.
        self._features = Projected(
            *(_with_room(part, 2 * room) for part in kernel.project(seen.rows, logs))
        )  # of the distinct architectures
        self._factor = np.eye(len(seen) + room, order="F")
        size = len(seen.rows) + 1 + 2 * room
        self._gain, self._weights = np.zeros((size, size), order="F"), np.zeros(size)
        if len(seen):
            self._begin()

    def _begin(self) -> None:
        """Factor, gain and weights of all that was seen."""
        seen, count = self.seen, len(self.seen)
        known = self._known()
        qualities = self.kernel.between(known, known, self.logs)
        qualities[np.diag_indices(len(qualities))] += self.others["own"]
        covariance = self._covariance(seen, seen.of(qualities))
        covariance[np.diag_indices(count)] += seen.noise(self.others)
        factor = cholesky(covariance, lower=True)
        self._factor[:count, :count] = factor
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        left = np.exp(-self.others["fade"] * (self.begun - seen.times))
        dependence = csr_array(hstack([csr_array(seen.ages[:, None]), seen.matrix() * left[:, None]]))
        size = len(seen.rows) + 1
        self._gain[:size, :size] = dependence.T @ (dependence.T @ inverse).T
        self._weights[:size] = dependence.T @ cho_solve((factor, True), seen.targets)

    def _known(self) -> Projected:
        """The features of the distinct architectures."""
        return self._features.at(slice(len(self.places)))

    def _covariance(self, new: Observations, qualities: np.ndarray) -> np.ndarray:
        """Covariances of `new` with all that was seen, given those of new's qualities with all qualities."""
        fading = new.fading(self.seen, self.others["fade"])
        return self.seen.of(qualities.T).T * fading + new.shared(self.seen, self.others)

    # ---- one more comparison

    def add(self, new: Observations) -> None:
        """Take in the observations of the comparison that follows; the result is as if built with them."""
        places = np.array([self._place(row) for row in new.rows])
        new.rows, new.first, new.second = self.seen.rows, places[new.first], places[new.second]
        for at in range(len(new)):
            self._grow(new.at([at]))
            self.now = float(new.times[at])

    def _place(self, row: Integers) -> int:
        """Where an architecture stands among the distinct ones; at the end, if it is new."""
        key = row.tobytes()
        if key not in self.places:
            place = self.places[key] = len(self.places)
            for whole, part in zip(self._features, self.kernel.project(row[None], self.logs), strict=True):
                whole[place] = part[0]
            self.seen.rows = np.concatenate([self.seen.rows, row[None]])
        return self.places[key]

    def _grow(self, one: Observations) -> None:
        """A row of the factor, and what it brings.

        With w the regression of the new observation on those before, r what is left of it, s^2 the variance
        of r, and u how r depends on `known`: gain += u u^T / s^2, weights += u r / s^2.
        """
        pair, count, known = np.array([one.first[0], one.second[0]]), len(self.seen), self._known()
        both = self.kernel.between(known.at(pair), known, self.logs)
        both[[0, 1], pair] += self.others["own"]
        qualities = (0.5 * (both[0] + both[1]) if one.mean[0] else both[0] - both[1])[None]
        across = np.zeros(len(self._factor))
        across[:count] = self._covariance(one, qualities)[0]
        itself = one.of(qualities.T)[0, 0] + one.shared(one, self.others)[0, 0] + one.noise(self.others)[0]
        row = dtrsv(self._factor, across, lower=1)
        left = max(float(itself - row @ row), JITTER)
        regression = dtrsv(self._factor, row, lower=1, trans=1)[:count]
        rest = one.targets[0] - regression @ self.seen.targets
        self._factor[count], self._factor[count, count] = row, math.sqrt(left)
        self.seen = self.seen.followed_by(one)
        dependence = self._dependence_of(np.append(-regression, 1.0))
        dger(1 / left, dependence, dependence, a=self._gain, overwrite_a=1)  # in place
        self._weights += dependence * (rest / left)

    def _dependence_of(self, factors: np.ndarray) -> np.ndarray:
        """How a sum of what was seen, with these factors, depends on `known`; with room."""
        seen, size = self.seen, len(self._weights) - 1
        left = np.exp(-self.others["fade"] * (self.begun - seen.times))
        first, second = seen.coefficients() * (factors * left)
        on_rows = np.bincount(seen.first, first, size) + np.bincount(seen.second, second, size)
        return np.concatenate([[factors @ seen.ages], on_rows])

    # ---- questions

    def mean(self, rows: Integers) -> np.ndarray:
        """Posterior mean of f, (n,)."""
        known, seen = self._known(), self._seen_among(rows)
        if len(seen) == len(rows):  # as in most searches, for what they have trained
            here = known.at(np.array([*seen.values()], dtype=np.int64))
        else:
            here = self.kernel.project(rows, self.logs)
        weights = self._weights[1 : len(self.places) + 1]
        found = here.straight @ (weights @ known.straight)  # no matrix of covariances for the linear part
        found += weights @ self.kernel.interactions(known, here, self.logs)
        for column, place in seen.items():
            found[column] += weights[place] * self.others["own"]
        return self.expected(rows) + found * math.exp(-self.others["fade"] * (self.now - self.begun))

    def _seen_among(self, rows: Integers) -> dict[int, int]:
        """Which of the rows are among the distinct architectures, and where there."""
        keys = (row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.int64))
        return {column: self.places[key] for column, key in enumerate(keys) if key in self.places}

    def _across(self, rows: Integers, here: Projected) -> np.ndarray:
        """Covariances of the distinct architectures, when this began, with `rows` now; (distinct, n)."""
        across = self.kernel.between(self._known(), here, self.logs)
        for column, place in self._seen_among(rows).items():
            across[place, column] += self.others["own"]
        return across * math.exp(-self.others["fade"] * (self.now - self.begun))

    def gap(
        self, rows: Integers, reference: Integers, ages: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of f(rows[i]) - f(reference[i]), (n,) each; a single reference serves all rows.

        With `ages` (n, 2), of the weights of both: of what the loss shows of it, minus the age's effect.
        """
        reference = np.atleast_2d(reference)
        both = self.kernel.project(np.concatenate([rows, reference]), self.logs)
        here, there = both.at(slice(len(rows))), both.at(slice(len(rows), None))
        older = np.zeros(len(rows)) if ages is None else ages[:, 0] - ages[:, 1]
        difference = self._across(rows, here) - self._across(reference, there)
        across = np.concatenate([self.others["age"] * older[None], difference])
        prior = self.kernel.variances(here, self.logs) + self.kernel.variances(there, self.logs)
        prior = prior - 2 * self.kernel.paired(here, there, self.logs) + self.others["age"] * older**2
        prior += 2 * self.others["own"] * (rows != reference).any(axis=1)
        size = len(across)
        variance = prior - (across * (self._gain[:size, :size] @ across)).sum(0)
        expected = self.expected(rows) - self.expected(reference)
        return expected + self._weights[:size] @ across, np.maximum(variance, 0)

    def beats(self, a: Integers, b: Integers, ages: np.ndarray | None = None) -> np.ndarray:
        """P(a[i] wins against b[i]) in a comparison of the usual noise, (n,)."""
        mean, variance = self.gap(a, b, ages)
        return ndtr(mean / np.sqrt(variance + self.others["noise"] + self.usual + JITTER))

    def improvement(self, rows: Integers, reference: Integers) -> np.ndarray:
        """Expected improvement E[max(0, f(x) - f(reference))], (n,)."""
        mean, variance = self.gap(rows, reference)
        return expected_excess(mean, np.sqrt(variance) + 1e-12)


def expected_excess(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E[max(0, x)] of normal x, whose deviations are above 0; of any shape (Jones et al. 1998)."""
    z = mean / deviation
    return mean * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _with_room(array: np.ndarray, rows: int) -> np.ndarray:
    """The same, with so many rows of zeros more."""
    return np.concatenate([array, np.zeros((rows, *array.shape[1:]))])
