"""Processes: started by torchrun or alone, the same code for both. gloo on the CPU, NCCL on CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.heartbeat import Heartbeat
from common.kernels import keep_memory

Value = TypeVar("Value")
# What gloo says where another process is gone.
LOST = ("onnection", "Broken pipe", "Read error", "Write error", "Socket", "Timed out", "pair closure")

_heartbeat: Heartbeat | None = None


def init(device: str = "auto") -> torch.device:
    """Join the processes that torchrun started (none: run alone) and return this process's device.

    `device` is "auto" (CUDA where there is one), "cpu", "cuda" or, for one process alone, "cuda:N". SIGTERM,
    which torchrun sends to stop its processes, then stops the program as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _die_with_torchrun()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", device) is None:
        raise ValueError(f"--device {device!r}: allowed are auto, cpu, cuda and cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch sees no CUDA device here; allowed: auto, cpu")
    chosen = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    if chosen.type == "cuda":
        if device != "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise ValueError(f"--device {device}: is one GPU; several processes need one each: --device cuda")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device {chosen}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(chosen)
    if chosen.type == "cpu":
        keep_memory()
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        global _heartbeat
        size = int(os.environ["WORLD_SIZE"])
        if size > 1:  # from the first moment on: a process that never comes is missed, too
            _heartbeat = Heartbeat(int(os.environ["RANK"]), size)
        # A process may wait for another one through a whole candidate's training, or an epoch.
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    return chosen


def _die_with_torchrun() -> None:
    """Let Linux kill this process when torchrun is killed, as nobody would stop it or see what it prints.

    It would go on, keep its run folder locked, or wait for hours for processes that never come.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def command(program: str) -> list[str]:
    """The words that start `program` in as many processes as there are now."""
    if world_size() == 1:
        return ["python", program]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    nodes = ["--nnodes", str(world_size() // here)] if world_size() > here else []
    return ["torchrun", *nodes, "--nproc_per_node", str(here), program]


def close() -> None:
    """Wait for all processes, and leave them."""
    global _heartbeat
    if dist.is_initialized():
        dist.barrier()
        if _heartbeat is not None:
            _heartbeat.stop()
            _heartbeat = None
        dist.destroy_process_group()


def stopped(error: BaseException) -> bool:
    """Whether an exception means that this process was told to stop, or that another one is gone."""
    # gloo says it in words; NCCL and the store have classes of their own.
    in_words = isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
    several = int(os.environ.get("WORLD_SIZE", world_size())) > 1  # they may not have met yet
    lost = several and (in_words or isinstance(error, dist.DistError))
    return lost or isinstance(error, KeyboardInterrupt)


def stop_calmly() -> None:
    """Ignore further Ctrl-C and SIGTERM, so that the last words are not cut short."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value that process `source` passes, in every process. For small plain values."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def from_main(read: Callable[[], Value]) -> Value:
    """What `read()` gives in the first process, which alone calls it, in all of them; or what it raises.

    So that all go on from the same file, whatever each of them would see on a network drive.
    """
    found: Any = None
    if is_main():
        try:
            found = (read(), None)
        except (ValueError, OSError, MemoryError) as error:
            found = (None, error)
    value, problem = broadcast_object(found)
    if problem is not None:
        raise problem
    return value


def check_equal(**values: str | int) -> None:
    """Raise ValueError, in all processes, where one of them has another value than the first.

    Processes that disagree would train a mixture of networks, or wait for each other for ever.
    """
    found = gather_objects(values)
    for number, theirs in enumerate(found):
        for name in values:
            if theirs[name] != found[0][name]:
                raise ValueError(
                    f"process {number} has other {name} than the first one ({theirs[name]}, not "
                    f"{found[0][name]}): do all of them see the same files?"
                )


def checksum(tensors: Iterable[Tensor]) -> str:
    """The same text for the same bits, in eight hexadecimal digits."""
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.numpy(force=True).tobytes(), total)
    return f"{total:08x}"


def gather_objects(value: Any) -> list[Any]:
    """The values that all processes pass, by their rank, in every process. For small plain values."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def broadcast_(tensors: Sequence[Tensor], source: int) -> None:
    """Overwrite `tensors` in place with those of process `source`; one message for each dtype."""
    if not dist.is_initialized():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.broadcast(flat, src=source)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def sum_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor in place by its sum over all processes."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor in place by its mean over all processes, in one message; all of one dtype."""
    if dist.is_initialized() and tensors:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.div_(world_size()).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message; all processes must have the same ones."""
    if dist.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device, or the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
