"""What a checkpoint of a dense model says of itself, and the model that it makes again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import genotypes
from common import checkpoint
from dense.backbone import Backbone
from dense.models import LOSSES, build
from model import Network, NetworkImageNet, load_network_state
from training.card import describe_training
from utils import lacks_memory

KIND = "dense"
LARGEST = 100_000  # of any number that a file gives


def assemble(network: Network, facts: dict[str, Any]) -> nn.Module:
    """The model that `facts` describe: strides, freeze_norm, and what `build` takes."""
    body = Backbone(network, facts["strides"], facts["freeze_norm"])
    names = ("name", "classes", "image_size", "head_channels", "box_scales")
    return build(body=body, **{name: facts[name] for name in names})


def describe(
    model: nn.Module,
    facts: dict[str, Any],
    images: dict[str, Any],
    recipe: dict[str, Any],
    result: dict[str, Any],
) -> dict[str, Any]:
    """The checkpoint of a trained model; `facts` are those of `assemble`, `images` have set and classes."""
    network = {
        "C": recipe["init_channels"],
        "layers": recipe["layers"],
        "genotype": genotypes.to_dict(model.genotype),  # type: ignore[arg-type]
    }
    plain = facts | {name: list(facts[name]) for name in ("strides", "box_scales")}
    return {"kind": KIND, "model": plain, "network": network} | describe_training(
        model, images, recipe, result
    )


def load(path: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model in evaluation mode, and its description. ValueError, in one line, for any other file."""
    state = checkpoint.load(path)
    if state.get("kind") != KIND:
        kind = state.get("kind", "something else")
        raise ValueError(
            f"--model_path {path}: not a checkpoint of {KIND}, but of {kind}; needed is one of train_dense.py"
        )
    try:
        facts, network, classes = state["model"], state["network"], state["images"]["classes"]
        numbers = [
            *facts["strides"],
            network["C"],
            network["layers"],
            facts["image_size"],
            facts["head_channels"],
        ]
        known = facts["name"] in LOSSES and all(0 < float(share) <= 1 for share in facts["box_scales"])
        if not known or not all(0 <= int(n) <= LARGEST for n in numbers):
            raise ValueError("its description is of no model")
        if facts["classes"] != len(classes) or not all(isinstance(name, str) for name in classes):
            raise ValueError("its classes are not those of its model")
        sizes = network["C"], 1, network["layers"], False, genotypes.from_dict(network["genotype"])
        with torch.device("meta"):  # what the file announces is compared before anything is built
            load_network_state(assemble(NetworkImageNet(*sizes), facts), state["state_dict"], assign=True)
        model = assemble(NetworkImageNet(*sizes), facts)
        load_network_state(model, state["state_dict"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if lacks_memory(error):  # which says nothing of the file
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"--model_path {path}: no checkpoint of a dense model ({reason})") from None
    return model.eval(), state
