"""Training a dense model and measuring it, on lists of images and their targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from dense import measure
from dense.batches import Scenes
from dense.models import find
from images.sets import shares
from training.loop import LOOK, clip_and_step, due
from training.precision import autocast
from training.run import TrainingRun
from training.schedule import cosine, set_learning_rate
from utils import derive_seed


def factor(step: int, steps: int, warmup_steps: int, shape: str) -> float:
    """The factor of the learning rate: a linear rise from 0.001, then "cosine", "poly" or "steps" down.

    "steps": a tenth after 16/26 of the steps and again after 22/26; "poly": the power 0.9 of what is left.
    """
    if step < warmup_steps:
        return 0.001 + 0.999 * step / warmup_steps
    if shape == "steps":
        return 0.1 ** sum(step >= part * steps / 26 for part in (16, 22))
    position = (step - warmup_steps) / max(1, steps - warmup_steps)
    return cosine(position, 1.0, 0.0) if shape == "cosine" else (1.0 - position) ** 0.9


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[Any],
    *,
    total: int,
    scaler: torch.amp.GradScaler,
    precision: str = "float32",
    grad_clip: float = 10.0,
) -> Tensor:
    """One step on this process's share of a batch of `total` images; sums of (loss, its parts, images).

    The gradient is that of the processes' mean losses, weighted by their images.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(images[0].device, precision):
        losses = model(images, targets)
    loss = torch.stack([value.float() for value in losses.values()]).sum()
    scaler.scale(loss * (len(images) / total)).backward()
    distributed.sum_gradients(model.parameters())
    clip_and_step(model, optimizer, scaler, grad_clip)
    parts = losses.values() if len(losses) > 1 else ()
    sums = [value.detach().double() * len(images) for value in (loss, *parts)]
    return torch.stack([*sums, sums[0].new_tensor(len(images))])


def train(run: TrainingRun, config: Any, scenes: Scenes, held_out: Scenes | None = None) -> None:
    """Train from wherever the run is to the end of the last epoch; measure `held_out` after each."""
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    with tqdm(total=config.epochs * len(scenes), unit="image", unit_scale=True, disable=quiet) as bar:
        bar.update(run.epoch * len(scenes) + run.step * config.batch_size)
        bar.unpause()
        while run.epoch < config.epochs:
            for done in steps(run, config, scenes):
                bar.update(done)
                if run.step % LOOK == 0:
                    loss, *_, seen = run.totals()
                    bar.set_postfix_str(f"epoch {run.epoch + 1}/{config.epochs}, loss {loss / seen:.3f}")
            result = {} if held_out is None else evaluate(run.network, held_out, config, run.precision)
            main = next((name for name in ("ap50", "mean_iou") if name in result), None)
            more = {f"validation_{main}": result[main]} if main else {}
            words = run.end_epoch(run.optimizer.param_groups[0]["lr"], **more)
            run.folder.log.info(f"epoch {run.epoch}/{config.epochs}: {words}")


def steps(run: TrainingRun, config: Any, scenes: Scenes) -> Iterator[int]:
    """The rest of an epoch; the number of images of each step."""
    run.network.train()
    scenes.epoch = run.epoch
    rank, processes = distributed.rank(), distributed.world_size()
    each = sum(1 for _ in shares(len(scenes), config.batch_size, (0, processes), training=True))
    begin = time.perf_counter()
    batches = scenes.batches(
        config.batch_size, run.device, first=run.step, shard=(rank, processes), workers=config.workers
    )
    for _, images, targets in batches:
        rate = factor(run.steps, each * config.epochs, config.warmup_steps, config.schedule)
        set_learning_rate(run.optimizer, config.learning_rate * rate)
        # torchvision's models draw (dropout, proposals) from the global generator only.
        torch.manual_seed(derive_seed(config.seed, "step", run.epoch, run.step, rank))
        total = min(config.batch_size, len(scenes) - run.step * config.batch_size)
        sums = train_step(
            run.network,
            run.optimizer,
            images,
            targets,
            total=total,
            scaler=run.scaler,
            precision=run.precision,
            grad_clip=config.grad_clip,
        )
        run.end_step(sums, time.perf_counter() - begin)
        begin = time.perf_counter()
        if due(run, config):
            run.save()
        yield total


@torch.no_grad()
def evaluate(model: nn.Module, scenes: Scenes, config: Any, precision: str = "float32") -> dict[str, Any]:
    """What the model is worth on `scenes`, over all processes: see `dense.measure`. Every image counts once.

    Batch-norm's running statistics become those of the first process, as in its checkpoints.
    """
    distributed.broadcast_(list(model.buffers()), source=0)
    model.eval()
    source, device = scenes.source, next(model.parameters()).device
    labels = len(source.classes) + 1
    found: dict[int, Any] = {}
    shard = (distributed.rank(), distributed.world_size())
    quiet = None if distributed.is_main() else True
    batches = scenes.batches(config.batch_size, device, shard=shard, workers=config.workers)
    for indices, images, targets in tqdm(batches, unit="step", leave=False, disable=quiet):
        results = find(model, images, precision)
        for index, result, target in zip(indices, results, targets, strict=True):
            masks = source.boxes is None
            found[index] = measure.confusion(result, target.cpu(), labels) if masks else result
    everything = {index: x for part in distributed.gather_objects(found) for index, x in part.items()}
    assert len(everything) == len(source), "every image is counted once"
    rows = [everything[index] for index in range(len(source))]
    if not distributed.is_main():
        return distributed.broadcast_object(None)
    if source.boxes is None:
        return distributed.broadcast_object(measure.segmentation(np.stack(rows), source.classes))
    return distributed.broadcast_object(measure.detection(rows, source.boxes, source.classes))
