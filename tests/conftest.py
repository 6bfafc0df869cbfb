"""What all tests share: one thread each, the modules of the root, and a program that starts at once."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# The smallest search in which the predictor has something to do.
TINY = [
    *("--set", "digits", "--images", "200", "--pop_size", "6", "--generations", "3", "--finalists", "1"),
    *("--init_channels", "4", "--layers", "3", "--batch_size", "50", "--final_epochs", "1"),
    *("--estimate", "weight_set"),
]

# Imports the scripts once and forks for every command line: importing takes most of a tiny run's time.
SERVER = """
import json, os, resource, signal, sys, traceback
import sklearn.datasets, torch._dynamo
import matplotlib.figure, matplotlib.backends.backend_svg
import test_dense, test_imagenet, train, train_dense, train_imagenet, train_search
from common import flags

def die_in_checkpoint(number):
    # When the checkpoint of this number lies in a temporary file, not yet renamed.
    replace, names = os.replace, []
    def replace_or_die(source, target):
        names.append(os.path.basename(target))
        if names[-1] == "checkpoint.pt" and names.count("checkpoint.pt") == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = replace_or_die

for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.alarm(600)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if order["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    if order["die_at_checkpoint"]:
        die_in_checkpoint(order["die_at_checkpoint"])
    script = sys.modules[order["script"]]
    sys.argv = [order["script"] + ".py", *order["flags"]]
    code = 0
    try:
        flags.run_script(script.main, flags.parse(script.Config))
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
"""


@dataclass
class Started:
    """A command line that runs."""

    server: subprocess.Popen
    pid: int
    folder: Path

    def send(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def wait(self) -> tuple[int, str, str]:
        """Exit code (minus the signal that killed it), stdout, stderr."""
        code = int(_order(self.server, {"wait": self.pid}))
        return code, *((self.folder / f"{self.pid}.{name}").read_text() for name in ("out", "err"))


class Program:
    """train_search.py (or another script), in a folder of its own."""

    def __init__(self, server: subprocess.Popen, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.started = 0

    def start(
        self,
        *flags: object,
        script: str = "train_search",
        environment: dict[str, str] | None = None,
        largest_file: int = 0,
        die_at_checkpoint: int = 0,
    ) -> Started:
        self.started += 1
        out, err = (self.folder / f"{self.started}.{name}" for name in ("out", "err"))
        order = {
            "script": script,
            "flags": [str(flag) for flag in flags],
            "folder": str(self.folder),
            "environment": environment or {},
            "stdout": str(out),
            "stderr": str(err),
            "largest_file": largest_file,
            "die_at_checkpoint": die_at_checkpoint,
        }
        pid = int(_order(self.server, order))
        for path in (out, err):  # the child may not have made them yet
            while not path.exists():
                time.sleep(0.01)
            path.rename(self.folder / f"{pid}{path.suffix}")
        return Started(self.server, pid, self.folder)

    def run(self, *flags: object, largest_file: int = 0) -> tuple[int, str, str]:
        return self.start(*flags, largest_file=largest_file).wait()

    def start_two(self, *flags: object, script: str, die_at_checkpoint: int = 0) -> tuple[Started, Started]:
        """Start it in two processes, as torchrun does."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        first, second = (
            self.start(
                *flags,
                script=script,
                environment=together | {"LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
                die_at_checkpoint=die_at_checkpoint,
            )
            for rank in "01"
        )
        return first, second

    def run_two(
        self, *flags: object, script: str = "train_search", die_at_checkpoint: int = 0
    ) -> tuple[int, str, str]:
        """Run it in two processes; what the first one leaves."""
        first, second = self.start_two(*flags, script=script, die_at_checkpoint=die_at_checkpoint)
        code, out, err = first.wait()
        if code != 0:
            second.send(signal.SIGKILL)
        other, _, other_err = second.wait()
        assert code != 0 or other == 0, other_err
        return code, out, err

    def search(self, *flags: object) -> str:
        """Run the tiny search to its end; its stdout."""
        code, out, err = self.run(*TINY, *flags)
        assert code == 0, err
        return out


def _order(server: subprocess.Popen, order: dict) -> str:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return server.stdout.readline()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        yield Program(server, tmp_path_factory.mktemp("program"))
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def finished_run(program: Program) -> Path:
    """The folder of the tiny search, uninterrupted; read only."""
    program.search("--save", "finished")
    return program.folder / "finished"


@pytest.fixture(autouse=True)
def same_start() -> None:
    """What a test draws from torch's global generator does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Run a script in this process; its exit code, what it printed, and its errors."""
    from common import flags

    def start(script: ModuleType, *given: object) -> tuple[Any, str, str]:
        words = [str(word) for flag in given for word in (flag.split() if isinstance(flag, str) else [flag])]
        monkeypatch.setattr(sys, "argv", [Path(script.__file__).name, *words])
        code = 0
        try:
            flags.run_script(script.main, flags.parse(script.Config))
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return start


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """Facts of the published networks, from the file (or a folder with it) that PAIRNAS_REFERENCE names."""
    path = Path(os.environ.get("PAIRNAS_REFERENCE", ""))
    path = path / "published_networks.json" if path.is_dir() else path
    if not path.is_file():
        pytest.skip("PAIRNAS_REFERENCE does not name published_networks.json")
    return json.loads(path.read_text())


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its times."""
    with path.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]


def epochs(run: Path) -> list[dict[str, str]]:
    return rows(run / "epochs.csv")


def results(run: Path) -> tuple[str, str, str, bytes]:
    """What must not depend on how a search ran: history, generations, finalists, genotype; no times."""
    texts = [(run / f"{name}.csv").read_text() for name in ("history", "generations", "finalists")]
    history, generations = (re.sub(r",[^,\n]*$", "", text, flags=re.MULTILINE) for text in texts[:2])
    return history, generations, texts[2], (run / "genotype.json").read_bytes()


def one_line(text: str) -> str:
    """The only line of what was printed on stderr, without the program's name; fails for more lines."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("train_search.py: ")
    return lines[0].removeprefix("train_search.py: ")


class Marker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def random_cell(seed: int | np.random.Generator):
    """A cell of the search space."""
    from encoding import CellSpace

    space = CellSpace()
    return space.decode(space.sample(np.random.default_rng(seed)))
