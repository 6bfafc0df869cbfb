"""Whether the predictor is to be believed: its probabilities, told before the outcomes, against a coin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WINDOW = 30  # the last outcomes that count
CREDIT = 3.0  # nats that it may lose against a coin before it is not believed
LIMIT = 0.05  # probabilities count as at least this far from 0 and 1: one surprise is no proof


class Trust:
    """The prequential log loss of the last probabilities (Dawid 1984), compared with that of a coin."""

    def __init__(self) -> None:
        self.gains = np.empty(0)  # log of the probability of what came, over that of a coin

    def add(self, probability: float, a_won: bool) -> None:
        """An outcome, and the probability of a's victory that was given before it."""
        told = min(max(probability, LIMIT), 1 - LIMIT)
        self.gains = np.append(self.gains, math.log(2 * (told if a_won else 1 - told)))[-WINDOW:]

    @property
    def given(self) -> bool:
        """Whether the predictor may act: from the start, until it has lost its credit against the coin."""
        return bool(self.gains.sum() + CREDIT > 0)

    def state_dict(self) -> dict[str, Any]:
        return {"gains": self.gains.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; the array may be a list now."""
        self.gains = np.array(state["gains"], dtype=np.float64)
