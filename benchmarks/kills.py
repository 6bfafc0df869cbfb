"""Kills at random moments: do runs that are resumed end with the same bits as one that nobody disturbed?

    python benchmarks/kills.py --folder runs/kills --json result.json
    python benchmarks/kills.py --folder runs/kills --kills 10 --minutes 30 --json result.json

Small runs of the search and of both trainings get SIGKILL after a random time, are resumed, killed again, and
at their end compared to an undisturbed run: weights, tables, cells. Alone; and two processes under torchrun's
agent, where a process dies ("worker"), the agent ("torchrun"), or all at once ("group"). Started again, it
goes on where it was stopped.

All processes are forked from this one, which has imported everything, as imports would take most of the time.
"""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import torch
from campaign import Campaign
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train
import train_imagenet
import train_search
from common import checkpoint, flags
from common.flags import check_range, parse, run_script
from utils import temporary_files, write_atomically

SMALL = "--init_channels 4 --layers 3 --device cpu"
RUNS: dict[str, tuple[ModuleType, str]] = {
    "search": (
        train_search,
        f"{SMALL} --set digits --images 100 --estimate weight_set --pop_size 4 --generations 2 --finalists 1 "
        "--batch_size 50 --final_epochs 1",
    ),
    "train": (
        train,
        f"{SMALL} --set digits --batch_size 360 --epochs 2 --auxiliary --cutout --ema 0.9 "
        "--drop_path_prob 0.3 --checkpoint_steps 1",
    ),
    "train_imagenet": (
        train_imagenet,
        f"{SMALL} --image_size 64 --batch_size 8 --epochs 2 --workers 1 --learning_rate 0.05 "
        "--warmup_epochs 1 --checkpoint_steps 1 --data images",
    ),
}
VICTIMS = ("alone", "worker", "torchrun", "group")
TO_END = 60.0  # seconds in which all processes of a killed run must be gone
DONE = RawArray("l", 2)  # in memory that all processes share: the numbers of workers that are done


@dataclass(frozen=True)
class Config(Campaign):
    """Kill, resume, compare."""

    kills: int = 100
    """of each kind"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "kills", 1)
        super().check()


def start(program: str, words: list[str], processes: int, output: Path) -> int:
    """Start a program in a process group of its own, under torchrun's agent if in several; its number."""
    DONE[:] = [0] * len(DONE)
    if number := os.fork():
        return number
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), stream)
        if processes == 1:
            _run(program, words)
        else:
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                start_method="fork",
            )
            elastic_launch(launch, _run)(program, words)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(1)
    os._exit(0)


def _run(program: str, words: list[str]) -> None:
    """Run a script as its command line would."""
    script = RUNS[program][0]
    flags.leave_torchrun = lambda code=0: None  # a forked process has to report to the agent that it is done
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [f"{script.__name__}.py", *words]
    run_script(script.main, parse(script.Config))
    DONE[int(os.environ.get("LOCAL_RANK", "0"))] = os.getpid()


def members(group: int) -> list[int]:
    """The processes of a group that still run, the agent or the program itself first."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def kill(group: int, victim: str, draw: random.Random) -> bool:
    """SIGKILL to the victim; whether there was one."""
    running = members(group)
    if victim in ("alone", "torchrun"):
        chosen = running[:1]
    elif victim == "group":
        chosen = running
    else:
        children = Path(f"/proc/{group}/task/{group}/children")
        workers = children.read_text().split() if children.exists() else []
        chosen = [int(draw.choice(workers))] if workers else []
        # One that is done waits for PyTorch's agent, which would wait for ever for a dead one to wake up: the
        # agent of functions, as here. That of the command torchrun, whose workers are programs, does not.
        chosen = [number for number in chosen if not _is_done(number)]
    for number in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return bool(chosen)


def _is_done(worker: int) -> bool:
    """Whether a worker, which is held until it is killed, has nothing left to do; then it goes on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
        if worker in DONE:
            os.kill(worker, signal.SIGCONT)
            return True
    return False


def wait(group: int, seconds: float) -> int | None:
    """Exit code of a program once all its processes are gone; None where they are not in so many seconds."""
    code, end = None, time.monotonic() + seconds
    while time.monotonic() < end:
        if code is None:
            number, status = os.waitpid(group, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if number else None
        if code is not None and not members(group):
            return code
        time.sleep(0.02)
    return None


def tables(folder: Path) -> Iterator[list[dict[str, str]]]:
    """The tables of a run without its times."""
    for name in ("epochs.csv", "history.csv", "generations.csv", "finalists.csv"):
        if (folder / name).exists():
            with (folder / name).open(newline="") as file:
                rows = list(csv.DictReader(file))
            yield [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def differences(folder: Path, reference: Path) -> list[str]:
    """In what a run differs from the undisturbed one, and what lies about that should not."""
    found = []
    ours, theirs = (
        checkpoint.load(path / "model.pt", "network")["state_dict"] for path in (folder, reference)
    )
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        found.append("weights")
    if list(tables(folder)) != list(tables(reference)):
        found.append("tables")
    cells = [path / "genotype.json" for path in (folder, reference)]
    if cells[1].exists() and cells[0].read_bytes() != cells[1].read_bytes():
        found.append("genotype.json")
    names = [{path.name for path in place.iterdir()} for place in (folder, reference)]
    if odd := names[0] ^ names[1]:
        found.append(f"files {', '.join(sorted(odd))}")
    return found + [path.name for path in temporary_files(folder)]


def undisturbed(program: str, processes: int, folder: Path) -> tuple[Path, float]:
    """The run that nobody kills, made once, and how long it took in seconds."""
    reference, times = folder / f"{program}-{processes}", folder / f"{program}-{processes}.json"
    if not times.exists():
        shutil.rmtree(reference, ignore_errors=True)
        words = [*RUNS[program][1].split(), "--save", reference.name]
        begin = time.monotonic()
        code = wait(start(program, words, processes, folder / f"{reference.name}.txt"), 600)
        if code != 0:
            raise ValueError(f"{program}: exit code {code}; see {folder / reference.name}.txt")
        write_atomically(times, json.dumps(time.monotonic() - begin))
    return reference, json.loads(times.read_text())


def one_run(program: str, victim: str, counts: dict[str, Any], folder: Path, draw: random.Random) -> None:
    """A run that is killed and resumed until it ends; what happened is added to `counts`."""
    processes = 1 if victim == "alone" else 2
    reference, seconds = undisturbed(program, processes, folder)
    run, output = folder / "run", folder / "output.txt"
    shutil.rmtree(run, ignore_errors=True)
    output.unlink(missing_ok=True)
    while True:
        resumed = (run / "config.json").exists()
        words = ["--resume", "run"] if resumed else [*RUNS[program][1].split(), "--save", "run"]
        group = start(program, words, processes, output)
        time.sleep(draw.uniform(0, seconds))
        killed, begin = kill(group, victim, draw), time.monotonic()
        code = wait(group, TO_END if killed else 600)
        if code is None:
            counts["hung"] += 1
            os.killpg(group, signal.SIGKILL)
            wait(group, TO_END)
        if code == 0:  # it was done before the kill
            break
        if not killed and code is not None:
            counts["failed"].append(f"exit code {code}: {output.read_text()[-300:]}")
            return
        counts["kills"] += 1
        counts["slowest_end"] = max(counts["slowest_end"], time.monotonic() - begin)
    counts["runs"] += 1
    counts["tracebacks"] += output.read_text().count("Traceback (most recent call last)")
    if found := differences(run, reference):
        counts["different"].append(found)


def make_images(root: Path) -> None:
    """28 training and 9 other images of two classes, of random blots."""
    draw = np.random.default_rng(0)
    for part, counts in (("train", (14, 14)), ("val", (5, 4))):
        for label, count in enumerate(counts):
            (root / part / f"class{label}").mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (7 + 3 * label, 9, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((90, 70))
                image.save(root / part / f"class{label}" / f"{number:02}.png")


def table(results: dict[str, dict[str, Any]]) -> str:
    """What happened, a row for each kind."""
    head = f"{'program':16}{'killed':10}{'kills':>7}{'runs':>7}{'different':>11}{'hung':>6}{'failed':>8}"
    lines = [head + f"{'slowest end, s':>16}"]
    for name, found in results.items():
        program, victim = name.split("/")
        line = f"{program:16}{victim:10}{found['kills']:7}{found['runs']:7}{len(found['different']):11}"
        lines.append(line + f"{found['hung']:6}{len(found['failed']):8}{found['slowest_end']:16.1f}")
    return "\n".join(lines)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    output = None if config.json is None else Path(config.json).resolve()
    folder, end = Path(config.folder), time.monotonic() + 60 * config.minutes
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    folder = Path.cwd()
    make_images(folder / "images")
    file = folder / "counts.json"
    nothing = {"kills": 0, "runs": 0, "hung": 0, "tracebacks": 0, "slowest_end": 0.0}
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for program in RUNS:
        for victim in VICTIMS:
            results.setdefault(f"{program}/{victim}", nothing | {"different": [], "failed": []})
    while waiting := [name for name, found in results.items() if found["kills"] < config.kills]:
        name = min(waiting, key=lambda kind: results[kind]["kills"])
        if time.monotonic() > end:
            break
        program, victim = name.split("/")
        begun = sum(found["runs"] for found in results.values())
        one_run(program, victim, results[name], folder, random.Random(f"{config.seed} {name} {begun}"))
        write_atomically(file, json.dumps(results, indent=1))
        print(name, results[name]["kills"], "kills", flush=True)
    print(table(results))
    evidence.write(
        None if output is None else str(output), evidence.provenance(asdict(config)) | {"results": results}
    )


if __name__ == "__main__":
    run_script(main, parse(Config))
