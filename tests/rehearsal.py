"""A device that rehearses a GPU: it computes on the CPU, refuses what a GPU would refuse, and counts.

    python tests/rehearsal.py train_search --set digits --generations 2     # a script on it; what it counted

    rehearsal.set_up()                               # once in a process; `missing()` says where it cannot be
    with rehearsal.count() as counted:
        network.to("rehearsal:0")(images.to("rehearsal:0"))
    print(counted.launches, counted.reads, counted.uploads)

PyTorch lets Python pose as a device. A tensor there wraps one on the CPU, and each of its operations passes
through `RehearsalTensor.__torch_dispatch__`. What it cannot show: speed, memory, the order of a GPU's
streams, the rounding and the memory layouts of its kernels, and NCCL (processes exchange by gloo).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counting
import torch
from counting import Count, count
from torch import Tensor

__all__ = [
    "NAME",
    "Count",
    "RehearsalTensor",
    "WrongDevice",
    "count",
    "in_place_of_the_cpu",
    "missing",
    "set_up",
]

ROOT = Path(__file__).resolve().parent.parent
NAME = "rehearsal"
aten = torch.ops.aten

# ---- tensors


class WrongDevice(RuntimeError):
    """An operation on tensors, or with a generator, of several devices."""


class RehearsalTensor(torch.Tensor):
    """A tensor of device "rehearsal"; `held` is the one on the CPU that holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> RehearsalTensor:
        place = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=device, **place)
        self.held = held
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    # With these two a module that moves here keeps its parameters as objects, as one that moves to CUDA does.
    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(parts: Any, device: torch.device, size: Any, stride: Any) -> RehearsalTensor:
        return RehearsalTensor(parts["held"], device)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: RehearsalTensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"cannot convert a tensor of {self.device} to numpy: .cpu() first")
        return self.detach().cpu().numpy()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU: one of a GPU is saved with its device, and loaded onto the CPU."""
        counting.note_download("torch.save", self, False)
        return self.held.__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{NAME} {self.held!r}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments, nested in lists or not."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _unwrap(value: Any) -> Any:
    if isinstance(value, RehearsalTensor):
        return value.held
    return [_unwrap(entry) for entry in value] if isinstance(value, list | tuple) else value


def _wrap(value: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    """Results as tensors of `device`; what an operation gives back of its arguments stays the same object."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else RehearsalTensor(value, device)
    if isinstance(value, list | tuple):
        return type(value)(_wrap(entry, device, known) for entry in value)
    return value


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Check the devices of an operation, compute it on the CPU, note it."""
    tensors = [*_tensors(args), *_tensors(list(kwargs.values()))]
    device = next(tensor.device for tensor in tensors if isinstance(tensor, RehearsalTensor))
    if func is aten.copy_.default:
        return _copy(func, *args, **kwargs)
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else device
    if func is aten._to_copy.default and target.type == "cpu":
        counting.note_download(func, args[0], kwargs.get("non_blocking", False))
        return func(args[0].held, **kwargs)
    if func.namespace == "c10d":
        return _exchange(func, args, kwargs)
    _check(func, args, tensors, device)
    _check_generator(func, kwargs.get("generator"), device)
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)
    out = func(*_unwrap(args), **{name: _unwrap(value) for name, value in kwargs.items()})
    if _host_must_see_values(func, args):
        counting.note_read(func)
    counting.note_launch(func, args, out)
    wrapped = _wrap(out, target, {id(x.held): x for x in tensors if isinstance(x, RehearsalTensor)})
    if any(isinstance(x, RehearsalTensor) and x.shape != x.held.shape for x in tensors):
        raise RuntimeError(f"{func}: {NAME} cannot change the shape of a tensor in place")
    return wrapped if target.type == NAME else out


INDEXING = (aten.index, aten.index_put, aten.index_put_)


def _host_must_see_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether what an operation returns, or its shape, depends on values that are on the device."""
    if func.overloadpacket in INDEXING:
        return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1]))
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(func.tags)


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor], device: torch.device) -> None:
    """Raise WrongDevice for what CUDA refuses: tensors of several devices.

    Where an operation goes element by element, its further arguments may be on the CPU if they have no
    dimensions; so may the indices of `index`, which are then copied.
    """
    for tensor in tensors:
        if tensor.device == device:
            continue
        if tensor.device.type == "cpu" and tensor is not args[0]:
            if tensor.dim() == 0 and torch.Tag.pointwise in func.tags:
                continue
            if func.overloadpacket in INDEXING and any(tensor is index for index in _tensors(args[1])):
                counting.note_upload(func, tensor, False, False)
                continue
        places = f"{tuple(tensor.shape)} is on {tensor.device}, another on {device}"
        raise WrongDevice(f"{counting.at(func)}: a tensor {places}")


def _check_generator(func: Any, generator: torch.Generator | None, device: torch.device) -> None:
    """Raise WrongDevice for a generator of another device. PyTorch hands over ours as an ordinary one."""
    found = generator if generator is None else _generators.get(generator._cdata, generator)
    if found is not None and found.device != device:
        raise WrongDevice(f"{counting.at(func)}: the generator is on {found.device}, the tensor on {device}")


def _copy(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`target.copy_(source)`, whatever their devices are."""
    if not isinstance(target, RehearsalTensor):
        counting.note_download(func, source, non_blocking)
    elif not isinstance(source, RehearsalTensor):
        counting.note_upload(func, source, non_blocking, _is_pinned(source))
    else:
        counting.note_launch(func, (target, source), target)
    _unwrap(target).copy_(_unwrap(source))
    return target


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """A copy that PyTorch makes where it has switched `__torch_dispatch__` off, as in `new_tensor`."""
    return _copy(aten.copy_.default, target, source, non_blocking)


def _exchange(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A message to other processes, by the backend that the CPU has."""
    counting.note_message()
    known = {id(x.held): x for x in _tensors(args) if isinstance(x, RehearsalTensor)}
    out = func(*_unwrap(args), **kwargs)
    return _wrap(out, torch.device(NAME, 0), known)


# ---- the device

_generators: weakref.WeakValueDictionary[int, Generator] = weakref.WeakValueDictionary()


class Generator(torch.Generator):
    """One of the device, or an ordinary one: PyTorch makes none for a device written in Python."""

    _ordinary = torch.Generator
    _device: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        if torch.device(device).type != NAME:
            return cls._ordinary(device)
        self = super().__new__(cls)
        self._device = torch.device(NAME, torch.device(device).index or 0)
        _generators[self._cdata] = self
        return self

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self._device


MODULE = SimpleNamespace(  # what `torch.rehearsal` offers, as `torch.cuda` does for CUDA
    is_available=lambda: True,
    is_initialized=lambda: True,
    _is_in_bad_fork=lambda: False,
    device_count=lambda: 2,
    current_device=lambda: 0,
    manual_seed_all=lambda seed: None,
    get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
)
# What makes tensors from none.
MAKERS = (
    "empty.memory_format empty_strided zeros ones full scalar_tensor arange arange.start arange.start_step"
)
MAKERS += " linspace rand rand.generator randn randn.generator randperm randperm.generator"
MAKERS += " randint randint.low randint.generator randint.low_generator"
# Autocast's lists for CUDA, as far as a network or a loss here could need them.
LOWERED = "conv2d conv2d.padding linear matmul mm addmm bmm baddbmm"
RAISED = "softmax.int log_softmax.int nll_loss cumsum cumprod"
PROMOTED = "cat stack addcmul addcdiv dot"

_libraries: list[torch.library.Library] = []  # what is registered lasts as long as these
_pinned: dict[int, Tensor] = {}  # by the address of their memory, which is thus never used again


def missing() -> str | None:
    """Why this PyTorch cannot rehearse; None where it can."""
    import torch.utils.backend_registration as registration

    if hasattr(registration, "_setup_privateuseone_for_python_backend"):
        return None
    return f"PyTorch {torch.__version__} lets no Python pose as a device"


def set_up() -> None:
    """Make "rehearsal" a device of this process; it stays until the process ends."""
    if _libraries:
        return
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend([library, every])
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in MAKERS.split():
        library.impl(name, functools.partial(_make, _overload(name)), "PrivateUse1")
    for names, dtype in ((LOWERED, _lower), (RAISED, _raised), (PROMOTED, _widest)):
        for name in names.split():
            library.impl(name, functools.partial(_cast, _overload(name), dtype), "AutocastPrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("is_pinned", _is_pinned, "CPU")
    library.impl("_pin_memory", _pin, "CPU")
    # Backward passes stay in the thread that asks for them: PyTorch makes the threads of all devices at a
    # process's first one, which may have been before there was this device.
    torch.autograd.set_multithreading_enabled(False)
    for supported in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        supported.append(RehearsalTensor)  # as tensors of a GPU: else optimisers go tensor by tensor


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _make(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A new tensor of the device, from an operation without tensors."""
    device = torch.device(NAME, torch.device(kwargs.pop("device")).index or 0)
    kwargs.pop("pin_memory", None)
    _check_generator(func, kwargs.get("generator"), device)
    out = func(*args, **kwargs, device="cpu")
    counting.note_launch(func, args, out)
    return RehearsalTensor(out, device)


def _is_pinned(tensor: Tensor, device: torch.device | None = None) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned


def _pin(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    copy = tensor.clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


# ---- autocast, without its memory for weights that are used twice: no network here has any


def _cast(func: Any, dtype: Callable[[Any], torch.dtype], *args: Any, **kwargs: Any) -> Any:
    """Run an operation without autocast, on floating-point arguments in the precision `dtype(args)`."""
    chosen = dtype(args)

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cast(entry) for entry in value]
        ours = isinstance(value, RehearsalTensor) and value.is_floating_point()
        return value.to(chosen) if ours and value.dtype != torch.float64 else value

    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(key):
        return func(*cast(args), **{name: cast(value) for name, value in kwargs.items()})


def _lower(args: Any) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _raised(args: Any) -> torch.dtype:
    return torch.float32


def _widest(args: Any) -> torch.dtype:
    return torch.float32 if any(x.dtype == torch.float32 for x in _tensors(args)) else _lower(args)


# ---- programs


@contextlib.contextmanager
def in_place_of_the_cpu() -> Iterator[None]:
    """Give the project's programs the device where they ask for the CPU."""
    from common import distributed

    set_up()
    init = distributed.init

    def init_rehearsal(device: str = "auto") -> torch.device:
        init("cpu")  # which joins the other processes, too
        return torch.device(NAME, 0)

    distributed.init, torch.Generator = init_rehearsal, Generator  # type: ignore[misc]
    try:
        yield
    finally:
        distributed.init, torch.Generator = init, Generator._ordinary  # type: ignore[misc]


def main() -> None:
    """Run a script of the project on the device, with its flags."""
    sys.path.insert(0, str(ROOT))
    from common import flags

    script = importlib.import_module(sys.argv[1].removesuffix(".py"))
    sys.argv = [f"{script.__name__}.py", *sys.argv[2:], "--device", "cpu"]
    with in_place_of_the_cpu(), count() as counted:
        script.main(flags.parse(script.Config))
        if os.environ.get("RANK", "0") == "0":
            print(counted, flush=True)
        flags.leave_torchrun()


if __name__ == "__main__":
    if (reason := missing()) is not None:
        sys.exit(f"rehearsal.py: {reason}")
    main()
