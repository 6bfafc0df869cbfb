"""The network of NAS-Bench-201 (Dong and Yang 2020, arXiv 2001.00326), and which network a genotype is for.

    genotype = genotypes.lookup("|nor_conv_3x3~0|+|...")
    network = NetworkNASBench201(16, 10, 15, False, genotype)       # as published, for ten classes
    skeleton(genotype)                                              # NetworkCIFAR, or NetworkNASBench201

Small images only: the networks for large ones stack normal and reduction cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cells import AnyGenotype, CompleteCell, edges_of
from common.kernels import quick, to_channels_last
from model import Edges, Network, NetworkCIFAR
from operations import OPS, BatchNorm, Convolution, ReLUConvBN, Zero


class GraphCell(Edges):
    """A complete cell: every node adds up its edges, the last one is the output. (N, C, H, W) stays so."""

    kind = "cell"

    def __init__(self, genotype: CompleteCell, C: int) -> None:
        super().__init__()
        edges = edges_of(genotype, self.kind)
        self._indices = tuple(source for _, source, _ in edges)
        self._nodes = tuple(node for *_, node in edges)
        self._ops = nn.ModuleList(OPS[name](C, 1, True) for name, *_ in edges)

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """`masks`, (edges, N), are drop path's factors: 0, or 1 / (1 - probability)."""
        states, rectified = [x], dict[int, Tensor]()
        for node in range(1, self._nodes[-1] + 1):
            edges = [edge for edge in range(len(self._ops)) if self._nodes[edge] == node]
            edges = [edge for edge in edges if not isinstance(self._ops[edge], Zero)]
            states.append(self._node(edges, states, rectified, masks) if edges else torch.zeros_like(x))
        return states[-1]


class ResidualReduction(nn.Module):
    """The residual block between two stages: (N, C, H, W) -> (N, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, C: int, C_out: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(C, C_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(C_out, C_out, 3, 1, 1)
        # Where H or W is odd the last window is cut off at the edge (the published code fails there).
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.downsample = nn.Sequential(pool, Convolution(C, C_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class NetworkNASBench201(Network):
    """The network of NAS-Bench-201: three stages of equal cells, a residual reduction before two of them.

    As published with 16 channels and 15 cells. `layers` counts the cells; the stages begin where the other
    networks reduce, after a third and two thirds of them. There is no auxiliary head.
    """

    takes = CompleteCell

    def _check(self, C: int, num_classes: int, layers: int, in_channels: int, size: tuple[int, ...]) -> None:
        super()._check(C, num_classes, layers, in_channels, size)
        if self._auxiliary:
            raise ValueError("auxiliary: the network of NAS-Bench-201 has no auxiliary head")

    def _build_stem(self, in_channels: int, C: int) -> tuple[int, int, bool]:
        self.stem = nn.Sequential(Convolution(in_channels, C, 3, padding=1), BatchNorm(C))
        return C, C, False

    def _build_cells(self, C_prev_prev: int, C_prev: int, reduction_prev: bool) -> None:
        assert isinstance(self.genotype, CompleteCell)
        C, self._starts = C_prev, (self._layers // 3, 2 * self._layers // 3)
        self.cells, self.reductions = nn.ModuleList(), nn.ModuleList()
        for i in range(self._layers):
            if i in self._starts:
                self.reductions.append(ResidualReduction(C, 2 * C))
                C = 2 * C
            self.cells.append(GraphCell(self.genotype, C))
        self.lastact = nn.Sequential(BatchNorm(C), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(C, self.num_classes)

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x, x

    def largest_map(self) -> int:
        return self.image_size[0] * self.image_size[1] * self.C

    def forward(self, x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, None]:
        """Images (N, in_channels, H, W) to (logits (N, num_classes), None); `factors` as in `Network`."""
        masks, reductions = self._begin(x, factors), iter(self.reductions)
        x, _ = self._stem(to_channels_last(x) if quick(x) else x)
        for i, cell in enumerate(self.cells):
            if i in self._starts:
                x = next(reductions)(x)
            x = cell(x, masks[i])
        return self.classifier(self.lastact(x).mean((2, 3))), None


SMALL = (NetworkCIFAR, NetworkNASBench201)  # the networks for small images


def skeleton(genotype: AnyGenotype) -> type[Network]:
    """The network for small images that `genotype` is for."""
    return next(kind for kind in SMALL if isinstance(genotype, kind.takes))
