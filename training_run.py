"""How far a training is, as one object: saved whole, between two steps, and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import checkpoint
import distributed
from run_folder import RunFolder


@dataclass
class TrainingRun:
    """What changes during a training. All processes hold the same, but for `sums`, which are their own.

    `kind` and `images` (a fingerprint of the data) tell a checkpoint from those of other programs and data.
    """

    kind: str
    images: str
    folder: RunFolder
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    sums: Tensor  # float64 on the device: loss, wrong, images of this process in this epoch
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    seconds: float = 0.0  # spent in this epoch
    rows: list[dict[str, Any]] = field(default_factory=list)  # of epochs.csv

    def totals(self) -> tuple[float, float, int]:
        """Loss, wrong, images of this epoch so far, of all processes; ValueError where training diverged."""
        sums = self.sums.clone()
        distributed.sum_([sums])
        if not sums.isfinite().all():
            raise ValueError(
                f"the training loss is not finite in epoch {self.epoch + 1}, step {self.step}; the last good "
                f"checkpoint is {self.folder.checkpoint}; a new run needs a lower --learning_rate"
            )
        loss, wrong, images = sums.tolist()
        return loss, wrong, int(images)

    def save(self) -> None:
        """Write a checkpoint, and keep the one before."""
        sums = self.totals()
        if distributed.is_main():
            state = {
                name: getattr(self, name) for name in ("kind", "images", "epoch", "step", "seconds", "rows")
            }
            state |= {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}
            checkpoint.save(self.folder.checkpoint, state | {"sums": list(sums)}, keep_previous=True)

    def take_up(self) -> str | None:
        """Go on from the folder's newest good checkpoint; returns what was wrong with a newer one.

        Every process reads it. ValueError where none is good, or where it was made with other images.
        """
        path = self.folder.checkpoint
        if not path.exists() and not checkpoint.previous(path).exists():
            return f"{path.parent}: stopped before its first checkpoint; starting from the beginning"
        state, problem = checkpoint.load_newest(path, self.kind)
        if state["images"] != self.images:
            raise ValueError(f"--resume {path.parent}: --data holds other images than the run began with")
        for name in ("network", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("epoch", "step", "seconds", "rows"):
            setattr(self, name, state[name])
        if distributed.is_main():  # they are summed over the processes again
            self.sums += self.sums.new_tensor(state["sums"])
        return problem

    def end_epoch(self, learning_rate: float) -> str:
        """Note a row for the epoch, save, begin the next; returns the row in words."""
        loss, wrong, images = self.totals()
        row = {
            "epoch": self.epoch,
            "learning_rate": learning_rate,
            "loss": loss / images,
            "error": wrong / images,
        }
        self.rows.append(row | {"images": images, "seconds": round(self.seconds, 1)})
        words = f"training loss {row['loss']:.4f}, error {row['error']:.2%}, "
        words += f"{images / max(self.seconds, 0.01):.0f} images/s"
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.save()
        self.folder.write_table("epochs.csv", self.rows)
        return words
