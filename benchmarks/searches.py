"""What the benchmarks of searches on images share: their folders, test images, and cells from scratch."""

import sys
from collections.abc import Sequence
from pathlib import Path

from training.evaluation import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import numpy as np
import torch

from common.run_folder import SETTINGS, read_settings
from genotypes import AnyGenotype
from images import sets
from search.candidates import Task
from search.finalists import train_from_scratch, trained_network
from search.run import SearchRun, open_search
from spaces import Space
from train_search import Config as SearchConfig
from utils import derive_seed, say


def open_or_begin(
    settings: SearchConfig, path: Path, device: torch.device, test_images: int | None = None
) -> tuple[SearchRun, sets.ImageSet]:
    """The search in the folder `path`, as far as it is, or begun there; so many of the test images.

    ValueError where there are fewer, or where the folder holds a search of other settings.
    """
    run, test = open_search(settings, path, device)
    test = draw_test_images(test, test_images, settings.seed)
    if (path / SETTINGS).exists():
        if read_settings(path, SearchConfig) != run.config:
            raise ValueError(f"{path}: a search with other settings is there; choose another folder")
        if problem := run.load_checkpoint():
            say(problem)
    else:
        run.folder.create(run.config)
    run.keep_tables()
    return run, test.to(device)


def draw_test_images(test: sets.ImageSet, count: int | None, seed: int) -> sets.ImageSet:
    """`count` random test images, or all in random order: class folders list one class after the other.

    Raises ValueError where there are fewer.
    """
    if count is not None and count > len(test):
        raise ValueError(f"--test_images {count}: there are only {len(test)}")
    return test.subset(torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:count])


def random_cells(settings: SearchConfig, count: int, seed: int, purpose: str) -> list[AnyGenotype]:
    """Cells drawn uniformly from the search's space; equal seeds and purposes give equal ones."""
    space = Space.of(settings).encoding()
    rng = np.random.default_rng(derive_seed(seed, purpose) % 2**32)
    return [space.decode(space.sample(rng)) for _ in range(count)]


def test_errors(task: Task, test: sets.ImageSet, cells: Sequence[AnyGenotype]) -> list[float]:
    """Test error of each cell after training from scratch, in [0, 1]."""
    networks = (trained_network(task, finalist) for finalist in train_from_scratch(task, cells))
    return [evaluate(network, task.clean(test), task.precision).error for network in networks]
