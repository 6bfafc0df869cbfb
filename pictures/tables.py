"""What the folder of a search says, at any moment of the search: its settings, and its tables as they are."""

import ast
import csv
import io
import json
import math
import re
import reprlib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import genotypes
from cells import IN_WORDS
from genotypes import AnyGenotype, CompleteCell, Genotype

Row = dict[str, str]  # of a table: texts by column
TABLES = {  # with the columns that each must have
    "history": (
        *("generation", "pair", "genotype_a", "genotype_b"),
        *("loss_a", "loss_b", "winner", "decided_by"),
    ),
    "generations": ("generation", "diversity"),
    "finalists": ("rank", "genotype"),
    "baseline": ("genotype", "loss", "error", "test_error"),
    "front": ("number", "genotype", "error"),
}
AT_THE_END = (
    "finalists",
    "baseline",
    "front",
)  # written once and whole: a row that is cut off, or none, is damage
NUMBERS = (  # columns that hold numbers, or nothing where a number is not known
    *("generation", "pair", "loss_a", "loss_b", "difference", "standard_error", "probability"),
    *("diversity", "predicted_share", "audits", "audit_accuracy", "mean_loss", "best_loss", "trusted"),
    *("trained", "rank", "number", "score", "loss", "error", "training_loss", "test_error"),
    *("parameters", "multiply_adds", "latency", "memory", "seconds"),
)


@dataclass
class RecordedRun:
    """What a run folder says. `cell` is the winner or, before it is chosen, the last generation's best.

    `baseline` are random cells that were trained as the finalists were, where the search did that.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    generations: list[Row] = field(default_factory=list)
    finalists: list[Row] = field(default_factory=list)
    baseline: list[Row] = field(default_factory=list)
    front: list[Row] = field(default_factory=list)
    cell: AnyGenotype | None = None
    images: int | None = None  # that train and compare, as far as that is known
    finished: bool = False
    incomplete: int = 0  # rows left out because they were cut off


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a search, were it only just begun."""
    if any((folder / f"{table}.csv").is_file() for table in ("history", "generations")):
        return True
    try:
        return "pop_size" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@dataclass
class RecordedTraining:
    """What the folder of a training says, finished or not; numbers that are not known yet are NaN."""

    folder: Path
    config: dict[str, Any]
    epochs: list[Row]
    cell: AnyGenotype | None = None
    test_error: float = math.nan
    parameters: float = math.nan
    multiply_adds: float = math.nan


def is_training(folder: Path) -> bool:
    """Whether this is the folder of a training that has done an epoch."""
    return (folder / "epochs.csv").is_file()


def read_training(folder: Path) -> RecordedTraining:
    """Read a training; its card says what it became. ValueError names the file that is damaged."""
    rows, _ = _read_table(folder / "epochs.csv", ("epoch", "loss", "error"))
    config, card = (
        _read_object(file) if file.is_file() else {}
        for file in (folder / "config.json", folder / "card.json")
    )
    run = RecordedTraining(folder, config or card.get("recipe", {}), rows)
    try:
        if card:
            run.cell = genotypes.from_dict(card["network"]["genotype"])
            run.test_error = float(card["result"].get("test_error", math.nan))
            run.parameters, run.multiply_adds = float(card["parameters"]), float(card["multiply_adds"])
        elif "arch" in run.config:
            run.cell = genotypes.lookup(run.config["arch"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'card.json'}: not the card of a network ({error})") from None
    return run


def read_run(folder: Path) -> RecordedRun:
    """Read a run, finished or not. ValueError names the file that is missing, damaged or no search's."""
    if not is_run(folder):
        raise ValueError(
            f"{folder}: no run of a search: no history.csv, generations.csv or config.json of one is there"
        )
    run = RecordedRun(folder)
    for table, columns in TABLES.items():
        path = folder / f"{table}.csv"
        rows, cut = _read_table(path, columns)
        if table in AT_THE_END and path.is_file() and (cut or not rows):
            raise ValueError(f"{path}: damaged: {'a row is cut off' if cut else 'it has no rows'}")
        _check_numbers(path, rows)
        setattr(run, table, rows)
        run.incomplete += cut
    _check_front(folder / "front.csv", run.front, {row["genotype"] for row in run.finalists})
    settings = folder / "config.json"
    if settings.is_file():
        run.config = _read_object(settings)
    run.images = _count_images(folder / "log.txt")
    run.finished = (folder / "genotype.json").is_file()
    run.cell = genotypes.lookup(folder) if run.finished else _leader(run.history)
    if run.finished and run.config:
        kind = CompleteCell if run.config.get("space") == "nasbench201" else Genotype
        if not isinstance(run.cell, kind):
            raise ValueError(
                f"{folder / 'genotype.json'}: {IN_WORDS[type(run.cell)]}, and the search of "
                f"config.json was for {IN_WORDS[kind]}"
            )
    return run


def a_lost_less(row: Mapping[str, Any]) -> bool | None:
    """Whether a had the lower loss in a pair of history.csv: with several objectives that is not who won.

    None for equal losses, as of two cells that are the same network: they tell nothing of a probability.
    """
    try:
        difference = float(row.get("difference", ""))
    except ValueError:
        difference = math.nan
    if difference == 0:
        return None
    return difference < 0 if math.isfinite(difference) else row["winner"] == "a"


def _count_images(log: Path) -> int | None:
    """How many images a search had, to train on and to compare by, as the beginning of its log says."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            counts = re.search(r"; (\d+) images train, (\d+) compare", file.read(4096))
    except OSError:
        return None
    return sum(map(int, counts.groups())) if counts else None


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON file of settings. ValueError names a file that is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not an object of settings")
    return found


def _read_table(path: Path, needed: Iterable[str]) -> tuple[list[Row], int]:
    """The rows of a CSV file (none where it is absent), and how many were cut off. ValueError names it."""
    if not path.is_file():
        return [], 0
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no CSV table ({error})") from None
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{path}: not a table of a search: it lacks the column {missing[0]}")
    whole = [row for row in rows if None not in row.values() and None not in row]
    return whole, len(rows) - len(whole)


def _check_numbers(path: Path, rows: list[Row]) -> None:
    """ValueError names the row, from 1, and the column of a text that stands where a number should."""
    for place, row in enumerate(rows, start=1):
        for column in NUMBERS:
            text = row.get(column)
            if text and not _is_number(text):
                raise ValueError(f"{path}: damaged: row {place}, {column}: {reprlib.repr(text)} is no number")


def _check_front(path: Path, rows: list[Row], finalists: Container[str]) -> None:
    """ValueError where a row is no cell of this front: a numbered finalist, and all that is drawn finite."""
    for place, row in enumerate(rows, start=1):
        if row["number"] != str(place):
            raise ValueError(f"{path}: damaged: row {place} has the number {row['number']}")
        try:
            genotypes.from_json(row["genotype"])
        except ValueError as error:
            raise ValueError(f"{path}: damaged: row {place}: {error}") from None
        if row["genotype"] not in finalists:
            raise ValueError(f"{path}: damaged: row {place}: its cell is none of finalists.csv")
        for column in NUMBERS:
            if column == "training_loss":  # need not be known
                continue
            if column in row and not math.isfinite(numbers([row], column)[0]):
                found = row[column] or "nothing"
                raise ValueError(
                    f"{path}: damaged: row {place}, {column}: {found}, and a front has finite numbers"
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _leader(history: list[Row]) -> AnyGenotype | None:
    """The cell with the lowest loss among those trained in the last generation that has a finite one."""
    rows = trained(history)
    losses = np.stack([numbers(rows, "loss_a"), numbers(rows, "loss_b")])  # (2, rows)
    losses[~np.isfinite(losses)] = np.inf
    generation = np.where(np.isfinite(losses).any(0), numbers(rows, "generation"), -np.inf)
    if not np.isfinite(generation).any():
        return None
    losses[:, generation != generation.max()] = np.inf
    side, place = np.unravel_index(losses.argmin(), losses.shape)
    try:
        return genotypes.from_json(rows[place].get(f"genotype_{'ab'[side]}", ""))
    except ValueError:
        return None


def numbers(rows: list[Row], column: str) -> np.ndarray:
    """One column as floats, (rows,); NaN where it is absent, empty or no number."""

    texts = (row.get(column) or "" for row in rows)
    return np.array([float(text) if _is_number(text) else math.nan for text in texts], dtype=float)


def trained(history: list[Row]) -> list[Row]:
    """The comparisons whose two networks were trained, not decided by the predictor alone."""
    return [row for row in history if row["decided_by"] != "predictor"]


def candidates_trained(history: list[Row]) -> int:
    """How many networks were trained for these comparisons: of a cell that trains alone it is one in all."""
    counts = numbers(trained(history), "trained")  # runs of earlier versions have no such column
    return int(np.where(np.isfinite(counts), counts, 2).sum())


def defaults(script: str) -> dict[str, Any]:
    """The default of each flag of a script, read off its source: importing it takes seconds."""
    source = Path(__file__).parent.with_name(script).read_text(encoding="utf-8")
    config = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Config"
    )
    found = {
        node.target.id: ast.literal_eval(node.value)
        for node in config.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
