"""The folder of a run: its settings, log, tables and checkpoint, and how a run is taken up again.

folder = RunFolder.create("runs/first", config)       # refuses a folder that holds anything
folder.write_table("history.csv", rows)
config, folder = resume(Config)                        # from `--resume RUN` and the other flags
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import distributed
from utils import parse, write_atomically

Config = TypeVar("Config")
SETTINGS, LOG, CHECKPOINT = "config.json", "log.txt", "checkpoint.pt"


class RunFolder:
    """Paths and writing. Only the first process writes; the others may call everything all the same."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / CHECKPOINT
        self.log = logging.getLogger("pairnas")

    def create(self, config: Any) -> None:
        """Make the folder, with the settings in it. Raises ValueError where it exists and holds anything."""
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if distributed.broadcast_object(taken):
            raise ValueError(
                f"--save {self.path}: exists already; go on with --resume {self.path}, or choose a new folder"
            )
        if distributed.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            settings = dataclasses.asdict(config)
            write_atomically(self.path / SETTINGS, json.dumps(settings, indent=1) + "\n")
        distributed.barrier()

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A CSV file with a column for every key of the first row; floats in full precision."""
        if not distributed.is_main() or not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / name, text.getvalue())

    def start_log(self) -> logging.Logger:
        """Let `self.log` append to log.txt and print; it is silent in all processes but the first."""
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.handlers = [logging.NullHandler()]
        if distributed.is_main():
            to_file = logging.FileHandler(self.path / LOG)
            to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            to_screen = logging.StreamHandler(sys.stdout)
            self.log.handlers = [to_file, to_screen]
        return self.log


def new_name(what: str) -> str:
    """runs/WHAT-DATE-TIME, the folder of a run that was given no name; the same in every process."""
    return distributed.broadcast_object(f"runs/{what}-{datetime.now():%Y%m%d-%H%M%S}")


def read_settings(path: str | Path, config: type[Config]) -> Config:
    """The settings of a run. Raises ValueError for a folder that is none, or one of another program."""
    file = Path(path) / SETTINGS
    if not file.is_file():
        raise ValueError(f"--resume {path}: no run is there ({file} is missing)")
    try:
        stored = json.loads(file.read_text())
        return config(**stored)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file}: damaged: it is no JSON") from None
    except TypeError as error:
        raise ValueError(
            f"{file}: written by another program or version: {str(error).split('() ')[-1]}"
        ) from None


def resume(given: Config, free: Sequence[str], args: Sequence[str] | None = None) -> Config:
    """The settings of the run that `given.resume` names, after checking them against the command line.

    Flags that are not on the command line take the stored values. Those that are must agree, except the
    ones in `free`. Raises ValueError that names all flags that differ, with both values.
    """
    path = given.resume  # type: ignore[attr-defined]
    stored = read_settings(path, type(given))
    asked = parse(type(given), args, default=dataclasses.replace(stored, save=path, resume=path))  # type: ignore
    differing = []
    for field in dataclasses.fields(asked):  # type: ignore[arg-type]
        before, now = getattr(stored, field.name), getattr(asked, field.name)
        if before != now and field.name not in ("save", "resume", *free):
            differing.append(f"--{field.name} (was {before}, now {now})")
    if differing:
        raise ValueError(f"--resume {path}: other settings than the run's: {', '.join(differing)}")
    return asked
