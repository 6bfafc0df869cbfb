"""Full networks: `NetworkCIFAR` and `NetworkImageNet`, with the interface and the state dicts of DARTS.

    network = NetworkCIFAR(36, 10, 20, True, genotypes.RelativeNAS)
    logits, logits_aux = network(images)               # (N, 10), and the same or None
    parameters, multiply_adds = count(network)         # of the network that is evaluated

Built inside `with torch.device("meta")` a network costs a few milliseconds and no memory; its tensors are
then assigned with `load_state_dict(state, assign=True)`. A forward pass holds no tensors beside parameters
and buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cells import IN_WORDS, AnyGenotype, Genotype
from common.kernels import concatenate, quick, to_channels_last, weighted_sum
from operations import OPS, BatchNorm, Convolution, FactorizedReduce, Identity, ReLUConvBN, ReLUFirst

SMALLEST_MAP = 2  # rows and columns that must be left before the classifier: 8x8 images under two reductions


class Edges(nn.Module):
    """The operations of a cell's edges, and the state that each begins at: what cells of every kind share."""

    _ops: nn.ModuleList
    _indices: tuple[int, ...]

    def _node(
        self, edges: Sequence[int], states: list[Tensor], rectified: dict[int, Tensor], masks: Tensor | None
    ) -> Tensor:
        """The sum of these edges, after drop path."""
        outs = [self._edge(edge, states, rectified) for edge in edges]
        if masks is None:
            return reduce(add, outs)
        first, last = edges[0], edges[-1]
        neighbours = last - first + 1 == len(edges)
        factors = masks[first : last + 1] if neighbours else torch.stack([masks[edge] for edge in edges])
        scaled = [place for place, edge in enumerate(edges) if not isinstance(self._ops[edge], Identity)]
        return weighted_sum(outs, factors, tuple(scaled))

    def _edge(self, edge: int, states: list[Tensor], rectified: dict[int, Tensor]) -> Tensor:
        operation, index = self._ops[edge], self._indices[edge]
        if isinstance(operation, ReLUFirst):
            if index not in rectified:
                rectified[index] = F.relu(states[index])
            return operation.after_relu(rectified[index])
        return operation(states[index])


class Cell(Edges):
    """One cell: each node adds two edges, the output concatenates the nodes of `concat`.

    `forward` takes the *rectified* outputs of the two cells before, (N, C_prev_prev, ...) and (N, C_prev,
    ...), and returns (N, len(concat) * C, H, W). Every reader of a cell's output begins with a ReLU, so it
    is applied once.
    """

    def __init__(
        self, genotype: Genotype, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        self.preprocess0: ReLUFirst = (
            FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        edges, concat = (
            (genotype.reduce, genotype.reduce_concat)
            if reduction
            else (genotype.normal, genotype.normal_concat)
        )
        self.reduction = reduction
        self.kind = "reduce" if reduction else "normal"
        self._indices = tuple(index for _, index in edges)
        self._concat = tuple(concat)
        self._steps = len(edges) // 2
        self.multiplier = len(self._concat)
        self._reads0 = 0 in self._indices or 0 in self._concat
        self._reads1 = 1 in self._indices or 1 in self._concat
        self.runs_everything = False
        self._ops = nn.ModuleList(
            OPS[name](C, 2 if reduction and index < 2 else 1, True) for name, index in edges
        )

    def forward(self, r0: Tensor, r1: Tensor, masks: Tensor | None = None) -> Tensor:
        """`masks`, (edges, N), are drop path's factors: 0, or 1 / (1 - probability)."""
        # An input that no edge reads is not preprocessed (r0 and r1 only hold its place in the list then).
        s0 = self.preprocess0.after_relu(r0) if self._reads0 or self.runs_everything else r0
        s1 = self.preprocess1.after_relu(r1) if self._reads1 or self.runs_everything else r1
        states = [s0, s1]
        rectified: dict[int, Tensor] = {}
        for node in range(self._steps):
            states.append(self._node((2 * node, 2 * node + 1), states, rectified, masks))
        return concatenate([states[i] for i in self._concat])


class AuxiliaryPool(nn.Module):
    """Pools any image to 2x2: the published 5x5 average where that gives 2x2, else an adaptive one.

    (N, C, H, W) -> (N, C, 2, 2); `stride` is 3 for CIFAR and 2 for ImageNet.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if all(size >= 5 and (size - 5) // self.stride == 1 for size in x.shape[2:]):
            return F.avg_pool2d(x, 5, self.stride, padding=0, count_include_pad=False)
        return F.adaptive_avg_pool2d(x, 2)


class AuxiliaryHead(ReLUFirst):
    """The second classifier, after two thirds of the cells: (N, C, H, W) -> (N, num_classes).

    `after_relu` takes the cell's output rectified already. The published ImageNet head has no batch-norm
    after its second convolution (`last_norm`).
    """

    def __init__(self, C: int, num_classes: int, stride: int, last_norm: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            AuxiliaryPool(stride),
            Convolution(C, 128, 1),
            BatchNorm(128),
            nn.ReLU(inplace=True),
            Convolution(128, 768, 2),
            *([BatchNorm(768)] if last_norm else []),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def after_relu(self, x: Tensor) -> Tensor:
        return self.classifier(self.features[1:](x).flatten(1))


class Network(nn.Module, ABC):
    """What both networks share: the stack of cells, drop path, the heads.

    `image_size` is (rows, columns) or one number for both, 32 or 224 unless given. ValueError names the
    argument that cannot work. DARTS users set the attribute `drop_path_prob`. `drop_path_generator` may be
    on any device: before the cells run, each forward pass in training mode draws a uniform number for every
    edge and image, whatever the operations are, so networks with equal generators drop the same edges of the
    same images.
    """

    takes: type[AnyGenotype] = Genotype
    default_image_size = 32
    stem_reduction = 1  # how many times smaller the stem makes the image
    stem_numbers = 3.0  # in the stem's largest tensor, for each pixel of the image and each of C channels
    auxiliary_stride = 3
    auxiliary_last_norm = True

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        auxiliary: bool,
        genotype: AnyGenotype,
        in_channels: int = 3,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        image_size = image_size or self.default_image_size
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self._layers, self._auxiliary = layers, auxiliary
        self.C, self.num_classes, self.genotype = C, num_classes, genotype
        self.check_genotype(genotype)
        self._check(C, num_classes, layers, in_channels, size)
        self.in_channels, self.image_size = in_channels, size
        self.drop_path_prob = 0.0
        self.drop_path_generator: torch.Generator | None = None
        self._build_cells(*self._build_stem(in_channels, C))
        self._norms = self._find_norms()

    @classmethod
    def check_genotype(cls, genotype: AnyGenotype) -> None:
        """Raise ValueError where the genotype is of another kind than this network stacks."""
        if not isinstance(genotype, cls.takes):
            needed, given = IN_WORDS[cls.takes], IN_WORDS[type(genotype)]
            raise ValueError(f"{cls.__name__} needs {needed}, and this architecture is {given}")

    @classmethod
    def smallest_image(cls, layers: int) -> int:
        """Rows (and columns) that an image needs for a network of so many layers."""
        return SMALLEST_MAP * cls.stem_reduction * 2 ** len({layers // 3, 2 * layers // 3})

    def _check(self, C: int, num_classes: int, layers: int, in_channels: int, size: tuple[int, ...]) -> None:
        numbers = {"C": C, "num_classes": num_classes, "layers": layers, "in_channels": in_channels}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        smallest = self.smallest_image(layers)
        if len(size) != 2 or min(size) < smallest:
            raise ValueError(
                f"image_size {'x'.join(map(str, size))} is too small: {type(self).__name__} with {layers} "
                f"layers makes images {smallest // SMALLEST_MAP} times smaller and needs at least "
                f"{smallest}x{smallest}"
            )

    @abstractmethod
    def _build_stem(self, in_channels: int, C: int) -> tuple[int, int, bool]:
        """Build the stem: the channels of its two outputs; whether the second is of half the size."""

    def _build_cells(self, C_prev_prev: int, C_prev: int, reduction_prev: bool) -> None:
        C, layers = self.C, self._layers
        reductions = (layers // 3, 2 * layers // 3)
        self.cells = nn.ModuleList()
        assert isinstance(self.genotype, Genotype)
        for i in range(layers):
            reduction = i in reductions
            C = 2 * C if reduction else C
            cell = Cell(self.genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if self._auxiliary and i == 2 * layers // 3:
                self.auxiliary_head = AuxiliaryHead(
                    C_prev, self.num_classes, self.auxiliary_stride, self.auxiliary_last_norm
                )
        self.classifier = nn.Linear(C_prev, self.num_classes)

    def largest_map(self) -> int:
        """Numbers in the largest tensor that one image becomes: the stem's, or the first cell's output."""
        pixels, first = self.image_size[0] * self.image_size[1], self.cells[0]
        assert isinstance(first, Cell)
        cell = first.multiplier / (2 if first.reduction else 1) / self.stem_reduction**2
        return round(pixels * self.C * max(self.stem_numbers, cell))

    def _find_norms(self) -> list[BatchNorm]:
        """The batch-norms that run in training: all but those of inputs that no edge reads."""
        cells = [cell for cell in self.cells if isinstance(cell, Cell)]
        idle = [cell.preprocess0 for cell in cells if not cell._reads0]
        idle += [cell.preprocess1 for cell in cells if not cell._reads1]
        left_out = {layer for module in idle for layer in module.modules()}
        return [layer for layer in self.modules() if isinstance(layer, BatchNorm) and layer not in left_out]

    def count_norms(self, frozen: Collection[nn.Module] = ()) -> None:
        """Let the batch-norms that there are now count their batches, but for the `frozen` ones."""
        self._norms = [norm for norm in self._find_norms() if norm not in frozen]

    def draw_drop_path(self, x: Tensor) -> Tensor | None:
        """Drop path's factors for a batch (N, ...): one row for each edge of each cell, in their order.

        They are 0 or 1 / (1 - drop_path_prob), in the dtype of `x`; None where nothing is dropped.
        """
        p = float(self.drop_path_prob)
        if not 0.0 <= p < 1.0:
            raise ValueError(f"drop_path_prob is {p}: it must lie in [0, 1)")
        if not self.training or p == 0.0:
            return None
        generator = self.drop_path_generator
        device = x.device if generator is None else generator.device
        draws = torch.rand(sum(self._edges()), len(x), generator=generator, device=device)
        return (draws >= p).to(x.device, x.dtype) / (1.0 - p)

    def _edges(self) -> list[int]:
        return [len(cell._ops) for cell in self.cells if isinstance(cell, Edges)]

    def _begin(self, x: Tensor, factors: Tensor | None) -> Sequence[Tensor | None]:
        """What a forward pass begins with: batch-norms count the batch; drop path's factors for each cell.

        They are (edges, N), in the precision that the cells compute in.
        """
        if self.training:  # some layers may be frozen
            layers = [layer for layer in self._norms if layer.training and layer.momentum is not None]
            if layers:
                torch._foreach_add_([cast(Tensor, layer.num_batches_tracked) for layer in layers], 1)
        factors = self.draw_drop_path(x) if factors is None else factors
        if factors is None:
            return [None] * len(self.cells)
        if torch.is_autocast_enabled(x.device.type):
            factors = factors.to(torch.get_autocast_dtype(x.device.type))
        return factors.split(self._edges())

    @abstractmethod
    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two rectified inputs of the first cell."""

    def forward(self, x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images (N, in_channels, H, W) to (logits, auxiliary logits or None), each (N, num_classes).

        The auxiliary logits exist in training mode and with an auxiliary head only. `factors` are those of
        `draw_drop_path`, drawn here unless given: a compiled network must be given them, as no compiler knows
        generators.
        """
        masks = self._begin(x, factors)
        logits_aux = None
        if quick(x):  # every step is faster in this layout
            x = to_channels_last(x)
        r0, r1 = self._stem(x)
        for i, cell in enumerate(self.cells):
            out = cell(r0, r1, masks[i])
            auxiliary = self._auxiliary and self.training and i == 2 * self._layers // 3
            last = i + 1 == self._layers  # what the classifier averages is not rectified
            if auxiliary or not last:
                r0, r1 = r1, F.relu(out, inplace=not last)
            if auxiliary:
                logits_aux = self.auxiliary_head.after_relu(r1)
        return self.classifier(out.mean((2, 3))), logits_aux

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The rectified outputs of both stems and of every cell, one after the other, with drop path.

        Images (N, in_channels, H, W) of any size; what the heads would make of the maps is left out.
        """
        masks = self._begin(x, None)
        r0, r1 = self._stem(to_channels_last(x) if quick(x) else x)
        yield r0
        yield r1
        for cell, mask in zip(self.cells, masks, strict=True):
            r0, r1 = r1, F.relu(cell(r0, r1, mask), inplace=True)
            yield r1


class NetworkCIFAR(Network):
    """The network for small images: a 3x3 stem to 3 C channels, then cells, two of them reductions.

    The smallest image is 8x8 for three or more layers.
    """

    def _build_stem(self, in_channels: int, C: int) -> tuple[int, int, bool]:
        self.stem = nn.Sequential(Convolution(in_channels, 3 * C, 3, padding=1), BatchNorm(3 * C))
        return 3 * C, 3 * C, False

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rectified = F.relu(self.stem(x))
        return rectified, rectified


class NetworkImageNet(Network):
    """The network for large images: stems that shrink them eightfold, then cells, two of them reductions.

    The smallest image is 64x64 for three or more layers.
    """

    default_image_size = 224
    stem_reduction = 8
    stem_numbers = 1 / 8  # C / 2 channels at half the height and width
    auxiliary_stride = 2
    auxiliary_last_norm = False

    def _build_stem(self, in_channels: int, C: int) -> tuple[int, int, bool]:
        if C < 2:
            raise ValueError(f"C is {C}: the stem of NetworkImageNet halves it, so it must be at least 2")
        self.stem0 = nn.Sequential(
            Convolution(in_channels, C // 2, 3, stride=2, padding=1),
            BatchNorm(C // 2),
            nn.ReLU(inplace=True),
            Convolution(C // 2, C, 3, stride=2, padding=1),
            BatchNorm(C),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(inplace=True), Convolution(C, C, 3, stride=2, padding=1), BatchNorm(C)
        )
        return C, C, True

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r0 = F.relu(self.stem0(x))
        return r0, F.relu(self.stem1[1:](r0))


def count(network: Network, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """Parameters and multiply-adds of the network as it is evaluated: (parameters, multiply_adds).

    Parameters leave out the auxiliary head, which evaluation does not run. Multiply-adds are those of one
    image through every convolution and linear layer, used or not; additions, pooling, ReLU and batch-norm
    count nothing (the convention of DARTS). `image_size` is the network's own unless given. Only shapes are
    computed: on the meta device, or with a batch of no images on a real one.
    """
    size = image_size or network.image_size
    rows, columns = (size, size) if isinstance(size, int) else size
    first = next(network.parameters())
    shape = (1 if first.is_meta else 0, network.in_channels, rows, columns)
    images = torch.empty(shape, device=first.device, dtype=first.dtype)
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary"))
    return parameters, multiply_adds(network, images)


def multiply_adds(module: nn.Module, images: Any) -> int:
    """Multiply-adds of one image through `module`, as `count` counts them; its mode is kept.

    `images` is what `module` takes: a batch of one image, or of none. A layer that runs once for each of many
    regions of the image counts for each.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += layer.weight.numel() * output.shape[2:].numel() * max(1, len(output))

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    cells = [m for m in module.modules() if isinstance(m, Cell)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    training = module.training
    try:
        module.eval()
        for cell in cells:
            cell.runs_everything = True
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
        for cell in cells:
            cell.runs_everything = False
        module.train(training)
    return total


def load_network_state(network: nn.Module, state: Mapping[str, Tensor], assign: bool = False) -> None:
    """Load a state dict of this project or a published one into `network`.

    A prefix `module.` (of DataParallel) is dropped from the keys, and so is the auxiliary head where the
    network has none. Everything else must fit: ValueError names the first keys that are missing, unknown or
    of another shape, and the network is unchanged. `assign` takes the tensors themselves instead of copying.
    """
    given = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = network.state_dict()
    if not any(key.startswith("auxiliary_head.") for key in wanted):
        given = {key: value for key, value in given.items() if not key.startswith("auxiliary_head.")}
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} is unknown" for key in given if key not in wanted]
    problems += [
        f"{key} has shape {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    problems += [
        f"{key} holds no plain numbers"
        for key in wanted
        if key in given and (given[key].is_sparse or given[key].is_meta or given[key].is_complex())
    ]
    if problems:
        rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"the weights belong to another network: {'; '.join(problems[:3])}{rest}")
    if assign:  # without the numbers' type, which copying would have kept
        given = {key: value.to(wanted[key].dtype) for key, value in given.items()}
    network.load_state_dict(given, assign=assign)
