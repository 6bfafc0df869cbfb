"""Zero-cost scores: what a network's first batch tells of it, before any training.

    scores(network, images, labels)    # {"nwot": ..., "synflow": ..., "grad_norm": ..., "snip": ...}

Each costs about as much as one training step. How well they rank cells, and with which sign, differs from
space to space (NAS-Bench-Suite-Zero, arXiv 2210.03230), so `estimates.py` measures it; the search does not
use them.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

from model import Network

NAMES = ("nwot", "synflow", "grad_norm", "snip")


def scores(network: Network, images: Tensor, labels: Tensor) -> dict[str, float]:
    """All scores of `network` at its start, on one batch (N, C, H, W), (N,); larger is more of each.

    nwot and synflow are natural logarithms already, the others are not. No path is dropped; the network stays
    as it is.
    """
    network = copy.deepcopy(network).train()
    network.drop_path_prob = 0.0
    by_gradient = _of_gradients(network, images, labels)
    return {"nwot": nwot(network, images), "synflow": synflow(network, images), **by_gradient}


class _Rectified(TorchFunctionMode):
    """Sums, over all ReLUs of a forward pass, how often each two images agree on which units are active."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.agreement = torch.zeros(count, count, dtype=torch.float64)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (F.relu, torch.relu):
            active = (result.detach().flatten(1) > 0).float()  # (N, units)
            same = active @ active.T + (1 - active) @ (1 - active).T
            self.agreement += same.double().cpu()
        return result


@torch.no_grad()
def nwot(network: nn.Module, images: Tensor) -> float:
    """log |K|, where K counts the ReLUs on which two images agree (Mellor et al., arXiv 2006.04647)."""
    with _Rectified(len(images)) as seen:
        network(images)
    return float(torch.linalg.slogdet(seen.agreement).logabsdet)


def synflow(network: nn.Module, images: Tensor) -> float:
    """log of the sum of |w dR/dw|, R the sum of the outputs for ones in, weights made positive.

    Batch-norm in evaluation mode at its start changes nothing. Source: Tanaka et al., arXiv 2006.05467.
    """
    linear = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for weight in linear.parameters():
            weight.abs_()
    total = linear(torch.ones_like(images[:1]).double())[0].sum()
    gradients = torch.autograd.grad(total, list(linear.parameters()), allow_unused=True)
    flow = sum(
        float((weight.detach() * gradient).sum())
        for weight, gradient in zip(linear.parameters(), gradients, strict=True)
        if gradient is not None
    )
    return math.log(flow) if flow > 0 else -math.inf


def _of_gradients(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Norm of the loss's gradient, and the sum of |weight x gradient| (Lee et al., arXiv 1810.02340)."""
    loss = F.cross_entropy(network(images)[0].float(), labels)
    weights = list(network.parameters())
    found = zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True)
    pairs = [(weight.detach(), gradient) for weight, gradient in found if gradient is not None]
    return {
        "grad_norm": math.sqrt(sum(float(gradient.double().square().sum()) for _, gradient in pairs)),
        "snip": sum(float((weight * gradient).abs().sum()) for weight, gradient in pairs),
    }
