"""finalists.py: the choice of the winner from equal trainings."""

from __future__ import annotations

import math

import pytest
import torch
from test_candidates import digits_task

from genotypes import DARTS, PDARTS
from search import finalists
from search.candidates import TrainedCandidate
from search.record import Finalist


def finalist(*losses: float) -> Finalist:
    return Finalist(
        DARTS, TrainedCandidate(torch.tensor(losses), torch.ones(len(losses), dtype=torch.bool), {})
    )


def test_the_lowest_loss_wins_and_nan_never() -> None:
    nan, high, low = finalist(math.nan, 0.0), finalist(2.0, 2.0), finalist(1.0, 2.0)
    assert finalists.winner([nan, high, low]) is low
    assert finalists.winner([finalist(math.inf), high]) is high
    with pytest.raises(ValueError, match="--final_learning_rate"):
        finalists.winner([nan])


def test_finalists_train_alike_whoever_else_does() -> None:
    task = digits_task(final_epochs=2, final_learning_rate=0.05)
    both = finalists.train_from_scratch(task, [DARTS, PDARTS])
    alone = finalists.train_from_scratch(task, [PDARTS])
    assert torch.equal(both[1].trained.losses, alone[0].trained.losses)
    network = finalists.trained_network(task, both[0])
    state = network.state_dict()
    assert torch.equal(state["classifier.weight"], both[0].trained.weights["classifier.weight"])
    again = finalists.evaluate(network, task.clean(task.validation)).losses
    assert torch.equal(again, both[0].trained.losses)
