"""Evaluate a checkpoint on small images, name the classes of image files, or export the network.

    python test.py --model_path runs/digits/model.pt                      # a checkpoint that describes itself
    python test.py --auxiliary --model_path ./trained_model/cifar10_model.pt --set cifar10
    python test.py --model_path runs/mine/checkpoint.pt                   # of a training that is not finished
    python test.py --model_path runs/mine/model.pt --predict cat.jpg photos --json predictions.json
    python test.py --model_path runs/mine/model.pt --export mine.onnx

A bare state dict, such as published ones, needs the flags of its network: --set, --arch, --init_channels,
--layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from common.flags import parse, run_script
from training.config import EvaluationConfig

PUBLISHED = {"arch": "RelativeNAS", "init_channels": 36, "layers": 20}


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """Evaluate a network on the test images of a data set."""

    # --- images
    set: Literal["digits", "cluttered_digits", "fashion_mnist", "cifar10", "cifar100", "folder"] | None = None
    """data set to test on; default that of the training, or cifar10"""


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import distributed
from images import files, sets
from model import count
from skeletons import SMALL, skeleton
from training import card
from training.evaluation import report
from training.export import export
from training.inference import fold_batch_norm
from training.prediction import predict
from training.weights import Loaded, facts_of_flags, load_described, load_network, place
from utils import say


def main(config: Config) -> None:
    device = distributed.init(config.device)
    files.limit_pixels(config.max_megapixels)
    with card.reading("model_path", config.model_path):
        loaded = load(config)
    network, size = loaded.network, count(loaded.network)
    loaded.network = fold_batch_norm(network) if config.fold else network.eval()
    if config.export:
        side = network.image_size[0]
        how = f"scale the shorter side to {side} pixels and crop the middle square"
        export(loaded, normalisation(loaded, config), config, how)
    else:
        place(loaded.network, config.channels_last, device)
        if config.predict:
            pixels = network.image_size[0], network.in_channels
            read = partial(sets.read_image, image_size=pixels[0], channels=pixels[1])
            predict(loaded, normalisation(loaded, config), read, config)
        else:
            test(loaded, config, size)
    distributed.close()


def load(config: Config) -> Loaded:
    """The network of the checkpoint, and what is known of it.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    loaded, state = load_described(SMALL, config)
    if loaded is None:
        weights = state.get("state_dict", state)
        size = {"digits": 8, "cluttered_digits": 16, "fashion_mnist": 28}.get(config.set or "", 32)
        facts = facts_of_flags(config, PUBLISHED, weights, "stem.0.weight") | {"image_size": size}
        return Loaded(load_network(skeleton(facts["genotype"]), config, facts, weights))
    if config.set and (config.predict or config.export):
        raise ValueError(f"--set {config.set}: no effect, as the file says how its images were normalised")
    return loaded


def load_images(config: Config, loaded: Loaded) -> tuple[str, sets.ImageSet, sets.Statistics]:
    """What is tested on, its test images, and what to normalise with; ValueError where they do not suit."""
    network, name = loaded.network, config.set or loaded.set or "cifar10"
    recorded = loaded.card.get("recipe", {}).get("data", "data") if name == loaded.set else "data"
    folder = config.data or recorded
    size = network.image_size[0]
    images = sets.load(name, folder, "test", resized(loaded, name))
    if images.num_classes != network.num_classes:
        raise ValueError(
            f"--set {name}: {images.num_classes} classes, but the network has {network.num_classes}"
        )
    if images.channels != network.in_channels or images.image_size != size:
        raise ValueError(
            f"--set {name}: {images.image_size} pixels and {images.channels} channels, but the network was "
            f"made for {size} pixels and {network.in_channels} channels"
        )
    images = match_classes(images, loaded, name, folder)
    words = f"{name} {folder}" if name == "folder" else name
    return words, images, find_statistics(loaded, name, folder)


def resized(loaded: Loaded, name: str) -> int | None:
    """The pixels that the images of a set take: those of the network; other sets than its own keep theirs."""
    return loaded.network.image_size[0] if name in ("folder", loaded.set) else None


def normalisation(loaded: Loaded, config: Config) -> sets.Statistics:
    """What to normalise images with that are of no data set."""
    return find_statistics(loaded, config.set or "cifar10", config.data or "data")


def find_statistics(loaded: Loaded, name: str, folder: str) -> sets.Statistics:
    """What to normalise with: what the file says, else the figures of the set `name`."""
    if loaded.statistics is not None:
        return loaded.statistics
    size = resized(loaded, name)
    published, channels = sets.PUBLISHED_STATISTICS.get(name), loaded.network.in_channels
    found = published or sets.statistics_of(name, sets.load(name, folder, "train", size))
    if len(found.mean) != channels:
        raise ValueError(f"--set {name}: {len(found.mean)} channels, but the network was made for {channels}")
    return found


def match_classes(images: sets.ImageSet, loaded: Loaded, name: str, folder: str) -> sets.ImageSet:
    """The images with the network's labels for their classes' names, in whatever order the set has them.

    Where names differ, labels are matched by number, and a line says so; not for two folders (ValueError).
    """
    wanted, given = loaded.classes, list(images.classes)
    if wanted is None or wanted == given:
        return images
    if odd := sorted(set(wanted) ^ set(given)):
        if name == loaded.set:
            where = "network" if odd[0] in wanted else "folder"
            raise ValueError(f"--data {folder}: class {odd[0]!r} is one of the {where} only")
        say(f"{name} has other classes than the network ({odd[0]!r}, ...): matched by number")
        return images
    labels = torch.tensor([wanted.index(each) for each in given])
    return sets.ImageSet(images.images, labels[images.labels], tuple(wanted))


def test(loaded: Loaded, config: Config, size: tuple[int, int]) -> None:
    """Test on all test images, and print and write what was found; `size`: parameters and multiply-adds."""
    name, images, statistics = load_images(config, loaded)
    say(f"{config.model_path}: trained on {loaded}; tested on {len(images)} images of {name}")
    batches = sets.batches(
        images.to(next(loaded.network.parameters()).device),
        config.batch_size,
        statistics,
        channels_last=config.channels_last,
        shard=(distributed.rank(), distributed.world_size()),
    )
    origin = {"tested_on": name, "trained_on": str(loaded)}
    report(loaded.network, batches, len(images), size, config, origin)


if __name__ == "__main__":
    run_script(main, config)
