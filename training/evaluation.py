"""What a network gets wrong: image by image, as a search compares, or summed over processes, as a test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import genotypes
import utils
from common import distributed
from common.words import Progress, in_millions
from model import Network
from training.backends import Engine
from training.config import EvaluationConfig
from training.precision import choose_precision, forward, lowered
from utils import say

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, C, H, W), labels (N,)


LARGEST_TENSOR = 1 << 24  # bytes; with larger ones than 16 MiB the CPU computes out of memory, not its cache
FEWEST_IMAGES = 16  # at once: PyTorch multiplies smaller matrices in another way, with another last bit


def logits_of(
    network: nn.Module,
    inputs: Tensor,
    precision: str = "float32",
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The network's logits (N, num_classes), float32, in its mode; `weights` are those that `lowered` gave.

    The CPU takes as many images at once as are fast; the logits are those of one batch. A GPU takes all.
    """
    at_once = len(inputs)
    largest_map = getattr(network, "largest_map", None)
    if inputs.device.type == "cpu" and largest_map is not None:
        at_once = max(FEWEST_IMAGES, LARGEST_TENSOR // (4 * largest_map()))
    parts = inputs.tensor_split(max(1, -(-len(inputs) // at_once)))
    found = [forward(network, part, precision, weights or {})[0].float() for part in parts]
    return torch.cat(found) if len(found) > 1 else found[0]


EVALUATED_TOGETHER = 2**20  # pixels of a batch on other devices than the CPU: 1,024 images of CIFAR's size


def batch_size_on(device: torch.device, batch_size: int, image_size: int) -> int:
    """Images per batch where nothing is learnt, in a run that trains with batches of `batch_size`.

    A GPU waits for launches, not for arithmetic, and there is room where no backward pass needs what was
    computed. On the CPU a large batch leaves the cache.
    """
    return batch_size if device.type == "cpu" else max(batch_size, EVALUATED_TOGETHER // image_size**2)


class Evaluation(NamedTuple):
    losses: Tensor  # (N,) float32 on the CPU, cross-entropy of each image, in the order of the batches
    correct: Tensor  # (N,) bool on the CPU, whether the largest logit is the label's

    @property
    def loss(self) -> float:
        return self.losses.double().mean().item()

    @property
    def error(self) -> float:
        return 1.0 - self.correct.double().mean().item()


@torch.no_grad()
def evaluate(network: nn.Module, batches: Batches, precision: str = "float32") -> Evaluation:
    """Per-image losses and hits of `network` in evaluation mode."""
    network.eval()
    losses, correct = [], []
    weights = lowered(network, precision)
    for inputs, labels in batches:
        logits = logits_of(network, inputs, precision, weights)
        losses.append(cross_entropy(logits, labels, reduction="none"))
        correct.append(logits.argmax(1) == labels)
    return Evaluation(torch.cat(losses).cpu(), torch.cat(correct).cpu())


class Errors(NamedTuple):
    """What a network gets wrong, rates in [0, 1]; `interval` is the 95% confidence interval of `error`."""

    loss: float
    error: float
    error_top5: float
    interval: tuple[float, float]
    images: int

    @classmethod
    def of(cls, sums: Tensor) -> Errors:
        """From the sums of `count_errors`, over all processes."""
        loss, wrong, wrong_top5, images = sums.tolist()
        interval = utils.wilson(wrong / images, int(images))
        return cls(loss / images, wrong / images, wrong_top5 / images, interval, int(images))

    def of_epoch(self) -> dict[str, float]:
        """Columns of epochs.csv for held-out images."""
        return {"validation_loss": self.loss, "validation_error": self.error}

    def as_result(self, part: str = "test") -> dict[str, float | int | list[float]]:
        """The entry "result" of a checkpoint; `part` says on which images it was measured."""
        values = self._asdict() | {"interval": list(self.interval)}
        return {f"{part}_{key}": value for key, value in values.items()}

    def in_words(self, classes: int) -> str:
        """For the log. Of five classes or fewer the best five are all, which says nothing of the network."""
        low, high = self.interval
        top5 = f"top-5 error {self.error_top5:.2%}, " if classes > 5 else ""
        return (
            f"top-1 error {self.error:.2%} (95% confidence: {low:.2%} to {high:.2%}), {top5}"
            f"loss {self.loss:.4f}, {self.images} images"
        )


@torch.no_grad()
def count_errors(network: nn.Module, batches: Batches, precision: str = "float32") -> Tensor:
    """Sums over `batches` in evaluation mode: (loss, wrong top-1, wrong top-5, images), float64.

    Sums, unlike means, can be added over processes whose shares differ. With five classes or fewer no label
    is ever outside the best five.
    """
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=next(network.parameters()).device)
    weights = lowered(network, precision)
    for inputs, labels in batches:
        logits = logits_of(network, inputs, precision, weights)
        best = logits.topk(min(5, logits.shape[1])).indices  # (N, 5)
        missed = (best != labels[:, None]).cumprod(1)  # whether the label is not among the first k
        losses = cross_entropy(logits, labels, reduction="none").double()
        sums += torch.stack([losses, missed[:, 0], missed[:, -1], torch.ones_like(losses)]).sum(1)
    return sums


def total_errors(network: nn.Module, batches: Batches, precision: str = "float32") -> Errors:
    """What the network gets wrong on the batches of all processes, each with its own share of the images.

    Batch-norm's running statistics become those of the first process, as in its checkpoints.
    """
    distributed.broadcast_(list(network.buffers()), source=0)
    sums = count_errors(network, batches, precision)
    distributed.sum_([sums])
    return Errors.of(sums)


def report(
    network: Network,
    batches: Batches,
    images: int,
    size: tuple[int, int],
    config: EvaluationConfig,
    origin: Mapping[str, Any],
) -> None:
    """Test on the batches of all `images`, print what was found and write it to --json, after `origin`.

    `size`: parameters and multiply-adds, which a folded network does not tell. ValueError where the network
    gives no numbers.
    """
    weights = distributed.checksum(network.parameters())
    distributed.check_equal(weights=weights, images=images)
    precision = choose_precision(next(network.parameters()).device, config.precision)
    computed = network if config.backend == "torch" else Engine(network, config.backend, precision)
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    steps = tqdm(
        _told(batches, images, config.batch_size),
        total=-(-images // config.batch_size),
        unit="step",
        disable=quiet,
    )
    begin = time.perf_counter()
    errors = total_errors(computed, steps, precision)
    rate = images / (time.perf_counter() - begin)
    assert errors.images == images, "every image is counted once"
    check_finite(torch.tensor(errors.loss), config.model_path)
    say(errors.in_words(network.num_classes))
    say(f"{in_millions(size[0])} parameters, {in_millions(size[1])} multiply-adds, {rate:.0f} images/s")
    if config.json is not None and distributed.is_main():
        result = {
            "model_path": config.model_path,
            **origin,
            "genotype": genotypes.to_dict(network.genotype),
            "init_channels": network.C,
            "layers": len(network.cells),
            "image_size": network.image_size[0],
            "parameters": size[0],
            "multiply_adds": size[1],
            "backend": config.backend,
            "precision": precision,
            "images_per_second": rate,
            **errors.as_result(),
        }
        utils.write_atomically(config.json, json.dumps(result, indent=1) + "\n")


def _told(batches: Batches, images: int, batch_size: int) -> Batches:
    """The same batches; where they take long, lines say how far they are, as a log shows no bar."""
    progress, done = Progress(images), 0
    for batch in batches:
        yield batch
        done = min(done + batch_size, images)
        if progress.is_due():
            say(f"{done:,} of {images:,} images, {progress.rate(done):.0f} images/s, {progress.left(done)}")


def check_finite(outputs: Tensor, path: str) -> None:
    """Raise ValueError where `outputs` of the network in the checkpoint `path` are no numbers."""
    if not outputs.isfinite().all():
        raise ValueError(f"--model_path {path}: the network's outputs are not finite numbers")


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: Batches, precision: str = "float32") -> None:
    """Replace the running statistics of batch-norm by their plain average over `batches`.

    After weights were shared, the running statistics are those of several networks (arXiv 1907.01845).
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
    network.train()
    weights = lowered(network, precision)
    for count, (inputs, _) in enumerate(batches, 1):
        for layer in layers:
            layer.momentum = 1 / count  # with None, PyTorch reads the count from the device
        forward(network, inputs, precision, weights)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
