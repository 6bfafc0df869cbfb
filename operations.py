"""The candidate operations of a cell, in the shapes and with the state-dict names that DARTS gave them.

    from operations import OPS
    edge = OPS["sep_conv_3x3"](16, 1, True)   # channels, stride, affine batch-norm

An operation maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)). Every one that begins with a
ReLU also has `after_relu`, which takes the rectified input: a cell rectifies each of its states once for all
edges.

An operation of your own is an entry in `OPS`, and nothing else: a function of channels, stride and affine
that gives a module. It must not change its input in place; `check` tries it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from common.kernels import Depthwise, concatenate, halves, quick


class Convolution(nn.Conv2d):
    """A 2-d convolution without bias, quick on the meta device.

    There it skips its random start, and `forward` works out the shape alone: PyTorch's own way takes 20
    times longer.
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(C_in, C_out, kernel, stride, padding, dilation, groups, bias=False)
        self._padding = (padding, padding) if isinstance(padding, int) else padding
        # What `Depthwise` does: odd square kernels, "same" padding, and one of the two cases that it makes
        # faster.
        self._quick = (
            groups == C_in == C_out
            and isinstance(kernel, int)
            and padding == dilation * (kernel // 2)
            and dilation in (1, 2)
            and (dilation == 2 or kernel > 3)
        )

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if self._quick and quick(x):
            return Depthwise.apply(x, self.weight, self.stride[0], self.dilation[0])
        if x.is_meta:
            shape = zip(x.shape[2:], self.kernel_size, self.stride, self._padding, self.dilation, strict=True)
            size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in shape]
            return x.new_empty((len(x), self.out_channels, *size))
        return super().forward(x)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation; on the meta device it skips its start values and its arithmetic.

    It does not count its batches itself, which would be a launch for each layer: a network counts them for
    all its layers at once.
    """

    def reset_parameters(self) -> None:
        if self.running_mean is None or not self.running_mean.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return torch.empty_like(x)
        if not self.training or self.momentum is None:
            return super().forward(x)
        means, variances = self.running_mean, self.running_var
        return F.batch_norm(x, means, variances, self.weight, self.bias, True, self.momentum, self.eps)


class ReLUFirst(nn.Module, ABC):
    """An operation whose first step is a ReLU; `after_relu` is the rest of it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.after_relu(F.relu(x))

    @abstractmethod
    def after_relu(self, x: Tensor) -> Tensor:
        """The operation on an input that is rectified already."""


class ReLUSequence(ReLUFirst):
    """ReLU and then the given layers, kept as `op` (the ReLU is `op.0`, as in the published state dicts)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), *layers)

    def after_relu(self, x: Tensor) -> Tensor:
        layers = iter(self.op)
        next(layers)
        for layer in layers:
            x = layer(x)
        return x


class ReLUConvBN(ReLUSequence):
    """ReLU, convolution, batch-norm: (N, C_in, H, W) -> (N, C_out, H', W')."""

    def __init__(
        self, C_in: int, C_out: int, kernel: int, stride: int, padding: int, affine: bool = True
    ) -> None:
        super().__init__(Convolution(C_in, C_out, kernel, stride, padding), BatchNorm(C_out, affine=affine))


class SepConv(ReLUSequence):
    """Depthwise separable convolution, applied twice; the first one takes the stride."""

    def __init__(
        self, C_in: int, C_out: int, kernel: int, stride: int, padding: int, affine: bool = True
    ) -> None:
        super().__init__(
            Convolution(C_in, C_in, kernel, stride, padding, groups=C_in),
            Convolution(C_in, C_in, 1),
            BatchNorm(C_in, affine=affine),
            nn.ReLU(inplace=True),
            Convolution(C_in, C_in, kernel, 1, padding, groups=C_in),
            Convolution(C_in, C_out, 1),
            BatchNorm(C_out, affine=affine),
        )


class DilConv(ReLUSequence):
    """Depthwise separable convolution with a dilated kernel, applied once."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        super().__init__(
            Convolution(C_in, C_in, kernel, stride, padding, dilation, groups=C_in),
            Convolution(C_in, C_out, 1),
            BatchNorm(C_out, affine=affine),
        )


class FactorizedReduce(ReLUFirst):
    """Halves the image: two 1x1 convolutions of stride 2 side by side, the second one shifted by a pixel.

    (N, C_in, H, W) -> (N, C_out, ceil(H / 2), ceil(W / 2)). Where H or W is odd the shifted image is one row
    or column short; zeros complete it (the published code fails there).
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        # Of stride 1, as `Halves` has left out the pixels between already.
        self.conv_1 = Convolution(C_in, C_out // 2, 1)
        self.conv_2 = Convolution(C_in, C_out - C_out // 2, 1)
        self.bn = BatchNorm(C_out, affine=affine)

    def after_relu(self, x: Tensor) -> Tensor:
        even, odd = halves(x)
        return self.bn(concatenate([self.conv_1(even), self.conv_2(odd)]))


class ConvPair(nn.Sequential):
    """ReLU, a 1x7 and a 7x1 convolution, batch-norm (AmoebaNet's `conv_7x1_1x7`)."""

    def __init__(self, C: int, stride: int, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            Convolution(C, C, (1, 7), (1, stride), (0, 3)),
            Convolution(C, C, (7, 1), (stride, 1), (3, 0)),
            BatchNorm(C, affine=affine),
        )


class Identity(nn.Module):
    """The skip connection of stride 1. Drop path never drops it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    """The operation `none`: zeros of the output's size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda C, stride, affine: Zero(stride),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": lambda C, stride, affine: Identity() if stride == 1 else FactorizedReduce(C, C, affine),
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine),
    "conv_7x1_1x7": lambda C, stride, affine: ConvPair(C, stride, affine),
    "nor_conv_1x1": lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0, affine),
    "nor_conv_3x3": lambda C, stride, affine: ReLUConvBN(C, C, 3, stride, 1, affine),
}


def check(names: Sequence[str], channels: Sequence[int] = ()) -> None:
    """ValueError unless a search can use these operations: one that does not work, or none has weights.

    They are tried with 4 channels, and with those numbers that are given.
    """
    for C in channels:
        for name in names:
            weights_of(name, C)
    if not sum([weights_of(name) for name in names]):
        raise ValueError(
            f"--operations {' '.join(names)}: none of them has weights, so nothing would be learnt"
        )


def weights_of(name: str, C: int = 4) -> int:
    """How many weights an operation has, of so many channels and stride 1, after a trial.

    ValueError names the operation where it does not do what a cell expects.
    """
    try:
        return _try(name, C)
    except Exception as error:  # whatever code that is not ours may raise
        raise ValueError(f"operation {name} does not work: {str(error) or type(error).__name__}") from error


def _try(name: str, C: int) -> int:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for stride, size in ((2, 3), (1, 5)):
            module, images = OPS[name](C, stride, True), torch.randn(2, C, 5, 5)
            _check_module(module)
            given = images.clone()
            _check_images(module(given), stride, (2, C, size, size))
            if not torch.equal(given, images):
                raise ValueError("it changes its input in place")
            _check_layers(module)
            _check_state(name, C, stride, module)
            # What a network costs is counted on a batch without images.
            _check_images(module.eval()(images[:0]), stride, (0, C, size, size))
    return sum(weight.numel() for weight in module.parameters())


def _check_module(module: Any) -> None:
    """ValueError for what is no module, or has weights whose shapes only its first images tell."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"it gives a {type(module).__name__}, not a module (torch.nn.Module)")
    for layer in module.modules():
        if isinstance(layer, LazyModuleMixin):
            raise ValueError(
                f"{type(layer).__name__} has its weights after its first images only; give it its channels"
            )


def _check_images(found: Any, stride: int, needed: tuple[int, ...]) -> None:
    """ValueError unless `found` are images of the shape `needed`."""
    if not isinstance(found, Tensor):
        raise ValueError(f"it makes a {type(found).__name__} of images, not a tensor")
    if found.shape != needed:
        given = (needed[0], 4, 5, 5)
        raise ValueError(f"of stride {stride} it makes {tuple(found.shape)} of {given}; needed is {needed}")


def _check_layers(module: nn.Module) -> None:
    """ValueError where a weight cannot be drawn: the weight set asks its layer to."""
    for path, layer in module.named_modules():
        own = [name for name in layer.state_dict() if "." not in name]
        if own and not hasattr(layer, "reset_parameters"):
            where = f"{path}.{own[0]}".lstrip(".")
            raise ValueError(
                f"{type(layer).__name__} has weights ({where}) and no method reset_parameters to draw them"
            )


def _check_state(name: str, C: int, stride: int, module: nn.Module) -> None:
    """ValueError unless the state dict is all that an operation keeps: networks are built without memory."""
    with torch.device("meta"):
        other = OPS[name](C, stride, True)
    other.load_state_dict(module.state_dict(), assign=True)
    kept = [*other.parameters(), *other.buffers()]
    kept += [value for part in other.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    if any(tensor.is_meta for tensor in kept):
        raise ValueError("it keeps a tensor that is no part of its state dict; make it a buffer")
