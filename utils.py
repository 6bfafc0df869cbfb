"""What has no better home: words from one process, seeds for one purpose, an interval, a lock, files written
whole.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TEMPORARY = ".part"


def say(*words: object) -> None:
    """Print what a user should know, from the first process only; stderr is kept for what is wrong.

    Where nobody reads any more (`| head`) the program goes on: its files are wanted all the same.
    """
    if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":
        try:
            print(*words, flush=True)
        except OSError as error:
            stop_printing()
            if not isinstance(error, BrokenPipeError):
                raise OSError(f"stdout: cannot be written: {error.strerror}") from None


def stop_printing() -> None:
    """Let stdout lead nowhere, else Python complains of it once more as it ends."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, e.g. `derive_seed(seed, "batches", generation, pair)`."""
    text = ":".join(str(part) for part in (seed, *purpose)).encode()
    return (zlib.crc32(text) << 31) ^ zlib.crc32(text[::-1])


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """The generator of one purpose: equal arguments give equal numbers, whatever was drawn elsewhere."""
    import numpy as np  # here, as it would make --help wait

    return np.random.default_rng(np.random.SeedSequence([seed, *purpose]))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a probability, after `share` of `count` independent trials (Wilson 1927).

    It is within 0 to 1 and contains the share: at shares of 0 and 1, rounding alone would leave that one out.
    """
    z = 1.959964
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(share, low)), min(1.0, max(share, high))


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception means that there was no memory; PyTorch's is a RuntimeError, on any device."""
    words = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in words or "out of memory" in words


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, or a file made for it, until the block ends or the process dies.

    Where there are no such locks (network drives, read-only folders) the block runs unlocked.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            import filelock  # here, as it would make --help wait

            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            filelock.lock_descriptor(descriptor)
        yield


def write_atomically(
    path: str | Path, content: str | bytes, mode: int | None = None, new: bool = False
) -> None:
    """Write a file so that, at every moment, its old or its new content is there whole.

    `mode` is its permissions (else those of any new file). Raises OSError that names the file, e.g. for a
    full disk; the old content then stays. With `new` that is FileExistsError where the file exists already. A
    killed program may leave a file behind whose name `temporary_files` knows.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _name_first(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _name_first(temporary: Path, path: Path) -> None:
    """Give a file its name, which no other one may have: FileExistsError."""
    try:
        os.link(temporary, path)  # the only way that fails where a name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Let a new name in a folder outlive a loss of power, where the system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_files(folder: Path) -> list[Path]:
    """What `write_atomically` left in a folder when the program was killed."""
    return sorted(folder.glob(f".*{TEMPORARY}"))
