"""Mixed precision: one path for float32, bfloat16 and float16, on the CPU and on CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model import Network


def choose_precision(device: torch.device, precision: str, new: bool = True) -> str:
    """What "auto" means on `device`: bfloat16 on GPUs that compute in it, else float32.

    ValueError for float16 on the CPU, which no CPU is the faster for; not where a run goes on (`new` False),
    as earlier versions began such.
    """
    if precision == "float16" and device.type == "cpu" and new:
        raise ValueError("--precision float16: needs a GPU; allowed on the CPU are auto, float32, bfloat16")
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"


def choose_kernels(device: torch.device, deterministic: bool, one_size: bool = True) -> None:
    """Let a GPU take its fastest kernels, TF32 among them, or those that give the same bits each time.

    The fastest ones are found by trying, for each size of images anew: not where there are many sizes
    (`one_size` False). Where PyTorch has no deterministic kernel it warns. On the CPU nothing changes.
    """
    if device.type == "cpu":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may share its memory
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = one_size and not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not deterministic


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision on `device`: "bfloat16" or "float16"; "float32" switches it off."""
    if precision == "float32":  # not every device has a mixed precision that could be switched off
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Loss scaling, active for float16 only: the other precisions have the range of float32."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


class Lower(torch.autograd.Function):
    """Tensors in a lower precision, and their gradients back in their own: one launch for many of each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return _copies(list(tensors), [dtype] * len(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [(x, dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True) if x is not None]
        raised = iter(_copies([x for x, _ in found], [dtype for _, dtype in found]))
        return (None, *(None if x is None else next(raised) for x in gradients))


def _copies(tensors: list[Tensor], dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(x, dtype=dtype) for x, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(copies, tensors)
    return tuple(copies)


def lowered(network: nn.Module, precision: str) -> dict[str, Tensor]:
    """The weights that autocast lowers, by name, all lowered at once; none in float32.

    Autocast would launch a cast for each weight, and another one for its gradient. The values are the same.
    Other modules than ours are left to it; compiled ones are, as a compiler fuses the casts.
    """
    if precision == "float32" or not isinstance(network, Network):
        return {}
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = {f"{path}.{name}": x for path, m in layers for name, x in m.named_parameters(recurse=False)}
    return dict(zip(weights, Lower.apply(getattr(torch, precision), *weights.values()), strict=True))


def forward(network: nn.Module, images: Tensor, precision: str, weights: Mapping[str, Tensor]) -> Any:
    """What `network` gives for a batch in mixed precision, with the `weights` that `lowered` gave.

    Drop path's random factors are drawn before, so that a compiled network is one graph.
    """
    whole = getattr(network, "_orig_mod", network)
    factors = whole.draw_drop_path(images) if isinstance(whole, Network) else None
    given = (images,) if factors is None else (images, factors)
    with autocast(images.device, precision):
        if weights:
            return torch.func.functional_call(network, dict(weights), given)
        return network(*given)
