"""How far a training is, as one object: saved whole, between two steps, and loaded again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

import genotypes
from common import checkpoint, distributed
from common.run_folder import RunFolder
from genotypes import Genotype
from training.precision import grad_scaler
from utils import lacks_memory

FACTS = ("kind", "images", "genotype", "processes")  # of the run, kept in its checkpoints
ROW = {"epoch", "learning_rate", "images", "seconds"}  # and what is measured
PROGRESS = ("epoch", "step", "steps", "seconds", "rows")
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


@dataclass
class TrainingRun(Generic[AnyNetwork]):
    """What changes during a training; a network of cells has them as its `genotype`.

    All processes hold the same but for `sums`, which are their own.
    `kind` and `images` (a fingerprint of the data) tell a checkpoint from those of other programs and data.
    """

    kind: str
    images: str
    folder: RunFolder
    network: AnyNetwork
    optimizer: torch.optim.Optimizer
    precision: str
    ema: float = 0.0  # decay of the averaged weights; 0: none are kept
    measures: tuple[str, ...] = ("loss", "error")  # of each training image; epochs.csv has their means
    processes: int = field(default_factory=distributed.world_size)
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    steps: int = 0  # steps done in all epochs
    seconds: float = 0.0  # spent in this epoch
    rows: list[dict[str, Any]] = field(default_factory=list)  # of epochs.csv
    origin: dict[str, Any] | None = None  # what is known of the file that --weights names
    description: dict[str, Any] = field(default_factory=dict)  # of network and images, for who reads it
    saved: int = 0  # `steps` of the checkpoint
    saved_at: float = field(default_factory=time.monotonic)  # when it was written, in seconds
    finite: int = 0  # `steps` when the loss was last seen to be finite

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        genotype = cast("Genotype | None", getattr(self.network, "genotype", None))
        self.genotype = genotype and genotypes.to_dict(genotype)
        self.scaler = grad_scaler(self.device, self.precision)
        # Of this process in this epoch: the measures (loss, wrong), images.
        self.sums = torch.zeros(len(self.measures) + 1, dtype=torch.float64, device=self.device)
        self.average: AveragedModel | None = None
        if self.ema:
            self.average = AveragedModel(self.network, multi_avg_fn=self._move_average, use_buffers=True)
            self.average.update_parameters(self.network)  # the first call copies: here, not after a step

    @property
    def kept(self) -> AnyNetwork:
        """The network that is measured and written: the one with averaged weights, where they are kept."""
        return self.network if self.average is None else cast(AnyNetwork, self.average.module)

    def _parts(self) -> dict[str, Any]:
        """What is saved through state_dict and load_state_dict."""
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.average is None else parts | {"average": self.average.module}

    def _move_average(self, averages: PARAM_LIST, weights: PARAM_LIST, updates: Tensor | int) -> None:
        """Move averages by 1 - decay, more in the first steps, so that the random start is soon forgotten.

        Batch-norm's running statistics move, too; its counts of batches stay. `updates` is not read: where it
        is on a GPU, that would wait.
        """
        if averages[0].is_floating_point():
            decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(averages, weights, 1.0 - decay)

    def end_step(self, sums: Tensor, seconds: float) -> None:
        """Count a step, which gave these sums (of the measures, and images) and took these seconds."""
        self.sums += sums
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step, self.steps, self.seconds = self.step + 1, self.steps + 1, self.seconds + seconds

    def totals(self) -> list[float]:
        """Sums of this epoch so far, over all processes; ValueError where training diverged."""
        sums = self.sums.clone()
        distributed.sum_([sums])
        if not sums.isfinite().all():
            raise self.diverged(f"training loss is not finite in epoch {self.epoch + 1}, step {self.step}")
        self.finite = self.steps
        return sums.tolist()

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
            state |= {"origin": self.origin, "sums": list(sums), "description": self.description}
            checkpoint.save(self.folder.checkpoint, state, keep_previous=self.steps > self.saved)
        self.saved, self.saved_at = self.steps, time.monotonic()

    def load_checkpoint(self) -> str | None:
        """Go on from the folder's newest good checkpoint; returns what was wrong with a newer one.

        The first process reads it for all. ValueError where none is good, or where it is of other images or
        another cell.
        """
        self.folder.lock()
        path = self.folder.checkpoint
        found = distributed.from_main(lambda: checkpoint.load_newest(path, self.kind))
        if found is None:
            return f"{path.parent}: stopped before its first checkpoint; starting from the beginning"
        state, problem = found
        if missing := set(FACTS + PROGRESS) - set(state):
            raise ValueError(f"{path}: no checkpoint of this version: {', '.join(sorted(missing))} missing")
        if state["images"] != self.images:
            raise ValueError(f"--resume {path.parent}: --data holds other images than the run began with")
        if state["genotype"] != self.genotype:
            raise ValueError(f"--resume {path.parent}: --arch is another cell now than the run began with")
        try:
            self._take(state)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            if lacks_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path}: does not fit the settings of its run ({reason} ...)") from None
        self.origin = state.get("origin")  # runs begun before --weights existed have none
        self.saved = self.finite = self.steps
        if problem:
            problem = self.folder.fall_back(problem)
        if state["processes"] != self.processes:
            change = (
                f"made by {state['processes']} processes, goes on with {self.processes}: batch-norm sees "
                "other shares of a batch, so the run will not end to the bit as it would have"
            )
            problem = f"{problem}; {change}" if problem else change
        if distributed.is_main():  # they are summed over the processes again
            self.sums += self.sums.new_tensor(state["sums"])
        return problem

    def _take(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state; any error of Python's where it is not one of this run."""
        if not all(type(state[name]) is int and state[name] >= 0 for name in ("epoch", "step", "steps")):
            raise ValueError("epoch and steps are no numbers")
        if not (isinstance(state["seconds"], float | int) and type(state["processes"]) is int):
            raise ValueError("seconds and processes are no numbers")
        if not all(row.keys() >= ROW | set(self.measures) for row in state["rows"]):
            raise ValueError("the rows of the epochs are incomplete")
        # Else the last epoch would end in an error: TypeError for what neither table nor card can hold.
        json.dumps([state["rows"], state.get("origin")])
        if self.sums.new_tensor(state["sums"]).shape != self.sums.shape:
            raise ValueError("the sums of the epoch are not three")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for parameter, values in self.optimizer.state.items():
            for value in values.values():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError("the optimiser's state is of another network")
        for name in PROGRESS:
            setattr(self, name, state[name])

    def check_equal(self) -> None:
        """ValueError where a process has other weights, images or steps than the first one."""
        weights = distributed.checksum(self.network.parameters())
        distributed.check_equal(images=self.images, steps=self.steps, weights=weights)

    def end_epoch(self, learning_rate: float, **more: float) -> str:
        """Note a row for the epoch, with `more` columns, save, begin the next; returns the row in words."""
        *sums, images = self.totals()
        self.check_equal()
        means = {name: value / images for name, value in zip(self.measures, sums, strict=True)}
        row = {"epoch": self.epoch, "learning_rate": learning_rate, **means, **more}
        self.rows.append(row | {"images": int(images), "seconds": round(self.seconds, 1)})
        words = f"training loss {row['loss']:.4f}, "
        words += f"error {row['error']:.2%}, " if "error" in row else ""
        words += "".join(f"{name.replace('_', ' ')} {value:.4f}, " for name, value in more.items())
        words += f"{images / max(self.seconds, 0.01):.0f} images/s"
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.save()
        self.folder.write_table("epochs.csv", self.rows)
        return words
