"""What has no better home: words from one process, seeds for one purpose, an interval, a lock, files written
whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".part"


def say(*words: object) -> None:
    """Print what a user should know, from the first process only; stderr is kept for what is wrong."""
    if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":
        print(*words, flush=True)


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, e.g. `derive_seed(seed, "batches", generation, pair)`."""
    text = ":".join(str(part) for part in (seed, *purpose)).encode()
    return (zlib.crc32(text) << 31) ^ zlib.crc32(text[::-1])


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a probability, after `share` of `count` independent trials (Wilson 1927)."""
    z = 1.959964
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


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


def write_atomically(path: str | Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file so that, at every moment, its old or its new content is there whole.

    `mode` is its permissions. Raises OSError that names the file, e.g. for a full disk; the old content then
    stays. A killed program may leave a file behind whose name `temporary_files` knows.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # mkstemp makes it private; a result is as readable as any other file
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def temporary_files(folder: Path) -> list[Path]:
    """What `write_atomically` left in a folder when the program was killed."""
    return sorted(folder.glob(f".*{TEMPORARY}"))
