"""A device that rehearses a GPU: it computes on the CPU, refuses what a GPU would refuse, and counts.

    python tests/rehearsal.py train_search --set digits --generations 2      # a script on it, and what it counted

    rehearsal.set_up()                               # once in a process; `missing()` says where it cannot be
    with rehearsal.count() as counted:
        network.to("rehearsal:0")(images.to("rehearsal:0"))
    print(counted.launches, counted.reads, counted.uploads)

PyTorch lets Python pose as a device. A tensor there wraps one on the CPU, and each of its operations passes
through `RehearsalTensor.__torch_dispatch__`. What it cannot show: speed, memory, the order of a GPU's streams,
the rounding and the memory layouts of its kernels, and NCCL (processes exchange by gloo).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
NAME = "rehearsal"
DEVICES = 2
HALF = (torch.bfloat16, torch.float16)
aten = torch.ops.aten

# ---- what is counted


@dataclass
class Count:
    """What a stretch of a program asked of the device.

    A launch is an operation that makes a GPU work: no view, no memory alone, no copy from or to the host. One
    on lists of tensors launches for every 110 to 30 of them, depending on how many lists there are. A read
    makes the host wait for the device. An upload that is not both pinned and non-blocking makes it wait, too.
    """

    operations: Counter[str] = field(default_factory=Counter)  # launches by operation
    casts: int = 0  # launches that only change the precision
    reads: list[str] = field(default_factory=list)  # each as "operation at file:line"
    uploads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # those that block are reads as well
    uploaded: int = 0  # bytes
    downloaded: int = 0  # bytes
    pageable: int = 0  # uploads that are not both pinned and non-blocking
    messages: int = 0  # to other processes

    @property
    def launches(self) -> int:
        return self.operations.total()

    def __str__(self) -> str:
        return (
            f"{self.launches} launches, of them {self.casts} casts; {len(self.reads)} reads, "
            f"{len(self.uploads)} uploads ({self.pageable} pageable, {self.uploaded} bytes), "
            f"{len(self.downloads)} downloads ({self.downloaded} bytes), {self.messages} messages"
        )


_counting: list[Count] = []


@contextlib.contextmanager
def count() -> Iterator[Count]:
    """Count what the device is asked for until the end of the block."""
    counted = Count()
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


def _at(func: Any) -> str:
    """The operation, and the line of the project that asked for it; the backward pass has none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file != Path(__file__) and file.is_relative_to(ROOT) and ".venv" not in file.parts:
            return f"{func} at {file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return f"{func}"


NO_KERNEL = {"_local_scalar_dense", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}
LIST_LIMITS = (110, 64, 48, 36, 30)  # tensors in one launch on one list, on two, ... (MultiTensorApply.cuh)


def _note_launch(func: Any, args: Any, out: Any) -> None:
    name = func.overloadpacket.__name__
    if func.is_view or name in NO_KERNEL:
        return
    launches = 1
    if name.startswith(("_foreach", "_fused", "_amp_foreach")):
        lists = [x for x in (*args, out) if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
        if lists:
            launches = -(-len(lists[0]) // LIST_LIMITS[min(len(lists), len(LIST_LIMITS)) - 1])
    cast = name == "_to_copy" and out.dtype != args[0].dtype
    for counted in _counting:
        counted.operations[name] += launches
        counted.casts += cast


def _note_read(func: Any) -> None:
    where = _at(func) if _counting else ""
    for counted in _counting:
        counted.reads.append(where)


def _note_upload(func: Any, source: Tensor, non_blocking: bool) -> None:
    where, size = _at(func) if _counting else "", source.numel() * source.element_size()
    for counted in _counting:
        counted.uploads.append(where)
        counted.uploaded += size
        counted.pageable += not (non_blocking and is_pinned(source))


def _note_download(func: Any, source: Tensor, non_blocking: bool) -> None:
    if not non_blocking:
        _note_read(func)
    where, size = _at(func) if _counting else "", source.numel() * source.element_size()
    for counted in _counting:
        counted.downloads.append(where)
        counted.downloaded += size


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

    # With these two a module keeps its parameters, as objects, when it moves here: as it does on its way to CUDA.
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
        _note_download("torch.save", self, False)
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
        _note_download(func, args[0], kwargs.get("non_blocking", False))
        return func(args[0].held, **kwargs)
    if func.namespace == "c10d":
        return _exchange(func, args, kwargs)
    _check(func, args, tensors, device)
    _check_generator(func, kwargs.get("generator"), device)
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)
    out = func(*_unwrap(args), **{name: _unwrap(value) for name, value in kwargs.items()})
    if func is aten._local_scalar_dense.default or _size_depends_on_values(func, args):
        _note_read(func)
    _note_launch(func, args, out)
    wrapped = _wrap(out, target, {id(x.held): x for x in tensors if isinstance(x, RehearsalTensor)})
    for tensor in tensors:
        if isinstance(tensor, RehearsalTensor) and tensor.shape != tensor.held.shape:
            raise NotImplementedError(f"{func}: changes the shape of a tensor in place, which {NAME} cannot do")
    return wrapped if target.type == NAME else out


def _size_depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the host must see values before it can go on."""
    if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
        return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1]))
    if func is aten._local_scalar_dense.default:
        return True
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(func.tags)


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor], device: torch.device) -> None:
    """Raise WrongDevice for what CUDA refuses: tensors of several devices.

    Tensors without dimensions may be on the CPU where the operation goes element by element; so may the indices
    of `index`, which are then copied.
    """
    for tensor in tensors:
        if tensor.device == device:
            continue
        elementwise = torch.Tag.pointwise in func.tags and tensor is not args[0]
        if tensor.device.type == "cpu" and tensor.dim() == 0 and elementwise:
            continue
        if tensor.device.type == "cpu" and func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            if any(tensor is index for index in _tensors(args[1])):
                _note_upload(func, tensor, False)
                continue
        raise WrongDevice(f"{_at(func)}: a tensor {tuple(tensor.shape)} is on {tensor.device}, another on {device}")


def _check_generator(func: Any, generator: torch.Generator | None, device: torch.device) -> None:
    """Raise WrongDevice for a generator of another device. PyTorch hands over ours as an ordinary one."""
    found = generator if generator is None else _generators.get(generator._cdata, generator)
    if found is not None and found.device != device:
        raise WrongDevice(f"{_at(func)}: the generator is on {found.device}, the tensor on {device}")


def _copy(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`target.copy_(source)`, whatever their devices are."""
    if not isinstance(target, RehearsalTensor):
        _note_download(func, source, non_blocking)
    elif not isinstance(source, RehearsalTensor):
        _note_upload(func, source, non_blocking)
    else:
        _note_launch(func, (target, source), target)
    _unwrap(target).copy_(_unwrap(source))
    return target


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """A copy that PyTorch makes where it has switched `__torch_dispatch__` off, as in `new_tensor`."""
    return _copy(aten.copy_.default, target, source, non_blocking)


def _exchange(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A message to other processes, by the backend that the CPU has."""
    for counted in _counting:
        counted.messages += 1
    known = {id(x.held): x for x in _tensors(args) if isinstance(x, RehearsalTensor)}
    out = func(*_unwrap(args), **kwargs)
    return _wrap(out, torch.device(NAME, 0), known)

# ---- the device

_generators: weakref.WeakValueDictionary[int, Generator] = weakref.WeakValueDictionary()


class Generator(torch.Generator):
    """A generator of the device, or an ordinary one; PyTorch makes none for a device written in Python."""

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


class Module:
    """What `torch.rehearsal` offers, as `torch.cuda` does for CUDA."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return DEVICES

    def current_device(self) -> int:
        return 0

    def set_device(self, device: torch.device) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return list(HALF)


MAKERS = (
    "empty.memory_format empty_strided zeros ones full scalar_tensor arange arange.start arange.start_step "
    "rand rand.generator randn randn.generator randint randint.low randint.generator randint.low_generator "
    "randperm randperm.generator linspace"
).split()
LOWERED = "conv2d conv2d.padding linear matmul mm addmm bmm baddbmm".split()  # autocast's lists for CUDA, as far
RAISED = "softmax.int log_softmax.int nll_loss cumsum cumprod".split()  # as a network or a loss here needs them
PROMOTED = "cat stack addcmul addcdiv dot".split()

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

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend([library, every])
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in MAKERS:
        library.impl(name, functools.partial(_make, _overload(name)), "PrivateUse1")
    rules = [(name, _lower) for name in LOWERED] + [(name, _raise) for name in RAISED]
    for name, rule in rules + [(name, _promote) for name in PROMOTED]:
        library.impl(name, functools.partial(rule, _overload(name)), "AutocastPrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("is_pinned", lambda x, device=None: is_pinned(x), "CPU")
    library.impl("_pin_memory", lambda x, device=None: _pin(x), "CPU")
    # In the thread that asks for it: PyTorch makes threads for devices at a process's first backward pass, which
    # may have been before there was this one.
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
    _note_launch(func, args, out)
    return RehearsalTensor(out, device)


def is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned


def _pin(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


# ---- autocast, without its memory for weights that are used twice: no network here has any


def _beneath(func: Any, args: Any, kwargs: Any, change: Callable[[Tensor], torch.dtype]) -> Any:
    """Run an operation without autocast, on arguments in other precisions."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cast(entry) for entry in value]
        eligible = isinstance(value, Tensor) and value.device.type == NAME and value.is_floating_point()
        if not eligible or value.dtype == torch.float64:
            return value
        return value.to(change(value))

    with torch._C._ExcludeDispatchKeyGuard(key):
        return func(*cast(args), **{name: cast(value) for name, value in kwargs.items()})


def _lower(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _beneath(func, args, kwargs, lambda tensor: torch.get_autocast_dtype(NAME))


def _raise(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _beneath(func, args, kwargs, lambda tensor: torch.float32)


def _promote(func: Any, *args: Any, **kwargs: Any) -> Any:
    widest = torch.get_autocast_dtype(NAME)
    if any(tensor.dtype == torch.float32 for tensor in _tensors(args)):
        widest = torch.float32
    return _beneath(func, args, kwargs, lambda tensor: widest)


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
