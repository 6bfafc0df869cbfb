"""Search for a cell by paired learning.

    make search                                                          # cluttered digits: minutes
    python train_search.py --set cifar10                                 # one GPU, the published settings
    torchrun --nproc_per_node 2 train_search.py --set fashion_mnist      # two GPUs, or two CPU cores
    python train_search.py --resume runs/cifar10-20260101-120000         # go on with a run that was stopped

Candidates train in pairs, from one weight set, on the same batches; the slower learner of a pair moves
towards the faster one. At the end the finalists train from scratch, and one wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

import genotypes
from common.flags import check_range, check_save, parse, run_script
from spaces import Space

COSTS = ("parameters", "multiply_adds", "latency")


@dataclass(frozen=True)
class Config:
    """Search for a cell by paired learning; the defaults are the published CIFAR-10 settings."""

    # --- images
    set: Literal["digits", "cluttered_digits", "fashion_mnist", "cifar10", "cifar100", "folder"] = "cifar10"
    """data set; "folder" reads class folders of images from --data"""
    data: str = "data"
    """folder that holds the data sets, or the class folders"""
    image_size: int | None = None
    """resize the images to this height and width in pixels"""
    images: int | None = None
    """use only so many of the training images"""
    max_megapixels: float = 89.0
    """largest image that is decoded, of those in files of their own"""
    train_portion: float = 0.5
    """share of the images that train; the others compare"""
    cutout: bool = True
    """cut a square of half the image's side out of each training image"""

    # --- space
    space: Literal["darts", "nasbench201"] = "darts"
    """cells of two kinds with two edges for each node, or the cell and network of NAS-Bench-201"""
    operations: tuple[str, ...] | None = None
    """what an edge may be, of those in operations.py; default those of the published space"""
    nodes: int | None = None
    """nodes of a cell that add up edges; default 4"""
    cells: Literal["both", "normal"] = "both"
    """"normal": the reduction cell is the normal one again"""
    distinct_inputs: bool = False
    """the two edges of a node must have different inputs"""

    # --- population
    strategy: Literal["slow_fast", "random"] = "slow_fast"
    """"random" spends the same budget on random cells, as a baseline"""
    pop_size: int = 20
    """cells in the population; even"""
    generations: Annotated[int, tyro.conf.arg(aliases=["--epochs"])] = 50
    """generations; in each, every cell is compared once"""
    pairs_per_sync: int = 1
    """pairs that start from the same weights; more keep more processes busy"""

    # --- predictor
    rank: bool = True
    """the predictor chooses the finalists"""
    screen: bool = True
    """the predictor chooses among several moves of a slow learner"""
    decide: bool = True
    """the predictor decides pairs it is sure of, without training"""
    audit_share: float = 0.1
    """share of the pairs it is sure of that train all the same"""
    prior: str = "auto"
    """what it expects of cells before any training: "auto" learns from earlier trainings (search/prior.csv)
    where candidates of the published space train alone with --layers 3, as those did: what is good in so few
    cells was seen to be bad in five; "none"; or a table of benchmarks/image_table.py"""

    # --- candidates
    estimate: Literal["auto", "weight_set", "alone"] = "auto"
    """how a cell is judged: after an epoch from shared weights, as published, or trained alone, by how fast
    it learns. "auto" is alone where at most 5,000 images train, else the weight set: with 2,000 images and
    8 channels the weight set was not seen to rank cells, and alone was, at four times the cost; at the
    published scale neither was measured"""
    candidate_epochs: int | None = None
    """epochs of a candidate that trains alone; default 4"""
    init_channels: int = 16
    """channels of the first cell"""
    layers: int = 8
    """cells in a candidate; with fewer than three all of them are reductions"""
    batch_size: int = 256
    """images per step"""
    learning_rate: float = 0.1
    """in the first generation; of candidates that train alone in every one, so that their losses compare"""
    learning_rate_min: float = 0.001
    """what a cosine over the generations comes down to; not of candidates that train alone"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-4
    """of SGD"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""
    drop_path_prob: float = 0.3
    """share of dropped paths; rises from 0 towards this over the generations; candidates that train
    alone, and finalists, drop none"""
    recalibrate: int = 0
    """batches that re-estimate batch-norm before a comparison, with paths dropped as in training; of
    candidates on a weight set, of finalists and of random cells beside the winner"""

    # --- winner
    finalists: int = 4
    """cells that train from scratch; the best trained one joins them"""
    final_epochs: int = 20
    """epochs of each finalist"""
    final_learning_rate: float = 0.025
    """at the start; a cosine to 0"""
    baseline: int = 0
    """random cells that train and are tested as the winner, to compare with"""
    record: str | None = None
    """write the winner into genotypes.py under this name"""

    # --- costs of the full-size network
    objectives: tuple[str, ...] = ("error",)
    """error, and what to keep low beside it: parameters, multiply_adds, latency. The finalists (let them be
    many) are then the best under all limits together, and front.csv has those that none of them beats; what
    counts as error is the score that chooses a winner: losses, which tell cells apart better than errors"""
    max_parameters: float | None = None
    """in millions"""
    max_multiply_adds: float | None = None
    """in millions"""
    max_latency: float | None = None
    """in milliseconds for a batch, estimated from edges that are measured on this machine"""
    latency_batch_size: int = 1
    """images in the batch whose latency counts"""
    latency_backend: Literal["torch", "onnxruntime"] = "torch"
    """what runs the network whose latency counts; onnxruntime needs the packages of requirements-dev.txt"""
    max_memory: float | None = None
    """in GiB, of training the full-size network in float32: what a step keeps, counted"""
    memory_batch_size: int = 128
    """images in the batch of --max_memory"""
    full_channels: int | None = None
    """channels of the full-size network, for the limits; default 36, for nasbench201 16"""
    full_layers: int | None = None
    """cells of the full-size network, for the limits; default 20, for nasbench201 15"""

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
    deterministic: bool = False
    """a GPU computes the same bits in each run, more slowly; the CPU always does"""
    channels_last: bool = True
    """memory layout of images and weights"""
    threads: int = 1
    """CPU threads of each process; results depend on it, so it is part of the run"""

    # What the settings of older runs do not say.
    EARLIER: ClassVar = {"estimate": "weight_set", "candidate_epochs": 1}

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "pairs_per_sync candidate_epochs", 1)
        check_range(self, "generations finalists final_epochs", 1, 10**6)
        check_range(self, "init_channels layers full_channels full_layers threads", 1, 1024)
        check_range(self, "pop_size batch_size", 2, 10**5)
        check_range(self, "images", 4)
        check_range(self, "image_size", 8, 1024)
        check_range(self, "max_megapixels", 0, 1e6, open_low=True)
        check_range(self, "seed recalibrate", 0, 2**63 - 1)
        check_range(self, "baseline", 0, 10**6)
        check_range(self, "learning_rate final_learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "max_parameters max_multiply_adds max_latency max_memory", 0, open_low=True)
        check_range(self, "latency_batch_size memory_batch_size", 1, 10**5)
        check_range(self, "learning_rate_min momentum weight_decay audit_share", 0, 1)
        check_range(self, "drop_path_prob", 0, 0.99)
        if self.pop_size % 2:
            raise ValueError(f"--pop_size {self.pop_size}: pairs need an even number, at least 2")
        if self.pairs_per_sync > self.pop_size // 2:
            raise ValueError(
                f"--pairs_per_sync {self.pairs_per_sync}: at most --pop_size / 2 = {self.pop_size // 2}"
            )
        self._check_objectives()
        if self.data == "":
            raise ValueError("--data: needs a folder, not an empty text")
        if self.prior == "":
            raise ValueError("--prior: needs auto, none or a file, not an empty text")
        if self.record is not None and self.resume is None:  # a resumed run may have recorded its winner
            genotypes.check_new_name(self.record)
        check_save(self)
        cells = self.pop_size * (self.generations + 1)
        if self.finalists > cells and self.resume is None:  # a run of earlier versions goes on
            raise ValueError(
                f"--finalists {self.finalists}: with --pop_size {self.pop_size} and --generations "
                f"{self.generations} there are at most {cells} cells"
            )
        Space.of(self)
        self._check_effects()

    def _check_objectives(self) -> None:
        """Raise ValueError unless the objectives are the error and different costs."""
        flag = f"--objectives {' '.join(self.objectives)}".rstrip()
        for name in self.objectives:
            if name not in ("error", *COSTS):
                raise ValueError(f"{flag}: no measure {name}; there are error, {', '.join(COSTS)}")
            if self.objectives.count(name) > 1:
                raise ValueError(f"{flag}: {name} is there twice")
        if "error" not in self.objectives:
            raise ValueError(f"{flag}: error must be among them, or nothing would need training")

    def _check_effects(self) -> None:
        """Raise ValueError for a flag that would have no effect."""
        limits = ("max_parameters", "max_multiply_adds", "max_latency", "max_memory")
        no_limit = {getattr(self, name) for name in limits} == {None} and self.objectives == ("error",)
        size = {"full_channels": self.full_channels, "full_layers": self.full_layers}
        if no_limit and tuple(size.values()) != (36, 20):  # which stand in the settings of older runs
            for name, given in size.items():
                if given is not None:
                    ways = f"a limit (--{', --'.join(limits)}), or a cost among --objectives"
                    raise ValueError(f"--{name} {given}: no effect without {ways}")
        if self.max_latency is None and "latency" not in self.objectives:
            for name in ("latency_batch_size", "latency_backend"):
                if (given := getattr(self, name)) != getattr(type(self), name):
                    raise ValueError(f"--{name} {given}: no effect where no latency is asked for")
        if self.max_memory is None and self.memory_batch_size != 128:
            raise ValueError(f"--memory_batch_size {self.memory_batch_size}: no effect without --max_memory")
        if self.estimate == "weight_set" and self.candidate_epochs not in (None, 1):
            epochs = self.candidate_epochs
            raise ValueError(f"--candidate_epochs {epochs}: no effect without --estimate alone")
        if self.prior not in ("auto", "none"):
            if self.strategy == "random" or not (self.rank or self.screen or self.decide):
                raise ValueError(f"--prior {self.prior}: no effect without the predictor")
            if not Space.of(self).published:
                raise ValueError(
                    f"--prior {self.prior}: a table is of the published space; here is another one"
                )
        if self.audit_share != 0.1 and not self.decide:
            raise ValueError(f"--audit_share {self.audit_share}: no effect with --no_decide")


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch
from tqdm import tqdm

from common import distributed
from common.run_folder import RunFolder, new_name, resume
from common.words import Progress
from search.baseline import train_baseline
from search.candidates import check_batch_size
from search.finalists import check_recordable, finish, finished_before
from search.record import in_one_line
from search.run import MAY_DIFFER, SearchRun, open_search
from training.precision import choose_kernels


def main(config: Config) -> None:
    if config.resume:
        config = resume(config, MAY_DIFFER)
    device = distributed.init(config.device)
    choose_kernels(device, config.deterministic)
    torch.set_num_threads(config.threads)
    path = config.resume or config.save or new_name(config.set)
    if not config.resume:
        RunFolder(path).check_free()  # before anything in it is read
    run, test = open_search(config, path, device)
    problem = run.load_checkpoint() if config.resume else None
    run.check_equal()
    if config.resume:
        check_recordable(run)
    else:
        check_batch_size(run.task)
        run.ask()  # a first cell that keeps to the limits, before anything is written
        run.folder.create(run.config)
    run.keep_tables()  # of a resumed run too, which may have been killed before
    log = run.folder.start_log()
    if problem:
        log.warning(problem)
    begins = "" if run.earlier is None else "; the predictor begins with earlier trainings"
    log.info(
        f"{run.folder.path}: search on {config.set}, {distributed.world_size()} x {device.type}; "
        f"{len(run.task.train)} images train, {len(run.task.validation)} compare, {len(test)} test; "
        f"{run.estimate.words}{begins}"
    )
    with run.folder.working("train_search.py"):
        if not (config.resume and finished_before(run)):
            search_cells(run)
            train_baseline(run, test)
            finish(run, test)


def search_cells(run: SearchRun) -> None:
    """Compare, move and save until the generations are over."""
    generations, record, log = run.config.generations, run.record, run.folder.log
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    pairs, done = generations * run.config.pop_size // 2, len(record.history)
    progress = Progress(pairs, done)
    with tqdm(total=pairs, initial=done, unit="pair", disable=quiet) as bar:
        while group := run.ask():
            generation = group[0].generation
            run.compare_group(group, progress=generation / generations)
            run.save()
            done += len(group)
            words = f"generation {generation + 1}, best loss {record.best_loss():.4f}"
            bar.set_postfix_str(words)
            bar.update(len(group))
            if run.search.generation > generation:
                words = in_one_line(record.generations[-1], generations)
                log.info(f"{words}, {progress.left(done)}")
            elif progress.is_due():  # in a generation that takes long
                rate = 60 * progress.rate(done)
                log.info(f"{words}, pair {done}/{pairs}, {rate:.2g} pairs/min, {progress.left(done)}")


if __name__ == "__main__":
    run_script(main, config)
