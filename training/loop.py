"""Training and evaluation shared by every script: one epoch, per-image losses, schedules, precision."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import utils
from common import distributed

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, H, W), labels (N,)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class EpochResult(NamedTuple):
    loss: float  # mean training loss over the images, not finite where training diverged
    error: float  # share of wrongly classified training images, in [0, 1]
    images: int


class Evaluation(NamedTuple):
    losses: Tensor  # (N,) float32 on the CPU, cross-entropy of each image, in the order of the batches
    correct: Tensor  # (N,) bool on the CPU, whether the largest logit is the label's

    @property
    def loss(self) -> float:
        return self.losses.double().mean().item()

    @property
    def error(self) -> float:
        return 1.0 - self.correct.double().mean().item()


def choose_precision(device: torch.device, precision: str) -> str:
    """What "auto" means on `device`: bfloat16 on GPUs that compute in it, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision on `device`; `precision` is a key of PRECISIONS, "float32" switches it off."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Loss scaling, active for float16 only: the other precisions have the range of float32."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def cosine(position: float, start: float, end: float) -> float:
    """The cosine schedule's value at `position` in [0, 1] (SGDR without restarts, arXiv 1608.03983)."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * position))


def schedule(epoch: int, epochs: int, warmup_epochs: int, shape: str) -> float:
    """The factor of the learning rate: a linear rise in the warm-up, then "cosine" or "linear" down to 0."""
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    position = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return cosine(position, 1.0, 0.0) if shape == "cosine" else 1.0 - position


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def train_one_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    scaler: torch.amp.GradScaler,
    precision: str = "float32",
    grad_clip: float = 5.0,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> EpochResult:
    """One pass of one process over `batches` in training mode, one optimiser step per batch.

    Nothing is shared between processes: in a search each trains a candidate of its own, where `train_step`
    trains one network in all of them. A training that diverges is not stopped here: its loss is not finite,
    and whoever called decides what that means.
    """
    network.train()
    loss_sum = error_sum = None
    images = 0
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with autocast(inputs.device, precision):
            outputs = network(inputs)
        logits, loss, total = _losses(outputs, labels, auxiliary_weight, label_smoothing, "mean")
        scaler.scale(total).backward()
        _step(network, optimizer, scaler, grad_clip)
        # Sums stay on the device: reading them each step would make a GPU wait.
        wrong = (logits.argmax(1) != labels).sum()
        weighted = loss.detach().double() * len(labels)
        loss_sum = weighted if loss_sum is None else loss_sum + weighted
        error_sum = wrong if error_sum is None else error_sum + wrong
        images += len(labels)
    if loss_sum is None or error_sum is None:
        raise ValueError("no batch to train on: the batch size is larger than the number of images")
    return EpochResult(loss_sum.item() / images, error_sum.item() / images, images)


@torch.no_grad()
def evaluate(network: nn.Module, batches: Batches, precision: str = "float32") -> Evaluation:
    """Per-image losses and hits of `network` in evaluation mode."""
    network.eval()
    losses, correct = [], []
    for inputs, labels in batches:
        with autocast(inputs.device, precision):
            logits = network(inputs)[0].float()
        losses.append(cross_entropy(logits, labels, reduction="none"))
        correct.append(logits.argmax(1) == labels)
    return Evaluation(torch.cat(losses).cpu(), torch.cat(correct).cpu())


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    images: int,
    scaler: torch.amp.GradScaler,
    precision: str = "float32",
    grad_clip: float = 5.0,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
    micro_batches: int = 1,
) -> Tensor:
    """One optimiser step on this process's share of a batch of `images`; its sums of (loss, wrong, images).

    Gradients are summed over micro-batches and processes, of losses divided by `images`: the step of one
    process with the whole batch, but for batch-norm, which sees one micro-batch at a time.
    """
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(3, dtype=torch.float64, device=inputs.device)
    parts = min(micro_batches, max(1, len(labels) // 2))  # batch-norm needs two images
    for x, y in zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True):
        with autocast(x.device, precision):
            outputs = network(x)
        logits, loss, total = _losses(outputs, y, auxiliary_weight, label_smoothing, "sum")
        scaler.scale(total / images).backward()
        wrong = (logits.argmax(1) != y).sum()
        sums += torch.stack([loss.detach().double(), wrong.double(), sums.new_full((), len(y))])
    distributed.sum_gradients(network.parameters())
    _step(network, optimizer, scaler, grad_clip)
    return sums


def _losses(
    outputs: tuple[Tensor, Tensor | None],
    labels: Tensor,
    auxiliary_weight: float,
    label_smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detached logits, the loss of the logits, and the loss to descend, with the auxiliary head's share."""
    logits, logits_aux = outputs
    entropy = partial(cross_entropy, label_smoothing=label_smoothing, reduction=reduction)
    loss = entropy(logits.float(), labels)
    if logits_aux is None or not auxiliary_weight:
        return logits.detach(), loss, loss
    return logits.detach(), loss, loss + auxiliary_weight * entropy(logits_aux.float(), labels)


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, grad_clip: float
) -> None:
    """Clip the gradients by their norm, unscaled, and step."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()


class Errors(NamedTuple):
    """What a network gets wrong, rates in [0, 1]; `interval` is the 95% confidence interval of `error`."""

    loss: float
    error: float
    error_top5: float
    interval: tuple[float, float]
    images: int

    @classmethod
    def of(cls, sums: Tensor) -> Errors:
        """From the sums of `count_errors`, over all processes."""
        loss, wrong, wrong_top5, images = sums.tolist()
        interval = utils.wilson(wrong / images, int(images))
        return cls(loss / images, wrong / images, wrong_top5 / images, interval, int(images))

    def of_epoch(self) -> dict[str, float]:
        """Columns of epochs.csv for held-out images."""
        return {"validation_loss": self.loss, "validation_error": self.error}

    def as_result(self, part: str = "test") -> dict[str, float | int | list[float]]:
        """The entry "result" of a checkpoint; `part` says on which images it was measured."""
        values = self._asdict() | {"interval": list(self.interval)}
        return {f"{part}_{key}": value for key, value in values.items()}

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"top-1 error {self.error:.2%} (95% confidence: {low:.2%} to {high:.2%}), top-5 error "
            f"{self.error_top5:.2%}, loss {self.loss:.4f}, {self.images} images"
        )


@torch.no_grad()
def count_errors(network: nn.Module, batches: Batches, precision: str = "float32") -> Tensor:
    """Sums over `batches` in evaluation mode: (loss, wrong top-1, wrong top-5, images), float64.

    Sums, unlike means, can be added over processes whose shares differ. With five classes or fewer no label
    is ever outside the best five.
    """
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=next(network.parameters()).device)
    for inputs, labels in batches:
        with autocast(inputs.device, precision):
            logits = network(inputs)[0].float()
        best = logits.topk(min(5, logits.shape[1])).indices  # (N, 5)
        missed = (best != labels[:, None]).cumprod(1)  # whether the label is not among the first k
        losses = cross_entropy(logits, labels, reduction="none").double()
        sums += torch.stack([losses, missed[:, 0], missed[:, -1], torch.ones_like(losses)]).sum(1)
    return sums


def measure(network: nn.Module, batches: Batches, precision: str = "float32") -> Errors:
    """What the network gets wrong on the batches of all processes, each with its own share of the images.

    Batch-norm's running statistics become those of the first process, as in its checkpoints.
    """
    distributed.broadcast_(list(network.buffers()), source=0)
    sums = count_errors(network, batches, precision)
    distributed.sum_([sums])
    return Errors.of(sums)


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: Batches, precision: str = "float32") -> None:
    """Replace the running statistics of batch-norm by their plain average over `batches`.

    After weights were shared, the running statistics are those of several networks (arXiv 1907.01845).
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    network.train()
    for inputs, _ in batches:
        with autocast(inputs.device, precision):
            network(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
