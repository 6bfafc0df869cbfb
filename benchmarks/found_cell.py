"""The cell that a search found beside random and known ones, all trained from scratch in the same way.

    python benchmarks/found_cell.py --search runs/digits
    python benchmarks/found_cell.py --search runs/digits --beside RelativeNAS DARTS_V2
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

import evidence
import torch
from searches import random_cells, test_errors

import genotypes
from common import distributed
from common.flags import check_range, parse, run_script
from common.run_folder import read_settings
from search.candidates import load_task
from train_search import Config as SearchConfig
from utils import derive_seed, say


@dataclass(frozen=True)
class Config:
    """Compare a run's winner with random cells, and with known ones."""

    search: str
    """folder of a finished search"""
    cells: int = 10
    """random cells for each seed; 0 for none"""
    beside: tuple[str, ...] = ()
    """known cells: names in genotypes.py, or files; each seed trains each of them, as the found one"""
    seeds: int = 3
    """repetitions"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "cells", 0)
        check_range(self, "seeds", 1)
        if {"found", "random"} & set(self.beside):
            raise ValueError("--beside: found and random are the run's own rows; give names of known cells")
        evidence.check_output(self.json)


def main(config: Config) -> None:
    settings = read_settings(config.search, SearchConfig, "search")
    known = {"found": genotypes.lookup(Path(config.search))}
    known |= {name: genotypes.lookup(name) for name in config.beside}
    device = distributed.init(settings.device)
    torch.set_num_threads(settings.threads)
    task, test = load_task(settings, device)
    test = test.to(device)
    names = [*known, *["random"] * config.cells]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(config.seeds):
        cells = [*known.values(), *random_cells(settings, config.cells, seed, "random cells")]
        repeated = task._replace(seed=derive_seed(seed, "found cell"))
        these: dict[str, list[float]] = {}
        for name, error in zip(names, test_errors(repeated, test, cells), strict=True):
            these.setdefault(name, []).append(error)
            errors[name].append(error)
        say(f"seed {seed}: " + ", ".join(f"{name} {statistics.mean(these[name]):.2%}" for name in these))
    if distributed.is_main():
        for name, values in errors.items():
            spread = evidence.spread(values)
            sd = "-" if spread["sd"] is None else f"{spread['sd']:.2%}"
            print(f"{name}: test error {spread['mean']:.2%}, sd {sd}, n {len(values)}")
        origin = evidence.provenance(asdict(config) | {"settings": dataclasses.asdict(settings)})
        result = {"genotype": genotypes.to_dict(known["found"]), "test_error": errors}
        evidence.write(config.json, origin | result)
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
