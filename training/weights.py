"""The weights that a network starts from: drawn from a seed, or those in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import genotypes
import operations
from common import checkpoint
from images.sets import Statistics
from model import Network, load_network_state
from training import card
from training.config import EvaluationConfig, TrainingConfig
from utils import derive_seed, lacks_memory

LARGEST_IMAGE = 4096  # pixels a side that a checkpoint may want images to be resized to
MOST_EDGES = 100_000
AnyNetwork = TypeVar("AnyNetwork", bound=Network)
Module = TypeVar("Module", bound=nn.Module)
TRAININGS = ("train", "train_imagenet")  # kinds of checkpoints of trainings that are not finished


def draw_network(
    kind: type[AnyNetwork], config: TrainingConfig, num_classes: int, device: torch.device, **images: int
) -> AnyNetwork:
    """The network with weights drawn from the seed, the same in every process.

    `images` says what they are: in_channels, image_size.
    """
    genotype = genotypes.lookup(config.arch)
    used = {operation for cell in genotypes.cells_of(genotype) for operation, _ in getattr(genotype, cell)}
    try:
        kind.check_genotype(genotype)
        for own in sorted(used - set(genotypes.OPERATIONS)):  # a search tried it, maybe as it was before
            operations.weights_of(own)
    except ValueError as error:
        raise ValueError(f"--arch {config.arch}: {error}") from None
    with torch.random.fork_rng(devices=[]):  # torch draws weights from its global generator only
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = kind(config.init_channels, num_classes, config.layers, config.auxiliary, genotype, **images)
    return place(network, config.channels_last, device)


def place(network: Module, channels_last: bool, device: torch.device) -> Module:
    """The network itself, on its device and in its memory layout."""
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return network.to(device)


def load_network(
    kind: type[AnyNetwork], config: EvaluationConfig, facts: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> AnyNetwork:
    """The network that `facts` describe, without auxiliary head, with the checkpoint's `weights`.

    ValueError names the checkpoint where there is no such network, or where the weights do not fit.
    """
    needed = ("C", "num_classes", "layers", "genotype", "in_channels", "image_size")
    try:
        # Nothing is allocated for what the facts claim: the tensors of the file itself become the network.
        _check_claims(facts, weights)
        with torch.device("meta"):
            network = kind(auxiliary=False, **{name: facts[name] for name in needed})
        load_network_state(network, weights, assign=True)
    except (ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise ValueError(f"--model_path {config.model_path}: {error}") from error
    return network


def _check_claims(facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a network that is long in building even without memory, or wants huge images."""
    layers, size = facts["layers"], facts["image_size"]
    if layers > len(weights):
        raise ValueError(f"{layers} layers, but only {len(weights)} tensors")
    if layers * sum(map(len, facts["genotype"])) > MOST_EDGES:
        raise ValueError(f"{layers} layers of this cell are more than {MOST_EDGES} edges")
    if max(size if isinstance(size, Sequence) else [size]) > LARGEST_IMAGE:
        raise ValueError(f"images of {size} pixels; allowed are {LARGEST_IMAGE} a side")


@dataclass
class Loaded:
    """A network from a file, and the file's entries without the weights: none for a bare state dict."""

    network: Network
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def set(self) -> str | None:
        """The data set that it was trained on."""
        return self.card["images"]["set"] if self.card else None

    @property
    def classes(self) -> list[str] | None:
        """Their names by label."""
        return self.card["images"]["classes"] if self.card else None

    @property
    def statistics(self) -> Statistics | None:
        """What its images were normalised with."""
        images = self.card.get("images")
        return Statistics(tuple(images["mean"]), tuple(images["std"])) if images else None

    def names(self) -> list[str]:
        """What to call its classes."""
        return self.classes or [f"class {label}" for label in range(self.network.num_classes)]

    def __str__(self) -> str:
        if not self.card:
            return "images that the file does not name"
        number = f"{len(self.names())} classes" if self.set == "folder" else None
        known = (number, self.card["images"].get("description"), self.card.get("so_far"))
        words = "; ".join(text for text in known if text)
        return f"{self.set} ({words})" if words else str(self.set)


def load_described(
    kinds: Sequence[type[Network]], config: EvaluationConfig, image_size: int | None = None
) -> tuple[Loaded | None, dict[str, Any]]:
    """The network, one of `kinds`, of a checkpoint that describes itself, or None; and all in the file.

    `image_size` is another one than that of the training. ValueError where flags contradict the file, or
    where the weights do not fit.
    """
    state = checkpoint.load(config.model_path)
    if state.get("kind") in TRAININGS:
        try:
            state = card.so_far(state)
        except ValueError as error:
            raise ValueError(f"--model_path {config.model_path}: {error}") from None
    if state.get("kind") != "network":
        return None, state
    card.check_description(state)
    kind = next((kind for kind in kinds if kind.__name__ == state["network"]["class"]), kinds[0])
    facts = facts_of_file(state, kind, config)
    facts["image_size"] = image_size or facts["image_size"]
    network = load_network(kind, config, facts, state["state_dict"])
    loaded = Loaded(network, {name: entry for name, entry in state.items() if name != "state_dict"})
    statistics = loaded.statistics
    assert statistics is not None
    if not len(statistics.mean) == len(statistics.std) == network.in_channels:
        raise TypeError(f"mean and std of {len(statistics.mean)} channels for {network.in_channels}")
    return loaded, state


def facts_of_file(state: Mapping[str, Any], kind: type[Network], config: EvaluationConfig) -> dict[str, Any]:
    """What a checkpoint that describes itself says of its network; ValueError where flags contradict it."""
    facts = dict(state["network"])
    if facts["class"] != kind.__name__:
        other = "test_imagenet.py" if facts["class"] == "NetworkImageNet" else "test.py"
        raise ValueError(f"--model_path {config.model_path}: holds a {facts['class']}; use {other}")
    try:
        card.check_flags(config, facts)
        return facts | {"genotype": genotypes.from_dict(facts["genotype"])}
    except ValueError as error:
        raise ValueError(f"--model_path {config.model_path}: {error}") from None


def facts_of_flags(
    config: EvaluationConfig, published: Mapping[str, Any], weights: Any, stem: str
) -> dict[str, Any]:
    """What flags (else `published`) and a bare state dict say of its network; ValueError if it is none."""
    facts = {name: getattr(config, name) or value for name, value in published.items()}
    facts |= {"C": facts["init_channels"], "genotype": genotypes.lookup(facts["arch"])}
    if isinstance(weights, dict):
        plain = {str(key).removeprefix("module."): value for key, value in weights.items()}
        last, first = plain.get("classifier.weight"), plain.get(stem)
        if isinstance(last, Tensor) and isinstance(first, Tensor) and (last.dim(), first.dim()) == (2, 4):
            return facts | {"num_classes": len(last), "in_channels": first.shape[1]}
    raise ValueError(
        f"--model_path {config.model_path}: no checkpoint of a network: no classifier.weight and {stem} in it"
    )


def load_weights(network: Network, config: TrainingConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Give `network` the weights in the file `config.weights`, of the same network; what is known of them.

    Classifiers of other classes, and an auxiliary head that the file lacks, stay as they were drawn: the
    entry "drawn_anew" names them. The others are the file's SHA-256 and, of a checkpoint that describes
    itself, its recipe, result and own origin. ValueError where the file does not fit.
    """
    path = str(config.weights)
    state = checkpoint.load(path)
    if state.get("kind", "network") not in ("network", *TRAININGS):
        kinds = {
            "search": "how far a search is",
            "dense": "a detector or segmentation network, no classifier",
        }
        what = kinds.get(str(state["kind"]), f"a checkpoint of {state['kind']}")
        raise ValueError(f"--weights {path}: {what}; needed is a network's model.pt")
    with card.reading("weights", path):
        try:
            state = card.so_far(state) if state.get("kind") in TRAININGS else state
            given = {name.removeprefix("module."): x for name, x in state.get("state_dict", state).items()}
            known = {}
            if "kind" in state:
                facts = state["network"]
                card.check_description(state)
                card.check_flags(config, facts)
                if facts["class"] != type(network).__name__:
                    raise ValueError(f"holds a {facts['class']}, which the other training script trains")
                known = {
                    name: state[name] for name in ("recipe", "result", "origin", "so_far") if name in state
                }
                json.dumps(known, allow_nan=False)  # it will stand on the card
            own, anew = network.state_dict(), _drawn_anew(state, given, classes)
            drawn = {name: part for name in own for part in anew if name.startswith(f"{part}.")}
            load_network_state(network, given | {name: own[name] for name in drawn})
            if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
                raise ValueError("its weights are not finite numbers")
        except (ValueError, RuntimeError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(f"--weights {path}: {error}") from None
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return {"sha256": digest, "drawn_anew": sorted(set(drawn.values()))} | known


def _drawn_anew(state: Mapping[str, Any], given: Mapping[str, Tensor], classes: Sequence[str]) -> list[str]:
    """The modules whose weights the file does not have for these classes; by number where it has no names."""
    if "kind" in state:
        same_classes = state["images"]["classes"] == list(classes)
    else:
        same_classes = len(given["classifier.bias"]) == len(classes)
    anew = [] if same_classes else ["classifier", "auxiliary_head.classifier"]
    return anew if any(name.startswith("auxiliary_head.") for name in given) else [*anew, "auxiliary_head"]
