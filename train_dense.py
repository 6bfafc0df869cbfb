"""Train a detector or a segmentation network of torchvision on the network of a cell.

    python train_dense.py --save runs/boxes                                 # digits in scenes, on the CPU
    python train_dense.py --model lraspp --save runs/masks
    torchrun --nproc_per_node 8 train_dense.py --set voc --data VOCdevkit \\
        --weights runs/imagenet/model.pt --save runs/voc
    python train_dense.py --resume runs/boxes                               # go on after a stop

--model says which task it is: ssdlite, fcos, retinanet and fasterrcnn find boxes, deeplabv3 and lraspp masks.
The test images are looked at once, after the last epoch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import genotypes
from common.flags import check_packages, check_range, parse, run_script
from dense.recipes import SEGMENTERS, with_recipe
from training.config import RunFlags


@dataclass(frozen=True)
class DenseFlags:
    """Images, model and recipe."""

    # --- images
    set: Literal["digits", "voc", "coco"] = "digits"
    """scenes of scikit-learn's digits, PASCAL VOC folders, or COCO-format JSON"""
    data: str = "data"
    """folder with VOC2007, VOC2012; or with annotations/ and the image folders of COCO"""
    train_parts: tuple[str, ...] = ()
    """what trains: YEAR-SET of VOC, name or JSON file of COCO; default 2007-trainval 2012-trainval
    (masks: 2012-train), train2017"""
    test_parts: tuple[str, ...] = ()
    """what is tested once at the end; default 2007-test (masks: 2012-val), val2017"""
    validate: float = 0.0
    """share of the training images held out; they are measured in place of the test images"""
    image_size: int | None = None
    """pixels of the shorter side of an image (ssdlite: of both); default by model and set"""
    workers: int | None = None
    """processes that decode images, for each process that trains; default 8, digits 0"""
    max_megapixels: float = 89.0
    """largest image that is decoded"""

    # --- model
    model: Literal["ssdlite", "fcos", "retinanet", "fasterrcnn", "deeplabv3", "lraspp"] = "ssdlite"
    """torchvision's detector, or segmentation head"""
    strides: tuple[int, ...] = ()
    """of the maps that the model reads, rising; default by model and set"""
    head_channels: int | None = None
    """channels of the feature pyramid and the heads; default 256, digits 64"""
    box_scales: tuple[float, ...] = ()
    """smallest and largest default box of ssdlite, as shares of the image; default 0.2 0.95"""
    background_prior: float | None = None
    """share of background that a segmentation head begins with; default 0, as drawn; digits 0.94"""
    arch: str = "RelativeNAS"
    """name in genotypes.py, JSON file, or folder of a search"""
    init_channels: int | None = None
    """channels of the first cell; default 46, digits 16"""
    layers: int | None = None
    """cells; default 14, digits 8"""
    weights: str | None = None
    """checkpoint of train_imagenet.py, or a published one, whose network becomes the backbone"""
    freeze_norm: bool = False
    """keep the batch-norms of the backbone as they are in the checkpoint"""

    # --- recipe
    epochs: int | None = None
    """passes over the training images; default by model and set"""
    batch_size: int | None = None
    """images per step, of all processes together; default by model and set"""
    learning_rate: float | None = None
    """after the warm-up; default by model and set"""
    warmup_steps: int | None = None
    """first steps, in which the learning rate rises linearly; default 1000, digits 50"""
    schedule: Literal["steps", "cosine", "poly"] | None = None
    """fall of the learning rate; default by model and set"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float | None = None
    """of SGD; default by model"""
    grad_clip: float = 10.0
    """largest norm of the gradient"""


@dataclass(frozen=True)
class Config(RunFlags, DenseFlags):  # the fields of the last one come first
    """Train a detector or a segmentation network on a cell's network; the defaults are small, on digits."""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        super().check()
        check_range(self, "init_channels", 2, 1024)
        check_range(self, "layers", 1, 1024)
        check_range(self, "head_channels", 64, 4096)
        check_range(self, "image_size", 32, 8192)
        check_range(self, "epochs", 1)
        check_range(self, "batch_size", 2)
        check_range(self, "workers warmup_steps weight_decay", 0)
        check_range(self, "learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "momentum", 0, 1)
        check_range(self, "max_megapixels", 0, 1e6, open_low=True)
        check_range(self, "validate background_prior", 0, 0.99)
        genotypes.check_arch(self)
        self._check_effects()
        names = ("torchmetrics",) if self.model in SEGMENTERS else ("torchmetrics", "pycocotools")
        check_packages(f"--model {self.model}", *names)

    def _check_effects(self) -> None:
        if self.head_channels and self.model in (*SEGMENTERS, "ssdlite"):
            raise ValueError(f"--head_channels {self.head_channels}: no effect with --model {self.model}")
        if self.background_prior is not None and self.model not in SEGMENTERS:
            raise ValueError(
                f"--background_prior {self.background_prior}: no effect with --model {self.model}"
            )
        scales, strides = (" ".join(map(str, each)) for each in (self.box_scales, self.strides))
        if self.box_scales and self.model != "ssdlite":
            raise ValueError(f"--box_scales {scales}: no effect with --model {self.model}")
        if self.box_scales and not (
            len(self.box_scales) == 2 and 0 < self.box_scales[0] < self.box_scales[1] <= 1
        ):
            raise ValueError(f"--box_scales {scales}: needed are two shares, the first one smaller")
        if self.head_channels and self.head_channels % 32:
            raise ValueError(f"--head_channels {self.head_channels}: must be a multiple of 32")
        if self.freeze_norm and not self.weights:
            raise ValueError("--freeze_norm: has no effect but harm without --weights")
        maps = {"lraspp": 2, "deeplabv3": 1}.get(self.model, len(self.strides))
        if self.strides and len(self.strides) != maps:
            raise ValueError(f"--strides {strides}: --model {self.model} reads {maps} of them")
        if self.validate and self.test_parts:
            raise ValueError("--test_parts: no effect with --validate")
        if self.set == "digits":
            for name in ("data", "train_parts", "test_parts"):
                if getattr(self, name) != getattr(Config, name):
                    raise ValueError(f"--{name}: no effect with --set digits")


if __name__ == "__main__":
    config = parse(Config)  # first: what is imported below takes seconds

import torch

from common import distributed
from common.run_folder import RunFolder, new_name, resume
from dense import card as dense_card
from dense import loop, sources
from dense.batches import Scenes, augmentation
from dense.measure import in_words
from dense.models import LOSSES, costs, costs_in_words
from images import files
from images.sets import split
from model import NetworkImageNet
from training import card
from training.optimizer import sgd
from training.precision import choose_kernels, choose_precision
from training.run import TrainingRun
from training.weights import load_weights, place
from utils import derive_seed


def main(config: Config) -> None:
    if config.resume:
        config = resume(
            config,
            free=("data", "device", "workers", "checkpoint_minutes", "checkpoint_steps", "max_megapixels"),
        )
    device = distributed.init(config.device)
    choose_kernels(device, config.deterministic, one_size=False)
    config = with_recipe(config)
    torch.set_num_threads(config.threads)
    train, measured = load(config)
    facts = facts_of(config, len(train.source.classes))
    model, origin = draw(config, facts, device)
    run = new_run(config, model, train, measured)
    run.origin = origin
    size = start(run, config, train, measured, config.arch)
    with run.folder.working("train_dense.py"):
        loop.train(run, config, train, measured if config.validate else None)
        finish(run, config, facts, size, measured)


def new_run(config: Config, model: Any, train: Scenes, measured: Scenes) -> TrainingRun:
    """The run at its beginning, in its folder, which is not made yet."""
    return TrainingRun(
        kind="train_dense",
        images=f"{train.source.fingerprint()} {measured.source.fingerprint()}",
        folder=RunFolder(config.resume or config.save or new_name(f"{config.set}-{config.model}")),
        network=model,
        optimizer=sgd(model, config, config.learning_rate or 0.0),
        precision=choose_precision(next(model.parameters()).device, config.precision),
        measures=("loss", *LOSSES[config.model]),
    )


def load(config: Config) -> tuple[Scenes, Scenes]:
    """What trains, and what is measured: test images, or held-out ones. ValueError where they do not suit."""
    files.limit_pixels(config.max_megapixels)
    masks = config.model in SEGMENTERS
    everything = sources.load(config.set, config.data, config.train_parts, masks, train=True)
    if config.validate:
        kept, held_out = split(len(everything), 1 - config.validate, config.seed)
        train, measured = everything.subset(kept.tolist()), everything.subset(held_out.tolist())
    else:
        train = everything
        measured = sources.load(config.set, config.data, config.test_parts, masks, train=False)
    train = train.with_boxes()
    if train.classes != measured.classes:
        raise ValueError(f"--data {config.data}: training and test images have different classes")
    for part, each in (("training", train), ("held-out" if config.validate else "test", measured)):
        if each.boxes is not None and not any((~boxes.ignored).any() for boxes in each.boxes):
            raise ValueError(f"--data {config.data}: no {part} image has an object that counts")
    smallest = 2 * distributed.world_size()
    if not smallest <= (config.batch_size or 0) <= len(train):
        raise ValueError(
            f"--batch_size {config.batch_size}: allowed are {smallest} (two images for each process) to "
            f"{len(train)}, all training images"
        )
    transform = augmentation(config.model, config.image_size or 0, config.set == "digits")
    return Scenes(train, transform, config.seed), Scenes(measured)


def facts_of(config: Config, classes: int) -> dict[str, Any]:
    """What `dense.card.assemble` builds the model from."""
    facts = {name: getattr(config, name) for name in ("strides", "freeze_norm", "image_size", "box_scales")}
    return facts | {"name": config.model, "classes": classes, "head_channels": config.head_channels or 0}


def draw(config: Config, facts: dict[str, Any], device: torch.device) -> tuple[Any, dict[str, Any] | None]:
    """The model with weights drawn from the seed, the same in every process, and the origin of --weights.

    The file is not read where a run goes on from a checkpoint, which has the weights.
    """
    origin, begun = None, config.resume and any(Path(config.resume).glob("checkpoint*.pt"))
    with torch.random.fork_rng(devices=[]):  # torch draws weights from its global generator only
        torch.manual_seed(derive_seed(config.seed, "weights"))
        sizes = config.init_channels or 0, 1, config.layers or 0, False, genotypes.lookup(config.arch)
        try:
            network = NetworkImageNet(*sizes)
        except ValueError as error:
            raise ValueError(f"--arch {config.arch}: {error}") from None
        if config.weights and not begun:
            origin = load_weights(network, cast(Any, config), [])
        try:
            model: Any = dense_card.assemble(network, facts)
        except ValueError as error:
            raise ValueError(f"--strides {' '.join(map(str, config.strides))}: {error}") from None
        if config.background_prior:
            model.begin_with_background(config.background_prior)
    return place(model, config.channels_last, device), origin


def start(run: TrainingRun, config: Config, train: Scenes, measured: Scenes, backbone: str) -> dict[str, int]:
    """Load the checkpoint of the run that --resume names, or make a folder; begin the log. What it costs."""
    problem = run.load_checkpoint() if config.resume else None
    if not config.resume:
        run.folder.create(config)
    log = run.folder.start_log()
    if problem:
        log.warning(problem)
    if run.origin is not None and run.steps == 0 and not run.folder.checkpoint.exists():
        log.info(f"backbone from {config.weights}")
        run.save()  # from here on the run does not need the file
    size = costs(run.network, config.image_size or 0)
    part = "held out" if config.validate else "test"
    log.info(
        f"{run.folder.path}: {config.model} on {backbone}, {costs_in_words(size)} at {config.image_size} "
        f"pixels; {distributed.world_size()} x {run.device.type}, {run.precision}; {train.source.name}, "
        f"{len(train)} images train, {len(measured)} {part}"
    )
    return size


def finish(
    run: TrainingRun, config: Config, facts: dict[str, Any], size: dict[str, int], measured: Scenes
) -> None:
    """Measure the weights of the last epoch once; write model.pt and card.json."""
    run.folder.write_table("epochs.csv", run.rows)
    path, log = run.folder.path / "model.pt", run.folder.log
    if distributed.broadcast_object(path.exists()):
        log.info(f"the run is finished: {path}")
        return
    if not all(tensor.isfinite().all() for tensor in run.network.state_dict().values()):
        raise run.diverged("weights of the trained model are not finite")
    part = "validation_" if config.validate else "test_"
    found = loop.evaluate(run.network, measured, config, run.precision)
    result = {f"{part}{key}": value for key, value in found.items()} | {f"{part}images": len(measured)}
    log.info(f"{part.strip('_')}: {in_words(result, part)}, {len(measured)} images")
    if distributed.is_main():
        images = {"set": config.set, "classes": measured.source.classes}
        state = dense_card.describe(run.network, facts, images, dataclasses.asdict(config), result)
        card.write(run, config, state, size, "train_dense.py")
    log.info(f"wrote {path}; evaluate it with: test_dense.py --model_path {path}")


if __name__ == "__main__":
    run_script(main, config)
