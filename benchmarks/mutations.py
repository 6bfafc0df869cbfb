"""Damaged images, JSON, tables and command lines: what a program makes of a thousand of each.

    python benchmarks/mutations.py
    python benchmarks/mutations.py --count 50 --only jpg flags --json mutations.json

Each is either accepted or refused, by one line and exit code 2, in bounded memory and time, with nothing
written; whatever else happens (a traceback, a second line, a crash, a hang) is a fault and is listed. The
inputs go through the scripts' own parsing and reading in forked processes; some images go through test.py
too. An input is made from (seed, kind, number), so a fault can be looked at again.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import mutate
import numpy as np
import torch
from PIL import Image

import genotypes
import test
import test_imagenet
import train
import train_imagenet
import train_search
import visualize
from common.flags import check_range, parse, run_script
from common.run_folder import read_settings
from images import files
from pictures import tables

SECONDS, GIBIBYTES = 30, 2  # that one input may take
ENDINGS = ("jpg", "png", "bmp", "webp", "ppm", "pgm", "tif", "gif")
KINDS = (*ENDINGS, "json", "csv", "flags")
SCRIPTS = {module.__name__: module for module in (train_search, train, train_imagenet, test, test_imagenet)}
SCRIPTS["visualize"] = visualize
LINES = {
    "train_search": "--set digits --pop_size 6 --generations 3 --learning_rate 0.1 --no_cutout --save runs/x",
    "train": "--set digits --arch DARTS --init_channels 8 --layers 5 --epochs 2 --cutout --ema 0.9",
    "train_imagenet": "--data imagenet --batch_size 64 --workers 2 --label_smoothing 0.1 --seed 3",
    "test": "--model_path model.pt --set cifar10 --batch_size 10 --arch NASNet --precision float32 --no_fold",
    "test_imagenet": "--model_path model.pt --data imagenet --init_channels 46 --layers 14 --image_size 224",
    "visualize": "DARTS_V2 --format svg --out img --overwrite",
}
TABLES = ("history.csv", "generations.csv", "finalists.csv")
RUN = evidence.ROOT / "benchmarks" / "records" / "2026-11-24-search-digits"
MODEL = evidence.ROOT / "trained_model" / "digits_model.pt"
TESTED = 100  # every so many-th image or run goes through test.py or visualize.py, which take seconds


@dataclass(frozen=True)
class Config:
    """Damaged inputs of each kind, and what became of them."""

    count: int = 1000
    """inputs of each kind"""
    only: tuple[str, ...] = KINDS
    """kinds of inputs"""
    seed: int = 0
    """of the damage"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for what cannot be counted."""
        check_range(self, "count", 1, 10**6)
        if odd := set(self.only) - set(KINDS):
            raise ValueError(f"--only {odd.pop()}: allowed are {', '.join(KINDS)}")
        evidence.check_output(self.json)


def images(ending: str) -> list[bytes]:
    """Undamaged files of a format: colour and grey, small and not square, plain and with all it can carry."""
    draw = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for H, W, mode in ((16, 16, "RGB"), (24, 40, "RGB"), (40, 24, "L")):
        pixels = draw.integers(0, 256, (H, W, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        image = Image.fromarray(pixels).convert(mode)
        options: list[dict[str, Any]] = [{}]
        if ending in ("jpg", "png", "webp", "tif"):
            options.append({"exif": exif})
        if ending == "jpg":
            options.append({"progressive": True})
        if ending == "tif":
            options += [{"compression": name} for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
        if ending in ("gif", "png", "webp", "tif"):
            options.append({"save_all": True, "append_images": [image.rotate(90)]})
        if ending == "png":
            options.append({"optimize": True, "icc_profile": b"profile" * 20})
        if ending in ("gif", "png", "bmp"):
            made.append(written(image.quantize(16), ending, {} if ending == "bmp" else {"transparency": 1}))
        made += [written(image, ending, more) for more in options]
        if ending in ("png", "tif", "pgm") and mode == "L":  # 16 bits
            made.append(written(Image.fromarray(pixels[..., 0].astype(np.uint16) << 8), ending, {}))
    return made


def written(image: Image.Image, ending: str, options: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"image.{ending}")
        image.save(path, **options)
        return path.read_bytes()


Case = tuple[str, Callable[[], None]]  # what was given, in words, and the program's work on it


def image_case(ending: str, number: int, originals: list[bytes], draw: random.Random) -> Case:
    path = Path(f"image.{ending}")
    damage = mutate.damage_png if ending == "png" else mutate.damage
    path.write_bytes(damage(draw.choice(originals), draw))
    if number % TESTED == 0:
        return "test.py --predict", partial(
            script, "test", ["--model_path", str(MODEL), "--predict", str(path)]
        )
    return "read_image", partial(as_script, lambda: files.read_image(path, draw.choice((None, 16))))


def json_case(number: int, originals: dict[str, bytes], draw: random.Random) -> Case:
    name = draw.choice(list(originals))
    if name == "cell":
        Path("cell.json").write_bytes(mutate.damage_json(originals[name], draw))
        return "train.py --arch", partial(parsed, "train", ["--arch", "cell.json"])
    Path("run").mkdir(exist_ok=True)
    Path("run", "config.json").write_bytes(mutate.damage_json(originals[name], draw))
    given = SCRIPTS[name].Config
    return f"{name}.py --resume", partial(as_script, lambda: read_settings("run", given))


def csv_case(number: int, originals: dict[str, bytes], draw: random.Random) -> Case:
    Path("run").mkdir(exist_ok=True)
    damaged = draw.choice(TABLES)
    for name, content in originals.items():
        Path("run", name).write_bytes(mutate.damage_csv(content, draw) if name == damaged else content)
    if number % TESTED == 0:
        return f"visualize.py, {damaged}", partial(
            script, "visualize", ["run", "--out", "drawn", "--overwrite"]
        )
    return f"read_run, {damaged}", partial(as_script, lambda: tables.read_run(Path("run")))


def flags_case(number: int, originals: dict[str, bytes], draw: random.Random) -> Case:
    name = list(LINES)[number % len(LINES)]
    words = mutate.damage_flags(LINES[name].split(), draw)
    return f"{name}.py {words}"[:300], partial(parsed, name, words)


def parsed(name: str, words: list[str]) -> None:
    sys.argv = [f"{name}.py", *words]
    parse(SCRIPTS[name].Config)


def script(name: str, words: list[str]) -> None:
    sys.argv = [f"{name}.py", *words]
    run_script(SCRIPTS[name].main, parse(SCRIPTS[name].Config))


def as_script(work: Callable[[], Any]) -> None:
    sys.argv = ["script.py"]
    run_script(lambda config: work(), None)


def originals(kind: str) -> Any:
    """What is damaged: whole files."""
    if kind in ENDINGS:
        return images(kind)
    if kind == "csv":
        return {path.name: path.read_bytes() for path in RUN.iterdir() if path.suffix in (".csv", ".json")}
    settings = {
        name: json.dumps(asdict(SCRIPTS[name].Config())).encode()
        for name in ("train_search", "train", "train_imagenet")
    }
    return settings | {"cell": genotypes.to_json(genotypes.DARTS).encode()}


def cases(kind: str) -> Callable[..., Case]:
    given = {"json": json_case, "csv": csv_case, "flags": flags_case}
    return given.get(kind) or partial(image_case, kind)


def measure(kind: str, number: int, whole: Any, seed: int) -> dict[str, Any]:
    """Make one input and let the program work on it, in this process; what became of it."""
    words, work = cases(kind)(number, whole, random.Random(f"{seed} {kind} {number}"))
    before, start_memory, start = listing(), memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    signal.alarm(SECONDS)
    with printed() as streams:
        code: Any = 0
        try:
            work()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:300]
    signal.alarm(0)
    err = Path(streams[1]).read_text(errors="replace")
    fault = ""
    if code not in (0, 2):
        fault = str(code)
    elif code == 2 and err.count("\n") != 1:
        fault = f"not one line: {err[-300:]}"
    elif code == 2 and listing() != before:
        fault = f"wrote {set(listing()) ^ set(before)}"
    elif code == 0 and err:
        fault = f"accepted with words on stderr: {err[-300:]}"
    return {
        "number": number,
        "code": code,
        "fault": f"{words}: {fault}" if fault else "",
        "line": err.strip(),
        "seconds": time.perf_counter() - start,
        "megabytes": (memory("VmHWM") - start_memory) / 1024,
    }


def listing() -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in Path().rglob("*") if path.name not in (".out", ".err")
    }


def memory(name: str) -> int:
    """Of this process, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


@contextlib.contextmanager
def printed() -> Iterator[tuple[str, str]]:
    """Let stdout and stderr, those of C libraries too, go to files."""
    kept = [os.dup(1), os.dup(2)]
    for number, name in ((1, ".out"), (2, ".err")):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    try:
        with (
            open(1, "w", closefd=False) as out,
            open(2, "w", closefd=False, errors="backslashreplace") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield ".out", ".err"
    finally:
        for number, descriptor in ((1, kept[0]), (2, kept[1])):
            os.dup2(descriptor, number)
            os.close(descriptor)


def child(kind: str, first: int, count: int, whole: Any, seed: int, pipe: int) -> None:
    """Measure the inputs from number `first` on; a line of JSON each. Ends the process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang in C code ends it, too
    limit = memory("VmSize") * 1024 + GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # a test's
    with tempfile.TemporaryDirectory() as folder, os.fdopen(pipe, "w") as results:
        os.chdir(folder)
        for number in range(first, count):
            print(json.dumps(measure(kind, number, whole, seed)), file=results, flush=True)
        os.chdir("/")
    os._exit(0)


def campaign(kind: str, count: int, seed: int) -> dict[str, Any]:
    """All inputs of a kind. A child that dies is a fault of the input it was at; the next one goes on."""
    whole = originals(kind)
    results: list[dict[str, Any]] = []
    while len(results) < count:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                child(kind, len(results), count, whole, seed, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as lines:
            results += [json.loads(line) for line in lines]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if len(results) < count:
            fault = f"the process ended with {status}"
            results.append({"number": len(results), "code": status, "fault": fault, "line": ""})
    codes = Counter(
        "fault" if one["fault"] else {0: "accepted", 2: "refused"}[one["code"]] for one in results
    )
    return {
        "inputs": count,
        "accepted": codes["accepted"],
        "refused": codes["refused"],
        "faults": [{"number": one["number"], "fault": one["fault"]} for one in results if one["fault"]],
        "longest_line": max((one["line"] for one in results), key=len),
        "most_seconds": max(one.get("seconds", 0.0) for one in results),
        "most_megabytes": max(one.get("megabytes", 0.0) for one in results),
    }


def main(config: Config) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    found = {}
    print(
        f"{'kind':6} {'inputs':>6} {'accepted':>8} {'refused':>8} {'faults':>6} {'most s':>7} {'most MB':>8}"
    )
    for kind in config.only:
        one = found[kind] = campaign(kind, config.count, config.seed)
        print(
            f"{kind:6} {one['inputs']:6} {one['accepted']:8} {one['refused']:8} {len(one['faults']):6} "
            f"{one['most_seconds']:7.2f} {one['most_megabytes']:8.1f}",
            flush=True,
        )
        for fault in one["faults"][:10]:
            print(f"    {fault['number']}: {' '.join(fault['fault'].split())[:200]}")
    evidence.write(config.json, evidence.provenance(asdict(config)) | {"kinds": found})


if __name__ == "__main__":
    run_script(main, parse(Config))
