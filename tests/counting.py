"""What a program asks of the rehearsal device: launches, casts, reads by the host, copies."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
OWN = ("counting.py", "rehearsal.py")  # not where an operation is asked for


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


def at(func: Any) -> str:
    """The operation, and the line of the project that asked for it, if only by starting a backward pass."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if (file := _of_project(frame.f_code.co_filename)) is not None:
            return f"{func} at {file}:{frame.f_lineno}"
        frame = frame.f_back
    return f"{func}"


@functools.cache
def _of_project(name: str) -> str | None:
    file = Path(name)
    if file.name in OWN or ".venv" in file.parts or not file.is_relative_to(ROOT):
        return None
    return str(file.relative_to(ROOT))


NO_KERNEL = "_local_scalar_dense _unsafe_view empty empty_like empty_strided new_empty new_empty_strided"
LIST_LIMITS = (110, 64, 48, 36, 30)  # tensors in one launch on one list, on two, ... (MultiTensorApply.cuh)


def note_launch(func: Any, args: Any, out: Any) -> None:
    name = func.overloadpacket.__name__
    if not _counting or func.is_view or name in NO_KERNEL.split():
        return
    launches, cast = 1, name == "_to_copy" and out.dtype != args[0].dtype
    if name.startswith(("_foreach", "_fused", "_amp_foreach")):
        lists = [x for x in (*args, out) if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
        launches = -(-len(lists[0]) // LIST_LIMITS[min(len(lists), len(LIST_LIMITS)) - 1])
    for counted in _counting:
        counted.operations[name] += launches
        counted.casts += cast


def note_read(func: Any) -> None:
    for counted in _counting:
        counted.reads.append(at(func))


def note_upload(func: Any, source: Tensor, non_blocking: bool, pinned: bool) -> None:
    for counted in _counting:
        counted.uploads.append(at(func))
        counted.uploaded += source.nbytes
        counted.pageable += not (non_blocking and pinned)


def note_message() -> None:
    for counted in _counting:
        counted.messages += 1


def note_download(func: Any, source: Tensor, non_blocking: bool) -> None:
    if not non_blocking:
        note_read(func)
    for counted in _counting:
        counted.downloads.append(at(func))
        counted.downloaded += source.nbytes
