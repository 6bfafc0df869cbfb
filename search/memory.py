"""The memory that training a full-size network takes, counted without training it.

Counted is what stays until the backward pass: every tensor that autograd keeps of a step, once, and weights,
gradients and momentum. Buffers of single operations and the allocator's own come on top.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from genotypes import AnyGenotype
from model import Network
from model_search import FullSize, empty_network

COUNTED = 2  # images of the batch that is counted; batch-norm needs two
COPIES = 3  # of the weights: themselves, gradients, momentum


class TrainingMemory:
    """Bytes that a training step of a cell's full-size network takes, in float32, with so many images."""

    def __init__(self, size: FullSize, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size
        self._known: dict[AnyGenotype, int] = {}

    def __call__(self, genotype: AnyGenotype) -> int:
        if genotype not in self._known:
            # On the CPU: on the meta device autograd keeps nothing. The values do not matter.
            network = empty_network(self.size, genotype).to_empty(device="cpu")
            weights = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
            self._known[genotype] = kept_bytes(network) * self.batch_size // COUNTED + COPIES * weights
        return self._known[genotype]


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
