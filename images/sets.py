"""Data sets as uint8 tensors on the device, batched augmentation there, and splits.

    train = data.load("cifar10", "./data")                       # downloads through torchvision if need be
    train_half, validation_half = data.split(len(train), 0.5, seed=0)
    statistics = data.channel_statistics(train.images)
    augmentation = data.Augmentation.of(train, "cifar10", cutout=True)
    for images, labels in data.batches(train, 96, statistics, generator=generator, augmentation=augmentation):
        ...

An epoch draws all its random numbers at once from a CPU generator, so CPU and CUDA see the same batches.
"""

import hashlib
import os
import signal
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from images import files
from utils import derive_seed

SETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "folder")
PARTS = ("train", "test")
SMALLEST_IMAGE = 8


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixel values scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# The figures that published CIFAR checkpoints were trained with; other sets are measured.
PUBLISHED_STATISTICS = {
    "cifar10": Statistics((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
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


class Augmentation(NamedTuple):
    """Horizontal flip with probability 1/2, random crop after padding with black, a square set to the mean.

    crop_padding: pixels on each side (0: no crop). cutout_length: the square's side in pixels (0: none); its
    centre is anywhere in the image, so a part of it may lie outside (DeVries and Taylor, 2017).
    """

    crop_padding: int
    flip: bool
    cutout_length: int

    @staticmethod
    def of(images: ImageSet, name: str, cutout: bool, flip: bool | None = None) -> "Augmentation":
        """CIFAR's published augmentation (pad 4, flip, cut out 16 of 32 pixels) scaled to these images.

        Digits are not flipped, as a mirrored digit is no digit; `flip` overrides this.
        """
        size = images.image_size
        return Augmentation(
            crop_padding=(size + 4) // 8,
            flip=(name != "digits") if flip is None else flip,
            cutout_length=size // 2 if cutout else 0,
        )


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An epoch's random numbers on the CPU: order of the images (count,), uniforms (count, 5) for `augment`.

    They do not depend on the augmentation, so that runs with other settings still see the same order.
    """
    return torch.randperm(count, generator=generator), torch.rand(count, 5, generator=generator)


def augment(images: Tensor, uniforms: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor, Tensor]:
    """Flip and crop uint8 images (n, H, W, C), and say which rows and columns are cut out.

    Columns of the uniforms (n, 5): crop y, crop x, flip, cutout y, cutout x. Returns new images (n, H, W, C)
    and float masks (n, H, 1) and (n, 1, W * C), whose product is 1 on the pixels to cut out.
    """
    _, H, W, C = images.shape
    flips = uniforms[:, 2] < (0.5 if augmentation.flip else 0.0)
    uniforms = uniforms.to(images.device, non_blocking=True)
    images = _flip_and_crop(images, flips, uniforms[:, :2], augmentation.crop_padding)
    half = augmentation.cutout_length // 2
    top, left = (uniforms[:, 3] * H).long() - half, (uniforms[:, 4] * W).long() - half  # (n,)
    rows = torch.arange(H, device=images.device) - top[:, None]  # (n, H)
    columns = torch.arange(W, device=images.device) - left[:, None]  # (n, W)
    inside = [((x >= 0) & (x < augmentation.cutout_length)).float() for x in (rows, columns)]
    return images, inside[0][:, :, None], inside[1].repeat_interleave(C, dim=1)[:, None, :]


def _flip_and_crop(images: Tensor, flips: Tensor, uniforms: Tensor, padding: int) -> Tensor:
    """Mirror the images (n, H, W, C) where `flips` (n,) says so, then shift them by up to `padding` pixels.

    `flips` is on the CPU, where their places are known without waiting for a GPU.

    A row of the result is a run of W * C bytes of a black-framed image or its mirror image, so everything is
    one gather of such runs. On the CPU that is far faster than to gather pixels or to write mirrored images
    back.
    """
    n, H, W, C = images.shape
    places, source = flips.nonzero()[:, 0], torch.where(flips, n - 1 + flips.cumsum(0), torch.arange(n))
    places, source = (x.to(images.device, non_blocking=True) for x in (places, source))
    mirrored = images.index_select(0, places).flip(2)
    framed = images.new_zeros(n + len(mirrored), H + 2 * padding, W + 2 * padding, C)
    framed[:n, padding : padding + H, padding : padding + W] = images
    framed[n:, padding : padding + H, padding : padding + W] = mirrored
    corner = (uniforms * (2 * padding + 1)).long()  # (n, 2)
    line = (source * framed.shape[1] + corner[:, 0])[:, None] + torch.arange(
        H, device=images.device
    )  # (n, H)
    start = (line * framed.shape[2] + corner[:, 1:]) * C
    runs = framed.view(-1).as_strided((framed.numel() - W * C + 1, W * C), (1, 1))
    return runs.index_select(0, start.view(-1)).view(n, H, W, C)


def normalise(images: Tensor, statistics: Statistics) -> Tensor:
    """uint8 images (N, C, H, W) as float32 with zero mean and unit deviation, in channels_last memory."""
    return _normalise(images, *_scale_and_shift(statistics, images.shape[3], images.device))


def _normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n, C, H, W = images.shape
    rows = images.permute(0, 2, 3, 1).contiguous().view(n, H, W * C).float()
    return torch.addcmul(shift, rows, scale).view(n, H, W, C).permute(0, 3, 1, 2)


def _scale_and_shift(statistics: Statistics, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors and summands (W * C,) that turn a row of bytes into normalised values."""
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in statistics)
    scale, shift = 1 / (255 * std), -mean / std
    return scale.float().repeat(width).to(device), shift.float().repeat(width).to(device)


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
    (evaluation) all images come clean and in order. `shard` = (rank, processes) takes every processes-th
    image of each batch and never pads; `batch_size` is that of all processes together. When training, a last
    batch that leaves a process fewer than two images is left out, as batch-norm cannot learn from one.
    """
    assert augmentation is None or generator is not None, "augmentation needs a generator"
    rank, processes = shard
    count, needed = len(images), rank + 1 if generator is None else 2 * processes
    order, uniforms = (torch.arange(count), torch.empty(0)) if generator is None else draw(count, generator)
    source = images.images.permute(0, 2, 3, 1)  # (N, H, W, C), contiguous
    scale, shift = _scale_and_shift(statistics, images.image_size, source.device)
    for first in range(0, count, batch_size):
        if count - first < needed:
            return
        mine = slice(first + rank, min(first + batch_size, count), processes)
        indices = order[mine].to(source.device, non_blocking=True)
        batch = source.index_select(0, indices)  # (n, H, W, C)
        n, H, W, C = batch.shape
        if augmentation is not None:
            batch, rows, columns = augment(batch, uniforms[mine], augmentation)
        values = torch.addcmul(shift, batch.view(n, H, W * C).float(), scale)
        if augmentation is not None and augmentation.cutout_length:
            values.addcmul_(values * rows, columns, value=-1)  # exactly 0 inside the square
        values = values.view(n, H, W, C).permute(0, 3, 1, 2)
        yield values if channels_last else values.contiguous(), images.labels.index_select(0, indices)


def load(
    name: str, folder: str | Path = "data", part: str = "train", image_size: int | None = None
) -> ImageSet:
    """The training or test part of a data set (see SETS), read from `folder`, on the CPU.

    CIFAR and Fashion-MNIST are downloaded there by torchvision if they are missing, which is said.
    `image_size` resizes the images of class folders. ValueError or OSError, in one line, for what is wrong.
    """
    if name not in SETS:
        raise ValueError(f"--set {name}: there is no such data set; allowed: {', '.join(SETS)}")
    if part not in PARTS:
        raise ValueError(f"part {part!r}: allowed are {' and '.join(PARTS)}")
    if image_size is not None and name != "folder":
        raise ValueError(
            f"--image_size {image_size}: only for --set folder; the images of {name} keep their size"
        )
    if image_size is not None and image_size < SMALLEST_IMAGE:
        raise ValueError(f"--image_size {image_size}: allowed are {SMALLEST_IMAGE} pixels or more")
    folder = Path(folder).expanduser()
    if name == "digits":
        arrays = files.digits(part)
    elif name == "fashion_mnist":
        arrays = files.fashion_mnist(folder, part)
    elif name == "folder":
        arrays = files.class_folders(folder, part, image_size, smallest=SMALLEST_IMAGE)
    else:
        arrays = files.cifar(name, folder, part)
    images = torch.from_numpy(arrays.images).permute(0, 3, 1, 2)  # (N, C, H, W)
    return ImageSet(images, torch.from_numpy(arrays.labels), arrays.classes)


class LargeImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Class folders of images of any size, decoded when asked for: training (augmented) or evaluation.

    Training draws, as published, a random crop of 8 to 100% of the area, a flip, and other colours. What an
    image gets depends on (seed, epoch, index) alone, not on the process or worker that decodes it.
    Evaluation scales the shorter side to 8/7 of `image_size` and crops the middle. ValueError for a folder
    without two classes of images.
    """

    def __init__(self, folder: str | Path, image_size: int, training: bool, seed: int = 0) -> None:
        from torchvision.transforms import v2

        listing = files.list_classes(Path(folder).expanduser(), stamps=False)
        # One array instead of a million strings: workers would copy those by counting references.
        self._paths = np.array([os.fsencode(path) for path in listing.paths])
        self.labels, self.classes = listing.labels, listing.classes
        names = "\n".join("/".join(path.rsplit(os.sep, 2)[-2:]) for path in listing.paths)
        self.fingerprint = hashlib.sha256(os.fsencode(names)).hexdigest()  # wherever the folder lies
        self.seed, self.epoch, self._image_size = seed, 0, image_size
        steps: list[Any] = [v2.Resize(image_size * 8 // 7), v2.CenterCrop(image_size)]
        if training:
            jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
            steps = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), jitter]
        self._transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image uint8 (H, W, 3) and its label; ValueError names a file that cannot be read."""
        picture = files.open_image(os.fsdecode(self._paths[index])).convert("RGB")
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms know the global generator only
            torch.manual_seed(derive_seed(self.seed, "image", self.epoch, index))
            picture = self._transform(picture)
        return torch.from_numpy(np.array(picture)), int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | str:
        """A batch (n, H, W, 3), (n,); or, as a worker's exception arrives as a long text, its one line."""
        try:
            images, labels = zip(*(self[index] for index in indices), strict=True)
        except ValueError as error:
            return str(error)
        return torch.stack(images), torch.tensor(labels)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffled: bool,
        first: int = 0,
        shard: tuple[int, int] = (0, 1),
        workers: int = 0,
        channels_last: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (n, 3, H, W) and labels (n,) of `self.epoch`, from batch number `first` on.

        The order is that of the seed and the epoch, or the files'. Batches are cut, shared out and left out
        as in the function `batches`: an epoch that is taken up again neither repeats nor loses an image.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(len(self), generator=generator) if shuffled else torch.arange(len(self))
        rank, processes = shard
        loader = torch.utils.data.DataLoader(
            self,
            batch_sampler=[
                order[start + rank : min(start + batch_size, len(self)) : processes].tolist()
                for start in range(first * batch_size, len(self), batch_size)
                if len(self) - start >= (2 * processes if shuffled else rank + 1) and rank < batch_size
            ],
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_stopping_to_the_parent,
            pin_memory=device.type == "cuda",
            generator=generator,  # else it draws from the global one
        )
        scale_and_shift = _scale_and_shift(IMAGENET_STATISTICS, self._image_size, device)
        try:
            for batch in loader:
                if isinstance(batch, str):
                    raise ValueError(batch)
                images, labels = (x.to(device, non_blocking=True) for x in batch)
                images = _normalise(images.permute(0, 3, 1, 2), *scale_and_shift)
                yield images if channels_last else images.contiguous(), labels
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).split(". ")[0]
            raise ValueError(f"--workers {workers}: {reason}; fewer workers need less memory") from None


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_stopping_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers end with their parent, without a traceback each."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
