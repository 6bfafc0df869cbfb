"""The network of NAS-Bench-201: published sizes, any image, and what the machinery around makes of it."""

import numpy as np
import pytest
import torch

import genotypes
from genotypes import NASBENCH201, CompleteCell
from graph_space import GraphSpace
from model import NetworkCIFAR, NetworkImageNet, count
from model_search import FullSize, WeightSet
from skeletons import NetworkNASBench201, skeleton
from training.inference import fold_batch_norm

SOURCES = (0, 0, 1, 0, 1, 2)


def cell_of(*names: str) -> CompleteCell:
    return CompleteCell(tuple(zip(names * (6 // len(names)), SOURCES, strict=True)))


def random_cell(seed: int) -> CompleteCell:
    space = GraphSpace()
    return space.decode(space.sample(np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),  # published, in millions (the file of the benchmark has these)
    [("none", 0.073306, 7.78305), ("skip_connect", 0.073306, 7.78305), ("nor_conv_3x3", 1.531546, 220.11969)],
)
def test_published_sizes(name: str, parameters: float, multiply_adds: float) -> None:
    found = count(NetworkNASBench201(16, 10, 15, False, cell_of(name)))
    assert found[0] == round(1e6 * parameters)
    assert found[1] == pytest.approx(1e6 * multiply_adds, abs=10)  # they count the ten additions of the bias


@pytest.mark.parametrize("seed", range(4))
def test_costs_of_edges_add_up(seed: int) -> None:
    sizes = FullSize(C=6, num_classes=10, layers=4, image_size=9)
    cell = random_cell(seed)
    assert sizes(cell) == count(NetworkNASBench201(6, 10, 4, False, cell, image_size=9))


@pytest.mark.parametrize(("layers", "maps"), [(1, 16), (2, 8), (3, 8), (8, 8), (15, 8)])
def test_stages_begin_where_other_networks_reduce(layers: int, maps: int) -> None:
    network = NetworkNASBench201(4, 10, layers, False, random_cell(0)).eval()
    assert len(network.cells) == layers
    seen = []
    network.lastact.register_forward_hook(lambda module, given, out: seen.append(out.shape[2]))
    network(torch.randn(2, 3, 32, 32))
    assert seen == [maps]


def test_a_cell_is_the_sum_of_its_edges() -> None:
    """Written out, for pooling and identities, whose operations keep no weights."""
    network = NetworkNASBench201(4, 10, 3, False, cell_of("skip_connect", "avg_pool_3x3")).eval()
    x = torch.randn(2, 4, 8, 8)
    pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    first = x  # 0-1 is an identity
    second = pool(x) + first  # 0-2 pools, 1-2 is an identity
    third = pool(x) + first + pool(second)
    assert torch.allclose(network.cells[0](x), third, atol=1e-6)


def test_a_cell_without_a_path_gives_zeros() -> None:
    network = NetworkNASBench201(4, 10, 3, False, cell_of("none"))
    assert not network.cells[0](torch.randn(2, 4, 8, 8)).any()
    logits, auxiliary = network(torch.randn(2, 3, 8, 8))
    assert auxiliary is None
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("size", [(9, 14), (28, 28), (31, 8)])
def test_images_of_any_size_and_the_same_logits_when_folded(size: tuple[int, int]) -> None:
    network = NetworkNASBench201(4, 7, 5, False, random_cell(3), in_channels=1, image_size=size)
    images = torch.randn(3, 1, *size)
    network(images)  # moves the running statistics
    with torch.no_grad():
        assert torch.allclose(fold_batch_norm(network)(images)[0], network.eval()(images)[0], atol=1e-5)


def test_drop_path_drops_edges_but_no_identity() -> None:
    identities = NetworkNASBench201(4, 10, 3, False, cell_of("skip_connect"))
    convolutions = NetworkNASBench201(4, 10, 3, False, cell_of("nor_conv_3x3"))
    images = torch.randn(8, 3, 8, 8)
    for network, differs in ((identities, False), (convolutions, True)):
        plain = network(images)[0]
        network.drop_path_prob = 0.5
        network.drop_path_generator = torch.Generator().manual_seed(0)
        assert torch.allclose(network(images)[0], plain, atol=1e-5) != differs


def test_each_edge_has_its_own_factors() -> None:
    pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    names = ("avg_pool_3x3", "none", "avg_pool_3x3", "avg_pool_3x3", "none", "avg_pool_3x3")
    network = NetworkNASBench201(4, 10, 3, False, cell_of(*names))
    x, factors = torch.randn(5, 4, 8, 8), torch.rand(6, 5)
    rows = factors[:, :, None, None, None]
    before = rows[2] * pool(rows[0] * pool(x))
    wanted = rows[3] * pool(x) + rows[5] * pool(before)
    assert torch.allclose(network.cells[0](x, factors), wanted, atol=1e-6)


def test_candidates_share_the_weights_of_equal_edges() -> None:
    weights = WeightSet(C=4, num_classes=10, layers=3, image_size=8)
    a = cell_of("nor_conv_3x3")
    b = CompleteCell((("nor_conv_3x3", 0), ("none", 0), ("nor_conv_1x1", 1), *a.cell[3:]))
    first, second = weights.network(a), weights.network(b)
    key = "cells.1._ops.{}.op.1.weight"
    assert torch.equal(first.state_dict()[key.format(0)], second.state_dict()[key.format(0)])
    assert torch.equal(first.state_dict()[key.format(5)], second.state_dict()[key.format(5)])
    assert "1/0/0/nor_conv_3x3/0/op.1.weight" in weights.tensors
    assert "1/1/1/nor_conv_1x1/0/op.1.weight" in weights.tensors


def test_which_network_a_cell_is_for() -> None:
    assert skeleton(genotypes.DARTS) is NetworkCIFAR
    assert skeleton(cell_of(*NASBENCH201[1:4])) is NetworkNASBench201
    with pytest.raises(ValueError, match="needs a normal and a reduction cell, and this architecture is one"):
        NetworkImageNet(4, 10, 3, False, cell_of("none"), image_size=64)
    with pytest.raises(ValueError, match="needs one complete cell"):
        NetworkNASBench201(4, 10, 3, False, genotypes.DARTS)
    with pytest.raises(ValueError, match="no auxiliary head"):
        NetworkNASBench201(4, 10, 3, True, cell_of("none"))
