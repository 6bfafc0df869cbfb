"""Folders of images, one folder for each class: which images are in them, and decoding them all."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from images.files import SMALLEST_IMAGE, Arrays, every_fifth, read_image
from utils import say

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")

say_once = functools.cache(say)  # for what both parts of a data set would say


class Listing(NamedTuple):
    """The image files of one part in sorted order, their labels, the class names by label.

    stamps: one line per file of the folder with its name, size and time of change.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    stamps: str


def list_images(root: Path) -> dict[str, Listing]:
    """The images of the parts "train" and "test" of a folder; an absent part has no entry."""
    if not root.is_dir():
        raise FileNotFoundError(f"--data {root}: there is no such folder")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    folders = {"train": root / "train"} if (root / "train").is_dir() else {}
    folders |= {"test": tests[0]} if tests else {}
    if len(tests) == 2:
        say_once(f"{root} has test/ and val/: only test/ is used")
    if folders:
        listings = {part: list_classes(folder) for part, folder in folders.items()}
        names = [set(listing.classes) for listing in listings.values()]
        if odd := sorted(names[0] ^ names[-1]):
            raise ValueError(f"--data {root}: class {odd[0]!r} is in only one of train/ and {tests[0].name}/")
        return listings
    everything = list_classes(root)
    smallest, name = min(zip(np.bincount(everything.labels).tolist(), everything.classes, strict=True))
    if smallest < 5:
        raise ValueError(f"--data {root}: class {name!r} has {smallest} images; needed without test/ are 5")
    say_once(f"{root} has no train/ and test/: every fifth image of each class is taken as the test part")
    chosen = every_fifth(everything.labels)
    return {
        part: Listing(
            [path for path, kept in zip(everything.paths, mask, strict=True) if kept],
            everything.labels[mask],
            everything.classes,
            everything.stamps,
        )
        for part, mask in (("train", ~chosen), ("test", chosen))
    }


def list_classes(folder: Path, stamps: bool = True) -> Listing:
    """Every image in the class folders of a folder; files of other kinds and hidden ones are passed over.

    Class folders and files come in sorted order. Without `stamps` the files themselves are not looked at.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data: there is no folder {folder}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if len(classes) < 2:
        names = ", ".join(classes)
        raise ValueError(f"--data: {folder} has {len(classes)} class folders ({names}); needed are 2 or more")
    paths: list[str] = []
    labels: list[int] = []
    lines: list[str] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            files = sorted((entry for entry in entries if _counts(entry.name)), key=lambda entry: entry.name)
        if not files:
            kinds = " ".join(SUFFIXES)
            raise ValueError(f"--data: class folder {folder / name} holds no image (that is: {kinds})")
        for file in files if stamps else []:
            status = file.stat()
            lines.append(f"{name}/{file.name} {status.st_size} {status.st_mtime_ns}")
        paths += [file.path for file in files]
        labels += [label] * len(files)
    return Listing(paths, np.array(labels, dtype=np.int64), tuple(classes), "\n".join(lines))


def find_images(path: str) -> list[str]:
    """The images in a folder and the folders in it, in sorted order; what is no folder is given back.

    Hidden files and folders are passed over. ValueError where a folder holds no image.
    """
    if not os.path.isdir(path):
        return [path]
    found = []
    for folder, inside, names in os.walk(path):
        inside[:] = sorted(name for name in inside if name[0] != ".")
        found += [os.path.join(folder, name) for name in sorted(names) if _counts(name)]
    if not found:
        raise ValueError(f"{path}: holds no image (that is: {' '.join(SUFFIXES)})")
    return found


def _counts(name: str) -> bool:
    return name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES


def decode_all(root: Path, listings: dict[str, Listing], image_size: int | None) -> dict[str, Arrays]:
    """Decode every image; all parts get the same size and the same number of channels."""
    count = sum(len(listing.paths) for listing in listings.values())
    say(f"decoding {count:,} images of {root}")
    first = next(iter(listings.values())).paths[0]
    H, W, _ = read_image(first, image_size).shape
    if H != W:
        raise ValueError(f"{first} is {W}x{H}: images must be square; --image_size makes them so")
    if SMALLEST_IMAGE > H:
        raise ValueError(f"{first} is {W}x{H}: allowed are {SMALLEST_IMAGE} pixels or more; see --image_size")
    if count * H * W * 3 > 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        need = f"{count * H * W * 3 / 1e9:.0f} GB of memory"
        raise ValueError(f"--data {root}: the images need {need}; use --image_size, or train_imagenet.py")
    images = {part: _decode(listing.paths, first, image_size, H) for part, listing in listings.items()}
    channels = max(array.shape[3] for array in images.values())
    return {
        part: Arrays(
            np.repeat(images[part], channels // images[part].shape[3], axis=3),
            listing.labels,
            listing.classes,
        )
        for part, listing in listings.items()
    }


def _decode(paths: list[str], first: str, image_size: int | None, size: int) -> NDArray[np.uint8]:
    """Images (N, size, size, 1), or 3 channels from the moment that one of them is in colour."""
    images = np.zeros((len(paths), size, size, 1), dtype=np.uint8)
    for index, path in enumerate(paths):
        image = read_image(path, image_size)
        if image.shape[:2] != (size, size):
            H, W = image.shape[:2]
            raise ValueError(
                f"{path} is {W}x{H}, but {first} is {size}x{size}: --image_size makes them equal"
            )
        if image.shape[2] > images.shape[3]:
            images = np.repeat(images, 3, axis=3)
        images[index] = image
    return images
