"""cells.py: validation that names the edge; genotypes as plain types and JSON, and back."""

import numpy as np
import pytest

import genotypes
from cells import (
    OPERATIONS,
    PRIMITIVES,
    CompleteCell,
    Genotype,
    difference,
    edges_of,
    from_arch_string,
    from_json,
    to_arch_string,
    to_json,
    validate,
    without_path,
)
from genotypes import RelativeNAS


def changed(field: str, place: int, value: object) -> Genotype:
    values = list(getattr(RelativeNAS, field))
    values[place] = value
    return RelativeNAS._replace(**{field: values})


def test_published_order_of_operations() -> None:
    names = "max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5"
    assert names.split() == list(PRIMITIVES)
    others = {"none", "sep_conv_7x7", "conv_7x1_1x7", "nor_conv_1x1", "nor_conv_3x3"}
    assert set(OPERATIONS) - set(PRIMITIVES) == others


def test_validate_makes_tuples_of_lists_ranges_and_numpy() -> None:
    lists = [
        [list(edge) for edge in RelativeNAS.normal],
        range(2, 6),
        list(RelativeNAS.reduce),
        np.arange(2, 6),
    ]
    result = validate(lists)
    assert result == RelativeNAS
    assert isinstance(result, Genotype)
    assert type(result.reduce_concat[0]) is int


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (
            changed("normal", 5, ("sep_conv_3x3", 5)),
            "normal cell, node 2, edge 1: input 5 is not one of 0..3",
        ),
        (
            changed("reduce", 0, ("sep_conv_3x3", 2)),
            "reduction cell, node 0, edge 0: input 2 is not one of 0..1",
        ),
        (changed("reduce", 7, ("sep_conv_3x3", -1)), "reduction cell, node 3, edge 1: input -1"),
        (changed("normal", 0, ("sep_conv_3x3", True)), "normal cell, node 0, edge 0: input True"),
        (changed("normal", 0, ("sep_conv_3x3", 0.0)), "normal cell, node 0, edge 0: input 0.0"),
        (
            changed("normal", 2, ("conv_9x9", 0)),
            "node 1, edge 0: operation 'conv_9x9' is not one of max_pool",
        ),
        (changed("normal", 3, "ab"), "normal cell, node 1, edge 1: 'ab' is not an .operation, input. pair"),
        (changed("normal", 3, ("skip_connect",)), "normal cell, node 1, edge 1: .* is not an"),
        (changed("normal_concat", 0, 6), "normal cell, normal_concat: node 6 is not one of 2..5"),
        (changed("reduce_concat", 0, 1), "reduction cell, reduce_concat: node 1 is not one of 2..5"),
        (
            changed("reduce_concat", 0, 3),
            r"reduce_concat: \[3, 3, 4, 5\] must name at least one node, each once",
        ),
        (RelativeNAS._replace(normal_concat=()), "normal_concat: .* at least one node"),
        (RelativeNAS._replace(normal=RelativeNAS.normal[:7]), "normal cell: 7 edges; each node takes two"),
        (RelativeNAS._replace(reduce=()), "reduction cell: 0 edges"),
        (RelativeNAS._replace(reduce=None), "reduction cell: reduce is None, not a list"),
        (RelativeNAS[:3], "is not a genotype: it needs normal, normal_concat, reduce, reduce_concat"),
        ("DARTS", "is not a genotype"),
    ],
)
def test_validate_names_what_is_wrong(genotype: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(genotype)


@pytest.mark.parametrize("name", genotypes.names())
def test_json_round_trip(name: str) -> None:
    text = to_json(getattr(genotypes, name))
    assert "\n" not in text
    assert " " not in text
    assert from_json(text) == getattr(genotypes, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("[1, 2]", "a genotype is an object with normal"),
        ('{"normal": [], "reduce": []}', "lacks normal_concat, reduce_concat"),
        (to_json(RelativeNAS)[:-1] + ',"extra":1}', "unknown field 'extra'"),
    ],
)
def test_from_json_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


COMPLETE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def test_a_complete_cell_goes_through_json_and_the_words_of_its_benchmark() -> None:
    cell = from_arch_string(COMPLETE)
    assert isinstance(cell, CompleteCell)
    assert cell.cell[:3] == (("nor_conv_3x3", 0), ("none", 0), ("skip_connect", 1))
    assert [node for *_, node in edges_of(cell, "cell")] == [1, 2, 2, 3, 3, 3]
    assert to_arch_string(cell) == COMPLETE
    assert to_json(cell).startswith('{"cell":[["nor_conv_3x3",0],["none",0],')
    assert from_json(to_json(cell)) == cell


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cell": []}', "0 edges"),
        ('{"cell": [["none", 0], ["none", 0]]}', "2 edges"),
        ('{"cell": {"none": 0}}', "not a list"),
        ('{"cell": [["none", 0], ["none", 0], ["none", 0]]}', "cell, node 2, edge 1: input 0; .*in order"),
        ('{"cell": [["none", 0], ["none", 0], ["none", 2]]}', r"cell, node 2, edge 1: input 2 .*0\.\.1"),
        ('{"cell": [["magic", 0]]}', "cell, node 1, edge 0: operation 'magic' is not one of"),
        ('{"cell": [["none", 0]], "normal": []}', "unknown field 'normal'"),
    ],
)
def test_a_wrong_complete_cell_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


@pytest.mark.parametrize(
    "text", ["|none~0", "|none~0|+|none~0|", "|none~0|none~0|+|none~1|", "|", "|none~0|x"]
)
def test_a_wrong_text_of_the_benchmark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"edges|NAS-Bench-201"):
        from_arch_string(text)


def test_how_two_cells_differ() -> None:
    darts, graph = genotypes.DARTS_V1, from_arch_string(COMPLETE)
    assert difference(graph, darts) == "one complete cell (NAS-Bench-201), not a normal and a reduction cell"
    assert difference(genotypes.NASNet, darts) == "normal cell of 10 edges, not 8"
    other = darts._replace(reduce=(("none", 0), *darts.reduce[1:]))
    words = "reduction cell, node 0, edge 0: none of input 0, not max_pool_3x3 of input 0"
    assert difference(other, darts) == words
    other = darts._replace(normal_concat=(2, 3))
    assert difference(other, darts) == "normal cell, normal_concat: [2, 3], not [2, 3, 4, 5]"
    other = from_arch_string(COMPLETE.replace("avg_pool_3x3", "none"))
    words = "cell, node 3, edge 0: avg_pool_3x3 of input 0, not none of input 0"
    assert difference(graph, other) == words


def test_cells_without_a_path() -> None:
    assert without_path(from_arch_string(COMPLETE)) == []
    for text in (
        "|none~0|",
        "|none~0|+|none~0|nor_conv_3x3~1|",
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|",
    ):
        assert without_path(from_arch_string(text)) == ["cell"]
    assert without_path(from_arch_string("|none~0|+|skip_connect~0|none~1|")) == []
    assert not any(without_path(getattr(genotypes, name)) for name in genotypes.names())
    dead = tuple(("none", source) for _, source in RelativeNAS.normal)
    assert without_path(RelativeNAS._replace(normal=dead)) == ["normal"]
    # Only the last node is fed, and only the first one is the output.
    fed = (*dead[:-1], ("skip_connect", 0))
    assert without_path(RelativeNAS._replace(reduce=fed)) == []
    assert without_path(RelativeNAS._replace(reduce=fed, reduce_concat=(2,))) == ["reduce"]
