"""The operations: sizes, the rectified entry, and that odd images work."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import operations
from genotypes import OPERATIONS
from operations import OPS, FactorizedReduce, ReLUFirst


def test_every_operation_of_a_genotype_exists():
    assert set(OPS) >= set(OPERATIONS)  # and those of your own


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


def broken(kind: str):
    class Own(nn.Module):
        def __init__(self, C: int, stride: int) -> None:
            super().__init__()
            self.stride, self.layer = stride, nn.Conv2d(C, C, 1, stride)
            if kind == "weights":
                self.scale = nn.Parameter(torch.ones(1))
            if kind == "tensor":
                self.kernel = torch.ones(1)
            if kind == "buffer":
                self.register_buffer("kernel", torch.ones(1), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if kind == "silent":
                raise AssertionError
            if kind == "tuple":
                return self.layer(x), x
            if kind == "no images":
                return self.layer(x) * (len(x) / len(x))
            if kind == "crash":
                raise TypeError("no idea")
            if kind == "in place":
                x.relu_()
            return self.layer(x)[:, :, : 2 if kind == "shape" else None]

    if kind == "lazy":
        return lambda C, stride, affine: nn.LazyConv2d(C, 1, stride)
    if kind == "function":
        return lambda C, stride, affine: lambda x: x[:, :, ::stride, ::stride]
    return lambda C, stride, affine: Own(C, stride)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("crash", "operation own does not work: no idea"),
        ("in place", "changes its input in place"),
        ("shape", r"of stride 2 it makes \(2, 4, 2, 3\).*needed is \(2, 4, 3, 3\)"),
        ("tensor", "keeps a tensor that is no part of its state dict"),
        ("buffer", "keeps a tensor that is no part of its state dict"),
        ("lazy", "LazyConv2d has its weights after its first images only"),
        ("function", r"it gives a function, not a module \(torch\.nn\.Module\)"),
        ("tuple", "it makes a tuple of images, not a tensor"),
        ("no images", r"operation own does not work: ZeroDivisionError|division"),
        ("silent", "operation own does not work: AssertionError"),
        ("weights", r"Own has weights \(scale\) and no method reset_parameters"),
    ],
)
def test_an_operation_that_cannot_work_is_named(kind, message, monkeypatch) -> None:
    monkeypatch.setitem(operations.OPS, "own", broken(kind))
    with pytest.raises(ValueError, match=message):
        operations.check(["own"])


def test_operations_without_weights_are_refused_and_all_ours_work() -> None:
    before = torch.random.get_rng_state()
    operations.check(list(operations.OPS))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="--operations none skip_connect: none of them has weights"):
        operations.check(["none", "skip_connect"])


def test_an_operation_that_is_wrong_at_the_channels_of_the_network_is_named(monkeypatch):
    monkeypatch.setitem(
        operations.OPS, "own", lambda C, stride, affine: nn.Conv2d(C, min(C, 7), 3, stride, padding=1)
    )
    operations.check(["own"])
    with pytest.raises(ValueError, match="operation own does not work"):
        operations.check(["own"], (4, 8))
