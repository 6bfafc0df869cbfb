"""training/card.py: a checkpoint says what its network is."""

from pathlib import Path

import torch

import genotypes
from common import checkpoint
from model import NetworkCIFAR
from training.card import describe_network


def test_a_network_describes_itself(tmp_path: Path) -> None:
    network = NetworkCIFAR(4, 10, 3, False, genotypes.DARTS, in_channels=1, image_size=8)
    images = {"set": "digits", "classes": list("0123456789"), "mean": [0.5], "std": [0.2]}
    state = describe_network(network, images=images, recipe={"epochs": 1}, result={"error": 0.5})
    checkpoint.save(tmp_path / "model.pt", state)
    loaded = checkpoint.load(tmp_path / "model.pt", "network")
    facts = loaded["network"]
    again = NetworkCIFAR(
        facts["C"],
        facts["num_classes"],
        facts["layers"],
        facts["auxiliary"],
        genotypes.from_dict(facts["genotype"]),
        in_channels=facts["in_channels"],
        image_size=tuple(facts["image_size"]),
    )
    again.load_state_dict(loaded["state_dict"])
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(network.eval()(inputs)[0], again.eval()(inputs)[0])
