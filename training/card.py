"""What a checkpoint says of itself: the description in model.pt, and card.json, the same without weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import nn

import genotypes
from common import checkpoint, distributed
from common.flags import PLACES
from common.words import counted
from model import Network, count
from pictures import ancestry, tables
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
    described = describe(network, images=images, recipe=recipe)
    return {"kind": "network", **described, **describe_training(network, images, recipe, result)}


def describe(network: Network, *, images: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """What `describe_network` says before anything is measured, without the weights."""
    return {
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
        **_origin(images, recipe),
    }


def describe_training(
    network: nn.Module, images: dict[str, Any], recipe: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """What the checkpoint of any network says of its training, and the weights."""
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return {"state_dict": weights, **_origin(images, recipe), "result": result}


def _origin(images: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": {key: list(value) if isinstance(value, tuple) else value for key, value in images.items()},
        "recipe": {name: value for name, value in recipe.items() if name not in PLACES},
        "versions": {"torch": str(torch.__version__), "pairnas": checkpoint.VERSION},
    }


def so_far(state: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of a training that is not finished, as that of its network, with no result yet.

    Its weights are those that would be tested. ValueError for runs begun before they described themselves.
    """
    if not state.get("description"):
        raise ValueError("of an older version, which does not describe its network; go on with its run first")
    described, weights = state["description"], state.get("average", state["network"])
    done = f"after {state['epoch']} of {described['recipe']['epochs']} epochs"
    done += f" and {state['step']} steps" if state["step"] else ""
    return {"kind": "network", "state_dict": weights, **described, "result": {}, "so_far": done}


def check_flags(config: Any, facts: dict[str, Any]) -> None:
    """Raise ValueError for a flag that contradicts `facts`, the entry "network" of a checkpoint."""
    for name, value in {"init_channels": facts["C"], "layers": facts["layers"]}.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(f"--{name} {getattr(config, name)}: the network in the file has {value}")
    if config.arch is None:
        return
    given, stored = genotypes.lookup(config.arch), genotypes.from_dict(facts["genotype"])
    if given != stored:
        differ = genotypes.difference(stored, given)
        raise ValueError(f"--arch {config.arch}: the network in the file has another cell ({differ})")


def check_description(state: Mapping[str, Any]) -> None:
    """Raise LookupError or TypeError where what a file says of its network and images is of another kind."""
    facts, images = state["network"], state["images"]
    for part in (facts, images):
        if not isinstance(part, dict):  # a tensor would be indexed by a name, and warn
            raise TypeError(f"it has a {type(part).__name__} where a description belongs")
    kinds: list[tuple[Any, type | UnionType]] = [
        *((facts[name], int) for name in ("C", "num_classes", "layers", "in_channels")),
        *((pixels, int) for pixels in facts["image_size"]),
        *((number, int | float) for name in ("mean", "std") for number in images.get(name, ())),
        *((name, str) for name in (images["set"], images.get("description") or "", *images["classes"])),
    ]
    for value, kind in kinds:
        if not isinstance(value, kind):
            raise TypeError(f"it has a {type(value).__name__} where a number or a name belongs")


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
    if found := found_by_search(config.arch):
        state["found"] = found
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
    path = run.folder.path / "card.json"
    write_atomically(path, json.dumps(card, indent=1, allow_nan=False) + "\n")
    try:
        checkpoint.save(run.folder.path / "model.pt", state)  # last: it says that the run is finished
    except OSError:  # a full disk: a card alone would tell of a network that is not there
        path.unlink(missing_ok=True)
        raise


def found_by_search(arch: str | None) -> dict[str, Any] | None:
    """Where the cell of `--arch` came from, if that is the folder of a search whose tables can be read."""
    if not arch or arch in genotypes.names() or not tables.is_run(genotypes.run_of(arch)):
        return None
    try:
        run = tables.read_run(genotypes.run_of(arch))
        cell = genotypes.to_json(genotypes.lookup(arch))
        return {"search": Path(arch).name} | ancestry.description(run.history, cell, run.config)
    except ValueError:  # a training that is over is not lost for a table that somebody changed
        return None


def command(program: str, config: Any) -> str:
    """The command line that makes `config`: the flags that differ from their defaults."""
    words = distributed.command(program)
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


def train_on(program: str, stored: Any, asked: Any) -> str:
    """What to do instead of `--resume --epochs`: the command, where the run is finished.

    `stored` and `asked` are its settings and those asked for.
    """
    if asked.epochs == stored.epochs:
        return ""
    model = Path(asked.resume, "model.pt")
    if not model.is_file():
        return "; the learning rate follows --epochs: let the run end, then train on from its weights"
    epochs = asked.epochs - stored.epochs if asked.epochs > stored.epochs else asked.epochs
    warmup = min(stored.warmup_epochs, epochs - 1)
    longer = dataclasses.replace(
        stored, weights=str(model), epochs=epochs, warmup_epochs=warmup, save=None, resume=None
    )
    more = counted(epochs, "epoch")
    return f"; to train its network for {more} more, in a new run: {command(program, longer)}"


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
