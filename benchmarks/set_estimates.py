"""What weight sets say of cells whose trainings are known: ways to train a set, and ways to judge by it.

    python benchmarks/set_estimates.py --table runs/table --data data --out runs/sets
    python benchmarks/estimates.py --table runs/table/trainings.csv --sets runs/sets/sets.csv

`--table` is a folder of image_table.py; its images, split and networks are taken. Each way of WAYS trains a
weight set on equally many images, the first one as published. Then random cells of the table are judged with
the set's weights: as they are, with batch-norm re-estimated, and after a visit at the rate at which the set
ended, and at `--rate`. One line of `sets.csv` is one cell: what it was judged at, the share of its
operations' weights that the set has taken from candidates, and their `age`, as a search tells its predictor
(WeightSet.age). The file is written anew after each set; what was stopped goes on when it is started again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import image_table
import torch
from estimates import OF_SETS
from image_table import HEAD, TABLE, arch, as_text, cell_of, check_images, kept, read

from common.flags import check_range, parse, run_script
from encoding import CellSpace
from genotypes import AnyGenotype
from model_search import SHARED, Weights, WeightSet
from search.candidates import Job, Task, TrainedCandidate, compare, load_task, train_candidate
from search.paired_search import Comparison, PairedSearch, Settings
from training.schedule import cosine
from utils import derive_seed, say, write_atomically

SETS, SETTINGS = "sets.csv", "sets_settings.json"
POPULATION = 20
SHORT_VISIT = 8  # steps


class Way(NamedTuple):
    """How a weight set trains.

    Candidates come from the published rule's population, or are random. What the set takes: of "both" the
    fast one and what only the slow one has, as published; of the "fast" one alone; the "mean" of what both
    have; or "each", whatever it learned. The learning rate falls along a cosine, or is constant.
    """

    evolving: bool = False
    take: Literal["both", "fast", "mean", "each"] = "both"
    constant: float | None = None
    epochs: int = 1  # of a visit
    short: bool = False  # a visit is SHORT_VISIT steps


WAYS = {
    "published": Way(evolving=True),
    "random pairs": Way(),
    "short visits": Way(take="each", constant=0.05, short=True),
    "fast only": Way(take="fast"),
    "mean": Way(take="mean"),
    "constant rate": Way(constant=0.05),
    "two epochs": Way(epochs=2),
}


@dataclass(frozen=True)
class Config:
    """Train weight sets and judge known cells by them."""

    table: str
    """folder of image_table.py"""
    out: str
    """folder of sets.csv; what it holds already is not done again"""
    data: str = "data"
    """folder that holds the table's images"""
    ways: tuple[str, ...] = tuple(WAYS)
    """of training a set; see WAYS"""
    cells: int = 60
    """random cells of the table to judge"""
    repeats: int = 1
    """sets of each way, from other start values and with other candidates"""
    budget: int = 100
    """epochs that a set trains"""
    rate: float = 0.02
    """learning rate of a visit that judges"""
    learning_rate_min: float = 0.001
    """what the cosine comes down to"""
    recalibrate: int = 8
    """batches that re-estimate batch-norm"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "cells", 3)
        check_range(self, "repeats recalibrate", 1)
        check_range(self, "budget", POPULATION)
        check_range(self, "rate", 0, 1e38, open_low=True)
        check_range(self, "learning_rate_min", 0, 1)
        for name in self.ways:
            if name not in WAYS:
                raise ValueError(f"--ways {name}: allowed are {', '.join(WAYS)}")


@dataclass(frozen=True)
class Networks(image_table.Config):
    """What the table's networks are and how they train; and how many batches re-estimate batch-norm."""

    recalibrate: int = 0


def known_cells(config: Config) -> list[AnyGenotype]:
    """The first random cells of the table. ValueError where there are not so many."""
    rows = read(Path(config.table) / TABLE, "image_table.py", HEAD)
    names = list(dict.fromkeys(row["arch"] for row in rows if row["kind"] == "random"))
    if len(names) < config.cells:
        raise ValueError(f"--cells {config.cells}: {config.table} has {len(names)} random cells")
    return [cell_of(name) for name in names[: config.cells]]


def networks_of(config: Config) -> Networks:
    """The settings of the table. ValueError where the folder holds none."""
    try:
        settings = kept(Path(config.table) / image_table.SETTINGS)["settings"]
        networks = Networks(out=config.out, data=config.data, **settings)
        networks.check()
    except (ValueError, TypeError) as error:  # or settings that have no such name, or are no number
        raise ValueError(f"--table {config.table}: no table of image_table.py ({error})") from None
    return networks


class TrainedSet:
    """A weight set that trains in one of the ways, and then judges."""

    def __init__(self, task: Task, way: Way, config: Config) -> None:
        self.task, self.way, self.config = task, way, config
        self.weight_set: WeightSet = task.weight_set("weight set")
        self.rate = way.constant or config.learning_rate_min  # where it ends
        self._train()

    def _train(self) -> None:
        for visit, (comparison, progress, search) in enumerate(self._pairs()):
            a, b = (self._visit(cell, visit, progress) for cell in (comparison.a, comparison.b))
            outcome = compare(a.losses, b.losses)
            fast = search.tell(comparison, outcome)
            if self.way.take != "each" and fast is not None:
                self._take(*((a, b) if fast == "a" else (b, a)))

    def _pairs(self) -> Iterator[tuple[Comparison, float, PairedSearch]]:
        """The comparisons of a search that spends the budget, with the share of it that is spent."""
        task, way = self.task, self.way
        epochs = SHORT_VISIT / task.steps if way.short else way.epochs
        pairs = max(1, round(self.config.budget / (2 * epochs)))
        settings = Settings(
            pop_size=POPULATION, generations=pairs, seed=task.seed % 2**32,
            strategy="slow_fast" if way.evolving else "random", rank=False, screen=False, decide=False,
        )  # fmt: skip
        search = PairedSearch(space=CellSpace(), settings=settings)
        for number in range(pairs):
            # As in a search, the rate is that of the generation's beginning.
            generation = number - number % (POPULATION // 2)
            yield search.ask()[0], generation / pairs, search

    def _visit(self, cell: AnyGenotype, visit: int, progress: float) -> TrainedCandidate:
        way, config, task = self.way, self.task.config, self.task
        rate = way.constant or cosine(progress, config.learning_rate, self.config.learning_rate_min)
        if way.short:
            drawn = torch.Generator().manual_seed(derive_seed(task.seed, "short", visit))
            some = torch.randperm(len(task.train), generator=drawn)[: SHORT_VISIT * config.batch_size]
            two = task.validation.subset(torch.arange(2))  # nobody asks who was fast
            task = task._replace(train=task.train.subset(some), validation=two)
        found = train_candidate(
            task, self.weight_set, Job(cell, ("visit", visit), [(rate, 0.0)] * way.epochs)
        )
        if found.finite and way.take == "each":
            self.weight_set.absorb(found.weights)
        return found

    def _take(self, fast: TrainedCandidate, slow: TrainedCandidate) -> None:
        weights: Weights = dict(fast.weights)
        if self.way.take == "mean" and slow.finite:
            for key in weights.keys() & slow.weights.keys():
                if weights[key].is_floating_point():
                    weights[key] = (weights[key] + slow.weights[key]) / 2
        self.weight_set.absorb(weights, slow.weights if self.way.take != "fast" and slow.finite else None)

    def _trained_share(self, cell: AnyGenotype) -> float:
        weights, visits = self.weight_set.weights(self.weight_set.network(cell)), self.weight_set.visits
        assert visits is not None, "a set that starts here counts them"
        names = list(filter(SHARED.match, weights))
        return sum(visits[name] > 0 for name in names) / len(names) if names else 1.0

    def judge(self, cell: AnyGenotype) -> dict[str, Any]:
        """What the set says of a cell; all cells see the same batches. Empty where training diverged."""
        row: dict[str, Any] = {
            "trained_share": self._trained_share(cell),
            "age": self.weight_set.age(cell),
        }
        again = dataclasses.replace(self.task.config, recalibrate=self.config.recalibrate)
        job = Job(cell, ("judge",), [])
        as_it_is = train_candidate(self.task._replace(config=again), self.weight_set, job)
        row["as_it_is"] = as_it_is.loss
        for name, rate in (("last_rate", self.rate), ("rate", self.config.rate)):
            job = job._replace(schedule=[(rate, 0.0)] * self.way.epochs)
            found = train_candidate(self.task, self.weight_set, job)
            row[f"{name}_training_loss"] = found.training_loss
            row[f"{name}_validation_loss"] = found.loss
        return {name: f"{value:.6g}" if math.isfinite(value) else "" for name, value in row.items()}


def open_folder(config: Config, networks: Networks, task: Task) -> Path:
    """The folder of the sets, new or with the same settings, networks and images. ValueError where it holds
    others; what earlier versions wrote tells of neither networks nor images, and goes on.
    """
    changing = ("out", "table", "data", "ways", "repeats")
    settings = {name: value for name, value in asdict(config).items() if name not in changing}
    # The table as such: its folder may have moved, and it may have more cells and repeats by now.
    table = {name: value for name, value in asdict(networks).items() if name not in image_table.EXTENDS}
    folder = Path(config.out)
    file = folder / SETTINGS
    if file.is_file():
        there = kept(file)
        if there["settings"] != settings:
            raise ValueError(f"--out {folder}: holds sets made with other settings, see {file}")
        if there.get("networks", table) != table:
            raise ValueError(f"--table {config.table}: has other networks than the sets of {file}")
        check_images(file, task)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    origin = evidence.provenance(asdict(config) | {"networks": asdict(networks)})
    identity = {"settings": settings, "networks": table, "images": task.fingerprint}
    write_atomically(file, json.dumps(identity | origin, indent=1) + "\n")
    return folder


def main(config: Config) -> None:
    torch.set_num_threads(1)  # on which the bits of a result depend
    networks = networks_of(config)
    cells, (task, _) = known_cells(config), load_task(networks, torch.device("cpu"))
    check_images(Path(config.table) / image_table.SETTINGS, task)
    folder = open_folder(config, networks, task)
    rows = read(folder / SETS, "set_estimates.py", OF_SETS)
    done = {(row["way"], int(row["repeat"])) for row in rows}
    for repeat in range(config.repeats):
        for name in config.ways:
            if (name, repeat) in done:
                continue
            say(f"{name}, repeat {repeat}: the set trains")
            seed = derive_seed(networks.seed, "sets", repeat)
            trained = TrainedSet(task._replace(seed=seed), WAYS[name], config)
            head = {"way": name, "repeat": repeat, "epochs": WAYS[name].epochs}
            rows += [head | {"arch": arch(cell)} | trained.judge(cell) for cell in cells]
            write_atomically(folder / SETS, as_text(rows))


if __name__ == "__main__":
    run_script(main, parse(Config))
