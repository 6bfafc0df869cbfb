"""Searches on images without population and predictor: what random cells and their neighbours bring.

Each strategy gets a search run that judges candidates alone, and so many epochs to train them. It returns the
finalists, best first, and the epochs that it spent. What it has trained for a candidate's epochs stands in
the run's checkpoint, so a strategy that was stopped does the same again and trains what is missing; halving
trains its other rungs again.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import numpy as np
from searches import random_cells

from encoding import ChoiceSpace
from genotypes import AnyGenotype
from predictor.posterior import Posterior
from search.estimates import Alone
from search.run import SearchRun
from search.screening import promising
from spaces import Space
from utils import derive_seed

BEGIN = 10  # random cells, of which local search starts from the best
MOVES = 16  # random cells from which a climb begins
DRAWS = 500  # random cells for each of the largest
RUNGS = 3  # of successive halving: each trains the better half of the cells for twice the epochs
LONE = ("local", "halving", "largest")  # need candidates that train alone


def check(strategy: str, run: SearchRun) -> None:
    """ValueError where a strategy cannot work with what the run has."""
    if strategy in LONE:
        lone(run)
    if strategy == "prior_only" and run.search.predictor.prior is None:
        raise ValueError("--prior: prior_only needs one; see --estimate, --space and --layers")


def lone(run: SearchRun) -> Alone:
    """The run's estimate. ValueError where candidates do not train alone."""
    if not isinstance(run.estimate, Alone):
        raise ValueError(f"--estimate: {', '.join(LONE)} need candidates that train alone")
    return run.estimate


def local(run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """Local search from the best of `BEGIN` random cells: the first neighbour that is better, in random
    order; where none is, the best of as many further random cells."""
    estimate, config = lone(run), run.config
    space = Space.of(config).encoding()
    rng = np.random.default_rng(derive_seed(config.seed, "local") % 2**32)
    losses: dict[AnyGenotype, float] = {}
    count = budget // config.candidate_epochs

    def loss(cell: AnyGenotype) -> float:
        if cell not in losses:
            value = estimate.losses([cell])[0].mean().item()
            losses[cell] = value if math.isfinite(value) else math.inf  # what diverged is never better
            run.save()
        return losses[cell]

    while len(losses) < count:
        begin = [space.decode(space.sample(rng)) for _ in range(min(BEGIN, count - len(losses)))]
        here, improved = min(begin, key=loss), True
        while improved:
            improved = False
            for row in rng.permutation(space.neighbours(space.choices(here))):
                cell = space.architecture(row)
                if len(losses) == count and cell not in losses:
                    break
                if loss(cell) < loss(here):
                    here, improved = cell, True
                    break
    return sorted(losses, key=loss)[: config.finalists], len(losses) * config.candidate_epochs


def halving(run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """Successive halving of random cells (Karnin et al. 2013; Jamieson and Talwalkar, arXiv 1502.07943).

    The rungs train for half the run's epochs of a candidate, for them, and for twice as many. A cell that
    stays begins anew, with the same steps as before, so only the epochs that are added count.
    """
    config = run.config
    lengths = [max(1, config.candidate_epochs // 2) << rung for rung in range(RUNGS)]
    added = [length if not rung else length - lengths[rung - 1] for rung, length in enumerate(lengths)]

    def kept(count: int) -> int:
        return min(count, max(config.finalists, count // 2))

    def cost(count: int) -> int:
        total = 0
        for epochs in added:
            total, count = total + epochs * count, kept(count)
        return total

    cells = max(count for count in range(1, budget + 1) if count == 1 or cost(count) <= budget)
    staying, spent = random_cells(config, cells, config.seed, "halving"), 0
    for length, more in zip(lengths, added, strict=True):
        task = run.task._replace(config=dataclasses.replace(config, candidate_epochs=length))
        estimate = lone(run) if length == config.candidate_epochs else Alone(task)
        losses = [one.mean().item() for one in estimate.losses(staying)]
        spent += more * len(staying)
        order = np.argsort(losses, kind="stable")  # NaN last
        staying = [staying[i] for i in order[: kept(len(staying))]]
    return staying[: config.finalists], spent


def finalists_only(run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """Random cells that train as finalists do: the epochs of the search train more of them."""
    count = run.config.finalists + budget // run.config.final_epochs
    return random_cells(run.config, count, run.config.seed, "alone"), 0


def largest(run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """Of `DRAWS` times as many random cells those with most parameters: what size brings by itself."""
    estimate, config = lone(run), run.config
    count = budget // config.candidate_epochs
    cells = dict.fromkeys(random_cells(config, DRAWS * count, config.seed, "largest"))
    size = run.task.size(config.init_channels, config.layers)
    large = sorted(cells, key=lambda cell: size(cell)[0], reverse=True)[:count]
    losses = []
    for cell in large:
        losses.append(estimate.losses([cell])[0].mean().item())
        run.save()
    order = np.argsort(losses, kind="stable")  # NaN last
    return [large[i] for i in order[: config.finalists]], count * config.candidate_epochs


def prior_only(run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """The cells that the search's prior expects to be best, of all that is met uphill from random ones."""
    count = run.config.finalists + budget // run.config.final_epochs
    rng = np.random.default_rng(derive_seed(run.config.seed, "prior") % 2**32)
    return uphill(run.search.space, run.search.predictor.posterior(), count, rng), 0


def uphill(
    space: ChoiceSpace,
    posterior: Posterior,
    count: int,
    rng: np.random.Generator,
    known: Iterable[tuple[int, ...]] = (),
) -> list[AnyGenotype]:
    """So many cells of high expected quality, none of them `known`, or a neighbour of another."""
    banned = set(known)
    found = []
    for _ in range(count):
        moves = np.stack([space.sample(rng) for _ in range(MOVES)])
        row = next(promising(space, posterior, moves, np.empty((0, space.positions), np.int64), banned, rng))
        banned |= {tuple(row.tolist()), *map(tuple, space.neighbours(row).tolist())}
        found.append(space.architecture(row))
    return found


BASELINES: dict[str, Callable[[SearchRun, int], tuple[list[AnyGenotype], int]]] = {
    "local": local,
    "halving": halving,
    "largest": largest,
    "finalists_only": finalists_only,
    "prior_only": prior_only,
}
