"""Checkpoints: written whole or not at all, loaded without executing anything from the file.

A checkpoint is one nested dictionary of tensors and plain types in `torch.save` format, so that
`torch.load(path, weights_only=True)` reads it anywhere. NumPy arrays are stored as tensors.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import vetting
from utils import TEMPORARY, lacks_memory, write_atomically

PREVIOUS = ".previous"
VERSION = "1.0.0"  # of the project, kept in every checkpoint
# What reading bytes that are no checkpoint raises, depending on the bytes.
UNREADABLE: tuple[type[Exception], ...] = (RuntimeError, EOFError, LookupError, ValueError, TypeError)
UNREADABLE += (AttributeError, AssertionError, ArithmeticError, MemoryError)
UNREADABLE += (struct.error, zipfile.BadZipFile)
SAYS_WHY = (RuntimeError, ValueError, zipfile.BadZipFile)  # what others say is of Python's inside


def save(path: str | Path, state: dict[str, Any], keep_previous: bool = False) -> None:
    """Write `state` atomically; with `keep_previous` the file that was there stays beside it.

    Raises OSError that names the file where it cannot be written (a full disk, no permission).
    """
    path = Path(path)
    # Serialised in memory first: a full disk is then an ordinary OSError, and never half a file.
    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    if keep_previous and path.exists():
        # A link before the replacement: at no moment is there no good checkpoint.
        older = previous(path)
        spare = path.with_name(f".{older.name}{TEMPORARY}")
        spare.unlink(missing_ok=True)
        try:
            try:
                os.link(path, spare)
            except OSError:  # a file system without links
                shutil.copyfile(path, spare)
            os.replace(spare, older)
        finally:
            # Half a copy, where the disk was full; or, after such a stop, `older` had been the same file, and
            # to rename a file to itself does nothing.
            spare.unlink(missing_ok=True)
    write_atomically(path, buffer.getvalue())


def previous(path: str | Path) -> Path:
    """Where `save(path, ..., keep_previous=True)` keeps the checkpoint before the last one."""
    path = Path(path)
    return path.with_name(f"{path.stem}{PREVIOUS}{path.suffix}")


def load(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The dictionary in a checkpoint, on the CPU. Only tensors and plain types are accepted.

    Raises ValueError with one line for a missing, damaged or foreign file, and, where `kind` is given,
    for a checkpoint whose entry "kind" is another; OSError or MemoryError where the file may be good.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, no checkpoint' if path.is_dir() else 'no such checkpoint'}")
    try:
        vetting.check_file(path)
        with warnings.catch_warnings(action="ignore"):  # what it says of foreign files, we say
            state = torch.load(path, map_location="cpu", weights_only=True)
        vetting.check_claims(state, path.stat().st_size)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: refused: no checkpoint, or more than tensors and plain types, which could run code"
        ) from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UNREADABLE as error:
        if lacks_memory(error):  # which says nothing of the file
            raise MemoryError(f"{path} could not be read") from None
        reason = f": {_first_sentence(error)}" if isinstance(error, SAYS_WHY) else ""
        raise ValueError(f"{path}: damaged, or no checkpoint{reason}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not the dictionary of a checkpoint")
    if kind is not None and state.get("kind") != kind:
        raise ValueError(f"{path}: not a checkpoint of {kind}, but of {state.get('kind', 'something else')}")
    return state


def load_newest(path: str | Path, kind: str | None = None) -> tuple[dict[str, Any], str | None] | None:
    """The newest good checkpoint of the pair (path, previous(path)), and what was wrong with the newer one.

    None where there is neither. Raises ValueError where none of the two is good.
    """
    if not Path(path).exists() and not previous(path).exists():
        return None
    try:
        return load(path, kind), None
    except ValueError as error:
        try:
            state = load(previous(path), kind)
        except ValueError:
            raise error from None
        return state, f"{error}; went on from {previous(path)}"


def arrays(value: Any) -> Any:
    """The same nested value with NumPy arrays where a checkpoint keeps tensors: what `save` was given."""
    if isinstance(value, dict):
        return {key: arrays(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(arrays(entry) for entry in value)
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0][:160] or type(error).__name__


def _plain(value: Any) -> Any:
    """The same value with NumPy arrays as tensors and NumPy numbers as Python's."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):  # named tuples too: weights_only loading knows no classes
        return tuple(_plain(entry) for entry in value)
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
