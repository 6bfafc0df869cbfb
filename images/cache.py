"""Class folders, decoded once: the images' pixels are kept beside them, in an archive of plain arrays.

The archive is as good as the folder: it is not used once a file was added, removed or changed.
"""

import contextlib
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from images import files, folders
from images.files import Arrays
from images.folders import Listing
from utils import locked, say

CACHE_FOLDER = ".pairnas_cache"
CACHE_VERSION = 1  # part of a cache's fingerprint: raise it when decoding changes


def class_folders(root: Path, part: str, image_size: int | None = None) -> Arrays:
    """Images in class folders, root/train/CLASS/* and root/test/CLASS/* (or val/), decoded once into a cache.

    With class folders only (root/CLASS/*), every fifth image of each class is the test part. Grey if every
    image is grey, else colour. `image_size` scales the shorter side and crops the middle; without it all must
    be squares of one size. ValueError or OSError names the folder or the image that is wrong.
    """
    listings = folders.list_images(root)
    if part not in listings:
        wanted = {"train": "train/", "test": "test/ or val/"}[part]
        raise ValueError(f"--data {root}: there is no {wanted} beside the {next(iter(listings))} images")
    fingerprint = _fingerprint(listings, image_size)
    cache = root / CACHE_FOLDER / f"{image_size or 'original'}.npz"
    arrays = _read_cache(cache, fingerprint, part)
    if arrays is None and files.read_image(listings[part].paths[0]).shape[:2] == (image_size, image_size):
        original = _read_cache(cache.with_name("original.npz"), _fingerprint(listings, None), part)
        arrays = original  # its images have this size already
    if arrays is None:
        with contextlib.suppress(OSError):  # where it cannot be made, no cache is kept, which is said
            cache.parent.mkdir(exist_ok=True)
        with locked(cache.with_suffix(".lock")):
            arrays = _read_cache(cache, fingerprint, part)  # another process may have written it meanwhile
            if arrays is None:
                decoded = folders.decode_all(root, listings, image_size)
                _write_cache(cache, fingerprint, decoded)
                arrays = decoded[part]
    return arrays


def _fingerprint(listings: dict[str, Listing], image_size: int | None) -> str:
    """A digest of what a cache depends on: the parts, every file's stamp, and the image size."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {image_size}\n".encode())
    for part, listing in listings.items():
        digest.update(f"{part} {listing.classes}\n{listing.stamps}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_cache(cache: Path, fingerprint: str, part: str) -> Arrays | None:
    """The arrays of a part, or None if there is no cache, it is damaged, or the folder has changed since."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            return Arrays(
                stored[f"{part}_images"], stored[f"{part}_labels"], tuple(stored["classes"].tolist())
            )
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def _write_cache(cache: Path, fingerprint: str, decoded: dict[str, Arrays]) -> None:
    """Replace a cache atomically; its lock is held. A full disk costs only the cache, and is said."""
    contents: dict[str, Any] = {"fingerprint": np.array(fingerprint)}
    for part, arrays in decoded.items():
        contents |= {f"{part}_images": arrays.images, f"{part}_labels": arrays.labels}
        contents["classes"] = np.array(arrays.classes)
    temporary = cache.with_suffix(f".{os.getpid()}.part")
    try:
        for left in cache.parent.glob(f"{cache.stem}.*.part"):  # by programs that were killed
            left.unlink()
        with temporary.open("wb") as file:
            np.savez(file, **contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, cache)
    except OSError as error:
        say(f"the cache {cache} could not be written ({error.strerror}): images are decoded at every start")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
