"""The population of slow-fast learning: ask for pairs, tell outcomes.

Source: Tan et al., "RelativeNAS: Relative Neural Architecture Search via Slow-Fast Learning" (arXiv
2009.06193); the rule is the competitive swarm optimiser (Cheng and Jin 2015) with social factor 0.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoding import ChoiceSpace, Reals
from utils import generator

PAIRING, MOVE, RESTART, START = range(4)  # what a random number is for


class SlowFast:
    """Vectors that learn in pairs: the slow learner of a pair moves towards the fast one, which stays.

    v <- r1 * v + r2 * (fast - slow), slow <- slow + v, with r1, r2 uniform in [0, 1] per dimension.
    The velocity is bounded by the size of the box and becomes 0 where the slow learner stops at its wall.
    Ties go to the first of the pair. NaN and infinite losses lose; if both are such, neither is fast, and
    both members start anew at random with velocity 0. Pairs are a random permutation.
    """

    def __init__(self, *, space: ChoiceSpace, pop_size: int = 20, seed: int = 0) -> None:
        if pop_size < 2 or pop_size % 2:
            raise ValueError(f"--pop_size {pop_size}: pairs need an even number, at least 2")
        self.space, self.pop_size, self.seed = space, pop_size, seed
        self.generation = 0
        self.positions = np.stack([self.start(member) for member in range(pop_size)])  # (members, reals)
        self.velocities = np.zeros_like(self.positions)
        # Where each member moved from, at what velocity, towards what: enough to draw the move again.
        self.origins = self.positions.copy()
        self.momenta = self.velocities.copy()
        self.targets = self.positions.copy()
        self.stamps = np.full((pop_size, 2), -1, dtype=np.int64)  # generation and pair of the move, -1: none
        self.told = np.zeros(pop_size // 2, dtype=bool)
        self.order = self._pairing()  # members, two by two

    def start(self, member: int) -> Reals:
        """A uniformly random vector for a new member."""
        return self.space.sample(generator(self.seed, START, member, 0))

    def ask(self) -> list[tuple[int, int]]:
        """The pairs of this generation, as member numbers; together all members, each once."""
        return [(int(a), int(b)) for a, b in self.order.reshape(-1, 2)]

    def _pairing(self) -> np.ndarray:
        return generator(self.seed, PAIRING, self.generation).permutation(self.pop_size)

    def moved(self, member: int) -> bool:
        """Whether `member` moved since it was last compared."""
        return bool(self.stamps[member, 0] >= 0)

    def reconsider(self, member: int, proposals: int) -> Reals:
        """Draws of the last move of `member`, (proposals, reals); the first is the published one.

        A move costs nothing until the member is asked for again, so it can be chosen as late as that.
        """
        if not self.moved(member):
            raise ValueError(f"member {member} has not moved since it was last compared")
        return np.stack([self._move(member, draw)[0] for draw in range(proposals)])

    def place(self, member: int, position: Reals) -> None:
        """Put `member` elsewhere; its velocity is the step from where it last stood, if it moved."""
        self.space.read(position)  # raises for a vector outside the box
        self.positions[member] = position
        if self.moved(member):
            self.velocities[member] = self.positions[member] - self.origins[member]

    def tell(self, pair: int, loss_a: float, loss_b: float) -> int | None:
        """The losses of the two members of `pair`; the slower one moves.

        Returns the fast member, None if neither loss is a finite number. The generation ends with its last
        pair. Raises ValueError for a pair that is not of this generation or was told already.
        """
        if not 0 <= pair < len(self.told):
            raise ValueError(f"pair {pair}: allowed are 0 to {len(self.told) - 1}")
        if self.told[pair]:
            raise ValueError(f"pair {pair} of generation {self.generation} was told already")
        a, b = self.ask()[pair]
        self.told[pair] = True
        self.stamps[[a, b]] = -1
        fast: int | None = None
        if not math.isfinite(loss_a) and not math.isfinite(loss_b):
            for member in (a, b):
                rng = generator(self.seed, RESTART, self.generation, member)
                self.positions[member], self.velocities[member] = self.space.sample(rng), 0.0
        else:
            a_wins = math.isfinite(loss_a) and (not math.isfinite(loss_b) or loss_a <= loss_b)
            fast, slow = (a, b) if a_wins else (b, a)
            self._learn(pair, fast, slow)
        if self.told.all():
            self.generation += 1
            self.told[:] = False
            self.order = self._pairing()
        return fast

    def _learn(self, pair: int, fast: int, slow: int) -> None:
        self.origins[slow], self.momenta[slow] = self.positions[slow], self.velocities[slow]
        self.targets[slow] = self.positions[fast]
        self.stamps[slow] = self.generation, pair
        self.positions[slow], self.velocities[slow] = self._move(slow, 0)

    def _move(self, member: int, draw: int) -> tuple[Reals, Reals]:
        """Position and velocity after the last move of `member`; draw 0 is the published one."""
        slow, velocity, fast = self.origins[member], self.momenta[member], self.targets[member]
        rng = generator(self.seed, MOVE, *self.stamps[member].tolist(), draw)
        r1, r2 = rng.random((2, self.space.positions))
        reach = self.space.upper - self.space.lower
        velocity = np.clip(r1 * velocity + r2 * (fast - slow), -reach, reach)
        position = np.clip(slow + velocity, self.space.lower, self.space.upper)
        velocity = np.where(position == slow + velocity, velocity, 0.0)  # stopped at a bound
        return position, velocity

    def diversity(self) -> float:
        """The mean share of choices in which two members differ, in [0, 1]."""
        rows = np.stack([self.space.read(position) for position in self.positions])
        differ = (rows[:, None] != rows[None]).mean(axis=2)
        return float(differ.sum() / (self.pop_size * (self.pop_size - 1)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain types and copies of arrays."""
        arrays = {name: getattr(self, name).copy() for name in self._arrays}
        return {"generation": self.generation, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` (arrays may be lists now). ValueError names a misshapen entry."""
        arrays = {}
        for name in self._arrays:
            mine = getattr(self, name)
            arrays[name] = np.array(state[name], dtype=mine.dtype)
            if arrays[name].shape != mine.shape:
                raise ValueError(
                    f"state {name!r} has shape {arrays[name].shape}: this search needs {mine.shape}"
                )
        for name, array in arrays.items():
            setattr(self, name, array)
        self.generation = int(state["generation"])

    _arrays = ("positions", "velocities", "origins", "momenta", "targets", "stamps", "told", "order")
