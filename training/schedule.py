"""The learning rate over a training: a warm-up, then a fall along a cosine or a line."""

from __future__ import annotations

import math

import torch


def cosine(position: float, start: float, end: float) -> float:
    """The cosine schedule's value at `position` in [0, 1] (SGDR without restarts, arXiv 1608.03983)."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * position))


def factor(epoch: int, epochs: int, warmup_epochs: int, shape: str) -> float:
    """The factor of the learning rate: a linear rise in the warm-up, then "cosine" or "linear" down to 0."""
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    position = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return cosine(position, 1.0, 0.0) if shape == "cosine" else 1.0 - position


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
