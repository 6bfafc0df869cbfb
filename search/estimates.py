"""How good a cell is, as far as a search can see: two ways to find out, with one interface.

`SharedWeights`, as published: a candidate takes its weights from the set, trains an epoch and is judged on
the validation images. What it tells of a cell depends on how long the cell's operations have trained before.

`Alone`: a candidate trains from start values for a few epochs and is judged by its training loss in the last
of them, which says how fast it learns (Ru et al., arXiv 2006.04492, sum it from the first step on; in our
table of trainings the last epoch alone ranks better). All candidates see the same batches and equal modules
start from equal weights, so losses of any two cells may be compared, and no cell needs a second training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common import distributed
from genotypes import AnyGenotype, from_json, to_json
from search.candidates import Job, Task, TrainedCandidate, train_all, train_network
from search.paired_search import Comparison
from training.schedule import cosine

FEW, EPOCHS = 5000, 4  # images that train at which "auto" lets candidates train alone; and for how long
Losses = Tensor  # (n,) on the CPU; equal places of two candidates belong together


class SharedWeights:
    """One epoch from the weights that all candidates share; the loss of each validation image."""

    words = "candidates share a weight set"

    def __init__(self, task: Task) -> None:
        self.task, self.weight_set = task, task.weight_set("weight set")
        self.trained: dict[int, list[TrainedCandidate]] = {}  # of the group that is compared, by pair

    def schedule(self, progress: float) -> list[tuple[float, float]]:
        """Learning rate and drop-path probability of each epoch, as the share `progress` of the search."""
        config = self.task.config
        learning_rate = cosine(progress, config.learning_rate, config.learning_rate_min)
        return [(learning_rate, config.drop_path_prob * progress)]

    def measure(self, pairs: Sequence[Comparison], progress: float) -> dict[int, list[Losses]]:
        """The losses of both candidates of each pair, by the pair's number; spread over the processes."""
        schedule = self.schedule(progress)
        jobs = [Job(cell, (one.generation, one.pair), schedule) for one in pairs for cell in (one.a, one.b)]
        results = train_all(self.task, self.weight_set, jobs)
        self.trained = {one.pair: results[2 * i : 2 * i + 2] for i, one in enumerate(pairs)}
        return {pair: [candidate.losses for candidate in both] for pair, both in self.trained.items()}

    def costs(self, pairs: Sequence[Comparison]) -> dict[int, int]:
        """How many networks are trained for each pair, by its number."""
        return {one.pair: 2 for one in pairs}

    def learn(self, pair: int, fast: str | None) -> None:
        """Give the weights of a pair to the set; a candidate that diverged gives none."""
        if fast is not None:
            a, b = self.trained[pair]
            winning, losing = (a, b) if fast == "a" else (b, a)
            self.weight_set.absorb(winning.weights, losing.weights if losing.finite else None)

    def age(self, cell: AnyGenotype) -> float:
        """How far the weights have trained that a candidate would start from, in [0, 1]."""
        return self.weight_set.age(cell)

    def tensors(self) -> dict[str, Tensor]:
        """All that candidates start from, by name."""
        return self.weight_set.tensors

    def state_dict(self) -> dict[str, Any]:
        return self.weight_set.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight_set.load_state_dict(state)


class Alone:
    """A few epochs from start values; the training loss of each step of the last one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.known: dict[AnyGenotype, Losses] = {}
        self.words = f"candidates train alone, for {task.config.candidate_epochs} epochs"

    def schedule(self, progress: float) -> list[tuple[float, float]]:
        """Learning rate and drop-path probability of each epoch: they stay, so that losses compare."""
        return [(self.task.config.learning_rate, 0.0)] * self.task.config.candidate_epochs

    def measure(self, pairs: Sequence[Comparison], progress: float) -> dict[int, list[Losses]]:
        """The losses of both candidates of each pair, by the pair's number; spread over the processes."""
        found = iter(self.losses([cell for one in pairs for cell in (one.a, one.b)]))
        return {one.pair: [next(found), next(found)] for one in pairs}

    def losses(self, cells: Sequence[AnyGenotype]) -> list[Losses]:
        """The losses of each cell; those that are not known yet are trained, spread over the processes."""
        new = [cell for cell in dict.fromkeys(cells) if cell not in self.known]
        self.known |= zip(new, self._train(new), strict=True)
        return [self.known[cell] for cell in cells]

    def _train(self, cells: Sequence[AnyGenotype]) -> Sequence[Losses]:
        schedule, steps = self.schedule(0.0), self.task.steps
        losses = torch.zeros(len(cells), steps, dtype=torch.float64, device=self.task.device)
        for i in range(distributed.rank(), len(cells), distributed.world_size()):
            job = Job(cells[i], ("alone",), schedule)
            _, seen = train_network(self.task, self.task.weight_set("alone"), job)
            complete = len(seen) == len(schedule) * steps  # or it has diverged
            losses[i] = seen[-steps:] if complete else math.nan
        distributed.sum_([losses])  # each process has the rows of its own cells, and zeros
        return list(losses.cpu())

    def costs(self, pairs: Sequence[Comparison]) -> dict[int, int]:
        """How many networks are trained for each pair that is about to be measured, by its number."""
        found, known = {}, set(self.known)
        for one in pairs:
            found[one.pair] = len({one.a, one.b} - known)
            known |= {one.a, one.b}
        return found

    def learn(self, pair: int, fast: str | None) -> None:
        """Nothing: no candidate leaves anything to another one."""

    def tensors(self) -> dict[str, Tensor]:
        """The losses of all cells, by their text."""
        return {to_json(cell): losses for cell, losses in self.known.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.known = {from_json(cell): losses for cell, losses in state.items()}


def decided(config: Any, images: int) -> Any:
    """The settings of a search with its estimate and epochs in place of "auto" and None; `images` train.

    ValueError where epochs were given that have no effect.
    """
    estimate = ("alone" if images <= FEW else "weight_set") if config.estimate == "auto" else config.estimate
    epochs = config.candidate_epochs or (EPOCHS if estimate == "alone" else 1)
    if estimate == "weight_set" and epochs != 1:
        raise ValueError(
            f"--candidate_epochs {epochs}: no effect without --estimate alone, which {images} training "
            f"images do not get by themselves"
        )
    return dataclasses.replace(config, estimate=estimate, candidate_epochs=epochs)


Estimate = SharedWeights | Alone
ESTIMATES: dict[str, type[SharedWeights] | type[Alone]] = {"weight_set": SharedWeights, "alone": Alone}
