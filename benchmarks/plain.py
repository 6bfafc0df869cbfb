"""The plain path that the benchmarks of networks compare with: what a straightforward program does.

Every operation rectifies its own input, batch-norm stays batch-norm, tensors are contiguous, gradients come
from PyTorch's own functions, images are augmented one after the other, and a candidate builds all operations
of the search space.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from genotypes import PRIMITIVES
from images import sets
from operations import OPS, FactorizedReduce, ReLUSequence


class Reduce(nn.Module):
    """Two 1x1 convolutions of stride 2, the second one shifted by a pixel; for even sizes."""

    def __init__(self, ours: FactorizedReduce) -> None:
        super().__init__()
        self.relu, self.bn = nn.ReLU(), layer(ours.bn)
        self.conv_1, self.conv_2 = (layer(conv) for conv in (ours.conv_1, ours.conv_2))
        for convolution in (self.conv_1, self.conv_2):
            setattr(convolution, "stride", (2, 2))  # noqa: B010  ours have left out pixels before

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def layer(ours: nn.Module) -> nn.Module:
    """PyTorch's own layer in place of one of ours, with the same tensors in contiguous memory."""
    if isinstance(ours, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        theirs: nn.Module = nn.Conv2d(**{name: getattr(ours, name) for name in names}, bias=False)
    elif isinstance(ours, nn.BatchNorm2d):
        theirs = nn.BatchNorm2d(ours.num_features)
    elif isinstance(ours, ReLUSequence):
        return nn.Sequential(*(layer(part) for part in ours.op))
    elif isinstance(ours, FactorizedReduce):
        return Reduce(ours)
    else:
        return ours
    theirs.load_state_dict(ours.state_dict())
    return theirs


class PlainCell(nn.Module):
    """A cell as its formula reads; `everything` builds the operations that it does not use as well."""

    def __init__(self, ours: Any, everything: bool) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = layer(ours.preprocess0), layer(ours.preprocess1)
        self.operations = nn.ModuleList(layer(operation) for operation in ours._ops)
        self.indices, self.concat = ours._indices, ours._concat
        C = ours.preprocess1.op[1].out_channels
        self.unused = nn.ModuleList(
            OPS[name](C, 2 if ours.reduction and index < 2 else 1, True)  # never run, so as it is
            for node in range(4 if everything else 0)
            for index in range(node + 2)
            for name in PRIMITIVES
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(len(self.indices) // 2):
            edges = (2 * node, 2 * node + 1)
            first, second = (self.operations[edge](states[self.indices[edge]]) for edge in edges)
            states.append(first + second)
        return torch.cat([states[i] for i in self.concat], dim=1)


class PlainNetwork(nn.Module):
    """The network with the weights of `ours`, on the plain path, without the auxiliary head and drop path."""

    def __init__(self, ours: Any, everything: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(layer(part) for part in ours.stem))
        self.cells = nn.ModuleList(PlainCell(cell, everything) for cell in ours.cells)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(ours.classifier.in_features, ours.num_classes)
        self.classifier.load_state_dict(ours.classifier.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(self.pooling(s1).flatten(1)), None


def batches(images: sets.ImageSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches for ever, one PIL image after the other, as torchvision's pipeline makes them."""
    statistics = sets.channel_statistics(images.images)
    transform: Callable[..., Tensor] = transforms.Compose(
        [
            transforms.RandomCrop(images.image_size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*statistics),
        ]
    )
    pictures = [to_pil_image(image) for image in images.images]
    while True:
        for chosen in torch.randperm(len(images)).split(batch_size):
            if len(chosen) == batch_size:
                yield torch.stack([transform(pictures[i]) for i in chosen.tolist()]), images.labels[chosen]
