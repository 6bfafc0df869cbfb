"""Mixed precision: one path for float32, bfloat16 and float16, on the CPU and on CUDA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision on `device`: "bfloat16" or "float16"; "float32" switches it off."""
    if precision == "float32":  # not every device has a mixed precision that could be switched off
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Loss scaling, active for float16 only: the other precisions have the range of float32."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
