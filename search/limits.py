"""What a cell costs at full size: the measures that flags ask for, the limits, and the further objectives.

costs = costs_of(config, task, full_size, folder)
costs.accepts(cell), costs.values(cell), costs.measures["parameters"](cell)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import distributed
from common.run_folder import RunFolder
from genotypes import AnyGenotype
from model_search import FullSize
from search.candidates import Task
from search.latency import Conditions, Latency, Table, table_for
from search.memory import TrainingMemory
from spaces import Space

LATENCY = "latency.json"  # in the run folder: the table by which cells were refused
MEMORY = "memory"
COUNTED = ("parameters", "multiply_adds")  # without any measuring, so always there
UNITS = {"parameters": "million", "multiply_adds": "million", "latency": "ms", MEMORY: "GiB"}

Measure = Callable[[AnyGenotype], float]


@dataclass(frozen=True)
class FullSizeCosts:
    """What cells cost by each measure, in the units of the flags, and how much they may cost.

    Measures, `limits` and `objectives` have names of UNITS; the objectives, in the order of the flag, are
    those beside the error. `latency` and `memory` are there where flags ask for them.
    """

    full_size: FullSize
    measures: Mapping[str, Measure]
    limits: Mapping[str, float]
    objectives: tuple[str, ...]
    latency: Latency | None = None
    memory: TrainingMemory | None = None

    def accepts(self, cell: AnyGenotype) -> bool:
        """Whether a cell keeps to all limits."""
        if not all(
            self.measures[name](cell) <= limit for name, limit in self.limits.items() if name != MEMORY
        ):
            return False
        # Last, and not by its measure: of most cells it need not be counted whether they keep to the limit.
        return self.memory is None or self.memory.within(cell, self.limits[MEMORY] * 2**30)

    def values(self, cell: AnyGenotype) -> list[float]:
        """What a cell costs, in the order of the objectives.

        None costs more than its limit: what does is refused, and a front need not reach so far.
        """
        most = float("inf")
        return [min(self.measures[name](cell), self.limits.get(name, most)) for name in self.objectives]

    def in_words(self, space: Space) -> str:
        """The limits as flags, and what the cheapest of the cells costs that repeat one operation."""
        cells = [space.uniform(operation) for operation in space.searched if operation != "none"]
        least = {name: min(map(self.measures[name], cells)) for name in self.limits}
        flags = " ".join(f"--max_{name} {limit:g}" for name, limit in self.limits.items())
        costs = ", ".join(f"{value:.3g} {UNITS[name]}" for name, value in least.items())
        C, layers = self.full_size.C, self.full_size.layers
        return (
            f"{flags}: no cell was found that keeps to it at --full_channels {C} --full_layers {layers}; "
            f"of cells of one operation the cheapest takes {costs}"
        )


def costs_of(config: Any, task: Task, full_size: FullSize, folder: Path) -> FullSizeCosts:
    """The measures, limits and objectives that the flags ask for.

    Raises ValueError where cells of the lightest operation exceed `--max_memory`: nearly all would; and where
    a table of measured edges is damaged or cannot be made.
    """
    given = {name: getattr(config, f"max_{name}") for name in UNITS}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    objectives = tuple(name for name in config.objectives if name != "error")
    measures: dict[str, Measure] = {
        "parameters": lambda cell: full_size(cell)[0] / 1e6,
        "multiply_adds": lambda cell: full_size(cell)[1] / 1e6,
    }
    latency = memory = None
    if "latency" in {*limits, *objectives}:
        measures["latency"] = latency = make_latency(config, task, full_size, folder)
    if MEMORY in limits:
        memory = counted = TrainingMemory(full_size, Space.of(config), config.memory_batch_size)
        measures[MEMORY] = lambda cell: counted(cell) / 2**30
        if memory.lightest > limits[MEMORY] * 2**30:
            raise ValueError(
                f"--max_memory {config.max_memory}: no cell was found that keeps to it at --full_channels "
                f"{full_size.C} --full_layers {full_size.layers}; cells of the lightest operation take "
                f"{memory.lightest / 2**30:.3g} GiB with {config.memory_batch_size} images a step"
            )
    return FullSizeCosts(full_size, measures, limits, objectives, latency, memory)


def make_latency(config: Any, task: Task, full_size: FullSize, folder: Path) -> Latency:
    """What estimates latencies: one process measures, if no table is kept.

    Raises ValueError where a run that has begun has lost its table: measured again, times would differ.
    """
    conditions = Conditions(
        task.device,
        task.precision,
        config.channels_last,
        config.latency_batch_size,
        config.threads,
        config.latency_backend,
    )

    def read() -> Table:
        if config.resume and RunFolder(folder).checkpoint.exists() and not (folder / LATENCY).exists():
            raise ValueError(f"--resume {folder}: {LATENCY} is missing, by whose times cells were judged")
        return table_for(full_size, Space.of(config), conditions, folder / LATENCY)

    return Latency(full_size, Table(*distributed.from_main(read)))
