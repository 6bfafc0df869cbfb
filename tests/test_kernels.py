"""kernels.py: values, gradients and memory layouts are PyTorch's."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from common.kernels import concatenate, halves, to_channels_last, weighted_sum
from operations import Convolution


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3), (16, 5), (12, 12)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 1), (5, 2), (7, 1), (7, 2)])
def test_quick_depthwise_convolutions_equal_pytorchs(size, stride, kernel, dilation):
    padding = dilation * (kernel // 2)
    convolution = Convolution(6, 6, kernel, stride, padding, dilation, groups=6)
    x = torch.randn(3, 6, *size, requires_grad=True)
    out = convolution(x)
    plain = F.conv2d(x, convolution.weight, None, stride, padding, dilation, 6)
    assert "Depthwise" in type(out.grad_fn).__name__, "the quick way was not taken"
    gradient = torch.randn_like(plain)
    ours = torch.autograd.grad(out, (x, convolution.weight), gradient)
    pytorchs = torch.autograd.grad(plain, (x, convolution.weight), gradient)
    assert out.shape == plain.shape
    for a, b in zip((out, *ours), (plain, *pytorchs), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 4)])
def test_halves_and_concatenation_have_the_right_gradients(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    quick = concatenate(list(halves(x)))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # PyTorch's own functions are used under autocast
        plain = concatenate(list(halves(x)))
    assert "Concatenation" in type(quick.grad_fn).__name__
    assert "Concatenation" not in type(plain.grad_fn).__name__
    assert torch.equal(quick, plain)
    gradient = torch.randn_like(plain)
    assert torch.equal(torch.autograd.grad(quick, x, gradient)[0], torch.autograd.grad(plain, x, gradient)[0])


def test_gradients_of_a_concatenation_are_dense():
    parts = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    gradient = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(concatenate(parts), parts, gradient)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in gradients)


@pytest.mark.parametrize("scaled", [(0, 1), (0,), (1,), (0, 1, 2), (0, 2), (1, 2), (), (0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weighted_sum_is_that_of_products(scaled, dtype):
    count = max(scaled, default=1) + 1
    images = [torch.randn(5, 6, 3, 4).to(dtype, memory_format=torch.channels_last) for _ in range(count)]
    images = [x.requires_grad_() for x in images]
    factors = torch.randint(2, (count, 5)) / 0.7
    rows = factors.to(dtype)[:, :, None, None, None]
    plain = sum(x * rows[place] if place in scaled else x for place, x in enumerate(images))
    ours = weighted_sum(images, factors, scaled)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours, plain), "recorded runs have these bits"
    gradient = torch.randn(5, 6, 3, 4).to(dtype, memory_format=torch.channels_last)
    gradients = torch.autograd.grad(ours, images, gradient)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in gradients)
    for a, b in zip(gradients, torch.autograd.grad(plain, images, gradient), strict=True):
        assert torch.equal(a, b)


def test_another_device_adds_products_up_without_rounding_them(monkeypatch):
    images, factors = list(torch.randn(2, 5, 6, 3, 4)), torch.rand(2, 5)
    found = weighted_sum(images, factors, (0, 1))
    monkeypatch.setattr("common.kernels.rounds_products", lambda x: False)
    other = weighted_sum(images, factors, (0, 1))
    assert torch.allclose(other, found, atol=1e-5)
    assert not torch.equal(other, found)


def test_channels_last_of_one_channel_has_its_strides():
    assert to_channels_last(torch.randn(2, 1, 4, 5)).stride() == (20, 1, 5, 1)
    assert to_channels_last(torch.randn(2, 3, 4, 5)).stride() == (60, 1, 15, 3)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("kept", [True, False])
def test_memory_of_large_tensors_is_used_again(kept):
    program = """
import resource, sys
import torch
from common.kernels import keep_memory
if sys.argv[1] == "True":
    keep_memory()
faults = []
for size in (96 << 20, 48 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size, dtype=torch.uint8).fill_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[1] < faults[0] / 4)
"""  # in a process of its own: another test may have kept the memory of this one
    command = [sys.executable, "-c", program, str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [str(kept)], done.stderr
