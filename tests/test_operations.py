"""The operations: sizes, the rectified entry, and that odd images work."""

import pytest
import torch
import torch.nn.functional as F

from genotypes import OPERATIONS
from operations import OPS, Convolution, FactorizedReduce, ReLUFirst, concatenate, halves, to_channels_last


def test_every_operation_of_a_genotype_exists():
    assert set(OPS) == set(OPERATIONS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_output_size_on_both_devices(name, stride):
    with torch.device("meta"):
        meta = OPS[name](6, stride, True)
    real = OPS[name](6, stride, True)
    for rows, columns in [(2, 2), (7, 8), (9, 5), (12, 12)]:
        x = torch.randn(3, 6, rows, columns)
        expected = (3, 6, -(-rows // stride), -(-columns // stride))
        assert real(x).shape == expected
        assert meta(x.to("meta")).shape == expected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_input_is_left_alone_and_rectified_entry_agrees(name, stride):
    operation = OPS[name](4, stride, True)
    x = torch.randn(2, 4, 6, 6)
    before = x.clone()
    out = operation(x)
    assert torch.equal(x, before)
    if isinstance(operation, ReLUFirst):
        assert torch.equal(out, operation.after_relu(F.relu(x)))


def test_average_pool_leaves_the_border_out():
    assert torch.allclose(OPS["avg_pool_3x3"](2, 1, True)(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4))


def test_factorized_reduce_reads_every_pixel_once():
    reduce = FactorizedReduce(1, 2)
    torch.nn.init.ones_(reduce.conv_1.weight)
    torch.nn.init.ones_(reduce.conv_2.weight)
    reduce.eval()
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5)
    out = reduce(x) * (1 + reduce.bn.eps) ** 0.5
    assert torch.allclose(out[0, 0], x[0, 0, ::2, ::2])
    assert torch.allclose(out[0, 1, :2, :2], x[0, 0, 1::2, 1::2])
    assert (out[0, 1, 2] == 0).all()
    assert (out[0, 1, :, 2] == 0).all()


def test_affine_can_be_off():
    assert not any("bn.weight" in name for name, _ in OPS["skip_connect"](4, 2, False).named_parameters())
    assert sum(p.dim() == 1 for p in OPS["sep_conv_3x3"](4, 1, False).parameters()) == 0


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


def test_channels_last_of_one_channel_has_its_strides():
    assert to_channels_last(torch.randn(2, 1, 4, 5)).stride() == (20, 1, 5, 1)
    assert to_channels_last(torch.randn(2, 3, 4, 5)).stride() == (60, 1, 15, 3)
