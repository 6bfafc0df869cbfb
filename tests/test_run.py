"""training/run.py: the average of the weights."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.run import TrainingRun


@pytest.mark.parametrize(
    ("decay", "step", "kept"),  # the share of the old average that stays
    [(0.9, 0, 1 / 10), (0.9, 1, 2 / 11), (0.9, 80, 81 / 90), (0.9, 10_000, 0.9), (0.05, 0, 0.05)],
)
def test_the_average_moves_more_in_the_first_steps(decay, step, kept):
    average, network = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    old = {"weight": [1, 2], "bias": [0, 4], "running_mean": [5, -5], "running_var": [1, 3]}
    new = {"weight": [3, -2], "bias": [1, 4], "running_mean": [0, 10], "running_var": [2, 7]}
    for module, values, batches in ((average, old, 7), (network, new, 9)):
        state = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
        module.load_state_dict(state | {"num_batches_tracked": torch.tensor(batches)})
    run = SimpleNamespace(ema=decay, steps=step)
    averaged = AveragedModel(average, multi_avg_fn=partial(TrainingRun._move_average, run), use_buffers=True)
    averaged.update_parameters(average)
    averaged.update_parameters(network)
    found = averaged.module.state_dict()
    for name, value in old.items():
        expected = [kept * a + (1 - kept) * b for a, b in zip(value, new[name], strict=True)]
        assert found[name].tolist() == pytest.approx(expected, rel=1e-6), name
    assert found["num_batches_tracked"] == 7
    assert {name: network.state_dict()[name].tolist() for name in new} == new
