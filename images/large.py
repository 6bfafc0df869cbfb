"""Folders of images too many and too large for memory, such as ImageNet: decoded when asked for."""

import hashlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from images import files, folders
from images.sets import IMAGENET_STATISTICS, scale_and_shift, scaled, shares
from utils import derive_seed

PATIENCE = 300.0  # seconds that a worker may take for a batch


class LargeImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Class folders of images of any size, decoded when asked for: training (augmented) or evaluation.

    Training draws, as published, a random crop of 8 to 100% of the area, a flip, and other colours. What an
    image gets depends on (seed, epoch, index) alone, not on the process or worker that decodes it.
    Evaluation scales the shorter side to 8/7 of `image_size` and crops the middle. ValueError for a folder
    without two classes of images.
    """

    def __init__(self, folder: str | Path, image_size: int, training: bool, seed: int = 0) -> None:
        listing = folders.list_classes(Path(os.path.expanduser(folder)), stamps=False)
        # One array instead of a million strings: workers would copy those by counting references.
        self._paths = np.array([os.fsencode(path) for path in listing.paths])
        self.labels, self.classes = listing.labels, listing.classes
        names = "\n".join("/".join(path.rsplit(os.sep, 2)[-2:]) for path in listing.paths)
        self.fingerprint = hashlib.sha256(os.fsencode(names)).hexdigest()  # wherever the folder lies
        self.seed, self.epoch, self._image_size = seed, 0, image_size
        self._transform = _transform(image_size, training)

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
        as `shares` says: an epoch that is taken up again neither repeats nor loses an image.
        """
        factors = scale_and_shift(IMAGENET_STATISTICS, self._image_size, device)
        order = epoch_order(len(self), self.seed, self.epoch, shuffled)
        places = itertools.islice(shares(len(self), batch_size, shard, training=shuffled), first, None)
        for images, labels in decode(self, [order[mine].tolist() for mine in places], device, workers):
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            images = scaled(images.permute(0, 3, 1, 2), *factors)
            yield images if channels_last else images.contiguous(), labels


def _transform(image_size: int, training: bool) -> Any:
    """What makes a picture of any size one of `image_size`."""
    from torchvision.transforms import v2

    if not training:
        return v2.Compose([v2.Resize(image_size * 8 // 7), v2.CenterCrop(image_size)])
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    return v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), jitter])


def read_image(path: str, image_size: int) -> Tensor:
    """An image file as evaluation sees it, uint8 (3, image_size, image_size); ValueError names the file."""
    picture = _transform(image_size, training=False)(files.open_image(path).convert("RGB"))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def epoch_order(count: int, seed: int, epoch: int, shuffled: bool) -> Tensor:
    """The order (count,) in which an epoch sees the images: that of the seed and the epoch, or the files'."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator) if shuffled else torch.arange(count)


def decode(
    images: torch.utils.data.Dataset[Any], batches: list[list[int]], device: torch.device, workers: int
) -> Iterator[Any]:
    """What `images.__getitems__` makes of each batch of indices, in order, by so many worker processes.

    A batch that is a text is an error in one line, and raised as ValueError.
    """
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=[indices for indices in batches if indices],
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_stopping_to_the_parent,
        timeout=PATIENCE if workers else 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # else it draws from the global one
    )
    for batch in _named_by_flag(loader, workers):
        if isinstance(batch, str):
            raise ValueError(batch)
        yield batch


def _named_by_flag(loader: Iterable[Any], workers: int) -> Iterator[Any]:
    """What the loader gives; ValueError that names --workers where one of its workers dies or hangs.

    A worker that SIGTERM ended was told to stop, as the whole program was: KeyboardInterrupt.
    """
    try:
        yield from loader
    except RuntimeError as error:
        reason = str(error).split(". ")[0]
        if reason.endswith("killed by signal: Terminated"):
            raise KeyboardInterrupt from None
        if reason.startswith("DataLoader timed out"):
            raise ValueError(
                f"--workers {workers}: none gave a batch within {PATIENCE:.0f} s: a drive or a decoder hangs"
            ) from None
        if not reason.startswith("DataLoader worker"):
            raise
        raise ValueError(f"--workers {workers}: {reason}; fewer workers need less memory") from None


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_stopping_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers end with their parent, without a traceback each.

    SIGTERM ends them: the parent sends it to a worker that does not end by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
