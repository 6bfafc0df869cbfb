"""Train a full-size network on class folders of large images, such as ImageNet.

    python train_imagenet.py --data imagenet --save runs/imagenet                    # one GPU
    torchrun --nproc_per_node 8 train_imagenet.py --data imagenet --save runs/imagenet
    python train_imagenet.py --resume runs/imagenet                                  # go on after a stop

The folder holds train/CLASS/*.jpg and val/CLASS/*.jpg. The defaults are the published recipe. The images of
val/ are looked at once, after the last epoch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.flags import check_range, parse, run_script
from images.files import SMALLEST_IMAGE
from training.config import TrainingConfig


@dataclass(frozen=True)
class ImageFlags:
    """The images."""

    data: str = "data/imagenet"
    """folder that holds train/ and val/ with one folder per class"""
    image_size: int = 224
    """height and width in pixels that the network sees"""
    workers: int = 8
    """processes that decode images, for each process that trains"""


@dataclass(frozen=True)
class Config(TrainingConfig, ImageFlags):  # the fields of the last one come first
    """Train a network on class folders of large images; the defaults are the published ImageNet recipe."""

    init_channels: int = 46
    layers: int = 14
    auxiliary: bool = True
    epochs: int = 250
    batch_size: int = 1024
    learning_rate: float = 0.5
    """at the start; falls linearly to 0 over the epochs"""
    warmup_epochs: int = 5
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    save: str | None = None
    """new folder for the results; default runs/imagenet-DATE-TIME"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "init_channels", 2, 1024)
        check_range(self, "image_size", SMALLEST_IMAGE)
        check_range(self, "workers", 0)
        super().check()


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import distributed
from common.run_folder import RunFolder, new_name, resume
from images import files
from images.large import LargeImages
from images.sets import IMAGENET_STATISTICS
from model import NetworkImageNet
from training import card, loop
from training.evaluation import Batches
from training.optimizer import sgd
from training.precision import choose_kernels, choose_precision
from training.run import TrainingRun
from training.weights import draw_network


def main(config: Config) -> None:
    if config.resume:
        config = resume(
            config,
            free=("data", "device", "workers", "checkpoint_minutes", "checkpoint_steps", "max_megapixels"),
            advise=partial(card.train_on, "train_imagenet.py"),
        )
    device = distributed.init(config.device)
    choose_kernels(device, config.deterministic)
    torch.set_num_threads(config.threads)
    images = load(config, device)
    classes = len(images.train.classes)
    network = draw_network(NetworkImageNet, config, classes, device, image_size=config.image_size)
    run = TrainingRun(
        kind="train_imagenet",
        images=f"{images.train.fingerprint} {images.validation.fingerprint}",
        folder=RunFolder(config.resume or config.save or new_name("imagenet")),
        network=network,
        optimizer=sgd(network, config, config.learning_rate),
        precision=choose_precision(device, config.precision, new=not config.resume),
    )
    loop.start(run, config, images)
    with run.folder.working("train_imagenet.py"):
        loop.train(run, config, images)
        if loop.finish(run, config, images, "train_imagenet.py"):
            path = run.folder.path / "model.pt"
            how = ["python", "test_imagenet.py", "--model_path", str(path), "--data", config.data]
            run.folder.log.info(f"wrote {path}; evaluate it with: {shlex.join(how)}")


@dataclass
class Images:
    """What trains, and the images of val/, decoded when they are needed."""

    config: Config
    device: torch.device
    train: LargeImages
    validation: LargeImages

    def __len__(self) -> int:
        return len(self.train)

    def __str__(self) -> str:
        classes = len(self.train.classes)
        return f"{len(self)} images of {classes} classes train, {len(self.validation)} test"

    def description(self) -> dict[str, Any]:
        return {"set": "folder", "classes": self.train.classes, **IMAGENET_STATISTICS._asdict()}

    def training(self, epoch: int, first: int) -> Batches:
        self.train.epoch = epoch
        return self._batches(self.train, shuffled=True, first=first)

    def measured(self) -> Batches:
        return self._batches(self.validation, shuffled=False)

    def _batches(self, images: LargeImages, *, shuffled: bool, first: int = 0) -> Batches:
        return images.batches(
            self.config.batch_size,
            self.device,
            shuffled=shuffled,
            first=first,
            shard=(distributed.rank(), distributed.world_size()),
            workers=self.config.workers,
            channels_last=self.config.channels_last,
        )


def load(config: Config, device: torch.device) -> Images:
    """The training and the validation images; ValueError where their classes differ or images are too few."""
    files.limit_pixels(config.max_megapixels)
    train = LargeImages(Path(config.data) / "train", config.image_size, training=True, seed=config.seed)
    validation = LargeImages(Path(config.data) / "val", config.image_size, training=False)
    if odd := sorted(set(train.classes) ^ set(validation.classes)):
        raise ValueError(f"--data {config.data}: class {odd[0]!r} is in only one of train/ and val/")
    smallest = 2 * distributed.world_size() * config.micro_batches
    if config.batch_size < smallest:
        raise ValueError(
            f"--batch_size {config.batch_size}: {distributed.world_size()} processes with --micro_batches "
            f"{config.micro_batches} need at least {smallest}, two images each"
        )
    if len(train) < config.batch_size:
        raise ValueError(
            f"--batch_size {config.batch_size}: {config.data}/train has {len(train)} images; "
            f"give --batch_size {len(train)} or less"
        )
    return Images(config, device, train, validation)


if __name__ == "__main__":
    run_script(main, config)
