"""The cell that a search found beside random cells, all trained from scratch in the same way and tested.

    python benchmarks/found_cell.py --search runs/digits
    torchrun --standalone --nproc_per_node 2 benchmarks/found_cell.py --search runs/digits --json out.json

Size, epochs, images and learning rate are those of the run's finalists. Cells train on the training half and
are tested on the test images, which chose nothing here. Each seed gives other start values, batches and
random cells; the split stays the run's.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import measure
import numpy as np
import torch

import genotypes
import train_search
from common import distributed
from common.flags import check_range, run_script
from common.run_folder import read_settings
from encoding import CellSpace
from genotypes import Genotype
from images import sets
from search.candidates import Task, load_task
from search.finalists import train_from_scratch, trained_network
from training.evaluation import evaluate
from utils import derive_seed


@dataclass(frozen=True)
class Config:
    """Compare a run's winner with random cells."""

    search: str
    """folder of a finished search"""
    cells: int = 10
    """random cells for each seed"""
    seeds: int = 3
    """repetitions"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "cells seeds", 1)
        measure.check_output(self.json)


def test_errors(
    task: Task, test: sets.ImageSet, cells: list[Genotype], settings: train_search.Config
) -> list[float]:
    """Test error of each cell after training from scratch, in [0, 1]."""
    C, layers = settings.init_channels, settings.layers
    trained = train_from_scratch(
        task,
        cells,
        C=C,
        layers=layers,
        epochs=settings.final_epochs,
        learning_rate=settings.final_learning_rate,
    )
    errors = []
    for finalist in trained:
        network = trained_network(task, finalist, C, layers)
        errors.append(evaluate(network, task.clean(test), task.precision).error)
    return errors


def main(config: Config) -> None:
    settings = read_settings(config.search, train_search.Config, "search")
    found = genotypes.lookup(Path(config.search))
    device = distributed.init(settings.device)
    torch.set_num_threads(settings.threads)
    task, test = load_task(settings, device)
    test = test.to(device)
    space = CellSpace(distinct_inputs=settings.distinct_inputs)
    errors: dict[str, list[float]] = {"found": [], "random": []}
    for seed in range(config.seeds):
        rng = np.random.default_rng(derive_seed(seed, "random cells") % 2**32)
        cells = [found, *(space.decode(space.sample(rng)) for _ in range(config.cells))]
        repeated = task._replace(seed=derive_seed(seed, "found cell"))
        first, *others = test_errors(repeated, test, cells, settings)
        errors["found"].append(first)
        errors["random"] += others
        distributed.say(f"seed {seed}: found {first:.2%}, random {statistics.mean(others):.2%}")
    if distributed.is_main():
        for name, values in errors.items():
            spread = measure.spread(values)
            sd = "-" if spread["sd"] is None else f"{spread['sd']:.2%}"
            print(f"{name}: test error {spread['mean']:.2%}, sd {sd}, n {len(values)}")
        origin = measure.provenance(asdict(config) | {"settings": dataclasses.asdict(settings)})
        measure.write(config.json, origin | {"genotype": genotypes.to_dict(found), "test_error": errors})
    distributed.close()


if __name__ == "__main__":
    run_script(main, Config)
