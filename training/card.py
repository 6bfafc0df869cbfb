"""What a checkpoint says of itself: the description in model.pt, and card.json, the same without weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shlex
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import genotypes
from common import checkpoint, distributed
from common.flags import PLACES
from model import Network, count
from training.run import TrainingRun
from utils import write_atomically


def describe_network(
    network: Network,
    *,
    images: dict[str, Any],
    recipe: dict[str, Any],
    result: dict[str, Any],
) -> dict[str, Any]:
    """The checkpoint of a trained network; `checkpoint.load(path, "network")` reads it.

    `images`: set, classes (names by label), mean and std (of each channel, in [0, 1]). `recipe`: the flags of
    the training. `result`: what was measured, and on what. The rest is read off the network.
    """
    return {
        "kind": "network",
        "network": {
            "class": type(network).__name__,
            "C": network.C,
            "num_classes": network.num_classes,
            "layers": len(network.cells),
            "auxiliary": hasattr(network, "auxiliary_head"),
            "genotype": genotypes.to_dict(network.genotype),
            "in_channels": network.in_channels,
            "image_size": list(network.image_size),
        },
        **describe_training(network, images, recipe, result),
    }


def describe_training(
    network: nn.Module, images: dict[str, Any], recipe: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """What the checkpoint of any network says of its training, and the weights."""
    return {
        "state_dict": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
        "images": {key: list(value) if isinstance(value, tuple) else value for key, value in images.items()},
        "recipe": {name: value for name, value in recipe.items() if name not in PLACES},
        "result": result,
        "versions": {"torch": str(torch.__version__), "pairnas": checkpoint.VERSION},
    }


def check_flags(config: Any, facts: dict[str, Any]) -> None:
    """Raise ValueError for a flag that contradicts `facts`, the entry "network" of a checkpoint."""
    for name, value in {"init_channels": facts["C"], "layers": facts["layers"]}.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(f"--{name} {getattr(config, name)}: the network in the file has {value}")
    if config.arch is None:
        return
    given, stored = genotypes.lookup(config.arch), genotypes.from_dict(facts["genotype"])
    if given != stored:
        differ = genotypes.difference(given, stored)
        raise ValueError(f"--arch {config.arch}: the network in the file has another cell ({differ})")


@contextlib.contextmanager
def reading(flag: str, path: str) -> Iterator[None]:
    """Around reading a description: ValueError names the file where the entries are not a network's."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"--{flag} {path}: no checkpoint of a network ({error})") from None


def write_model(
    run: TrainingRun, config: Any, images: dict[str, Any], result: dict[str, Any], program: str
) -> None:
    """model.pt, which describes itself, and card.json, the same in words and numbers without the weights."""
    recipe = dataclasses.asdict(config)
    state = describe_network(run.kept, images=images, recipe=recipe, result=result)
    parameters, multiply_adds = count(run.kept)
    write(run, config, state, {"parameters": parameters, "multiply_adds": multiply_adds}, program)


def write(run: TrainingRun, config: Any, state: dict[str, Any], costs: dict[str, Any], program: str) -> None:
    """The files of a finished run: model.pt with the description `state`, and card.json."""
    if run.origin is not None:
        state["origin"] = run.origin
    card = {name: value for name, value in state.items() if name != "state_dict"}
    card |= {
        **costs,
        "command": command(program, config),
        "processes": distributed.world_size(),
        "hardware": hardware(run.device),
        "training_seconds": round(sum(row["seconds"] for row in run.rows)),
    }
    write_atomically(run.folder.path / "card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")
    checkpoint.save(run.folder.path / "model.pt", state)  # last: it says that the run is finished


def command(program: str, config: Any) -> str:
    """The command line that makes `config`: the flags that differ from their defaults."""
    words = [f"python {program}"]
    if distributed.world_size() > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
        nodes = f"--nnodes {distributed.world_size() // here} " if distributed.world_size() > here else ""
        words = [f"torchrun {nodes}--nproc_per_node {here} {program}"]
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value == entry.default or entry.name in PLACES:
            continue
        if isinstance(entry.default, bool):  # --flip, which has a third value, takes True or False
            words.append(f"--{entry.name}" if value else f"--no_{entry.name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(f"--{entry.name} {shlex.join(str(each) for each in values)}")
    return " ".join(words)


def hardware(device: torch.device) -> str:
    """What a process ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} CPU threads"


def processor() -> str:
    """The name of this machine's processor."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return name
