"""Damaged and hostile checkpoints: is each refused in one line, in bounded memory and time, nothing written?

    python benchmarks/mutated_checkpoints.py --folder runs/mutated --json result.json

A good file is changed at random: in its bytes; in the pickle within an archive whose checksums are right
again; or in one of its values, replaced by what does not belong there. A program reads it then: test.py and
train.py --weights a network, train.py and train_search.py --resume a run's checkpoint. Changes that leave a
checkpoint good, such as another weight, may be accepted. A traceback, a signal, another exit code, a changed
folder may not be. Programs are forked from this one.
"""

import copy
import io
import json
import os
import random
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import torch
from campaign import Campaign

import test
import train
import train_search
from common import checkpoint
from common.flags import check_range, parse, run_script
from utils import write_atomically

SMALL = "--set digits --init_channels 4 --layers 3 --device cpu"
TRAINING = f"{SMALL} --batch_size 360 --epochs 1"
SEARCH = f"{SMALL} --images 100 --estimate weight_set --pop_size 4 --generations 2 --finalists 1"
SEARCH += " --batch_size 50 --final_epochs 1"
MEMORY, SECONDS = 512 * 2**20, 60.0  # more than a program that reads the good file takes; of CPU time
# What reads a checkpoint: the script, its flags, the run that the file is from, the file.
READERS: dict[str, tuple[ModuleType, str, str, str]] = {
    "test.py": (test, "--device cpu --model_path file.pt", "trained", "model.pt"),
    "train.py --weights": (train, f"{TRAINING} --weights file.pt --save new", "trained", "model.pt"),
    "train.py --resume": (train, "--resume run", "trained", "checkpoint.pt"),
    "train_search.py --resume": (train_search, "--resume run", "searched", "checkpoint.pt"),
}
VALUES: list[Any] = [None, -1, 0, 10**9, 2**70, 1e300, float("nan"), "", "x" * 1000, b"", [], {}, (), True]
VALUES += [[[]], {"a": 1}, torch.zeros(0), torch.zeros(3), torch.zeros(1).expand(10**5, 10**5)]
VALUES += [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta"), [10**9] * 2]


@dataclass(frozen=True)
class Config(Campaign):
    """Change checkpoints at random, and read them."""

    mutations: int = 1000
    """files to read"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "mutations", 1)
        super().check()


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """The bytes with some flipped, left out, doubled, zeroed or cut off."""
    changed = bytearray(content)
    a, b = sorted(draw.randrange(len(changed)) for _ in range(2))
    b = min(b, a + draw.choice([1, 10, 1000, 10**9]))
    kind = draw.randrange(5)
    if kind == 0:
        for _ in range(draw.choice([1, 10, 100])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[a:b]
    elif kind == 2:
        changed[a:a] = changed[a:b]
    elif kind == 3:
        changed[a:b] = bytes(b - a)
    else:
        del changed[a:]
    return bytes(changed)


def change_pickle(content: bytes, draw: random.Random) -> bytes:
    """The archive with another pickle or another storage in it, and checksums that are right."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        names = source.namelist()
        pickled = next(name for name in names if name.endswith("/data.pkl"))
        chosen = pickled if draw.random() < 0.7 else draw.choice(names)
        how = draw.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(changed, "w", how) as target:
            for name in names:
                entry = source.read(name)
                target.writestr(name, change_bytes(entry, draw) if name == chosen and entry else entry)
    return changed.getvalue()


def change_value(content: bytes, draw: random.Random) -> bytes:
    """The checkpoint with one of its values, at any depth, replaced by one that does not belong there."""
    state = copy.deepcopy(torch.load(io.BytesIO(content), weights_only=True))
    place: Any = state
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.15:
            break
        place = inner
    place[key] = draw.choice(VALUES)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": change_bytes,
    "pickle": change_pickle,
    "value": change_value,
}


def run(script: ModuleType, words: list[str], output: Path) -> tuple[int, int]:
    """Exit code (minus the signal) and peak memory in bytes of a script in a forked process."""
    number = os.fork()
    if not number:
        try:
            for stream in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), stream)
            resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
            sys.argv = [f"{script.__name__}.py", *words]
            run_script(script.main, parse(script.Config))
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        except BaseException as error:
            print("Traceback", repr(error)[:300], flush=True)
            os._exit(1)
        os._exit(0)
    _, status, usage = os.wait4(number, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_one(reader: str, changed: bytes, folder: Path) -> dict[str, Any]:
    """What a reader makes of a file: its exit code, peak memory, and whatever is wrong with that."""
    script, words, run_name, file_name = READERS[reader]
    place, output = folder / "place", folder / "output.txt"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    output.unlink(missing_ok=True)
    if "--resume" in words:
        shutil.copytree(folder / run_name, place / "run")
        for name in ("model.pt", "genotype.json", "report.html", "checkpoint.previous.pt"):
            (place / "run" / name).unlink(missing_ok=True)
        (place / "run" / file_name).write_bytes(changed)
    else:
        (place / "file.pt").write_bytes(changed)
    before, begin = listing(place), time.monotonic()
    os.chdir(place)
    code, memory = run(script, words.split(), output)
    os.chdir(folder)
    said, wrong = output.read_text(errors="replace"), []
    if code not in (0, 2):
        wrong.append(f"exit code {code}")
    if "Traceback" in said:
        wrong.append("traceback")
    if code == 2 and len(said.strip().splitlines()) != 1 and "--resume" not in words:
        wrong.append(f"{len(said.strip().splitlines())} lines")
    if code == 2 and listing(place) != before:
        wrong.append("files changed")
    if memory > MEMORY + _base():
        wrong.append(f"{memory / 2**20:.0f} MiB")
    return {"code": code, "mib": memory >> 20, "seconds": time.monotonic() - begin} | (
        {"wrong": wrong, "said": said[-400:]} if wrong else {}
    )


def _base() -> int:
    """Bytes that this process takes, and so each that is forked from it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(results: list[dict[str, Any]]) -> str:
    """What happened, a row for each reader and kind of change."""
    lines = [
        f"{'reader':26}{'change':9}{'files':>7}{'refused':>9}{'accepted':>10}{'wrong':>7}{'most MiB':>10}"
    ]
    for reader in READERS:
        for change in CHANGES:
            found = [one for one in results if (one["reader"], one["change"]) == (reader, change)]
            codes, wrong = [one["code"] for one in found], sum("wrong" in one for one in found)
            most = max((one["mib"] for one in found), default=0)
            line = f"{reader:26}{change:9}{len(found):7}{codes.count(2):9}{codes.count(0):10}{wrong:7}"
            lines.append(f"{line}{most:10}")
    return "\n".join(lines)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    output = None if config.json is None else str(Path(config.json).resolve())
    end = time.monotonic() + 60 * config.minutes
    folder = Path(config.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, script, words in (("trained", train, TRAINING), ("searched", train_search, SEARCH)):
        if not (folder / name / "model.pt").exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            code, _ = run(script, [*words.split(), "--save", name], folder / f"{name}.txt")
            if code:
                raise ValueError(f"exit code {code}: see {folder / name}.txt")
    good = {reader: (folder / name / file).read_bytes() for reader, (_, _, name, file) in READERS.items()}
    assert all(checkpoint.load(folder / name / file) for _, _, name, file in READERS.values())
    file = folder / "results.json"
    results: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    kinds = [(reader, change) for change in CHANGES for reader in READERS]
    while len(results) < config.mutations and time.monotonic() < end:
        reader, change = kinds[len(results) % len(kinds)]
        draw = random.Random(f"{config.seed} {len(results)}")
        found = read_one(reader, CHANGES[change](good[reader], draw), folder)
        results.append({"reader": reader, "change": change, **found})
        write_atomically(file, json.dumps(results, indent=1))
        if "wrong" in found:
            print(len(results), reader, change, found["wrong"], found["said"][-200:], flush=True)
    print(table(results))
    evidence.write(output, evidence.provenance(asdict(config)) | {"results": results})


if __name__ == "__main__":
    run_script(main, parse(Config))
