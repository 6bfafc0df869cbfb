"""The candidate operations of a cell, in the shapes and with the state-dict names that DARTS gave them.

    from operations import OPS
    edge = OPS["sep_conv_3x3"](16, 1, True)   # channels, stride, affine batch-norm

An operation maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)). Every one that begins with a
ReLU also has `after_relu`, which takes the rectified input: a cell rectifies each of its states once for all
edges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def to_channels_last(x: Tensor) -> Tensor:
    """The same images (N, C, H, W) in channels_last memory, one-channel images too.

    With one channel both layouts fit the memory, and PyTorch would go on with the slow one.
    """
    if x.shape[1] == 1:
        return x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def quick(x: Tensor) -> bool:
    """Whether the autograd functions below are used for `x`: measured to pay for float32 on the CPU.

    A compiler or exporter sees PyTorch's own functions, and autocast chooses the precision of those alone.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"))
    )


class Concatenation(torch.autograd.Function):
    """`torch.cat(tensors, 1)` whose gradients are dense.

    PyTorch hands back slices of the gradient. Batch-norm's backward pass on the CPU takes twenty times
    longer on a slice than on a dense tensor.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.sizes = [tensor.shape[1] for tensor in tensors]
        return torch.cat(tensors, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts = gradient.split(ctx.sizes, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Tensors (N, C_i, H, W) side by side as (N, sum of C_i, H, W)."""
    return Concatenation.apply(*tensors) if quick(tensors[0]) else torch.cat(tensors, dim=1)


class Halves(torch.autograd.Function):
    """Every second pixel of every second row, from (0, 0) and from (1, 1).

    (N, C, H, W) gives two tensors (N, C, ceil(H/2), ceil(W/2)). Where H or W is odd, zeros complete the
    second. The gradient is filled in one go; indexing would make a tensor of zeros for each step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape = x.shape
        second = x[:, :, 1::2, 1::2]
        if x.shape[2] % 2 or x.shape[3] % 2:
            second = F.pad(second, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return to_channels_last(x[:, :, ::2, ::2]), to_channels_last(second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        gradient = _spread(first, ctx.shape)
        odd = gradient[:, :, 1::2, 1::2]
        odd.copy_(second[:, :, : odd.shape[2], : odd.shape[3]])
        return gradient


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `Halves` says, for any device."""
    if quick(x):
        return Halves.apply(x)
    second = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x[:, :, ::2, ::2], second[:, :, ::2, ::2]


def _split_phases(x: Tensor) -> Tensor:
    """Every second row and column, four images of one: (N, C, H, W) -> (4N, C, ceil(H/2), ceil(W/2))."""
    N, C, H, W = x.shape
    if H % 2 or W % 2:  # a row or column of zeros is what a convolution sees beyond the border anyway
        x = F.pad(x, (0, W % 2, 0, H % 2))
        H, W = x.shape[2:]
    pixels = x.permute(0, 2, 3, 1).reshape(N, H // 2, 2, W // 2, 2, C)
    return pixels.permute(2, 4, 0, 1, 3, 5).reshape(4 * N, H // 2, W // 2, C).permute(0, 3, 1, 2)


def _merge_phases(phases: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_split_phases`, for images of `shape` (N, C, H, W)."""
    N, C, H, W = shape
    h, w = phases.shape[2:]
    pixels = phases.permute(0, 2, 3, 1).reshape(2, 2, N, h, w, C).permute(2, 3, 0, 4, 1, 5)
    merged = pixels.reshape(N, 2 * h, 2 * w, C).permute(0, 3, 1, 2)
    return merged if (2 * h, 2 * w) == (H, W) else to_channels_last(merged[:, :, :H, :W])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of "same" padding on the CPU, (N, C, H, W) -> (N, C, ceil(H/stride), ...).

    PyTorch's backward pass is slow for dilated kernels. A kernel of dilation 2 never mixes even with odd rows
    or columns, so it is an ordinary one on the four phases of the image; with stride 2 only one phase is read
    at all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.stride, ctx.dilation = stride, dilation
        ctx.save_for_backward(x, weight)
        padding = dilation * (weight.shape[2] // 2)
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        shape, stride = x.shape, ctx.stride
        gradient = to_channels_last(gradient)
        if ctx.dilation == 2 and stride == 1:
            x, gradient = _split_phases(x), _split_phases(gradient)
        elif ctx.dilation == 2:
            x, stride = to_channels_last(x[:, :, ::2, ::2]), 1
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = _gradient(gradient, x, weight, stride, of_input=True)
            if ctx.dilation == 2:
                for_x = _merge_phases(for_x, shape) if ctx.stride == 1 else _spread(for_x, shape)
        if ctx.needs_input_grad[1]:
            for_weight = _depthwise_weight_gradient(gradient, x, weight, stride)
        return for_x, for_weight, None, None


def _gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, of_input: bool) -> Tensor:
    """The gradient of a depthwise convolution's input, or else of its weight; the kernel's sides are odd."""
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    mask = [of_input, not of_input, False]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride, stride], padding, [1, 1], False, [0, 0], x.shape[1], mask
    )
    return found[0] if of_input else found[1]


def _spread(x: Tensor, shape: torch.Size) -> Tensor:
    """Zeros of `shape` with `x` in every second row and column."""
    spread = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, ::2, ::2] = x
    return spread


def _depthwise_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The weight's gradient (C, 1, k, k); PyTorch's is slow for kernels more than three columns wide.

    The three columns in the middle are a kernel of their own. Each column further out, too, is one: a column
    `shift` to the right meets the pixel `shift` to the right. Images lower than the kernel are slow as well,
    so rows of zeros, which change nothing, are added.
    """
    k, W = weight.shape[2], x.shape[3]
    if k <= 3 or stride != 1 or k // 2 >= W:
        return _gradient(gradient, x, weight, stride, of_input=False)
    if missing := max(0, k - x.shape[2]):
        x, gradient = (to_channels_last(F.pad(images, (0, 0, 0, missing))) for images in (x, gradient))
    columns = []
    for column in (*range(k // 2 - 1), k // 2, *range(k // 2 + 2, k)):
        shift = column - k // 2
        if shift == 0:
            part, here, there = weight[:, :, :, column - 1 : column + 2], gradient, x
        else:
            part = weight[:, :, :, column : column + 1]
            here = to_channels_last(gradient[:, :, :, max(0, -shift) : W - max(0, shift)])
            there = to_channels_last(x[:, :, :, max(0, shift) : W - max(0, -shift)])
        columns.append(_gradient(here, there, part, 1, of_input=False))
    return torch.cat(columns, dim=3)


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
        # What `_Depthwise` does: odd square kernels, "same" padding, and one of the two cases that it makes
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
            return _Depthwise.apply(x, self.weight, self.stride[0], self.dilation[0])
        if x.is_meta:
            shape = zip(x.shape[2:], self.kernel_size, self.stride, self._padding, self.dilation, strict=True)
            size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in shape]
            return x.new_empty((len(x), self.out_channels, *size))
        return super().forward(x)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation; on the meta device it skips its start values and its arithmetic."""

    def reset_parameters(self) -> None:
        if self.running_mean is None or not self.running_mean.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return torch.empty_like(x) if x.is_meta else super().forward(x)


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
}
