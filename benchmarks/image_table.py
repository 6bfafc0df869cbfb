"""A table of real trainings: cells trained from scratch on images, with everything seen on the way.

    python benchmarks/image_table.py --out runs/table --set folder --data data/cifar10-jpeg --image_size 16 \
        --images 4000 --cells 150 --repeats 2 --processes 2

One line of `trainings.csv` is one training: the cell (`arch`, the choices of the search space joined by -),
its kind (random, or the name it has in genotypes.py), the repeat, the test accuracy after the last epoch, the
CPU seconds of training, for every epoch training and validation loss and error, and what is known before
training: parameters, multiply-adds and zero-cost scores. Cells of one repeat share
start values, batches and crops, as candidates of a search do; another repeat has others. The images and
their split stay. The file is written anew after each training: what was stopped goes on when it is started
again, with any number of processes, and with more cells or repeats.
"""

from __future__ import annotations

import csv
import ctypes
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import torch
from baselines import uphill
from tqdm import tqdm
from zero_cost import scores

import genotypes
from common.flags import check_range, parse, run_script
from encoding import CellSpace
from genotypes import AnyGenotype, Genotype
from images import sets
from model import count
from pair_predictor import PairPredictor
from search import prior
from search.candidates import Task, check_batch_size, load_task
from training import loop
from training.evaluation import evaluate
from training.precision import grad_scaler
from training.schedule import cosine, set_learning_rate
from utils import derive_seed, write_atomically

TABLE, SETTINGS = "trainings.csv", "settings.json"
CHOSEN, ROUND = "chosen", 8
EXTENDS = (
    "out",
    "cells",
    "chosen",
    "repeats",
    "named",
    "processes",
    "data",
)  # what may change when a table goes on


@dataclass(frozen=True)
class Config:
    """Train cells from scratch and write down what is seen."""

    out: str
    """folder of the table; what it holds already is not done again"""
    set: Literal["digits", "cluttered_digits", "fashion_mnist", "cifar10", "cifar100", "folder"] = "cifar10"
    """data set; "folder" reads class folders of images from --data"""
    data: str = "data"
    """folder that holds the data sets, or the class folders"""
    image_size: int | None = None
    """resize the images to this height and width in pixels"""
    images: int | None = None
    """use only so many of the training images"""
    train_portion: float = 0.5
    """share of the images that train; the others are the validation images"""
    test_images: int | None = None
    """use only so many of the test images"""
    cutout: bool = False
    """cut a square of half the image's side out of each training image"""
    cells: int = 150
    """random cells"""
    chosen: int = 0
    """cells that the predictor then chooses, eight at a time, by what it has learned from the table"""
    named: bool = True
    """the cells of genotypes.py as well"""
    repeats: int = 2
    """trainings of each cell, from other start values and with other batches"""
    epochs: int = 20
    """of each training; the learning rate falls to 0 along a cosine"""
    init_channels: int = 16
    """channels of the first cell"""
    layers: int = 3
    """cells in a network"""
    batch_size: int = 64
    """images per step"""
    learning_rate: float = 0.1
    """at the start"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-4
    """of SGD"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""
    seed: int = 0
    """of the images, their split, the random cells and the trainings"""
    processes: int = 1
    """trainings at the same time; the result does not depend on it"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "chosen", 0)
        if self.chosen and self.cells < prior.FEWEST:
            raise ValueError(f"--chosen {self.chosen}: needs --cells {prior.FEWEST} or more to learn from")
        check_range(self, "cells repeats processes epochs init_channels layers", 1)
        check_range(self, "batch_size test_images", 2)
        check_range(self, "images", 4)
        check_range(self, "image_size", 8, 1024)
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "momentum weight_decay", 0, 1)

    # What candidates.load_task wants to know beyond the flags.
    device = "cpu"
    precision = "float32"
    channels_last = True
    recalibrate = 0
    resume = None
    max_megapixels = 89.0


class Work(NamedTuple):
    """A training to do."""

    kind: str
    repeat: int
    cell: AnyGenotype


def cells(config: Config) -> Iterator[tuple[str, Genotype]]:
    """Kind and cell: the named ones that the search space has, then the random ones; none comes twice."""
    space, seen = CellSpace(), set()
    named = {name: genotypes.lookup(name) for name in genotypes.names()} if config.named else {}
    for name, genotype in named.items():
        try:
            cell = space.canonical(genotype)
        except ValueError:
            continue  # NASNet's and AmoebaNet's operations are not searched
        if cell not in seen:
            seen.add(cell)
            yield name, cell
    rng = np.random.default_rng(derive_seed(config.seed, "table") % 2**32)
    for _ in range(config.cells):
        yield "random", space.decode(space.sample(rng))


def choose(config: Config, rows: list[dict[str, Any]]) -> list[AnyGenotype]:
    """The next cells that the predictor would like, given the lines of the table so far; reproducible."""
    rng = np.random.default_rng(derive_seed(config.seed, "chosen", len(rows)) % 2**32)
    predictor = PairPredictor(space=CellSpace(), prior=prior.learn(as_text(rows), CellSpace()))
    known = {tuple(prior.choices_of(row["arch"]).tolist()) for row in rows}
    return uphill(predictor.space, predictor.posterior(), ROUND, rng, known)


def cell_of(name: str) -> Genotype:
    """The inverse of `arch`."""
    return CellSpace().architecture(prior.choices_of(name))


def arch(cell: AnyGenotype) -> str:
    """A cell as the table names it."""
    return "-".join(map(str, CellSpace().choices(cell).tolist()))


_prepared: tuple[Config, Task, sets.ImageSet] | None = None  # of this process


def prepare(config: Config) -> None:
    """Load the images in a process that trains; one thread, on which the bits of a result depend."""
    global _prepared
    if sys.platform == "linux":  # a killed program's workers would go on, unseen
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    torch.set_num_threads(1)
    task, test = load_task(config, torch.device("cpu"))
    if config.test_images is not None:
        drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(config.seed))
        test = test.subset(drawn[: config.test_images])
    _prepared = config, task, test


def train(work: Work) -> dict[str, Any]:
    """Train a cell from scratch; its line of the table. A training that diverges has empty numbers."""
    assert _prepared is not None
    config, task, test = _prepared
    task = task._replace(seed=derive_seed(config.seed, "table", work.repeat))
    begin, spent = time.process_time(), 0.0
    network = task.weight_set("table").network(work.cell)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay
    )
    scaler = grad_scaler(task.device, task.precision)
    seen: dict[str, Any] = {}
    for epoch in range(config.epochs):
        set_learning_rate(optimizer, cosine(epoch / config.epochs, config.learning_rate, 0.0))
        batches = task.batches("table", epoch)
        fitted = loop.train_one_epoch(network, optimizer, batches, scaler=scaler, grad_clip=config.grad_clip)
        spent += time.process_time() - begin
        found = evaluate(network, task.clean(task.validation))
        begin = time.process_time()
        numbers = (fitted.loss, fitted.error, found.loss, found.error)
        for part, number in zip(PARTS, numbers, strict=True):
            seen[f"{part}_{epoch + 1}"] = f"{number:.5g}" if math.isfinite(number) else ""
    tested = evaluate(network, task.clean(test))
    head: dict[str, Any] = {"arch": arch(work.cell), "kind": work.kind, "repeat": work.repeat}
    finite = math.isfinite(tested.loss)
    return head | {
        "accuracy": f"{100 * (1 - tested.error):.3f}" if finite else "",
        "test_loss": f"{tested.loss:.5g}" if finite else "",
        "seconds": f"{spent:.2f}",
        **seen,
        **before_training(work),
    }


def before_training(work: Work) -> dict[str, str]:
    """What is known of a cell without training: its network's size, and scores of its start on one batch."""
    assert _prepared is not None
    config, task, _ = _prepared
    task = task._replace(seed=derive_seed(config.seed, "table", work.repeat))
    network = task.weight_set("table").network(work.cell)
    images, labels = next(iter(task.batches("table", 0)))
    parameters, multiply_adds = count(network)
    found = {"parameters": parameters, "multiply_adds": multiply_adds, **scores(network, images, labels)}
    return {name: f"{value:.7g}" if math.isfinite(value) else "" for name, value in found.items()}


PARTS = ("training_loss", "training_error", "validation_loss", "validation_error")
HEAD = ("arch", "kind", "repeat", "accuracy", "test_loss", "seconds")
UNREADABLE = (OSError, ValueError, csv.Error)  # of `lines_of`


def columns(epochs: int) -> list[str]:
    """What every table of trainings of so many epochs has; older ones have no more."""
    return [*HEAD, *(f"{part}_{epoch}" for epoch in range(1, epochs + 1) for part in PARTS)]


def check_columns(there: Iterable[str], needed: Iterable[str]) -> None:
    """Raise ValueError that names the first column that is missing."""
    if missing := [name for name in needed if name not in there]:
        raise ValueError(f"it has no column {missing[0]}")


def lines_of(file: str | Path, needed: Iterable[str]) -> list[dict[str, Any]]:
    """The lines of a table with the columns `needed`, among which are arch and repeat.

    UNREADABLE that says why, without the file's name, where it is none, or damaged.
    """
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        check_columns(reader.fieldnames or (), needed)
        rows = []
        for row in reader:
            try:
                if None in row or None in row.values():
                    raise ValueError("more or fewer fields than in the first line")
                prior.choices_of(row["arch"])
                if int(row["repeat"]) < 0:
                    raise ValueError(f"repeat {row['repeat']} is below 0")
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
            rows.append(row)
    if not rows:
        raise ValueError("it has no lines")
    return rows


def read(file: Path, maker: str, needed: Iterable[str]) -> list[dict[str, Any]]:
    """The lines of a table of the script `maker`; none where it is not there. ValueError that names the file
    where it is damaged.
    """
    if not file.is_file():
        return []
    try:
        return lines_of(file, needed)
    except UNREADABLE as error:
        raise ValueError(f"{file}: no table of {maker} ({error})") from None


def kept(file: Path) -> dict[str, Any]:
    """What a settings file holds, "settings" among it. ValueError that names the file where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
            raise ValueError("it has no settings")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no settings file of a benchmark ({error})") from None
    return found


def check_images(file: Path, task: Task) -> None:
    """Raise ValueError where a settings file tells of other images; older ones tell of none."""
    if kept(file).get("images", task.fingerprint) != task.fingerprint:
        raise ValueError(f"--data {task.config.data}: holds other images than those of {file}")


def as_text(rows: list[dict[str, Any]]) -> str:
    """The lines as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def open_folder(config: Config) -> tuple[Path, list[dict[str, Any]]]:
    """The table's folder, new or with the same settings, and its lines. ValueError where it holds another
    table, or where the images cannot be what the flags say; nothing is written then.
    """
    folder = Path(config.out)
    settings = {name: value for name, value in asdict(config).items() if name not in EXTENDS}
    file = folder / SETTINGS
    begun = file.is_file()
    if begun:
        there = kept(file)["settings"]
        differing = [f"--{name} {there.get(name)}" for name in settings if there.get(name) != settings[name]]
        if differing:
            others = ", ".join(differing)
            raise ValueError(f"--out {folder}: holds a table made with other settings: {others}")
    rows = read(folder / TABLE, "image_table.py", columns(config.epochs))
    # Here, as a process that trains could only break the pool. The images are not kept: this one needs none.
    task, _ = load_task(config, torch.device("cpu"))
    if begun:
        check_images(file, task)
    else:
        check_batch_size(task)  # what earlier versions began goes on
        folder.mkdir(parents=True, exist_ok=True)
        origin = evidence.provenance(asdict(config))
        identity = {"settings": settings, "images": task.fingerprint}
        write_atomically(file, json.dumps(identity | origin, indent=1) + "\n")
    return folder, rows


def main(config: Config) -> None:
    folder, rows = open_folder(config)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(config.processes, context, prepare, (config,)) as pool,
        tqdm(total=config.repeats * (len(list(cells(config))) + config.chosen), unit="training") as bar,
    ):

        def train_all(some: Iterable[tuple[str, AnyGenotype]]) -> None:
            """Train what is not there yet; the file is whole at every moment."""
            have = {(row["arch"], int(row["repeat"])) for row in rows}
            todo = [
                Work(kind, repeat, cell)
                for kind, cell in some
                for repeat in range(config.repeats)
                if (arch(cell), repeat) not in have
            ]
            bar.update(len(rows) - bar.n)
            for row in pool.map(train, todo):
                rows.append(row)
                write_atomically(folder / TABLE, as_text(rows))
                bar.update()

        if any("parameters" not in row for row in rows):  # of a table begun before these were written
            works = [Work(row["kind"], int(row["repeat"]), cell_of(row["arch"])) for row in rows]
            for row, found in zip(rows, pool.map(before_training, works), strict=True):
                row |= found
            write_atomically(folder / TABLE, as_text(rows))
        train_all(cells(config))
        for number in range(0, config.chosen, ROUND):
            there = list(dict.fromkeys(row["arch"] for row in rows if row["kind"] == CHOSEN))
            before, now = there[:number], there[number : number + ROUND]
            if len(now) < min(ROUND, config.chosen - number):  # else they were chosen by what was known then
                known = [row for row in rows if row["kind"] != CHOSEN or row["arch"] in before]
                train_all((CHOSEN, cell) for cell in choose(config, known)[: config.chosen - number])
            else:
                train_all((CHOSEN, cell_of(name)) for name in now)


if __name__ == "__main__":
    run_script(main, parse(Config))
