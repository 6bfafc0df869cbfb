"""Train a full-size network on small images.

    python train.py --auxiliary --cutout                                   # CIFAR-10 on one GPU, as published
    python train.py --set digits --init_channels 8 --layers 5 --epochs 20  # minutes on a CPU
    torchrun --nproc_per_node 2 train.py --auxiliary --cutout              # two GPUs, or two CPU cores
    python train.py --resume runs/cifar10-20260101-120000                  # go on after a stop

The run folder gets model.pt (for test.py), card.json, epochs.csv. Test images are looked at once, at the end.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

import genotypes
from common import distributed
from common.flags import check_installed, check_range, check_save, run_script
from common.run_folder import RunFolder, new_name, resume
from images import sets
from images.augmentation import Augmentation
from model import NetworkCIFAR, count
from training import loop
from training.run import TrainingRun, scalars, write_model
from utils import derive_seed

LOOK = 20  # steps between two looks at the loss: each makes a GPU wait


@dataclass(frozen=True)
class Config:
    """Train a network on small images; the defaults are the published recipe for CIFAR."""

    # --- images
    set: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "folder"] = "cifar10"
    """data set; "folder" reads class folders of images from --data"""
    data: str = "data"
    """folder that holds the data sets, or the class folders"""
    image_size: int | None = None
    """resize the images of class folders to this height and width in pixels"""
    validate: float = 0.0
    """share of the training images that is held out and measured after each epoch, instead of the test"""
    cutout: bool = False
    """cut a square of half the image's side out of each training image"""
    flip: bool | None = None
    """mirror half of the training images; default: all sets but digits"""

    # --- network
    arch: str = "RelativeNAS"
    """name in genotypes.py, JSON file, or folder of a search"""
    init_channels: int = 36
    """channels of the first cell"""
    layers: int = 20
    """cells"""
    auxiliary: bool = False
    """train with an auxiliary head"""
    auxiliary_weight: float = 0.4
    """of the auxiliary head's loss"""
    drop_path_prob: float = 0.3
    """share of dropped paths; rises from 0 towards this over the epochs"""
    weights: str | None = None
    """checkpoint of the same network to start from; a classifier for other classes starts anew"""

    # --- recipe
    epochs: int = 600
    """passes over the training images"""
    batch_size: int = 128
    """images per step, of all processes together"""
    micro_batches: int = 1
    """parts that a process cuts its share of a batch into, to save memory"""
    learning_rate: float = 0.025
    """at the start"""
    schedule: Literal["cosine", "linear"] = "cosine"
    """how the learning rate falls to 0 over the epochs"""
    warmup_epochs: int = 0
    """first epochs, in which the learning rate rises linearly"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-4
    """of SGD"""
    label_smoothing: float = 0.0
    """share of the label that is spread over all classes"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""
    ema: float = 0.0
    """decay per step of the average of the weights that is tested and kept; 0: the last weights"""

    # --- run
    save: str | None = None
    """new folder for the results; default runs/SET-DATE-TIME"""
    resume: str | None = None
    """go on with the run in this folder"""
    description: str = ""
    """what a reader of the checkpoint should know about the images"""
    tensorboard: bool = False
    """write the epochs for TensorBoard too, into RUN/tensorboard"""
    checkpoint_steps: int = 200
    """steps between two checkpoints; one is also written after each epoch"""
    seed: int = 0
    """of everything random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    compile: bool = False
    """compile the network: minutes at the start, faster steps"""
    channels_last: bool = True
    """memory layout of images and weights"""
    threads: int = 1
    """CPU threads of each process; results depend on it, so it is part of the run"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "init_channels layers threads", 1, 1024)
        check_range(self, "epochs micro_batches checkpoint_steps", 1)
        check_range(self, "batch_size", 2)
        check_range(self, "image_size", sets.SMALLEST_IMAGE)
        check_range(self, "warmup_epochs weight_decay auxiliary_weight", 0)
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "momentum label_smoothing", 0, 1)
        check_range(self, "drop_path_prob validate", 0, 0.99)
        check_range(self, "ema", 0, 0.999999)
        genotypes.check_arch(self)
        check_save(self)
        check_installed(self, "tensorboard")
        if not self.auxiliary and self.auxiliary_weight != 0.4:
            raise ValueError(f"--auxiliary_weight {self.auxiliary_weight}: no effect without --auxiliary")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"--warmup_epochs {self.warmup_epochs}: must be below --epochs {self.epochs}")


class Images(NamedTuple):
    """What trains, what is measured (held-out or test images), and how images are normalised."""

    train: sets.ImageSet
    measured: sets.ImageSet
    statistics: sets.Statistics
    fingerprint: str


def main(config: Config) -> None:
    if config.resume:
        config = resume(config, free=("data", "device", "checkpoint_steps", "tensorboard"))
    device = distributed.init(config.device)
    torch.set_num_threads(config.threads)
    images = load(config, device)
    network = build(config, images.train, device)
    precision = loop.choose_precision(device, config.precision)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    run = TrainingRun(
        kind="train",
        images=images.fingerprint,
        folder=RunFolder(config.resume or config.save or new_name(config.set)),
        network=network,
        optimizer=optimizer,
        scaler=loop.grad_scaler(device, precision),
        sums=torch.zeros(3, dtype=torch.float64, device=device),
        average=copy.deepcopy(network) if config.ema else None,
    )
    log = run.start(config, images.train.classes)
    parameters, multiply_adds = count(network)
    part = "held out" if config.validate else "test"
    log.info(
        f"{run.folder.path}: {config.arch}, {parameters / 1e6:.2f} M parameters, {multiply_adds / 1e6:.0f} M "
        f"multiply-adds; {distributed.world_size()} x {device.type}, {precision}; {config.set}, "
        f"{len(images.train)} images train, {len(images.measured)} {part}"
    )
    with run.folder.working("train.py"):
        train(run, config, images, precision)
        finish(run, config, images, precision)


def load(config: Config, device: torch.device) -> Images:
    """The images of the run; ValueError where they do not suit the flags."""
    train = sets.load(config.set, config.data, "train", config.image_size)
    if config.validate:
        kept, held_out = sets.split(len(train), 1 - config.validate, config.seed)
        train, measured = train.subset(kept), train.subset(held_out)
    else:
        measured = sets.load(config.set, config.data, "test", config.image_size)
    smallest = 2 * distributed.world_size() * config.micro_batches
    if not smallest <= config.batch_size <= len(train):
        raise ValueError(
            f"--batch_size {config.batch_size}: {distributed.world_size()} processes with --micro_batches "
            f"{config.micro_batches} need at least {smallest}, two images each; there are {len(train)} images"
        )
    fingerprint = f"{train.fingerprint()} {measured.fingerprint()}"
    return Images(train.to(device), measured.to(device), sets.statistics_of(config.set, train), fingerprint)


def build(config: Config, images: sets.ImageSet, device: torch.device) -> NetworkCIFAR:
    """The network with weights drawn from the seed, the same in every process."""
    genotype, sizes = genotypes.lookup(config.arch), (images.channels, images.image_size)
    with torch.random.fork_rng(devices=[]):  # torch draws weights from its global generator only
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = NetworkCIFAR(
            config.init_channels, images.num_classes, config.layers, config.auxiliary, genotype, *sizes
        )
    network.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    return network.to(device)


def train(run: TrainingRun, config: Config, images: Images, precision: str) -> None:
    """Train from wherever the run is to the end of the last epoch."""
    total = len(images.train)
    network: Any = torch.compile(run.network) if config.compile else run.network
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    with (
        scalars(run.folder, config.tensorboard) as write,
        tqdm(total=config.epochs * total, unit="image", unit_scale=True, disable=quiet) as bar,
    ):
        bar.update(run.epoch * total + run.step * config.batch_size)
        bar.unpause()
        while run.epoch < config.epochs:
            factor = loop.schedule(run.epoch, config.epochs, config.warmup_epochs, config.schedule)
            rate = config.learning_rate * factor
            loop.set_learning_rate(run.optimizer, rate)
            run.network.drop_path_prob = config.drop_path_prob * run.epoch / config.epochs
            for done in steps(run, config, images, precision, network):
                bar.update(done)
                if run.step % LOOK == 0:
                    loss, _, seen = run.totals()
                    bar.set_postfix_str(f"epoch {run.epoch + 1}/{config.epochs}, loss {loss / seen:.3f}")
            more = measure(run, config, images, precision).of_epoch() if config.validate else {}
            words = run.end_epoch(rate, more)
            write(run.epoch, run.rows[-1])
            run.folder.log.info(f"epoch {run.epoch}/{config.epochs}: {words}")


def steps(run: TrainingRun, config: Config, images: Images, precision: str, network: Any) -> Iterator[int]:
    """The rest of an epoch; the number of images of each step."""
    run.network.train()
    shard = (distributed.rank(), distributed.world_size())
    drops = run.network.drop_path_generator = torch.Generator(run.sums.device)
    batches = sets.batches(
        images.train,
        config.batch_size,
        images.statistics,
        generator=torch.Generator().manual_seed(derive_seed(config.seed, "batches", run.epoch)),
        augmentation=Augmentation.of(images.train.image_size, config.set, config.cutout, config.flip),
        channels_last=config.channels_last,
        shard=shard,
    )
    begin = time.perf_counter()
    for inputs, labels in itertools.islice(batches, run.step, None):
        drops.manual_seed(derive_seed(config.seed, "drop path", run.epoch, run.step, shard[0]))
        total = min(config.batch_size, len(images.train) - run.step * config.batch_size)
        run.take_step(network, inputs, labels, total, config, precision)
        run.seconds, begin = run.seconds + time.perf_counter() - begin, time.perf_counter()
        if run.step % config.checkpoint_steps == 0:
            run.save()
        yield total


def measure(run: TrainingRun, config: Config, images: Images, precision: str) -> loop.Errors:
    """What the weights that will be kept get wrong on the held-out or the test images."""
    shard = (distributed.rank(), distributed.world_size())
    batches = sets.batches(
        images.measured, config.batch_size, images.statistics, channels_last=config.channels_last, shard=shard
    )
    return loop.measure(run.kept, batches, precision)


def finish(run: TrainingRun, config: Config, images: Images, precision: str) -> None:
    """Measure the weights of the last epoch once, and write model.pt and card.json."""
    run.folder.write_table("epochs.csv", run.rows)
    path = run.folder.path / "model.pt"
    if distributed.broadcast_object(path.exists()):
        run.folder.log.info(f"the run is finished: {path}")
        return
    errors = measure(run, config, images, precision)
    part = "validation" if config.validate else "test"
    run.folder.log.info(f"{part}: {errors}")
    if distributed.is_main():
        described = {"set": config.set, "description": config.description, "classes": images.train.classes}
        described |= images.statistics._asdict()
        write_model(run, config, described, errors.as_result(part), "train.py")
        run.folder.log.info(f"wrote {path}; evaluate it with: test.py --model_path {path}")


if __name__ == "__main__":
    run_script(main, Config)
