"""Which cells a search chooses among: what the flags give, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoding import CellSpace, Features
from genotypes import NASBENCH201, PRIMITIVES, CompleteCell, Genotype
from graph_space import GraphSpace
from search.paired_search import Outcome, PairedSearch, Settings
from spaces import Space
from train_search import Config

SPACES = [
    Space(),
    Space(nodes=1, operations=("none", "sep_conv_3x3")),
    Space(nodes=3, cells="normal", distinct_inputs=True),
    Space(operations=("nor_conv_3x3", "sep_conv_7x7", "skip_connect"), cells="normal"),
    Space("nasbench201"),
    Space("nasbench201", operations=("nor_conv_3x3", "sep_conv_3x3")),
]


def test_the_default_is_the_space_of_darts():
    space, published = Space.of(Config()).encoding(), CellSpace()
    assert (space.nodes, space.operations, space.cells) == (4, PRIMITIVES, ("normal", "reduce"))
    assert space.counts.tolist() == published.counts.tolist()
    assert Space("nasbench201").searched == NASBENCH201


@pytest.mark.parametrize("space", SPACES, ids=str)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_vector_is_a_cell_and_every_cell_has_one(space, seed):
    encoding = space.encoding()
    cell = encoding.decode(encoding.sample(np.random.default_rng(seed)))
    assert encoding.canonical(cell) == cell
    assert encoding.decode(encoding.encode(cell)) == cell
    names = {name for kind in encoding.cells for name, _ in getattr(cell, kind)}
    assert names <= set(space.searched)
    if space.space == "nasbench201":
        assert isinstance(cell, CompleteCell)
    else:
        assert isinstance(cell, Genotype)
        assert len(cell.normal) == 2 * (space.nodes or 4)
        assert (cell.normal == cell.reduce) or space.cells == "both"
        if space.distinct_inputs:
            assert all(a[1] != b[1] for a, b in zip(cell.normal[::2], cell.normal[1::2], strict=True))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_predictors_features_tell_cells_apart(space):
    encoding = space.encoding()
    rng = np.random.default_rng(0)
    rows = np.unique([encoding.read(encoding.sample(rng)) for _ in range(200)], axis=0)
    (reading,) = encoding.readings
    if space.searched == NASBENCH201:  # what hangs on a missing edge is dead, so such cells may look alike
        rows = rows[(rows != NASBENCH201.index("none")).all(axis=1)]
    assert len(rows) > 5
    assert len(np.unique(encoding.blocks(rows, reading)["edges"], axis=0)) == len(rows)
    assert all(np.isfinite(block).all() for block in Features(encoding, reading).blocks(rows))


def test_one_cell_halves_the_vector_and_refuses_two_kinds():
    space = Space(cells="normal").encoding()
    assert space.positions == CellSpace().positions // 2
    cell = space.decode(space.sample(np.random.default_rng(0)))
    other = next(name for name in PRIMITIVES if name != cell.reduce[-1][0])
    with pytest.raises(ValueError, match="one cell for both kinds"):
        space.choices(cell._replace(reduce=(*cell.reduce[:-1], (other, cell.reduce[-1][1]))))


def test_cells_of_another_space_are_refused():
    darts, graph = Space().encoding(), GraphSpace()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="complete cell"):
        graph.choices(darts.decode(darts.sample(rng)))
    with pytest.raises(ValueError, match="normal and reduction cell"):
        darts.choices(graph.decode(graph.sample(rng)))
    with pytest.raises(ValueError, match="'nor_conv_3x3' is not searched"):
        Space("nasbench201", operations=("none", "nor_conv_1x1")).encoding().choices(
            CompleteCell(tuple(("nor_conv_3x3", source) for source in (0, 0, 1, 0, 1, 2)))
        )


def test_what_hangs_on_a_missing_edge_of_a_graph_is_dead():
    space = GraphSpace()

    def block(*names):
        choices = np.array([[NASBENCH201.index(name) for name in names]])
        return {name: values.tolist() for name, values in space.blocks(choices, "graph").items()}

    # Node 1 gets nothing, so its edges to nodes 2 and 3 count for nothing, whatever they are.
    dead = block("none", "skip_connect", "nor_conv_3x3", "none", "nor_conv_3x3", "nor_conv_1x1")
    assert dead == block("none", "skip_connect", "none", "none", "none", "nor_conv_1x1")
    assert dead != block("none", "skip_connect", "none", "none", "none", "nor_conv_3x3")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"operations": ("none", "sep_conv_33")}, ["'sep_conv_33'", "nor_conv_1x1", "mean sep_conv_3x3?"]),
        ({"operations": ("sep_conv_3x3",)}, ["--operations sep_conv_3x3", "too few"]),
        ({"operations": ()}, ["--operations", "too few"]),
        ({"operations": ("sep_conv_3x3", "sep_conv_3x3")}, ["there twice"]),
        ({"operations": ("none",)}, ["path"]),
        ({"nodes": 0}, ["--nodes 0", "1 to 16"]),
        ({"nodes": 17}, ["--nodes 17", "1 to 16"]),
        ({"space": "nasbench201", "nodes": 3}, ["--nodes 3", "nasbench201"]),
        ({"space": "nasbench201", "cells": "normal"}, ["--cells normal", "nasbench201"]),
        ({"space": "nasbench201", "distinct_inputs": True}, ["--distinct_inputs", "nasbench201"]),
    ],
)
def test_what_cannot_be_is_said(flags, words):
    with pytest.raises(ValueError, match="--") as error:
        dataclasses.replace(Config(), **flags).check()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_guided_search_moves_in_every_space(space):
    """With a toy: as many of the first operation as there can be."""
    encoding = space.encoding()
    wanted = space.searched[0]

    def loss(cell):
        return -float(sum(name == wanted for kind in encoding.cells for name, _ in getattr(cell, kind)))

    search = PairedSearch(space=encoding, settings=Settings(pop_size=8, generations=8))
    seen = []
    while pairs := search.ask():
        for pair in pairs:
            outcome = None
            if pair.decided_by != "predictor":
                seen += [loss(pair.a), loss(pair.b)]
                outcome = Outcome.exact(*seen[-2:])
            search.tell(pair, outcome)
    assert loss(search.best()) == min(seen)
    assert min(seen) < np.mean(seen[:8])  # of random cells
