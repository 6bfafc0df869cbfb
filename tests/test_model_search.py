"""model_search.py: the weight set, what it takes from two candidates, and the full network's size."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_cell
from hypothesis import given, settings
from hypothesis import strategies as st

from genotypes import DARTS, PDARTS, Genotype
from model import NetworkCIFAR, count
from model_search import TRAINED, FullSize, WeightSet

POOLS = (("max_pool_3x3", 0),) * 8
CONCAT = (2, 3, 4, 5)


def cell(*edges: tuple[str, int], reduce: tuple[tuple[str, int], ...] = POOLS) -> Genotype:
    """A cell whose first normal edges are these, and whose other ones are pools."""
    return Genotype((*edges, *POOLS[len(edges) :]), CONCAT, reduce, CONCAT)


def small_set(seed: int = 0) -> WeightSet:
    return WeightSet(C=4, num_classes=10, layers=3, in_channels=1, image_size=8, seed=seed)


def changed(weights: dict, value: float) -> dict:
    """The same weights, all of one value, as if trained."""
    return {key: torch.full_like(tensor, value) for key, tensor in weights.items()}


def test_start_values_do_not_depend_on_the_order() -> None:
    first, second = small_set(), small_set()
    cells = [random_cell(seed) for seed in range(3)]
    for genotype in cells:
        first.network(genotype)
    for genotype in reversed(cells):
        second.network(genotype)
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)


def test_start_values_depend_on_the_seed_and_not_on_global_state() -> None:
    torch.manual_seed(1)
    first = small_set(0)
    first.network(DARTS)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = small_set(0), small_set(1)
    again.network(DARTS)
    other.network(DARTS)
    assert torch.equal(torch.get_rng_state(), state), "global random numbers were used up"
    random = [key for key, tensor in first.tensors.items() if tensor.dim() > 1]
    assert all(torch.equal(first.tensors[key], again.tensors[key]) for key in random)
    assert not any(torch.equal(first.tensors[key], other.tensors[key]) for key in random)


def test_equal_operations_at_different_places_start_differently() -> None:
    weight_set = small_set()
    weight_set.network(
        cell(("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1))
    )
    kernels = [
        tensor for key, tensor in weight_set.tensors.items() if key.endswith("sep_conv_3x3/0/op.1.weight")
    ]
    kernels += [
        tensor for key, tensor in weight_set.tensors.items() if key.endswith("sep_conv_3x3/1/op.1.weight")
    ]
    normal_cells = 1
    assert len(kernels) == 4 * normal_cells
    for i, kernel in enumerate(kernels):
        assert not any(torch.equal(kernel, other) for other in kernels[:i])


def test_a_repeated_edge_is_two_modules_as_in_the_full_network() -> None:
    weight_set = small_set()
    twice = cell(("sep_conv_3x3", 1), ("sep_conv_3x3", 1))
    network = weight_set.network(twice)
    full = NetworkCIFAR(4, 10, 3, False, twice, in_channels=1, image_size=8)
    assert count(network) == count(full)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("cells.0._ops.1."):
                parameter.add_(1.0)
    weights = weight_set.weights(network)
    assert not torch.equal(
        weights["0/0/1/sep_conv_3x3/1/op.1.weight"], weights["0/0/1/sep_conv_3x3/0/op.1.weight"]
    )
    weight_set.absorb(weights)
    again = weight_set.network(twice).state_dict()
    assert torch.equal(
        again["cells.0._ops.1.op.1.weight"], network.state_dict()["cells.0._ops.1.op.1.weight"]
    )
    assert torch.equal(
        again["cells.0._ops.0.op.1.weight"], network.state_dict()["cells.0._ops.0.op.1.weight"]
    )


def test_swapping_two_edges_of_a_node_gives_the_same_weights() -> None:
    weight_set = small_set()
    one = weight_set.network(cell(("sep_conv_3x3", 0), ("dil_conv_3x3", 1))).state_dict()
    two = weight_set.network(cell(("dil_conv_3x3", 1), ("sep_conv_3x3", 0))).state_dict()
    assert torch.equal(one["cells.0._ops.0.op.1.weight"], two["cells.0._ops.1.op.1.weight"])


def test_a_candidates_training_does_not_touch_the_set() -> None:
    weight_set = small_set()
    network = weight_set.network(DARTS)
    before = {key: tensor.clone() for key, tensor in weight_set.tensors.items()}
    network.train()(torch.randn(4, 1, 8, 8))[0].sum().backward()  # batch-norm's statistics change, too
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[key], weight_set.tensors[key]) for key in before)


def test_absorb_is_the_published_rule() -> None:
    weight_set = small_set()
    both = ("sep_conv_3x3", 0)
    fast = weight_set.network(cell(both, ("dil_conv_3x3", 1)))
    slow = weight_set.network(cell(both, ("sep_conv_5x5", 1)))
    weight_set.network(cell(("dil_conv_5x5", 1)))  # neither has it
    before = dict(weight_set.tensors)
    weight_set.absorb(changed(weight_set.weights(fast), 1.0), changed(weight_set.weights(slow), 2.0))
    taken = {"fast": 0, "slow": 0, "neither": 0, "shared": 0}
    for key, tensor in weight_set.tensors.items():
        if "/sep_conv_5x5/" in key:
            expected, kind = 2.0, "slow"
        elif "/dil_conv_5x5/" in key:
            assert tensor is before[key]
            taken["neither"] += 1
            continue
        else:  # the operations of the fast one, also those that both have, and everything that is shared
            expected, kind = 1.0, "fast" if "/" in key else "shared"
        assert (tensor == expected).all(), key
        taken[kind] += 1
    assert all(taken.values())


def test_weights_from_elsewhere_come_to_the_device_of_the_set() -> None:
    here = small_set()
    weights = here.weights(here.network(DARTS))
    there = WeightSet(C=4, num_classes=10, layers=3, in_channels=1, image_size=8, seed=0, device="meta")
    there.absorb(weights, weights)
    assert {tensor.device.type for tensor in there.tensors.values()} == {"meta"}
    assert there.tensors.keys() == weights.keys()


def test_shared_parts_of_the_slow_one_are_not_taken_even_where_the_fast_one_lacks_them() -> None:
    weight_set = small_set()
    fast, slow = (weight_set.weights(weight_set.network(random_cell(seed))) for seed in (1, 2))
    shared = [key for key in slow if "/" not in key]
    assert {key.split(".")[0] for key in shared} == {"stem", "cells", "classifier"}
    assert set(shared) == {key for key in fast if "/" not in key}
    weight_set.absorb(changed(fast, 1.0), changed(slow, 2.0))
    assert all((weight_set.tensors[key] == 1.0).all() for key in shared)


def test_a_candidate_owns_its_active_operations_only() -> None:
    weight_set = small_set()
    for seed in range(6):
        weight_set.network(random_cell(seed))
    in_set = sum(tensor.numel() for tensor in weight_set.tensors.values())
    for seed in range(6):
        candidate = weight_set.network(random_cell(seed))
        full = NetworkCIFAR(4, 10, 3, False, random_cell(seed), in_channels=1, image_size=8)
        owned = sum(tensor.numel() for tensor in candidate.state_dict().values())
        assert owned == sum(tensor.numel() for tensor in full.state_dict().values())
        assert owned < in_set / 2
        bytes_held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in candidate.state_dict().values()
        }
        assert sum(bytes_held.values()) == sum(
            t.numel() * t.element_size() for t in candidate.state_dict().values()
        )


def test_state_comes_back() -> None:
    first, second = small_set(), small_set(seed=1)
    first.absorb(changed(first.weights(first.network(DARTS)), 3.0))
    second.load_state_dict(first.state_dict())
    assert all((tensor == 3.0).all() for tensor in second.network(DARTS).state_dict().values())


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    C=st.sampled_from([2, 4, 8]),
    layers=st.integers(3, 5),
    size=st.sampled_from([8, 9, 14]),
    channels=st.sampled_from([1, 3]),
)
def test_the_full_size_is_exactly_what_counting_the_network_gives(
    seed: int, C: int, layers: int, size: int, channels: int
) -> None:
    full_size = FullSize(C=C, num_classes=10, layers=layers, in_channels=channels, image_size=size)
    for more in range(2):  # the second one finds costs of the first
        genotype = random_cell(seed + more)
        with torch.device("meta"):
            network = NetworkCIFAR(C, 10, layers, False, genotype, in_channels=channels, image_size=size)
        assert full_size(genotype) == count(network)


def test_a_known_network_has_its_published_parameters() -> None:
    parameters, _ = FullSize(C=36, num_classes=10, layers=20)(DARTS)
    assert math.isclose(
        parameters, 3.35e6, rel_tol=0.02
    )  # published: 3.3 M with the same channels and layers


@pytest.mark.parametrize("size", [7, 4])
def test_too_small_images_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="too small"):
        WeightSet(C=4, num_classes=10, layers=3, image_size=size).network(DARTS)


def test_its_state_is_a_few_tensors_that_give_the_same_weights() -> None:
    old = WeightSet(C=4, num_classes=10, layers=3, image_size=16)
    weights = old.weights(old.network(DARTS).to(memory_format=torch.channels_last))
    slices = {"0/2/0/odd/0": torch.arange(12.0).view(3, 4)[:, 1:3], "0/2/0/count/0": torch.tensor(3)}
    old.absorb(weights | slices)
    state = old.state_dict()
    assert len(state) == 3 < 100 < len(old.tensors)
    for kept in (state, dict(old.tensors)):  # and as older checkpoints hold it
        new = WeightSet(C=4, num_classes=10, layers=3, image_size=16)
        new.load_state_dict(kept)
        assert new.tensors.keys() == old.tensors.keys()
        assert all(torch.equal(new.tensors[key], old.tensors[key]) for key in old.tensors)
        assert all(new.tensors[key].stride() == weights[key].stride() for key in weights)


def test_weights_grow_old_by_the_candidates_that_train_them():
    weight_set = WeightSet(C=4, num_classes=10, layers=3)
    assert weight_set.age(DARTS) == 0.0
    weights = weight_set.weights(weight_set.network(DARTS))
    weight_set.absorb(weights)
    once = 1 - math.exp(-1 / TRAINED)
    assert weight_set.age(DARTS) == pytest.approx(once)
    other = weight_set.age(PDARTS)
    assert 0 < other < once, "the edges that both have, alone"
    weight_set.absorb(weights, weight_set.weights(weight_set.network(PDARTS)))
    assert weight_set.age(DARTS) == pytest.approx(1 - math.exp(-2 / TRAINED)), "one visit of a pair, not two"
    assert other < weight_set.age(PDARTS) < weight_set.age(DARTS)


def test_ages_go_on_from_a_state_and_are_unknown_where_it_has_none():
    weight_set = WeightSet(C=4, num_classes=10, layers=3)
    weight_set.absorb(weight_set.weights(weight_set.network(DARTS)))
    state, later = weight_set.state_dict(), WeightSet(C=4, num_classes=10, layers=3)
    later.load_state_dict(state)
    assert later.age(DARTS) == weight_set.age(DARTS) > 0
    later.load_state_dict({name: value for name, value in state.items() if name != "visits"})
    later.absorb(later.weights(later.network(DARTS)))
    assert later.age(DARTS) == 0.0, "a search that did not count goes on without"
    assert "visits" not in later.state_dict()
