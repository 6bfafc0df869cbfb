"""What training images go through: flip, crop and cutout, as tensor operations on a whole batch.

    augmentation = Augmentation.of(32, "cifar10", cutout=True)
    order, uniforms = draw(len(images), generator)             # for an epoch
    augmented, rows, columns = augment(images, uniforms, augmentation)

`sets.batches` applies it. Large images are augmented one by one, by torchvision: see `large.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Augmentation(NamedTuple):
    """Horizontal flip with probability 1/2, random crop after padding with black, a square set to the mean.

    crop_padding: pixels on each side (0: no crop). cutout_length: the square's side in pixels (0: none); its
    centre is anywhere in the image, so a part of it may lie outside (DeVries and Taylor, 2017).
    """

    crop_padding: int
    flip: bool
    cutout_length: int

    @staticmethod
    def of(image_size: int, name: str, cutout: bool, flip: bool | None = None) -> "Augmentation":
        """CIFAR's published augmentation (pad 4, flip, cut out 16 of 32 pixels) scaled to this image size.

        `name` is the data set's. Digits are not flipped, as a mirrored digit is no digit; `flip` overrides
        this.
        """
        return Augmentation(
            crop_padding=(image_size + 4) // 8,
            flip=not name.endswith("digits") if flip is None else flip,
            cutout_length=image_size // 2 if cutout else 0,
        )


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An epoch's random numbers on the CPU: order of the images (count,), uniforms (count, 5) for `augment`.

    They do not depend on the augmentation, so that runs with other settings still see the same order.
    """
    return torch.randperm(count, generator=generator), torch.rand(count, 5, generator=generator)


def augment(images: Tensor, uniforms: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor, Tensor]:
    """Flip and crop uint8 images (n, H, W, C), and say which rows and columns are cut out.

    Columns of the uniforms (n, 5), on the images' device: crop y, crop x, flip, cutout y, cutout x. Returns
    new images (n, H, W, C) and float masks (n, H, 1) and (n, 1, W * C), whose product is 1 on the pixels to
    cut out.
    """
    _, H, W, C = images.shape
    flips = uniforms[:, 2] < (0.5 if augmentation.flip else 0.0)
    images = _flip_and_crop(images, flips, uniforms[:, :2], augmentation.crop_padding)
    half = augmentation.cutout_length // 2
    top, left = (uniforms[:, 3] * H).long() - half, (uniforms[:, 4] * W).long() - half  # (n,)
    rows = torch.arange(H, device=images.device) - top[:, None]  # (n, H)
    columns = torch.arange(W, device=images.device) - left[:, None]  # (n, W)
    inside = [((x >= 0) & (x < augmentation.cutout_length)).float() for x in (rows, columns)]
    return images, inside[0][:, :, None], inside[1].repeat_interleave(C, dim=1)[:, None, :]


def _flip_and_crop(images: Tensor, flips: Tensor, uniforms: Tensor, padding: int) -> Tensor:
    """Mirror the images (n, H, W, C) where `flips` (n,) says so, then shift them by up to `padding` pixels.

    A row of the result is a run of W * C bytes of a black-framed image or its mirror image, so everything is
    one gather of such runs. On the CPU that is far faster than to gather pixels or to write mirrored images
    back.
    """
    n, H, W, C = images.shape
    everyone = torch.arange(n, device=images.device)
    if images.device.type == "cpu":
        source = torch.where(flips, n - 1 + flips.cumsum(0), everyone)
        mirrored = images.index_select(0, flips.nonzero()[:, 0]).flip(2)
    else:  # to know how many are mirrored, the host would have to wait: all are
        source, mirrored = everyone + n * flips, images.flip(2)
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
