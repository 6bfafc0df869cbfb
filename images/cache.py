"""Class folders, decoded once: the images' pixels are kept beside them, in an archive of plain arrays.

The archive is as good as the folder: it is not used once a file was added, removed or changed. Where the
folder cannot be written it is kept in the user's own cache, $XDG_CACHE_HOME/pairnas or ~/.cache/pairnas.
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
# What could be kept nowhere, by folder, fingerprint and part: most programs ask for both parts.
_spare: dict[tuple[Path, str, str], Arrays] = {}


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
    arrays = _spare.pop((root, fingerprint, part), None) or _find(root, image_size, fingerprint, part)
    if arrays is None:
        first = files.read_image(listings[part].paths[0])
        if first.shape[:2] == (image_size, image_size):  # then its images may have been kept as they are
            arrays = _find(root, None, _fingerprint(listings, None), part)
    if arrays is None:
        with locked(root):  # the folder itself: no file is left in it if an image is wrong
            arrays = _find(root, image_size, fingerprint, part)  # from another process, meanwhile
            if arrays is None:
                decoded = folders.decode_all(root, listings, image_size)
                arrays = decoded.pop(part)
                if not _keep(root, image_size, fingerprint, decoded | {part: arrays}):
                    _spare.update({(root, fingerprint, name): other for name, other in decoded.items()})
    return arrays


def _places(root: Path, image_size: int | None) -> list[Path]:
    """Where a cache of the folder may be, the best place first: in it, or in the user's own cache."""
    whole, name = root.resolve(), f"{image_size or 'original'}.npz"
    own = f"{whole.name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:12]}"
    homes = [Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.path.expanduser("~"), ".cache")]
    caches = [home / "pairnas" / own / name for home in homes if home.is_absolute()]
    return [root / CACHE_FOLDER / name, *caches[:1]]


def _find(root: Path, image_size: int | None, fingerprint: str, part: str) -> Arrays | None:
    """The arrays of a part from a cache, or None if there is no good one."""
    found = (_read_cache(cache, fingerprint, part) for cache in _places(root, image_size))
    return next((arrays for arrays in found if arrays is not None), None)


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


def _keep(root: Path, image_size: int | None, fingerprint: str, decoded: dict[str, Arrays]) -> bool:
    """Write a cache to the first place that takes it, and say where it is not the folder, or why nowhere."""
    reasons = []
    for cache in _places(root, image_size):
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            _write_cache(cache, fingerprint, decoded)
        except OSError as error:
            reasons.append(f"{cache}: {error.strerror or error}")
            with contextlib.suppress(OSError):
                cache.parent.rmdir()  # nothing is left where nothing was
            continue
        if reasons:
            say(f"the decoded images are kept in {cache}, as they cannot be beside them ({reasons[0]})")
        return True
    say(f"no cache could be written ({'; '.join(reasons)}): images are decoded at every start")
    return False


def _write_cache(cache: Path, fingerprint: str, decoded: dict[str, Arrays]) -> None:
    """Replace a cache atomically, while the folder of images is locked. OSError where that fails."""
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
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
