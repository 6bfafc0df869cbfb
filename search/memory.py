"""The memory that training a full-size network takes, counted without training it.

Counted is what stays until the backward pass: every tensor that autograd keeps of a step, once, and weights,
gradients and momentum. Buffers of single operations and the allocator's own come on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from genotypes import AnyGenotype, cells_of
from model import Network
from model_search import FullSize, empty_network
from search.latency import random_cells
from spaces import Space

COUNTED = 2  # images of the batch that is counted; batch-norm needs two
COPIES = 3  # of the weights: themselves, gradients, momentum
SMALLEST = 32  # rows and columns of an image that is counted
SAMPLED = 48  # random cells that are counted
POOLED = "pool_3x3"
CONVOLUTIONS = (
    *("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"),
    *("conv_7x1_1x7", "nor_conv_1x1", "nor_conv_3x3"),
)

Part = tuple[str, str, str]  # a cell, an operation, and how it stands there


class TrainingMemory:
    """Bytes that a training step of a cell's full-size network takes, in float32, with so many images.

    Counting a network takes a tenth of a second and more, and a search asks for thousands of cells. What is
    kept is nearly a sum over the edges and over what they read, so of most cells a sum says that they are too
    large; the others are counted.
    """

    def __init__(self, size: FullSize, space: Space, batch_size: int) -> None:
        self.space, self.batch_size = space, batch_size
        self.counted, self.pixels = smaller(size)
        self._known: dict[AnyGenotype, int] = {}
        self._places: dict[Part, int] = {}
        uniform = [self(space.uniform(operation)) for operation in space.searched if operation != "none"]
        self.lightest = min(uniform)  # bytes, of cells of one operation

    def _fit(self) -> None:
        """Work out what the parts of a cell take, from cells that are counted."""
        cells = [*map(self.space.uniform, self.space.searched), *random_cells(self.space, SAMPLED, 0)]
        counted = np.array([self(cell) for cell in cells], dtype=np.float64)
        parts = [parts_of(cell) for cell in cells]
        self._places = {name: place for place, name in enumerate(sorted(set().union(*parts)))}
        rows = np.stack([self._row(part) for part in parts])
        self._costs = np.linalg.lstsq(rows, counted, rcond=None)[0]
        self._margin = 1 + 2 * float(np.abs(rows @ self._costs / counted - 1).max())

    def _row(self, parts: Mapping[Part, int]) -> np.ndarray:
        row = np.zeros(len(self._places) + 1)
        row[-1] = 1.0  # the network around the cells
        for name, count in parts.items():
            if name in self._places:
                row[self._places[name]] = count
        return row

    def __call__(self, genotype: AnyGenotype) -> int:
        if genotype not in self._known:
            # On the CPU: on the meta device autograd keeps nothing. The values do not matter.
            network = empty_network(self.counted, genotype).to_empty(device="cpu")
            weights = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
            kept = kept_bytes(network) * self.batch_size * self.pixels // COUNTED
            self._known[genotype] = kept + COPIES * weights
        return self._known[genotype]

    def within(self, genotype: AnyGenotype, limit: float) -> bool:
        """Whether it takes at most so many bytes."""
        if not self._places:
            self._fit()
        estimate = self._row(parts_of(genotype)) @ self._costs
        return bool(estimate <= self._margin * limit) and self(genotype) <= limit


def smaller(size: FullSize) -> tuple[FullSize, int]:
    """The network for smaller images, and how many times fewer pixels they have.

    What is kept grows as the pixels do, as long as both reductions halve even sides; so large images, of
    which two can take gigabytes, need not be counted as they are.
    """
    rows, columns = size.image_size if isinstance(size.image_size, tuple) else (size.image_size,) * 2
    times = 1
    while min(rows, columns) >= 2 * SMALLEST and rows % 8 == columns % 8 == 0:
        rows, columns, times = rows // 2, columns // 2, times * 4
    same = {name: getattr(size, name) for name in ("C", "num_classes", "layers", "in_channels")}
    return FullSize(**same, image_size=(rows, columns)), times


def parts_of(genotype: AnyGenotype) -> Counter[Part]:
    """How often a cell has what takes memory: edges of a kind, and inputs that some kind of edge reads."""
    found: Counter[Part] = Counter()
    for cell in cells_of(genotype):
        reads = set()
        for operation, source in getattr(genotype, cell):
            reduces = cell == "reduce" and source < 2
            found[cell, operation, "reduces" if reduces else ""] += 1
            # A pool keeps its input as it is, a convolution the rectified one; both are there once for all.
            kind = "pool" if operation.endswith(POOLED) else operation
            kind = "convolution" if kind in CONVOLUTIONS or (kind == "skip_connect" and reduces) else kind
            reads.add((source, kind))
        for source, kind in reads:
            found[cell, kind, f"read {min(source, 2)}"] += 1
    return found


def kept_bytes(network: Network) -> int:
    """Bytes that autograd keeps of a training step with COUNTED images, without weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # holds the tensors, or another one could take the place of one of them

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(torch.zeros(COUNTED, network.in_channels, *network.image_size))
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total
