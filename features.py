"""What the predictor sees of an architecture: blocks of numbers, under one or more readings of the space.

A block is a group of features that share one weight in the predictor's kernel: single edges, operation
counts, inputs, depths. A weight per block lets few comparisons teach a lot: "more separable convolutions" is
learned before "a separable convolution on edge 7". Which blocks matter differs from space to space; the
evidence decides.

A table of choices does not say what its positions mean, so there are several readings of it. They are
hypotheses: positions apart; choices in order (widths, depths); or the edges of a graph in which every node
feeds every later one and one option is "no edge", so that what hangs on it is dead. The predictor keeps the
likeliest.
"""

import math
from collections.abc import Collection

import numpy as np

from encoding import CellSpace, ChoiceSpace, Integers
from genotypes import PRIMITIVES

SAMPLES = 512  # random architectures that set the scale of each block
NO_EDGE = 0  # the option that means it, by convention of such tables
LARGEST_GRAPH = 7  # nodes; the number of paths doubles with each

EDGES = "edges"  # the block that every reading has
MIXED_IN_CELLS = (EDGES, "counts_by_cell")  # of cells, whose interactions the kernel models

Blocks = list[np.ndarray]  # each (n, features of the block)
Named = dict[str, np.ndarray]


class Features:
    """The blocks of a space. All readings of a space agree on nothing but the architectures.

    Blocks are scaled so that the mean squared distance of two random architectures is 2 in each of them.
    `without` names blocks to leave out, to measure what they bring; the edges always stay.
    """

    def __init__(self, space: ChoiceSpace, without: Collection[str] = ()) -> None:
        self.space, self.without = space, frozenset(without) - {EDGES}
        self.graphs: dict[str, list[tuple[int, int]]] = {}
        # Name of each reading, and the natural logarithm of its odds before any comparison.
        self.readings = {"cell": 0.0} if isinstance(space, CellSpace) else self._table_readings()
        self._scales: dict[str, list[float]] = {}

    def _table_readings(self) -> dict[str, float]:
        counts = self.space.counts
        readings = {"apart": 0.0, "ordered": -1.0}
        nodes = (1 + math.isqrt(1 + 8 * len(counts))) // 2
        complete = nodes * (nodes - 1) // 2 == len(counts) and (counts == counts[0]).all()
        if 3 <= nodes <= LARGEST_GRAPH and complete and counts[0] > 1:
            self.graphs["graph by source"] = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
            self.graphs["graph by target"] = [(i, j) for j in range(nodes) for i in range(j)]
            readings |= {"graph by source": 2.0, "graph by target": 0.0}
        return readings

    def mixing(self, reading: str) -> list[int]:
        """The blocks whose interactions the kernel models too."""
        places = enumerate(self.names(reading))
        return [place for place, name in places if reading != "cell" or name in MIXED_IN_CELLS]

    def names(self, reading: str) -> list[str]:
        """The names of the blocks, in their order."""
        return list(self._raw(np.zeros((1, self.space.positions), dtype=np.int64), reading))

    def blocks(self, choices: Integers, reading: str) -> Blocks:
        """Scaled blocks of rows of canonical choices, (n, features) each."""
        raw = self._raw(choices, reading).values()
        return [block * scale for block, scale in zip(raw, self._scale(reading), strict=True)]

    def _scale(self, reading: str) -> list[float]:
        if reading not in self._scales:
            rng = np.random.default_rng(0)
            rows = np.stack([self.space.read(self.space.sample(rng)) for _ in range(SAMPLES)])
            spreads = [float(block.var(axis=0).sum()) for block in self._raw(rows, reading).values()]
            self._scales[reading] = [1 / math.sqrt(spread) if spread > 0 else 0.0 for spread in spreads]
        return self._scales[reading]

    def _raw(self, choices: Integers, reading: str) -> Named:
        found = self._all(np.atleast_2d(choices), reading)
        return {name: block for name, block in found.items() if name not in self.without}

    def _all(self, choices: Integers, reading: str) -> Named:
        if reading == "cell":
            return self._cell(choices)
        if reading in self.graphs:
            return self._graph(choices, self.graphs[reading])
        if reading == "ordered":
            levels = choices / np.maximum(self.space.counts - 1, 1)
            total = levels.sum(axis=1, keepdims=True)
            return {EDGES: self.space.features(choices), "levels": levels, "level_sum": total}
        hot = self.space.features(choices)
        if (self.space.counts != self.space.counts[0]).any():
            return {EDGES: hot}
        return {EDGES: hot, "counts": hot.reshape(len(choices), self.space.positions, -1).sum(axis=1)}

    def _cell(self, choices: Integers) -> Named:
        """DARTS cells: edges with operations; counts by cell, node and kind of input; inputs; depths."""
        space = self.space
        assert isinstance(space, CellSpace)
        rows, nodes = len(choices), space.nodes
        edges = choices.reshape(rows, 2, nodes, 2, 2)  # (n, cell, node, edge, (input, operation))
        sources, operations = edges[..., 0], edges[..., 1]
        operation = np.eye(len(PRIMITIVES))[operations]
        source = np.eye(nodes + 1)[sources]
        kind = np.eye(3)[np.minimum(sources, 2)]  # the cell's two inputs, any node
        depth = np.zeros((rows, 2, nodes + 2))
        for node in range(nodes):
            into = np.take_along_axis(depth, sources[:, :, node], axis=2)
            depth[:, :, node + 2] = 1 + into.max(axis=2)
        by_cell = operation.sum(axis=(2, 3))
        return {
            EDGES: space.features(choices),
            "counts_by_cell": by_cell.reshape(rows, -1),
            "counts": by_cell.sum(axis=1),
            "counts_by_node": operation.sum(axis=3).reshape(rows, -1),
            "inputs_by_node": source.sum(axis=3).reshape(rows, -1),
            "inputs": source.sum(axis=(2, 3)).reshape(rows, -1),
            "kinds_with_operations": np.einsum("ncdek,ncdeo->ncko", kind, operation).reshape(rows, -1),
            "inputs_with_operations": np.einsum("ncdek,ncdeo->ncko", source, operation).reshape(rows, -1),
            "depths": np.concatenate([depth[:, :, 2:].reshape(rows, -1), depth.max(axis=2)], axis=1),
        }

    def _graph(self, choices: Integers, edges: list[tuple[int, int]]) -> Named:
        """Live edges with options; their counts; per option, the most and the sum over paths; living
        paths."""
        nodes = max(target for _, target in edges) + 1
        fed, used = np.zeros((2, len(choices), nodes), dtype=bool)
        fed[:, 0] = used[:, -1] = True
        present = choices != NO_EDGE
        for edge, (i, j) in sorted(enumerate(edges), key=lambda item: item[1][1]):
            fed[:, j] |= fed[:, i] & present[:, edge]
        for edge, (i, j) in sorted(enumerate(edges), key=lambda item: -item[1][0]):
            used[:, i] |= used[:, j] & present[:, edge]
        starts, ends = np.array(edges).T
        live = np.where(fed[:, starts] & used[:, ends], choices, NO_EDGE)
        hot = np.eye(int(self.space.counts[0]))[live]  # (n, edges, options)
        paths = _paths(edges, nodes)
        alive = np.stack([(live[:, path] != NO_EDGE).all(axis=1) for path in paths], axis=1)
        along = np.stack([hot[:, path].sum(axis=1) for path in paths], axis=1) * alive[:, :, None]
        return {
            EDGES: hot.reshape(len(choices), -1),
            "counts": hot.sum(axis=1),
            "most_on_a_path": along.max(axis=1),
            "sum_over_paths": along.sum(axis=1),
            "living_paths": alive + 0.0,
        }


def _paths(edges: list[tuple[int, int]], nodes: int) -> list[list[int]]:
    """Every way from the first to the last node, as edge numbers."""
    found: list[list[int]] = []
    open_ends: list[tuple[int, list[int]]] = [(0, [])]
    while open_ends:
        node, path = open_ends.pop()
        if node == nodes - 1:
            found.append(path)
        open_ends += [(j, [*path, edge]) for edge, (i, j) in enumerate(edges) if i == node]
    return found
