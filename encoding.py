"""Search spaces as boxes of reals: what a vector means, and what a predictor sees of an architecture.

A vector of reals decodes to an architecture. Between the two stand the *choices*, a row of small integers,
one per decision. The continuous search moves vectors; the predictor reads choices.

`ChoiceSpace` is any table: some positions with some choices each. `CellSpace` is the DARTS space of two
cells.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from genotypes import PRIMITIVES, Genotype, validate

Architecture = Any  # hashable: a tuple of ints for ChoiceSpace, a Genotype for CellSpace
Integers = np.ndarray  # (positions,) or (n, positions), int64
Reals = np.ndarray  # (dimensions,), float64

READINGS = ("one_per_choice", "one_per_option")


class ChoiceSpace:
    """Positions with a number of choices each; an architecture is a tuple of ints.

    `reals="one_per_choice"` is the published integer line: a real in [0, choices], floored, whose upper bound
    belongs to the last choice. `reals="one_per_option"` has a real in [0, 1] per option and the largest wins
    (the first of equal ones), so that no option lies nearer to another than the rest.
    """

    def __init__(self, counts: Sequence[int], *, reals: str = "one_per_choice") -> None:
        if not counts or any(int(count) < 1 for count in counts):
            raise ValueError(f"counts={list(counts)!r}: every position needs at least one choice")
        if reals not in READINGS:
            raise ValueError(f"reals={reals!r}: allowed are {', '.join(READINGS)}")
        self.counts: Integers = np.asarray(counts, dtype=np.int64)
        self.reals = reals
        self.units: list[Integers] = [np.array([position]) for position in range(len(self.counts))]
        self.upper: Reals = self._upper()
        self.lower: Reals = np.zeros_like(self.upper)

    @property
    def positions(self) -> int:
        """How many choices an architecture is made of."""
        return len(self.counts)

    @property
    def dimensions(self) -> int:
        """How many reals a vector has."""
        return len(self.upper)

    # ---- vectors

    def decode(self, vector: Iterable[float]) -> Architecture:
        """The architecture that `vector` (dimensions,) stands for, in canonical form.

        Raises ValueError that names position, value and bounds of the first real outside the box.
        """
        return self.architecture(self.read(vector))

    def encode(self, architecture: Architecture) -> Reals:
        """A vector in the middle of the box that decodes to `architecture`."""
        return self.write(self.choices(architecture))

    def sample(self, rng: np.random.Generator) -> Reals:
        """A vector drawn uniformly from the box, (dimensions,)."""
        return rng.uniform(self.lower, self.upper)

    def read(self, vector: Iterable[float]) -> Integers:
        """The choices that `vector` stands for, canonical, (positions,)."""
        return self.canonical_choices(self._interpret(self._checked(vector))[None])[0]

    def write(self, choices: Integers) -> Reals:
        """The inverse of `read` for canonical choices: choice + 0.5, or 0.75 for what is chosen and 0.25
        else."""
        raw = self._raw(np.asarray(choices))
        if self.reals == "one_per_choice":
            return raw + 0.5
        vector = np.full(self.dimensions, 0.25)
        vector[self._starts() + np.asarray(choices)] = 0.75
        return vector

    def _checked(self, vector: Iterable[float]) -> Reals:
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (self.dimensions,):
            raise ValueError(f"a vector of shape {values.shape} given: this space needs ({self.dimensions},)")
        outside = ~((values >= self.lower) & (values <= self.upper))  # written so that NaN is outside too
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(
                f"position {at} of the vector is {values[at]:g}: allowed are reals from {self.lower[at]:g} "
                f"to {self.upper[at]:g}"
            )
        return values

    def _options(self) -> Integers:
        """How many options the real line of each position offers."""
        return self.counts

    def _upper(self) -> Reals:
        if self.reals == "one_per_choice":
            return self._options().astype(np.float64)
        return np.ones(int(self.counts.sum()))

    def _starts(self) -> Integers:
        return np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    def _interpret(self, values: Reals) -> Integers:
        if self.reals == "one_per_choice":
            return np.minimum(np.floor(values).astype(np.int64), self._options() - 1)
        starts = self._starts()
        pieces = [values[start : start + count] for start, count in zip(starts, self.counts, strict=True)]
        return np.array([int(np.argmax(piece)) for piece in pieces])

    def _raw(self, choices: Integers) -> Integers:
        """Choices as positions on the integer lines (they differ where one choice limits another)."""
        return choices

    # ---- architectures

    def architecture(self, choices: Integers) -> Architecture:
        """The architecture made of canonical `choices`, (positions,)."""
        return tuple(int(choice) for choice in choices)

    def choices(self, architecture: Architecture) -> Integers:
        """The canonical choices of `architecture`, (positions,). ValueError names the first bad position."""
        values = np.asarray(tuple(architecture))
        if values.shape != self.counts.shape or values.dtype.kind not in "iu":
            raise ValueError(f"architecture {architecture!r}: this space needs {self.positions} integers")
        self._check_choices(values)
        return self.canonical_choices(values[None].astype(np.int64))[0]

    def canonical(self, architecture: Architecture) -> Architecture:
        """The one form in which equal architectures are equal."""
        return self.architecture(self.choices(architecture))

    def canonical_choices(self, choices: Integers) -> Integers:
        """Canonical form of rows of choices, (n, positions)."""
        return choices

    def allowed(self, choices: Integers) -> np.ndarray:
        """Which rows of (n, positions) are architectures of this space, (n,) bool."""
        return np.ones(len(choices), dtype=bool)

    def _check_choices(self, choices: Integers) -> None:
        outside = (choices < 0) | (choices >= self.counts)
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(f"position {at} is {choices[at]}: allowed are 0 to {self.counts[at] - 1}")

    # ---- moves between architectures

    def neighbours(self, choices: Integers) -> Integers:
        """Every architecture that differs from `choices` in one decision, canonical, (n, positions)."""
        rows = []
        for position, count in enumerate(self.counts):
            for value in range(count):
                if value != choices[position]:
                    row = choices.copy()
                    row[position] = value
                    rows.append(row)
        if not rows:
            return np.empty((0, self.positions), dtype=np.int64)
        found = np.array(rows)
        return np.unique(self.canonical_choices(found[self.allowed(found)]), axis=0)

    def mutate(self, choices: Integers, rng: np.random.Generator) -> Integers:
        """One decision, drawn uniformly among those that can change, takes another value; canonical."""
        for position in rng.permutation(self.positions):
            rows = np.repeat(choices[None], self.counts[position], axis=0)
            rows[:, position] = np.arange(self.counts[position])
            rows = rows[self.allowed(rows) & (rows[:, position] != choices[position])]
            if len(rows):
                return self.canonical_choices(rows[rng.integers(len(rows))][None])[0]
        return choices.copy()

    def cross(self, first: Integers, second: Integers, rng: np.random.Generator) -> Integers:
        """A child that takes each unit (an edge, a position) from one of two parents; canonical."""
        child = first.copy()
        for unit in self.units:
            if rng.random() < 0.5:
                trial = child.copy()
                trial[unit] = second[unit]
                if self.allowed(trial[None])[0]:
                    child = trial
        return self.canonical_choices(child[None])[0]

    # ---- what the predictor sees

    def features(self, choices: Integers) -> np.ndarray:
        """One-hot decisions of rows of canonical choices, (n, features)."""
        choices = np.atleast_2d(choices)
        found = np.zeros((len(choices), int(self.counts.sum())))
        np.put_along_axis(found, self._starts() + choices, 1.0, axis=1)
        return found


class CellSpace(ChoiceSpace):
    """The DARTS cell space: normal and reduction cell, four nodes, two edges each; 32 choices.

    Choices run cell by cell, node by node: input, operation, input, operation. The input of node i is one of
    i + 2 (the two cell inputs, then earlier nodes), the operation one of PRIMITIVES. Canonical: a node's two
    edges sorted by input, then operation. With `distinct_inputs` the second input of a node is a choice among
    the inputs that the first one left.
    """

    def __init__(
        self, *, nodes: int = 4, distinct_inputs: bool = False, reals: str = "one_per_choice"
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes={nodes}: a cell needs at least one intermediate node")
        self.nodes = nodes
        self.distinct_inputs = distinct_inputs
        inputs = np.tile(np.arange(nodes) + 2, 2)  # one entry per node of both cells
        self._seconds = np.arange(2 * nodes) * 4 + 2
        counts = np.stack([inputs, np.full_like(inputs, len(PRIMITIVES))] * 2, axis=1).ravel()
        super().__init__(counts.tolist(), reals=reals)
        self.units = [np.array([start, start + 1]) for start in range(0, self.positions, 2)]
        self._edge_start = np.cumsum([0, *inputs[:-1]])  # first edge of each node among all of both cells
        self._edges = int(inputs.sum())

    def _options(self) -> Integers:
        options = self.counts.copy()
        options[self._seconds] -= self.distinct_inputs
        return options

    def _interpret(self, values: Reals) -> Integers:
        choices = super()._interpret(values)
        if not self.distinct_inputs:
            return choices
        firsts = choices[self._seconds - 2]
        if self.reals == "one_per_choice":
            choices[self._seconds] += choices[self._seconds] >= firsts
            return choices
        starts = self._starts()
        for second, first in zip(self._seconds, firsts, strict=True):
            piece = values[starts[second] : starts[second] + self.counts[second]].copy()
            piece[first] = -1.0  # below every real of the box
            choices[second] = int(np.argmax(piece))
        return choices

    def _raw(self, choices: Integers) -> Integers:
        raw = choices.copy()
        if self.distinct_inputs:
            raw[self._seconds] -= choices[self._seconds] > choices[self._seconds - 2]
        return raw

    def architecture(self, choices: Integers) -> Genotype:
        """The genotype made of canonical `choices`, (positions,)."""
        edges = [(PRIMITIVES[choices[at + 1]], int(choices[at])) for at in range(0, self.positions, 2)]
        half = len(edges) // 2
        concat = range(2, self.nodes + 2)
        return validate((edges[:half], concat, edges[half:], concat))

    def choices(self, architecture: Architecture) -> Integers:
        """The canonical choices of a genotype. ValueError names the edge that this space does not have."""
        found: list[int] = []
        for cell in ("normal", "reduce"):
            edges = getattr(architecture, cell)
            if len(edges) != 2 * self.nodes:
                raise ValueError(f"{cell} has {len(edges)} edges: this space needs {2 * self.nodes}")
            for edge, (operation, source) in enumerate(edges):
                if operation not in PRIMITIVES:
                    raise ValueError(
                        f"{cell} edge {edge}: operation {operation!r} is not searched; "
                        f"allowed are {', '.join(PRIMITIVES)}"
                    )
                if not 0 <= source < edge // 2 + 2:
                    raise ValueError(f"{cell} edge {edge}: input {source}; allowed are 0 to {edge // 2 + 1}")
                found += [int(source), PRIMITIVES.index(operation)]
        choices = self.canonical_choices(np.array(found, dtype=np.int64)[None])
        if not self.allowed(choices)[0]:
            raise ValueError("a node takes the same input twice: this space keeps a node's inputs distinct")
        return choices[0]

    def canonical_choices(self, choices: Integers) -> Integers:
        """Each node's two edges sorted by input, then operation; (n, positions)."""
        nodes = choices.reshape(len(choices), -1, 4)
        keys = nodes[:, :, [0, 2]] * len(PRIMITIVES) + nodes[:, :, [1, 3]]
        swap = keys[:, :, 0] > keys[:, :, 1]
        return np.where(swap[:, :, None], nodes[:, :, [2, 3, 0, 1]], nodes).reshape(choices.shape)

    def allowed(self, choices: Integers) -> np.ndarray:
        """Which rows keep a node's inputs distinct, where that is asked for, (n,) bool."""
        if not self.distinct_inputs:
            return super().allowed(choices)
        return (choices[:, self._seconds] != choices[:, self._seconds - 2]).all(axis=1)

    def features(self, choices: Integers) -> np.ndarray:
        """How often each edge with each operation is in the cells, (n, edges x operations).

        A node's edges are counted without their order, so the same cell has the same features.
        """
        choices = np.atleast_2d(choices)
        found = np.zeros((len(choices), self._edges * len(PRIMITIVES)))
        rows = np.arange(len(choices))
        for at in range(0, self.positions, 2):
            column = (self._edge_start[at // 4] + choices[:, at]) * len(PRIMITIVES) + choices[:, at + 1]
            found[rows, column] += 1.0
        return found


def operation_counts(architectures: Iterable[Genotype]) -> dict[str, int]:
    """How often each operation stands in the cells: normal_<operation> and reduce_<operation>, zeros too."""
    counts = {f"{cell}_{operation}": 0 for cell in ("normal", "reduce") for operation in PRIMITIVES}
    for genotype in architectures:
        for cell in ("normal", "reduce"):
            for operation, _ in getattr(genotype, cell):
                counts[f"{cell}_{operation}"] += 1
    return counts
