"""A detector on a cell's network beside the same one on torchvision's MobileNetV2 of equal multiply-adds.

    python benchmarks/dense_backbone.py --out runs/dense                   # goes on where it was stopped
    python benchmarks/dense_backbone.py --out runs/dense --json out.json   # the same, then the record

Both train from scratch on the scenes of digits, by the recipe of train_dense.py, and are tested once.
MobileNetV2 has the width whose multiply-adds come closest. A seed gives start values and batches. The folder
gets a run for each backbone and seed; a training that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models._utils import IntermediateLayerGetter

import genotypes
import train_dense
from common import distributed
from common.flags import check_range, parse, run_script
from common.run_folder import read_settings
from dense.backbone import Backbone
from dense.batches import Scenes
from dense.loop import evaluate, train
from dense.models import build, costs
from dense.recipes import with_recipe
from model import NetworkImageNet, multiply_adds
from utils import derive_seed, say, write_atomically

LAYERS = {8: 6, 16: 13, 32: 17}  # of MobileNetV2's features, by stride


@dataclass(frozen=True)
class Config:
    """Compare two backbones of a detector."""

    out: str
    """folder for the trainings; one that was begun goes on"""
    seeds: int = 5
    """trainings of each backbone"""
    first_seed: int = 0
    """of the seeds"""
    arch: str = "RelativeNAS"
    """cell of the first backbone: a name in genotypes.py, or a JSON file"""
    model: Literal["ssdlite", "fcos"] = "ssdlite"
    """the detector"""
    epochs: int | None = None
    """passes over the training images; default that of train_dense.py"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "seeds epochs", 1)
        check_range(self, "first_seed", 0)
        genotypes.check_arch(self)
        evidence.check_output(self.json)


class MobileNet(nn.Module):
    """MobileNetV2's maps at strides 8, 16 and 32."""

    strides = (8, 16, 32)

    def __init__(self, width: float) -> None:
        super().__init__()
        features = mobilenet_v2(width_mult=width).features
        self.features = IntermediateLayerGetter(
            features, {str(LAYERS[s]): f"stride{s}" for s in self.strides}
        )
        shapes = self.features.eval()(torch.zeros(1, 3, 64, 64))
        self.channels = tuple(x.shape[1] for x in shapes.values())
        self.train()

    def forward(self, images: torch.Tensor) -> Any:
        return self.features(images)


def body_of(name: str, settings: Any) -> Any:
    """The backbone "cell", or "mobilenet_v2" of the width whose multiply-adds are closest to the cell's."""
    sizes = settings.init_channels, 1, settings.layers, False, genotypes.lookup(settings.arch)
    cell = Backbone(NetworkImageNet(*sizes), settings.strides)
    if name == "cell":
        return cell
    image = torch.zeros(1, 3, settings.image_size, settings.image_size)
    wanted = multiply_adds(cell, image)
    widths, state = np.arange(0.1, 1.5, 0.025).tolist(), torch.get_rng_state()

    def above(width: float) -> int:
        return multiply_adds(MobileNet(width), image) - wanted

    place = bisect.bisect(widths, 0, hi=len(widths) - 1, key=above)  # multiply-adds rise with the width
    closest = min(widths[max(0, place - 1) : place + 1], key=lambda width: abs(above(width)))
    torch.set_rng_state(state)  # as if nothing had been drawn
    return MobileNet(closest)


def measure(name: str, seed: int, config: Config, device: torch.device) -> dict[str, Any]:
    """Train and test a backbone with one seed, or go on with that; what came of it is kept in its folder."""
    folder = Path(config.out) / f"{name}-{seed}"
    result = folder / "result.json"
    asked = train_dense.Config(model=config.model, arch=config.arch, epochs=config.epochs, seed=seed)
    settings = with_recipe(dataclasses.replace(asked, save=str(folder), strides=MobileNet.strides))
    begun = folder.exists()
    if begun:
        stored = read_settings(folder, train_dense.Config, "out")
        places: dict[str, Any] = {  # that may be others now
            "save": settings.save,
            "checkpoint_steps": settings.checkpoint_steps,
        }
        if dataclasses.replace(stored, **places) != settings:
            raise ValueError(f"--out {folder}: was begun with other settings")
    if result.is_file():
        return json.loads(result.read_text())
    settings = dataclasses.replace(settings, resume=str(folder)) if begun else settings
    torch.set_num_threads(settings.threads)
    scenes, tested = train_dense.load(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        body = body_of(name, settings)
        size = settings.image_size or 0
        model: Any = build(config.model, body, 10, size, settings.head_channels or 0, settings.box_scales).to(
            device
        )
    run = train_dense.new_run(settings, model, scenes, tested)
    train_dense.start(run, settings, scenes, tested, name)
    try:
        train(run, settings, scenes)
        found = costs(model, size) | evaluate(model, Scenes(tested.source), settings)
        found |= {"seconds": sum(row["seconds"] for row in run.rows), "loss": run.rows[-1]["loss"]}
        write_atomically(result, json.dumps(found, indent=1) + "\n")
    finally:
        run.folder.unlock()
    return found


def main(config: Config) -> None:
    device = distributed.init("cpu")
    Path(config.out).mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"cell": [], "mobilenet_v2": []}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for name, rows in found.items():
            rows.append(measure(name, seed, config, device))
            say(
                f"{name}, seed {seed}: AP at IoU 0.5 {rows[-1]['ap50']:.2%}, COCO's {rows[-1]['coco_ap']:.2%}"
            )
    summary: dict[str, Any] = {}
    for name, rows in found.items():
        summary[name] = {
            "costs": {key: rows[0][key] for key in rows[0] if "parameters" in key or "multiply" in key},
            **{
                key: evidence.spread([row[key] for row in rows])
                for key in ("ap50", "coco_ap", "seconds", "loss")
            },
            "intervals": [row["ap50_interval"] for row in rows],
        }
        spread = summary[name]["ap50"]
        sd = "-" if spread["sd"] is None else f"{spread['sd']:.2%}"
        print(
            f"{name}: AP at IoU 0.5 {spread['mean']:.2%}, sd {sd}, n {spread['n']}; {summary[name]['costs']}"
        )
    evidence.write(config.json, evidence.provenance(asdict(config)) | {"backbones": summary})
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
