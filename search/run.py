"""A search that is under way: opening it, comparing a group of pairs, its checkpoint.

The tables are written anew from the same state that the checkpoint holds, so they never disagree with it,
whenever the program is killed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import threadpoolctl
import torch

import operations
from common import checkpoint, distributed
from common.flags import PLACES
from common.run_folder import RunFolder
from encoding import Architecture, CellSpace
from genotypes import from_json, to_json
from images import sets
from search import prior
from search.candidates import Task, TrainedCandidate, compare, load_task
from search.estimates import ESTIMATES, Estimate, SharedWeights, decided
from search.latency import write
from search.limits import LATENCY, FullSizeCosts, costs_of
from search.paired_search import Comparison, NoneAccepted, Outcome, PairedSearch, Settings
from search.record import Finalist, Record
from spaces import Space
from utils import lacks_memory, write_atomically

MAY_DIFFER = ("data", "device", "record", "max_megapixels")  # flags of train_search.py, when a run goes on
BEFORE = {  # settings of searches that knew no others, beside those in their config's EARLIER
    "space": "darts",
    "operations": None,
    "nodes": None,
    "cells": "both",
    "baseline": 0,
    "max_latency": None,
    "latency_batch_size": 1,
    "latency_backend": "torch",
    "max_memory": None,
    "memory_batch_size": 128,
    "deterministic": False,
    "prior": "auto",
    "objectives": ("error",),
}
NEEDED = {"settings", "images", "search", "weights", "history", "generations", "finalists"}  # to go on


@dataclass(frozen=True)
class SearchRun:
    """All parts of a search; `config` is train_search.py's. What changes is in search, estimate, record."""

    config: Any
    task: Task
    search: PairedSearch
    estimate: Estimate
    folder: RunFolder
    record: Record
    costs: FullSizeCosts
    earlier: str | None = None  # the text of the table of trainings that the predictor began with

    def ask(self) -> list[Comparison]:
        """The next comparisons; ValueError that names the limits where no cell is found within them."""
        try:
            return self.search.ask()
        except NoneAccepted:
            raise ValueError(self.costs.in_words(Space.of(self.config))) from None

    def compare_group(self, group: list[Comparison], progress: float) -> None:
        """Train what must be trained of a group, tell and note the outcomes, merge the weights in pair order.

        `progress` is the share of the search that is over, in [0, 1): the schedules follow it.
        """
        begin = time.perf_counter()
        pairs = [comparison for comparison in group if comparison.decided_by != "predictor"]
        cost = self.estimate.costs(pairs)
        measured = self.estimate.measure(pairs, progress)
        seconds = (time.perf_counter() - begin) / max(1, len(pairs))
        for comparison in group:
            pair = comparison.pair
            if pair not in measured:
                self.record.add(comparison, None, self.search.tell(comparison, None), 0, 0.0)
                continue
            outcome = compare(*measured[pair])
            self._warn(comparison, outcome)
            fast = self.search.tell(comparison, outcome)
            self.record.add(comparison, outcome, fast, cost[pair], seconds)
            self.estimate.learn(pair, fast)
        if self.search.generation > group[0].generation:
            learning_rate, drop_path_prob = self.estimate.schedule(progress)[0]
            self.record.end_generation(self.search, learning_rate, drop_path_prob)
            self.check_equal()

    def _warn(self, comparison: Comparison, outcome: Outcome) -> None:
        """Say which candidates diverged."""
        for side, loss in (("a", outcome.loss_a), ("b", outcome.loss_b)):
            if not math.isfinite(loss):
                where = f"generation {comparison.generation + 1}, pair {comparison.pair}"
                self.folder.log.warning(f"{where}: candidate {side} diverged (loss {loss}) and loses")

    def keep_tables(self) -> None:
        """Keep in the run folder what a resumed run must have the same: measured edges, earlier trainings."""
        if not distributed.is_main():
            return
        if self.costs.latency is not None:
            write(self.folder.path / LATENCY, self.costs.latency.table, {})
        if self.earlier is not None:
            write_atomically(self.folder.path / prior.KEPT, self.earlier)

    def check_equal(self) -> None:
        """ValueError where a process has other cells or weights, or is elsewhere, than the first one."""
        weights = self.estimate.tensors()  # each process fills it in an order of its own
        distributed.check_equal(
            comparisons=len(self.record.history),
            populations=distributed.checksum([torch.from_numpy(self.search.population.positions)]),
            weights=distributed.checksum(weights[name] for name in sorted(weights)),
        )

    def save(self) -> None:
        """Write the checkpoint, and then the tables. The checkpoint before stays beside it."""
        if not distributed.is_main():
            return
        record = self.record
        state = {
            "kind": "search",
            "images": self.task.fingerprint,
            **self._begun_with,
            "settings": _settings(self.config),
            "versions": {"torch": str(torch.__version__), "pairnas": checkpoint.VERSION},
            "search": self.search.state_dict(),
            "weights": self.estimate.state_dict(),
            "history": record.history,
            "generations": record.generations,
            "finalists": [(to_json(finalist.genotype), *finalist.trained) for finalist in record.finalists],
            "baseline": record.baseline,
        }
        checkpoint.save(self.folder.checkpoint, state, keep_previous=True)
        self._write_tables()

    def _write_tables(self) -> None:
        self.folder.write_table("history.csv", self.record.history)
        self.folder.write_table("generations.csv", self.record.generations)

    @cached_property
    def _begun_with(self) -> dict[str, Any]:
        """Checksums of what a resumed run must have the same: both tables, and the operations."""
        times = None if self.costs.latency is None else repr(self.costs.latency.table)
        tables = {"prior": self.earlier, "latency": times}
        found = {name: None if text is None else _checksum(text) for name, text in tables.items()}
        return found | {"operations": definitions(self.config)}

    def load_checkpoint(self) -> str | None:
        """Go on from the folder's newest good checkpoint; a run stopped before its first one starts anew.

        Returns what was wrong with a newer checkpoint, if anything was. Raises ValueError where none is good,
        where it is another run's, where the images are not the ones that the run began with, or where another
        program works in the folder.
        """
        folder, path = self.folder, self.folder.checkpoint
        folder.lock()
        found = distributed.from_main(lambda: checkpoint.load_newest(path, "search"))
        if found is None:
            return None
        state, problem = found
        if missing := NEEDED - set(state):
            raise ValueError(f"{path}: no checkpoint of this version: {', '.join(sorted(missing))} missing")
        if differing := _differing(
            BEFORE | self.config.EARLIER | dict(state["settings"]), _settings(self.config)
        ):
            raise ValueError(
                f"{path}: the checkpoint of a run with other settings than {folder.path}'s: {differing}"
            )
        if state["images"] != self.task.fingerprint:
            raise ValueError(f"--resume {folder.path}: --data holds other images than the run began with")
        ours = self._begun_with
        now, then = ours["operations"], state.get("operations", ours["operations"])
        if changed := [name for name, one in then.items() if one != now.get(name)]:
            raise ValueError(
                f"--resume {folder.path}: {', '.join(changed)} in operations.py is defined otherwise than "
                "when the run began"
            )
        if state.get("prior") != ours["prior"]:
            raise ValueError(f"--resume {folder.path}: {prior.KEPT} is not the table that the run began with")
        if state.get("latency", ours["latency"]) != ours["latency"]:  # runs of earlier versions have none
            raise ValueError(f"--resume {folder.path}: {LATENCY} is not the table that the run began with")
        try:
            self._load_state(state)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if lacks_memory(error):
                raise
            reason = " ".join(repr(error).split())[:160]
            raise ValueError(f"{path}: no checkpoint of this version ({reason})") from None
        self._write_tables()
        if problem:
            problem = folder.fall_back(problem)
        return problem

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.search.load_state_dict(checkpoint.arrays(state["search"]))
        self.estimate.load_state_dict(state["weights"])
        self.record.history = [_complete(row) for row in state["history"]]
        self.record.generations = state["generations"]
        self.record.baseline = state.get("baseline", [])  # searches begun before there was one have none
        self.record.finalists = [
            Finalist(from_json(cell), TrainedCandidate(*trained)) for cell, *trained in state["finalists"]
        ]
        rows = [*self.record.history, *self.record.generations, *self.record.baseline]
        if not all(isinstance(value, int | float | str) for row in rows for value in row.values()):
            raise ValueError("a table holds other things than numbers and words")
        if not all(isinstance(one.trained.training_loss, float) for one in self.record.finalists):
            raise ValueError("a finalist's training loss is no number")


def open_search(config: Any, path: str | Path, device: torch.device) -> tuple[SearchRun, sets.ImageSet]:
    """The search of these flags at its beginning, whose folder is `path`; and the test images, on the CPU.

    The run's settings say what "auto" came to. Of the folder only the tables are read that `keep_tables`
    wrote; nothing is written. Raises ValueError that names a flag where the images are missing or too few, an
    operation does not work, or a table is none.
    """
    # A network doubles its channels twice; an odd number of them never meets stride 2.
    operations.check(Space.of(config).searched, (2 * config.init_channels, 4 * config.init_channels))
    task, test = load_task(config, device)
    config = decided(config, len(task.train))
    task = task._replace(config=config)
    costs = costs_of(config, task, task.full_size(), Path(path))
    folder = RunFolder(path)
    earlier = distributed.from_main(lambda: prior.text_of(config, folder))
    # One thread, or the predictor's sums would depend on the number of processes. Only libraries that are
    # loaded are limited: NumPy's and, since the predictor was imported, SciPy's.
    threadpoolctl.threadpool_limits(1, "blas")
    estimate = ESTIMATES[config.estimate](task)
    age = estimate.age if isinstance(estimate, SharedWeights) else None
    search = make_search(config, costs, earlier, age)
    some = np.stack([search.space.read(position) for position in search.population.positions])
    expected = hashlib.sha256(search.predictor.expected(some).tobytes()).hexdigest()
    distributed.check_equal(images=task.fingerprint, expected=expected)
    return SearchRun(config, task, search, estimate, folder, Record(), costs, earlier), test


def make_search(
    config: Any,
    costs: FullSizeCosts,
    earlier: str | None = None,
    age: Callable[[Architecture], float] | None = None,
) -> PairedSearch:
    """The population and its predictor, as the flags say; `earlier` is the text of a table of trainings.

    `age` is that of the weights which a candidate would start from, where candidates share them.
    """
    space = Space.of(config).encoding()
    expected = None if earlier is None else prior.learn(earlier, cast(CellSpace, space))
    return PairedSearch(
        space=space,
        settings=Settings(
            pop_size=config.pop_size,
            generations=config.generations,
            seed=config.seed,
            pairs_per_sync=config.pairs_per_sync,
            strategy=config.strategy,
            rank=config.rank,
            screen=config.screen,
            decide=config.decide,
            audit_share=config.audit_share,
            again=config.estimate != "alone",  # where each cell has one loss, whenever it trains
        ),
        accept=costs.accepts if costs.limits else None,
        age=age,
        prior=expected,
        costs=costs.values if costs.objectives else None,
    )


def definitions(config: Any) -> dict[str, str]:
    """A checksum for each operation of the space: of its modules and their settings, in words."""
    found = {}
    for name in Space.of(config).searched:
        with torch.random.fork_rng(devices=[]):  # not on the meta device: one of a user's may not be able to
            modules = [repr(operations.OPS[name](4, stride, True)) for stride in (1, 2)]
        found[name] = _checksum("".join(modules))
    return found


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _complete(row: dict[str, Any]) -> dict[str, Any]:
    """A row of history.csv; searches begun before candidates could train alone have no "trained"."""
    if "trained" in row:
        return row
    trained = 2 * (row["decided_by"] != "predictor")
    before = {name: value for name, value in row.items() if name != "seconds"}
    return before | {"trained": trained, "seconds": row["seconds"]}


def _settings(config: Any) -> dict[str, Any]:
    """The settings that make a run what it is, wherever it runs."""
    return {name: value for name, value in asdict(config).items() if name not in (*PLACES, *MAY_DIFFER)}


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings that differ, in words; empty where none does."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"--{name} ({theirs.get(name)}, not {ours.get(name)})" for name in names)
