"""Training: one optimiser step, one epoch of one process, and the loop of a long training.

start(run, config, images)           # in a new folder, or where the last checkpoint is
train(run, config, images, ...)      # to the end of the last epoch
finish(run, config, images, ...)     # the one test; model.pt and card.json
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from common import distributed
from common.run_folder import RunFolder
from common.words import Progress, in_millions
from model import count
from training import card, schedule
from training.config import RunFlags, TrainingConfig
from training.evaluation import Batches, total_errors
from training.precision import forward, lowered
from training.run import TrainingRun
from training.weights import load_weights
from utils import derive_seed

LOOK = 20  # steps between two looks at the loss: each makes a GPU wait


class EpochResult(NamedTuple):
    loss: float  # mean training loss over the images, not finite where training diverged
    error: float  # share of wrongly classified training images, in [0, 1]
    images: int
    losses: Tensor  # (steps,) float64 on the CPU, mean training loss of each batch


def train_one_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    scaler: torch.amp.GradScaler,
    precision: str = "float32",
    grad_clip: float = 5.0,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> EpochResult:
    """One pass of one process over `batches` in training mode, one optimiser step per batch.

    Nothing is shared between processes: in a search each trains a candidate of its own, where `train_step`
    trains one network in all of them. A training that diverges is not stopped here: its loss is not finite,
    and whoever called decides what that means.
    """
    network.train()
    sizes: list[int] = []
    losses: list[Tensor] = []
    wrong: list[Tensor] = []
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        outputs = forward(network, inputs, precision, lowered(network, precision))
        logits, loss, total = _losses(outputs, labels, auxiliary_weight, label_smoothing, "mean")
        scaler.scale(total).backward()
        clip_and_step(network, optimizer, scaler, grad_clip)
        # These stay on the device until the end: reading them each step would make a GPU wait.
        losses.append(loss.detach())
        wrong.append((logits.argmax(1) != labels).sum())
        sizes.append(len(labels))
    if not sizes:
        raise ValueError("no batch to train on: the batch size is larger than the number of images")
    steps, images = torch.stack(losses).double().cpu(), sum(sizes)
    loss_sum = 0.0
    for loss_of_batch, size in zip(steps.tolist(), sizes, strict=True):
        loss_sum += loss_of_batch * size  # `sum` would round otherwise from Python 3.12 on
    return EpochResult(loss_sum / images, torch.stack(wrong).sum().item() / images, images, steps)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    images: int,
    scaler: torch.amp.GradScaler,
    precision: str = "float32",
    grad_clip: float = 5.0,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
    micro_batches: int = 1,
) -> Tensor:
    """One optimiser step on this process's share of a batch of `images`; its sums of (loss, wrong, images).

    Gradients are summed over micro-batches and processes, of losses divided by `images`: the step of one
    process with the whole batch, but for batch-norm, which sees one micro-batch at a time; its running
    statistics are averaged over the processes.
    """
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(3, dtype=torch.float64, device=inputs.device)
    parts = min(micro_batches, max(1, len(labels) // 2))  # batch-norm needs two images
    for x, y in zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True):
        outputs = forward(network, x, precision, lowered(network, precision))
        logits, loss, total = _losses(outputs, y, auxiliary_weight, label_smoothing, "sum")
        scaler.scale(total / images).backward()
        wrong = (logits.argmax(1) != y).sum()
        sums += torch.stack([loss.detach().double(), wrong.double(), sums.new_full((), len(y))])
    distributed.sum_gradients(network.parameters())
    distributed.average_([x for x in network.buffers() if x.is_floating_point()])  # of batch-norm
    clip_and_step(network, optimizer, scaler, grad_clip)
    return sums


def _losses(
    outputs: tuple[Tensor, Tensor | None],
    labels: Tensor,
    auxiliary_weight: float,
    label_smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detached logits, the loss of the logits, and the loss to descend, with the auxiliary head's share."""
    logits, logits_aux = outputs
    entropy = partial(cross_entropy, label_smoothing=label_smoothing, reduction=reduction)
    loss = entropy(logits.float(), labels)
    if logits_aux is None or not auxiliary_weight:
        return logits.detach(), loss, loss
    return logits.detach(), loss, loss + auxiliary_weight * entropy(logits_aux.float(), labels)


def clip_and_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, grad_clip: float
) -> None:
    """Clip the gradients by their norm, unscaled, and step."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()


class Images(Protocol):
    """The images of a long training, as each script has its own; `len` counts those that train."""

    def __len__(self) -> int: ...

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of them: set, classes (names by label), mean, std."""

    def training(self, epoch: int, first: int) -> Batches:
        """This process's share of the training batches of an epoch, from number `first` on."""

    def measured(self) -> Batches:
        """This process's share of the images that are held out, or of the test images."""


def start(run: TrainingRun, config: TrainingConfig, images: Images) -> None:
    """Load the checkpoint of the run that `config.resume` names, or make a folder; begin the log."""
    run.description = card.describe(run.network, images=images.description(), recipe=asdict(config))
    problem = run.load_checkpoint() if config.resume else None
    first = config.weights is not None and run.origin is None  # else the checkpoint has them
    if first:
        run.origin = load_weights(run.network, config, images.description()["classes"])
        run.kept.load_state_dict(run.network.state_dict())  # the average starts there, too
    run.check_equal()
    if not config.resume:
        run.folder.create(config)
    log = run.folder.start_log()
    if problem:
        log.warning(problem)
    if first and run.origin is not None:
        anew = ", ".join(run.origin["drawn_anew"])
        log.info(f"weights from {config.weights}" + (f"; drawn anew: {anew}" if anew else ""))
        run.save()  # from here on the run does not need the file
    parameters, multiply_adds = count(run.network)
    log.info(
        f"{run.folder.path}: {config.arch}, {in_millions(parameters)} parameters, "
        f"{in_millions(multiply_adds)} multiply-adds; {distributed.world_size()} x {run.device.type}, "
        f"{run.precision}; {images}"
    )


def train(
    run: TrainingRun,
    config: TrainingConfig,
    images: Images,
    *,
    shape: str = "linear",
    drop_path_prob: float = 0.0,
    validate: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train from wherever the run is to the end of the last epoch.

    `shape` is that of the learning rate; drop path rises to `drop_path_prob`. `validate` measures after each
    epoch, `tensorboard` writes the epochs for it.
    """
    network: Any = torch.compile(run.network) if config.compile else run.network
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    with (
        scalars(run.folder, tensorboard) as writer,
        tqdm(total=config.epochs * len(images), unit="image", unit_scale=True, disable=quiet) as bar,
    ):
        progress = Progress(config.epochs * len(images), _done(run, config, images))
        bar.update(progress.first)
        bar.unpause()
        while run.epoch < config.epochs:
            factor = schedule.factor(run.epoch, config.epochs, config.warmup_epochs, shape)
            rate = config.learning_rate * factor
            schedule.set_learning_rate(run.optimizer, rate)
            run.network.drop_path_prob = drop_path_prob * run.epoch / config.epochs
            for done in steps(run, config, images, network):
                bar.update(done)
                if run.step % LOOK == 0:
                    loss, *_, seen = run.totals()
                    words = f"epoch {run.epoch + 1}/{config.epochs}, loss {loss / seen:.3f}"
                    bar.set_postfix_str(words)
                    if progress.is_due():  # in an epoch that takes long
                        run.folder.log.info(f"{words}, {_pace(progress, _done(run, config, images))}")
            more = total_errors(run.kept, images.measured(), run.precision).of_epoch() if validate else {}
            words = f"{run.end_epoch(rate, **more)}, {progress.left(run.epoch * len(images))}"
            for name, value in run.rows[-1].items() if writer else ():
                writer.add_scalar(name, value, run.epoch)
            run.folder.log.info(f"epoch {run.epoch}/{config.epochs}: {words}")


def _done(run: TrainingRun, config: TrainingConfig, images: Images) -> int:
    """Images that the run has trained on."""
    return run.epoch * len(images) + min(run.step * config.batch_size, len(images))


def _pace(progress: Progress, done: int) -> str:
    return f"{progress.rate(done):.0f} images/s, {progress.left(done)}"


def steps(run: TrainingRun, config: TrainingConfig, images: Images, network: Any) -> Iterator[int]:
    """The rest of an epoch; the number of images of each step. `network` is the run's, or that compiled."""
    run.network.train()
    drops = run.network.drop_path_generator = torch.Generator(run.device)
    begin = time.perf_counter()
    for inputs, labels in images.training(run.epoch, run.step):
        drops.manual_seed(derive_seed(config.seed, "drop path", run.epoch, run.step, distributed.rank()))
        total = min(config.batch_size, len(images) - run.step * config.batch_size)
        with compiling(config.compile):
            sums = train_step(
                network,
                run.optimizer,
                inputs,
                labels,
                images=total,
                scaler=run.scaler,
                precision=run.precision,
                grad_clip=config.grad_clip,
                auxiliary_weight=config.auxiliary_weight,
                label_smoothing=config.label_smoothing,
                micro_batches=config.micro_batches,
            )
        run.end_step(sums, time.perf_counter() - begin)
        begin = time.perf_counter()
        if due(run, config):
            run.save()
        yield total


def due(run: TrainingRun[Any], config: RunFlags) -> bool:
    """Whether it is time for a checkpoint. The first process's clock decides, now and then, for all."""
    if config.checkpoint_steps is not None:
        return run.step % config.checkpoint_steps == 0
    if run.step % LOOK:
        return False
    return distributed.broadcast_object(time.monotonic() - run.saved_at > 60 * config.checkpoint_minutes)


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Around a step: ValueError that names --compile where the network cannot be compiled."""
    try:
        yield
    except RuntimeError as error:
        if not wanted or not isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"--compile: the network cannot be compiled here ({reason} ...)") from None


def scalars(folder: RunFolder, wanted: bool) -> AbstractContextManager[Any]:
    """What writes for TensorBoard, or None where that is not `wanted`."""
    if not wanted or not distributed.is_main():
        return contextlib.nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.path / "tensorboard"))


def finish(
    run: TrainingRun, config: TrainingConfig, images: Images, program: str, part: str = "test"
) -> bool:
    """Measure the weights of the last epoch once, on this part of the images; write model.pt and card.json.

    Whether that is done now, and not before. ValueError, and nothing is written, where the measured loss is
    not finite: the last steps diverged.
    """
    run.folder.write_table("epochs.csv", run.rows)
    path = run.folder.path / "model.pt"
    if distributed.broadcast_object(path.exists()):
        run.folder.log.info(f"the run is finished: {path}")
        return False
    errors = total_errors(run.kept, images.measured(), run.precision)
    run.folder.log.info(f"{part}: {errors.in_words(run.network.num_classes)}")
    if distributed.is_main():
        if not math.isfinite(errors.loss):
            raise run.diverged("loss of the trained network is not finite")
        card.write_model(run, config, images.description(), errors.as_result(part), program)
    return True
