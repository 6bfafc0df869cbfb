"""training/loop.py: one step, one epoch."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training import loop
from training.precision import grad_scaler


class Linear(nn.Module):
    """The smallest network: (N, 1, 2, 2) -> (N, 3), with batch-norm, and an auxiliary output if asked."""

    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.classifier = nn.Linear(4, 3)
        self.auxiliary = nn.Linear(4, 3) if auxiliary else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = self.norm(x).flatten(1)
        return self.classifier(features), None if self.auxiliary is None else self.auxiliary(features)


def some_batches(
    seed: int = 0, sizes: tuple[int, ...] = (8, 8, 5)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, 1, 2, 2, generator=generator) for size in sizes]
    return [(x, (x.flatten(1)[:, :3]).argmax(1)) for x in images]


def train(network: nn.Module, batches, learning_rate: float = 0.1, **more) -> loop.EpochResult:
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    scaler = grad_scaler(torch.device("cpu"), "float32")
    return loop.train_one_epoch(network, optimizer, batches, scaler=scaler, **more)


def test_an_epoch_learns_and_counts_images() -> None:
    torch.manual_seed(0)
    network = Linear()
    losses = [train(network, some_batches()).loss for _ in range(20)]
    result = train(network, some_batches())
    assert losses[-1] < 0.5 * losses[0]
    assert result.images == 21
    assert 0 <= result.error < 0.3


def test_the_loss_is_the_mean_over_images_not_over_batches() -> None:
    torch.manual_seed(0)
    network = Linear()
    batches = some_batches(sizes=(16, 2))
    means = []
    for inputs, labels in batches:  # a learning rate of 0 changes nothing but batch-norm's statistics
        means.append(nn.functional.cross_entropy(network.train()(inputs)[0], labels).item())
    result = train(network, batches, learning_rate=0.0)
    assert math.isclose(result.loss, (16 * means[0] + 2 * means[1]) / 18, rel_tol=1e-6)


def test_the_auxiliary_loss_counts_only_with_a_weight() -> None:
    def moved(weight: float) -> bool:
        torch.manual_seed(0)
        network = Linear(auxiliary=True)
        before = network.auxiliary.weight.clone()
        train(network, some_batches(), auxiliary_weight=weight)
        return not torch.equal(before, network.auxiliary.weight)

    assert moved(0.4)
    assert not moved(0.0)


def test_the_gradient_is_clipped() -> None:
    def step(clip: float) -> float:
        torch.manual_seed(0)
        network = Linear()
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        train(network, some_batches(sizes=(8,)), learning_rate=1.0, grad_clip=clip)
        return (torch.cat([p.detach().flatten() for p in network.parameters()]) - before).norm().item()

    assert math.isclose(step(1e-3), 1e-3, rel_tol=1e-2)
    assert step(100.0) > 0.1


class Plain(nn.Module):
    """Without batch-norm, so that parts of a batch give the gradients of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.auxiliary = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classifier(x.flatten(1)), self.auxiliary(x.flatten(1))


def gradients(images: torch.Tensor, labels: torch.Tensor, total: int, parts: int = 1) -> torch.Tensor:
    """Of one `train_step` of a new network; the sums that the step returns stand behind them."""
    torch.manual_seed(0)
    network = Plain()
    sums = loop.train_step(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        images,
        labels,
        images=total,
        scaler=grad_scaler(torch.device("cpu"), "float32"),
        grad_clip=1e9,
        auxiliary_weight=0.4,
        label_smoothing=0.1,
        micro_batches=parts,
    )
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None] + [sums.float()])


def test_a_step_in_parts_has_the_gradients_of_the_whole_batch() -> None:
    images, labels = some_batches(sizes=(7,))[0]
    whole = gradients(images, labels, 7)
    assert torch.allclose(gradients(images, labels, 7, parts=3), whole, atol=1e-6)
    of_half = gradients(images, labels, 14)  # another process has the other half
    assert torch.allclose(of_half[:-3], whole[:-3] / 2, atol=1e-6)
    torch.manual_seed(0)
    network, entropy = Plain(), nn.CrossEntropyLoss(label_smoothing=0.1)
    logits, logits_aux = network(images)
    loss = entropy(logits, labels)
    (loss + 0.4 * entropy(logits_aux, labels)).backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert torch.allclose(whole[:-3], expected, atol=1e-6)
    assert whole[-3].item() == pytest.approx(7 * loss.item(), rel=1e-5)
    assert whole[-1].item() == 7


def test_divergence_shows_in_the_loss() -> None:
    network = Linear()
    batches = some_batches()
    batches[1][0][0] = math.inf
    assert not math.isfinite(train(network, batches).loss)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batch to train on"):
        train(Linear(), [])


def test_a_checkpoint_is_due_after_so_many_minutes_or_steps() -> None:
    run = SimpleNamespace(step=loop.LOOK, saved_at=time.monotonic() - 90)
    for minutes, steps, expected in ((1, None, True), (2, None, False), (1, 7, False), (2, loop.LOOK, True)):
        config = SimpleNamespace(checkpoint_minutes=minutes, checkpoint_steps=steps)
        assert loop.due(run, config) == expected
    run.step += 1  # no clock is looked at between two looks
    assert not loop.due(run, SimpleNamespace(checkpoint_minutes=1, checkpoint_steps=None))
