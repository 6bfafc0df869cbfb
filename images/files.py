"""Reads the files of data sets into NumPy arrays: scikit-learn's digits, IDX, CIFAR, folders of images.

Nothing from a file is ever executed: IDX and caches are plain numbers, and CIFAR's pickles are opened, by
torchvision, only after their MD5 sums have shown them to be the published files.
"""

import contextlib
import functools
import gzip
import hashlib
import os
import shutil
import socket
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
CACHE_FOLDER = ".pairnas_cache"
CACHE_VERSION = 1  # part of a cache's fingerprint: raise it when decoding changes
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES: tuple[str, ...] = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION_CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# What Pillow raises for files that are cut off or are no images, depending on their format.
UNREADABLE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError)
UNREADABLE += (struct.error, zlib.error, Image.DecompressionBombError)


class Arrays(NamedTuple):
    """images uint8 (N, H, W, C), labels int64 (N,), the classes' names by label."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def say(message: str) -> None:
    """Print what a user should know, from the first process only; stderr is kept for what is wrong."""
    if os.environ.get("RANK", "0") == "0":
        print(message, flush=True)


say_once = functools.cache(say)  # for what both parts of a data set would say


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file until the block ends; the system frees it when a process dies.

    It only saves double work: without file locks (read-only or network drives) the block runs unlocked.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            path.parent.mkdir(exist_ok=True)
            fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield


def digits(part: str) -> Arrays:
    """The 1,797 8x8 digits inside scikit-learn; every fifth image of each class is the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # 0..16 -> 0..255
    labels = bunch.target.astype(np.int64)
    chosen = every_fifth(labels) == (part == "test")
    return Arrays(grey[chosen], labels[chosen], tuple(str(digit) for digit in range(10)))


def every_fifth(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A mask of the fifth, tenth, ... image of each class: stratified, without random numbers."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[4::5]] = True
    return mask


def fashion_mnist(folder: Path, part: str) -> Arrays:
    """Fashion-MNIST from IDX files, gzipped or not: in `folder`, where torchvision puts them, or Debian's.

    Downloaded by torchvision if they are nowhere. OSError if that fails, ValueError for a damaged file.
    """
    places = [folder, folder / "FashionMNIST" / "raw", folder / "raw", DEBIAN_FASHION_MNIST]
    prefix = {"train": "train", "test": "t10k"}[part]
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    found = _find(places, names)
    if len(found) < 2:
        missing = f"{names[0]} and {names[1]}, gzipped or not; looked in {', '.join(map(str, places))}"
        advice = "install Debian's package dataset-fashion-mnist, or give --data a folder with the four files"
        _download("FashionMNIST", folder, missing, advice)
        found = _find(places, names)
    images, labels = (_read_idx(path, dimensions) for path, dimensions in zip(found, (3, 1), strict=True))
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{found[0]} has images of {images.shape[1]}x{images.shape[2]}, not 28x28: get it again"
        )
    if len(images) != len(labels):
        raise ValueError(f"{found[0]} has {len(images)} images, but {found[1].name} has {len(labels)} labels")
    _check_labels(labels, len(FASHION_CLASSES), found[1])
    return Arrays(images[..., None], labels.astype(np.int64), FASHION_CLASSES)


def _find(places: list[Path], names: tuple[str, str]) -> list[Path]:
    """Both files in the first place that has them, either of them gzipped or not; else none."""
    for place in places:
        paths = [path for name in names for path in (place / name, place / f"{name}.gz") if path.is_file()]
        if {path.name.removesuffix(".gz") for path in paths} == set(names):
            return [next(path for path in paths if path.name.startswith(name)) for name in names]
    return []


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of bytes: 0, 0, type 8, number of dimensions, the sizes as big-endian int32, the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is cut off or no gzip file ({error}): get it again") from error
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no IDX file of {dimensions}-dimensional bytes: get it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise ValueError(f"{path} has {len(raw)} bytes where its header announces {expected}: get it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _check_labels(labels: NDArray[Any], classes: int, path: Path) -> None:
    if len(labels) == 0 or int(labels.max()) >= classes:
        raise ValueError(f"{path} has no labels, or other ones than 0 to {classes - 1}: get it again")


def _download(name: str, folder: Path, missing: str, advice: str) -> None:
    """Let torchvision fetch a data set, saying so; OSError with what to do if that fails."""
    import torchvision.datasets

    say(f"{name} is not there ({missing}); downloading it into {folder}")
    timeout, existed = socket.getdefaulttimeout(), folder.exists()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Path(tempfile.gettempdir(), f"pairnas-{name}.lock")
        with locked(lock), contextlib.redirect_stdout(sys.stderr):
            getattr(torchvision.datasets, name)(str(folder), download=True)
    except (OSError, RuntimeError, EOFError) as error:  # RuntimeError: another MD5 sum, or no mirror answered
        reason = " ".join(str(error).split()) or type(error).__name__
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            f"{name} is not there ({missing}) and cannot be downloaded ({reason}): {advice}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def cifar(name: str, folder: Path, part: str) -> Arrays:
    """CIFAR-10 or CIFAR-100 from the published Python archive's files under `folder`, downloaded if need be.

    torchvision compares every file's MD5 sum before it unpickles one. ValueError names a file that differs.
    """
    import torchvision.datasets
    from torchvision.datasets.utils import check_integrity

    kind = torchvision.datasets.CIFAR100 if name == "cifar100" else torchvision.datasets.CIFAR10
    if folder.name == kind.base_folder:  # --data names the unpacked folder itself
        folder = folder.parent
    unpacked = folder / kind.base_folder
    sums = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    missing = [file for file, _ in sums if not (unpacked / file).is_file()]
    if not missing:
        for file, md5 in sums:
            if not check_integrity(str(unpacked / file), md5):
                raise ValueError(f"{unpacked / file} is cut off or not the published file (MD5 sum)")
    else:
        advice = f"put {kind.url} into {folder} and start again"
        _download(kind.__name__, folder, f"there is no {unpacked / missing[0]}", advice)
    dataset = kind(str(folder), train=part == "train")
    labels = np.asarray(dataset.targets, dtype=np.int64)
    _check_labels(labels, len(dataset.classes), unpacked)
    return Arrays(np.ascontiguousarray(dataset.data), labels, tuple(dataset.classes))


class Listing(NamedTuple):
    """The image files of one part in sorted order, their labels, the class names by label.

    stamps: one line per file of the folder with its name, size and time of change.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    stamps: str


def class_folders(root: Path, part: str, image_size: int | None = None, smallest: int = 8) -> Arrays:
    """Images in class folders, root/train/CLASS/* and root/test/CLASS/* (or val/), decoded once into a cache.

    With class folders only (root/CLASS/*), every fifth image of each class is the test part. Grey if every
    image is grey, else colour. `image_size` scales the shorter side and crops the middle; without it all must
    be squares of one size. ValueError or OSError names the folder or the image that is wrong.
    """
    listings = list_images(root)
    if part not in listings:
        wanted = {"train": "train/", "test": "test/ or val/"}[part]
        raise ValueError(f"--data {root}: there is no {wanted} beside the {next(iter(listings))} images")
    fingerprint = _fingerprint(listings, image_size)
    cache = root / CACHE_FOLDER / f"{image_size or 'original'}.npz"
    arrays = _read_cache(cache, fingerprint, part)
    if arrays is None and read_image(listings[part].paths[0]).shape[:2] == (image_size, image_size):
        original = _read_cache(cache.with_name("original.npz"), _fingerprint(listings, None), part)
        arrays = original  # its images have this size already
    if arrays is None:
        with locked(cache.with_suffix(".lock")):
            arrays = _read_cache(cache, fingerprint, part)  # another process may have written it meanwhile
            if arrays is None:
                decoded = _decode_all(root, listings, image_size, smallest)
                _write_cache(cache, fingerprint, decoded)
                arrays = decoded[part]
    return arrays


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


def _counts(name: str) -> bool:
    return name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES


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


def _decode_all(
    root: Path, listings: dict[str, Listing], image_size: int | None, smallest: int
) -> dict[str, Arrays]:
    """Decode every image; all parts get the same size and the same number of channels."""
    count = sum(len(listing.paths) for listing in listings.values())
    say(f"decoding {count:,} images of {root} (once: a cache is kept)")
    first = next(iter(listings.values())).paths[0]
    H, W, _ = read_image(first, image_size).shape
    if H != W:
        raise ValueError(f"{first} is {W}x{H}: images must be square; --image_size makes them so")
    if smallest > H:
        raise ValueError(f"{first} is {W}x{H}: allowed are {smallest} pixels or more; see --image_size")
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


def read_image(path: str | Path, image_size: int | None = None) -> NDArray[np.uint8]:
    """One image file as (H, W, 1) if it is grey, else (H, W, 3), turned upright as its EXIF data say.

    `image_size` scales the shorter side to that many pixels and crops the middle square. ValueError names a
    file that cannot be read.
    """
    image = open_image(path)
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    with contextlib.suppress(*UNREADABLE), warnings.catch_warnings(action="ignore"):
        image = ImageOps.exif_transpose(image)  # left as it is where the EXIF data are damaged
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def open_image(path: str | Path) -> Image.Image:
    """A whole image as Pillow decodes it. ValueError names a file that cannot be read.

    Grey of more than 8 bits is refused; colours of 16 bits Pillow itself brings down to 8.
    """
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its values have mode {file.mode}, more than 8 bits: convert it")
            file.load()
        # Pillow warns of a palette with transparency that becomes colours without it in one step.
        return file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image ({' '.join(str(error).split())})") from error
