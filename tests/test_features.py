"""Blocks of features: what the predictor may see, and what it must not."""

import numpy as np
import pytest

from encoding import CellSpace, ChoiceSpace
from features import Features

GRAPH = ChoiceSpace([5] * 6)  # edges 0-1, 0-2, 0-3, 1-2, 1-3, 2-3


@pytest.mark.parametrize(
    "space", [CellSpace(), CellSpace(distinct_inputs=True), GRAPH, ChoiceSpace([3, 7, 2])]
)
def test_every_reading_scales_its_blocks_alike(space):
    features = Features(space)
    rng = np.random.default_rng(3)
    rows = np.stack([space.read(space.sample(rng)) for _ in range(1500)])
    for reading in features.readings:
        for block in features.blocks(rows, reading):
            assert block.shape[0] == 1500
            squared = ((block[:750] - block[750:]) ** 2).sum(axis=1).mean()
            assert squared == pytest.approx(2.0, rel=0.25)


def test_cells_and_tables_are_read_as_they_can_be():
    assert list(Features(CellSpace()).readings) == ["cell"]
    assert "graph by source" in Features(GRAPH).readings
    assert list(Features(ChoiceSpace([5] * 5)).readings) == ["apart", "ordered"]
    assert list(Features(ChoiceSpace([5, 5, 5, 5, 5, 4])).readings) == ["apart", "ordered"]


def test_blocks_can_be_left_out_but_the_edges():
    full = Features(CellSpace())
    fewer = Features(CellSpace(), without=("depths", "counts_by_cell", "edges"))
    assert set(full.names("cell")) - set(fewer.names("cell")) == {"depths", "counts_by_cell"}
    assert [fewer.names("cell")[place] for place in fewer.mixing("cell")] == ["edges"]
    rows = np.zeros((2, fewer.space.positions), dtype=np.int64)
    assert len(fewer.blocks(rows, "cell")) == len(full.blocks(rows, "cell")) - 2


def test_what_hangs_on_a_missing_edge_is_dead():
    features = Features(GRAPH)

    def same(a, b, reading="graph by source"):
        blocks = features.blocks(np.array([a, b]), reading)
        return all(np.array_equal(block[0], block[1]) for block in blocks)

    # Node 1 gets nothing, so what leaves it does not matter; the direct edge does.
    assert same([0, 2, 3, 1, 4, 2], [0, 2, 3, 3, 1, 2])
    assert not same([0, 2, 3, 1, 4, 2], [0, 2, 1, 1, 4, 2])
    assert not same([0, 2, 3, 1, 4, 2], [0, 2, 3, 3, 1, 2], "apart")
    # Nothing arrives: all such are one.
    assert same([0, 0, 0, 1, 2, 3], [1, 1, 0, 2, 0, 0])


def test_paths_carry_their_options():
    features = Features(GRAPH)
    _, counts, most, total, paths = features.blocks(
        np.array([[3, 0, 1, 0, 3, 0], [3, 1, 1, 3, 0, 3]]), "graph by source"
    )
    assert (paths > 0).sum(axis=1).tolist() == [2, 3]
    assert (paths > 0).all(axis=0).sum() == 1  # the direct edge is all that they share
    assert most[1, 3] > most[0, 3]  # three in a row against two
    assert counts[1, 3] > counts[0, 3]
    assert total[1, 3] > total[0, 3]


def test_depth_counts_nodes_in_a_row():
    space = CellSpace()
    chain, flat = space.upper - 0.5, space.lower + 0.5  # last inputs, first inputs
    deep, shallow = Features(space).blocks(np.stack([space.read(chain), space.read(flat)]), "cell")[-1]
    assert (deep >= shallow).all()
    assert (deep > shallow).any()
