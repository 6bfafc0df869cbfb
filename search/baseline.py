"""Random cells that train as the finalists do: the measure of what a search has found.

They choose nothing, so they may see the test images as the winner does.
"""

from __future__ import annotations

import numpy as np

from common import distributed
from genotypes import AnyGenotype, to_json
from images import sets
from search.finalists import train_from_scratch, trained_network
from search.run import SearchRun
from training.evaluation import evaluate
from utils import derive_seed


def random_cells(run: SearchRun) -> list[AnyGenotype]:
    """As many acceptable cells as `--baseline` says, drawn uniformly; equal seeds give equal ones."""
    search, cells = run.search, list[AnyGenotype]()
    rng = np.random.default_rng(derive_seed(run.config.seed, "baseline"))
    while len(cells) < run.config.baseline:  # the search has found cells within its limits, so it ends
        cell = search.space.decode(search.space.sample(rng))
        if search.accept is None or search.accept(cell):
            cells.append(cell)
    return cells


def train_baseline(run: SearchRun, test: sets.ImageSet) -> None:
    """Train and test the cells that the record does not hold yet, with a checkpoint after each round."""
    cells, rows, task = random_cells(run), run.record.baseline, run.task
    test = test.to(task.device)
    while waiting := cells[len(rows) :]:
        for trained in train_from_scratch(task, waiting[: distributed.world_size()]):
            tested = evaluate(trained_network(task, trained), task.clean(test), task.precision)
            rows.append(
                {
                    "genotype": to_json(trained.genotype),
                    "loss": trained.trained.loss,
                    "error": trained.trained.error,
                    "training_loss": trained.trained.training_loss,
                    "test_error": tested.error,
                }
            )
        run.save()
        run.folder.log.info(f"random cell {len(rows)}/{len(cells)}: test error {rows[-1]['test_error']:.2%}")
