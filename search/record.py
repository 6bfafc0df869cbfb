"""What a search writes down: the rows of its tables, and the checkpoint from which it goes on.

A comparison is a row of history.csv, a generation one of generations.csv. The tables are written anew from
the same state that the checkpoint holds, so they never disagree with it, whenever the program is killed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import torch

from common import checkpoint, distributed
from common.flags import PLACES
from common.run_folder import RunFolder
from encoding import operation_counts
from genotypes import Genotype, from_json, to_json
from model_search import FullSize, WeightSet
from search.candidates import Task, Trained
from search.paired_search import Comparison, Outcome, PairedSearch

Row = dict[str, Any]
FREE = ("data", "device", "record")  # flags of train_search.py that may differ when a run is taken up again


@dataclass(frozen=True)
class Finalist:
    """A cell and what its training from scratch gave."""

    genotype: Genotype
    trained: Trained


@dataclass
class Record:
    """What a run has found out so far: with search and weight set, its whole state."""

    history: list[Row] = field(default_factory=list)
    generations: list[Row] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)

    def add(self, comparison: Comparison, outcome: Outcome | None, fast: str | None, seconds: float) -> None:
        """A row of history.csv. Numbers that do not exist (no training, no predictor) are empty."""
        measured: Row = {item.name: "" for item in fields(Outcome)}
        if outcome is not None:
            measured = asdict(outcome)
        probability = "" if comparison.probability is None else comparison.probability
        self.history.append(
            {
                "generation": comparison.generation,
                "pair": comparison.pair,
                "genotype_a": to_json(comparison.a),
                "genotype_b": to_json(comparison.b),
                **measured,
                "winner": fast or "",
                "decided_by": comparison.decided_by,
                "probability": probability,
                "seconds": round(seconds, 3),
            }
        )

    def end_generation(self, search: PairedSearch, learning_rate: float, drop_path_prob: float) -> Row:
        """A row of generations.csv, with the operations that the population now has; returns it."""
        summary = search.summary()
        generation = int(summary["generation"])
        row: Row = {name: _blank(value) for name, value in summary.items()}
        row |= {name: int(row[name]) for name in ("generation", "trained", "comparisons", "audits")}
        row |= {"learning_rate": learning_rate, "drop_path_prob": drop_path_prob}
        row |= operation_counts(search.architectures())
        spent = sum(entry["seconds"] for entry in self.history if entry["generation"] == generation)
        row["seconds"] = round(spent, 3)
        self.generations.append(row)
        return row

    def origin(self, cell: str) -> str:
        """Where a finalist (as JSON) comes from: "trained", or the "last population", not yet trained."""
        tried = {
            row[f"genotype_{side}"] for row in self.history for side in "ab" if row[f"loss_{side}"] != ""
        }
        return "trained" if cell in tried else "last population"

    def best_loss(self) -> float:
        """The lowest validation loss of a candidate so far; infinite before the first."""
        losses = [row[side] for row in self.history for side in ("loss_a", "loss_b")]
        return min((loss for loss in losses if loss != "" and math.isfinite(loss)), default=math.inf)


def in_one_line(row: Row, generations: int) -> str:
    """A row of generations.csv for the log."""
    text = f"generation {row['generation'] + 1}/{generations}: "
    if row["mean_loss"] != "":
        text += f"best loss {row['best_loss']:.4f}, mean {row['mean_loss']:.4f}, "
    text += f"diversity {row['diversity']:.2f}, {row['predicted_share']:.0%} decided by the predictor"
    if row["audits"]:
        text += f" (right in {row['audit_accuracy']:.0%} of {row['audits']} audits)"
    return f"{text}, {row['seconds']:.0f} s"


class Run(NamedTuple):
    """What the parts of a search work with; `config` is train_search.py's."""

    config: Any
    task: Task
    search: PairedSearch
    weight_set: WeightSet
    full_size: FullSize
    folder: RunFolder
    record: Record


def save(run: Run) -> None:
    """Write the checkpoint, and then the tables. The checkpoint before stays beside it."""
    if not distributed.is_main():
        return
    record = run.record
    state = {
        "kind": "search",
        "images": run.task.fingerprint,
        "settings": _settings(run.config),
        "versions": {"torch": str(torch.__version__), "pairnas": checkpoint.VERSION},
        "search": run.search.state_dict(),
        "weights": run.weight_set.state_dict(),
        "history": record.history,
        "generations": record.generations,
        "finalists": [(to_json(finalist.genotype), *finalist.trained) for finalist in record.finalists],
    }
    checkpoint.save(run.folder.checkpoint, state, keep_previous=True)
    write_tables(run)


def write_tables(run: Run) -> None:
    """history.csv and generations.csv."""
    run.folder.write_table("history.csv", run.record.history)
    run.folder.write_table("generations.csv", run.record.generations)


def take_up(run: Run) -> str | None:
    """Go on from the folder's newest good checkpoint; a run stopped before its first one starts anew.

    Returns what was wrong with a newer checkpoint, if anything was. Raises ValueError where none is good,
    where it is another run's, where the images are not the ones that the run began with, or where another
    program works in the folder.
    """
    run.folder.lock()
    path = run.folder.checkpoint
    if not path.exists() and not checkpoint.previous(path).exists():
        return None
    state, problem = checkpoint.load_newest(path, "search")
    missing = {"settings", "images", "search", "weights", "history", "generations", "finalists"} - set(state)
    if missing:
        raise ValueError(f"{path}: no checkpoint of this version: {', '.join(sorted(missing))} missing")
    if state["settings"] != _settings(run.config):
        raise ValueError(f"{path}: the checkpoint of a run with other settings than {run.folder.path}'s")
    if state["images"] != run.task.fingerprint:
        raise ValueError(f"--resume {run.folder.path}: --data holds other images than the run began with")
    try:
        run.search.load_state_dict(_arrays(state["search"]))
        run.weight_set.load_state_dict(state["weights"])
        run.record.history = state["history"]
        run.record.generations = state["generations"]
        run.record.finalists = [
            Finalist(from_json(cell), Trained(*trained)) for cell, *trained in state["finalists"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no checkpoint of this version ({error!r})") from None
    write_tables(run)
    if problem:
        run.folder.fall_back()
    return problem


def _settings(config: Any) -> Row:
    """The settings that make a run what it is, wherever it runs."""
    return {name: value for name, value in asdict(config).items() if name not in (*PLACES, *FREE)}


def _arrays(value: Any) -> Any:
    """The same nested value with NumPy arrays where a checkpoint keeps tensors."""
    if isinstance(value, Mapping):
        return {key: _arrays(entry) for key, entry in value.items()}
    return value.numpy() if hasattr(value, "numpy") else value


def _blank(value: float) -> float | str:
    """An empty cell for a number that does not exist."""
    return "" if math.isnan(value) else value
