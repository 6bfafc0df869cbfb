"""Batches for detectors and segmentation heads: decoded, augmented by torchvision's v2 transforms, in order.

What an image gets depends on (seed, epoch, index) alone, not on the process or worker that decodes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dense.recipes import SEGMENTERS
from dense.sources import OUTSIDE, Source
from images.large import decode, epoch_order
from images.sets import shares
from utils import derive_seed

Batch = tuple[list[int], list[Tensor], list[Any]]  # indices; images (3, H, W) in [0, 1]; targets


def augmentation(model: str, image_size: int, digits: bool) -> v2.Transform:
    """What torchvision's reference trainings do to an image, its boxes and its mask; digits keep their look.

    Detectors: a flip; SSDLite also a crop that keeps enough of a box (IoU crop of SSD). Segmentation: a scale
    of half to twice `image_size`, a flip, a crop of 12/13 of it (480 of 520).
    """
    if digits:  # a detector scales images itself
        return v2.Resize(image_size) if model in SEGMENTERS else v2.Identity()
    if model in SEGMENTERS:
        crop = image_size * 12 // 13
        outside = {tv_tensors.Mask: OUTSIDE, "others": 0}
        return v2.Compose(
            [
                v2.RandomResize(image_size // 2, 2 * image_size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(crop, pad_if_needed=True, fill=outside),
            ]
        )
    crops = [v2.RandomIoUCrop()] if model == "ssdlite" else []
    return v2.Compose([*crops, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()])


class Scenes(torch.utils.data.Dataset[Any]):
    """A source's images and targets; with `transform` (training) augmented for `epoch`, else as they are."""

    def __init__(self, source: Source, transform: v2.Transform | None = None, seed: int = 0) -> None:
        self.source, self.transform, self.seed, self.epoch = source, transform, seed, 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Any]:
        """Index, image uint8 (3, H, W), and {"boxes", "labels"} or a mask uint8 (H, W)."""
        image, target = self.source.image(index), self._target(index)
        if not isinstance(target, dict) and target.shape != image.shape[1:]:
            sizes = ", ".join("x".join(map(str, reversed(x.shape[-2:]))) for x in (image, target))
            raise ValueError(f"{self.source.images[index]}: image and mask differ in size ({sizes})")
        if self.transform is None:
            return index, image, target
        if isinstance(target, dict):
            size = image.shape[1:]
            target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        else:
            target = tv_tensors.Mask(target)
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms know the global generator only
            torch.manual_seed(derive_seed(self.seed, "image", self.epoch, index))
            image, target = self.transform(tv_tensors.Image(image), target)
        plain = (
            {key: x.as_subclass(Tensor) for key, x in target.items()} if isinstance(target, dict) else None
        )
        return index, image.as_subclass(Tensor), plain or target.as_subclass(Tensor)

    def _target(self, index: int) -> Any:
        if self.source.boxes is None:
            return self.source.mask(index)
        boxes = self.source.boxes[index]
        return {"boxes": boxes.boxes, "labels": boxes.labels}

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Tensor, Any]] | str:
        """A batch; or, as a worker's exception arrives as a long text, its one line."""
        try:
            return [self[index] for index in indices]
        except ValueError as error:
            return str(error)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        first: int = 0,
        shard: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[Batch]:
        """This process's share of the batches of `self.epoch` (`images.sets.shares`), from number `first` on.

        In training the order is that of the seed and the epoch.
        """
        training = self.transform is not None
        order = epoch_order(len(self), self.seed, self.epoch, shuffled=training)
        places = itertools.islice(shares(len(self), batch_size, shard, training), first, None)
        for batch in decode(self, [order[mine].tolist() for mine in places], device, workers):
            indices, images, targets = (list(each) for each in zip(*batch, strict=True))
            floats = [image.to(device, non_blocking=True).float() / 255 for image in images]
            yield indices, floats, [_to(target, device) for target in targets]


def _to(target: Any, device: torch.device) -> Any:
    if isinstance(target, dict):
        return {key: x.to(device, non_blocking=True) for key, x in target.items()}
    return target.to(device, non_blocking=True).long()
