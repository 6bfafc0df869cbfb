"""Search spaces: which cells a search chooses among, as its flags say.

    space = Space(nodes=3, operations=("sep_conv_3x3", "skip_connect"))     # of DARTS, with limits of its own
    Space("nasbench201").encoding()                                         # what a search moves in

How vectors mean cells is in `encoding.py` and `graph_space.py`, the networks around the cells are in
`model.py` and `skeletons.py`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cells import NASBENCH201, OPERATIONS, PRIMITIVES, AnyGenotype, known_operations
from encoding import CellSpace
from graph_space import GraphSpace

OF_SPACE = {"darts": PRIMITIVES, "nasbench201": NASBENCH201}  # the operations, unless others are given
FULL_SIZE = {"darts": (36, 20), "nasbench201": (16, 15)}  # channels and cells of the published networks
NODES = 4  # in both, in NAS-Bench-201 with the input
MOST_NODES = 16


@dataclass(frozen=True)
class Space:
    """The cells that a search chooses among; the fields are the flags of `train_search.py`.

    `operations` and `nodes` of None are those of the published space. ValueError names the flag that cannot
    be.
    """

    space: Literal["darts", "nasbench201"] = "darts"
    operations: tuple[str, ...] | None = None
    nodes: int | None = None
    cells: Literal["both", "normal"] = "both"
    distinct_inputs: bool = False

    def __post_init__(self) -> None:
        if self.operations is not None:
            _check_operations(self.operations)
        if self.nodes is not None and not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"--nodes {self.nodes}: allowed are 1 to {MOST_NODES}")
        if self.space != "darts":
            for name in ("nodes", "cells", "distinct_inputs"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"--{name} {getattr(self, name)}: no effect with --space {self.space}, whose cell "
                        f"has {NODES} nodes and an edge between any two"
                    )

    @classmethod
    def of(cls, config: Any) -> Space:
        """The space that a config with these flags describes."""
        return cls(config.space, config.operations, config.nodes, config.cells, config.distinct_inputs)

    @property
    def searched(self) -> tuple[str, ...]:
        """The operations that an edge may have."""
        return self.operations or OF_SPACE[self.space]

    def encoding(self) -> CellSpace | GraphSpace:
        """The box of reals in which the search moves."""
        if self.space == "nasbench201":
            return GraphSpace(operations=self.searched)
        return CellSpace(
            nodes=self.nodes or NODES,
            distinct_inputs=self.distinct_inputs,
            operations=self.searched,
            one_cell=self.cells == "normal",
        )

    @property
    def published(self) -> bool:
        """Whether these are cells of the published DARTS space, all of them or those with distinct inputs."""
        shape = (self.space, self.searched, self.nodes or NODES, self.cells)
        return shape == ("darts", PRIMITIVES, NODES, "both")

    def uniform(self, operation: str) -> AnyGenotype:
        """The cell all of whose edges have one operation; in DARTS they begin at the cell's inputs."""
        encoding, place = self.encoding(), self.searched.index(operation)
        row = [place] if isinstance(encoding, GraphSpace) else [0, place, 1, place]
        return encoding.architecture(np.array(row * (encoding.positions // len(row))))

    @property
    def full_size(self) -> tuple[int, int]:
        """Channels and cells of the published network."""
        return FULL_SIZE[self.space]


def _check_operations(names: tuple[str, ...]) -> None:
    """ValueError unless these are two or more different operations that a cell can be made of."""
    flag = f"--operations {' '.join(names)}".rstrip()
    for name in names:
        if name not in OPERATIONS and name not in (known := known_operations()):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"--operations: {name!r} is not one of {', '.join(known)}{hint}")
        if names.count(name) > 1:
            raise ValueError(f"{flag}: {name} is there twice")
    if set(names) == {"none"}:
        raise ValueError(f"{flag}: no cell has a path from its input to its output")
    if len(names) < 2:
        raise ValueError(f"{flag}: too few; a search chooses among two or more")
