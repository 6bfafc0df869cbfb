"""A full network as a backbone: its maps by name, as torchvision's detectors and heads take them.

body = Backbone(NetworkImageNet(46, 1000, 14, False, genotypes.RelativeNAS))
body.strides, body.channels                             # (4, 8, 16, 32), (46, 184, 368, 736)
pyramid = FeaturePyramidNetwork(list(body.channels), 256)
pyramid(body(images))                                   # {"stride4": (N, 256, H/4, W/4), ...}
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from model import Cell, Network

LARGEST_STRIDE = 4096  # a map of two pixels a side, of the largest image


class Backbone(nn.Module):
    """A copy of a full network that gives, for each of its strides, the last map of that stride, rectified.

    Images (N, in_channels, H, W) of any size become {"stride8": (N, channels, ceil(H/8), ceil(W/8)), ...}.
    `strides` chooses, rising; cells behind the last one that is needed are dropped. Strides beyond those of
    the network (32 of `NetworkImageNet`, 4 of `NetworkCIFAR`) come from further reductions. `freeze_norm`
    keeps batch-norm's statistics and weights as they are. ValueError for strides that cannot be.
    """

    def __init__(
        self, network: Network, strides: Sequence[int] | None = None, freeze_norm: bool = False
    ) -> None:
        super().__init__()
        self.genotype = network.genotype
        own = output_strides(network)
        self.strides = check_strides(own, tuple(dict.fromkeys(own)) if strides is None else strides)
        self.network = copy.deepcopy(network)
        del self.network.classifier
        if hasattr(self.network, "auxiliary_head"):
            del self.network.auxiliary_head
        self._outputs = [stride for stride in own if stride <= self.strides[-1]]
        self.network.cells = self.network.cells[: max(0, len(self._outputs) - 2)]
        self.network._norms = self.network._find_norms()  # without those of what is gone
        channels = self._channels()
        self.further = nn.ModuleList()
        while (deepest := max(channels)) < self.strides[-1]:
            before = channels[deepest]
            channels[2 * deepest] = max(64, before // 2) if self.further else min(512, before)
            self.further.append(further_reduction(before, channels[2 * deepest]))
        self.channels = tuple(channels[stride] for stride in self.strides)
        self._frozen = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) and freeze_norm]
        for norm in self._frozen:
            norm.requires_grad_(False)
        self.network.count_norms(self._frozen)
        self.train(network.training)

    @torch.no_grad()
    def _channels(self) -> dict[int, int]:
        """The channels of the network's own maps by stride, from the shapes of no image, or a meta one."""
        first = next(self.network.parameters())
        size = self.network.smallest_image(3)
        images = torch.empty(int(first.is_meta), self.network.in_channels, size, size, device=first.device)
        self.network.eval()
        return {stride: x.shape[1] for stride, x in self._maps(images.to(first.dtype)).items()}

    def _maps(self, images: Tensor) -> dict[int, Tensor]:
        """The last map of each stride: a later one takes the place of an earlier one."""
        return dict(zip(self._outputs, self.network.maps(images), strict=False))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self._maps(images)
        for block in self.further:
            deepest = max(maps)
            maps[2 * deepest] = block(maps[deepest])
        return OrderedDict((f"stride{stride}", maps[stride]) for stride in self.strides)


def output_strides(network: Network) -> list[int]:
    """Strides of the network's outputs, both stems' and every cell's; ValueError for other cells."""
    strides = [max(1, network.stem_reduction // 2), network.stem_reduction]
    for cell in network.cells:
        if not isinstance(cell, Cell):
            raise ValueError(
                f"a backbone needs a network of normal and reduction cells, not of {type(cell).__name__}"
            )
        strides.append(strides[-1] * (2 if cell.reduction else 1))
    return strides


def check_strides(own: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides; ValueError where they do not rise, or the network has no way to them."""
    chosen = tuple(strides)
    for stride in chosen:
        if stride not in own and (stride <= own[-1] or stride & (stride - 1) or stride > LARGEST_STRIDE):
            names = ", ".join(map(str, dict.fromkeys(own)))
            raise ValueError(
                f"stride {stride}: the network has {names}; beyond, powers of two to {LARGEST_STRIDE}"
            )
    if not chosen or any(low >= high for low, high in pairwise(chosen)):
        raise ValueError("strides must rise, and be one or more")
    return chosen


def further_reduction(C_in: int, C_out: int) -> nn.Sequential:
    """Half the size with few weights, (N, C_in, H, W) -> (N, C_out, ceil(H/2), ceil(W/2)).

    A depthwise convolution between two of 1x1, as SSDLite has them behind its backbone (arXiv 1801.04381).
    """
    half = C_out // 2
    return nn.Sequential(
        Conv2dNormActivation(C_in, half, kernel_size=1),
        Conv2dNormActivation(half, half, kernel_size=3, stride=2, groups=half),
        Conv2dNormActivation(half, C_out, kernel_size=1),
    )
