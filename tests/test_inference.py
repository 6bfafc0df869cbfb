"""Folding batch-norm changes nothing that a user would notice."""

import pytest
import torch

import genotypes
from model import NetworkCIFAR, NetworkImageNet
from training.inference import fold_batch_norm


def with_statistics(network):
    """The network with running statistics and affine weights that are no longer their start values."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", ["RelativeNAS", "AmoebaNet", "NASNet"])
@pytest.mark.parametrize(("kind", "size"), [(NetworkCIFAR, 19), (NetworkImageNet, 64)])
def test_folded_networks_have_the_same_logits(name, kind, size):
    torch.manual_seed(0)
    network = with_statistics(kind(6, 10, 3, True, genotypes.lookup(name), image_size=size))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(images)[0]
        assert torch.allclose(folded(images)[0], expected, rtol=0, atol=1e-4 * expected.abs().max())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
