"""What earlier trainings say of cells, before a search has trained any of its own.

A table of trainings teaches a predictor once, and what that expects of a cell is where the predictor of a
search begins: with reserve, since other images, sizes and epochs rank cells differently. How far the table is
to be followed is then learned from the search's own comparisons.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import checkpoint
from common.run_folder import RunFolder
from encoding import CellSpace, Integers
from pair_predictor import KEPT as KEPT_COMPARISONS
from pair_predictor import PairPredictor
from spaces import Space

SHIPPED = Path(__file__).parent / "prior.csv"  # its origin: docs/method.md
LAYERS = 3  # cells of its networks: one normal, two reductions; what is good in them is not in deeper ones
KEPT = "prior.csv"  # in a run folder: the table that the predictor began with
SAMPLES = 512  # random cells that set the scale
REMEMBERED = 100_000  # cells asked for, since a search asks for most of them again
DECIMALS = 6
FEWEST = 8  # cells that a table must have
LARGEST_FILE = 64 << 20  # bytes
LARGEST_LOSS = 1e6
LOSSES = ("training_loss_", "validation_loss_")

Expected = Callable[[Integers], np.ndarray]  # of rows of choices (n, positions): quality, (n,)


def text_of(config: Any, folder: RunFolder) -> str | None:
    """The text of the table that the flags name; of a run that has begun, what its folder has kept.

    None where the search has no prior. Raises ValueError that names the file where it is none.
    """
    kept = folder.path / KEPT
    if kept.is_file():
        return _text(kept, str(kept))
    begun = folder.checkpoint.exists() or checkpoint.previous(folder.checkpoint).exists()
    if begun or config.prior == "none" or (config.prior == "auto" and not applies(config)):
        return None  # what began without a prior, in a version that knew none, goes on without
    path = SHIPPED if config.prior == "auto" else Path(os.path.expanduser(config.prior))
    return _text(path, f"--prior {path}")


def _text(path: Path, name: str) -> str:
    """The text of a table. ValueError says by `name` why it is none."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{name}: larger than {LARGEST_FILE >> 20} MiB, so no table of trainings")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name}: no file")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: no text") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None
    try:
        read(text)  # here, where its name is known
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return text


def applies(config: Any) -> bool:
    """Whether the shipped table is about what a search compares: cells of the published space, alone, in
    networks of as many cells.
    """
    guided = (config.rank or config.screen or config.decide) and config.strategy != "random"
    alone = config.estimate == "alone" and config.layers == LAYERS
    return bool(guided and alone and Space.of(config).published)


def learn(text: str, space: CellSpace) -> Expected:
    """What to expect of cells: a quality with mean 0 and sd 1 over random ones, more is better.

    `text` is that of a table of `benchmarks/image_table.py`. ValueError where it is none.
    """
    rows, scores = read(text)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(rows))[: 2 * KEPT_COMPARISONS]
    posterior = taught(rows[order], scores[order]).posterior()
    found = posterior.mean(np.stack([space.read(space.sample(rng)) for _ in range(SAMPLES)]))
    middle, scale = float(found.mean()), float(found.std()) or 1.0
    known: dict[bytes, float] = {}

    def expected(rows: Integers) -> np.ndarray:
        keys = [row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.int64)]
        new = {key: place for place, key in enumerate(keys) if key not in known}
        if len(known) + len(new) > REMEMBERED:
            known.clear()
            new = {key: place for place, key in enumerate(keys)}
        if new:
            quality = (posterior.mean(rows[list(new.values())]) - middle) / scale
            # The last bits depend on which rows are asked together; a resumed search asks others together.
            known.update(zip(new, quality.round(DECIMALS).tolist(), strict=True))
        return np.array([known[key] for key in keys])

    return expected


def taught(rows: Integers, losses: np.ndarray) -> PairPredictor:
    """A predictor that knows the losses (n,) of cells (n, positions), from pairs in their order."""
    predictor = PairPredictor(space=CellSpace())
    cells = [predictor.space.architecture(row) for row in rows[: len(rows) // 2 * 2]]
    pairs = losses[: len(cells)].reshape(-1, 2).tolist()
    for a, b, (loss_a, loss_b) in zip(cells[::2], cells[1::2], pairs, strict=True):
        predictor.add(a, b, loss_a - loss_b, 0.0, min(loss_a, loss_b))
    return predictor


def read(text: str) -> tuple[Integers, np.ndarray]:
    """Distinct cells (n, positions) and their scores (n,), from 0 up, lower is better.

    A score is training plus validation loss after the last epoch, less what all trainings of the same repeat
    have in common, their start values and batches; the mean over the repeats. What they have in common is
    seen in the cells that have all repeats, if any has. Trainings that diverged are left out. Raises
    ValueError where the text is no such table.
    """
    try:
        reader = csv.DictReader(io.StringIO(text))
        names = reader.fieldnames or []
        last = max(int(name.removeprefix(LOSSES[0])) for name in names if name.startswith(LOSSES[0]))
        needed = ["arch", "repeat", *(f"{name}{last}" for name in LOSSES)]
        lines = [[line[name] for name in needed] for line in reader if None not in line]
        whole = [line for line in lines if all(line)]  # a training that diverged has empty losses
        if not whole:
            raise ValueError("no training in it ended")
        rows = [choices_of(line[0]) for line in whole]
        losses = np.array([[float(value) for value in line[2:]] for line in whole]).sum(axis=1)
        if not (np.abs(losses) < LARGEST_LOSS).all():
            raise ValueError("a loss is no number, or a huge one")
    except (LookupError, ValueError, csv.Error) as error:
        raise ValueError(f"no table of image_table.py ({error})") from None
    cells, place = np.unique(np.stack(rows), axis=0, return_inverse=True)
    if len(cells) < FEWEST:
        raise ValueError(f"{len(cells)} cells whose training ended; needed are {FEWEST}")
    place, repeats = place.ravel(), np.array([line[1] for line in whole])
    complete = np.bincount(place)[place] == len(np.unique(repeats))  # unless a table has a training twice
    for repeat in np.unique(repeats):
        alike = repeats == repeat
        losses[alike] -= losses[alike & complete if complete.any() else alike].mean()
    scores = np.bincount(place, losses) / np.bincount(place)
    if not np.ptp(scores) > 0:
        raise ValueError("all cells have the same losses, or each training is a repeat of its own")
    return cells, scores - scores.min()


def choices_of(arch: str) -> Integers:
    """The canonical choices of a cell as a table names it, (positions,). ValueError where it is none."""
    space, choices = CellSpace(), np.array([int(choice) for choice in arch.split("-")])
    if choices.shape != (space.positions,):
        raise ValueError(f"arch has {len(choices)} choices, not {space.positions}")
    try:
        return space.choices(space.architecture(choices))
    except IndexError:
        raise ValueError("arch has a choice that is none of the search space") from None
