"""Reads files into NumPy arrays: scikit-learn's digits, IDX, CIFAR, and single image files.

Nothing from a file is ever executed: IDX is plain numbers, and CIFAR's pickles are opened, by torchvision,
only after their MD5 sums have shown them to be the published files.
"""

import contextlib
import gzip
import math
import os
import shutil
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from utils import locked, say

SMALLEST_IMAGE = 8  # rows and columns that a network needs
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES: tuple[str, ...] = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION_CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# What Pillow raises for files that are cut off or are no images, depending on their format.
UNREADABLE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError)
UNREADABLE += (struct.error, zlib.error, ArithmeticError, MemoryError)


# What Pillow may take a file for, whatever its name says: for others (EPS) it would start a program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Arrays(NamedTuple):
    """images uint8 (N, H, W, C), labels int64 (N,), the classes' names by label."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


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
        with _locked_folder(folder), contextlib.redirect_stdout(sys.stderr):
            new = not existed and not any(folder.iterdir())
            try:
                getattr(torchvision.datasets, name)(str(folder), download=True)
            except BaseException:
                if new:  # while it is locked: nobody else has put anything there
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except (OSError, RuntimeError, EOFError) as error:  # RuntimeError: another MD5 sum, or no mirror answered
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{name} is not there ({missing}) and cannot be downloaded ({reason}): {advice}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; it is made again where another process removed it meanwhile."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if folder.exists():
                yield
                return


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


def read_image(path: str | Path, image_size: int | None = None) -> NDArray[np.uint8]:
    """One image file as (H, W, 1) if it is grey, else (H, W, 3), upright.

    `image_size` scales the shorter side to that many pixels and crops the middle square. ValueError names a
    file that cannot be read.
    """
    image = open_image(path)
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def limit_pixels(megapixels: float) -> None:
    """Let no image of more pixels be decoded, in this process and those that it forks."""
    Image.MAX_IMAGE_PIXELS = math.ceil(megapixels * 1e6)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let nothing be printed on stderr: libtiff says there what is damaged, and Pillow cannot stop it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """An image file whose pixels are not decoded yet.

    ValueError, here or inside, names one that cannot be read or has more pixels than `limit_pixels` allows.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:
            pixels = file.width * file.height
            if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError(f"it has {pixels / 1e6:.1f} megapixels")
            yield file
    except Image.DecompressionBombError as error:  # Pillow's own, in words of pixels, at twice the limit
        most = f"allowed are {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:g} megapixels, see --max_megapixels"
        raise ValueError(f"{path} cannot be read as an image ({error}; {most})") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read as an image (it is no {', '.join(FORMATS)})") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image ({reason})") from error


def image_header(path: str | Path) -> tuple[tuple[int, int], str]:
    """((width, height), Pillow's mode) of an image as stored, undecoded. ValueError as `open_image`."""
    with _opened(path) as file:
        return file.size, file.mode


def open_image(path: str | Path, upright: bool = True) -> Image.Image:
    """A whole image, turned upright as its EXIF data say. ValueError names a file that cannot be read.

    `upright=False` leaves the pixels as they are stored, which is what boxes and masks are drawn on.
    Nothing is decoded of an image of more pixels than `limit_pixels` allows. 16 bits become the upper 8;
    colours Pillow itself brings down. More than 16 bits are refused.
    """
    with _opened(path) as file:
        sixteen = file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM"))
        if file.mode[0] in "IF" and not sixteen:
            raise ValueError(f"its values have mode {file.mode}, more than 16 bits: convert it")
        with _silent() if file.format == "TIFF" else contextlib.nullcontext():
            file.load()
        image: Image.Image = file
        with contextlib.suppress(*UNREADABLE):  # left as it is where the EXIF data are damaged
            image = ImageOps.exif_transpose(file) if upright else file
        if sixteen:
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        # Pillow warns of a palette with transparency that becomes colours without it in one step.
        return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
