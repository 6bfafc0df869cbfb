"""Augmentation of whole batches against a per-image reference."""

import numpy as np
import pytest
import torch
from test_sets import generator, random_set

from images import sets
from images.augmentation import Augmentation, augment, draw


def reference_augment(image, uniforms, augmentation):
    """One image (H, W, C) by plain loops; returns it with the mask of what is cut out (H, W)."""
    H, W, _ = image.shape
    padding = augmentation.crop_padding
    top, left = (int(u * np.float32(2 * padding + 1)) for u in uniforms[:2])
    image = image[:, ::-1] if augmentation.flip and uniforms[2] < 0.5 else image
    result = np.zeros_like(image)
    for y in range(H):
        for x in range(W):
            from_y, from_x = y + top - padding, x + left - padding
            if 0 <= from_y < H and 0 <= from_x < W:
                result[y, x] = image[from_y, from_x]
    mask = np.zeros((H, W), dtype=bool)
    half = augmentation.cutout_length // 2
    low_y, low_x = (int(u * np.float32(size)) - half for u, size in zip(uniforms[3:], (H, W), strict=True))
    length = augmentation.cutout_length
    mask[max(0, low_y) : max(0, low_y + length), max(0, low_x) : max(0, low_x + length)] = True
    return result, mask


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(2, True, 6),
        Augmentation(0, True, 0),
        Augmentation(3, False, 5),
        Augmentation(0, False, 1),
    ],
)
def test_training_batches_equal_a_per_image_reference(channels, augmentation):
    images = random_set(channels=channels)
    statistics = sets.channel_statistics(images.images)
    order, uniforms = draw(len(images), generator(5))
    produced = list(sets.batches(images, 8, statistics, generator=generator(5), augmentation=augmentation))
    values, labels = torch.cat([x for x, _ in produced]), torch.cat([y for _, y in produced])
    assert torch.equal(labels, images.labels[order])
    mean, std = (np.array(x) for x in statistics)
    for index, u, value in zip(order, uniforms.numpy(), values.permute(0, 2, 3, 1).numpy(), strict=True):
        source = images.images[index].permute(1, 2, 0).numpy()
        expected, mask = reference_augment(source, u, augmentation)
        expected = (expected / 255 - mean) / std
        expected[mask] = 0
        np.testing.assert_allclose(value, expected, atol=2e-6)
        assert (value[mask] == 0).all()


def test_augmentation_leaves_the_set_as_it_was():
    images = random_set()
    before = images.images.clone()
    for augmentation in (Augmentation(0, True, 4), Augmentation(2, True, 4)):
        list(
            sets.batches(
                images, 8, sets.channel_statistics(before), generator=generator(), augmentation=augmentation
            )
        )
    assert torch.equal(images.images, before)


def test_crop_and_cutout_reach_every_position():
    images = sets.ImageSet(
        torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(2000).long(), ("a", "b")
    )
    cropped, rows, columns = augment(
        images.images.permute(0, 2, 3, 1), draw(2000, generator())[1], Augmentation(1, False, 1)
    )
    corners = cropped[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].bool()
    assert len(torch.unique(corners, dim=0)) == 9  # 3 x 3 shifts, each its own pattern of black borders
    holes = (rows * columns).sum(0)
    assert (holes > 0).all()
    assert (rows * columns).sum(dim=(1, 2)).eq(1).all()


def test_order_does_not_depend_on_the_augmentation():
    images = random_set()
    statistics = sets.channel_statistics(images.images)
    plain = [y for _, y in sets.batches(images, 8, statistics, generator=generator(3))]
    cut = Augmentation(2, True, 4)
    augmented = [y for _, y in sets.batches(images, 8, statistics, generator=generator(3), augmentation=cut)]
    assert torch.equal(torch.cat(plain), torch.cat(augmented))


@pytest.mark.parametrize(("size", "padding", "cutout"), [(8, 1, 4), (28, 4, 14), (32, 4, 16), (64, 8, 32)])
def test_augmentation_scales_with_the_image(size, padding, cutout):
    images = random_set(size=size)
    assert Augmentation.of(images.image_size, "cifar10", cutout=True) == (padding, True, cutout)
    assert Augmentation.of(images.image_size, "digits", cutout=False) == (padding, False, 0)
    assert Augmentation.of(images.image_size, "digits", cutout=False, flip=True).flip
