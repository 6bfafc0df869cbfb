"""What earlier trainings say of cells, before a search has trained any of its own.

A table of trainings teaches a predictor once, and what that expects of a cell is where the predictor of a
search begins: with reserve, since other images, sizes and epochs rank cells differently. How far the table is
to be followed is then learned from the search's own comparisons.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.run_folder import RunFolder
from encoding import CellSpace, Integers
from pair_predictor import PairPredictor
from spaces import Space

SHIPPED = Path(__file__).parent / "prior.csv"  # its origin: docs/method.md
KEPT = "prior.csv"  # in a run folder: the table that the predictor began with
SAMPLES = 512  # random cells that set the scale
REMEMBERED = 100_000  # cells asked for, since a search asks for most of them again
DECIMALS = 6
FEWEST = 8  # cells that a table must have
LOSSES = ("training_loss_", "validation_loss_")

Expected = Callable[[Integers], np.ndarray]  # of rows of choices (n, positions): quality, (n,)


def text_of(config: Any, folder: RunFolder) -> str | None:
    """The text of the table that the flags name; of a run that has begun, what its folder has kept.

    None where the search has no prior. Raises ValueError that names --prior where there is no such file.
    """
    kept = folder.path / KEPT
    if kept.is_file():
        return kept.read_text()
    begun = folder.checkpoint.exists()  # by a version that knew no prior
    if begun or config.prior == "none" or (config.prior == "auto" and not applies(config)):
        return None
    path = SHIPPED if config.prior == "auto" else Path(config.prior)
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prior {path}: {getattr(error, 'strerror', None) or 'no text'}") from None


def applies(config: Any) -> bool:
    """Whether the shipped table is about what a search compares: cells of the published space, alone."""
    guided = (config.rank or config.screen or config.decide) and config.strategy != "random"
    return guided and config.estimate == "alone" and is_published(Space.of(config))


def is_published(space: Space) -> bool:
    """Whether all cells of a space are in the published DARTS space, in which tables are."""
    return space in (Space(), Space(distinct_inputs=True))


def learn(text: str, space: CellSpace) -> Expected:
    """What to expect of cells: a quality with mean 0 and sd 1 over random ones, more is better.

    `text` is that of a table of `benchmarks/image_table.py`. ValueError where it is none.
    """
    rows, scores = read(text)
    predictor, rng = PairPredictor(space=CellSpace()), np.random.default_rng(0)
    cells = [predictor.space.architecture(row) for row in rows]
    order = rng.permutation(len(rows))
    for a, b in order[: len(order) // 2 * 2].reshape(-1, 2):
        difference, level = float(scores[a] - scores[b]), float(min(scores[a], scores[b]))
        predictor.add(cells[a], cells[b], difference, 0.0, level)
    posterior = predictor.posterior()
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


def read(text: str) -> tuple[Integers, np.ndarray]:
    """Distinct cells (n, positions) and their scores (n,), from 0 up, lower is better.

    A score is training plus validation loss after the last epoch, less what all trainings of the same repeat
    have in common, their start values and batches; the mean over the repeats. Trainings that diverged are
    left out. Raises ValueError where the text is no such table.
    """
    space = CellSpace()
    try:
        lines = list(csv.DictReader(io.StringIO(text)))
        last = max(int(name.removeprefix(LOSSES[0])) for name in lines[0] if name.startswith(LOSSES[0]))
        names = [f"{name}{last}" for name in LOSSES]
        whole = [line for line in lines if all(line[name] for name in names)]
        losses = np.array([sum(float(line[name]) for name in names) for line in whole])
        rows = np.array([[int(choice) for choice in line["arch"].split("-")] for line in whole])
        if not np.isfinite(losses).all() or any(line["repeat"] is None for line in whole):
            raise ValueError("a loss is no finite number")
        rows = np.stack([space.choices(space.architecture(row)) for row in rows])
    except (LookupError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"no table of image_table.py ({error})") from None
    for repeat in {line["repeat"] for line in whole}:
        alike = np.array([line["repeat"] == repeat for line in whole])
        losses[alike] -= losses[alike].mean()
    cells, place = np.unique(rows, axis=0, return_inverse=True)
    if len(cells) < FEWEST:
        raise ValueError(f"{len(cells)} cells whose training ended; needed are {FEWEST}")
    scores = np.bincount(place.ravel(), losses) / np.bincount(place.ravel())
    return cells, scores - scores.min()
