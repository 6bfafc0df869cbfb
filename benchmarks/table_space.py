"""What the positions of a table may mean: hypotheses for the predictor, which keeps the likeliest.

A table of choices does not say it. So there are several readings: positions apart; choices in order (widths,
depths); or the edges of a graph in which every node feeds every later one and one option is "no edge", so
that what hangs on it is dead.
"""

import math
from collections.abc import Sequence

import numpy as np

from encoding import EDGES, Blocks, ChoiceSpace, Integers
from graph_space import graph_blocks

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
            return graph_blocks(choices, self.graphs[reading], int(self.counts[0]), NO_EDGE)
        if reading == "ordered":
            levels = choices / np.maximum(self.counts - 1, 1)
            total = levels.sum(axis=1, keepdims=True)
            return {EDGES: self.features(choices), "levels": levels, "level_sum": total}
        return super().blocks(choices, reading)
