"""What an estimate of a cell is worth: its rank correlation with other trainings, and the pick it leads to.

    python benchmarks/estimates.py --table runs/table/trainings.csv --json estimates.json
    python benchmarks/estimates.py --table runs/table/trainings.csv --short runs/table-2/trainings.csv
    python benchmarks/estimates.py --table runs/table/trainings.csv --sets runs/sets/sets.csv

Tables are those of image_table.py; those of `--short` hold the same cells, trained for fewer epochs with the
learning rate falling to 0. An estimate that was made in one repeat is held against the mean test accuracy of
the other repeats, whose start values, batches and crops it never saw: another full training is the ceiling.
First comes what there is to gain: the spread between cells with the noise of a training taken out, and what
the best of so many cells would have above the mean. With `--predictor` the search's predictor learns from an
estimate of the cells, too: "seen" is its posterior of cells whose estimate it knows, "unseen" that of cells
whose estimate it does not (ten folds); and its kernel, with the epoch as an input, from the first epochs of
all cells and the ends of some (fidelity.py). With `--sets`, of set_estimates.py, also what weight sets say,
once more with what age and trained share explain of it taken out, and within thirds of the cells by age.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import scipy.stats
from fidelity import Fidelities
from image_table import UNREADABLE, check_columns, columns, lines_of
from zero_cost import NAMES

from common.flags import check_range, parse, run_script
from search.prior import choices_of, taught

FOLDS = 10
WITH_ENDS = {"": 0.0, "ends of a quarter, ": 0.25}  # shares of the cells whose trainings went on to their end
JUDGED = (  # columns of set_estimates.py
    "as_it_is", "last_rate_training_loss", "last_rate_validation_loss", "rate_training_loss",
    "rate_validation_loss",
)  # fmt: skip
OF_SETS = ("way", "repeat", "epochs", "arch", "trained_share", "age", *JUDGED)
STRATA = 3  # of cells, by the age of their weights
LOGARITHMS = ("nwot", "synflow")  # these scores are logarithms already
BEFORE = ("parameters", "multiply_adds", *NAMES)  # columns known before training


@dataclass(frozen=True)
class Config:
    """Rank correlation and regret of estimates against what they cost."""

    table: str
    """trainings.csv of full trainings"""
    short: tuple[str, ...] = ()
    """trainings.csv of shorter trainings of the same cells"""
    sets: str | None = None
    """sets.csv of set_estimates.py"""
    predictor: bool = False
    """what the search's predictor makes of training losses, for cells that it has seen and for others"""
    random_only: bool = True
    """leave the cells out that have a name: they were not drawn"""
    resamples: int = 1000
    """of the cells, for the 95% intervals"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "resamples", 1)
        evidence.check_output(self.json)


class Trainings(NamedTuple):
    """A table by cell and repeat; NaN where a training diverged or has not been made."""

    cells: list[str]  # arch
    columns: dict[str, np.ndarray]  # (cells, repeats) each
    epochs: int


def read(file: str, random_only: bool, fewest: int = 2) -> Trainings:
    """A table of image_table.py. ValueError that names the file where it is none or damaged, or has not
    `fewest` repeats; where these are two or more, also unless two cells have all of the table's.
    """
    try:
        rows = lines_of(file, columns(0))
        rows = [row for row in rows if not random_only or row["kind"] == "random"]
        if not rows:
            raise ValueError(f"no {'random ' if random_only else ''}cell in it")
        epochs = sum(name.startswith("training_loss_") for name in rows[0])
        check_columns(rows[0], columns(max(1, epochs)))
        names = [name for name in rows[0] if name not in ("arch", "kind", "repeat")]
        repeats = 1 + max(int(row["repeat"]) for row in rows)
        if repeats > len(rows):
            raise ValueError(f"repeat {repeats - 1} among {len(rows)} trainings")
        cells = list(dict.fromkeys(row["arch"] for row in rows))
        found = {name: np.full((len(cells), repeats), math.nan) for name in names}
        place = {cell: index for index, cell in enumerate(cells)}
        for row in rows:
            for name in names:
                found[name][place[row["arch"]], int(row["repeat"])] = float(row[name] or math.nan)
    except UNREADABLE as error:
        raise ValueError(f"{file}: no table of image_table.py ({error})") from None
    if repeats < fewest:
        raise ValueError(f"{file}: each cell has {repeats} training; needed are cells with {fewest} repeats")
    whole = int(np.isfinite(found["accuracy"]).all(axis=1).sum())
    if fewest > 1 and whole < 2:
        raise ValueError(f"{file}: {whole} cells have all of the {repeats} repeats; needed are 2 or more")
    return Trainings(cells, found, epochs)


def estimates(trainings: Trainings, annealed: bool) -> dict[str, tuple[int, np.ndarray]]:
    """By name: epochs that the estimate costs, and its values (cells, repeats), lower is better.

    `annealed`: the trainings are short ones, of which only the end is an estimate that was not there before.
    """
    columns = trainings.columns
    found: dict[str, tuple[int, np.ndarray]] = {}
    ends = [trainings.epochs] if annealed else range(1, trainings.epochs + 1)
    how = "annealed" if annealed else "on the way"
    for end in ends:
        losses = np.stack([columns[f"training_loss_{epoch}"] for epoch in range(1, end + 1)])
        found[f"training loss summed, {how}, {end}"] = (end, losses.sum(axis=0))
        for name in ("training_loss", "validation_loss", "validation_error"):
            found[f"{name.replace('_', ' ')}, {how}, {end}"] = (end, columns[f"{name}_{end}"])
        both = columns[f"training_loss_{end}"] + columns[f"validation_loss_{end}"]
        found[f"training and validation loss, {how}, {end}"] = (end, both)
    return found


class Estimate(NamedTuple):
    """Values of cells (cells, repeats), lower is better, and what one costs; see `estimates`."""

    epochs: int
    values: np.ndarray
    cells: list[str]
    ages: np.ndarray | None = None  # (cells, repeats) of the weights, where cells share them


def of_sets(file: str) -> dict[str, Estimate]:
    """What weight sets say, by way of training and of judging. ValueError where the file is not theirs."""
    try:
        rows = lines_of(file, OF_SETS)
        found: dict[str, Estimate] = {}
        for way in dict.fromkeys(row["way"] for row in rows):
            found |= of_a_way(way, [row for row in rows if row["way"] == way])
    except UNREADABLE as error:
        raise ValueError(f"--sets {file}: no table of set_estimates.py ({error})") from None
    return found


def of_a_way(way: str, rows: list[dict[str, str]]) -> dict[str, Estimate]:
    """`of_sets` for one way of training them."""
    cells, repeats = (list(dict.fromkeys(row[name] for row in rows)) for name in ("arch", "repeat"))
    places = [(cells.index(row["arch"]), repeats.index(row["repeat"])) for row in rows]

    def column(name: str) -> np.ndarray:
        values = np.full((len(cells), len(repeats)), math.nan)
        for place, row in zip(places, rows, strict=True):
            values[place] = float(row[name] or math.nan)
        return values

    ages, shares = column("age"), column("trained_share")
    found = {f"set {way}: age": Estimate(0, -ages, cells, ages)}
    for name in JUDGED:
        epochs = 0 if name == "as_it_is" else int(rows[0]["epochs"])
        values, words = column(name), f"set {way}: {name.replace('_', ' ')}"
        found[words] = Estimate(epochs, values, cells, ages)
        left = without(values, np.log1p(ages), shares)
        found[f"{words}, age out"] = Estimate(epochs, left, cells, ages)
    return found


def without(values: np.ndarray, *nuisances: np.ndarray) -> np.ndarray:
    """What a linear regression on the nuisances leaves of `values`; all of shape (cells, repeats)."""
    left = np.full_like(values, math.nan)
    for repeat in range(values.shape[1]):
        known = np.isfinite(values[:, repeat])
        x = np.stack([np.ones(known.sum()), *(one[known, repeat] for one in nuisances)], axis=1)
        y = values[known, repeat]
        left[known, repeat] = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return left


def within_ages(values: np.ndarray, truth: np.ndarray, ages: np.ndarray) -> float:
    """Kendall's tau among cells of like age, the mean over STRATA parts of equally many, and repeats."""
    found = []
    for value, real, age in zip(values.T, truth.T, ages.T, strict=True):
        for part in np.array_split(np.argsort(age, kind="stable"), STRATA):
            known = part[np.isfinite(value[part]) & np.isfinite(real[part])]
            if len(known) > 1:
                found.append(scipy.stats.kendalltau(-value[known], real[known]).statistic)
    return float(np.mean(found)) if found else math.nan


def untrained(trainings: Trainings) -> dict[str, tuple[int, np.ndarray]]:
    """What is known before training, as estimates; larger is taken for better, so a tau may be negative."""
    there = [name for name in BEFORE if name in trainings.columns]
    return {f"{name.replace('_', ' ')}, untrained": (0, -trainings.columns[name]) for name in there}


def with_scores(trainings: Trainings, values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Estimates `values` of unseen cells (n, repeats), joined with what is known before training.

    By least squares with a little ridge, from `target` of the cells in other folds; on logarithms.
    """
    known = [
        trainings.columns[name] if name in LOGARITHMS else np.log(np.abs(trainings.columns[name]) + 1e-12)
        for name in BEFORE
    ]
    found = np.full_like(values, math.nan)
    for repeat in range(values.shape[1]):
        table = np.stack([values[:, repeat], *(column[:, repeat] for column in known)], axis=1)
        table = (table - np.nanmean(table, axis=0)) / np.nanstd(table, axis=0)
        whole = np.flatnonzero(np.isfinite(table).all(axis=1) & np.isfinite(target[:, repeat]))
        order = np.random.default_rng(0).permutation(whole)
        for fold in range(FOLDS):
            asked = order[fold::FOLDS]
            others = np.setdiff1d(order, asked)
            x, y = table[others], target[others, repeat]
            weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ (y - y.mean()))
            found[asked, repeat] = table[asked] @ weights
    return found


def predicted(cells: list[str], values: np.ndarray, folds: int) -> np.ndarray:
    """Minus the predictor's qualities of cells (n,), from `values` (n,) of those in other folds, or of all.

    It learns from pairs of cells drawn at random, as from comparisons of a search.
    """
    rows, rng = np.stack([choices_of(cell) for cell in cells]), np.random.default_rng(0)
    order, found = rng.permutation(len(cells)), np.full(len(cells), math.nan)
    for fold in range(folds):
        asked = order[fold::folds]
        known = order if folds == 1 else np.setdiff1d(order, asked)
        known = rng.permutation(known[np.isfinite(values[known])])
        found[asked] = -taught(rows[known], values[known]).posterior().mean(rows[asked])
    return found


def predictions(trainings: Trainings) -> dict[str, tuple[int, np.ndarray]]:
    """Estimates by the predictor, from the training loss of some epochs; see `estimates`."""
    found: dict[str, tuple[int, np.ndarray]] = {}
    for end in sorted({1, 2, 3, 4, 6, trainings.epochs} & set(range(1, trainings.epochs + 1))):
        losses = trainings.columns[f"training_loss_{end}"]
        for name, folds, cost in (("seen", 1, end), ("unseen", FOLDS, 0)):
            values = np.stack([predicted(trainings.cells, column, folds) for column in losses.T], axis=1)
            found[f"predictor, {name}, training loss {end}"] = (cost, values)
            if name == "unseen" and set(BEFORE) <= set(trainings.columns):
                joined = with_scores(trainings, values, losses)
                found[f"predictor and scores, unseen, training loss {end}"] = (0, joined)
    return found


def with_fidelities(trainings: Trainings) -> dict[str, tuple[int, np.ndarray]]:
    """Estimates of ends by epochs as an input of the kernel, and by the loss itself for the same cells.

    A cell costs its first epochs and, on the mean, a share of those that the ends take. Judged are the cells
    whose end the kernel did not know; at equal cost, all.
    """
    rows, last = np.stack([choices_of(cell) for cell in trainings.cells]), trainings.epochs
    at_end = trainings.columns[f"training_loss_{last}"] + trainings.columns[f"validation_loss_{last}"]
    found: dict[str, tuple[int, np.ndarray]] = {}
    for end in [end for end in (1, 2, 4) if end < last]:
        losses = np.stack([trainings.columns[f"training_loss_{epoch}"] for epoch in range(1, end + 1)])
        for words, share in WITH_ENDS.items():
            everywhere, expected, itself = (np.full_like(at_end, math.nan) for _ in range(3))
            for repeat, ends in enumerate(at_end.T):
                whole = np.flatnonzero(np.isfinite(losses[:, :, repeat]).all(axis=0) & np.isfinite(ends))
                known, asked = np.split(
                    np.random.default_rng(repeat).permutation(len(whole)), [int(share * len(whole))]
                )
                mine = losses[:, whole, repeat].T
                model = Fidelities(rows[whole], mine, last, known, ends[whole[known]])
                everywhere[whole, repeat] = model.expected()
                expected[whole[asked], repeat] = everywhere[whole[asked], repeat]
                itself[whole[asked], repeat] = mine[asked, -1]
            cost = round(end + share * (last - end))
            found[f"epoch as an input, {words}{end}"] = (cost, expected)
            if share:
                found[f"epoch as an input, {words}all cells, {end}"] = (cost, everywhere)
                found[f"training loss, cells without an end, {end}"] = (end, itself)
    return found


def others(truth: np.ndarray) -> np.ndarray:
    """For each training the mean truth of the cell's other repeats, (cells, repeats)."""
    count = truth.shape[1]
    return np.stack([np.nanmean(np.delete(truth, i, axis=1), axis=1) for i in range(count)], axis=1)


def quality(values: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Kendall's tau, and truth of the first choice and of the best tenth above the mean; over repeats. NaN
    where no cell is known.

    `values` (cells, repeats), lower is better; `truth` (cells, repeats), of the other repeats.
    """
    found = []
    for value, real in zip(values.T, truth.T, strict=True):
        known = np.isfinite(value) & np.isfinite(real)
        if not known.any():  # drawn were cells that diverged alone
            continue
        value, real = value[known], real[known]
        order = np.argsort(value, kind="stable")
        best = real[order[: max(1, len(order) // 10)]].mean()
        tau = scipy.stats.kendalltau(-value, real).statistic
        found.append((tau, real[order[0]] - real.mean(), best - real.mean()))
    tau, first, tenth = np.mean(found, axis=0) if found else (math.nan,) * 3
    return float(tau), float(first), float(tenth)


def gain(truth: np.ndarray) -> dict[str, Any]:
    """What there is to gain: spreads in points, and the expected best of so many cells above the mean."""
    complete = truth[np.isfinite(truth).all(axis=1)]
    repeats = complete.shape[1]
    # A repeat's start values and batches help or hurt all cells alike: that is no noise between cells.
    alike = complete - complete.mean(axis=0)
    noise = float(alike.var(axis=1, ddof=1).mean())  # of one training
    between = max(0.0, float(alike.mean(axis=1).var(ddof=1)) - noise / repeats)
    # The truth without its noise: as far apart as the cells are, by the root of their reliability.
    shrunk = alike.mean(axis=1) * math.sqrt(between / max(between + noise / repeats, 1e-12))
    rng = np.random.default_rng(0)
    best = {
        str(count): float(np.mean([rng.choice(shrunk, count).max() for _ in range(4000)]))
        for count in (5, 10, 25, 50, 100)
        if count <= len(shrunk)
    }
    return {
        "cells": len(complete),
        "mean": float(complete.mean()),
        "sd_between_cells": math.sqrt(between),
        "sd_of_a_training": math.sqrt(noise),
        "best_of": best | {"all": float(shrunk.max())},
    }


def check_shared(flag: str, cells: list[str], full: Trainings) -> None:
    """Raise ValueError where two cells are not also those of the table: they have no order there."""
    shared = len(set(cells) & set(full.cells))
    if shared < 2:
        raise ValueError(f"{flag}: shares {shared} cells with --table; needed are 2 or more")


def measure_estimates(config: Config) -> dict[str, Any]:
    """Every estimate of the tables with its cost and quality, and 95% intervals from resampling the cells."""
    full = read(config.table, config.random_only)
    accuracy = full.columns["accuracy"]
    made: dict[str, Estimate] = {}
    for name, (cost, values) in (estimates(full, False) | untrained(full)).items():
        made[name] = Estimate(cost, values, full.cells)
    if config.predictor:
        made |= {
            name: Estimate(*found, full.cells)
            for name, found in (predictions(full) | with_fidelities(full)).items()
        }
    made["another full training"] = Estimate(full.epochs, -accuracy, full.cells)
    for file in config.short:
        short = read(file, config.random_only, 1)
        check_shared(f"--short {file}", short.cells, full)
        made |= {name: Estimate(*found, short.cells) for name, found in estimates(short, True).items()}
    if config.sets is not None:
        of_each_way = of_sets(config.sets)
        for one in of_each_way.values():
            check_shared(f"--sets {config.sets}", one.cells, full)
        made |= of_each_way
    unseen, rng = others(accuracy), np.random.default_rng(0)
    place = {cell: index for index, cell in enumerate(full.cells)}
    found = {}
    for name, one in made.items():
        rows = [index for index, cell in enumerate(one.cells) if cell in place]
        known = [place[one.cells[row]] for row in rows]
        ages = one.ages
        if ages is None:
            repeats = min(one.values.shape[1], unseen.shape[1])
            mine, real = one.values[rows, :repeats], unseen[known, :repeats]
        else:  # a set shares nothing with the trainings: each of its repeats is held against each of them
            trainings = accuracy.shape[1]
            mine, ages = (np.repeat(values[rows], trainings, axis=1) for values in (one.values, ages))
            real = np.tile(accuracy[known], one.values.shape[1])
        drawn = rng.integers(len(rows), size=(config.resamples, len(rows)))
        taus = [quality(mine[chosen], real[chosen])[0] for chosen in drawn]
        tau, first, tenth = quality(mine, real)
        low, high = np.nanpercentile(taus, [2.5, 97.5])
        judged = int(np.isfinite(mine).sum(axis=0).max())
        found[name] = {
            "epochs": one.epochs, "cells": judged, "tau": tau, "low": float(low), "high": float(high),
            "first_choice": first, "best_tenth": tenth,
        }  # fmt: skip
        if ages is not None:
            found[name]["tau_within_ages"] = within_ages(mine, real, ages)
    return {"gain": gain(accuracy), "estimates": found}


def table(found: dict[str, Any]) -> str:
    """What is to gain, and a line for each estimate."""
    there = found["gain"]
    lines = [
        f"{there['cells']} cells: mean test accuracy {there['mean']:.2f}%, sd between cells "
        f"{there['sd_between_cells']:.2f}, sd of a training {there['sd_of_a_training']:.2f}",
        "best above the mean: " + ", ".join(f"of {n} {x:+.2f}" for n, x in there["best_of"].items()),
        f"{'estimate':44} {'epochs':>6} {'tau':>6} {'95%':>15} {'first':>6} {'tenth':>6}",
    ]
    for name, row in found["estimates"].items():
        lines.append(
            f"{name:44} {row['epochs']:6} {row['tau']:6.2f} {row['low']:6.2f} to {row['high']:5.2f} "
            f"{row['first_choice']:+6.2f} {row['best_tenth']:+6.2f}"
            + (f"   among cells of like age {row['tau_within_ages']:.2f}" if "tau_within_ages" in row else "")
        )
    return "\n".join(lines)


def main(config: Config) -> None:
    found = measure_estimates(config)
    print(table(found))
    evidence.write(config.json, evidence.provenance(asdict(config)) | found)


if __name__ == "__main__":
    run_script(main, parse(Config))
