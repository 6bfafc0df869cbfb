"""Search for a cell by paired learning.

    make search                                                          # 8x8 digits, two processes, minutes
    python train_search.py --set cifar10                                 # one GPU, the published settings
    torchrun --nproc_per_node 2 train_search.py --set fashion_mnist      # two GPUs, or two CPU cores
    python train_search.py --resume runs/cifar10-20260101-120000         # go on with a run that was stopped

Candidates train in pairs, from one weight set, on the same batches; the slower learner of a pair moves
towards the faster one. At the end the finalists train from scratch, and one wins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import threadpoolctl
import torch
import tyro
from tqdm import tqdm

import genotypes
from common import distributed
from common.flags import check_range, check_save, run_script
from common.run_folder import RunFolder, new_name, resume
from encoding import CellSpace
from model_search import FullSize
from search.candidates import Job, Trained, compare, load_task, train_all
from search.finalists import check_name, finish, finished_before
from search.paired_search import Comparison, PairedSearch
from search.record import FREE, Record, Run, in_one_line, save, take_up
from training.schedule import cosine


@dataclass(frozen=True)
class Config:
    """Search for a cell by paired learning; the defaults are the published CIFAR-10 settings."""

    # --- images
    set: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "folder"] = "cifar10"
    """data set; "folder" reads class folders of images from --data"""
    data: str = "data"
    """folder that holds the data sets, or the class folders"""
    image_size: int | None = None
    """resize the images of class folders to this height and width in pixels"""
    images: int | None = None
    """use only so many of the training images"""
    train_portion: float = 0.5
    """share of the images that train; the others compare"""
    cutout: bool = True
    """cut a square of half the image's side out of each training image"""

    # --- population
    strategy: Literal["slow_fast", "random"] = "slow_fast"
    """"random" spends the same budget on random cells, as a baseline"""
    pop_size: int = 20
    """cells in the population; even"""
    generations: Annotated[int, tyro.conf.arg(aliases=["--epochs"])] = 50
    """generations; in each, every cell is compared once"""
    pairs_per_sync: int = 1
    """pairs that start from the same weights; more keep more processes busy"""
    distinct_inputs: bool = False
    """the two edges of a node must have different inputs"""

    # --- predictor
    rank: bool = True
    """the predictor chooses the finalists"""
    screen: bool = True
    """the predictor chooses among several moves of a slow learner"""
    decide: bool = True
    """the predictor decides pairs it is sure of, without training"""
    audit_share: float = 0.1
    """share of the pairs it is sure of that train all the same"""

    # --- candidates
    init_channels: int = 16
    """channels of the first cell"""
    layers: int = 8
    """cells in a candidate"""
    batch_size: int = 256
    """images per step"""
    learning_rate: float = 0.1
    """in the first generation"""
    learning_rate_min: float = 0.001
    """what a cosine over the generations comes down to"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-4
    """of SGD"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""
    drop_path_prob: float = 0.3
    """share of dropped paths; rises from 0 towards this over the generations"""
    recalibrate: int = 0
    """batches that re-estimate batch-norm before a comparison, with paths dropped as in training"""

    # --- winner
    finalists: int = 4
    """cells that train from scratch; the best trained one joins them"""
    final_epochs: int = 20
    """epochs of each finalist"""
    final_learning_rate: float = 0.025
    """at the start; a cosine to 0"""
    record: str | None = None
    """write the winner into genotypes.py under this name"""

    # --- limits of the full-size network
    max_parameters: float | None = None
    """in millions"""
    max_multiply_adds: float | None = None
    """in millions"""
    full_channels: int = 36
    """channels of the full-size network, for the limits"""
    full_layers: int = 20
    """cells of the full-size network, for the limits"""

    # --- run
    save: str | None = None
    """new folder for the results; default runs/SET-DATE-TIME"""
    resume: str | None = None
    """go on with the run in this folder"""
    seed: int = 0
    """of everything random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    channels_last: bool = True
    """memory layout of images and weights"""
    threads: int = 1
    """CPU threads of each process; results depend on it, so it is part of the run"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "pairs_per_sync", 1)
        check_range(self, "generations finalists final_epochs", 1, 10**6)
        check_range(self, "init_channels layers full_channels full_layers threads", 1, 1024)
        check_range(self, "pop_size batch_size", 2, 10**5)
        check_range(self, "images", 4)
        check_range(self, "image_size", 8, 1024)
        check_range(self, "seed recalibrate", 0, 2**63 - 1)
        check_range(self, "learning_rate final_learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "max_parameters max_multiply_adds", 0, open_low=True)
        check_range(self, "learning_rate_min momentum weight_decay audit_share", 0, 1)
        check_range(self, "drop_path_prob", 0, 0.99)
        if self.pop_size % 2:
            raise ValueError(f"--pop_size {self.pop_size}: pairs need an even number, at least 2")
        if self.pairs_per_sync > self.pop_size // 2:
            raise ValueError(
                f"--pairs_per_sync {self.pairs_per_sync}: at most --pop_size / 2 = {self.pop_size // 2}"
            )
        if self.data == "":
            raise ValueError("--data: needs a folder, not an empty text")
        if self.record is not None and self.resume is None:  # a resumed run may have recorded its winner
            genotypes.check_new_name(self.record)
        check_save(self)
        no_limit = self.max_parameters is None and self.max_multiply_adds is None
        if no_limit and (self.full_channels, self.full_layers) != (36, 20):
            raise ValueError("--full_channels, --full_layers: no effect without a limit (--max_parameters)")
        if self.audit_share != 0.1 and not self.decide:
            raise ValueError(f"--audit_share {self.audit_share}: no effect with --no_decide")


def main(config: Config) -> None:
    if config.resume:
        config = resume(config, FREE)
    device = distributed.init(config.device)
    torch.set_num_threads(config.threads)
    task, test = load_task(config, device)
    weight_set = task.weight_set(config.init_channels, config.layers, "weight set")
    full_size = task.full_size(config.full_channels, config.full_layers)
    search = make_search(config, full_size)
    # One thread, or the predictor's sums would depend on the number of processes. Not before the predictor is
    # made: only libraries that are loaded are limited, and it loads SciPy.
    threadpoolctl.threadpool_limits(1, "blas")
    folder = RunFolder(config.resume or config.save or new_name(config.set))
    run = Run(config, task, search, weight_set, full_size, folder, Record())
    problem = take_up(run) if config.resume else None
    if config.resume:
        check_name(run)
    else:
        search.ask()  # says now if no cell keeps to the limits
        folder.create(config)
    log = folder.start_log()
    if problem:
        log.warning(problem)
    log.info(
        f"{folder.path}: search on {config.set}, {distributed.world_size()} x {device.type}; "
        f"{len(task.train)} images train, {len(task.validation)} compare, {len(test)} test"
    )
    with folder.working("train_search.py"):
        if not (config.resume and finished_before(run)):
            search_cells(run)
            finish(run, test)


def make_search(config: Config, full_size: FullSize) -> PairedSearch:
    """The population and its predictor, as the flags say."""
    return PairedSearch(
        space=CellSpace(distinct_inputs=config.distinct_inputs),
        pop_size=config.pop_size,
        generations=config.generations,
        seed=config.seed,
        pairs_per_sync=config.pairs_per_sync,
        strategy=config.strategy,
        accept=size_limit(config, full_size),
        rank=config.rank,
        screen=config.screen,
        decide=config.decide,
        audit_share=config.audit_share,
    )


def size_limit(config: Config, full_size: FullSize) -> Callable[[Any], bool] | None:
    """Whether a cell keeps to the limits; None where there are none."""
    limits = (config.max_parameters, config.max_multiply_adds)
    if limits == (None, None):
        return None
    return lambda cell: full_size.within(cell, *limits)


def search_cells(run: Run) -> None:
    """Compare, move and save until the generations are over."""
    pairs = run.config.generations * run.config.pop_size // 2
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    done = len(run.record.history)
    with tqdm(total=pairs, initial=done, unit="pair", disable=quiet) as bar:
        while group := run.search.ask():
            search_group(run, group, progress=group[0].generation / run.config.generations)
            save(run)
            bar.set_postfix_str(
                f"generation {group[0].generation + 1}, best loss {run.record.best_loss():.4f}"
            )
            bar.update(len(group))


def search_group(run: Run, group: list[Comparison], progress: float) -> None:
    """Train what must be trained of a group, merge the weights in pair order, tell and note the outcomes.

    `progress` is the share of the search that is over, in [0, 1): the schedules follow it.
    """
    config, generation = run.config, group[0].generation
    begin = time.perf_counter()
    learning_rate = cosine(progress, config.learning_rate, config.learning_rate_min)
    drop_path_prob = config.drop_path_prob * progress
    to_train = [comparison for comparison in group if comparison.decided_by != "predictor"]
    jobs = [
        Job(cell, (generation, comparison.pair), [(learning_rate, drop_path_prob)])
        for comparison in to_train
        for cell in (comparison.a, comparison.b)
    ]
    results = train_all(run.task, run.weight_set, jobs)
    trained = {comparison.pair: results[2 * i : 2 * i + 2] for i, comparison in enumerate(to_train)}
    seconds = (time.perf_counter() - begin) / max(1, len(to_train))
    for comparison in group:
        if comparison.pair not in trained:
            run.record.add(comparison, None, run.search.tell(comparison, None), 0.0)
            continue
        a, b = trained[comparison.pair]
        outcome = compare(a, b)
        fast = run.search.tell(comparison, outcome)
        run.record.add(comparison, outcome, fast, seconds)
        merge(run, comparison, fast, a, b)
    if run.search.generation > generation:
        row = run.record.end_generation(run.search, learning_rate, drop_path_prob)
        run.folder.log.info(in_one_line(row, config.generations))


def merge(run: Run, comparison: Comparison, fast: str | None, a: Trained, b: Trained) -> None:
    """Give the weights of a pair to the weight set; a candidate that diverged gives none."""
    for side, candidate in (("a", a), ("b", b)):
        if not candidate.finite:
            where = f"generation {comparison.generation + 1}, pair {comparison.pair}"
            run.folder.log.warning(f"{where}: candidate {side} diverged (loss {candidate.loss}) and loses")
    if fast is not None:
        winning, losing = (a, b) if fast == "a" else (b, a)
        run.weight_set.absorb(winning.weights, losing.weights if losing.finite else None)


if __name__ == "__main__":
    run_script(main, Config)
