"""CPU kernels: what PyTorch does slowly when a network trains on the CPU, with the same results to rounding.

`concatenate`, `halves` and `weighted_sum` take tensors on any device; `Depthwise` is for tensors that are
`quick`. Images are (N, C, H, W). `keep_memory` is for a whole process.
"""

from __future__ import annotations

import contextlib
import ctypes
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def keep_memory() -> None:
    """Let the C library keep freed memory for the next tensor, where it is glibc's; nothing else changes.

    It would hand back tensors of more than 32 MiB at once, and each new one would be mapped and cleared page
    by page: 2.5 of the 9 s of CPU time of a step with 96 images of 32x32 in a full-size network.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 2**31 - 1)


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
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return Halves.apply(x)
    second = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x[:, :, ::2, ::2], second[:, :, ::2, ::2]


def rounds_products(x: Tensor) -> bool:
    """Whether a product is rounded before it is added up.

    The CPU keeps the rounding that its recorded runs have; others save a launch.
    """
    return x.device.type == "cpu"


class WeightedSum(torch.autograd.Function):
    """What `weighted_sum` says, in fewer launches: one for each image, and one for all of their gradients."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, scaled: tuple[int, ...], *images: Tensor) -> Tensor:
        factors = factors.to(images[0].dtype)[:, :, None, None, None]
        ctx.save_for_backward(factors)
        ctx.scaled = scaled
        total = images[0] * factors[0] if 0 in scaled else images[0]
        for place, x in enumerate(images[1:], 1):
            if place not in scaled:
                total = total + x
            elif rounds_products(x):
                total = (x * factors[place]).add_(total)
            else:
                total = torch.addcmul(total, x, factors[place])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factors,) = ctx.saved_tensors
        if len(ctx.scaled) == len(factors):
            return (None, None, *(gradient * factors))  # one launch for all
        parts = (gradient * row if place in ctx.scaled else gradient for place, row in enumerate(factors))
        return (None, None, *parts)


def weighted_sum(images: list[Tensor], factors: Tensor, scaled: tuple[int, ...]) -> Tensor:
    """The sum of images (N, C, H, W), those at the places `scaled` times their row of `factors`, (k, N)."""
    if scaled and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return WeightedSum.apply(factors, scaled, *images)
    rows = factors.to(images[0].dtype)[:, :, None, None, None]
    parts = (x * rows[place] if place in scaled else x for place, x in enumerate(images))
    return reduce(add, parts)


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


class Depthwise(torch.autograd.Function):
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
    spread = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last).zero_()
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
