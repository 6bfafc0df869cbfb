"""Where a slow learner goes when the predictor helps: among its moves, relatives of the best, and uphill.

The score of an architecture is its expected improvement over the best one known. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from encoding import ChoiceSpace, Integers, Reals
from predictor.posterior import Posterior
from search.front import Front

PARENTS = 10  # the best known architectures, whose children are proposed
STARTS = 3  # proposals from which the steps uphill begin
RANKED = 1000  # architectures that are returned

Choices = tuple[int, ...]


class _Scores:
    """What may be chosen and what it would gain; each architecture is asked about once."""

    def __init__(self, gain: Callable[[Integers], np.ndarray], banned: set[Choices]) -> None:
        self.gain, self.banned = gain, banned
        self.known: dict[Choices, float] = {}

    def add(self, rows: Integers) -> None:
        """Score those of the rows that are new and not banned."""
        new: dict[Choices, int] = {}
        for place, row in enumerate(map(tuple, rows.tolist())):
            if not (row in self.banned or row in self.known):
                new.setdefault(row, place)
        if new:
            self.known.update(zip(new, self.gain(rows[[*new.values()]]).tolist(), strict=True))

    def best(self, count: int) -> list[Choices]:
        """The first so many, the highest first."""
        return sorted(self.known, key=self.known.__getitem__, reverse=True)[:count]

    def highest(self, rows: Integers, otherwise: Choices) -> Choices:
        """The one of the rows that gains most; `otherwise`, where none may be chosen or it gains no more."""
        chosen = filter(self.known.__contains__, map(tuple, rows.tolist()))
        top = max(chosen, key=self.known.__getitem__, default=otherwise)
        return top if self.known[top] > self.known[otherwise] else otherwise


def promising(
    space: ChoiceSpace,
    posterior: Posterior,
    moves: Reals,
    known: Integers,
    banned: set[Choices],
    rng: np.random.Generator,
    front: Front | None = None,
) -> Iterator[Integers]:
    """Choices in order of expected improvement, best first; none of them `banned`.

    With a `front` it is that of the front. Proposed are `moves` (n, reals), as many mutated children of the
    best of `known` (n, positions), and all that is met on the way uphill from the best proposals.
    """
    proposals = [space.read(vector) for vector in moves]
    if len(known) == 0:  # then the best of the proposals is what there is to improve on
        best = np.array(proposals)[[np.argmax(posterior.mean(np.array(proposals)))]]
    else:
        quality = posterior.mean(known)
        order = np.argsort(-quality, kind="stable").tolist()
        best = known[order[:PARENTS] if front is None else front.chosen(known, quality, PARENTS)]
    for _ in range(len(moves)):
        first, second = (best[rng.integers(len(best))] for _ in range(2))
        proposals.append(space.mutate(space.cross(first, second, rng), rng))
    if front is None:
        scores = _Scores(partial(posterior.improvement, reference=best[0]), banned)
    else:
        scores = _Scores(front.improvement(posterior, known if len(known) else best), banned)
    scores.add(np.array(proposals))
    _climb(space, scores)
    return map(np.array, scores.best(RANKED))


def _climb(space: ChoiceSpace, scores: _Scores) -> None:
    """Score the neighbours of the best, step by step uphill, until there is nothing higher."""
    climbing = scores.best(STARTS)
    while climbing:  # all at once: one question instead of several
        around = [space.neighbours(np.array(here)) for here in climbing]
        scores.add(np.concatenate(around))
        tops = [scores.highest(rows, here) for here, rows in zip(climbing, around, strict=True)]
        climbing = list(dict.fromkeys(top for top, here in zip(tops, climbing, strict=True) if top != here))
