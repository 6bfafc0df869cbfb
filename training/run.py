"""How far a training is, as one object: saved whole, between two steps, and taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import genotypes
from common import checkpoint, distributed
from common.flags import PLACES
from common.run_folder import RunFolder
from model import Network, count, load_network_state
from training import loop
from training.inference import check_flags
from utils import write_atomically

FACTS = ("kind", "images", "genotype", "processes")  # of the run, kept in its checkpoints
PROGRESS = ("epoch", "step", "steps", "seconds", "rows")


@dataclass
class TrainingRun:
    """What changes during a training.

    All processes hold the same but for `sums` and batch-norm's running statistics, which are their own.
    `kind` and `images` (a fingerprint of the data) tell a checkpoint from those of other programs and data.
    """

    kind: str
    images: str
    folder: RunFolder
    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    sums: Tensor  # float64 on the device: loss, wrong, images of this process in this epoch
    processes: int = field(default_factory=distributed.world_size)
    genotype: dict[str, Any] = field(init=False)  # of the network, as plain types
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    steps: int = 0  # steps done in all epochs
    seconds: float = 0.0  # spent in this epoch
    rows: list[dict[str, Any]] = field(default_factory=list)  # of epochs.csv
    average: Network | None = None  # the network with averaged weights, where they are kept
    origin: dict[str, Any] | None = None  # what is known of the file that --weights names
    saved: int = 0  # `steps` of the checkpoint
    finite: int = 0  # `steps` when the loss was last seen to be finite

    def __post_init__(self) -> None:
        self.genotype = genotypes.to_dict(self.network.genotype)

    @property
    def kept(self) -> Network:
        """The network that is measured and written: the one with averaged weights, where they are kept."""
        return self.network if self.average is None else self.average

    def _parts(self) -> dict[str, Any]:
        """What is saved through state_dict and load_state_dict."""
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.average is None else parts | {"average": self.average}

    def start(self, config: Any, classes: Sequence[str]) -> logging.Logger:
        """Take up the run that `config.resume` names, or make its folder; returns the log, which is begun.

        `classes` are the names of the images' classes, by label.
        """
        problem = self.take_up() if config.resume else None
        first = config.weights is not None and self.origin is None  # else the checkpoint has them
        if first:
            self.origin = load_weights(self.network, config, classes)
            if self.average is not None:
                self.average.load_state_dict(self.network.state_dict())
        if not config.resume:
            self.folder.create(config)
        log = self.folder.start_log()
        if problem:
            log.warning(problem)
        if first and self.origin is not None:
            anew = ", ".join(self.origin["drawn_anew"])
            log.info(f"weights from {config.weights}" + (f"; drawn anew: {anew}" if anew else ""))
            self.save()  # from here on the run does not need the file
        return log

    def totals(self) -> tuple[float, float, int]:
        """Loss, wrong, images of this epoch so far, of all processes; ValueError where training diverged."""
        sums = self.sums.clone()
        distributed.sum_([sums])
        if not sums.isfinite().all():
            raise self.diverged(f"training loss is not finite in epoch {self.epoch + 1}, step {self.step}")
        self.finite = self.steps
        loss, wrong, images = sums.tolist()
        return loss, wrong, int(images)

    def diverged(self, what: str) -> ValueError:
        """The error that says so, and names the last checkpoint whose weights gave a finite loss.

        Weights are known to be good by the loss of a step after them: that of the step that made them is not
        theirs. A checkpoint that no such step followed may be spoilt, and the one before it is named.
        """
        path = self.folder.checkpoint
        good = path if self.finite > self.saved else checkpoint.previous(path)
        known = f"the last good checkpoint is {good}" if good.exists() else "no checkpoint is surely good"
        return ValueError(f"the {what}; {known}; a new run needs a lower --learning_rate")

    def save(self) -> None:
        """Write a checkpoint, and keep the one before; not one of the same step, at the end of an epoch."""
        sums = self.totals()
        if distributed.is_main():
            state = {name: getattr(self, name) for name in FACTS + PROGRESS}
            state |= {name: part.state_dict() for name, part in self._parts().items()}
            state["origin"] = self.origin
            older = self.steps > self.saved
            checkpoint.save(self.folder.checkpoint, state | {"sums": list(sums)}, keep_previous=older)
        self.saved = self.steps

    def take_up(self) -> str | None:
        """Go on from the folder's newest good checkpoint; returns what was wrong with a newer one.

        Every process reads it. ValueError where none is good, or where it is of other images or another cell.
        """
        self.folder.lock()
        path = self.folder.checkpoint
        if not path.exists() and not checkpoint.previous(path).exists():
            return f"{path.parent}: stopped before its first checkpoint; starting from the beginning"
        state, problem = checkpoint.load_newest(path, self.kind)
        if missing := set(FACTS + PROGRESS) - set(state):
            raise ValueError(f"{path}: no checkpoint of this version: {', '.join(sorted(missing))} missing")
        if state["images"] != self.images:
            raise ValueError(f"--resume {path.parent}: --data holds other images than the run began with")
        if state["genotype"] != self.genotype:
            raise ValueError(f"--resume {path.parent}: --arch is another cell now than the run began with")
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            for name in PROGRESS:
                setattr(self, name, state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path}: does not fit the settings of its run ({reason} ...)") from None
        self.origin = state.get("origin")  # runs begun before --weights existed have none
        self.saved = self.finite = self.steps
        if problem:
            self.folder.fall_back()
        if state["processes"] != self.processes:
            change = (
                f"made by {state['processes']} processes, goes on with {self.processes}: batch-norm sees "
                "other shares of a batch, so the run will not end to the bit as it would have"
            )
            problem = f"{problem}; {change}" if problem else change
        if distributed.is_main():  # they are summed over the processes again
            self.sums += self.sums.new_tensor(state["sums"])
        return problem

    def take_step(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, images: int, config: Any, precision: str
    ) -> None:
        """One optimiser step with the flags of `config` on this process's share of a batch of `images`.

        `network` is this run's network, or that network compiled.
        """
        try:
            self.sums += loop.train_step(
                network,
                self.optimizer,
                inputs,
                labels,
                images=images,
                scaler=self.scaler,
                precision=precision,
                grad_clip=config.grad_clip,
                auxiliary_weight=config.auxiliary_weight,
                label_smoothing=config.label_smoothing,
                micro_batches=config.micro_batches,
            )
        except RuntimeError as error:
            if not config.compile or not isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
                raise
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"--compile: the network cannot be compiled here ({reason} ...)") from None
        if self.average is not None:
            average_weights(self.average, self.network, config.ema, self.steps)
        self.step, self.steps = self.step + 1, self.steps + 1

    def end_epoch(self, learning_rate: float, more: Mapping[str, float] | None = None) -> str:
        """Note a row for the epoch, with `more` columns, save, begin the next; returns the row in words."""
        loss, wrong, images = self.totals()
        row = {
            "epoch": self.epoch,
            "learning_rate": learning_rate,
            "loss": loss / images,
            "error": wrong / images,
        }
        self.rows.append(row | dict(more or {}) | {"images": images, "seconds": round(self.seconds, 1)})
        words = f"training loss {row['loss']:.4f}, error {row['error']:.2%}, "
        words += "".join(f"{name.replace('_', ' ')} {value:.4f}, " for name, value in (more or {}).items())
        words += f"{images / max(self.seconds, 0.01):.0f} images/s"
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.save()
        self.folder.write_table("epochs.csv", self.rows)
        return words


def load_weights(network: Network, config: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Give `network` the weights in the file `config.weights`, of the same network; what is known of them.

    Classifiers of other classes, and an auxiliary head that the file lacks, stay as they were drawn: the
    entry "drawn_anew" names them. The others are the file's SHA-256 and, of a checkpoint that describes
    itself, its recipe, result and own origin. ValueError where the file does not fit.
    """
    path = config.weights
    state = checkpoint.load(path)
    if state.get("kind", "network") != "network":
        raise ValueError(f"--weights {path}: how far a run is; needed is the model.pt of a finished run")
    described = "kind" in state
    try:
        given = {name.removeprefix("module."): x for name, x in state.get("state_dict", state).items()}
        if described:
            facts = state["network"]
            check_flags(config, facts | {"genotype": genotypes.from_dict(facts["genotype"])})
            if facts["class"] != type(network).__name__:
                raise ValueError(f"holds a {facts['class']}, which the other training script trains")
            same_classes = state["images"]["classes"] == list(classes)
        else:
            same_classes = len(given["classifier.bias"]) == len(classes)
        anew = [] if same_classes else ["classifier", "auxiliary_head.classifier"]
        if not any(name.startswith("auxiliary_head.") for name in given):
            anew = [*anew, "auxiliary_head"]
        own = network.state_dict()
        drawn = {name: part for name in own for part in anew if name.startswith(f"{part}.")}
        known = {name: state[name] for name in ("recipe", "result", "origin") if described and name in state}
        json.dumps(known, allow_nan=False)  # it will stand on the card
        load_network_state(network, given | {name: own[name] for name in drawn})
        if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
            raise ValueError("its weights are not finite numbers")
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--weights {path}: {error}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"--weights {path}: no checkpoint of a network ({error})") from None
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return {"sha256": digest, "drawn_anew": sorted(set(drawn.values()))} | known


@torch.no_grad()
def average_weights(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `network` by 1 - decay; batch-norm's running statistics, too.

    `step` counts from 0. The first steps move more, so that the random start is soon forgotten.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    old, new = average.state_dict().values(), network.state_dict().values()
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], weight)


@contextlib.contextmanager
def scalars(folder: RunFolder, wanted: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function (epoch, row) that writes for TensorBoard, or does nothing where that is not `wanted`."""
    if not wanted or not distributed.is_main():
        yield lambda epoch, row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path / "tensorboard")) as writer:

        def write(epoch: int, row: Mapping[str, float]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, epoch)

        yield write


def write_model(
    run: TrainingRun, config: Any, images: dict[str, Any], result: dict[str, Any], program: str
) -> None:
    """model.pt, which describes itself, and card.json, the same in words and numbers without the weights.

    ValueError, and nothing is written, where the measured loss is not finite: the last steps diverged.
    """
    if not all(math.isfinite(value) for name, value in result.items() if name.endswith("_loss")):
        raise run.diverged("loss of the trained network is not finite")
    recipe = dataclasses.asdict(config)
    state = checkpoint.describe_network(run.kept, images=images, recipe=recipe, result=result)
    if run.origin is not None:
        state["origin"] = run.origin
    parameters, multiply_adds = count(run.kept)
    card = {name: value for name, value in state.items() if name != "state_dict"}
    card |= {
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "command": command(program, config),
        "processes": distributed.world_size(),
        "hardware": hardware(run.sums.device),
        "training_seconds": round(sum(row["seconds"] for row in run.rows)),
    }
    write_atomically(run.folder.path / "card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")
    checkpoint.save(run.folder.path / "model.pt", state)  # last: it says that the run is finished


def command(program: str, config: Any) -> str:
    """The command line that makes `config`: the flags that differ from their defaults."""
    words = [f"python {program}"]
    if distributed.world_size() > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
        nodes = f"--nnodes {distributed.world_size() // here} " if distributed.world_size() > here else ""
        words = [f"torchrun {nodes}--nproc_per_node {here} {program}"]
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value == entry.default or entry.name in PLACES:
            continue
        if isinstance(entry.default, bool):  # --flip, which has a third value, takes True or False
            words.append(f"--{entry.name}" if value else f"--no_{entry.name}")
        else:
            words.append(f"--{entry.name} {shlex.quote(str(value))}")
    return " ".join(words)


def hardware(device: torch.device) -> str:
    """What a process ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} CPU threads"
