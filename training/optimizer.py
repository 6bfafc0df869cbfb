"""The optimiser of every training here: SGD with momentum, in as few launches as the device allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def sgd(network: nn.Module, config: Any, learning_rate: float) -> torch.optim.SGD:
    """SGD over all parameters that are not frozen, with momentum and weight decay of `config`."""
    return torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=fuses(next(network.parameters()).device),
    )


def fuses(device: torch.device) -> bool:
    """Whether an update reads and writes each weight once, in one kernel for many weights.

    The CPU keeps the updates whose rounding its recorded runs have.
    """
    return device.type != "cpu"
