"""The space of NAS-Bench-201: one cell that is a complete graph, with an operation on each edge.

What a predictor sees of such a graph is here too, for tables whose positions are its edges.
"""

from collections.abc import Sequence

import numpy as np

from encoding import EDGES, Architecture, Blocks, ChoiceSpace, Integers
from genotypes import NASBENCH201, CompleteCell, validate

Graph = list[tuple[int, int]]  # source and target of each edge; every node feeds every later one


class GraphSpace(ChoiceSpace):
    """Cells in which every node adds up an edge from each one before it; a choice is an edge's operation.

    The edges run node by node, as in a `CompleteCell`. The defaults are NAS-Bench-201 (arXiv 2001.00326):
    four nodes, the input among them, six edges, 5**6 = 15,625 cells.
    """

    cells = CompleteCell._fields

    def __init__(self, *, nodes: int = 4, operations: Sequence[str] = NASBENCH201) -> None:
        if nodes < 2:
            raise ValueError(f"nodes={nodes}: a cell needs an input and an output")
        self.nodes, self.operations = nodes, tuple(operations)
        self.graph: Graph = [(source, node) for node in range(1, nodes) for source in range(node)]
        super().__init__([len(self.operations)] * len(self.graph))
        self.readings = {"graph": 0.0}

    def architecture(self, choices: Integers) -> CompleteCell:
        """The cell made of `choices`, (positions,)."""
        pairs = zip(choices.tolist(), self.graph, strict=True)
        return validate(
            CompleteCell(tuple((self.operations[choice], source) for choice, (source, _) in pairs))
        )

    def choices(self, architecture: Architecture) -> Integers:
        """The choices of a cell, (positions,). ValueError names the edge that this space does not have."""
        if not isinstance(architecture, CompleteCell):
            raise ValueError("no complete cell (NAS-Bench-201), which this space needs")
        if len(architecture.cell) != self.positions:
            raise ValueError(f"cell has {len(architecture.cell)} edges: this space needs {self.positions}")
        for edge, (operation, _) in enumerate(architecture.cell):
            if operation not in self.operations:
                raise ValueError(
                    f"cell edge {edge}: operation {operation!r} is not searched; "
                    f"allowed are {', '.join(self.operations)}"
                )
        return np.array(
            [self.operations.index(operation) for operation, _ in architecture.cell], dtype=np.int64
        )

    def blocks(self, choices: Integers, reading: str) -> Blocks:
        """Live edges with operations, and what lies on the paths from input to output."""
        none = self.operations.index("none") if "none" in self.operations else None
        return graph_blocks(np.atleast_2d(choices), self.graph, len(self.operations), none)


def graph_blocks(choices: Integers, graph: Graph, options: int, none: int | None) -> Blocks:
    """Features of rows of choices (n, edges): live edges with options; their counts; per option, the most
    and the sum over paths; live paths.

    `none` is the option that means no edge: what hangs on it is dead, and counts as such an edge.
    """
    nodes = max(target for _, target in graph) + 1
    fed, used = np.zeros((2, len(choices), nodes), dtype=bool)
    fed[:, 0] = used[:, -1] = True
    present = np.ones(choices.shape, dtype=bool) if none is None else choices != none
    for edge, (i, j) in sorted(enumerate(graph), key=lambda item: item[1][1]):
        fed[:, j] |= fed[:, i] & present[:, edge]
    for edge, (i, j) in sorted(enumerate(graph), key=lambda item: -item[1][0]):
        used[:, i] |= used[:, j] & present[:, edge]
    starts, ends = np.array(graph).T
    alive = fed[:, starts] & used[:, ends] & present
    live = choices if none is None else np.where(alive, choices, none)
    hot = np.eye(options)[live]  # (n, edges, options)
    paths = _paths(graph, nodes)
    whole = np.stack([alive[:, path].all(axis=1) for path in paths], axis=1)
    along = np.stack([hot[:, path].sum(axis=1) for path in paths], axis=1) * whole[:, :, None]
    return {
        EDGES: hot.reshape(len(choices), -1),
        "counts": hot.sum(axis=1),
        "most_on_a_path": along.max(axis=1),
        "sum_over_paths": along.sum(axis=1),
        "living_paths": whole + 0.0,
    }


def _paths(graph: Graph, nodes: int) -> list[list[int]]:
    """Every way from the first to the last node, as edge numbers."""
    found: list[list[int]] = []
    open_ends: list[tuple[int, list[int]]] = [(0, [])]
    while open_ends:
        node, path = open_ends.pop()
        if node == nodes - 1:
            found.append(path)
        open_ends += [(j, [*path, edge]) for edge, (i, j) in enumerate(graph) if i == node]
    return found
