"""Data sets as uint8 tensors on the device: loading, splits, statistics, batches.

    train = sets.load("cifar10", "./data")                       # downloads through torchvision if need be
    train_half, validation_half = sets.split(len(train), 0.5, seed=0)
    statistics = sets.channel_statistics(train.images)
    augmentation = Augmentation.of(train.image_size, "cifar10", cutout=True)
    for images, labels in sets.batches(train, 96, statistics, generator=generator, augmentation=augmentation):
        ...

An epoch draws all its random numbers at once from a CPU generator, so CPU and CUDA see the same batches. On
CUDA they are uploaded at once, and many batches are prepared together, as each operation costs a launch.
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from images import cache, clutter, files
from images.augmentation import Augmentation, augment, draw
from images.files import SMALLEST_IMAGE
from utils import derive_seed

SETS = ("digits", "cluttered_digits", "fashion_mnist", "cifar10", "cifar100", "folder")
PARTS = ("train", "test")


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixel values scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# The figures that published CIFAR checkpoints were trained with; other sets are measured.
PUBLISHED_STATISTICS = {
    "cifar10": Statistics((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
TOGETHER = 2**26  # bytes of the batches that another device than the CPU prepares together
IMAGENET_STATISTICS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass
class ImageSet:
    """Labelled images in memory: images uint8 (N, C, H, W), labels int64 (N,), the classes' names by label.

    The images' memory is laid out as (N, H, W, C), which is what cropping and channels_last need.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.dim() == 4
        assert self.labels.shape == self.images.shape[:1]
        self.images = self.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width in pixels; all images are square."""
        return self.images.shape[2]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def fingerprint(self) -> str:
        """A checksum of the images, their labels and the classes' names."""
        checksum = zlib.crc32(repr(self.classes).encode())
        for tensor in (self.images, self.labels):
            checksum = zlib.crc32(tensor.numpy(force=True).tobytes(), checksum)
        return f"{len(self)}:{checksum:08x}"

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images of these indices (int64, any order), with all classes."""
        indices = indices.to(self.labels.device)
        rows = self.images.permute(0, 2, 3, 1).index_select(0, indices)  # (n, H, W, C)
        return ImageSet(rows.permute(0, 3, 1, 2), self.labels.index_select(0, indices), self.classes)


def split(count: int, portion: float, seed: int, images: int | None = None) -> tuple[Tensor, Tensor]:
    """Shuffle 0..count-1 by the seed and cut: (training indices, validation indices), training first.

    With `images`, only that many of the shuffled indices are used. The split is not stratified, as in the
    published search. ValueError if there are fewer images, or if a part would be empty.
    """
    if images is not None and not 2 <= images <= count:
        raise ValueError(f"--images {images}: the training set has {count}; allowed are 2 to {count}")
    if not 0 < portion < 1:
        raise ValueError(f"--train_portion {portion}: allowed are numbers between 0 and 1, without these two")
    used = count if images is None else images
    cut = int(used * portion)
    if cut == 0 or cut == used:
        raise ValueError(
            f"--train_portion {portion:g} (1 - --validate): of {used} images it leaves {cut} + {used - cut}"
        )
    # A generator keeps the lower 32 bits of a seed, so that larger seeds would split as smaller ones do.
    seed = seed if seed < 2**32 else derive_seed(seed, "split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:used]
    return order[:cut], order[cut:]


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of every channel of uint8 images (N, C, H, W), exact, in units of 1/255.

    A constant channel gets 1/255 as its deviation, so that it can be divided by.
    """
    sums = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(sums)
    for part in images.split(4096):
        values = part.to(torch.int32)
        sums += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square().sum(dim=(0, 2, 3)).cpu()
    count = images.numel() // images.shape[1]
    mean = sums.double() / count
    std = (squares.double() / count - mean.square()).clamp_min(0).sqrt().clamp_min(1)
    return Statistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))


def read_image(path: str, image_size: int, channels: int) -> Tensor:
    """An image file as uint8 (channels, image_size, image_size), with 1 or 3 channels whatever it has."""
    image = torch.from_numpy(files.read_image(path, image_size).copy()).permute(2, 0, 1)
    if channels == 1 and len(image) == 3:  # the luminance of ITU-R 601
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        image = (image * weights).sum(0, keepdim=True).round().to(torch.uint8)
    return image.expand(channels, -1, -1)


def statistics_of(name: str, training: ImageSet) -> Statistics:
    """What to normalise with: the published figures for CIFAR, else those of the training images."""
    return PUBLISHED_STATISTICS.get(name) or channel_statistics(training.images)


def normalise(images: Tensor, statistics: Statistics) -> Tensor:
    """uint8 images (N, C, H, W) as float32 with zero mean and unit deviation, in channels_last memory."""
    return scaled(images, *scale_and_shift(statistics, images.shape[3], images.device))


def scaled(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`normalise` with the factors of `scale_and_shift`, made once for many batches."""
    n, C, H, W = images.shape
    rows = images.permute(0, 2, 3, 1).contiguous().view(n, H, W * C).float()
    return torch.addcmul(shift, rows, scale).view(n, H, W, C).permute(0, 3, 1, 2)


def scale_and_shift(statistics: Statistics, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors and summands (W * C,) that turn a row of bytes into normalised values."""
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in statistics)
    scale, shift = 1 / (255 * std), -mean / std
    return upload(scale.float().repeat(width), device), upload(shift.float().repeat(width), device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting until it is there."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def shares(count: int, batch_size: int, shard: tuple[int, int], training: bool) -> Iterator[slice]:
    """For each batch of an epoch of `count` images, the places in its order that this process takes.

    `shard` = (rank, processes) takes every processes-th place of a batch of `batch_size` and never pads. When
    training, a last batch that leaves a process fewer than two images is left out, as batch-norm cannot learn
    from one.
    """
    rank, processes = shard
    needed = 2 * processes if training else rank + 1
    for first in range(0, count, batch_size):
        if count - first < needed:
            return
        yield slice(first + rank, min(first + batch_size, count), processes)


def batches(
    images: ImageSet,
    batch_size: int,
    statistics: Statistics,
    *,
    generator: torch.Generator | None = None,
    augmentation: Augmentation | None = None,
    channels_last: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (images float32 (n, C, H, W), labels (n,)) on the set's device.

    With a CPU generator (training) the order is shuffled and `augmentation`, if any, applied. Without
    (evaluation) all images come clean and in order. `batch_size` is that of all processes together, which
    take their `shares` of each batch; `shard` = (rank, processes).
    """
    assert augmentation is None or generator is not None, "augmentation needs a generator"
    count, device = len(images), images.labels.device
    order, uniforms = (torch.arange(count), None) if generator is None else draw(count, generator)
    mine = list(shares(count, batch_size, shard, training=generator is not None))
    if not mine:
        return
    sizes = [len(order[places]) for places in mine]
    order = upload(torch.cat([order[places] for places in mine]), device)
    if uniforms is not None and augmentation is not None:
        uniforms = upload(torch.cat([uniforms[places] for places in mine]), device)
    factors = scale_and_shift(statistics, images.image_size, device)
    bytes_of_batch = 4 * max(sizes) * images.images[0].numel()
    together = 1 if device.type == "cpu" else max(1, TOGETHER // bytes_of_batch)  # batches
    first = 0
    for begin in range(0, len(sizes), together):
        some = sizes[begin : begin + together]
        rows = slice(first, first + sum(some))
        first = rows.stop
        drawn = None if uniforms is None or augmentation is None else uniforms[rows]
        values = _prepare(images, order[rows], drawn, augmentation, factors)
        labels = images.labels.index_select(0, order[rows])
        for x, y in zip(values.split(some), labels.split(some), strict=True):
            yield x if channels_last else x.contiguous(), y


def _prepare(
    images: ImageSet,
    indices: Tensor,
    uniforms: Tensor | None,
    augmentation: Augmentation | None,
    factors: tuple[Tensor, Tensor],
) -> Tensor:
    """The images of these indices (n,), augmented and normalised, (n, C, H, W) in channels_last memory."""
    scale, shift = factors
    batch = images.images.permute(0, 2, 3, 1).index_select(0, indices)  # (n, H, W, C)
    n, H, W, C = batch.shape
    if augmentation is not None and uniforms is not None:
        batch, rows, columns = augment(batch, uniforms, augmentation)
    values = torch.addcmul(shift, batch.view(n, H, W * C).float(), scale)
    if augmentation is not None and augmentation.cutout_length:
        values.addcmul_(values * rows, columns, value=-1)  # exactly 0 inside the square
    return values.view(n, H, W, C).permute(0, 3, 1, 2)


def _resized(images: Tensor, size: int) -> Tensor:
    """Square uint8 images (N, C, H, W) at `size` pixels; some at a time, since it takes floats meanwhile."""
    from torchvision.transforms.v2 import functional  # here: it takes long to import

    bicubic = functional.InterpolationMode.BICUBIC
    parts = [functional.resize(part, [size, size], bicubic, antialias=True) for part in images.split(5000)]
    return torch.cat(parts)


def load(
    name: str, folder: str | Path = "data", part: str = "train", image_size: int | None = None
) -> ImageSet:
    """The training or test part of a data set (see SETS), read from `folder`, on the CPU.

    CIFAR and Fashion-MNIST are downloaded there by torchvision if they are missing, which is said.
    `image_size` resizes the images. ValueError or OSError, in one line, for what is wrong.
    """
    if name not in SETS:
        raise ValueError(f"--set {name}: there is no such data set; allowed: {', '.join(SETS)}")
    if part not in PARTS:
        raise ValueError(f"part {part!r}: allowed are {' and '.join(PARTS)}")
    if image_size is not None and image_size < SMALLEST_IMAGE:
        raise ValueError(f"--image_size {image_size}: allowed are {SMALLEST_IMAGE} pixels or more")
    folder = Path(os.path.expanduser(folder))
    if name == "digits":
        arrays = files.digits(part)
    elif name == "cluttered_digits":
        arrays = clutter.arrays(part)
    elif name == "fashion_mnist":
        arrays = files.fashion_mnist(folder, part)
    elif name == "folder":
        arrays = cache.class_folders(folder, part, image_size)
    else:
        arrays = files.cifar(name, folder, part)
    images = torch.from_numpy(arrays.images).permute(0, 3, 1, 2)  # (N, C, H, W)
    if image_size not in (None, images.shape[2]):
        images = _resized(images, image_size)
    return ImageSet(images, torch.from_numpy(arrays.labels), arrays.classes)
