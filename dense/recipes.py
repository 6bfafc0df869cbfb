"""What each model is trained with unless flags say otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

Config = TypeVar("Config")
SEGMENTERS = ("deeplabv3", "lraspp")


class Recipe(NamedTuple):
    """What a model is trained with unless flags say otherwise."""

    strides: tuple[int, ...]
    image_size: int
    head_channels: int | None  # None: the model has no such choice
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: str
    init_channels: int = 46
    layers: int = 14
    warmup_steps: int = 1000
    box_scales: tuple[float, ...] = ()  # of SSDLite
    background_prior: float | None = None  # of the masks
    workers: int = 8


RECIPES = {  # torchvision's reference trainings, on eight GPUs
    "fcos": Recipe((8, 16, 32), 800, 256, 26, 16, 0.01, 1e-4, "steps"),
    "retinanet": Recipe((8, 16, 32), 800, 256, 26, 16, 0.01, 1e-4, "steps"),
    "fasterrcnn": Recipe((4, 8, 16, 32), 800, 256, 26, 16, 0.02, 1e-4, "steps"),
    "ssdlite": Recipe(
        (16, 32, 64, 128, 256, 512), 320, None, 660, 192, 0.15, 4e-5, "cosine", box_scales=(0.2, 0.95)
    ),
    "deeplabv3": Recipe((16,), 520, None, 30, 32, 0.02, 1e-4, "poly"),
    "lraspp": Recipe((8, 32), 520, None, 30, 32, 0.01, 1e-6, "poly"),
}
STRIDES_OF_DIGITS: dict[str, tuple[int, ...]] = {"fcos": (8, 16, 32), "retinanet": (4, 8, 16)}
STRIDES_OF_DIGITS |= {"fasterrcnn": (4, 8, 16), "ssdlite": (8, 16, 32), "deeplabv3": (8,), "lraspp": (8, 16)}


def recipe_of_digits(model: str) -> Recipe:
    """Small enough for two CPU cores; those of SSDLite and LR-ASPP were chosen on held-out scenes."""
    pyramid = RECIPES[model].head_channels is not None
    small = Recipe(STRIDES_OF_DIGITS[model], 128, None, 12, 16, 0.1, 1e-4, "cosine", 16, 8, 50)
    if pyramid:  # without batch-norm in the heads
        small = small._replace(head_channels=64, learning_rate=0.02)
    if model in SEGMENTERS:  # six of a hundred pixels are ink
        size = 192 if model == "lraspp" else 128  # DeepLabV3's head costs ten times as much
        small = small._replace(image_size=size, learning_rate=0.5, background_prior=0.94)
    return small._replace(workers=0, box_scales=(0.2, 0.5) if model == "ssdlite" else ())


def with_recipe(config: Config) -> Config:
    """The same flags, with the recipe's values for those that were not given."""
    given: Any = config
    recipe = recipe_of_digits(given.model) if given.set == "digits" else RECIPES[given.model]
    missing = {name: x for name, x in recipe._asdict().items() if getattr(given, name) in (None, ())}
    return dataclasses.replace(given, **missing)
