"""The folder of a run: its settings, log, tables and checkpoint, and the settings of a run that goes on.

folder = RunFolder("runs/first")
folder.create(config)                     # refuses a folder that holds anything
folder.write_table("history.csv", rows)
config = resume(given, free=("device",))  # the settings of the run that `--resume` names, checked
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import logging
import os
import shlex
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import filelock
from tqdm import tqdm

from common import checkpoint, distributed
from common.flags import PLACES, SAID, parse
from utils import stop_printing, temporary_files, write_atomically

Config = TypeVar("Config")
PROGRAMS = {  # flags that, together, only a run of this program has: they tell whose settings are in a folder
    "train_search.py": ("pop_size",),
    "train_dense.py": ("strides",),
    "train_imagenet.py": ("workers", "auxiliary"),
    "train.py": ("schedule", "drop_path_prob"),
}
SETTINGS, LOG, CHECKPOINT = "config.json", "log.txt", "checkpoint.pt"


class RunFolder:
    """Paths and writing. Only the first process writes; the others may call everything all the same."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / CHECKPOINT
        self.log = logging.getLogger("pairnas")
        self._unlock: weakref.finalize[[int], RunFolder] | None = None

    def create(self, config: Any) -> None:
        """Make the folder, with the settings in it, and lock it.

        Raises ValueError where it exists and holds anything, OSError where it cannot be made.
        """
        distributed.from_main(lambda: self._create(config))

    def check_free(self) -> None:
        """Raise ValueError where the folder exists and holds anything, in all processes."""
        distributed.from_main(self._check_free)

    def _check_free(self) -> None:
        if self.path.is_file():
            raise ValueError(f"--save {self.path}: is a file; name a new folder")
        # A program that was killed in its first moment leaves half a file of settings: no run to go on with.
        free = self.path.is_dir() and set(self.path.iterdir()) <= set(temporary_files(self.path))
        if self.path.exists() and not free:
            raise ValueError(
                f"--save {self.path}: exists already; go on with --resume {self.path}, or choose a new folder"
            )

    def _create(self, config: Any) -> None:
        try:
            self._check_free()
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._check_free()  # now that it is ours
            self._sweep()
        except OSError as error:
            raise OSError(f"--save {self.path}: cannot be made: {error.strerror or error}") from None
        settings = dataclasses.asdict(config)
        write_atomically(self.path / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def lock(self) -> None:
        """Keep other programs out of the folder until this one ends, and sweep up after one that was killed.

        Raises ValueError where another program works in the folder.
        """
        distributed.from_main(self._lock_and_sweep)

    def _lock_and_sweep(self) -> None:
        if self._unlock is None:
            self._take_lock()
            self._sweep()

    def _sweep(self) -> None:
        for file in temporary_files(self.path):
            file.unlink()

    def _take_lock(self) -> None:
        # On the folder itself: no file is left behind, and the system frees it however the program ends.
        descriptor = os.open(self.path, os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, descriptor)
        # A forked worker outlives a killed program by seconds, and must not hold its lock.
        os.register_at_fork(after_in_child=self._unlock)
        with contextlib.suppress(OSError):  # network drives may have no locks
            if not filelock.lock_descriptor(descriptor, blocking=False):
                self.unlock()
                raise ValueError(f"{self.path}: another program works in this folder just now")

    def unlock(self) -> None:
        """Let other programs in."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    @contextlib.contextmanager
    def working(self, program: str) -> Iterator[None]:
        """Around the work of `program` in the folder: unlocks it, and says how to go on after a stop.

        A stop (Ctrl-C, SIGTERM, another process that is gone) leaves as KeyboardInterrupt(SAID).
        """
        try:
            yield
            distributed.close()
        except (KeyboardInterrupt, RuntimeError) as error:
            if not distributed.stopped(error):
                raise
            distributed.stop_calmly()
            go_on = [*distributed.command(program), "--resume", str(self.path)]
            self.log.info(f"stopped; go on with: {shlex.join(go_on)}")
            raise KeyboardInterrupt(SAID) from None
        finally:
            self.unlock()

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A CSV file with a column for every key of the first row; floats in full precision."""
        if not distributed.is_main() or not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / name, text.getvalue())

    def fall_back(self, problem: str) -> str:
        """Put the checkpoint before the newest one in its place, as that is damaged; it gets another name.

        Else the next one to be written would keep the damaged one beside it, and not the good one.
        Returns the newest one's `problem` with its new name.
        """
        kept = distributed.from_main(self._fall_back)
        return f"{problem}; the damaged file is kept as {kept}" if kept else problem

    def _fall_back(self) -> str | None:
        kept = None
        if self.checkpoint.exists():
            names = (self.checkpoint.with_suffix(f".damaged{number}.pt") for number in itertools.count(1))
            kept = next(name for name in names if not name.exists())
            os.rename(self.checkpoint, kept)
        os.rename(checkpoint.previous(self.checkpoint), self.checkpoint)
        return str(kept) if kept else None

    def start_log(self) -> logging.Logger:
        """Let `self.log` append to log.txt and print; it is silent in all processes but the first.

        Locks the folder. Raises ValueError where another program works in it.
        """
        self.lock()
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.handlers = [logging.NullHandler()]
        if distributed.is_main():
            to_file = _LogFile(self.path / LOG, encoding="utf-8", errors="backslashreplace")
            to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            to_screen = _Screen(sys.stdout)
            self.log.handlers = [to_file, to_screen]
        return self.log


class _LogFile(logging.FileHandler):
    """Raises what goes wrong in writing (a full disk), where `logging` would print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        with contextlib.suppress(OSError):
            self.close()  # it may try to write what is left
        if isinstance(error, OSError):
            raise OSError(f"{self.baseFilename}: cannot be written: {error.strerror or error}") from None
        super().handleError(record)


class _Screen(logging.StreamHandler):
    """Prints above a progress bar. Goes on where nobody reads any more (`| head`): log.txt has all."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode():
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            stop_printing()
        else:
            super().handleError(record)


def new_name(what: str) -> str:
    """runs/WHAT-DATE-TIME, the folder of a run that was given no name; the same in every process.

    Numbered where it is taken: by a run of the same second, or since a clock was set back.
    """
    name = f"runs/{what}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return distributed.from_main(lambda: next(free for free in names if not Path(free).exists()))


def read_settings(path: str | Path, config: type[Config], flag: str = "resume") -> Config:
    """The settings of the run that --`flag` names. ValueError for no such folder, or another program's.

    Flags that the file does not have take the values in `config.EARLIER`, or else their defaults.
    """
    file = Path(path) / SETTINGS
    if Path(path).is_file():
        raise ValueError(f"--{flag} {path}: is a file, not the folder of a run")
    if not file.is_file():
        raise ValueError(f"--{flag} {path}: no run is there ({file} is missing)")
    try:
        stored = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{file}: damaged: it is no JSON") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{file}: damaged: it holds a {type(stored).__name__}, not a run's settings")
    hints = get_type_hints(config)
    unknown = sorted(set(stored) - set(hints))
    for program, own in PROGRAMS.items():
        if set(own) <= set(stored) and set(own) & set(unknown):
            how = f"{program} --resume {path}"
            raise ValueError(f"--{flag} {path}: is a run of {program}; it goes on with: {how}")
    if unknown or not stored:
        raise ValueError(f"{file}: written by another program or version: no flags {', '.join(unknown)}")
    for name, value in stored.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{file}: damaged: {name} cannot be {json.dumps(value)[:80]}")
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return config(**getattr(config, "EARLIER", {}) | stored | lists)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a flag's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:  # tuple[str, ...]
        return isinstance(value, list) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    if get_args(hint):  # int | None
        return any(_fits(value, option) for option in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)


def resume(
    given: Config,
    free: Sequence[str],
    args: Sequence[str] | None = None,
    advise: Callable[[Config, Config], str] = lambda stored, asked: "",
) -> Config:
    """The settings of the run that `given.resume` names, after checking them against the command line.

    Flags that are not on the command line take the stored values. Those that are must agree, except the
    ones in `free`. Raises ValueError that names all flags that differ, with both values, and ends with what
    `advise` makes of the settings stored and asked for; else what `check()` of the settings raises.
    """
    path = given.resume  # type: ignore[attr-defined]
    stored = read_settings(path, type(given))
    asked = parse(type(given), args, default=dataclasses.replace(stored, save=path, resume=path))  # type: ignore
    differing = []
    for field in dataclasses.fields(asked):  # type: ignore[arg-type]
        before, now = getattr(stored, field.name), getattr(asked, field.name)
        if before != now and field.name not in (*PLACES, *free):
            differing.append(f"--{field.name} (was {_typed(before)}, now {_typed(now)})")
    if differing:
        raise ValueError(
            f"--resume {path}: other settings than the run's: {', '.join(differing)}{advise(stored, asked)}"
        )
    try:
        if hasattr(asked, "check"):
            asked.check()
    except ValueError as error:
        raise ValueError(f"--resume {path}: {error}") from None
    return asked


def _typed(value: Any) -> str:
    """A flag's value as it is typed on a command line."""
    if isinstance(value, tuple):
        return shlex.join(map(str, value))
    return "not given" if value is None else str(value)
