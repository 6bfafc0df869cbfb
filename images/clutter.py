"""Digits on a shaded ground with pieces of other digits: images that need no download and are not easy.

`arrays` are small images of one digit each, to be classified (as the cluttered MNIST of Mnih et al., arXiv
1406.6247); the scenes of `dense/digits.py` have several. On them cells differ by far more than two trainings
of a cell, which on the plain digits they do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from images import files
from utils import derive_seed

SIZE = 16  # rows and columns
COUNTS = {"train": 4000, "test": 4000}
SMALLEST, LARGEST = 9, 15  # rows and columns of a digit
NOISE = 14  # sd of each pixel

Canvas = NDArray[np.float64]  # (rows, columns, 3)


def arrays(part: str) -> files.Arrays:
    """The images of a part, made of the digits of that part; every call gives the same."""
    digits = files.digits(part)
    random = np.random.default_rng(derive_seed(0, "cluttered digits", part))
    made = [_image(random, digits) for _ in range(COUNTS[part])]
    images, labels = zip(*made, strict=True)
    return files.Arrays(np.stack(images), np.array(labels, dtype=np.int64), digits.classes)


def _image(random: np.random.Generator, digits: files.Arrays) -> tuple[NDArray[np.uint8], int]:
    canvas = ground(random, SIZE, 140)
    for _ in range(random.integers(3, 7)):
        glyph, _ = any_digit(random, digits)
        y, x = random.integers(0, 4, 2)
        size = int(random.integers(4, 9))
        paint(random, canvas, glyph[y : y + 5, x : x + 5], *place(random, size, SIZE), size, 60)
    glyph, label = any_digit(random, digits)
    size = int(random.integers(SMALLEST, LARGEST + 1))
    paint(random, canvas, glyph, *place(random, size, SIZE), size, 100)
    return finished(random, canvas, NOISE), label


def any_digit(random: np.random.Generator, digits: files.Arrays) -> tuple[NDArray[np.uint8], int]:
    """A digit (8, 8) and its class."""
    index = random.integers(len(digits.labels))
    return digits.images[index, :, :, 0], int(digits.labels[index])


def ground(random: np.random.Generator, size: int, brightest: int) -> Canvas:
    """A ground (size, size, 3) shaded between four random colours."""
    corners = random.integers(0, brightest, (2, 2, 3)).astype(np.uint8)
    shaded = Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(shaded, dtype=np.float64).copy()


def place(random: np.random.Generator, size: int, whole: int) -> tuple[int, int]:
    """Row and column at which a square of `size` begins, in a canvas of `whole`."""
    y, x = random.integers(0, whole - size + 1, 2)
    return int(y), int(x)


def paint(
    random: np.random.Generator,
    canvas: Canvas,
    glyph: NDArray[np.uint8],
    y: int,
    x: int,
    size: int,
    darkest: int,
) -> NDArray[np.float64]:
    """Paint the glyph in a random colour; how far it covers each pixel of its square, (size, size)."""
    grown = Image.fromarray(np.ascontiguousarray(glyph)).resize((size, size), Image.Resampling.BICUBIC)
    cover = np.asarray(grown, dtype=np.float64) / 255
    square = canvas[y : y + size, x : x + size]
    square += cover[..., None] * (random.integers(darkest, 256, 3) - square)
    return cover


def finished(random: np.random.Generator, canvas: Canvas, noise: float) -> NDArray[np.uint8]:
    """The canvas with noise, as pixels."""
    return np.clip(canvas + random.normal(0, noise, canvas.shape), 0, 255).astype(np.uint8)
