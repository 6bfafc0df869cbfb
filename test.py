"""Evaluate a checkpoint on small images, name the classes of image files, or export the network.

    python test.py --model_path runs/digits/model.pt                      # a checkpoint that describes itself
    python test.py --auxiliary --model_path ./trained_model/cifar10_model.pt --set cifar10
    python test.py --model_path runs/mine/model.pt --predict cat.jpg dog.png
    python test.py --model_path runs/mine/model.pt --export mine.onnx

A bare state dict, such as published ones, needs the flags of its network: --set, --arch, --init_channels,
--layers.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

import genotypes
from common import checkpoint, distributed
from common.flags import check_new_file, check_range, run_script
from images import sets
from model import NetworkCIFAR, count, load_network_state
from training import loop
from training.inference import check_finite, check_flags, export_onnx, fold_batch_norm
from utils import write_atomically

DEFAULTS = {"arch": "RelativeNAS", "init_channels": 36, "layers": 20}
NO_EFFECT = {  # what has none where images are named or the network is written, instead of a test
    "predict": ("json", "precision"),
    "export": ("data", "batch_size", "json", "precision", "device", "channels_last"),
}


@dataclass(frozen=True)
class Config:
    """Evaluate a network on the test images of a data set."""

    model_path: str
    """checkpoint: of this project, or a state dict"""
    set: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "folder"] | None = None
    """data set to test on; default that of the training, or cifar10"""
    data: str | None = None
    """folder that holds the data sets, or the class folders; default that of the training, or data"""

    # --- network, where the checkpoint does not describe it
    arch: str | None = None
    """name in genotypes.py, JSON file, or folder of a search; default RelativeNAS"""
    init_channels: int | None = None
    """channels of the first cell; default 36"""
    layers: int | None = None
    """cells; default 20"""
    auxiliary: bool = False
    """accepted, as published command lines give it: an auxiliary head is never evaluated"""

    # --- instead of a test
    predict: tuple[str, ...] | None = None
    """name the classes of these image files"""
    export: str | None = None
    """write the network as ONNX to this file, which must not exist"""

    # --- evaluation
    batch_size: int = 256
    """images per step, of all processes together"""
    fold: bool = True
    """fold batch-norm into the convolutions, which changes nothing but rounding"""
    json: str | None = None
    """write the result to this file, which must not exist"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    channels_last: bool = True
    """memory layout of images and weights (the CPU computes in this one in float32 either way)"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the checkpoint is."""
        check_range(self, "init_channels layers", 1, 1024)
        check_range(self, "batch_size", 1)
        genotypes.check_arch(self)
        check_new_file("json", self.json)
        check_new_file("export", self.export)
        if self.predict == ():
            raise ValueError("--predict: no image file is given")
        if self.predict and self.export:
            raise ValueError("--predict and --export: choose one of them")
        instead = "predict" if self.predict else "export" if self.export else ""
        for name in NO_EFFECT.get(instead, ()):
            if getattr(self, name) != getattr(Config, name):
                raise ValueError(f"--{name} {getattr(self, name)}: has no effect with --{instead}")


@dataclass
class Trained:
    """A network from a file, and what the file says of the images that it was trained on."""

    network: NetworkCIFAR
    set: str | None  # None: a bare state dict
    description: str
    folder: str
    classes: list[str] | None
    statistics: sets.Statistics | None

    def __str__(self) -> str:
        if self.set is None:
            return "images that the file does not name"
        return f"{self.set} ({self.description})" if self.description else self.set


def main(config: Config) -> None:
    device = distributed.init(config.device)
    try:
        trained = load_network(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--model_path {config.model_path}: no checkpoint of a network ({error})") from error
    size = count(trained.network)
    network = fold_batch_norm(trained.network) if config.fold else trained.network.eval()
    if config.export:
        if distributed.is_main():
            difference = export_onnx(network, config.export)
            print(f"wrote {config.export}; its logits differ from PyTorch's by at most {difference:.1e}")
        distributed.close()
        return
    network.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    network.to(device)
    if config.predict:
        predict(network, trained, config)
    else:
        test(network, trained, config, size)
    distributed.close()


def load_network(config: Config) -> Trained:
    """The network of the checkpoint, and what is known of it.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    state = checkpoint.load(config.model_path)
    described = state.get("kind") == "network"
    if described:
        facts, weights = dict(state["network"]), state["state_dict"]
        if facts["class"] != "NetworkCIFAR":
            raise ValueError(
                f"--model_path {config.model_path}: holds a {facts['class']}; use test_imagenet.py"
            )
        facts["genotype"] = genotypes.from_dict(facts["genotype"])
        check_flags(config, facts)
        if config.set and (config.predict or config.export):
            raise ValueError(
                f"--set {config.set}: no effect, as the file says how its images were normalised"
            )
    else:
        weights = state.get("state_dict", state)
        facts = {name: getattr(config, name) or DEFAULTS[name] for name in DEFAULTS}
        facts |= {"C": facts["init_channels"], "genotype": genotypes.lookup(str(facts["arch"]))}
        facts |= read_sizes(config.model_path, weights, config.set)
    kept = ("C", "num_classes", "layers", "genotype", "in_channels", "image_size")
    try:
        network = NetworkCIFAR(auxiliary=False, **{name: facts[name] for name in kept})
        load_network_state(network, weights)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--model_path {config.model_path}: {error}") from error
    if not described:
        return Trained(network, None, "", "data", None, None)
    images = state["images"]
    statistics = sets.Statistics(tuple(images["mean"]), tuple(images["std"]))
    if not len(statistics.mean) == len(statistics.std) == network.in_channels:
        raise TypeError(f"mean and std of {len(statistics.mean)} channels for {network.in_channels}")
    folder = state["recipe"].get("data", "data")
    return Trained(
        network, images["set"], images.get("description", ""), folder, images["classes"], statistics
    )


def read_sizes(path: str, weights: Any, name: str | None) -> dict[str, Any]:
    """Classes, channels and image size of a bare state dict for the set `name`; ValueError if it is none."""
    if isinstance(weights, dict):
        plain = {str(key).removeprefix("module."): value for key, value in weights.items()}
        last, first = plain.get("classifier.weight"), plain.get("stem.0.weight")
        if isinstance(last, Tensor) and isinstance(first, Tensor) and (last.dim(), first.dim()) == (2, 4):
            size = {"digits": 8, "fashion_mnist": 28}.get(name or "", 32)
            return {"num_classes": len(last), "in_channels": first.shape[1], "image_size": size}
    raise ValueError(
        f"--model_path {path}: no checkpoint of a network: no classifier.weight and stem.0.weight in it"
    )


def load_images(config: Config, trained: Trained) -> tuple[str, sets.ImageSet, sets.Statistics]:
    """What is tested on, its test images, and what to normalise with; ValueError where they do not suit."""
    network, name = trained.network, config.set or trained.set or "cifar10"
    folder = config.data or (trained.folder if name == trained.set else "data")
    size = network.image_size[0]
    images = sets.load(name, folder, "test", size if name == "folder" else None)
    if images.num_classes != network.num_classes:
        raise ValueError(
            f"--set {name}: {images.num_classes} classes, but the network has {network.num_classes}"
        )
    if images.channels != network.in_channels or images.image_size != size:
        raise ValueError(
            f"--set {name}: {images.image_size} pixels and {images.channels} channels, but the network was "
            f"made for {size} pixels and {network.in_channels} channels"
        )
    images = match_classes(images, trained, name, folder)
    words = f"{name} {folder}" if name == "folder" else name
    return words, images, find_statistics(trained, name, folder)


def find_statistics(trained: Trained, name: str, folder: str) -> sets.Statistics:
    """What to normalise with: what the file says, else the figures of the set `name`."""
    if trained.statistics is not None:
        return trained.statistics
    size = trained.network.image_size[0] if name == "folder" else None
    published = sets.PUBLISHED_STATISTICS.get(name)
    found = published or sets.statistics_of(name, sets.load(name, folder, "train", size))
    if len(found.mean) != trained.network.in_channels:
        channels = trained.network.in_channels
        raise ValueError(f"--set {name}: {len(found.mean)} channels, but the network was made for {channels}")
    return found


def match_classes(images: sets.ImageSet, trained: Trained, name: str, folder: str) -> sets.ImageSet:
    """The images with the network's labels for their classes' names, in whatever order the set has them.

    Where names differ, labels are matched by number, and a line says so; not for two folders (ValueError).
    """
    wanted, given = trained.classes, list(images.classes)
    if wanted is None or wanted == given:
        return images
    if odd := sorted(set(wanted) ^ set(given)):
        if name == trained.set:
            where = "network" if odd[0] in wanted else "folder"
            raise ValueError(f"--data {folder}: class {odd[0]!r} is one of the {where} only")
        distributed.say(f"{name} has other classes than the network ({odd[0]!r}, ...): matched by number")
        return images
    labels = torch.tensor([wanted.index(each) for each in given])
    return sets.ImageSet(images.images, labels[images.labels], tuple(wanted))


def test(network: NetworkCIFAR, trained: Trained, config: Config, size: tuple[int, int]) -> None:
    """Test on all test images, and print and write what was found; `size`: parameters and multiply-adds."""
    name, images, statistics = load_images(config, trained)
    distributed.say(f"{config.model_path}: trained on {trained}; tested on {len(images)} images of {name}")
    device = next(network.parameters()).device
    shard = (distributed.rank(), distributed.world_size())
    batches = sets.batches(
        images.to(device), config.batch_size, statistics, channels_last=config.channels_last, shard=shard
    )
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    steps = -(-len(images) // config.batch_size)
    begin = time.perf_counter()
    precision = loop.choose_precision(device, config.precision)
    errors = loop.measure(network, tqdm(batches, total=steps, unit="step", disable=quiet), precision)
    rate = errors.images / (time.perf_counter() - begin)
    assert errors.images == len(images), "every image is counted once"
    check_finite(torch.tensor(errors.loss), config.model_path)
    distributed.say(f"{errors}")
    distributed.say(
        f"{size[0] / 1e6:.2f} M parameters, {size[1] / 1e6:.0f} M multiply-adds, {rate:.0f} images/s"
    )
    if config.json is not None and distributed.is_main():
        result: dict[str, Any] = {
            "model_path": config.model_path,
            "tested_on": name,
            "trained_on": str(trained),
        }
        result |= {"genotype": genotypes.to_dict(network.genotype), "init_channels": network.C}
        result |= {"layers": len(network.cells), "image_size": network.image_size[0]}
        result |= {"parameters": size[0], "multiply_adds": size[1], "images_per_second": rate}
        write_atomically(config.json, json.dumps(result | errors.as_result(), indent=1) + "\n")


def predict(network: NetworkCIFAR, trained: Trained, config: Config) -> None:
    """Print the most probable classes of each image file; the files are read before any is printed."""
    statistics = find_statistics(trained, config.set or "cifar10", config.data or "data")
    paths, size = config.predict or (), network.image_size[0]
    images = torch.stack([sets.read_image(path, size, network.in_channels) for path in paths])
    device = next(network.parameters()).device
    with torch.no_grad():
        batches = (sets.normalise(x.to(device), statistics) for x in images.split(config.batch_size))
        logits = torch.cat([network(batch)[0] for batch in batches])
    check_finite(logits, config.model_path)
    best = logits.softmax(1).topk(min(3, network.num_classes))
    names = trained.classes or [f"class {label}" for label in range(network.num_classes)]
    for path, shares, labels in zip(paths, best.values, best.indices, strict=True):
        found = [f"{names[i]} {share:.1%}" for share, i in zip(shares.tolist(), labels.tolist(), strict=True)]
        distributed.say(f"{path}: {', '.join(found)}")


if __name__ == "__main__":
    run_script(main, Config)
