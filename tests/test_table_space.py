"""What the predictor may see of a table, under every reading, and what it must not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from encoding import CellSpace, ChoiceSpace, Features

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from table_space import TableSpace

GRAPH = TableSpace([5] * 6)  # edges 0-1, 0-2, 0-3, 1-2, 1-3, 2-3


@pytest.mark.parametrize(
    "space",
    [CellSpace(), CellSpace(distinct_inputs=True), GRAPH, TableSpace([3, 7, 2]), ChoiceSpace([3, 7, 2])],
)
def test_every_reading_scales_its_blocks_alike(space):
    rng = np.random.default_rng(3)
    rows = np.stack([space.read(space.sample(rng)) for _ in range(1500)])
    for reading in space.readings:
        for block in Features(space, reading).blocks(rows):
            assert block.shape[0] == 1500
            squared = ((block[:750] - block[750:]) ** 2).sum(axis=1).mean()
            assert squared == pytest.approx(2.0, rel=0.25)


def test_cells_and_tables_are_read_as_they_can_be():
    assert list(CellSpace().readings) == ["cell"]
    assert "graph by source" in GRAPH.readings
    assert list(TableSpace([5] * 5).readings) == ["apart", "ordered"]
    assert list(TableSpace([5, 5, 5, 5, 5, 4]).readings) == ["apart", "ordered"]


def test_what_hangs_on_a_missing_edge_is_dead():
    def same(a, b, reading="graph by source"):
        blocks = Features(GRAPH, reading).blocks(np.array([a, b]))
        return all(np.array_equal(block[0], block[1]) for block in blocks)

    # Node 1 gets nothing, so what leaves it does not matter; the direct edge does.
    assert same([0, 2, 3, 1, 4, 2], [0, 2, 3, 3, 1, 2])
    assert not same([0, 2, 3, 1, 4, 2], [0, 2, 1, 1, 4, 2])
    assert not same([0, 2, 3, 1, 4, 2], [0, 2, 3, 3, 1, 2], "apart")
    # Nothing arrives: all such are one.
    assert same([0, 0, 0, 1, 2, 3], [1, 1, 0, 2, 0, 0])


def test_paths_carry_their_options():
    _, counts, most, total, paths = Features(GRAPH, "graph by source").blocks(
        np.array([[3, 0, 1, 0, 3, 0], [3, 1, 1, 3, 0, 3]])
    )
    assert (paths > 0).sum(axis=1).tolist() == [2, 3]
    assert (paths > 0).all(axis=0).sum() == 1  # the direct edge is all that they share
    assert most[1, 3] > most[0, 3]  # three in a row against two
    assert counts[1, 3] > counts[0, 3]
    assert total[1, 3] > total[0, 3]
