"""Evaluate a checkpoint on small images, name the classes of image files, or export the network.

    python test.py --model_path runs/digits/model.pt                      # a checkpoint that describes itself
    python test.py --auxiliary --model_path ./trained_model/cifar10_model.pt --set cifar10
    python test.py --model_path runs/mine/model.pt --predict cat.jpg dog.png
    python test.py --model_path runs/mine/model.pt --export mine.onnx

A bare state dict, such as published ones, needs the flags of its network: --set, --arch, --init_channels,
--layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.flags import check_new_file, parse, run_script
from training.config import EvaluationConfig

PUBLISHED = {"arch": "RelativeNAS", "init_channels": 36, "layers": 20}
NO_EFFECT = {  # what has none where images are named or the network is written, instead of a test
    "predict": ("json", "precision"),
    "export": ("data", "batch_size", "json", "precision", "device", "channels_last"),
}


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """Evaluate a network on the test images of a data set."""

    # --- images
    set: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "folder"] | None = None
    """data set to test on; default that of the training, or cifar10"""

    # --- instead of a test
    predict: tuple[str, ...] | None = None
    """name the classes of these image files"""
    export: str | None = None
    """write the network as ONNX to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the checkpoint is."""
        super().check()
        check_new_file("export", self.export)
        if self.predict == ():
            raise ValueError("--predict: no image file is given")
        if self.predict and self.export:
            raise ValueError("--predict and --export: choose one of them")
        instead = "predict" if self.predict else "export" if self.export else ""
        for name in NO_EFFECT.get(instead, ()):
            if getattr(self, name) != getattr(Config, name):
                raise ValueError(f"--{name} {getattr(self, name)}: has no effect with --{instead}")


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import checkpoint, distributed
from images import files, sets
from model import Network, NetworkCIFAR, count
from skeletons import SMALL, skeleton
from training import card
from training.evaluation import check_finite, report
from training.inference import export_onnx, fold_batch_norm
from training.weights import facts_of_file, facts_of_flags, load_network, place
from utils import say


@dataclass
class Loaded:
    """A network from a file, and what the file says of the images that it was trained on."""

    network: Network
    set: str | None = None  # None: a bare state dict
    description: str = ""
    folder: str = "data"
    classes: list[str] | None = None
    statistics: sets.Statistics | None = None

    def __str__(self) -> str:
        if self.set is None:
            return "images that the file does not name"
        return f"{self.set} ({self.description})" if self.description else self.set


def main(config: Config) -> None:
    device = distributed.init(config.device)
    files.limit_pixels(config.max_megapixels)
    with card.reading("model_path", config.model_path):
        loaded = load(config)
    size = count(loaded.network)
    network = fold_batch_norm(loaded.network) if config.fold else loaded.network.eval()
    if config.export:
        if distributed.is_main():
            difference = export_onnx(network, config.export)
            say(f"wrote {config.export}; its logits differ from PyTorch's by at most {difference:.1e}")
    elif config.predict:
        predict(place(network, config.channels_last, device), loaded, config)
    else:
        test(place(network, config.channels_last, device), loaded, config, size)
    distributed.close()


def load(config: Config) -> Loaded:
    """The network of the checkpoint, and what is known of it.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    state = checkpoint.load(config.model_path)
    if state.get("kind") != "network":
        weights = state.get("state_dict", state)
        size = {"digits": 8, "fashion_mnist": 28}.get(config.set or "", 32)
        facts = facts_of_flags(config, PUBLISHED, weights, "stem.0.weight") | {"image_size": size}
        return Loaded(load_network(skeleton(facts["genotype"]), config, facts, weights))
    kind = next((kind for kind in SMALL if kind.__name__ == state["network"]["class"]), NetworkCIFAR)
    facts, weights = facts_of_file(state, kind, config), state["state_dict"]
    if config.set and (config.predict or config.export):
        raise ValueError(f"--set {config.set}: no effect, as the file says how its images were normalised")
    network, images = load_network(kind, config, facts, weights), state["images"]
    statistics = sets.Statistics(tuple(images["mean"]), tuple(images["std"]))
    if not len(statistics.mean) == len(statistics.std) == network.in_channels:
        raise TypeError(f"mean and std of {len(statistics.mean)} channels for {network.in_channels}")
    folder, description = state["recipe"].get("data", "data"), images.get("description", "")
    return Loaded(network, images["set"], description, folder, images["classes"], statistics)


def load_images(config: Config, loaded: Loaded) -> tuple[str, sets.ImageSet, sets.Statistics]:
    """What is tested on, its test images, and what to normalise with; ValueError where they do not suit."""
    network, name = loaded.network, config.set or loaded.set or "cifar10"
    folder = config.data or (loaded.folder if name == loaded.set else "data")
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


def test(network: Network, loaded: Loaded, config: Config, size: tuple[int, int]) -> None:
    """Test on all test images, and print and write what was found; `size`: parameters and multiply-adds."""
    name, images, statistics = load_images(config, loaded)
    say(f"{config.model_path}: trained on {loaded}; tested on {len(images)} images of {name}")
    batches = sets.batches(
        images.to(next(network.parameters()).device),
        config.batch_size,
        statistics,
        channels_last=config.channels_last,
        shard=(distributed.rank(), distributed.world_size()),
    )
    report(network, batches, len(images), size, config, {"tested_on": name, "trained_on": str(loaded)})


def predict(network: Network, loaded: Loaded, config: Config) -> None:
    """Print the most probable classes of each image file; the files are read before any is printed."""
    statistics = find_statistics(loaded, config.set or "cifar10", config.data or "data")
    paths, size = config.predict or (), network.image_size[0]
    images = torch.stack([sets.read_image(path, size, network.in_channels) for path in paths])
    device = next(network.parameters()).device
    with torch.no_grad():
        batches = (sets.normalise(x.to(device), statistics) for x in images.split(config.batch_size))
        logits = torch.cat([network(batch)[0] for batch in batches])
    check_finite(logits, config.model_path)
    best = logits.softmax(1).topk(min(3, network.num_classes))
    names = loaded.classes or [f"class {label}" for label in range(network.num_classes)]
    for path, shares, labels in zip(paths, best.values, best.indices, strict=True):
        found = [f"{names[i]} {share:.1%}" for share, i in zip(shares.tolist(), labels.tolist(), strict=True)]
        say(f"{path}: {', '.join(found)}")


if __name__ == "__main__":
    run_script(main, config)
