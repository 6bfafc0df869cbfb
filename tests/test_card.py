"""training/card.py: a checkpoint says what its network is."""

import warnings
from pathlib import Path

import pytest
import torch

import genotypes
from common import checkpoint
from model import NetworkCIFAR
from training.card import check_description, describe_network


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


@pytest.mark.parametrize("part", ["network", "images"])
@pytest.mark.parametrize("odd", [torch.zeros(3), [1, 2], None, "x"])
def test_a_description_that_is_none_is_refused_without_a_warning(part: str, odd: object) -> None:
    network = NetworkCIFAR(4, 10, 3, False, genotypes.DARTS, in_channels=1, image_size=8)
    images = {"set": "digits", "classes": list("0123456789")}
    state = describe_network(network, images=images, recipe={"epochs": 1}, result={})
    check_description(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=f"{type(odd).__name__} where a description belongs"):
            check_description(state | {part: odd})
