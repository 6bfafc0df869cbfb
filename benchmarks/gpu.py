"""What only a GPU can tell: whether it computes as the CPU does, and how fast everything is on it.

    make gpu                                       # ten minutes at most; writes a record to be committed
    python benchmarks/gpu.py --device cuda:1 --seconds 3 --no_compile

First come checks: logits and gradients are those of the CPU to rounding, `--deterministic` gives equal bits,
a stopped training goes on to the same bits. Then each row is timed by the GPU's own events; at the end stands
what the published search and training would take.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import torch
from torch import Tensor

import genotypes
import train
import train_search
from common import checkpoint, distributed
from common.flags import check_range, parse, run_script
from images import sets
from images.augmentation import Augmentation
from model import Network, NetworkCIFAR, NetworkImageNet
from training import evaluation, loop
from training.optimizer import sgd
from training.precision import choose_kernels, grad_scaler

CELL = genotypes.lookup("RelativeNAS")
CIFAR_IMAGES = 50_000
TOLERANCE = 1e-3  # of the largest value, in float32 without TF32
TRAINING = "--set digits --init_channels 4 --layers 3 --batch_size 360 --epochs 2 --device {} --deterministic"


@dataclass(frozen=True)
class Config:
    """Checks and speed on a GPU."""

    device: str = "cuda"
    """cuda or cuda:N"""
    seconds: float = 5.0
    """How long each row is timed."""
    compile: bool = True
    """Also time compiled networks, which takes minutes to compile."""
    tiny: bool = False
    """Tiny networks and batches, to try this program."""
    json: str | None = None
    """Write the result to this file; default benchmarks/records/DATE-gpu/gpu.json. It must not exist."""

    def check(self) -> None:
        """Raise ValueError for what cannot be measured."""
        check_range(self, "seconds", 0, 600, open_low=True)
        evidence.check_output(self.json)


class Row(NamedTuple):
    """A network and its batch: what is timed."""

    kind: type[Network]
    channels: int
    layers: int
    auxiliary: bool
    image_size: int
    batch_size: int  # in training
    evaluated: int  # images at once


def subjects(config: Config, device: torch.device) -> dict[str, Row]:
    """A candidate of the search, and the networks of both trainings, as the scripts have them."""
    if config.tiny:
        return {"candidate": Row(NetworkCIFAR, 4, 3, False, 16, 4, 8)}
    search, training = train_search.Config(), train.Config()
    sizes = [search.batch_size, training.batch_size]
    at_once = [evaluation.batch_size_on(device, size, 32) for size in sizes]
    return {
        "candidate": Row(
            NetworkCIFAR, search.init_channels, search.layers, False, 32, search.batch_size, at_once[0]
        ),
        "network": Row(NetworkCIFAR, 36, 20, True, 32, training.batch_size, at_once[1]),
        "imagenet": Row(NetworkImageNet, 46, 14, True, 224, 128, 128),
    }


# ---- checks


def check_equal_to_the_cpu(device: torch.device) -> float:
    """The largest difference of logits and gradients, as a share of each tensor's largest value."""
    choose_kernels(device, deterministic=True)  # without TF32
    found: list[list[Tensor]] = []
    for place in (torch.device("cpu"), device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = NetworkCIFAR(8, 10, 3, True, CELL, image_size=16).to(place)
            images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
        logits, logits_aux = network(images.to(place))
        torch.nn.functional.cross_entropy(logits + logits_aux, labels.to(place)).backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        found.append([x.detach().cpu().double() for x in (logits, *gradients)])
    return max(
        float((a - b).abs().max()) / max(float(a.abs().max()), 1e-6) for a, b in zip(*found, strict=True)
    )


class Stopped(Exception):
    """The program ends here."""


def train_digits(folder: Path, device: torch.device, stop: bool = False) -> dict[str, Tensor]:
    """The weights of a short training; with `stop` it ends at its first checkpoint, and is resumed."""
    words = [*TRAINING.format(device).split(), "--save", str(folder)]
    if stop:
        save = checkpoint.save

        def save_and_stop(path: Any, state: Any, keep_previous: bool = False) -> None:
            save(path, state, keep_previous)
            raise Stopped

        checkpoint.save = save_and_stop
        try:
            train.main(parse(train.Config, words))
        except Stopped:
            words = ["--resume", str(folder)]
        finally:
            checkpoint.save = save
    arguments, sys.argv = sys.argv, ["train.py", *words]  # which --resume reads
    try:
        train.main(parse(train.Config, words))
    finally:
        sys.argv = arguments
    state: dict[str, Tensor] = checkpoint.load(folder / "model.pt", "network")["state_dict"]
    return state


def check(device: torch.device, flag: str) -> dict[str, Any]:
    """What the checks find; each is said as soon as it is known."""
    difference = check_equal_to_the_cpu(device)
    with tempfile.TemporaryDirectory() as place:
        runs = [
            train_digits(Path(place, name), torch.device(flag), stop)
            for name, stop in (("first", False), ("again", False), ("resumed", True))
        ]
    same = [all(torch.equal(run[name], runs[0][name]) for name in runs[0]) for run in runs[1:]]
    found = {
        "difference_to_the_cpu": difference,
        "equal_to_the_cpu": difference < TOLERANCE,
        "deterministic": same[0],
        "resumed_is_equal": same[1],
    }
    for name, value in found.items():
        print(f"{name.replace('_', ' ')}: {value}")
    return found


# ---- speed


def seconds_of(work: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Mean time of `work`, by the GPU's events where it is CUDA; two rounds before are not timed."""
    for _ in range(2):
        work()
    cuda = device.type == "cuda"
    begin, done = time.perf_counter(), 0
    if cuda:
        torch.cuda.synchronize(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
    while done == 0 or time.perf_counter() - begin < seconds:
        work()
        done += 1
        if cuda and done % 8 == 0:
            torch.cuda.synchronize(device)  # or the host would run far ahead of the clock
    if not cuda:
        return (time.perf_counter() - begin) / done
    events[1].record()
    torch.cuda.synchronize(device)
    return float(events[0].elapsed_time(events[1])) / 1000 / done


def measure(row: Row, device: torch.device, precision: str, compiled: bool, seconds: float) -> dict[str, Any]:
    """Seconds of a training step and of an evaluation batch, with input on the device; peak memory in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    network = row.kind(row.channels, 10, row.layers, row.auxiliary, CELL, image_size=row.image_size)
    network = network.to(device).to(memory_format=torch.channels_last)
    optimizer, scaler = sgd(network, train.Config(), 0.01), grad_scaler(device, precision)
    images = torch.randn(max(row.batch_size, row.evaluated), 3, row.image_size, row.image_size).to(device)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.zeros(len(images)).long()
    x, y, labels = images[: row.batch_size], labels[: row.batch_size].to(device), labels.to(device)
    network.drop_path_prob = 0.2
    network.drop_path_generator = torch.Generator(device).manual_seed(0)
    whole: Any = torch.compile(network) if compiled else network

    def step() -> None:
        network.train()
        loop.train_step(
            whole, optimizer, x, y, images=len(y), scaler=scaler, precision=precision, auxiliary_weight=0.4
        )

    timed = seconds_of(step, device, seconds)
    evaluated = seconds_of(
        lambda: (
            evaluation.evaluate(network, [(images[: row.evaluated], labels[: row.evaluated])], precision)
            and None
        ),
        device,
        seconds,
    )
    return {
        "step": timed,
        "images_per_second": row.batch_size / timed,
        "evaluated_per_second": row.evaluated / evaluated,
        "memory_mib": distributed.peak_memory(device) / 2**20,
    }


def input_rate(config: Config, device: torch.device) -> float:
    """Augmented CIFAR-size images per second."""
    count = 64 if config.tiny else CIFAR_IMAGES
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    images = sets.ImageSet(pixels, torch.arange(count) % 10, tuple("0123456789")).to(device)
    augmentation, normal = Augmentation.of(32, "cifar10", cutout=True), sets.PUBLISHED_STATISTICS["cifar10"]

    def epoch() -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in sets.batches(images, 96, normal, generator=generator, augmentation=augmentation):
            pass

    return count / seconds_of(epoch, device, config.seconds)


def hours(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the published search and training would take, at the fastest measured setting of each."""
    search, training = train_search.Config(), train.Config()
    fastest = {}
    for name in ("candidate", "network"):
        some = [row for key, row in rows.items() if key.startswith(f"{name},")]
        if some:
            fastest[name] = min(some, key=lambda row: row["step"])
    found = {}
    if "candidate" in fastest:
        one, half = fastest["candidate"], CIFAR_IMAGES // 2
        epoch = half / one["images_per_second"]
        trained = search.generations * search.pop_size
        whole = trained * (epoch + half / one["evaluated_per_second"])
        found["search"] = (whole + search.finalists * search.final_epochs * epoch) / 3600
    if "network" in fastest:
        steps = math.ceil(CIFAR_IMAGES / training.batch_size)
        found["training"] = training.epochs * steps * fastest["network"]["step"] / 3600
    return found


def main(config: Config) -> None:
    device = distributed.init(config.device)
    if device.type == "cpu":
        raise ValueError(f"--device {config.device}: is no GPU")
    path = Path(config.json or evidence.ROOT / "benchmarks" / "records" / f"{date.today()}-gpu" / "gpu.json")
    if config.json is None:
        path.parent.mkdir(exist_ok=True)
        evidence.check_output(str(path))
    origin = evidence.provenance(asdict(config))
    checks = check(device, config.device)
    choose_kernels(device, deterministic=False)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':34}{'ms/step':>9}{'images/s':>10}{'evaluated':>11}{'MiB':>8}")
    for name, row in subjects(config, device).items():
        for precision in ("float32", "bfloat16"):
            for compiled in (False, True) if config.compile and name != "imagenet" else (False,):
                key = f"{name}, {precision}" + (", compiled" if compiled else "")
                rows[key] = found = measure(row, device, precision, compiled, config.seconds)
                print(
                    f"{key:34}{1000 * found['step']:9.2f}{found['images_per_second']:10.0f}"
                    f"{found['evaluated_per_second']:11.0f}{found['memory_mib']:8.0f}"
                )
    rate = input_rate(config, device)
    print(f"{'input':34}{rate:19.0f}")
    estimate = hours(rows)
    for name, value in estimate.items():
        print(f"the published {name} would take {value:.1f} hours")
    result = {"checks": checks, "rows": rows, "input_images_per_second": rate, "hours": estimate}
    evidence.write(str(path), origin | result)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, parse(Config))
