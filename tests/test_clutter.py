"""Cluttered digits: always the same, of their own part's digits, and neither easy nor impossible."""

import hashlib

import numpy as np
import torch

from dense.digits import scenes
from images import clutter, sets


def test_every_call_gives_the_same_images_of_ten_classes() -> None:
    first, again = clutter.arrays("test"), clutter.arrays("test")
    assert first.images.shape == (4000, 16, 16, 3)
    assert first.images.dtype == np.uint8
    assert (first.images == again.images).all()
    assert (np.bincount(first.labels) > 300).all()
    assert not (clutter.arrays("train").images[:4000] == first.images).all()


def test_the_parts_share_no_digit(monkeypatch) -> None:
    seen: dict[str, set[bytes]] = {"train": set(), "test": set()}
    real = clutter.any_digit

    def watch(random, digits):
        glyph, label = real(random, digits)
        seen[part].add(glyph.tobytes())
        return glyph, label

    monkeypatch.setattr(clutter, "any_digit", watch)
    for part in seen:
        clutter.arrays(part)
    assert not seen["train"] & seen["test"]


def test_the_set_is_loaded_by_name_and_is_not_flipped() -> None:
    images = sets.load("cluttered_digits")
    assert (len(images), images.channels, images.image_size, images.num_classes) == (4000, 3, 16, 10)
    assert not sets.Augmentation.of(16, "cluttered_digits", cutout=False).flip
    assert sets.load("cluttered_digits", image_size=24).image_size == 24


def test_a_linear_classifier_learns_little_of_it() -> None:
    train, test = (sets.load("cluttered_digits", part=part) for part in ("train", "test"))
    x, y = (images.images.flatten(1).float() / 255 for images in (train, test))
    targets = torch.nn.functional.one_hot(train.labels).float()
    weights = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), targets, driver="gelsd").solution
    found = (torch.cat([y, torch.ones(len(y), 1)], 1) @ weights).argmax(1)
    share = (found == test.labels).float().mean().item()
    assert 0.1 < share < 0.4


def test_the_scenes_of_the_dense_tasks_are_those_of_their_records() -> None:
    made = scenes("train", 20)
    parts = made.images.tobytes() + made.masks.tobytes() + b"".join(box.tobytes() for box in made.boxes)
    assert hashlib.md5(parts).hexdigest() == "8d2cd473b0500ca6d27becdbf0ad463f"
