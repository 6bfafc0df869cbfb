"""Naming the classes of image files: the best few of each, as a line and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common import distributed
from images import folders, sets
from training.config import EvaluationConfig
from training.evaluation import check_finite, logits_of
from training.weights import Loaded
from utils import say, write_atomically

BEST = 5  # classes of an image that --json gets; a line has three


def predict(
    loaded: Loaded, statistics: sets.Statistics, read: Callable[[str], Tensor], config: EvaluationConfig
) -> None:
    """Print a line with the most probable classes of each file of --predict, and write them to --json.

    `read` gives a file's image, uint8 (C, H, W), or raises ValueError. Such a file gets a line that says so;
    after all others are done, it ends the program with a ValueError.
    """
    if not distributed.is_main():
        return
    paths, found = _paths(config), []
    for first in range(0, len(paths), config.batch_size):
        for one in _predictions(paths[first : first + config.batch_size], loaded, statistics, read, config):
            found.append(one)
            best = (f"{entry['class']} {entry['probability']:.1%}" for entry in one.get("classes", [])[:3])
            say(one["error"] if "error" in one else f"{one['file']}: {', '.join(best)}")
    if config.json is not None:
        result: dict[str, Any] = {"model_path": config.model_path, "trained_on": str(loaded)}
        write_atomically(config.json, json.dumps(result | {"predictions": found}, indent=1) + "\n")
    if failed := [one["error"] for one in found if "error" in one]:
        raise ValueError(f"--predict: {len(failed)} of {len(paths)} files left out; the first: {failed[0]}")


def _paths(config: EvaluationConfig) -> list[str]:
    """The files that --predict names, itself or by their folder."""
    try:
        return [path for given in config.predict or () for path in folders.find_images(given)]
    except ValueError as error:
        raise ValueError(f"--predict {error}") from None


@torch.no_grad()
def _predictions(
    paths: list[str],
    loaded: Loaded,
    statistics: sets.Statistics,
    read: Callable[[str], Tensor],
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    """For each file its name and the best classes with their probabilities, or why it cannot be read."""
    images: list[Tensor] = []
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            images.append(read(path))
            found.append({"file": path})
        except (ValueError, OSError) as error:
            found.append({"file": path, "error": str(error)})
    if not images:
        return found
    network, names = loaded.network.eval(), loaded.names()
    batch = torch.stack(images).to(next(network.parameters()).device)
    logits = logits_of(network, sets.normalise(batch, statistics))
    check_finite(logits, config.model_path)
    best = logits.softmax(1).topk(min(BEST, logits.shape[1]))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    for one in found:
        if "error" not in one:
            chosen = zip(*next(rows), strict=True)
            one["classes"] = [{"class": names[label], "probability": share} for share, label in chosen]
    return found
