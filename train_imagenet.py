"""Train a full-size network on class folders of large images, such as ImageNet.

    python train_imagenet.py --data imagenet --save runs/imagenet                    # one GPU
    torchrun --nproc_per_node 8 train_imagenet.py --data imagenet --save runs/imagenet
    python train_imagenet.py --resume runs/imagenet                                  # go on after a stop

The folder holds train/CLASS/*.jpg and val/CLASS/*.jpg. The defaults are the published recipe. The images of
val/ are looked at once, after the last epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

import genotypes
from common import distributed
from common.flags import check_range, check_save, run_script
from common.run_folder import RunFolder, new_name, resume
from images import sets
from images.large import LargeImages
from model import NetworkImageNet, count
from training import loop
from training.run import TrainingRun, write_model
from utils import derive_seed

LOOK = 20  # steps between two looks at the loss: each makes a GPU wait


@dataclass(frozen=True)
class Config:
    """Train a network on class folders of large images; the defaults are the published ImageNet recipe."""

    # --- images
    data: str = "data/imagenet"
    """folder that holds train/ and val/ with one folder per class"""
    image_size: int = 224
    """height and width in pixels that the network sees"""
    workers: int = 8
    """processes that decode images, for each process that trains"""

    # --- network
    arch: str = "RelativeNAS"
    """name in genotypes.py, JSON file, or folder of a search"""
    init_channels: int = 46
    """channels of the first cell"""
    layers: int = 14
    """cells"""
    auxiliary: bool = True
    """train with an auxiliary head"""
    auxiliary_weight: float = 0.4
    """of the auxiliary head's loss"""
    weights: str | None = None
    """checkpoint of the same network to start from; a classifier for other classes starts anew"""

    # --- recipe
    epochs: int = 250
    """passes over the training images"""
    batch_size: int = 1024
    """images per step, of all processes together"""
    micro_batches: int = 1
    """parts that a process cuts its share of a batch into, to save memory"""
    learning_rate: float = 0.5
    """at the start; falls linearly to 0 over the epochs"""
    warmup_epochs: int = 5
    """first epochs, in which the learning rate rises linearly"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-5
    """of SGD"""
    label_smoothing: float = 0.1
    """share of the label that is spread over all classes"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""

    # --- run
    save: str | None = None
    """new folder for the results; default runs/imagenet-DATE-TIME"""
    resume: str | None = None
    """go on with the run in this folder"""
    checkpoint_steps: int = 500
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
        check_range(self, "init_channels", 2, 1024)
        check_range(self, "layers threads", 1, 1024)
        check_range(self, "batch_size", 2)
        check_range(self, "epochs micro_batches checkpoint_steps", 1)
        check_range(self, "image_size", sets.SMALLEST_IMAGE)
        check_range(self, "workers warmup_epochs weight_decay auxiliary_weight", 0)
        check_range(self, "seed", 0, 2**63 - 1)
        check_range(self, "learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "momentum label_smoothing", 0, 1)
        genotypes.check_arch(self)
        check_save(self)
        if not self.auxiliary and self.auxiliary_weight != 0.4:
            raise ValueError(f"--auxiliary_weight {self.auxiliary_weight}: no effect with --no_auxiliary")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"--warmup_epochs {self.warmup_epochs}: must be below --epochs {self.epochs}")


def main(config: Config) -> None:
    if config.resume:
        config = resume(config, free=("data", "device", "workers", "checkpoint_steps"))
    device = distributed.init(config.device)
    torch.set_num_threads(config.threads)
    images, validation = load(config)
    network = build(config, len(images.classes), device)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    precision = loop.choose_precision(device, config.precision)
    run = TrainingRun(
        kind="train_imagenet",
        images=f"{images.fingerprint} {validation.fingerprint}",
        folder=RunFolder(config.resume or config.save or new_name("imagenet")),
        network=network,
        optimizer=optimizer,
        scaler=loop.grad_scaler(device, precision),
        sums=torch.zeros(3, dtype=torch.float64, device=device),
    )
    log = run.start(config, images.classes)
    parameters, multiply_adds = count(network)
    log.info(
        f"{run.folder.path}: {config.arch}, {parameters / 1e6:.2f} M parameters, {multiply_adds / 1e6:.0f} M "
        f"multiply-adds; {distributed.world_size()} x {device.type}, {precision}; {len(images)} images of "
        f"{len(images.classes)} classes train, {len(validation)} test"
    )
    with run.folder.working("train_imagenet.py"):
        train(run, config, images, precision)
        finish(run, config, validation, precision)


def load(config: Config) -> tuple[LargeImages, LargeImages]:
    """The training and the validation images; ValueError where their classes differ or images are too few."""
    images = LargeImages(Path(config.data) / "train", config.image_size, training=True, seed=config.seed)
    validation = LargeImages(Path(config.data) / "val", config.image_size, training=False)
    if odd := sorted(set(images.classes) ^ set(validation.classes)):
        raise ValueError(f"--data {config.data}: class {odd[0]!r} is in only one of train/ and val/")
    smallest = 2 * distributed.world_size() * config.micro_batches
    if config.batch_size < smallest:
        raise ValueError(
            f"--batch_size {config.batch_size}: {distributed.world_size()} processes with --micro_batches "
            f"{config.micro_batches} need at least {smallest}, two images each"
        )
    if len(images) < config.batch_size:
        raise ValueError(f"--batch_size {config.batch_size}: {config.data}/train has {len(images)} images")
    return images, validation


def build(config: Config, classes: int, device: torch.device) -> NetworkImageNet:
    """The network with weights drawn from the seed, the same in every process."""
    genotype, size = genotypes.lookup(config.arch), config.image_size
    with torch.random.fork_rng(devices=[]):  # torch draws weights from its global generator only
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = NetworkImageNet(
            config.init_channels, classes, config.layers, config.auxiliary, genotype, image_size=size
        )
    network.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    return network.to(device)


def train(run: TrainingRun, config: Config, images: LargeImages, precision: str) -> None:
    """Train from wherever the run is to the end of the last epoch."""
    network = torch.compile(run.network) if config.compile else run.network
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    total = config.epochs * len(images)
    with tqdm(total=total, unit="image", unit_scale=True, disable=quiet) as bar:
        bar.update(run.epoch * len(images) + run.step * config.batch_size)
        bar.unpause()
        while run.epoch < config.epochs:
            factor = loop.schedule(run.epoch, config.epochs, config.warmup_epochs, "linear")
            rate = config.learning_rate * factor
            loop.set_learning_rate(run.optimizer, rate)
            for done in steps(run, config, images, precision, network):
                bar.update(done)
                if run.step % LOOK == 0:
                    loss, _, seen = run.totals()
                    bar.set_postfix_str(f"epoch {run.epoch + 1}/{config.epochs}, loss {loss / seen:.3f}")
            words = run.end_epoch(rate)
            run.folder.log.info(f"epoch {run.epoch}/{config.epochs}: {words}")


def steps(
    run: TrainingRun, config: Config, images: LargeImages, precision: str, network: Any
) -> Iterator[int]:
    """The rest of an epoch; the number of images of each step."""
    run.network.train()
    images.epoch = run.epoch
    batches = images.batches(
        config.batch_size,
        run.sums.device,
        shuffled=True,
        first=run.step,
        shard=(distributed.rank(), distributed.world_size()),
        workers=config.workers,
        channels_last=config.channels_last,
    )
    begin = time.perf_counter()
    for inputs, labels in batches:
        total = min(config.batch_size, len(images) - run.step * config.batch_size)
        run.take_step(network, inputs, labels, total, config, precision)
        run.seconds, begin = run.seconds + time.perf_counter() - begin, time.perf_counter()
        if run.step % config.checkpoint_steps == 0:
            run.save()
        yield total


def finish(run: TrainingRun, config: Config, validation: LargeImages, precision: str) -> None:
    """Evaluate the last epoch's weights once, and write model.pt."""
    log, path = run.folder.log, run.folder.path / "model.pt"
    run.folder.write_table("epochs.csv", run.rows)
    if distributed.broadcast_object(path.exists()):
        log.info(f"the run is finished: {path}")
        return
    batches = validation.batches(
        config.batch_size,
        run.sums.device,
        shuffled=False,
        shard=(distributed.rank(), distributed.world_size()),
        workers=config.workers,
        channels_last=config.channels_last,
    )
    errors = loop.measure(run.network, batches, precision)
    log.info(f"test: {errors}")
    if distributed.is_main():
        images = {"set": "folder", "classes": validation.classes, **sets.IMAGENET_STATISTICS._asdict()}
        write_model(run, config, images, errors.as_result(), "train_imagenet.py")
        log.info(f"wrote {path}; evaluate it with: test_imagenet.py --model_path {path} --data {config.data}")


if __name__ == "__main__":
    run_script(main, Config)
