"""zero_cost.py: scores against known answers, and what they leave alone."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, random_cell
from torch import nn

from model import NetworkCIFAR

sys.path.insert(0, str(ROOT / "benchmarks"))
from zero_cost import NAMES, nwot, scores, synflow


class Rectified(nn.Module):
    """Logits (N, 2) of the rectified input (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.layer(F.relu(x)), None


def test_nwot_counts_the_units_on_which_images_agree() -> None:
    images = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])  # they agree on two of three
    assert nwot(Rectified(), images) == pytest.approx(math.log(3 * 3 - 2 * 2))


def test_synflow_is_the_sum_of_all_paths() -> None:
    network = Rectified()
    network.layer.weight.data = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    before = network.layer.weight.clone()
    assert synflow(network, torch.zeros(4, 3)) == pytest.approx(math.log(21))
    assert torch.equal(network.layer.weight, before)


def test_scores_of_a_cell_are_finite_repeatable_and_change_nothing() -> None:
    network = NetworkCIFAR(4, 10, 3, False, random_cell(0), 3, 16)
    network.drop_path_prob = 0.5
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    found = scores(network, images, labels)
    assert tuple(found) == NAMES
    assert all(math.isfinite(value) for value in found.values())
    assert scores(network, images, labels) == found
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.drop_path_prob == 0.5
    assert scores(network, images.flip(0), labels)["snip"] != found["snip"]
