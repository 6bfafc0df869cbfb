"""Training and evaluation shared by every script: one epoch, per-image losses, schedules, precision."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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
    """One pass over `batches` in training mode, one optimiser step per batch.

    `network` returns (logits, logits_aux or None). A training that diverges is not stopped here: its loss
    is not finite, and whoever called decides what that means.
    """
    network.train()
    loss_sum = error_sum = None
    images = 0
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with autocast(inputs.device, precision):
            logits, logits_aux = network(inputs)
            loss = cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
            total = loss
            if logits_aux is not None and auxiliary_weight:
                auxiliary_loss = cross_entropy(logits_aux.float(), labels, label_smoothing=label_smoothing)
                total = loss + auxiliary_weight * auxiliary_loss
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        scaler.step(optimizer)
        scaler.update()
        # Sums stay on the device: reading them each step would make a GPU wait.
        wrong = (logits.detach().argmax(1) != labels).sum()
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
