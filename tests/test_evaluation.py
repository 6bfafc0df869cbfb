"""training/evaluation.py: losses by image, errors in sums, recalibration."""

from __future__ import annotations

import math

import pytest
import torch
from test_loop import Linear, some_batches, train
from torch import nn

import genotypes
from model import NetworkCIFAR, NetworkImageNet
from training import evaluation


def test_evaluation_is_by_image_in_order_and_builds_no_graph() -> None:
    torch.manual_seed(0)
    network = Linear()
    train(network, some_batches())
    batches = some_batches(1)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = evaluation.evaluate(network, batches)
    alone = [
        evaluation.evaluate(network, [(x[i : i + 1], y[i : i + 1])]).losses
        for x, y in batches
        for i in range(len(y))
    ]
    assert result.losses.shape == result.correct.shape == (21,)
    assert torch.allclose(result.losses, torch.cat(alone), atol=1e-6)
    assert not result.losses.requires_grad
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert result.error == 1 - result.correct.double().mean().item()


def test_the_cpu_takes_as_many_images_at_once_as_are_fast_with_the_same_logits() -> None:
    network = NetworkCIFAR(24, 10, 1, False, genotypes.lookup("DARTS_V2")).eval()
    assert network.largest_map() == 3 * 24 * 32 * 32
    seen: list[int] = []
    network.register_forward_hook(lambda module, inputs, outputs: seen.append(len(inputs[0])))
    images = torch.randn(100, 3, 32, 32)
    with torch.no_grad():
        logits, whole = evaluation.logits_of(network, images), network(images)[0]
    assert seen == [50, 50, 100]  # 57 images fill 16 MiB
    assert logits.std(0).min() > 0.01
    assert torch.allclose(logits, whole, rtol=0, atol=1e-5)


def test_the_largest_tensor_of_an_image_is_known() -> None:
    cell = genotypes.lookup("DARTS_V2")
    small = NetworkCIFAR(4, 10, 3, False, cell, image_size=16)
    large = NetworkImageNet(8, 10, 3, False, cell, image_size=64)
    sizes: list[int] = []
    for network in (small, large, NetworkCIFAR(4, 10, 2, False, cell, image_size=16)):
        sizes.clear()
        for module in network.modules():
            module.register_forward_hook(lambda module, inputs, outputs: sizes.append(outputs[0].numel()))
        images = torch.randn(1, 3, *network.image_size)
        network.eval()(images)
        assert network.largest_map() == max(sizes)


class Given(nn.Module):
    """Its logits are the images: (N, classes) -> (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


def test_errors_are_counted_in_the_best_and_the_best_five() -> None:
    logits = torch.tensor([6.0, 5, 4, 3, 2, 1, 0]).repeat(7, 1)  # the label's place: first, ..., seventh
    batches = [(logits[:4], torch.tensor([0, 1, 2, 3])), (logits[4:], torch.tensor([4, 5, 6]))]
    total = math.log(sum(math.exp(logit) for logit in range(7)))
    sums = evaluation.count_errors(Given(), batches)
    assert sums.dtype == torch.float64
    assert sums.tolist() == pytest.approx([7 * total - 21, 6, 2, 7], rel=1e-6)
    errors = evaluation.Errors.of(sums)
    assert (errors.error, errors.error_top5, errors.images) == (6 / 7, 2 / 7, 7)
    assert errors.loss == pytest.approx(total - 3, rel=1e-6)


def test_with_few_classes_every_label_is_among_the_best_five() -> None:
    logits = torch.tensor([[0.0, 2, 1], [2, 0, 1], [1, 2, 0]])
    loss, *counts = evaluation.count_errors(Given(), [(logits, torch.tensor([1, 1, 0]))]).tolist()
    assert counts == [2, 0, 3]
    total = math.log(1 + math.e + math.e**2)
    assert loss == pytest.approx(3 * total - (2 + 0 + 1), rel=1e-6)


def test_recalibration_is_the_plain_average_whatever_was_there() -> None:
    network = Linear()
    network.norm.running_mean.fill_(100.0)
    batches = some_batches(sizes=(8, 8))
    weight = network.classifier.weight.clone()
    evaluation.recalibrate_batch_norm(network, batches)
    expected = torch.stack([x.mean() for x, _ in batches]).mean()
    assert torch.allclose(network.norm.running_mean, expected, atol=1e-6)
    assert network.norm.momentum == 0.1
    assert torch.equal(weight, network.classifier.weight)
