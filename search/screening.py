"""Where a slow learner goes when the predictor helps: among its moves, relatives of the best, and uphill.

The score of an architecture is its expected improvement over the best one known. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from encoding import ChoiceSpace, Integers, Reals
from predictor.posterior import Posterior
from search.front import Front

PARENTS = 10  # the best known architectures, whose children are proposed
STARTS = 3  # proposals from which the steps uphill begin
RANKED = 1000  # architectures that are returned


def promising(
    space: ChoiceSpace,
    posterior: Posterior,
    moves: Reals,
    known: Integers,
    banned: set[tuple[int, ...]],
    rng: np.random.Generator,
    front: Front | None = None,
) -> list[Integers]:
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
    gain: Callable[[Integers], np.ndarray]
    if front is None:
        gain = partial(posterior.improvement, reference=best[0])
    else:
        gain = front.improvement(posterior, known if len(known) else best)
    scores: dict[tuple[int, ...], float] = {}

    def score(rows: Integers) -> None:
        """Score those of the rows that are new and not banned."""
        new = [
            row for row in dict.fromkeys(map(tuple, rows.tolist())) if not (row in banned or row in scores)
        ]
        if new:
            scores.update(zip(new, gain(np.array(new)).tolist(), strict=True))

    score(np.array(proposals))
    climbing = sorted(scores, key=scores.__getitem__, reverse=True)[:STARTS]
    while climbing:  # all at once: one question instead of several
        around = [space.neighbours(np.array(here)) for here in climbing]
        score(np.concatenate(around))
        higher: dict[tuple[int, ...], None] = {}
        for here, rows in zip(climbing, around, strict=True):
            top = max(
                filter(scores.__contains__, map(tuple, rows.tolist())), key=scores.__getitem__, default=here
            )
            if scores[top] > scores[here]:
                higher[top] = None
        climbing = list(higher)
    return [np.array(row) for row in sorted(scores, key=scores.__getitem__, reverse=True)[:RANKED]]
