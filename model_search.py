"""The weight set that all candidates share, and candidates that own only their active operations.

    weight_set = WeightSet(C=16, num_classes=10, layers=8)
    candidate = weight_set.network(genotype)         # a network with copies of the set's weights
    ...                                              # train it, and another one
    weight_set.absorb(weight_set.weights(fast), weight_set.weights(slow))

A candidate is the full network's own class, with fewer layers and channels: what the search trains is what
retraining builds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from cells import AnyGenotype, CompleteCell, cells_of, edges_of
from model import Network, count
from skeletons import skeleton
from utils import derive_seed

Weights = dict[str, Tensor]  # by the names of the weight set

OPERATION = re.compile(r"cells\.(\d+)\._ops\.(\d+)\.(.+)")  # a weight of an edge, in a network's state dict
FREE = "max_pool_3x3"  # pooling has no weights and counts no multiply-adds
SHARED = re.compile(r"\d+/")  # what the weight set's names of such weights begin with
TRAINED = 3.0  # visits after which a weight is taken to have gained two thirds of what it will
VISITS = "visits"  # the entry of a state that is no dtype


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
        # How many candidates each operation's weight has trained in; None where nobody has counted.
        self.visits: Counter[str] | None = Counter()

    def network(self, genotype: AnyGenotype) -> Network:
        """A candidate of `genotype` whose weights are copies of the set's, on the set's device."""
        network = empty_network(self, genotype)
        keys = _keys(network)
        self._start_missing(network, keys)
        network.load_state_dict({name: self.tensors[key].clone() for name, key in keys.items()}, assign=True)
        return network

    def weights(self, network: Network) -> Weights:
        """A candidate's weights under the set's names; the tensors are the candidate's own."""
        state = network.state_dict()
        return {key: state[name] for name, key in _keys(network).items()}

    def absorb(self, fast: Weights, slow: Weights | None = None) -> None:
        """Take all of the fast candidate, and the operations of the slow one that the fast one does not have.

        Stem, preprocessing and classifier are the fast candidate's (arXiv 2009.06193).
        """
        taken = fast
        if slow is not None:
            taken = {key: x for key, x in slow.items() if SHARED.match(key)} | fast
        self.tensors.update(self._here(taken))
        if self.visits is not None:
            self.visits.update(filter(SHARED.match, taken))

    def age(self, genotype: AnyGenotype) -> float:
        """How far the weights of a cell's operations have trained in this set, in [0, 1]; a mean over them.

        0 where nothing is counted, or nothing has weights.
        """
        if self.visits is None:
            return 0.0
        names = [key for key in _keys(empty_network(self, genotype)).values() if SHARED.match(key)]
        trained = [1 - math.exp(-self.visits[name] / TRAINED) for name in names]
        return sum(trained) / len(trained) if trained else 0.0

    def _here(self, weights: Mapping[str, Tensor]) -> Weights:
        """The tensors on the set's device; those from a checkpoint are on the CPU."""
        return {key: tensor.to(self.device) for key, tensor in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """The tensors of each dtype side by side in one: thousands of them would take long to write."""
        state: dict[str, Any] = {}
        if self.visits is not None:
            counts = torch.tensor(list(self.visits.values()), dtype=torch.int64)
            state[VISITS] = {"names": list(self.visits), "counts": counts}
        for dtype in sorted({tensor.dtype for tensor in self.tensors.values()}, key=str):
            some = {key: _dense(tensor) for key, tensor in self.tensors.items() if tensor.dtype == dtype}
            state[str(dtype)] = {
                "names": list(some),
                "shapes": [list(tensor.shape) for tensor in some.values()],
                "strides": [list(tensor.stride()) for tensor in some.values()],
                "values": torch.cat([x.as_strided((x.numel(),), (1,)) for x in some.values()]).cpu(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, or from tensors by name, as checkpoints used to hold them.

        Those of earlier versions count no visits; then none are counted, and a search goes on as it was.
        """
        self.tensors, self.visits = {}, None
        for key, value in state.items():
            if key == VISITS:
                self.visits = Counter(dict(zip(value["names"], value["counts"].tolist(), strict=True)))
                continue
            if isinstance(value, Tensor):
                self.tensors[key] = value.to(self.device)
                continue
            parts = value["values"].to(self.device).split([math.prod(shape) for shape in value["shapes"]])
            for name, shape, stride, part in zip(
                value["names"], value["shapes"], value["strides"], parts, strict=True
            ):
                self.tensors[name] = part.clone().as_strided(shape, stride)

    def _start_missing(self, network: Network, keys: dict[str, str]) -> None:
        """Give start values to the weights of `network` (on the meta device) that the set does not have."""
        for path, layer in network.named_modules():
            names = [name for name in layer.state_dict() if "." not in name]
            if not names or keys[f"{path}.{names[0]}"] in self.tensors:
                continue
            # On the CPU, so that every device starts from the same values.
            layer.to_empty(device="cpu", recurse=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, "weight set", keys[f"{path}.{names[0]}"]))
                cast(Any, layer).reset_parameters()
            state = layer.state_dict()
            for name in names:
                self.tensors[keys[f"{path}.{name}"]] = state[name].to(self.device)


def _keys(network: Network) -> dict[str, str]:
    """The weight set's name for each name in the network's state dict."""
    edges = {cell: _edge_names(network.genotype, cell) for cell in cells_of(network.genotype)}
    keys = {}
    for name in network.state_dict():
        match = OPERATION.fullmatch(name)
        if match is None:
            keys[name] = name
        else:
            cell, edge, rest = match.groups()
            kind = str(network.cells[int(cell)].kind)
            keys[name] = f"{cell}/{edges[kind][int(edge)]}/{rest}"
    return keys


def _edge_names(genotype: AnyGenotype, cell: str) -> list[str]:
    """ "node/input/operation/copy" for each edge of a cell, the first node 0."""
    edges = edges_of(genotype, cell)
    first = edges[0][2]
    names: list[str] = []
    for place, (operation, source, node) in enumerate(edges):
        repeated = place > 0 and edges[place] == edges[place - 1]
        names.append(f"{node - first}/{source}/{operation}/{int(repeated)}")
    return names


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with its numbers side by side from the first one of its memory on."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    whole = last + 1 == tensor.numel() and tensor.storage_offset() == 0
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


class FullSize:
    """Parameters and multiply-adds of full-size networks, by adding up what each edge costs.

    Gives exactly what `model.count` gives for the network that `skeleton` names, without auxiliary head, but
    builds a network only for a shape of cell or an edge not yet seen: an edge's cost depends on its
    operation, its cell and whether it reduces, not on the other edges.
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
        self.bare: dict[AnyGenotype, tuple[int, int]] = {}
        self.edges: dict[tuple[AnyGenotype, str, str, bool], tuple[int, int]] = {}

    def __call__(self, genotype: AnyGenotype) -> tuple[int, int]:
        """(parameters, multiply_adds) of a genotype's network, the auxiliary head left out."""
        shape = bare(genotype)
        if shape not in self.bare:
            self.bare[shape] = self._count(shape)
        parameters, multiply_adds = self.bare[shape]
        for cell in cells_of(genotype):
            for operation, source in getattr(genotype, cell):
                more = self._edge(shape, cell, operation, source < 2)
                parameters, multiply_adds = parameters + more[0], multiply_adds + more[1]
        return parameters, multiply_adds

    def _edge(self, shape: AnyGenotype, cell: str, operation: str, from_input: bool) -> tuple[int, int]:
        key = (shape, cell, operation, from_input and cell == "reduce")
        if key not in self.edges:
            edges = list(getattr(shape, cell))
            # Of the last edge, which may begin at a node; there is one where the cell has a second node.
            edges[-1] = (operation, edges[-1][1] if cell == "cell" else 0 if from_input else 2)
            counted = self._count(shape._replace(**{cell: tuple(edges)}))
            base = self.bare[shape]
            self.edges[key] = (counted[0] - base[0], counted[1] - base[1])
        return self.edges[key]

    def _count(self, genotype: AnyGenotype) -> tuple[int, int]:
        # With memory, but no values: shapes are worked out faster there than on the meta device.
        return count(empty_network(self, genotype).to_empty(device="cpu"))


def bare(genotype: AnyGenotype) -> AnyGenotype:
    """A cell of the same shape whose operations have no weights and count no multiply-adds."""
    if isinstance(genotype, CompleteCell):
        return CompleteCell(tuple((FREE, source) for _, source in genotype.cell))
    normal, reduce = (((FREE, 0),) * len(getattr(genotype, cell)) for cell in cells_of(genotype))
    return genotype._replace(normal=normal, reduce=reduce)


def empty_network(size: WeightSet | FullSize, genotype: AnyGenotype) -> Network:
    """A network on the meta device: without storage, and without start values that would be thrown away."""
    with torch.device("meta"):
        return skeleton(genotype)(
            size.C,
            size.num_classes,
            size.layers,
            False,
            genotype,
            in_channels=size.in_channels,
            image_size=size.image_size,
        )
