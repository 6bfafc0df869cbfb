"""Whether a file may be loaded as a checkpoint, found out from its bytes.

`torch.load(weights_only=True)` runs no code, but a file of some kilobytes can ask it for gigabytes: by
compressed entries, by constructors (`bytearray`, `torch.Tensor`), by tensors larger than their storage, and
by one object that stands in many places.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from torch import Tensor

# What tensors, parameters and plain types need; other names build things of any size.
ALLOWED = re.compile(
    r"collections OrderedDict|torch Size|torch device|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (Byte|Char|Short|Int|Long|Half|Float|Double|BFloat16|Bool|ComplexFloat|ComplexDouble)Storage"
    r"|torch (b?float|u?int)\d+|torch bool"
)
# Of the format before torch 1.6: magic number, version, system, the object, the keys of its storages.
PICKLES = 5
CLAIM = 4  # times its size that a file may hold when loaded: equal strings are stored once


def check_file(path: Path) -> None:
    """Raise ValueError for an archive (the format of `torch.save`) with compressed, overlapping or damaged
    entries, and for a file of either format that names other things than tensors are made of.

    OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # the format before torch 1.6, without checksums
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(PICKLES):
                    _check_names(content)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries overlap")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two of its entries have one name")
        bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"wrong checksum in {bad}")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                _check_names(io.BytesIO(archive.read(entry)))


def _check_names(pickled: io.BytesIO | mmap.mmap) -> None:
    """Raise ValueError where the pickle at this place names what is not allowed; move behind it.

    EOFError where it is no pickle. Both kinds of bytes give at most what they hold, whatever one claims.
    """
    for operation, argument in _operations(pickled):
        known = operation.name != "GLOBAL" or ALLOWED.fullmatch(str(argument)) is not None
        if not known or operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
            name = str(argument).replace(" ", ".") if argument else operation.name
            raise ValueError(f"refused: it holds more than tensors and plain types ({name[:80]})")


def _operations(pickled: io.BytesIO | mmap.mmap) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(cast(IO[bytes], pickled)):
            yield operation, argument
    except (ValueError, OverflowError):  # in words of pickles, which say nothing to a user
        raise EOFError from None


def check_claims(state: Any, size: int) -> None:
    """Raise ValueError where what was loaded would be far larger, written out, than its `size` bytes."""
    left, waiting = CLAIM * size, [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, Tensor):
            left -= value.numel() * value.element_size()
        left -= len(value) if isinstance(value, str) else 1
        if left < 0 or len(waiting) > CLAIM * size:
            raise ValueError(f"it claims to hold far more than its {size} bytes")
