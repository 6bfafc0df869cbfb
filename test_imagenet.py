"""Evaluate a checkpoint on class folders of large images, such as ImageNet's.

    python test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    torchrun --nproc_per_node 8 test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    python test_imagenet.py --auxiliary --model_path imagenet_model.pt --data imagenet     # a bare state dict

The folder holds val/CLASS/*.jpg, or the class folders themselves. Checkpoints of this project describe their
network; for others the flags do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

import genotypes
from common import checkpoint, distributed
from common.flags import check_new_file, check_range, run_script
from images import sets
from images.large import LargeImages
from model import NetworkImageNet, count, load_network_state
from training import loop
from training.inference import check_finite, check_flags, fold_batch_norm
from utils import write_atomically

PUBLISHED = {"arch": "RelativeNAS", "init_channels": 46, "layers": 14, "image_size": 224}


@dataclass(frozen=True)
class Config:
    """Evaluate a network on class folders of large images."""

    model_path: str
    """checkpoint: of this project, or a state dict"""
    data: str = "data/imagenet"
    """folder that holds val/ with one folder per class, or these folders themselves"""

    # --- network, where the checkpoint does not describe it
    arch: str | None = None
    """name in genotypes.py, JSON file, or folder of a search; default RelativeNAS"""
    init_channels: int | None = None
    """channels of the first cell; default 46"""
    layers: int | None = None
    """cells; default 14"""
    auxiliary: bool = False
    """accepted, as published command lines give it: an auxiliary head is never evaluated"""

    # --- evaluation
    image_size: int | None = None
    """height and width in pixels that the network sees; default that of the training, or 224"""
    batch_size: int = 256
    """images per step, of all processes together"""
    workers: int = 8
    """processes that decode images, for each process that evaluates"""
    fold: bool = True
    """fold batch-norm into the convolutions, which changes nothing but rounding"""
    json: str | None = None
    """write the result to this file, which must not exist"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    channels_last: bool = True
    """memory layout of images and weights"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "init_channels", 2, 1024)
        check_range(self, "layers", 1, 1024)
        check_range(self, "batch_size", 1)
        check_range(self, "workers", 0)
        check_range(self, "image_size", sets.SMALLEST_IMAGE)
        genotypes.check_arch(self)
        check_new_file("json", self.json)


def main(config: Config) -> None:
    device = distributed.init(config.device)
    try:
        network, classes, trained = load_network(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--model_path {config.model_path}: no checkpoint of a network ({error})") from error
    images = load_images(config, network.image_size[0], network.num_classes, classes)
    network.eval()
    parameters, multiply_adds = count(network)
    network = fold_batch_norm(network) if config.fold else network
    network.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    network.to(device)
    precision = loop.choose_precision(device, config.precision)
    distributed.say(
        f"{config.model_path}: trained on {trained}; tested on {len(images)} images of {config.data}"
    )
    begin = time.perf_counter()
    errors = loop.measure(network, progress(images, config, device), precision)
    assert errors.images == len(images), "every image is counted once"
    check_finite(torch.tensor(errors.loss), config.model_path)
    rate = errors.images / (time.perf_counter() - begin)
    distributed.say(f"{errors}")
    distributed.say(
        f"{parameters / 1e6:.2f} M parameters, {multiply_adds / 1e6:.0f} M multiply-adds, {rate:.0f} images/s"
    )
    if config.json is not None and distributed.is_main():
        result: dict[str, Any] = {"model_path": config.model_path, "data": config.data, "trained_on": trained}
        result |= {"genotype": genotypes.to_dict(network.genotype), "init_channels": network.C}
        result |= {"layers": len(network.cells), "image_size": network.image_size[0]}
        result |= {"parameters": parameters, "multiply_adds": multiply_adds, "images_per_second": rate}
        write_atomically(config.json, json.dumps(result | errors.as_result(), indent=1) + "\n")
    distributed.close()


def load_network(config: Config) -> tuple[NetworkImageNet, list[str] | None, str]:
    """The network of the checkpoint, its classes if it names them, and what it was trained on, in words.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    state = checkpoint.load(config.model_path)
    described = state.get("kind") == "network"
    if described:
        facts, weights = dict(state["network"]), state["state_dict"]
        if facts["class"] != "NetworkImageNet":
            raise ValueError(f"--model_path {config.model_path}: holds a {facts['class']}; use test.py")
        facts["genotype"] = genotypes.from_dict(facts["genotype"])
        check_flags(config, facts)
        trained = f"{state['images']['set']} ({len(state['images']['classes'])} classes)"
    else:
        weights = state.get("state_dict", state)
        facts = {name: getattr(config, name) or PUBLISHED[name] for name in PUBLISHED}
        facts |= {"C": facts["init_channels"], "genotype": genotypes.lookup(str(facts["arch"]))}
        facts |= {"num_classes": count_classes(config.model_path, weights)}
        trained = "images that the file does not name"
    network = NetworkImageNet(
        facts["C"],
        facts["num_classes"],
        facts["layers"],
        auxiliary=False,
        genotype=facts["genotype"],
        image_size=config.image_size or facts["image_size"],
    )
    try:
        load_network_state(network, weights)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--model_path {config.model_path}: {error}") from error
    return network, state["images"]["classes"] if described else None, trained


def count_classes(path: str, weights: Any) -> int:
    """How many classes a bare state dict tells apart; ValueError where it is none."""
    if isinstance(weights, dict):
        for key in ("classifier.weight", "module.classifier.weight"):
            if isinstance(weights.get(key), Tensor) and weights[key].dim() == 2:
                return len(weights[key])
    raise ValueError(f"--model_path {path}: no checkpoint of a network: it has no classifier.weight")


def load_images(config: Config, size: int, num_classes: int, classes: list[str] | None) -> LargeImages:
    """The images to test; ValueError where their classes are not those of the network."""
    folder = Path(config.data).expanduser()
    folder = folder / "val" if (folder / "val").is_dir() else folder
    images = LargeImages(folder, size, training=False)
    if classes is not None and (odd := sorted(set(classes) ^ set(images.classes))):
        where = "network" if odd[0] in classes else "folder"
        raise ValueError(f"--data {folder}: class {odd[0]!r} is one of the {where} only")
    if len(images.classes) != num_classes:
        raise ValueError(f"--data {folder}: {len(images.classes)} classes, but the network has {num_classes}")
    return images


def progress(images: LargeImages, config: Config, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the images, with a progress line."""
    shard = (distributed.rank(), distributed.world_size())
    batches = images.batches(
        config.batch_size,
        device,
        shuffled=False,
        shard=shard,
        workers=config.workers,
        channels_last=config.channels_last,
    )
    quiet = None if distributed.is_main() else True  # None: no bar where stderr is no terminal
    with tqdm(total=len(images), unit="image", disable=quiet) as bar:
        for inputs, labels in batches:
            yield inputs, labels
            bar.update(len(labels) * distributed.world_size())


if __name__ == "__main__":
    run_script(main, Config)
