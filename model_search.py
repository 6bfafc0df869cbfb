"""The weight set that all candidates share, and candidates that own only their active operations.

    weight_set = WeightSet(C=16, num_classes=10, layers=8)
    candidate = weight_set.network(genotype)         # a NetworkCIFAR with copies of the set's weights
    ...                                              # train it, and another one
    weight_set.absorb(weight_set.weights(fast), weight_set.weights(slow))

A candidate is the full network's own class, `model.NetworkCIFAR`, with fewer layers and channels: what the
search trains is what retraining builds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genotypes import Genotype
from model import NetworkCIFAR, count
from utils import derive_seed

Weights = dict[str, Tensor]  # by the names of the weight set

OPERATION = re.compile(r"cells\.(\d+)\._ops\.(\d+)\.(.+)")  # a weight of an edge, in a network's state dict
SHARED = re.compile(r"\d+/")  # what the weight set's names of such weights begin with


class WeightSet:
    """One tensor for every weight that a candidate has had so far; no others are built.

    A weight of an operation is named "cell/node/input/operation/copy/rest". The copy is 1 for the second of
    two equal edges of a node and 0 otherwise: the full network, too, has two modules there (the published
    search applies one module twice). Everything else (stem, preprocessing, classifier) keeps the
    network's names. Start values depend on the seed and the name alone, not on what was used before.
    """

    def __init__(
        self,
        *,
        C: int,
        num_classes: int,
        layers: int,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.C, self.num_classes, self.layers = C, num_classes, layers
        self.in_channels, self.image_size = in_channels, image_size
        self.seed, self.device = seed, torch.device(device)
        self.tensors: Weights = {}

    def network(self, genotype: Genotype) -> NetworkCIFAR:
        """A candidate of `genotype` whose weights are copies of the set's, on the set's device."""
        network = _empty(self, genotype)
        keys = _keys(network)
        self._start_missing(network, keys)
        network.load_state_dict({name: self.tensors[key].clone() for name, key in keys.items()}, assign=True)
        return network

    def weights(self, network: NetworkCIFAR) -> Weights:
        """A candidate's weights under the set's names; the tensors are the candidate's own."""
        state = network.state_dict()
        return {key: state[name] for name, key in _keys(network).items()}

    def absorb(self, fast: Weights, slow: Weights | None = None) -> None:
        """Take all of the fast candidate, and the operations of the slow one that the fast one does not have.

        Stem, preprocessing and classifier are the fast candidate's (arXiv 2009.06193).
        """
        if slow is not None:
            self.tensors.update(self._here({key: x for key, x in slow.items() if SHARED.match(key)}))
        self.tensors.update(self._here(fast))

    def _here(self, weights: Mapping[str, Tensor]) -> Weights:
        """The tensors on the set's device; those from a checkpoint are on the CPU."""
        return {key: tensor.to(self.device) for key, tensor in weights.items()}

    def state_dict(self) -> Weights:
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.tensors = {key: tensor.to(self.device) for key, tensor in state.items()}

    def _start_missing(self, network: NetworkCIFAR, keys: dict[str, str]) -> None:
        """Give start values to the weights of `network` (on the meta device) that the set does not have."""
        for path, layer in network.named_modules():
            names = [f"{path}.{name}" for name in layer.state_dict() if "." not in name]
            if not names or keys[names[0]] in self.tensors:
                continue
            assert isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear), path
            layer.to_empty(device="cpu")  # on the CPU, so that every device starts from the same values
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, "weight set", keys[names[0]]))
                layer.reset_parameters()
            for name, tensor in layer.state_dict().items():
                self.tensors[keys[f"{path}.{name}"]] = tensor.to(self.device)


def _keys(network: NetworkCIFAR) -> dict[str, str]:
    """The weight set's name for each name in the network's state dict."""
    genotype = network.genotype
    edges = {False: _edge_names(genotype.normal), True: _edge_names(genotype.reduce)}
    keys = {}
    for name in network.state_dict():
        match = OPERATION.fullmatch(name)
        if match is None:
            keys[name] = name
        else:
            cell, edge, rest = match.groups()
            keys[name] = f"{cell}/{edges[bool(network.cells[int(cell)].reduction)][int(edge)]}/{rest}"
    return keys


def _edge_names(edges: tuple[tuple[str, int], ...]) -> list[str]:
    """ "node/input/operation/copy" for each edge of a cell."""
    names = []
    for position, (operation, source) in enumerate(edges):
        repeated = position % 2 == 1 and edges[position] == edges[position - 1]
        names.append(f"{position // 2}/{source}/{operation}/{int(repeated)}")
    return names


class FullSize:
    """Parameters and multiply-adds of full-size networks, by adding up what each edge costs.

    Gives exactly what `model.count` gives for `NetworkCIFAR(C, num_classes, layers, False, genotype)`, but
    builds a network only for an edge not yet seen: an edge's cost depends on its operation, its cell and
    whether it reduces, not on the other edges.
    """

    def __init__(
        self,
        *,
        C: int = 36,
        num_classes: int,
        layers: int = 20,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
    ) -> None:
        self.C, self.num_classes, self.layers = C, num_classes, layers
        self.in_channels, self.image_size = in_channels, image_size
        free = (("max_pool_3x3", 0),) * 8  # pooling has no weights and counts no multiply-adds
        self.bare = Genotype(free, (2, 3, 4, 5), free, (2, 3, 4, 5))
        self.base = self._count(self.bare)
        self.edges: dict[tuple[str, str, bool], tuple[int, int]] = {}

    def __call__(self, genotype: Genotype) -> tuple[int, int]:
        """(parameters, multiply_adds) of a genotype of the search space, the auxiliary head left out."""
        parameters, multiply_adds = self.base
        for cell in ("normal", "reduce"):
            for operation, source in getattr(genotype, cell):
                more = self._edge(cell, operation, source < 2)
                parameters, multiply_adds = parameters + more[0], multiply_adds + more[1]
        return parameters, multiply_adds

    def within(self, genotype: Genotype, parameters: float | None, multiply_adds: float | None) -> bool:
        """Whether the network keeps to limits given in millions; None is no limit."""
        limits = (parameters, multiply_adds)
        return all(
            limit is None or number <= limit * 1e6
            for number, limit in zip(self(genotype), limits, strict=True)
        )

    def _edge(self, cell: str, operation: str, from_input: bool) -> tuple[int, int]:
        key = (cell, operation, from_input and cell == "reduce")
        if key not in self.edges:
            edges = list(getattr(self.bare, cell))
            edges[-1] = (operation, 0 if from_input else 2)
            counted = self._count(self.bare._replace(**{cell: tuple(edges)}))
            self.edges[key] = (counted[0] - self.base[0], counted[1] - self.base[1])
        return self.edges[key]

    def _count(self, genotype: Genotype) -> tuple[int, int]:
        # With memory, but no values: shapes are worked out faster there than on the meta device.
        return count(_empty(self, genotype).to_empty(device="cpu"))


def _empty(size: WeightSet | FullSize, genotype: Genotype) -> NetworkCIFAR:
    """A network on the meta device: without storage, and without start values that would be thrown away."""
    with torch.device("meta"):
        return NetworkCIFAR(
            size.C,
            size.num_classes,
            size.layers,
            False,
            genotype,
            in_channels=size.in_channels,
            image_size=size.image_size,
        )
