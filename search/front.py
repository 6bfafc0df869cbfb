"""Several objectives at once: the best cell under every limit.

What a cell costs (parameters, multiply-adds, latency) is known before any training; only its error must be
found out. So a front is the least error under each limit on the costs, and a cell is worth what it is
expected to gain, on average over all limits that it keeps to. That is the expected hypervolume improvement
(Emmerich et al. 2006) where all objectives but one are known; the mean is over quasi-random limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from encoding import Architecture, ChoiceSpace, Integers
from predictor.posterior import Posterior, expected_excess
from utils import generator

Costs = Callable[[Architecture], Sequence[float]]  # lower is better, whatever their units

LIMITS = 64
SPREAD = 200  # what a random number is for; those of slow_fast.py and paired_search.py are smaller


class Front:
    """What architectures are worth where they cost something. `seed` makes the limits reproducible."""

    def __init__(self, space: ChoiceSpace, costs: Costs, seed: int) -> None:
        self.space, self._costs = space, costs
        self._known: dict[bytes, tuple[float, ...]] = {}
        low, high = self._extreme(1.0), self._extreme(-1.0)
        rng, steps = generator(seed, SPREAD), (np.arange(LIMITS) + 0.5) / LIMITS
        shares = np.stack([rng.permutation(steps) for _ in low], axis=1)  # evenly over each cost's range
        self.limits: np.ndarray = low + shares * (high - low)  # (limits, costs)

    def costs(self, rows: Integers) -> np.ndarray:
        """Costs of rows of choices, (n, costs)."""
        found = []
        for row in np.ascontiguousarray(rows, dtype=np.int64):
            key = row.tobytes()
            if key not in self._known:
                self._known[key] = self._checked(self.space.architecture(row))
            found.append(self._known[key])
        return np.array(found).reshape(len(rows), -1)

    def _checked(self, architecture: Architecture) -> tuple[float, ...]:
        """Its costs; ValueError where they are not finite numbers, as many as of the architectures before."""
        given = self._costs(architecture)
        try:
            found = tuple(float(cost) for cost in given)
        except (TypeError, ValueError):
            found = ()
        number = len(next(iter(self._known.values()), found))
        if not found or len(found) != number or not np.isfinite(found).all():
            raise ValueError(f"costs of {architecture}: {given!r}; must be finite numbers, as many for each")
        return found

    def _extreme(self, sign: float) -> np.ndarray:
        """The least (1) or the most (-1) that an architecture costs, found downhill for each cost."""
        start = self.space.read((self.space.lower + self.space.upper) / 2)
        found = []
        for place in range(self.costs(start[None]).shape[1]):
            here, value = start, sign * self.costs(start[None])[0, place]
            while True:
                around = self.space.neighbours(here)
                values = sign * self.costs(around)[:, place]
                if not values.size or values.min() >= value:
                    break
                here, value = around[values.argmin()], values.min()
            found.append(sign * value)
        return np.array(found)

    def keeps(self, rows: Integers) -> np.ndarray:
        """Which rows keep to which limits, (n, limits) bool."""
        return np.all(self.costs(rows)[:, None] <= self.limits[None], axis=2)

    # ---- in a pair

    def excess(self, rows: Integers, limit: int) -> np.ndarray:
        """How far each row exceeds a limit, as a share of it; 0 for those that keep to it, (n,)."""
        allowed = self.limits[limit]
        return np.maximum((self.costs(rows) - allowed) / np.maximum(np.abs(allowed), 1e-12), 0).max(axis=1)

    # ---- in screening and at the end

    def best(self, rows: Integers, quality: np.ndarray) -> np.ndarray:
        """The best quality (n,) of those rows that keep to each limit; the lowest of all, where none does."""
        kept = np.where(self.keeps(rows), quality[:, None], -np.inf).max(axis=0)
        return np.where(np.isfinite(kept), kept, quality.min())

    def improvement(self, posterior: Posterior, known: Integers) -> Callable[[Integers], np.ndarray]:
        """What rows are expected to gain over the best of `known`, a mean over all limits: rows to (n,)."""
        qualities = posterior.mean(known)
        reference = known[[int(np.argmax(qualities))]]
        ahead = qualities.max() - self.best(known, qualities)[None]  # of the best under each limit

        def gain(rows: Integers) -> np.ndarray:
            mean, variance = posterior.gap(rows, reference)
            expected = expected_excess(mean[:, None] + ahead, np.sqrt(variance)[:, None] + 1e-12)
            return np.where(self.keeps(rows), expected, 0.0).mean(axis=1)

        return gain

    def chosen(self, rows: Integers, quality: np.ndarray, count: int) -> list[int]:
        """Up to `count` rows that together have the best quality under all limits; the best row first.

        One after the other, the one that adds most; none that adds nothing.
        """
        left, found = list(range(len(rows))), []
        if not left:
            return []
        keeps, floor = self.keeps(rows), quality.min()
        reached = np.full(LIMITS, floor)
        choice = int(np.argmax(quality))
        while choice >= 0:
            found.append(choice)
            left.remove(choice)
            reached = np.where(keeps[choice], np.maximum(reached, quality[choice]), reached)
            if len(found) == count or not left:
                break
            gains = (np.maximum(quality[left, None] - reached, 0) * keeps[left]).sum(axis=1)
            choice = left[int(np.argmax(gains))] if gains.max() > 0 else -1
        return found


def undominated(values: np.ndarray) -> np.ndarray:
    """Which rows (n, objectives) no other row is as good as in all and better in one, (n,) bool."""
    no_worse = np.all(values[:, None] <= values[None], axis=2)
    better = np.any(values[:, None] < values[None], axis=2)
    return ~np.any(no_worse & better, axis=0)
