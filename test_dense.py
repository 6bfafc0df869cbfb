"""Evaluate a detector or segmentation network of train_dense.py, or draw what it finds in image files.

    python test_dense.py --model_path runs/boxes/model.pt
    python test_dense.py --model_path runs/boxes/model.pt --draw found.png     # the first test images
    python test_dense.py --model_path runs/voc/model.pt --predict street.jpg   # street_found.png, here
    torchrun --nproc_per_node 8 test_dense.py --model_path runs/voc/model.pt --data VOCdevkit

A checkpoint describes its model. It prints precision or mean IoU with an interval, and what the model costs.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.flags import check_new_file, check_packages, check_range, parse, run_script

DRAWN = 12  # images of --draw


@dataclass(frozen=True)
class Config:
    """Evaluate a detector or a segmentation network, with its costs."""

    model_path: str
    """checkpoint of train_dense.py"""
    data: str | None = None
    """folder of the images; default that of the training"""
    test_parts: tuple[str, ...] = ()
    """what is tested: YEAR-SET of VOC, name or JSON file of COCO; default that of the training, or 2007-test
    (masks: 2012-val), val2017"""

    # --- evaluation
    batch_size: int = 16
    """images per step, of all processes together"""
    workers: int = 0
    """processes that decode images, for each process that evaluates"""
    max_megapixels: float = 89.0
    """largest image that is decoded"""
    json: str | None = None
    """write the result to this file, which must not exist"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""

    # --- pictures
    draw: str | None = None
    """draw what is found in the first 12 test images, to this new file"""
    predict: tuple[str, ...] | None = None
    """instead of a test, draw what is found in these image files: NAME_found.png, in the current folder"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the checkpoint is."""
        check_range(self, "batch_size", 1)
        check_range(self, "workers", 0)
        check_range(self, "max_megapixels", 0, 1e6, open_low=True)
        check_new_file("json", self.json)
        check_new_file("draw", self.draw)
        if self.predict == ():
            raise ValueError("--predict: no image file is given")
        if self.draw and Path(self.draw).suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--draw {self.draw}: the name must end in .png or .jpg")
        for name in ("data", "test_parts", "json", "draw") if self.predict else ():
            if getattr(self, name):
                raise ValueError(f"--{name} {getattr(self, name)}: has no effect with --predict")
        names = [picture(path) for path in self.predict or ()]
        for name in names:
            if Path(name).exists() or names.count(name) > 1:
                raise ValueError(f"--predict: {name}, its picture, exists already, or would be written twice")


def picture(path: str) -> str:
    """Where the picture of what is found in an image file goes."""
    return f"{Path(path).stem}_found.png"


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import distributed
from dense import card, loop, pictures, sources
from dense.batches import Scenes
from dense.measure import in_words
from dense.models import costs, costs_in_words, find
from dense.recipes import SEGMENTERS
from dense.sources import SETS
from images import files
from training.card import reading
from training.precision import choose_precision
from utils import say, write_atomically


def main(config: Config) -> None:
    device = distributed.init(config.device)
    files.limit_pixels(config.max_megapixels)
    model, state = card.load(config.model_path)
    model.to(device)
    precision = choose_precision(device, config.precision)
    if config.predict:
        predict(model, state["images"]["classes"], config, precision)
    else:
        test(model, state, config, precision)
    distributed.close()


def test(model: Any, state: dict[str, Any], config: Config, precision: str) -> None:
    """Test on all test images; print, write and draw what was found."""
    with reading("model_path", config.model_path):
        scenes = load_images(state, config)
    facts, classes = state["model"], state["images"]["classes"]
    first = [scenes.source.image(index) for index in range(min(DRAWN, len(scenes)) if config.draw else 0)]
    if len({x.shape for x in first}) > 1:
        raise ValueError(f"--draw {config.draw}: the images differ in size; draw them with --predict")
    say(f"{config.model_path}: {facts['name']}, tested on {len(scenes)} images of {scenes.source.name}")
    result = loop.evaluate(model, scenes, config, precision)
    found = costs(model, facts["image_size"])
    milliseconds = latency(model, scenes, precision)
    say(in_words(result))
    say(f"{costs_in_words(found)} at {facts['image_size']} pixels; {milliseconds:.1f} ms for one image")
    if not distributed.is_main():
        return
    if config.json is not None:
        origin = {"model_path": config.model_path, "tested_on": scenes.source.name, "model": facts}
        origin |= {"network": state["network"], "images": len(scenes), "milliseconds": milliseconds}
        write_atomically(config.json, json.dumps(origin | found | result, indent=1) + "\n")
    if config.draw is not None:
        drawn = [pictures.draw(x, look(model, x, precision), classes, 2) for x in first]
        pictures.save(pictures.grid(drawn), Path(config.draw))


def load_images(state: dict[str, Any], config: Config) -> Scenes:
    """The test images; ValueError where their classes are not those of the model."""
    name, recipe, masks = state["images"]["set"], state["recipe"], state["model"]["name"] in SEGMENTERS
    if name not in SETS:
        raise ValueError(f"--model_path {config.model_path}: trained on {name!r}, which is no set known here")
    if name == "digits" and (config.data or config.test_parts):
        raise ValueError("--data, --test_parts: no effect, as the file was trained on digits")
    check_packages("a test", "torchmetrics", *([] if masks else ["pycocotools"]))
    parts = config.test_parts or tuple(recipe["test_parts"])
    source = sources.load(name, config.data or recipe["data"], parts, masks, train=False)
    if list(source.classes) != list(state["images"]["classes"]):
        raise ValueError(f"--data {config.data or recipe['data']}: its classes are not those of the model")
    return Scenes(source)


def look(model: Any, image: torch.Tensor, precision: str) -> Any:
    """What the model finds in an image uint8 (3, H, W)."""
    device = next(model.parameters()).device
    return find(model, [image.to(device).float() / 255], precision)[0]


def latency(model: Any, scenes: Scenes, precision: str) -> float:
    """Milliseconds for one image alone, with all around the network: the median of 20, after 3."""
    seconds = []
    for index in range(23):
        image = scenes.source.image(index % len(scenes))
        begin = time.perf_counter()
        look(model, image, precision)  # waits for the device, as its result is copied
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds[3:])


def predict(model: Any, classes: list[str], config: Config, precision: str) -> None:
    """Draw and print what is found in image files; all are read before anything is written."""
    paths = config.predict or ()
    images = [pictures.read(path) for path in paths]
    for path, image in zip(paths, images, strict=True) if distributed.is_main() else ():
        found = look(model, image, precision)
        pictures.save(pictures.draw(image, found, classes), Path(picture(path)))
        if isinstance(found, torch.Tensor):
            shares = found.flatten().bincount(minlength=len(classes) + 1) / found.numel()
            names = [
                f"{name} {share:.1%}"
                for name, share in zip(classes, shares[1:].tolist(), strict=True)
                if share
            ]
        else:
            rows = zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True
            )
            names = [
                f"{classes[label - 1]} {score:.0%} at {' '.join(f'{x:.0f}' for x in box)}"
                for score, label, box in rows
                if score >= pictures.SCORE
            ]
        say(f"{path}: {'; '.join(names) or 'nothing'} -> {picture(path)}")


if __name__ == "__main__":
    run_script(main, config)
