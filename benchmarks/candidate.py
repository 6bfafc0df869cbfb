"""Speed and memory of one candidate of the search, beside the plain path.

    python benchmarks/candidate.py
    python benchmarks/candidate.py --seconds 5 --repeats 5 --json result.json

A candidate is the RelativeNAS cell in a small network, with the batches that a search has by default, in
float32 and bfloat16. The images are random. Two processes of one thread each are measured beside one process
of two threads.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import plain
import timing
import torch
from torch import Tensor, nn

import genotypes
from common.flags import check_range, parse, run_script
from common.kernels import keep_memory
from images import sets
from images.augmentation import Augmentation
from model_search import WeightSet
from training import evaluation, loop
from training.precision import grad_scaler

CELL = genotypes.lookup("RelativeNAS")


@dataclass(frozen=True)
class Config:
    """Images per second, start-up time and memory of one candidate."""

    init_channels: int = 16
    """Channels of the first cell."""
    layers: int = 8
    """Cells."""
    image_size: int = 32
    """Height and width in pixels."""
    batch_size: int = 256
    """Images per step, of training and evaluating, of each process: each has a candidate of its own."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions of both paths."""
    seconds: float = 3.0
    """How long each kind of step is timed in a round."""
    repeats: int = 3
    """Rounds; the variants take turns in each."""
    json: str | None = None
    """Write the result to this file, which must not exist."""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "init_channels layers repeats", 1)
        check_range(self, "batch_size", 2)
        check_range(self, "image_size", sets.SMALLEST_IMAGE)
        check_range(self, "seconds", 0, open_low=True)
        evidence.check_output(self.json)


def images_like(config: Config, count: int = 512) -> sets.ImageSet:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, config.image_size, config.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return sets.ImageSet(pixels, torch.arange(count) % 10, tuple("0123456789"))


def endless(images: sets.ImageSet, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """The project's augmented batches for ever."""
    augmentation = Augmentation.of(images.image_size, "cifar10", cutout=False)
    normal = sets.channel_statistics(images.images)
    while True:
        generator = torch.Generator().manual_seed(0)
        yield from sets.batches(
            images, config.batch_size, normal, generator=generator, augmentation=augmentation
        )


def candidate(config: Config, path: str) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]], float]:
    """A network, its training batches and the seconds that one more network takes to build and load."""
    weight_set = WeightSet(C=config.init_channels, num_classes=10, layers=config.layers)
    weight_set.network(CELL)  # start values are drawn once in a search
    images = images_like(config)
    if path == "project":
        begin = time.perf_counter()
        network: nn.Module = weight_set.network(CELL)
        return network, endless(images, config), time.perf_counter() - begin
    ours = weight_set.network(CELL)
    whole = plain.PlainNetwork(ours, everything=True).state_dict()
    begin = time.perf_counter()
    network = plain.PlainNetwork(ours, everything=True)
    network.load_state_dict(whole)
    return network, plain.batches(images, config.batch_size), time.perf_counter() - begin


def prepare(config: Config, path: str, precision: str) -> timing.Prepared:
    """The two kinds of steps of one candidate."""
    if path == "project":
        keep_memory()
    network, batches, start_up = candidate(config, path)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=3e-4)
    scaler = grad_scaler(torch.device("cpu"), precision)
    inputs, labels = next(batches)

    def train() -> int:
        loop.train_one_epoch(network, optimizer, [next(batches)], scaler=scaler, precision=precision)
        return config.batch_size

    def evaluate() -> int:
        evaluation.evaluate(network, [(inputs, labels)], precision)
        return config.batch_size

    return timing.Prepared({"training": train, "evaluating": evaluate}, {"start-up (s)": start_up})


def check_equal(config: Config) -> float:
    """The largest difference of the two paths' logits; ValueError if it is above 1e-4."""
    weight_set = WeightSet(C=config.init_channels, num_classes=10, layers=config.layers)
    ours = weight_set.network(CELL)
    theirs = plain.PlainNetwork(ours, everything=False)
    images = torch.randn(8, 3, config.image_size, config.image_size)
    with torch.no_grad():
        difference = (ours.train()(images)[0] - theirs.train()(images)[0]).abs().max().item()
    if not difference <= 1e-4:
        raise ValueError(f"the two paths differ by {difference:.1e}")
    return difference


def main(config: Config) -> None:
    origin = evidence.provenance(asdict(config))
    difference = check_equal(config)
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(config.repeats):
        for processes, threads in ((1, 2), (2, 1)):
            for path, precision in itertools.product(("plain", "project"), config.precisions):
                name = f"{path} {precision}, {processes} x {threads} threads"
                arguments = (config, path, precision)
                found = timing.in_processes(prepare, arguments, processes, threads, config.seconds)
                results.setdefault(name, []).append(found)
    names = ("training", "per CPU s", "evaluating", "per CPU s", "start-up", "memory")
    print(f"{'medians, images per second':34}" + "".join(f"{name:>12}" for name in names))
    for name, rounds in results.items():
        figures = [statistics.median(found[key] for found in rounds) for key in rounds[0]]
        units = ("{:.1f}", "{:.1f}", "{:.1f}", "{:.1f}", "{:.3f} s", "{:.0f} MiB")
        cells = (unit.format(figure) for unit, figure in zip(units, figures, strict=True))
        print(f"{name:34}" + "".join(f"{cell:>12}" for cell in cells))
    flops = origin["hardware"]["gflops_float32_matrix_product"]
    print(f"2048-cube matrix product: {flops} GFLOP/s; logits of the two paths differ by {difference:.1e}")
    evidence.write(config.json, origin | {"largest_difference": difference, "rounds": results})


if __name__ == "__main__":
    run_script(main, parse(Config))
