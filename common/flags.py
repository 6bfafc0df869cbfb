"""Flags of every script, from a dataclass, checked once; failing with one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from utils import lacks_memory, stop_printing

Config = TypeVar("Config")
SAID = "said"  # of a KeyboardInterrupt: the user has been told of the stop
PLACES = ("save", "resume")  # flags that say where a run is kept; they are no part of its settings
NUMBERS = {int: "must be a whole number", float: "must be a number"}
_rules = ConstructorRegistry()


@_rules.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How tyro reads numbers: int, float, tuple[int, ...], and each of them or None.

    Its own way refuses a wrong one in Python's words, and one that may be None by naming {None} alone.
    """
    arguments = get_args(info.type)
    optional = NoneType in arguments
    options = [one for one in arguments if one is not NoneType] if optional else [info.type]
    kind: Any = options[0] if len(options) == 1 else None
    if many := get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        kind = get_args(kind)[0]
    if kind not in NUMBERS:
        return None

    def read(words: list[str]) -> Any:
        if optional and words == ["None"]:
            return None
        found = []
        for word in words:
            try:
                found.append(kind(word))
            except ValueError:
                raise ValueError(f"{shlex.quote(word)}: {NUMBERS[kind]}") from None
        return tuple(found) if many else found[0]

    name = f"[{kind.__name__} [{kind.__name__} ...]]" if many else kind.__name__
    return PrimitiveConstructorSpec(
        nargs="*" if many else 1,
        metavar=("{None}|" if optional else "") + name.upper(),
        instance_from_str=read,
        is_instance=lambda value: True,  # asked of defaults, whose types are checked by mypy
        str_from_instance=lambda value: [
            str(one) for one in (value if isinstance(value, tuple) else [value])
        ],
    )


def parse(config: type[Config], args: Sequence[str] | None = None, default: Config | None = None) -> Config:
    """Parse the command line into the dataclass `config` and call its `check()` if it has one.

    With --resume that waits until `run_folder.resume` knows the run's settings, as only these tell whether a
    flag can be. What is not given keeps the value of `default`. A wrong flag or value ends the program with
    one line on stderr and exit code 2.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            # A default instance is passed only where there is one: None is a value to tyro.
            chosen: dict[str, Any] = {} if default is None else {"default": default}
            try:
                result = cast(
                    Config, tyro.cli(config, args=args, use_underscores=True, registry=_rules, **chosen)
                )
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # --help | head
        stop_printing()
        sys.exit(0)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        fail(_first_message(printed.getvalue()))
    try:
        if getattr(result, "resume", None) is not None:
            check_save(result)
        elif hasattr(result, "check"):
            result.check()
    except (ValueError, OSError) as error:
        fail(str(error))
    return result


def run_script(main: Callable[[Config], None], config: Config) -> None:
    """Call `main(config)`; what a user can cause becomes one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    try:
        main(config)
        leave_torchrun()
    except (ValueError, OSError) as error:
        fail(str(error))
    except MemoryError as error:
        fail(f"not enough memory: {error}")
    except RuntimeError as error:
        from common import distributed  # not above: it needs torch, which takes seconds to import

        if distributed.stopped(error):
            fail("stopped", code=130)
        if not lacks_memory(error):
            raise
        fail(f"not enough memory: {str(error).splitlines()[0]}")
    except KeyboardInterrupt as stop:
        fail("" if SAID in stop.args else "stopped", code=130)


def leave_torchrun(code: int = 0) -> None:
    """End a process that torchrun started here and now; all others end as usual.

    Threads of PyTorch that want the interpreter while it ends abort the process ("terminate called without
    an active exception"), and torchrun calls a run failed that has written everything.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line on stderr and exit with `code`. The first process speaks for all, if it fails at all.

    Without a message nothing is printed.
    """
    line = f"{Path(sys.argv[0]).name}: {' '.join(message.split())}"
    speaks = bool(message)
    if (rank := os.environ.get("RANK", "0")) != "0":
        line += f" (process {rank})"
        speaks = speaks and code == 2
        try:
            # torchrun stops all processes when one ends: the first one must have the time to say why.
            time.sleep(10 if speaks else 1)
        except KeyboardInterrupt:
            speaks = False
    if speaks:
        with contextlib.suppress(OSError):  # nobody reads
            print(line, file=sys.stderr)
    leave_torchrun(code)
    sys.exit(code)


def _first_message(panel: str) -> str:
    """The message of tyro's framed error panel, without frame, title and the help that follows it.

    tyro has no public way to get at it: its events on errors are private, and `get_parser` is on its way out.
    """
    lines = [line.strip("│╭╰╮╯ ") for line in panel.splitlines()]
    # Below the title; where the terminal has no such signs, the lines between are of "-".
    parts = "\n".join(line if line.strip("─- ") else "\0" for line in lines[1:]).split("\0")
    parts = [part for part in parts if part.strip()]
    hint = parts[1] if "Perhaps you meant" in parts[1] else ""
    message = " ".join(f"{parts[0]} {hint}".split())
    said_by_us = "|".join(NUMBERS.values())
    # In the form of `check_range`; a flag with an alias has two names here.
    if found := re.fullmatch(rf"Error parsing (?:--[\w-]+/)*(--[\w-]+): (.*: (?:{said_by_us}))", message):
        return " ".join(found.groups())
    return message + "; --help lists every flag"


def check_range(config: Any, names: str, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Raise ValueError for the first of the flags `names` (separated by spaces) that is outside [low, high].

    None is a flag that was not given. `open_low` excludes `low` itself; an infinite `high` is never allowed.
    """
    for name in names.split():
        value = getattr(config, name)
        if value is None or (low <= value <= high and value < math.inf and not (open_low and value == low)):
            continue
        least = f"above {low}" if open_low else f"at least {low}"
        if high < math.inf:
            least += f", at most {high}"
        elif not -math.inf < value < math.inf:
            least += ", and finite"
        raise ValueError(f"--{name} {value}: must be {least}")


def check_save(config: Any) -> None:
    """Raise ValueError where --save or --resume is empty, or --save is not where --resume goes on."""
    for name in PLACES:
        if getattr(config, name) == "":
            raise ValueError(f"--{name}: needs a folder, not an empty text")
    if config.save is not None and config.resume is not None and config.save != config.resume:
        raise ValueError(f"--save {config.save}: has no effect with --resume {config.resume}; leave it out")


def check_installed(config: Any, name: str) -> None:
    """Raise ValueError where the flag `name` is given and the package of the same name is missing."""
    if getattr(config, name):
        check_packages(f"--{name}", name)


def check_packages(flag: str, *names: str) -> None:
    """Raise ValueError where one of these packages, which `flag` needs, is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        which = (
            "the package is" if names == tuple(missing) and len(names) == 1 else f"{' and '.join(missing)} is"
        )
        raise ValueError(f"{flag}: {which} missing; install it with: pip install {' '.join(missing)}")


def check_new_file(flag: str, path: str | None) -> None:
    """Raise ValueError where the file that --`flag` names exists, or its folder does not. None is no file."""
    if path is None:
        return
    try:
        if Path(path).exists():
            raise ValueError(f"--{flag} {path}: exists already; name another file")
        if not Path(path).parent.is_dir():
            raise ValueError(f"--{flag} {path}: there is no folder {Path(path).parent}")
    except OSError as error:
        raise ValueError(f"--{flag} {path}: no file can have this name ({error.strerror})") from None
