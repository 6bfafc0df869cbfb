"""What the positions of a table may mean: hypotheses for the predictor, which keeps the likeliest.

A table of choices does not say it. So there are several readings: positions apart; choices in order (widths,
depths); or the edges of a graph in which every node feeds every later one and one option is "no edge", so
that what hangs on it is dead.
"""

import math
from collections.abc import Sequence

import numpy as np

from encoding import EDGES, Blocks, ChoiceSpace, Integers

NO_EDGE = 0  # the option that means it, by convention of such tables
LARGEST_GRAPH = 7  # nodes; the number of paths doubles with each


class TableSpace(ChoiceSpace):
    """The architectures of a table, under every reading that its number of choices allows."""

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(counts)
        self.readings = {"apart": 0.0, "ordered": -1.0}
        self.graphs: dict[str, list[tuple[int, int]]] = {}  # source and target of each position
        nodes = (1 + math.isqrt(1 + 8 * len(counts))) // 2
        complete = nodes * (nodes - 1) // 2 == len(counts) and (self.counts == self.counts[0]).all()
        if 3 <= nodes <= LARGEST_GRAPH and complete and self.counts[0] > 1:
            self.graphs["graph by source"] = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
            self.graphs["graph by target"] = [(i, j) for j in range(nodes) for i in range(j)]
            self.readings |= {"graph by source": 2.0, "graph by target": 0.0}

    def blocks(self, choices: Integers, reading: str) -> Blocks:
        """Named groups of features of rows of choices, as `reading` has them."""
        choices = np.atleast_2d(choices)
        if reading in self.graphs:
            return self._graph(choices, self.graphs[reading])
        if reading == "ordered":
            levels = choices / np.maximum(self.counts - 1, 1)
            total = levels.sum(axis=1, keepdims=True)
            return {EDGES: self.features(choices), "levels": levels, "level_sum": total}
        return super().blocks(choices, reading)

    def _graph(self, choices: Integers, edges: list[tuple[int, int]]) -> Blocks:
        """Live edges with options; their counts; per option, the most and the sum over paths; live paths."""
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
        hot = np.eye(int(self.counts[0]))[live]  # (n, edges, options)
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
