"""Evaluate a checkpoint on class folders of large images, such as ImageNet's; name images; export.

    python test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    torchrun --nproc_per_node 8 test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    python test_imagenet.py --model_path runs/imagenet/model.pt --predict cat.jpg photos --json found.json
    python test_imagenet.py --model_path runs/imagenet/model.pt --export imagenet.onnx
    python test_imagenet.py --auxiliary --model_path imagenet_model.pt --data imagenet     # a bare state dict

The folder holds val/CLASS/*.jpg, or the class folders themselves. Checkpoints of this project describe their
network; for others the flags do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.flags import check_range, parse, run_script
from images.files import SMALLEST_IMAGE
from training.config import EvaluationConfig

PUBLISHED = {"arch": "RelativeNAS", "init_channels": 46, "layers": 14, "image_size": 224}


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """Evaluate a network on class folders of large images."""

    data: str = "data/imagenet"
    """folder that holds val/ with one folder per class, or these folders themselves"""
    init_channels: int | None = None
    """channels of the first cell; default 46"""
    layers: int | None = None
    """cells; default 14"""

    # --- images
    image_size: int | None = None
    """height and width in pixels that the network sees; default that of the training, or 224"""
    workers: int = 8
    """processes that decode images, for each process that evaluates"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        check_range(self, "init_channels", 2, 1024)
        check_range(self, "workers", 0)
        check_range(self, "image_size", SMALLEST_IMAGE)
        super().check()
        for name in ("data", "workers"):
            if (self.predict or self.export) and getattr(self, name) != getattr(Config, name):
                instead = "predict" if self.predict else "export"
                raise ValueError(f"--{name} {getattr(self, name)}: has no effect with --{instead}")


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import os

import torch

from common import distributed
from images import files, large
from images.sets import IMAGENET_STATISTICS
from model import NetworkImageNet, count
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
    network, size, side = loaded.network, count(loaded.network), loaded.network.image_size[0]
    loaded.network = fold_batch_norm(network) if config.fold else network.eval()
    if config.export:
        how = f"scale the shorter side to {side * 8 // 7} pixels and crop the middle {side}x{side}"
        export(loaded, IMAGENET_STATISTICS, config, how)
    else:
        place(loaded.network, config.channels_last, device)
        if config.predict:
            predict(loaded, IMAGENET_STATISTICS, partial(large.read_image, image_size=side), config)
        else:
            test(loaded, config, size, device)
    distributed.close()


def test(loaded: Loaded, config: Config, size: tuple[int, int], device: torch.device) -> None:
    """Test on all images, and print and write what was found; `size`: parameters and multiply-adds."""
    images = load_images(config, loaded)
    say(f"{config.model_path}: trained on {loaded}; tested on {len(images)} images of {config.data}")
    batches = images.batches(
        config.batch_size,
        device,
        shuffled=False,
        shard=(distributed.rank(), distributed.world_size()),
        workers=config.workers,
        channels_last=config.channels_last,
    )
    origin = {"data": config.data, "trained_on": str(loaded)}
    report(loaded.network, batches, len(images), size, config, origin)


def load(config: Config) -> Loaded:
    """The network of the checkpoint, and what is known of it; seen at --image_size, where that is given.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    loaded, state = load_described((NetworkImageNet,), config, config.image_size)
    if loaded is None:
        weights = state.get("state_dict", state)
        facts = facts_of_flags(config, PUBLISHED, weights, "stem0.0.weight")
        facts |= {"in_channels": 3, "image_size": config.image_size or facts["image_size"]}
        return Loaded(load_network(NetworkImageNet, config, facts, weights))
    return loaded


def load_images(config: Config, loaded: Loaded) -> large.LargeImages:
    """The images to test; ValueError where their classes are not those of the network."""
    folder = Path(os.path.expanduser(config.data))
    folder = folder / "val" if (folder / "val").is_dir() else folder
    images = large.LargeImages(folder, loaded.network.image_size[0], training=False)
    classes, num_classes = loaded.classes, loaded.network.num_classes
    if classes is not None and (odd := sorted(set(classes) ^ set(images.classes))):
        where = "network" if odd[0] in classes else "folder"
        raise ValueError(f"--data {folder}: class {odd[0]!r} is one of the {where} only")
    if len(images.classes) != num_classes:
        raise ValueError(f"--data {folder}: {len(images.classes)} classes, but the network has {num_classes}")
    return images


if __name__ == "__main__":
    run_script(main, config)
