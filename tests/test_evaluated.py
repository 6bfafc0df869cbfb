"""search/evaluated.py: the order of what was trained, with and without a predictor."""

import math

import numpy as np

from encoding import ChoiceSpace
from search.evaluated import Evaluated

SPACE = ChoiceSpace([4, 4])


class HighestFirst:
    """A predictor that ranks by the choices alone."""

    def __init__(self, comparisons):
        self.comparisons = comparisons

    def __len__(self):
        return self.comparisons

    def rank_rows(self, rows):
        return sorted(range(len(rows)), key=lambda index: rows[index].tolist(), reverse=True)


def trained(predictor):
    evaluated = Evaluated(SPACE, predictor)
    for *architecture, loss in ((0, 1, 3.0), (2, 2, math.nan), (0, 3, 2.0), (1, 0, 4.0), (0, 1, 1.0)):
        evaluated.add(tuple(architecture), loss)
    return evaluated


def test_without_a_predictor_the_last_loss_counts_and_the_untrained_do_not():
    for predictor in (None, HighestFirst(0)):
        assert trained(predictor).ranking(untrained=[(3, 3)]) == [(0, 1), (0, 3), (1, 0)]


def test_the_predictor_ranks_the_untrained_too_and_the_lowest_loss_joins_the_finalists():
    evaluated = trained(HighestFirst(1))
    assert evaluated.ranking() == [(1, 0), (0, 3), (0, 1)]
    assert evaluated.finalists(2, untrained=[(3, 3), (1, 0), (3, 3)]) == [(3, 3), (1, 0), (0, 1)]
    assert evaluated.finalists(9) == [(1, 0), (0, 3), (0, 1)], "it is among them"
    assert Evaluated(SPACE, None).finalists(3) == []


def test_its_state_keeps_order_and_losses():
    first, second = trained(None), Evaluated(SPACE, None)
    first.add((3, 3), 9.0, exact=False)
    second.load_state_dict({name: array.tolist() for name, array in first.state_dict().items()})
    assert list(second.losses) == list(first.losses)
    assert second.exact == first.exact == set(first.losses) - {(3, 3)}
    np.testing.assert_array_equal(list(second.losses.values()), list(first.losses.values()))
