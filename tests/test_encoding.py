"""Vectors, choices and architectures stand for each other, whatever the cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes
from encoding import CellSpace, ChoiceSpace, Features, operation_counts
from genotypes import PRIMITIVES, Genotype, validate

SPACES = [CellSpace(distinct_inputs=distinct) for distinct in (False, True)]


@st.composite
def cells(draw, distinct=False):
    def edges():
        found = []
        for node in range(4):
            first = draw(st.integers(0, node + 1))
            left = [source for source in range(node + 2) if not distinct or source != first]
            second = draw(st.sampled_from(left))
            found += [(draw(st.sampled_from(PRIMITIVES)), first), (draw(st.sampled_from(PRIMITIVES)), second)]
        return found

    return validate(Genotype(edges(), [2, 3, 4, 5], edges(), [2, 3, 4, 5]))


@settings(max_examples=100, deadline=None)
@given(genotype=cells())
def test_decode_inverts_encode_for_every_cell(genotype):
    space = CellSpace()
    assert space.decode(space.encode(genotype)) == space.canonical(genotype)


@settings(max_examples=100, deadline=None)
@given(genotype=cells(distinct=True))
def test_decode_inverts_encode_with_distinct_inputs(genotype):
    space = CellSpace(distinct_inputs=True)
    assert space.decode(space.encode(genotype)) == space.canonical(genotype)


@settings(max_examples=100, deadline=None)
@given(genotype=cells(), swaps=st.lists(st.booleans(), min_size=8, max_size=8))
def test_swapping_the_edges_of_a_node_changes_neither_form_nor_features(genotype, swaps):
    def swapped(edges, flags):
        return [edges[2 * node + (place ^ flag)] for node, flag in enumerate(flags) for place in (0, 1)]

    space = CellSpace()
    other = validate(
        Genotype(
            swapped(genotype.normal, swaps[:4]), genotype.normal_concat,
            swapped(genotype.reduce, swaps[4:]), genotype.reduce_concat,
        )
    )  # fmt: skip
    assert space.canonical(other) == space.canonical(genotype)
    np.testing.assert_array_equal(
        space.features(space.choices(other)), space.features(space.choices(genotype))
    )


@settings(max_examples=50, deadline=None)
@given(genotype=cells())
def test_features_tell_different_cells_apart_and_count_every_edge(genotype):
    space = CellSpace()
    choices = space.choices(genotype)
    own = space.features(choices)[0]
    assert own.sum() == 16
    others = space.neighbours(choices)
    assert (np.abs(space.features(others) - own).sum(axis=1) > 0).all()


def test_the_box_is_the_published_one():
    space = CellSpace()
    inputs = [2, 3, 4, 5]
    assert space.positions == 32
    assert space.lower.tolist() == [0.0] * 32
    assert space.upper.tolist() == [bound for _ in range(2) for i in inputs for bound in (i, 7, i, 7)]


def test_the_bounds_belong_to_the_first_and_the_last_choice():
    space = CellSpace()
    first, last = space.decode(space.lower), space.decode(space.upper)
    assert first.normal == (("max_pool_3x3", 0),) * 8
    assert last.reduce[-1] == ("dil_conv_5x5", 4)
    assert last.reduce[0] == ("dil_conv_5x5", 1)
    assert last.normal_concat == (2, 3, 4, 5)


def test_decoding_floors():
    space = CellSpace()
    vector = np.full(32, 0.5)
    vector[1] = 3.999
    assert space.decode(vector).normal[1] == (
        "sep_conv_3x3",
        0,
    )  # sorted behind the max_pool of the other edge
    assert space.decode(vector).normal[0] == ("max_pool_3x3", 0)


@pytest.mark.parametrize(("value", "text"), [(7.5, "7.5"), (-0.1, "-0.1"), (float("nan"), "nan")])
def test_a_real_outside_the_box_is_named(value, text):
    vector = np.full(32, 0.5)
    vector[5] = value
    with pytest.raises(ValueError, match=rf"position 5 .* {text}: .* 0 to 7"):
        CellSpace().decode(vector)


def test_a_vector_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"\(3,\).*\(32,\)"):
        CellSpace().decode([0.0, 1.0, 2.0])


@pytest.mark.parametrize("space", SPACES)
def test_samples_decode_and_respect_distinct_inputs(space):
    rng = np.random.default_rng(0)
    for _ in range(50):
        vector = space.sample(rng)
        genotype = space.decode(vector)
        assert space.canonical(genotype) == genotype
        if space.distinct_inputs:
            for edges in (genotype.normal, genotype.reduce):
                assert all(edges[2 * node][1] != edges[2 * node + 1][1] for node in range(4))


def test_distinct_pairs_of_inputs_are_equally_likely():
    space = CellSpace(distinct_inputs=True)
    rng = np.random.default_rng(0)
    draws = np.stack([space.read(space.sample(rng)) for _ in range(3000)])
    _, counts = np.unique(draws[:, [12, 14]], axis=0, return_counts=True)  # the last node of the normal cell
    assert len(counts) == 10
    assert counts.min() > 220
    assert counts.max() < 380


@pytest.mark.parametrize("space", SPACES)
def test_neighbours_mutants_and_children_are_canonical_members(space):
    rng = np.random.default_rng(1)
    first, second = (space.read(space.sample(rng)) for _ in range(2))
    around = space.neighbours(first)
    assert (np.unique(around, axis=0) == around).all(), "distinct, and in order: ties go by it"
    for row in [*around, space.mutate(first, rng), space.cross(first, second, rng)]:
        genotype = space.architecture(row)
        assert space.canonical(genotype) == genotype
        assert (space.choices(genotype) == row).all()
    assert not (around == first).all(axis=1).any()
    assert (space.mutate(first, rng) != first).any()


def test_a_repeated_input_has_no_place_among_distinct_ones():
    with pytest.raises(ValueError, match="same input twice"):
        CellSpace(distinct_inputs=True).encode(genotypes.RelativeNAS)


def test_published_cells_survive_and_foreign_ones_are_refused_by_name():
    space = CellSpace()
    for name in ("DARTS_V1", "DARTS_V2", "PC_DARTS_cifar", "PDARTS", "RelativeNAS"):
        genotype = genotypes.lookup(name)
        assert space.decode(space.encode(genotype)) == space.canonical(genotype)
        assert sorted(space.canonical(genotype).normal) == sorted(genotype.normal)
    with pytest.raises(ValueError, match="10 edges"):
        space.encode(genotypes.NASNet)


def test_neighbours_are_in_the_order_of_their_numbers_whatever_these_are():
    around = ChoiceSpace([70_000, 3]).neighbours(np.array([256, 1]))
    assert (np.unique(around, axis=0) == around).all()


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=8),
)
def test_any_table_of_choices(data, counts):
    space = ChoiceSpace(counts)
    architecture = tuple(data.draw(st.integers(0, count - 1)) for count in counts)
    assert space.decode(space.encode(architecture)) == architecture
    assert len(space.neighbours(space.choices(architecture))) == sum(counts) - len(counts)


def test_table_errors_name_position_and_bounds():
    with pytest.raises(ValueError, match=r"position 1 is 3: allowed are 0 to 2"):
        ChoiceSpace([5, 3]).encode((0, 3))
    with pytest.raises(ValueError, match="at least one choice"):
        ChoiceSpace([5, 0])


def test_operation_counts_cover_the_whole_population():
    counts = operation_counts([genotypes.DARTS_V1, genotypes.DARTS_V2])
    assert list(counts) == [f"{cell}_{name}" for cell in ("normal", "reduce") for name in PRIMITIVES]
    assert counts["normal_sep_conv_3x3"] == 10
    assert counts["reduce_max_pool_3x3"] == 9
    assert sum(counts.values()) == 32


def test_blocks_can_be_left_out_but_the_edges():
    full = Features(CellSpace(), "cell")
    fewer = Features(CellSpace(), "cell", without=("depths", "counts_by_cell", "edges"))
    assert set(full.names()) - set(fewer.names()) == {"depths", "counts_by_cell"}
    assert [fewer.names()[place] for place in fewer.interacting()] == ["edges"]
    rows = np.zeros((2, fewer.space.positions), dtype=np.int64)
    assert len(fewer.blocks(rows)) == len(full.blocks(rows)) - 2


@pytest.mark.parametrize(
    "space", [CellSpace(), CellSpace(nodes=3, operations=("none", "skip_connect"), one_cell=True)]
)
def test_blocks_count_the_edges_of_the_cells(space):
    rng = np.random.default_rng(0)
    rows = np.stack([space.read(space.sample(rng)) for _ in range(20)])
    blocks = space.blocks(rows, "cell")
    cells, nodes, operations, sources = len(space.cells), space.nodes, len(space.operations), space.nodes + 1
    for place, row in enumerate(rows):
        expected = {
            "edges": np.zeros((cells, nodes, sources, operations)),
            "counts_by_cell": np.zeros((cells, operations)),
            "counts": np.zeros(operations),
            "counts_by_node": np.zeros((cells, nodes, operations)),
            "inputs_by_node": np.zeros((cells, nodes, sources)),
            "inputs": np.zeros((cells, sources)),
            "kinds_with_operations": np.zeros((cells, 3, operations)),
            "inputs_with_operations": np.zeros((cells, sources, operations)),
        }
        for cell, name in enumerate(space.cells):
            for edge, (operation, source) in enumerate(getattr(space.architecture(row), name)):
                node, chosen = edge // 2, space.operations.index(operation)
                expected["edges"][cell, node, source, chosen] += 1
                expected["counts_by_cell"][cell, chosen] += 1
                expected["counts"][chosen] += 1
                expected["counts_by_node"][cell, node, chosen] += 1
                expected["inputs_by_node"][cell, node, source] += 1
                expected["inputs"][cell, source] += 1
                expected["kinds_with_operations"][cell, min(source, 2), chosen] += 1
                expected["inputs_with_operations"][cell, source, chosen] += 1
        possible = [expected["edges"][:, node, : node + 2] for node in range(nodes)]
        whole = np.concatenate([one.reshape(cells, -1) for one in possible], axis=1)
        expected["edges"] = whole
        assert (space.features(row)[0] == whole.ravel()).all()
        for name, block in blocks.items():
            assert name == "depths" or (block[place] == expected[name].ravel()).all(), name


def test_depth_counts_nodes_in_a_row():
    space = CellSpace()
    chain, flat = space.upper - 0.5, space.lower + 0.5  # last inputs, first inputs
    deep, shallow = Features(space, "cell").blocks(np.stack([space.read(chain), space.read(flat)]))[-1]
    assert (deep >= shallow).all()
    assert (deep > shallow).any()
