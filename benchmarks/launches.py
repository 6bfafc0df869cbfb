"""What a GPU would be asked for: launches, casts, host reads and copies of a step, beside the plain path.

    python benchmarks/launches.py
    python benchmarks/launches.py --json launches.json

Counted on a device that Python poses as (tests/rehearsal.py), so no GPU is needed, but a recent PyTorch is.
The networks are a candidate (16 channels, 8 cells), the full CIFAR network (36, 20) and the ImageNet network
(46, 14), all of the RelativeNAS cell. Launches do not depend on the size of batch and images: small ones do.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))  # and the device

import evidence
import numpy as np
import plain
import rehearsal
import torch
from PIL import Image
from torch import Tensor

import genotypes
from common.flags import check_range, parse, run_script
from images import sets
from images.augmentation import Augmentation
from images.large import LargeImages
from model import Network, NetworkCIFAR, NetworkImageNet
from model_search import WeightSet
from training import evaluation, loop
from training.optimizer import sgd
from training.precision import grad_scaler

CELL = genotypes.lookup("RelativeNAS")
# plain.py has no stem for large images.
SUBJECTS = {"candidate": ("plain", "project"), "network": ("plain", "project"), "imagenet": ("project",)}
FIGURES = ("launches", "casts", "reads", "uploads", "pageable", "uploaded", "downloads")
CIFAR_SIZE, IMAGENET_SIZE = 16, 64  # pixels
BATCHES = 2  # that there are images for


@dataclass(frozen=True)
class Config:
    """Launches, casts, host reads and copies of training steps and evaluations."""

    batch_size: int = 2
    """Images per step."""
    layers: int | None = None
    """Cells of all networks; default 8, 20 and 14."""
    json: str | None = None
    """Write the result to this file, which must not exist."""

    def check(self) -> None:
        """Raise ValueError for what cannot be counted."""
        check_range(self, "batch_size", 2)
        check_range(self, "layers", 3)
        evidence.check_output(self.json)
        if (reason := rehearsal.missing()) is not None:
            raise ValueError(f"nothing can be counted: {reason}")


class Subject(NamedTuple):
    """A network on the device, with what trains and evaluates it on so many batches."""

    train: Callable[[int], None]
    evaluate: Callable[[int], None]


Batches = Iterator[tuple[Tensor, Tensor]]


def prepare(config: Config, name: str, path: str, precision: str) -> Subject:
    """One of SUBJECTS on one of its paths; the plain one has no auxiliary head, drop path and cutout."""
    device = torch.device(rehearsal.NAME, 0)
    network = build(config, name, path).to(device)
    training, clean = inputs(config, name, path, device)
    rate, recipe = 0.01, SimpleNamespace(momentum=0.9, weight_decay=3e-4)
    if path == "plain":
        optimizer = torch.optim.SGD(network.parameters(), rate, recipe.momentum, weight_decay=3e-4)
    else:
        optimizer = sgd(network, recipe, rate)
    scaler = grad_scaler(device, precision)

    def train(count: int) -> None:
        if path == "project":
            network.drop_path_prob = 0.2 if name != "imagenet" else 0.0
            network.drop_path_generator = torch.Generator(device).manual_seed(0)
        some = islice(training(), count)
        if name == "candidate":
            loop.train_one_epoch(network, optimizer, some, scaler=scaler, precision=precision)
            return
        network.train()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for images, labels in some:
            sums += loop.train_step(
                network,
                optimizer,
                images,
                labels,
                images=len(labels),
                scaler=scaler,
                precision=precision,
                auxiliary_weight=0.4,
                label_smoothing=0.1 if name == "imagenet" else 0.0,
            )
        sums.tolist()

    def evaluate(count: int) -> None:
        if name == "candidate":
            evaluation.evaluate(network, islice(clean(), count), precision)
        else:
            evaluation.total_errors(network, islice(clean(), count), precision)

    return Subject(train, evaluate)


def build(config: Config, name: str, path: str) -> Any:
    """The network, on the CPU."""
    auxiliary, layers = (
        path == "project",
        config.layers or {"candidate": 8, "network": 20, "imagenet": 14}[name],
    )
    if name == "candidate":
        weight_set = WeightSet(C=16, num_classes=10, layers=layers, image_size=CIFAR_SIZE)
        ours: Network = weight_set.network(CELL)
    elif name == "network":
        ours = NetworkCIFAR(36, 10, layers, auxiliary, CELL, image_size=CIFAR_SIZE)
    else:
        ours = NetworkImageNet(46, 1000, layers, auxiliary, CELL, image_size=IMAGENET_SIZE)
    if path == "project":
        return ours.to(memory_format=torch.channels_last)
    return plain.PlainNetwork(ours, everything=name == "candidate")


def inputs(
    config: Config, name: str, path: str, device: torch.device
) -> tuple[Callable[[], Batches], Callable[[], Batches]]:
    """What begins an epoch of training batches, and one of clean batches, on the device."""
    if name == "imagenet":
        return large_inputs(config, device)
    shape = (BATCHES * config.batch_size, 3, CIFAR_SIZE, CIFAR_SIZE)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = sets.ImageSet(pixels, torch.arange(len(pixels)) % 10, tuple("0123456789"))
    normal = sets.channel_statistics(pixels)
    if path == "plain":
        return (
            lambda: uploaded(plain.batches(images, config.batch_size), device),
            lambda: uploaded(sets.batches(images, config.batch_size, normal), device),
        )
    there, augmentation = images.to(device), Augmentation.of(CIFAR_SIZE, "cifar10", cutout=True)
    return (
        lambda: sets.batches(
            there, config.batch_size, normal, generator=torch.Generator(), augmentation=augmentation
        ),
        lambda: sets.batches(there, config.batch_size, normal),
    )


def uploaded(batches: Batches, device: torch.device) -> Batches:
    """Batches of the CPU on the device."""
    for images, labels in batches:
        yield images.to(device), labels.to(device)


def large_inputs(config: Config, device: torch.device) -> tuple[Callable[[], Batches], Callable[[], Batches]]:
    """The same for class folders of large images, which are made up."""
    folder = tempfile.TemporaryDirectory()
    for index in range(BATCHES * config.batch_size):
        place = Path(folder.name, str(index % 2))
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((IMAGENET_SIZE, IMAGENET_SIZE, 3), index, np.uint8)).save(
            place / f"{index}.png"
        )

    def begin(training: bool) -> Batches:
        images = LargeImages(folder.name, IMAGENET_SIZE, training)  # the folder stays as long as this
        yield from images.batches(config.batch_size, device, shuffled=training)

    return lambda: begin(True), lambda: begin(False)


def figures(counted: rehearsal.Count) -> dict[str, int]:
    """A count as FIGURES."""
    found = {name: getattr(counted, name) for name in FIGURES}
    return {name: len(value) if isinstance(value, list) else value for name, value in found.items()}


def per_batch(work: Callable[[int], None]) -> tuple[dict[str, int], dict[str, int]]:
    """FIGURES of a further batch, and of all that comes once, however many batches there are."""
    work(1)  # an optimiser's first step makes its buffers
    found = []
    for batches in (1, 2):
        with rehearsal.count() as counted:
            work(batches)
        found.append(figures(counted))
    step = {name: found[1][name] - found[0][name] for name in FIGURES}
    return step, {name: found[0][name] - step[name] for name in FIGURES}


def count(config: Config, name: str, path: str, precision: str) -> dict[str, dict[str, int]]:
    """FIGURES of a training step, an evaluation batch, and what comes once in an epoch and an evaluation."""
    subject = prepare(config, name, path, precision)
    step, epoch = per_batch(subject.train)
    batch, evaluation = per_batch(subject.evaluate)
    return {"step": step, "once an epoch": epoch, "batch": batch, "once an evaluation": evaluation}


def main(config: Config) -> None:
    origin = evidence.provenance(asdict(config))
    print(f"{'':48}" + "".join(f"{name:>10}" for name in FIGURES))
    rows = []
    with rehearsal.in_place_of_the_cpu():
        for name, paths in SUBJECTS.items():
            for path in paths:
                for precision in ("float32", "bfloat16"):
                    for part, found in count(config, name, path, precision).items():
                        words = f"{name}, {path}, {precision}, {part}"
                        print(f"{words:48}" + "".join(f"{found[figure]:10}" for figure in FIGURES))
                        row = {"network": name, "path": path, "precision": precision, "part": part}
                        rows.append(row | found)
    print(f"uploaded is in bytes, for {config.batch_size} images")
    evidence.write(config.json, origin | {"rows": rows})


if __name__ == "__main__":
    run_script(main, parse(Config))
