"""Who would win? A Gaussian process on quality that learns from paired differences alone.

A comparison tells loss(a) - loss(b) with a known standard error. Whatever both networks share (the state of
the weight set, the epoch, the batches) cancels in it, so the difference is linear in the unknown qualities f:
difference = f(b) - f(a) + noise. A Gaussian process on f therefore has an exact posterior from differences
(Rasmussen and Williams 2006, section 2.2, with linear observations; Chu and Ghahramani 2005 treat bare
outcomes). P(a beats b) = 1 - P(b beats a) by construction.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from encoding import Architecture, ChoiceSpace, Features, Integers
from predictor.fitting import Fitting
from predictor.kernel import Kernel
from predictor.observations import Bend, Comparisons, Observations, observe
from predictor.posterior import Posterior

KEPT = 500  # comparisons that the posterior is built from; the newest, where there are more
GROWTH = 10  # the posterior is built anew after one new comparison for so many that it was built from,
FITTED = 128  # with hyperparameters chosen on at most so many comparisons
STEPS, FEWER = 25, 10  # of the search for hyperparameters, from the last ones where there is much data
BELIEF = 0.3  # typical differences for an sd of the prior; were it the truth, it would be 0.7
CHECKS = 1.5  # the readings of the space are compared anew after this growth of the data,
ENOUGH = 150  # on at most this many comparisons


class PairPredictor:
    """P(a beats b), ranks and expected improvements, from the comparisons added so far.

    Quality f is minus the loss, up to a constant. `add` costs nothing; the next question learns. `without`
    names blocks of features to leave out. `prior` says what quality is expected of rows of choices
    before any comparison, (n,), more is better, with mean 0 and sd 1 over random architectures: it is a
    feature, too, so that how far it is followed is learned.
    """

    def __init__(
        self,
        *,
        space: ChoiceSpace,
        levels: bool = True,
        without: Collection[str] = (),
        prior: Callable[[Integers], np.ndarray] | None = None,
    ) -> None:
        self.space, self.prior = space, prior
        self.kernels = {
            reading: Kernel(Features(space, reading, without, prior)) for reading in space.readings
        }
        self.use_levels = levels
        self.known = Comparisons.none(space.positions)
        self.reading = next(iter(space.readings))
        self.hyperparameters = self.kernels[self.reading].centre
        self.fitted = 0  # comparisons known when the posterior was last built anew
        self.checked = 0  # and when the readings were last compared
        self._bend = Bend(self.known)
        self._posterior: Posterior | None = None
        self._learned = 0  # comparisons that the posterior knows

    def __len__(self) -> int:
        return len(self.known)

    @property
    def knows(self) -> bool:
        """Whether there is anything that its answers rest on."""
        return bool(len(self)) or self.prior is not None

    def add(
        self,
        a: Architecture,
        b: Architecture,
        difference: float,
        standard_error: float,
        level: float = 0.0,
        ages: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """One comparison: the mean of loss(a) - loss(b), its standard error (0: exact), the lower loss.

        `ages` say how long the weights of both had trained, in any unit: what a loss owes to them is told
        apart from quality. A network that is compared with itself tells its level alone. Raises ValueError
        for numbers that are not finite or a negative error: they would spoil all others.
        """
        numbers = (difference, standard_error, level, *ages)
        if not all(math.isfinite(number) for number in numbers) or standard_error < 0:
            raise ValueError(
                f"difference {difference}, standard error {standard_error}, level {level}, ages {ages}: "
                "all must be finite, the error at least 0"
            )
        pair = np.stack([self.space.choices(a), self.space.choices(b)])
        self.known.add(pair, difference, standard_error, level, ages)

    # ---- learning

    def posterior(self) -> Posterior:
        """The posterior given all comparisons.

        It grows by one comparison after the other, and is built anew, with other hyperparameters, when there
        are enough new ones: so a predictor that goes on from its state answers as it would have, bit for bit.
        """
        if self._posterior is None and self.fitted:
            self._build()
        if self._posterior is None or len(self) >= self.fitted + self._room():
            warm, self.fitted = self.fitted > 0, len(self)
            if len(self) >= 3:
                self._fit(STEPS if len(self) <= FITTED or not warm else FEWER)
            self._build()
        assert self._posterior is not None
        for place in range(self._learned, len(self)):
            self._posterior.add(self._observe(np.array([place]), self._bend))
        self._learned = len(self)
        return self._posterior

    def _room(self) -> int:
        """New comparisons with which the posterior is built anew."""
        return 1 + min(self.fitted, KEPT) // GROWTH

    def _observe(self, places: Integers, bend: Bend) -> Observations:
        """What the comparisons at `places` say; their levels too, if levels were told at all."""
        levels = self.use_levels and bool(self.known.levels[: self.fitted].any())
        seen = observe(self.known, places, bend, levels)
        seen.targets -= seen.of(self.expected(seen.rows)[:, None])[:, 0]
        return seen

    def expected(self, rows: Integers) -> np.ndarray:
        """Qualities before any comparison, in typical differences, (n,)."""
        return np.zeros(len(rows)) if self.prior is None else BELIEF * self.prior(rows)

    def _build(self) -> None:
        self._bend = Bend(self.known.at(slice(self.fitted)))
        seen = self._observe(np.arange(max(0, self.fitted - KEPT), self.fitted), self._bend)
        self._posterior = Posterior(
            self.kernels[self.reading], self.hyperparameters, seen, 2 * self._room(), self.expected
        )
        self._learned = self.fitted

    def _fit(self, steps: int) -> None:
        """Choose the reading and the hyperparameters."""
        bend, start, count = Bend(self.known), self.hyperparameters, len(self)
        readings = self.space.readings
        if len(readings) > 1 and self.checked < ENOUGH and count >= self.checked * CHECKS:
            self.checked = min(count, ENOUGH)
            seen = self._observe(np.arange(self.checked), bend)
            lowest = math.inf
            for reading, odds in readings.items():
                trial = Fitting(self.kernels[reading], seen)
                found, value = trial.maximise(trial.kernel.centre, STEPS)
                if value - odds < lowest:
                    lowest, self.reading, start = value - odds, reading, found
        first = max(0, count - KEPT)
        places = np.unique(np.linspace(first, count - 1, min(count - first, FITTED)).round().astype(np.int64))
        seen = self._observe(places, bend)
        if len(seen):
            self.hyperparameters, _ = Fitting(self.kernels[self.reading], seen).maximise(start, steps)

    # ---- questions

    def probability(self, a: Architecture, b: Architecture, ages: tuple[float, float] = (0.0, 0.0)) -> float:
        """P(a beats b) in a comparison of the usual noise; 0.5 for equal architectures or without data."""
        return float(self.probabilities([a], [b], np.array([ages]))[0])

    def probabilities(
        self, a: Sequence[Architecture], b: Sequence[Architecture], ages: np.ndarray | None = None
    ) -> np.ndarray:
        """P(a[i] beats b[i]), (n,); `ages` (n, 2) of the weights of both."""
        return self.posterior().beats(self.rows(a), self.rows(b), ages)

    def rows(self, architectures: Sequence[Architecture]) -> Integers:
        """Canonical choices, (n, positions)."""
        return np.stack([self.space.choices(architecture) for architecture in architectures])

    def quality(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Posterior mean of f, up to a constant and a scale, (n,)."""
        return self.posterior().mean(self.rows(architectures))

    def rank(self, architectures: Sequence[Architecture]) -> list[int]:
        """Indices of the architectures, best expected quality first; ties keep their order."""
        return self.rank_rows(self.rows(architectures)) if architectures else []

    def rank_rows(self, rows: Integers) -> list[int]:
        """`rank` of canonical choices, (n, positions)."""
        return np.argsort(-self.posterior().mean(rows), kind="stable").tolist()

    def state_dict(self) -> dict[str, Any]:
        """All comparisons and the hyperparameters, as plain types and copies of arrays."""
        numbers = {"fitted": self.fitted, "checked": self.checked, "reading": self.reading}
        return {**numbers, "hyperparameters": self.hyperparameters.copy(), **self.known.arrays()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, bit for bit. ValueError for the state of another space.

        The state of an earlier version has fewer hyperparameters: they are chosen anew.
        """
        if state["reading"] not in self.space.readings:
            raise ValueError(f"predictor state: reading {state['reading']!r} is not one of this space")
        self.known = Comparisons.of(state, self.space.positions)
        self.fitted, self.checked = int(state["fitted"]), int(state["checked"])
        self.reading = str(state["reading"])
        self.hyperparameters = np.array(state["hyperparameters"], dtype=np.float64)
        if self.hyperparameters.shape != self.kernels[self.reading].centre.shape:
            self.hyperparameters, self.fitted = self.kernels[self.reading].centre, 0
        self._posterior = None
