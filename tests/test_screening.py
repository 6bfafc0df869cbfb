"""search/screening.py: what is proposed to a slow learner, in which order, and what never."""

import numpy as np

from encoding import ChoiceSpace
from search.screening import promising

SPACE = ChoiceSpace([5] * 6)


class SumsAreGood:
    """A posterior that is sure that higher choices are better."""

    def mean(self, rows):
        return rows.sum(axis=1)

    def improvement(self, rows, reference):
        return np.exp(rows.sum(axis=1) - reference.sum())


def proposed(banned=()):
    rng = np.random.default_rng(0)
    moves = np.stack([SPACE.sample(rng) for _ in range(8)])
    known = np.stack([SPACE.read(SPACE.sample(rng)) for _ in range(20)])
    banned = {*banned, *(tuple(row) for row in known.tolist())}
    return list(promising(SPACE, SumsAreGood(), moves, known, banned, rng)), moves, known


def test_the_best_comes_first_and_lies_uphill_of_every_move():
    rows, moves, known = proposed()
    gains = SumsAreGood().improvement(np.stack(rows), known[known.sum(axis=1).argmax()])
    assert gains.tolist() == sorted(gains, reverse=True)
    assert rows[0].tolist() == [4] * 6
    found = {tuple(row.tolist()) for row in rows}
    assert {tuple(SPACE.read(move).tolist()) for move in moves} <= found


def test_nothing_that_is_banned_is_proposed_and_nothing_twice():
    top = (4,) * 6
    rows, _, known = proposed(banned=[top])
    found = [tuple(row.tolist()) for row in rows]
    assert len(set(found)) == len(found)
    assert not {top, *(tuple(row) for row in known.tolist())}.intersection(found)
    assert rows[0].sum() == 23, "next to the banned top"
