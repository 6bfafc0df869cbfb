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


def finalist(*losses: float, training_loss: float = math.nan) -> Finalist:
    hits = torch.ones(len(losses), dtype=torch.bool)
    return Finalist(DARTS, TrainedCandidate(torch.tensor(losses), hits, {}, training_loss))


def test_the_lowest_loss_wins_and_nan_never() -> None:
    nan, high, low = finalist(math.nan, 0.0), finalist(2.0, 2.0), finalist(1.0, 2.0)
    assert finalists.winner([nan, high, low]) is low
    assert finalists.winner([finalist(math.inf), high]) is high
    with pytest.raises(ValueError, match="--final_learning_rate"):
        finalists.winner([nan])


def test_the_training_loss_of_the_last_epoch_counts_as_much_as_the_validation_loss() -> None:
    learns_faster = finalist(1.1, training_loss=0.7)
    generalises = finalist(1.0, training_loss=0.9)
    assert finalists.winner([generalises, learns_faster]) is learns_faster
    by_heart = finalist(1.4, training_loss=0.6)
    assert finalists.winner([generalises, by_heart]) is generalises


def test_finalists_train_alike_whoever_else_does() -> None:
    task = digits_task(final_epochs=2, final_learning_rate=0.05)
    both = finalists.train_from_scratch(task, [DARTS, PDARTS])
    alone = finalists.train_from_scratch(task, [PDARTS])
    assert torch.equal(both[1].trained.losses, alone[0].trained.losses)
    assert both[1].trained.training_loss == alone[0].trained.training_loss < math.log(10)
    network = finalists.trained_network(task, both[0])
    state = network.state_dict()
    assert torch.equal(state["classifier.weight"], both[0].trained.weights["classifier.weight"])
    again = finalists.evaluate(network, task.clean(task.validation)).losses
    assert torch.equal(again, both[0].trained.losses)
