"""What a search writes down: a row of history.csv for a comparison, one of generations.csv for a generation.

Nothing is counted twice: what a generation's row says is worked out from those of its comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from encoding import operation_counts
from genotypes import AnyGenotype, to_json
from pictures.tables import a_lost_less
from search.candidates import TrainedCandidate
from search.paired_search import Comparison, Outcome, PairedSearch

Row = dict[str, Any]


@dataclass(frozen=True)
class Finalist:
    """A cell and what its training from scratch gave."""

    genotype: AnyGenotype
    trained: TrainedCandidate

    @property
    def score(self) -> float:
        """Lower is better: validation loss plus the training loss of the last epoch, where that is known.

        Each has noise of its own (the images, the training), so together they rank cells better than the
        validation loss alone; a network that only learns its images by heart has little of the one and much
        of the other.
        """
        training = self.trained.training_loss
        return self.trained.loss + (0.0 if math.isnan(training) else training)


@dataclass
class Record:
    """What a run has found out so far: with search and weight set, its whole state."""

    history: list[Row] = field(default_factory=list)
    generations: list[Row] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)
    baseline: list[Row] = field(default_factory=list)  # of baseline.csv

    def add(
        self, comparison: Comparison, outcome: Outcome | None, fast: str | None, trained: int, seconds: float
    ) -> None:
        """A row of history.csv. Numbers that do not exist (no training, no predictor) are empty.

        `trained` networks were trained for the comparison: a cell that was trained alone is known from then
        on.
        """
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
                "trained": trained,
                "seconds": round(seconds, 3),
            }
        )

    def end_generation(self, search: PairedSearch, learning_rate: float, drop_path_prob: float) -> Row:
        """A row of generations.csv, with the operations that the population now has; returns it."""
        generation = search.generation - 1
        entries = [entry for entry in self.history if entry["generation"] == generation]
        row = {
            "generation": generation,
            "diversity": search.population.diversity(),
            **statistics(entries),
            "trusted": int(search.trust.given),
            "learning_rate": learning_rate,
            "drop_path_prob": drop_path_prob,
            **operation_counts(search.architectures(), search.space.operations, search.space.cells),
            "seconds": round(sum(entry["seconds"] for entry in entries), 3),
        }
        for earlier in self.generations:  # of a search that an earlier version began
            for name in row:
                earlier.setdefault(name, "")
        self.generations.append(row)
        return row

    def best_loss(self) -> float:
        """The lowest validation loss of a candidate so far; infinite before the first."""
        return min(filter(math.isfinite, losses(self.history)), default=math.inf)


def losses(history: Sequence[Row]) -> list[float]:
    """The validation losses of all trained candidates, those of diverged ones too."""
    return [row[side] for row in history for side in ("loss_a", "loss_b") if row[side] != ""]


def statistics(history: Sequence[Row]) -> Row:
    """What some rows of history.csv have in common; empty where there is nothing to average.

    "trained" counts candidates; "audit_accuracy" is how often the predictor, sure of a pair, was right;
    "log_loss" is that of its probabilities, each given before its pair trained (a coin has 0.693).
    """
    finite = [loss for loss in losses(history) if math.isfinite(loss)]
    told = [(row, a_lost_less(row)) for row in history if row["probability"] != "" and row["winner"]]
    told = [(row, a_won) for row, a_won in told if a_won is not None and row["decided_by"] != "predictor"]
    rights = [(row["probability"] >= 0.5) == a_won for row, a_won in told if row["decided_by"] == "audit"]
    surprises = [
        -math.log(max(row["probability"] if a_won else 1 - row["probability"], 1e-12)) for row, a_won in told
    ]
    return {
        "trained": sum(row["trained"] for row in history),
        "comparisons": len(history),
        "predicted_share": 1 - sum(row["decided_by"] != "predictor" for row in history) / len(history),
        "audits": len(rights),
        "audit_accuracy": float(np.mean(rights)) if rights else "",
        "log_loss": float(np.mean(surprises)) if surprises else "",
        "mean_loss": float(np.mean(finite)) if finite else "",
        "best_loss": min(finite, default=""),
    }


def in_one_line(row: Row, generations: int) -> str:
    """A row of generations.csv for the log."""
    text = f"generation {row['generation'] + 1}/{generations}: "
    if row["mean_loss"] != "":
        text += f"best loss {row['best_loss']:.4f}, mean {row['mean_loss']:.4f}, "
    text += f"diversity {row['diversity']:.2f}, {row['predicted_share']:.0%} decided by the predictor"
    if row["audits"]:
        text += f" (right in {row['audit_accuracy']:.0%} of {row['audits']} audits)"
    if row["log_loss"] != "":
        text += f", its log loss {row['log_loss']:.2f}" + ("" if row["trusted"] else ": not trusted")
    return f"{text}, {row['seconds']:.0f} s"


def baseline_in_words(rows: Sequence[Row], winner: float) -> str:
    """What random cells reach, with the 95% interval of their mean (Student's t), beside the winner."""
    errors = [row["test_error"] for row in rows]
    mean, count = float(np.mean(errors)), len(errors)
    interval = ""
    if count > 1:
        import scipy.stats  # here: it takes long to import

        half = scipy.stats.t.ppf(0.975, count - 1) * float(np.std(errors, ddof=1)) / math.sqrt(count)
        interval = f" (95%: {max(0.0, mean - half):.2%} to {mean + half:.2%})"
    below = sum(winner < error for error in errors)
    return (
        f"{count} random cells, trained as the winner: mean test error {mean:.2%}{interval}; "
        f"the winner's {winner:.2%} is lower than that of {below} of them"
    )
