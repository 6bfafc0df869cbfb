"""Search spaces as boxes of reals: what a vector means, and what a predictor sees of an architecture.

A vector of reals decodes to an architecture. Between the two stand the *choices*, a row of small integers,
one per decision. The continuous search moves vectors; the predictor sees choices, as blocks of features.

`ChoiceSpace` is any number of decisions with some choices each. `CellSpace` is the DARTS space of two cells;
that of NAS-Bench-201 is in `graph_space.py`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from genotypes import CELLS, PRIMITIVES, AnyGenotype, Genotype, validate

Architecture = Any  # hashable: a tuple of ints for ChoiceSpace, a genotype for spaces of cells
Integers = np.ndarray  # (positions,) or (n, positions), int64
Reals = np.ndarray  # (positions,), float64
Blocks = dict[str, np.ndarray]  # by name, each (n, features of the block)

EDGES = "edges"  # the block that every space has
PRIOR = "prior"  # and the block of what is expected before any comparison
SAMPLES = 512  # random architectures that set the scale of each block


class ChoiceSpace:
    """Positions with a number of choices each; an architecture is a tuple of ints.

    A vector has a real in [0, choices] per position, floored; the upper bound belongs to the last choice.
    `readings` are hypotheses of what the choices mean, each with the natural logarithm of its odds before any
    comparison; the predictor keeps the likeliest.
    """

    interacting: Collection[str] | None = None  # blocks whose interactions the predictor models; None: all
    operations: tuple[str, ...] = ()  # where architectures are genotypes,
    cells: tuple[str, ...] = ()  # and those of their cells that have choices

    def __init__(self, counts: Sequence[int]) -> None:
        if not counts or any(int(count) < 1 for count in counts):
            raise ValueError(f"counts={list(counts)!r}: every position needs at least one choice")
        self.counts: Integers = np.asarray(counts, dtype=np.int64)
        self.units: list[Integers] = [np.array([position]) for position in range(len(self.counts))]
        self.upper: Reals = self.counts.astype(np.float64)
        self.lower: Reals = np.zeros_like(self.upper)
        self.readings = {"apart": 0.0}

    @property
    def positions(self) -> int:
        """How many choices an architecture is made of, and how many reals a vector."""
        return len(self.counts)

    # ---- vectors

    def decode(self, vector: Iterable[float]) -> Architecture:
        """The architecture that `vector` (positions,) stands for, in canonical form.

        Raises ValueError that names position, value and bounds of the first real outside the box.
        """
        return self.architecture(self.read(vector))

    def encode(self, architecture: Architecture) -> Reals:
        """A vector in the middle of the box that decodes to `architecture`."""
        return self.write(self.choices(architecture))

    def sample(self, rng: np.random.Generator) -> Reals:
        """A vector drawn uniformly from the box, (positions,)."""
        return rng.uniform(self.lower, self.upper)

    def read(self, vector: Iterable[float]) -> Integers:
        """The choices that `vector` stands for, canonical, (positions,)."""
        return self.canonical_choices(self._interpret(self._checked(vector))[None])[0]

    def write(self, choices: Integers) -> Reals:
        """The inverse of `read` for canonical choices: the middle of each choice's part of its line."""
        return self._raw(np.asarray(choices)) + 0.5

    def _checked(self, vector: Iterable[float]) -> Reals:
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (self.positions,):
            raise ValueError(f"a vector of shape {values.shape} given: this space needs ({self.positions},)")
        outside = ~((values >= self.lower) & (values <= self.upper))  # written so that NaN is outside too
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(
                f"position {at} of the vector is {values[at]:g}: allowed are reals from {self.lower[at]:g} "
                f"to {self.upper[at]:g}"
            )
        return values

    def _interpret(self, values: Reals) -> Integers:
        return np.minimum(np.floor(values), self.upper - 1).astype(np.int64)

    def _raw(self, choices: Integers) -> Integers:
        """Choices as places on the integer lines (they differ where one choice limits another)."""
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
        positions = np.repeat(np.arange(self.positions), self.counts)
        values = np.arange(len(positions)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        found = np.repeat(choices[None], len(positions), axis=0)
        found[np.arange(len(positions)), positions] = values
        found = found[values != choices[positions]]
        return _distinct(self.canonical_choices(found[self.allowed(found)]))

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
        starts = np.concatenate(([0], np.cumsum(self.counts)[:-1]))
        np.put_along_axis(found, starts + choices, 1.0, axis=1)
        return found

    def blocks(self, choices: Integers, reading: str) -> Blocks:
        """Named groups of features of rows of canonical choices, as `reading` has them.

        Here: the decisions; and how often each option was chosen, where all positions have the same ones.
        """
        hot = self.features(choices)
        if (self.counts != self.counts[0]).any():
            return {EDGES: hot}
        return {EDGES: hot, "counts": hot.reshape(len(hot), self.positions, -1).sum(axis=1)}


def _distinct(rows: Integers) -> Integers:
    """The distinct rows of numbers from 0 on, in ascending order, as `np.unique(rows, axis=0)` gives them."""
    # Big-endian numbers have the order of their bytes, and NumPy sorts bytes several times as fast as rows.
    texts = np.ascontiguousarray(rows, dtype=">u4").view(f"S{4 * rows.shape[1]}")
    return np.unique(texts).view(">u4").reshape(-1, rows.shape[1]).astype(rows.dtype)


class CellSpace(ChoiceSpace):
    """The DARTS cell space: normal and reduction cell, four nodes, two edges each; 32 choices.

    Choices run cell by cell, node by node: input, operation, input, operation. The input of node i is one of
    i + 2 (the two cell inputs, then earlier nodes), the operation one of `operations`. Canonical: a node's
    two edges sorted by input, then operation. With `distinct_inputs` the second input of a node is a choice
    among the inputs that the first one left. With `one_cell` the reduction cell is the normal one again, and
    there are half as many choices.
    """

    interacting = (EDGES, "counts_by_cell")

    def __init__(
        self,
        *,
        nodes: int = 4,
        distinct_inputs: bool = False,
        operations: Sequence[str] = PRIMITIVES,
        one_cell: bool = False,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes={nodes}: a cell needs at least one intermediate node")
        self.nodes, self.operations = nodes, tuple(operations)
        self.cells = CELLS[:1] if one_cell else CELLS
        self.distinct_inputs = distinct_inputs
        inputs = np.tile(np.arange(nodes) + 2, len(self.cells))  # one entry per node of the cells
        self._seconds = np.arange(len(inputs)) * 4 + 2
        counts = np.stack([inputs, np.full_like(inputs, len(self.operations))] * 2, axis=1).ravel()
        super().__init__(counts.tolist())
        self.upper[self._seconds] -= distinct_inputs
        self.readings = {"cell": 0.0}
        self.units = [np.array([start, start + 1]) for start in range(0, self.positions, 2)]
        self._edge_start = np.cumsum([0, *inputs[:-1]])  # first edge of each node among all
        self._edges = int(inputs.sum())

    def _interpret(self, values: Reals) -> Integers:
        choices = super()._interpret(values)
        if self.distinct_inputs:
            choices[self._seconds] += choices[self._seconds] >= choices[self._seconds - 2]
        return choices

    def _raw(self, choices: Integers) -> Integers:
        raw = choices.copy()
        if self.distinct_inputs:
            raw[self._seconds] -= choices[self._seconds] > choices[self._seconds - 2]
        return raw

    def architecture(self, choices: Integers) -> Genotype:
        """The genotype made of canonical `choices`, (positions,)."""
        edges = [(self.operations[choices[at + 1]], int(choices[at])) for at in range(0, self.positions, 2)]
        size = 2 * self.nodes
        concat = range(2, self.nodes + 2)
        return validate((edges[:size], concat, edges[-size:], concat))

    def choices(self, architecture: Architecture) -> Integers:
        """The canonical choices of a genotype. ValueError names the edge that this space does not have."""
        self._check_cells(architecture)
        found: list[int] = []
        for cell in self.cells:
            for operation, source in getattr(architecture, cell):
                found += [int(source), self.operations.index(operation)]
        choices = self.canonical_choices(np.array(found, dtype=np.int64)[None])
        if not self.allowed(choices)[0]:
            raise ValueError("a node takes the same input twice: this space keeps a node's inputs distinct")
        return choices[0]

    def _check_cells(self, architecture: Architecture) -> None:
        if not isinstance(architecture, Genotype):
            raise ValueError("no normal and reduction cell: this space needs both")
        for cell in CELLS:
            edges = getattr(architecture, cell)
            if len(edges) != 2 * self.nodes:
                raise ValueError(f"{cell} has {len(edges)} edges: this space needs {2 * self.nodes}")
            for edge, (operation, source) in enumerate(edges):
                if operation not in self.operations:
                    raise ValueError(
                        f"{cell} edge {edge}: operation {operation!r} is not searched; "
                        f"allowed are {', '.join(self.operations)}"
                    )
                if not 0 <= source < edge // 2 + 2:
                    raise ValueError(f"{cell} edge {edge}: input {source}; allowed are 0 to {edge // 2 + 1}")
        if len(self.cells) == 1 and architecture.normal != architecture.reduce:
            raise ValueError("the reduction cell is another one: this space has one cell for both kinds")

    def canonical_choices(self, choices: Integers) -> Integers:
        """Each node's two edges sorted by input, then operation; (n, positions)."""
        nodes = choices.reshape(len(choices), -1, 4)
        keys = nodes[:, :, [0, 2]] * len(self.operations) + nodes[:, :, [1, 3]]
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
        edges = np.repeat(self._edge_start, 2) + choices[:, ::2]
        operations = len(self.operations)
        return _count(edges * operations + choices[:, 1::2], self._edges * operations)

    def blocks(self, choices: Integers, reading: str) -> Blocks:
        """Edges with operations; counts by cell, node and kind of input; inputs; depths."""
        choices = np.atleast_2d(choices)
        sources, operations = (choices[:, first::2, None] for first in (0, 1))  # (n, edges, 1)
        parts, starts, (of_source, of_kind, of_operation) = self._counted
        places = starts + of_source * sources + of_operation * operations
        places += of_kind * np.minimum(sources, 2)  # the cell's two inputs, any node
        counts = _count(places.reshape(len(choices), -1), max(part.stop for part in parts.values()))
        found = {name: counts[:, part] for name, part in parts.items()}
        return found | {"depths": self._depths(choices)}

    @cached_property
    def _counted(self) -> tuple[dict[str, slice], Integers, Integers]:
        """The blocks that count edges, side by side: the part of each, and its feature that counts an edge.

        That is the place for the edge's first source and operation, (edges, blocks); and how much further it
        is for the next source, kind of source and operation, (3, blocks).
        """
        node = np.arange(self.positions // 2) // 2  # of each edge, among those of all cells
        cell, cells, nodes = node // self.nodes, len(self.cells), len(self.cells) * self.nodes
        operations, sources = len(self.operations), self.nodes + 1
        both = sources * operations
        blocks = {  # features, those before an edge's first one, and the steps
            EDGES: (self._edges * operations, self._edge_start[node] * operations, (operations, 0, 1)),
            "counts_by_cell": (cells * operations, cell * operations, (0, 0, 1)),
            **({"counts": (operations, 0 * node, (0, 0, 1))} if cells > 1 else {}),
            "counts_by_node": (nodes * operations, node * operations, (0, 0, 1)),
            "inputs_by_node": (nodes * sources, node * sources, (1, 0, 0)),
            "inputs": (cells * sources, cell * sources, (1, 0, 0)),
            "kinds_with_operations": (cells * 3 * operations, cell * 3 * operations, (0, operations, 1)),
            "inputs_with_operations": (cells * both, cell * both, (operations, 0, 1)),
        }
        sizes, starts, steps = zip(*blocks.values(), strict=True)
        ends = np.cumsum(sizes).tolist()
        parts = {name: slice(end - size, end) for name, size, end in zip(blocks, sizes, ends, strict=True)}
        begins = [part.start for part in parts.values()]
        return parts, np.stack(starts, axis=1) + begins, np.array(steps).T

    def _depths(self, choices: Integers) -> np.ndarray:
        """How many edges lie above each node, at most; and the same of each cell, (n, nodes + cells)."""
        sources = choices[:, ::2].reshape(len(choices), len(self.cells), self.nodes, 2)
        depth = np.zeros((len(choices), len(self.cells), self.nodes + 2))
        for node in range(self.nodes):
            into = np.take_along_axis(depth, sources[:, :, node], axis=2)
            depth[:, :, node + 2] = 1 + into.max(axis=2)
        return np.concatenate([depth[:, :, 2:].reshape(len(choices), -1), depth.max(axis=2)], axis=1)


def _count(places: Integers, size: int) -> np.ndarray:
    """How often each of `size` places stands in each row of (n, m), (n, size)."""
    rows = np.arange(len(places))[:, None] * size
    return np.bincount((places + rows).ravel(), minlength=len(places) * size).reshape(-1, size) + 0.0


class Features:
    """What the predictor sees of an architecture under one reading of the space: blocks, scaled alike.

    The features of a block share one weight in the predictor's kernel, so that few comparisons teach a lot:
    "more separable convolutions" is learned before "a separable convolution on edge 7". Blocks are scaled so
    that the mean squared distance of two random architectures is 2 in each of them. `without` names blocks to
    leave out, to measure what they bring; the edges always stay. `prior` gives each row of choices one more
    number, (n,), with sd 1 over random architectures.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        reading: str,
        without: Collection[str] = (),
        prior: Callable[[Integers], np.ndarray] | None = None,
    ) -> None:
        self.space, self.reading, self.without = space, reading, frozenset(without) - {EDGES}
        self.prior = prior

    @cached_property
    def _widths(self) -> dict[str, int]:
        found = self._kept(np.zeros((1, self.space.positions), dtype=np.int64))
        widths = {name: block.shape[1] for name, block in found.items()}
        return widths if self.prior is None else widths | {PRIOR: 1}

    def names(self) -> list[str]:
        """The names of the blocks, in their order."""
        return list(self._widths)

    @property
    def sizes(self) -> list[int]:
        """How many features each block has."""
        return list(self._widths.values())

    def interacting(self) -> list[int]:
        """The places of the blocks whose interactions the kernel models too."""
        chosen = self.space.interacting
        return [
            place
            for place, name in enumerate(self.names())
            if chosen is None or name in chosen or name == PRIOR
        ]

    def blocks(self, choices: Integers) -> list[np.ndarray]:
        """Scaled blocks of rows of canonical choices, (n, features) each."""
        found = self._kept(choices).values()
        scaled = [block * scale for block, scale in zip(found, self._scales, strict=True)]
        if self.prior is not None:
            scaled.append(self.prior(choices)[:, None])
        return scaled

    def _kept(self, choices: Integers) -> Blocks:
        found = self.space.blocks(choices, self.reading)
        return {name: block for name, block in found.items() if name not in self.without}

    @cached_property
    def _scales(self) -> list[float]:
        rng = np.random.default_rng(0)
        rows = np.stack([self.space.read(self.space.sample(rng)) for _ in range(SAMPLES)])
        spreads = [float(block.var(axis=0).sum()) for block in self._kept(rows).values()]
        return [1 / math.sqrt(spread) if spread > 0 else 0.0 for spread in spreads]


def operation_counts(
    architectures: Iterable[AnyGenotype],
    operations: Sequence[str] = PRIMITIVES,
    cells: Sequence[str] = CELLS,
) -> dict[str, int]:
    """How often each operation stands in the cells: normal_<operation> and reduce_<operation>, zeros too."""
    counts = {f"{cell}_{operation}": 0 for cell in cells for operation in operations}
    for genotype in architectures:
        for cell in cells:
            for operation, _ in getattr(genotype, cell):
                counts[f"{cell}_{operation}"] += 1
    return counts
