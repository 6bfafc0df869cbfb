"""Evaluate a checkpoint on class folders of large images, such as ImageNet's.

    python test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    torchrun --nproc_per_node 8 test_imagenet.py --model_path runs/imagenet/model.pt --data imagenet
    python test_imagenet.py --auxiliary --model_path imagenet_model.pt --data imagenet     # a bare state dict

The folder holds val/CLASS/*.jpg, or the class folders themselves. Checkpoints of this project describe their
network; for others the flags do.
"""

from __future__ import annotations

from dataclasses import dataclass
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


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

from common import checkpoint, distributed
from images import files
from images.large import LargeImages
from model import NetworkImageNet, count
from training import card
from training.evaluation import report
from training.inference import fold_batch_norm
from training.weights import facts_of_file, facts_of_flags, load_network, place
from utils import say


def main(config: Config) -> None:
    device = distributed.init(config.device)
    files.limit_pixels(config.max_megapixels)
    with card.reading("model_path", config.model_path):
        network, classes, trained = load(config)
    images = load_images(config, network.image_size[0], network.num_classes, classes)
    size = count(network)
    network = place(fold_batch_norm(network) if config.fold else network, config.channels_last, device)
    say(f"{config.model_path}: trained on {trained}; tested on {len(images)} images of {config.data}")
    batches = images.batches(
        config.batch_size,
        device,
        shuffled=False,
        shard=(distributed.rank(), distributed.world_size()),
        workers=config.workers,
        channels_last=config.channels_last,
    )
    report(network, batches, len(images), size, config, {"data": config.data, "trained_on": trained})
    distributed.close()


def load(config: Config) -> tuple[NetworkImageNet, list[str] | None, str]:
    """The network of the checkpoint, its classes if it names them, and what it was trained on, in words.

    ValueError where flags contradict a checkpoint that describes itself, or where the weights do not fit.
    """
    state = checkpoint.load(config.model_path)
    if state.get("kind") == "network":
        facts, weights = facts_of_file(state, NetworkImageNet, config), state["state_dict"]
        classes = state["images"]["classes"]
        trained = f"{state['images']['set']} ({len(classes)} classes)"
    else:
        weights, classes, trained = state.get("state_dict", state), None, "images that the file does not name"
        facts = facts_of_flags(config, PUBLISHED, weights, "stem0.0.weight")
    facts |= {"in_channels": 3, "image_size": config.image_size or facts["image_size"]}
    return load_network(NetworkImageNet, config, facts, weights), classes, trained


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


if __name__ == "__main__":
    run_script(main, config)
