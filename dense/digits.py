"""Scenes of scikit-learn's digits: boxes and masks for detection and segmentation without a download."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from images import files
from images.clutter import any_digit, finished, ground, paint, place
from utils import derive_seed

SIZE = 96  # rows and columns
COUNTS = {"train": 1000, "test": 500}
SMALLEST, LARGEST = 20, 44  # rows and columns of a digit
BRIGHTEST, DARKEST = 110, 120  # of the ground's colours and of the digits'
NOISE = 6  # sd of each pixel
INK = 0.4  # of a pixel's cover, from which on it belongs to the digit


class Scenes(NamedTuple):
    """images (N, 96, 96, 3), masks (N, 96, 96); of each image boxes (n, 4) and labels (n,); the classes."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    classes: tuple[str, ...]


def scenes(part: str, count: int | None = None) -> Scenes:
    """The scenes of a part, all of them or the first `count`; every call gives the same.

    One to five digits of 20 to 44 pixels that do not overlap, on a shaded ground with pieces of other digits.
    Labels are digit + 1, 0 is the ground. The digits are those of the part.
    """
    arrays = files.digits(part)
    random = np.random.default_rng(derive_seed(0, "scenes", part))
    made = [_scene(random, arrays) for _ in range(COUNTS[part] if count is None else count)]
    images, masks, boxes, labels = (list(each) for each in zip(*made, strict=True))
    return Scenes(np.stack(images), np.stack(masks), boxes, labels, arrays.classes)


def _scene(random: np.random.Generator, digits: files.Arrays) -> tuple:
    canvas = ground(random, SIZE, BRIGHTEST)
    for _ in range(random.integers(4, 9)):  # clutter: a quarter of a digit each
        glyph = any_digit(random, digits)[0]
        y, x = random.integers(0, 5, 2)
        size = int(random.integers(6, 17))
        paint(random, canvas, glyph[y : y + 4, x : x + 4], *place(random, size, SIZE), size, DARKEST)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    boxes: list[list[int]] = []
    labels: list[int] = []
    for _ in range(random.integers(1, 6)):
        glyph, label = any_digit(random, digits)
        size = int(random.integers(SMALLEST, LARGEST + 1))
        y, x = place(random, size, SIZE)
        if mask[max(0, y - 2) : y + size + 2, max(0, x - 2) : x + size + 2].any():
            continue  # the place is taken
        ink = paint(random, canvas, glyph, y, x, size, DARKEST) > INK
        mask[y : y + size, x : x + size][ink] = label + 1
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        boxes.append([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1])
        labels.append(label + 1)
    return finished(random, canvas, NOISE), mask, np.array(boxes, np.float32), np.array(labels, np.int64)
