"""What was trained so far, and its order: by the predictor, or by the losses where it does not rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from encoding import Architecture, ChoiceSpace, Integers
from pair_predictor import PairPredictor


class Evaluated:
    """The loss that each architecture had when it was last trained.

    `predictor` ranks them once it knows a comparison; None ranks by loss.
    """

    def __init__(self, space: ChoiceSpace, predictor: PairPredictor | None) -> None:
        self.space, self.predictor = space, predictor
        self.losses: dict[tuple[int, ...], float] = {}  # by choices

    def add(self, architecture: Architecture, loss: float) -> None:
        """Remember a loss; one that is no finite number is never ranked."""
        self.losses[self._key(architecture)] = loss

    def _key(self, architecture: Architecture) -> tuple[int, ...]:
        return tuple(self.space.choices(architecture).tolist())

    def rows(self) -> Integers:
        """The choices of everything trained, (n, positions), in the order of the first training."""
        return np.array(list(self.losses), dtype=np.int64).reshape(-1, self.space.positions)

    def by_loss(self) -> list[Architecture]:
        """Everything with a finite loss, the lowest first."""
        finite = {row: loss for row, loss in self.losses.items() if math.isfinite(loss)}
        return [self.space.architecture(np.array(row)) for row in sorted(finite, key=finite.__getitem__)]

    def ranking(self, untrained: Iterable[Architecture] = ()) -> list[Architecture]:
        """Everything with a finite loss, best first; where the predictor ranks, the `untrained` ones too."""
        found = self.by_loss()
        if self.predictor is None or not len(self.predictor):
            return found
        found += [one for one in dict.fromkeys(untrained) if self._key(one) not in self.losses]
        return [found[index] for index in self.predictor.rank(found)]

    def finalists(self, count: int, untrained: Iterable[Architecture] = ()) -> list[Architecture]:
        """The first `count` of the ranking, and the one of lowest loss, where it is not among them."""
        chosen = self.ranking(untrained)[:count]
        return chosen + [one for one in self.by_loss()[:1] if one not in chosen]

    def state_dict(self) -> dict[str, Any]:
        """Architectures and losses as arrays."""
        return {"evaluated": self.rows(), "losses": np.array(list(self.losses.values()), dtype=np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; arrays may be lists now."""
        rows = np.array(state["evaluated"], dtype=np.int64).reshape(-1, self.space.positions)
        losses = np.array(state["losses"], dtype=np.float64)
        self.losses = {tuple(row): float(loss) for row, loss in zip(rows.tolist(), losses, strict=True)}
