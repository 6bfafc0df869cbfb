"""Training candidates and comparing them fairly, spread over the processes.

Both networks of a pair see the same batches, crops, flips, cutouts and dropped paths, and are compared image
by image on the same clean validation images. A candidate's training depends on its cell, the weight set and
(seed, generation, pair) only, so it does not matter which process does it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import distributed
from genotypes import AnyGenotype
from images import files, sets
from images.augmentation import Augmentation
from model import Network
from model_search import FullSize, Weights, WeightSet
from search.paired_search import Outcome
from spaces import Space
from training import loop
from training.evaluation import Batches, batch_size_on, evaluate, recalibrate_batch_norm
from training.optimizer import sgd
from training.precision import choose_precision, grad_scaler
from training.schedule import set_learning_rate
from utils import derive_seed


class Task(NamedTuple):
    """What every candidate is trained and compared on, and how: `config` is that of the search's script."""

    config: Any
    train: sets.ImageSet
    validation: sets.ImageSet
    statistics: sets.Statistics
    augmentation: Augmentation
    device: torch.device
    precision: str  # what the config's "auto" means on the device
    seed: int  # of batches, dropped paths and start values; the split has the config's
    fingerprint: str  # tells these images, those of the test too, from others

    def _images(self) -> dict[str, Any]:
        """What a network must know of them."""
        images = self.train
        shape = {"in_channels": images.channels, "image_size": images.image_size}
        return {"num_classes": images.num_classes, **shape}

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch; one image alone is no batch."""
        count, size = len(self.train), self.config.batch_size
        return sum(count - first > 1 for first in range(0, count, size))

    def weight_set(self, purpose: str) -> WeightSet:
        """A weight set of the candidates' size; equal purposes start from equal weights."""
        return WeightSet(
            C=self.config.init_channels,
            layers=self.config.layers,
            seed=derive_seed(self.seed, purpose),
            device=self.device,
            **self._images(),
        )

    def full_size(self) -> FullSize:
        """Counts what a cell's full-size network for these images costs."""
        C, layers = Space.of(self.config).full_size
        return self.size(self.config.full_channels or C, self.config.full_layers or layers)

    def size(self, C: int, layers: int) -> FullSize:
        """Counts what a cell's network of so many channels and cells costs for these images."""
        return FullSize(C=C, layers=layers, **self._images())

    def batches(self, *purpose: str | int) -> Batches:
        """One epoch of augmented training batches, the same for equal purposes."""
        return sets.batches(
            self.train,
            self.config.batch_size,
            self.statistics,
            generator=torch.Generator().manual_seed(derive_seed(self.seed, "batches", *purpose)),
            augmentation=self.augmentation,
            channels_last=self.config.channels_last,
        )

    def clean(self, images: sets.ImageSet) -> Batches:
        """Batches of the images as they are, in their order."""
        size = batch_size_on(self.device, self.config.batch_size, images.image_size)
        channels_last = self.config.channels_last
        return sets.batches(images, size, self.statistics, channels_last=channels_last)


def load_task(config: Any, device: torch.device) -> tuple[Task, sets.ImageSet]:
    """What the flags of train_search.py say about images and training; and the test images, on the CPU.

    Raises ValueError that names the flag where the images are not there, or too few.
    """
    files.limit_pixels(config.max_megapixels)
    images = sets.load(config.set, config.data, "train", config.image_size)
    test = sets.load(config.set, config.data, "test", config.image_size)
    if config.images is not None and config.images > len(images):
        raise ValueError(f"--images {config.images}: the training images are only {len(images)}")
    train, validation = sets.split(len(images), config.train_portion, config.seed, config.images)
    if min(len(train), len(validation)) < 2:
        raise ValueError(
            f"--train_portion {config.train_portion}: {len(train)} images would train and {len(validation)} "
            "compare; needed are 2 or more of each"
        )
    training_half = images.subset(train).to(device)
    task = Task(
        config=config,
        train=training_half,
        validation=images.subset(validation).to(device),
        statistics=sets.statistics_of(config.set, training_half),
        augmentation=Augmentation.of(images.image_size, config.set, cutout=config.cutout),
        device=device,
        precision=choose_precision(device, config.precision, new=not config.resume),
        seed=config.seed,
        fingerprint=f"{images.fingerprint()} {test.fingerprint()}",
    )
    return task, test


def check_batch_size(task: Task) -> None:
    """Raise ValueError where a batch is larger than the images that train."""
    count, size = len(task.train), task.config.batch_size
    if size > count:
        raise ValueError(f"--batch_size {size}: {count} images train; give --batch_size {count} or less")


class TrainedCandidate(NamedTuple):
    """Validation losses and hits of every image (N,), NaN where training diverged; its weights; and the mean
    training loss of the last epoch, NaN where it is not known.
    """

    losses: Tensor
    correct: Tensor
    weights: Weights
    training_loss: float = math.nan

    @property
    def loss(self) -> float:
        return self.losses.double().mean().item()

    @property
    def finite(self) -> bool:
        """Whether training and validation stayed finite."""
        return math.isfinite(self.loss)

    @property
    def error(self) -> float:
        """Share of wrongly classified validation images, in [0, 1]."""
        return 1.0 - self.correct.double().mean().item()


class Job(NamedTuple):
    """A cell to train: one epoch at each learning rate and drop-path probability of `schedule`."""

    genotype: AnyGenotype
    purpose: tuple[str | int, ...]
    schedule: Sequence[tuple[float, float]]


def train_network(task: Task, weight_set: WeightSet, job: Job) -> tuple[Network, Tensor]:
    """`job`'s cell trained from the weight set's weights, which stay as they are; each step's loss (steps,).

    After an epoch whose loss is not finite no further one is trained.
    """
    config, network = task.config, weight_set.network(job.genotype)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimizer = sgd(network, config, 1.0)
    scaler, losses = grad_scaler(task.device, task.precision), [torch.empty(0, dtype=torch.float64)]
    for epoch, (learning_rate, drop_path_prob) in enumerate(job.schedule):
        set_learning_rate(optimizer, learning_rate)
        network.drop_path_prob = drop_path_prob
        network.drop_path_generator = torch.Generator(task.device).manual_seed(
            derive_seed(task.seed, "drop path", *job.purpose, epoch)
        )
        result = loop.train_one_epoch(
            network,
            optimizer,
            task.batches(*job.purpose, epoch),
            scaler=scaler,
            precision=task.precision,
            grad_clip=config.grad_clip,
        )
        losses.append(result.losses)
        if not math.isfinite(result.loss):
            break
    return network, torch.cat(losses)


def train_candidate(task: Task, weight_set: WeightSet, job: Job) -> TrainedCandidate:
    """Train `job`'s cell from the weight set's weights, which stay as they are, and evaluate it."""
    network, losses = train_network(task, weight_set, job)
    return _evaluated(task, weight_set, network, job, losses)


def _evaluated(
    task: Task, weight_set: WeightSet, network: Network, job: Job, training: Tensor
) -> TrainedCandidate:
    finite = bool(training.isfinite().all())
    if finite and task.config.recalibrate:
        some = itertools.islice(task.batches(*job.purpose, "recalibrate"), task.config.recalibrate)
        recalibrate_batch_norm(network, some, task.precision)
    losses, correct = evaluate(network, task.clean(task.validation), task.precision)
    if not finite:
        losses, correct = torch.full_like(losses, math.nan), torch.zeros_like(correct)
    training_loss = training[-task.steps :].mean().item()
    return TrainedCandidate(losses, correct, weight_set.weights(network), training_loss)


def train_all(task: Task, weight_set: WeightSet, jobs: Sequence[Job]) -> list[TrainedCandidate]:
    """Train every job, each in one process, from the same weight set; all processes get all results."""
    processes, rank = distributed.world_size(), distributed.rank()
    done = {i: train_candidate(task, weight_set, jobs[i]) for i in range(rank, len(jobs), processes)}
    results = []
    for i, job in enumerate(jobs):
        trained = done.get(i)
        if trained is None:
            count = len(task.validation)
            weights = weight_set.weights(weight_set.network(job.genotype))
            trained = TrainedCandidate(torch.empty(count), torch.empty(count, dtype=torch.bool), weights)
        results.append(_share(trained, source=i % processes, device=task.device))
    return results


def _share(trained: TrainedCandidate, source: int, device: torch.device) -> TrainedCandidate:
    """`trained` of process `source`, in every process."""
    if distributed.world_size() == 1:
        return trained
    losses, correct = trained.losses.to(device), trained.correct.to(device, torch.uint8)
    training_loss = torch.tensor(trained.training_loss, dtype=torch.float64, device=device)
    distributed.broadcast_([losses, correct, training_loss, *trained.weights.values()], source)
    return TrainedCandidate(losses.cpu(), correct.cpu().bool(), trained.weights, training_loss.item())


def compare(a: Tensor, b: Tensor) -> Outcome:
    """Mean losses, and the mean difference a - b with its standard error, of losses (n,) of the same n.

    They are images, or steps on the same batches. A single one tells nothing of its error, which is then 0.
    """
    difference = a.double() - b.double()
    error = difference.std().item() / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    mean_a, mean_b = (losses.double().mean().item() for losses in (a, b))
    return Outcome(mean_a, mean_b, difference.mean().item(), error)
