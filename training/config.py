"""The flags that both training scripts have, and those that both test scripts have.

A script's own configuration extends one of them: with flags of its own, and with other defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import genotypes
from common.flags import check_new_file, check_range, check_save

NO_EFFECT = {  # what has none where images are named or the network is written, instead of a test
    "predict": ("precision", "backend"),
    "export": ("batch_size", "json", "precision", "backend", "device", "channels_last"),
}


@dataclass(frozen=True)
class RunFlags:
    """Where a training is kept, and how it is computed."""

    # --- run
    save: str | None = None
    """new folder for the results; default runs/SET-DATE-TIME"""
    resume: str | None = None
    """go on with the run in this folder"""
    checkpoint_minutes: float = 5.0
    """between two checkpoints; one is also written after each epoch"""
    checkpoint_steps: int | None = None
    """steps between two checkpoints, instead"""
    seed: int = 0
    """of everything random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    deterministic: bool = False
    """a GPU computes the same bits in each run, more slowly; the CPU always does"""
    channels_last: bool = True
    """memory layout of images and weights"""
    threads: int = 1
    """CPU threads of each process; results depend on it, so it is part of the run"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever is trained."""
        check_range(self, "threads", 1, 1024)
        check_range(self, "checkpoint_minutes", 0, 1e6)
        check_range(self, "checkpoint_steps", 1)
        check_range(self, "seed", 0, 2**63 - 1)
        check_save(self)


@dataclass(frozen=True)
class RecipeFlags:
    """The network, and the recipe of its training."""

    # --- network
    arch: str = "RelativeNAS"
    """name in genotypes.py, JSON file, card or checkpoint, folder of a search, or RUN#2: of its front"""
    init_channels: int = 36
    """channels of the first cell"""
    layers: int = 20
    """cells"""
    auxiliary: bool = False
    """train with an auxiliary head"""
    auxiliary_weight: float = 0.4
    """of the auxiliary head's loss"""
    weights: str | None = None
    """checkpoint of the same network to start from; a classifier for other classes starts anew"""

    # --- recipe
    epochs: int = 600
    """passes over the training images"""
    batch_size: int = 128
    """images per step, of all processes together"""
    micro_batches: int = 1
    """parts that a process cuts its share of a batch into, to save memory"""
    learning_rate: float = 0.025
    """at the start"""
    warmup_epochs: int = 0
    """first epochs, in which the learning rate rises linearly"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 3e-4
    """of SGD"""
    label_smoothing: float = 0.0
    """share of the label that is spread over all classes"""
    grad_clip: float = 5.0
    """largest norm of the gradient"""

    max_megapixels: float = 89.0
    """largest image that is decoded, of those in files of their own"""


@dataclass(frozen=True)
class TrainingConfig(RunFlags, RecipeFlags):  # the fields of the last one come first
    """Network, recipe and run of a training; the defaults are the published recipe for CIFAR."""

    compile: bool = False
    """compile the network: minutes at the start, faster steps"""

    def check(self) -> None:
        """Raise ValueError for what cannot work, whatever the images are."""
        super().check()
        check_range(self, "init_channels layers", 1, 1024)
        check_range(self, "epochs micro_batches", 1)
        check_range(self, "batch_size", 2)
        check_range(self, "warmup_epochs weight_decay auxiliary_weight", 0)
        check_range(self, "learning_rate grad_clip", 0, 1e38, open_low=True)
        check_range(self, "momentum label_smoothing", 0, 1)
        check_range(self, "max_megapixels", 0, 1e6, open_low=True)
        genotypes.check_arch(self)
        genotypes.check_path(self)
        if not self.auxiliary and self.auxiliary_weight != 0.4:
            how = "with --no_auxiliary" if type(self).auxiliary else "without --auxiliary"
            raise ValueError(f"--auxiliary_weight {self.auxiliary_weight}: no effect {how}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"--warmup_epochs {self.warmup_epochs}: must be below --epochs {self.epochs}")


@dataclass(frozen=True)
class EvaluationConfig:
    """The checkpoint, its network, and how it is evaluated."""

    model_path: str
    """checkpoint: of this project, or a state dict"""
    data: str | None = None
    """folder that holds the data sets, or the class folders; default that of the training, or data"""

    max_megapixels: float = 89.0
    """largest image that is decoded, of those in files of their own"""

    # --- network, where the checkpoint does not describe it
    arch: str | None = None
    """name in genotypes.py, JSON file, card or checkpoint, folder of a search, or RUN#2: of its front;
    default RelativeNAS"""
    init_channels: int | None = None
    """channels of the first cell; default 36"""
    layers: int | None = None
    """cells; default 20"""
    auxiliary: bool = False
    """accepted, as published command lines give it: an auxiliary head is never evaluated"""

    # --- instead of a test
    predict: tuple[str, ...] | None = None
    """name the classes of these image files, and of those in these folders"""
    export: str | None = None
    """write the network as ONNX to this file, which must not exist"""
    pixels: Literal["uint8", "float32"] = "uint8"
    """what the exported network takes, and normalises itself: bytes from 0 to 255, or float32 from 0 to 1"""

    # --- evaluation
    batch_size: int = 256
    """images per step, of all processes together"""
    backend: Literal["torch", "onnxruntime", "openvino"] = "torch"
    """what computes on the CPU: PyTorch, or another engine, checked against it (packages of their own)"""
    fold: bool = True
    """fold batch-norm into the convolutions, which changes nothing but rounding"""
    json: str | None = None
    """write the result or the predictions to this file, which must not exist"""
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
        check_range(self, "max_megapixels", 0, 1e6, open_low=True)
        genotypes.check_arch(self)
        check_new_file("json", self.json)
        check_new_file("export", self.export)
        if self.predict == ():
            raise ValueError("--predict: no image file is given")
        if self.predict and self.export:
            raise ValueError("--predict and --export: choose one of them")
        if self.pixels != "uint8" and not self.export:
            raise ValueError(f"--pixels {self.pixels}: has no effect without --export")
        instead = "predict" if self.predict else "export" if self.export else ""
        for name in NO_EFFECT.get(instead, ()):
            default = next(field.default for field in fields(self) if field.name == name)
            if getattr(self, name) != default:
                raise ValueError(f"--{name} {getattr(self, name)}: has no effect with --{instead}")
