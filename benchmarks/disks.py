"""Full disks, read-only folders, clocks set back, two runs at once: is anything lost?

    sudo python benchmarks/disks.py --folder runs/disks --json result.json

Small runs of the search and of both trainings, each on a small disk in memory (tmpfs, which root mounts)
that is full after so many kilobytes, another number each time, so that every write is met; in a folder that
turns read-only at a random moment, as a user for whom that counts; with a clock that jumps back by a day; and
two at once in one folder. They must end with one line and exit code 2, leave nothing half written, and,
resumed where there is room again, end with the bits of a run that nobody disturbed.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import kills
import torch
from campaign import Campaign

from common.flags import check_range, parse, run_script
from utils import temporary_files, write_atomically

LARGE = "200m"  # of the disk where there is room again


@dataclass(frozen=True)
class Config(Campaign):
    """Disturb the disk and the clock, resume, compare."""

    trials: int = 20
    """of each kind"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "trials", 1)
        super().check()
        if os.getuid() != 0:
            raise ValueError("a disk is mounted: this takes root")


@contextlib.contextmanager
def disk(kilobytes: int) -> Iterator[Path]:
    """The folder of a new disk of so many kilobytes, in memory."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=777", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def start(program: str, run: Path, output: Path, plain: bool = False, clock: float = 0.0) -> int:
    """Begin a run, or go on with it; `plain`: without root's rights; `clock`: it jumps by so many seconds."""
    if number := os.fork():
        return number
    os.setsid()
    if plain:
        drop_rights()
    if clock:
        now, looks = time.time, iter(range(10**9))
        time.time = lambda: now() + (clock if next(looks) > 2 else 0.0)
    resumed = (run / "config.json").exists()
    words = ["--resume", str(run)] if resumed else [*kills.RUNS[program][1].split(), "--save", str(run)]
    os._exit(kills.wait(kills.start(program, words, 1, output), 600) or 0)


def drop_rights() -> None:
    """Let the modes of files count for this process, though it is root's: it gives up all capabilities."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def go(program: str, run: Path, output: Path, **more: Any) -> tuple[int, list[str]]:
    """Exit code of a run to its end, and the lines of its errors."""
    before = len(errors(output, program))
    _, status = os.waitpid(start(program, run, output, **more), 0)
    return os.waitstatus_to_exitcode(status), errors(output, program)[before:]


def errors(output: Path, program: str) -> list[str]:
    """What a program said of what is wrong, by its name at the beginning; and tracebacks."""
    lines = output.read_text(errors="replace").splitlines() if output.exists() else []
    names = (f"{kills.RUNS[program][0].__name__}.py: ", "Traceback")
    return [line for line in lines if line.startswith(names)]


def wrong_end(code: int, lines: list[str]) -> list[str]:
    """What is wrong with how a disturbed run ended."""
    if code == 0:
        return []
    return ([] if code == 2 else [f"exit code {code}"]) + ([] if len(lines) == 1 else [f"{lines}"])


def full(program: str, reference: Path, output: Path, draw: random.Random) -> tuple[bool, list[str]]:
    """A disk of a random size; whether it was full, and what was wrong."""
    needed = sum(path.stat().st_size for path in reference.rglob("*")) / 1024
    with disk(4 + int(draw.random() * 1.3 * needed)) as place:
        run = place / "run"
        code, lines = go(program, run, output)
        found = wrong_end(code, lines)
        if run.exists() and (left := temporary_files(run)):
            found.append(f"left {left[0].name}")
        subprocess.run(["mount", "-o", f"remount,size={LARGE}", place], check=True)
        return code != 0, found + to_the_end(program, run, reference, output)


def read_only(program: str, reference: Path, output: Path, draw: random.Random) -> tuple[bool, list[str]]:
    """A folder that turns read-only at a random moment; whether that was met, and what was wrong."""
    seconds = json.loads(reference.with_suffix(".json").read_text())
    with disk(200 * 1024) as place:
        run = place / "run"
        run.mkdir()
        number = start(program, run, output, plain=True)
        time.sleep(draw.uniform(0, seconds))
        run.chmod(0o555)
        _, status = os.waitpid(number, 0)
        code = os.waitstatus_to_exitcode(status)
        found = wrong_end(code, errors(output, program))
        run.chmod(0o755)
        return code != 0, found + to_the_end(program, run, reference, output, plain=True)


def clock_back(program: str, reference: Path, output: Path, draw: random.Random) -> tuple[bool, list[str]]:
    """A run killed at a random moment and resumed a day earlier, where the clock jumps back another day."""
    seconds = json.loads(reference.with_suffix(".json").read_text())
    with disk(200 * 1024) as place:
        run = place / "run"
        number = start(program, run, output)
        time.sleep(draw.uniform(0, seconds))
        for group in _groups(number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(group, signal.SIGKILL)
        os.waitpid(number, 0)
        time.sleep(0.2)
        return True, to_the_end(program, run, reference, output, clock=-86400.0)


def _groups(number: int) -> list[int]:
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [member for child in children for member in kills.members(int(child))]


def at_once(program: str, reference: Path, output: Path, draw: random.Random) -> tuple[bool, list[str]]:
    """Two programs that begin in one folder; exactly one may go on, and the other leaves with a line."""
    with disk(200 * 1024) as place:
        run = place / "run"
        outputs = [output.with_name(f"{name}.txt") for name in "ab"]
        for each in outputs:
            each.unlink(missing_ok=True)
        numbers = []
        for each in outputs:
            numbers.append(start(program, run, each))
            time.sleep(draw.choice([0.0, 0.0, draw.random()]))
        codes = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]
        found = [] if sorted(codes) in ([0, 2], [0, 0]) else [f"exit codes {codes}"]
        for code, each in zip(codes, outputs, strict=True):
            found += wrong_end(code, errors(each, program))
        return 2 in codes, found + kills.differences(run, reference)


def to_the_end(program: str, run: Path, reference: Path, output: Path, **more: Any) -> list[str]:
    """Resume a run with nothing in its way; what differs from the undisturbed one."""
    if run.exists() and not (run / "config.json").exists() and any(run.iterdir()):
        return [f"cannot be resumed: {[path.name for path in run.iterdir()]}"]
    code, lines = go(program, run, output, **more)
    return [f"resumed: exit code {code} {lines}"] if code else kills.differences(run, reference)


TRIALS = {"full disk": full, "read-only": read_only, "clock back": clock_back, "two at once": at_once}


def table(results: dict[str, dict[str, Any]]) -> str:
    """What happened, a row for each kind."""
    lines = [f"{'program':16}{'trouble':13}{'trials':>7}{'met':>5}{'wrong':>7}"]
    for name, found in results.items():
        program, trouble = name.split("/")
        lines.append(f"{program:16}{trouble:13}{found['trials']:7}{found['met']:5}{len(found['wrong']):7}")
    return "\n".join(lines)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    output = None if config.json is None else str(Path(config.json).resolve())
    end = time.monotonic() + 60 * config.minutes
    folder = Path(config.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    folder.chmod(0o777)
    kills.make_images(folder / "images")
    file = folder / "counts.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for program in kills.RUNS:
        for trouble in TRIALS:
            results.setdefault(f"{program}/{trouble}", {"trials": 0, "met": 0, "wrong": []})
    while time.monotonic() < end:
        name = min(results, key=lambda kind: results[kind]["trials"])
        found = results[name]
        if found["trials"] >= config.trials:
            break
        program, trouble = name.split("/")
        reference, _ = kills.undisturbed(program, 1, folder)
        scratch = folder / "output.txt"
        scratch.unlink(missing_ok=True)
        scratch.touch(0o666)
        scratch.chmod(0o666)
        draw = random.Random(f"{config.seed} {name} {found['trials']}")
        met, wrong = TRIALS[trouble](program, reference, scratch, draw)
        found["trials"], found["met"] = found["trials"] + 1, found["met"] + met
        if wrong:
            found["wrong"].append(wrong)
            shutil.copyfile(scratch, folder / f"wrong-{program}-{trouble}-{found['trials']}.txt")
        print(name, found["trials"], "met" if met else "", wrong or "", flush=True)
        write_atomically(file, json.dumps(results, indent=1))
    print(table(results))
    evidence.write(output, evidence.provenance(asdict(config)) | {"results": results})


if __name__ == "__main__":
    run_script(main, parse(Config))
