"""What was trained so far, and its order: by the predictor, or by the losses where it does not rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from encoding import Architecture, ChoiceSpace, Integers
from pair_predictor import PairPredictor
from search.front import Front


class Evaluated:
    """The loss that each architecture had when it was last trained.

    `predictor` ranks them once it knows a comparison; None ranks by loss.
    """

    def __init__(self, space: ChoiceSpace, predictor: PairPredictor | None) -> None:
        self.space, self.predictor = space, predictor
        self.losses: dict[tuple[int, ...], float] = {}  # by choices
        self.exact: set[tuple[int, ...]] = set()  # the choices of those whose loss would be the same again

    def add(self, architecture: Architecture, loss: float, exact: bool = True) -> None:
        """Remember a loss; one that is no finite number is never ranked."""
        key = self._key(architecture)
        self.losses[key] = loss
        (self.exact.add if exact else self.exact.discard)(key)

    def __contains__(self, architecture: Architecture) -> bool:
        return self._key(architecture) in self.losses

    def _key(self, architecture: Architecture) -> tuple[int, ...]:
        return tuple(self.space.choices(architecture).tolist())

    def rows(self) -> Integers:
        """The choices of everything trained, (n, positions), in the order of the first training."""
        return np.array(list(self.losses), dtype=np.int64).reshape(-1, self.space.positions)

    def _by_loss(self) -> list[tuple[int, ...]]:
        finite = {row: loss for row, loss in self.losses.items() if math.isfinite(loss)}
        return sorted(finite, key=finite.__getitem__)

    def by_loss(self) -> list[Architecture]:
        """Everything with a finite loss, the lowest first."""
        return [self.space.architecture(np.array(row)) for row in self._by_loss()]

    @property
    def _judge(self) -> PairPredictor | None:
        """The predictor, once it knows a comparison; None where losses rank."""
        return self.predictor if self.predictor is not None and len(self.predictor) else None

    def _ranking(self, untrained: Iterable[Architecture] = ()) -> list[tuple[int, ...]]:
        found = self._by_loss()
        if (judge := self._judge) is None:
            return found
        found += [row for row in dict.fromkeys(map(self._key, untrained)) if row not in self.losses]
        return [found[index] for index in judge.rank_rows(np.array(found))] if found else []

    def ranking(self, untrained: Iterable[Architecture] = ()) -> list[Architecture]:
        """Everything with a finite loss, best first; where the predictor ranks, the `untrained` ones too."""
        return [self.space.architecture(np.array(row)) for row in self._ranking(untrained)]

    def best(self) -> Architecture | None:
        """The first of the ranking; None before the first finite loss."""
        return next((self.space.architecture(np.array(row)) for row in self._ranking()), None)

    def finalists(
        self, count: int, untrained: Iterable[Architecture] = (), front: Front | None = None
    ) -> list[Architecture]:
        """The first `count` of the ranking, and the one of lowest loss, where it is not among them.

        With a `front`, instead of the first ones those that together are the best under its limits; then,
        while there are fewer, the same of the others.
        """
        order = self._ranking(untrained)
        if front is not None and order:
            rows = np.array(order)
            if (judge := self._judge) is None:
                quality = -np.array([self.losses[row] for row in order])
            else:
                quality = judge.posterior().mean(rows)
            places = np.empty(0, dtype=np.int64)
            while len(places) < min(count, len(rows)):
                others = np.setdiff1d(np.arange(len(rows)), places)
                more = front.chosen(rows[others], quality[others], count - len(places))
                places = np.concatenate([places, others[more]])
            order = [order[place] for place in places]
        chosen = [self.space.architecture(np.array(row)) for row in order[:count]]
        return chosen + [one for one in self.by_loss()[:1] if one not in chosen]

    def state_dict(self) -> dict[str, Any]:
        """Architectures and losses as arrays."""
        exact = np.array([row in self.exact for row in self.losses], dtype=bool)
        losses = np.array(list(self.losses.values()), dtype=np.float64)
        return {"evaluated": self.rows(), "losses": losses, "exact": exact}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; arrays may be lists. Earlier versions took all losses for exact."""
        rows = np.array(state["evaluated"], dtype=np.int64).reshape(-1, self.space.positions)
        losses = np.array(state["losses"], dtype=np.float64).tolist()
        exact = np.array(state.get("exact", [True] * len(rows)), dtype=bool).tolist()
        keys = [tuple(row) for row in rows.tolist()]
        self.losses = dict(zip(keys, losses, strict=True))
        self.exact = {key for key, same in zip(keys, exact, strict=True) if same}
