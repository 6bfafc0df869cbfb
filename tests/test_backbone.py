"""dense/backbone.py and dense/models.py: maps of a full network, and what torchvision builds on them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

import genotypes
from dense.backbone import Backbone
from dense.models import LOSSES, build, costs, find
from dense.recipes import SEGMENTERS
from model import NetworkCIFAR, NetworkImageNet, count
from skeletons import NetworkNASBench201

LAST = "|nor_conv_3x3~0|nor_conv_1x1~1|skip_connect~2|"


@pytest.fixture
def network():
    return NetworkImageNet(4, 10, 5, True, genotypes.RelativeNAS).eval()


@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_every_stride_has_the_map_that_is_announced(network, size):
    body = Backbone(network)
    assert (body.strides, body.channels) == ((4, 8, 16, 32), (4, 16, 32, 64))
    maps = body(torch.rand(2, 3, *size))
    for name, stride, channels in zip(maps, body.strides, body.channels, strict=True):
        assert name == f"stride{stride}"
        assert maps[name].shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_the_maps_are_what_the_network_computes(network):
    images, seen = torch.rand(2, 3, 64, 64), []
    handle = network.cells[-1].register_forward_hook(lambda *given: seen.append(given[2].detach()))
    network(images)
    handle.remove()
    maps = Backbone(network)(images)
    assert torch.equal(maps["stride32"], F.relu(seen[0]))


def test_a_copy_is_made_without_what_no_map_needs(network):
    before = copy.deepcopy(network.state_dict())
    body = Backbone(network, (8, 16))
    assert len(body.network.cells) == 3  # the reduction at 3, and what follows, is not needed
    assert not [name for name in body.state_dict() if "classifier" in name or "auxiliary" in name]
    for parameter in body.parameters():
        nn.init.zeros_(parameter)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    whole = Backbone(network)
    parameters = sum(p.numel() for p in whole.parameters())
    assert parameters == count(network)[0] - sum(p.numel() for p in network.classifier.parameters())


def test_a_small_network_gets_further_reductions():
    network = NetworkCIFAR(4, 10, 5, False, genotypes.DARTS, in_channels=1).eval()
    assert Backbone(network).strides == (1, 2, 4)
    body = Backbone(network, (4, 8, 32))
    assert body.channels == (64, 64, 64)
    maps = body(torch.rand(1, 1, 50, 33))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(13, 9), (7, 5), (2, 2)]


@pytest.mark.parametrize("strides", [(), (16, 8), (8, 8), (12,), (2, 8), (64, 96), (8, 8192)])
def test_strides_that_cannot_be(network, strides):
    with pytest.raises(ValueError, match="stride"):
        Backbone(network, strides)


def test_a_network_without_reduction_cells_is_none():
    network = NetworkNASBench201(
        4, 10, 3, False, genotypes.lookup("|skip_connect~0|+|none~0|none~1|+" + LAST)
    )
    with pytest.raises(ValueError, match="reduction cells"):
        Backbone(network)


def test_torchvisions_pyramid_takes_the_maps(network):
    body = Backbone(network, (8, 16, 32))
    levels = FeaturePyramidNetwork(list(body.channels), 32)(body(torch.rand(1, 3, 70, 64)))
    assert [tuple(x.shape) for x in levels.values()] == [(1, 32, 9, 8), (1, 32, 5, 4), (1, 32, 3, 2)]


def test_frozen_batch_norm_neither_learns_nor_counts(network):
    body = Backbone(network, freeze_norm=True).train()
    before = copy.deepcopy(body.state_dict())
    optimizer = torch.optim.SGD([p for p in body.parameters() if p.requires_grad], 0.1)
    sum(x.sum() for x in body(torch.rand(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {name for name, value in body.state_dict().items() if not torch.equal(value, before[name])}
    norms = {name for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert changed
    assert not {name.rpartition(".")[0] for name in changed} & norms
    assert any(
        module.training
        for module in Backbone(network).train().modules()
        if isinstance(module, nn.BatchNorm2d)
    )


# --- detectors and heads

STRIDES = {"ssdlite": (16, 32, 64), "deeplabv3": (16,), "lraspp": (8, 32), "fasterrcnn": (4, 8, 16)}


def small(name, network):
    body = Backbone(network, STRIDES.get(name, (8, 16)))
    return build(name, body, 3, 64, 32)


def targets_of(name, sizes):
    if name in SEGMENTERS:
        return [torch.randint(0, 4, sizes[0]) for _ in sizes]
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 2.0, 60.0, 30.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in sizes]


@pytest.mark.parametrize("name", LOSSES)
def test_each_model_learns_and_finds(name, network):
    model = small(name, network).train()
    sizes = [(64, 64)] * 2 if name in SEGMENTERS else [(64, 70), (80, 64)]
    images = [torch.rand(3, *size) for size in sizes]
    losses = model(images, targets_of(name, sizes))
    assert set(losses) == set(LOSSES[name] or ("segmentation",))
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and "preprocess" not in n]
    assert not without
    model.eval()
    found = find(model, [torch.rand(3, 90, 75)])[0]
    if name in SEGMENTERS:
        assert (found.shape, found.dtype) == ((90, 75), torch.uint8)
        assert found.max() <= 3
    else:
        assert set(found) == {"boxes", "labels", "scores"}
        assert found["labels"].numel() == 0 or 1 <= found["labels"].min() <= found["labels"].max() <= 3


def test_segmentation_does_not_count_what_is_255(network):
    model = small("lraspp", network).train()
    images, masks = [torch.rand(3, 64, 64)] * 2, [torch.ones(64, 64, dtype=torch.int64)] * 2
    outside = [mask.clone() for mask in masks]
    for mask in outside:
        mask[:, 32:] = 255
    probabilities = model.model(torch.stack(images).sub(model.mean).div(model.std))["out"].log_softmax(1)
    expected = -probabilities[:, 1, :, :32].mean()
    assert torch.allclose(model(images, outside)["segmentation"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_head_may_begin_with_a_share_of_background(name, network):
    model = small(name, network)
    model.begin_with_background(0.9)
    lasts = [part for part in model.model.modules() if isinstance(part, nn.Conv2d) and part.out_channels == 4]
    for last in lasts:
        nn.init.zeros_(last.weight)
    shares = model.train().model(torch.rand(2, 3, 64, 64))["out"].softmax(1)
    assert torch.allclose(shares.mean((0, 2, 3)), torch.tensor([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]))


def test_costs_are_those_of_layers_counted_by_hand(network):
    model = small("lraspp", network)
    found = costs(model, 64)
    body = Backbone(network, (8, 32))
    assert found["backbone_parameters"] == sum(p.numel() for p in body.parameters())
    classifier = 10 * 64
    assert found["backbone_multiply_adds"] == count(network, 64)[1] - classifier
    # LR-ASPP: 1x1 to 128 at stride 32 (2x2) and once for the whole; both classifiers of 4 labels
    head = 64 * 128 * 4 + 64 * 128 + 16 * 4 * 64 + 128 * 4 * 64
    assert found["multiply_adds"] == found["backbone_multiply_adds"] + head
