"""Train a full-size network on small images.

    python train.py --auxiliary --cutout                                   # CIFAR-10 on one GPU, as published
    python train.py --set digits --init_channels 8 --layers 5 --epochs 20  # minutes on a CPU
    torchrun --nproc_per_node 2 train.py --auxiliary --cutout              # two GPUs, or two CPU cores
    python train.py --resume runs/cifar10-20260101-120000                  # go on after a stop

The run folder gets model.pt (for test.py), card.json, epochs.csv. Test images are looked at once, at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import genotypes
from common.flags import check_installed, check_range, parse, run_script
from images.files import SMALLEST_IMAGE
from training.config import TrainingConfig


@dataclass(frozen=True)
class ImageFlags:
    """The images."""

    set: Literal["auto", "digits", "cluttered_digits", "fashion_mnist", "cifar10", "cifar100", "folder"] = (
        "auto"
    )
    """data set; "folder" reads class folders of images from --data; auto: that of the search which --arch
    names by its folder, else cifar10"""
    data: str = "data"
    """folder that holds the data sets, or the class folders"""
    image_size: int | None = None
    """resize the images to this height and width in pixels"""
    validate: float = 0.0
    """share of the training images that is held out and measured after each epoch, instead of the test"""
    cutout: bool = False
    """cut a square of half the image's side out of each training image"""
    flip: bool | None = None
    """mirror half of the training images; default: all sets but digits"""


@dataclass(frozen=True)
class Config(TrainingConfig, ImageFlags):  # the fields of the last one come first
    """Train a network on small images; the defaults are the published recipe for CIFAR."""

    # --- more of the recipe
    schedule: Literal["cosine", "linear"] = "cosine"
    """how the learning rate falls to 0 over the epochs"""
    drop_path_prob: float = 0.3
    """share of dropped paths; rises from 0 towards this over the epochs"""
    ema: float = 0.0
    """decay per step of the average of the weights that is tested and kept; 0: the last weights"""

    # --- more of the run
    description: str = ""
    """what a reader of the checkpoint should know about the images"""
    tensorboard: bool = False
    """write the epochs for TensorBoard too, into RUN/tensorboard"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "image_size", SMALLEST_IMAGE)
        check_range(self, "drop_path_prob validate", 0, 0.99)
        check_range(self, "ema", 0, 0.999999)
        super().check()
        if self.auxiliary and isinstance(genotypes.lookup(self.arch), genotypes.CompleteCell):
            raise ValueError(
                f"--auxiliary: --arch {self.arch} is a cell of NAS-Bench-201, whose network has no such head"
            )
        check_installed(self, "tensorboard")


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import distributed
from common.run_folder import SETTINGS, RunFolder, new_name, resume
from images import files, sets
from images.augmentation import Augmentation
from skeletons import skeleton
from training import card, loop
from training.evaluation import Batches, batch_size_on
from training.optimizer import sgd
from training.precision import choose_kernels, choose_precision
from training.run import TrainingRun
from training.weights import draw_network
from utils import derive_seed, say


def main(config: Config) -> None:
    if config.resume:
        config = resume(
            config,
            free=(
                "data",
                "device",
                "checkpoint_minutes",
                "checkpoint_steps",
                "tensorboard",
                "max_megapixels",
            ),
            advise=partial(card.train_on, "train.py"),
        )
    device = distributed.init(config.device)
    choose_kernels(device, config.deterministic)
    config = with_set(config)
    torch.set_num_threads(config.threads)
    images = load(config, device)
    sizes = {"in_channels": images.train.channels, "image_size": images.train.image_size}
    kind = skeleton(genotypes.lookup(config.arch))
    network = draw_network(kind, config, images.train.num_classes, device, **sizes)
    run = TrainingRun(
        kind="train",
        images=images.fingerprint,
        folder=RunFolder(config.resume or config.save or new_name(config.set)),
        network=network,
        optimizer=sgd(network, config, config.learning_rate),
        precision=choose_precision(device, config.precision, new=not config.resume),
        ema=config.ema,
    )
    loop.start(run, config, images)
    with run.folder.working("train.py"):
        loop.train(
            run,
            config,
            images,
            shape=config.schedule,
            drop_path_prob=config.drop_path_prob,
            validate=config.validate > 0,
            tensorboard=config.tensorboard,
        )
        if loop.finish(run, config, images, "train.py", "validation" if config.validate else "test"):
            path = run.folder.path / "model.pt"
            how = shlex.join(["python", "test.py", "--model_path", str(path)])
            run.folder.log.info(f"wrote {path}; evaluate it with: {how}")


def with_set(config: Config) -> Config:
    """The same flags with the data set in place of "auto", and the folder and size of the search's images.

    ValueError where the search's settings name no data set.
    """
    if config.set != "auto":
        return config
    file = genotypes.run_of(config.arch) / SETTINGS
    if config.arch in genotypes.names() or not file.is_file():
        return dataclasses.replace(config, set="cifar10")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        name, data, size = (settings[key] for key in ("set", "data", "image_size"))
    except (ValueError, LookupError, TypeError, RecursionError):
        name = data = size = None
    if name not in sets.SETS or not isinstance(data, str) or not isinstance(size, int | None):
        raise ValueError(f"{file}: does not say which images the run used; give --set")
    data = data if config.data == Config.data else config.data
    size = size if config.image_size is None else config.image_size
    words = f"{name} {data}" if name == "folder" else name
    say(f"--set is not given: {words}, as the run {config.arch} had")
    return dataclasses.replace(config, set=name, data=data, image_size=size)


@dataclass
class Images:
    """What trains, what is measured (held-out or test images), and how images are normalised."""

    config: Config
    train: sets.ImageSet
    held_out: sets.ImageSet
    statistics: sets.Statistics
    fingerprint: str

    def __len__(self) -> int:
        return len(self.train)

    def __str__(self) -> str:
        part = "held out" if self.config.validate else "test"
        return f"{self.config.set}, {len(self)} images train, {len(self.held_out)} {part}"

    def description(self) -> dict[str, Any]:
        described = {"set": self.config.set, "description": self.config.description}
        return described | {"classes": self.train.classes} | self.statistics._asdict()

    def training(self, epoch: int, first: int) -> Batches:
        config = self.config
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "batches", epoch))
        augmentation = Augmentation.of(self.train.image_size, config.set, config.cutout, config.flip)
        batches = self._batches(self.train, config.batch_size, generator=generator, augmentation=augmentation)
        return itertools.islice(batches, first, None)

    def measured(self) -> Batches:
        images = self.held_out
        size = batch_size_on(images.labels.device, self.config.batch_size, images.image_size)
        return self._batches(images, size)

    def _batches(self, images: sets.ImageSet, size: int, **training: Any) -> Batches:
        shard, channels_last = (distributed.rank(), distributed.world_size()), self.config.channels_last
        statistics = self.statistics
        return sets.batches(images, size, statistics, channels_last=channels_last, shard=shard, **training)


def load(config: Config, device: torch.device) -> Images:
    """The images of the run; ValueError where they do not suit the flags."""
    files.limit_pixels(config.max_megapixels)
    train = sets.load(config.set, config.data, "train", config.image_size)
    if config.validate:
        kept, held_out = sets.split(len(train), 1 - config.validate, config.seed)
        train, measured = train.subset(kept), train.subset(held_out)
    else:
        measured = sets.load(config.set, config.data, "test", config.image_size)
    smallest = 2 * distributed.world_size() * config.micro_batches
    if config.batch_size > len(train):
        raise ValueError(
            f"--batch_size {config.batch_size}: there are {len(train)} training images; "
            f"give --batch_size {len(train)} or less"
        )
    if config.batch_size < smallest:
        raise ValueError(
            f"--batch_size {config.batch_size}: {distributed.world_size()} processes with --micro_batches "
            f"{config.micro_batches} need at least {smallest}, two images each"
        )
    fingerprint = f"{train.fingerprint()} {measured.fingerprint()}"
    return Images(
        config, train.to(device), measured.to(device), sets.statistics_of(config.set, train), fingerprint
    )


if __name__ == "__main__":
    run_script(main, config)
