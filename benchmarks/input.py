"""Images per second of the augmented input, beside torchvision's pipeline of one PIL image after the other.

    python benchmarks/input.py
    python benchmarks/input.py --threads 2 --json result.json

The images are random: what they show has no influence. Everything runs in one process.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import timing
import torch
from torch import Tensor

from common.flags import check_range, parse, run_script
from images import sets
from images.augmentation import Augmentation

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Config:
    """Speed of the augmented input: crop, flip, tensor, normalise, cutout."""

    images: int = 20000
    """Images per round; the pipeline of single images gets a tenth."""
    image_size: int = 32
    """Height and width in pixels."""
    channels: int = 3
    """1 for grey images, 3 for colour."""
    batch_size: int = 256
    """Images per batch."""
    threads: int = 1
    """Threads of PyTorch."""
    repeats: int = 7
    """Rounds; the variants take turns in each."""
    json: str | None = None
    """Write the result to this file, which must not exist."""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "images", 20)
        check_range(self, "image_size", sets.SMALLEST_IMAGE)
        check_range(self, "batch_size", 2)
        check_range(self, "threads repeats", 1)
        if self.channels not in (1, 3):
            raise ValueError(f"--channels {self.channels}: allowed are 1 and 3")
        evidence.check_output(self.json)


class Cutout:
    """Cutout of one image tensor (C, H, W), as one more transform of torchvision's pipeline."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        top, left = (int(torch.randint(size, ())) - self.length // 2 for size in image.shape[1:])
        image[:, max(0, top) : top + self.length, max(0, left) : left + self.length] = 0
        return image


def single_images(images: sets.ImageSet, augmentation: Augmentation, batch_size: int) -> Batches:
    """torchvision's usual pipeline: PIL images, one after the other, collated by a DataLoader."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.image_size, padding=augmentation.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*sets.channel_statistics(images.images)),
            Cutout(augmentation.cutout_length),
        ]
    )
    arrays = images.images.permute(0, 2, 3, 1).numpy()

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            picture = Image.fromarray(arrays[index].squeeze())
            return transform(picture), int(images.labels[index])

    return iter(torch.utils.data.DataLoader(Pictures(), batch_size=batch_size, shuffle=True))


def indexed(images: Tensor, labels: Tensor, augmentation: Augmentation, batch_size: int) -> Batches:
    """The simple batched version: contiguous images, one gather of single pixels, masks, normalisation."""
    N, C, H, W = images.shape
    padding, length = augmentation.crop_padding, augmentation.cutout_length
    mean, std = (torch.tensor(x).view(1, C, 1, 1) for x in sets.channel_statistics(images))
    for chosen in torch.randperm(N).split(batch_size):
        n = len(chosen)
        padded = torch.nn.functional.pad(images[chosen], [padding] * 4)
        y = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(H)  # (n, H)
        x = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(W)  # (n, W)
        x = torch.where(torch.rand(n, 1) < 0.5, x.flip(1), x)
        batch = padded[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        values = (batch.float() / 255 - mean) / std
        rows, columns = ((torch.arange(size) - torch.randint(size, (n, 1)) + length // 2) for size in (H, W))
        inside = ((rows >= 0) & (rows < length))[:, :, None] & ((columns >= 0) & (columns < length))[
            :, None, :
        ]
        yield values.masked_fill(inside[:, None], 0.0), labels[chosen]


def variants(config: Config) -> dict[str, Callable[[], int]]:
    """What is measured: each runs one epoch and returns how many images it saw."""
    random = np.random.default_rng(0)
    shape = (config.images, config.channels, config.image_size, config.image_size)
    pixels = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
    images = sets.ImageSet(pixels, torch.arange(config.images) % 10, tuple("0123456789"))
    few = images.subset(torch.arange(config.images // 10))
    full = Augmentation.of(images.image_size, "cifar10", cutout=True)
    statistics = sets.channel_statistics(images.images)

    def epoch(augmentation: Augmentation | None, channels_last: bool = True) -> Batches:
        generator = torch.Generator().manual_seed(0)
        return sets.batches(
            images,
            config.batch_size,
            statistics,
            generator=generator,
            augmentation=augmentation,
            channels_last=channels_last,
        )

    makers: dict[str, Callable[[], Batches]] = {
        "single PIL images": lambda: single_images(few, full, config.batch_size),
        "batched, pixel by pixel": lambda: indexed(pixels, images.labels, full, config.batch_size),
        "sets.batches": lambda: epoch(full),
        "... contiguous": lambda: epoch(full, channels_last=False),
        "... without cutout": lambda: epoch(full._replace(cutout_length=0)),
        "... without flip": lambda: epoch(full._replace(flip=False)),
        "... shuffled only": lambda: epoch(None),
    }

    def runner(maker: Callable[[], Batches]) -> Callable[[], int]:
        return lambda: sum(len(labels) for _, labels in maker())

    return {name: runner(maker) for name, maker in makers.items()}


def main(config: Config) -> None:
    origin = evidence.provenance(asdict(config))
    torch.set_num_threads(config.threads)
    rates = timing.alternate(variants(config), config.repeats)
    print(timing.table(rates, "single PIL images"))
    evidence.write(config.json, origin | {"images_per_second": rates})


if __name__ == "__main__":
    run_script(main, parse(Config))
