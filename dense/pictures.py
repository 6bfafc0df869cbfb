"""Pictures of what a dense model finds: boxes with names and scores, or coloured masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from images.files import open_image

SCORE = 0.5  # of a box, from which on it is drawn


def read(path: str) -> Tensor:
    """An image file as uint8 (3, H, W); ValueError names one that cannot be read."""
    return torch.from_numpy(np.array(open_image(path).convert("RGB"))).permute(2, 0, 1)


def colours(labels: int) -> list[tuple[int, int, int]]:
    """A colour for each label: bright, hues apart by the golden ratio."""
    hsv = [(int(255 * (0.618034 * label % 1)), 110, 255) for label in range(labels)]
    pixels = Image.fromarray(np.array([hsv], np.uint8), mode="HSV").convert("RGB")
    return [tuple(pixel) for pixel in np.asarray(pixels)[0].tolist()]


def draw(
    image: Tensor, found: Mapping[str, Tensor] | Tensor, classes: Sequence[str], scale: int = 1
) -> Tensor:
    """The image uint8 (3, H, W), enlarged `scale` times, with the boxes of a high score or the mask on it."""
    image = resize(image, [scale * size for size in image.shape[1:]], antialias=True)
    palette = colours(len(classes) + 1)
    if isinstance(found, Tensor):
        mask = resize(found.cpu()[None], list(image.shape[1:]), interpolation=0)[0]
        present = [label for label in mask.unique().tolist() if label > 0]
        if not present:
            return image
        masks = torch.stack([mask == label for label in present])
        return draw_segmentation_masks(image, masks, alpha=0.6, colors=[palette[label] for label in present])
    kept = found["scores"] >= SCORE
    if not kept.any():
        return image
    labels = found["labels"][kept].tolist()
    names = [f"{classes[i - 1]} {s:.0%}" for i, s in zip(labels, found["scores"][kept].tolist(), strict=True)]
    boxes = found["boxes"][kept].cpu() * scale
    return draw_bounding_boxes(image, boxes, names, colors=[palette[label] for label in labels], width=2)


def grid(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures of one size in rows of six, (3, H, W)."""
    return make_grid(list(pictures), nrow=6, padding=2)


def save(picture: Tensor, path: Path) -> None:
    """Write a picture; ValueError where its name is of no format."""
    try:
        with path.open("xb") as file:
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(
                file, format=None if path.suffix else "PNG"
            )
    except (ValueError, KeyError) as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written ({error}); .png and .jpg can") from None
