"""Networks that only evaluate: batch-norm folded into the convolutions.

folded = fold_batch_norm(network)          # the same logits, faster
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from model import Network
from operations import FactorizedReduce

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def fold_batch_norm(network: AnyNetwork) -> AnyNetwork:
    """A copy for evaluation whose convolutions include the batch-norms after them; exact up to rounding.

    In evaluation a batch-norm multiplies and shifts each channel by constants: the convolution takes the
    factor into its weight, and the shift becomes its bias. The copy's parameters are not those of `count`.
    """
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, FactorizedReduce):
            half = module.conv_1.out_channels
            _fold(module.conv_1, module.bn, slice(0, half))
            _fold(module.conv_2, module.bn, slice(half, None))
            module.set_submodule("bn", nn.Identity())
        elif isinstance(module, nn.Sequential):
            for i, (layer, norm) in enumerate(pairwise(module)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    _fold(layer, norm, slice(None))
                    module[i + 1] = nn.Identity()
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, part: slice) -> None:
    """Give `convolution` the factors and shifts that the channels `part` of `norm` have."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    factor = norm.weight[part].double() / (norm.running_var[part].double() + norm.eps).sqrt()
    shift = norm.bias[part].double() - norm.running_mean[part].double() * factor
    weight = convolution.weight
    weight.copy_(weight.double() * factor[:, None, None, None])
    convolution.bias = nn.Parameter(shift.to(weight.dtype))
