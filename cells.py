"""What a genotype is: the operations of its edges, its checks, and its form as plain types and as JSON.

A cell has two inputs (0 and 1, the outputs of the two cells before it) and a few nodes (2, 3, ...). A node
adds up two edges, each an operation applied to an earlier input or node; the cell's output concatenates some
of its nodes. A network is a stack of normal cells and reduction cells: a genotype describes one of each. The
genotypes that have a name are in `genotypes.py`.
"""

import json
import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Order as published: the encoding's operation number is the place in this tuple.
PRIMITIVES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
OPERATIONS = (*PRIMITIVES, "none", "sep_conv_7x7", "conv_7x1_1x7")

CELLS = ("normal", "reduce")
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")

Edge = tuple[str, int]


class Genotype(NamedTuple):
    """A normal and a reduction cell. Edges are (operation, input), two for each node in order; the inputs 0
    and 1 are the cell's own, 2 is the first node. The concat fields name the nodes that form the output.
    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]


def _integer(value: object) -> int | None:
    """An int from anything that is exactly one (NumPy's too), else None. A truth value is no number here."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_edge(edge: Any, inputs: int, where: str) -> Edge:
    """One edge as (operation, input), the input below `inputs`; ValueError begins with `where`."""
    if isinstance(edge, str | Mapping) or not hasattr(edge, "__len__") or len(edge) != 2:
        raise ValueError(f"{where}: {reprlib.repr(edge)} is not an (operation, input) pair")
    operation, source = edge
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise ValueError(
            f"{where}: operation {reprlib.repr(operation)} is not one of {', '.join(OPERATIONS)}"
        )
    number = _integer(source)
    if number is None or not 0 <= number < inputs:
        raise ValueError(f"{where}: input {reprlib.repr(source)} is not one of 0..{inputs - 1}")
    return operation, number


def _check_cell(fields: Sequence[Any], cell: str) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """The edges and the concatenated nodes of one cell as tuples; ValueError says which edge is wrong."""
    edges, concat = fields
    name = {"normal": "normal cell", "reduce": "reduction cell"}[cell]
    for field, value in ((cell, edges), (f"{cell}_concat", concat)):
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
            raise ValueError(f"{name}: {field} is {reprlib.repr(value)}, not a list")
    if len(edges) == 0 or len(edges) % 2:
        raise ValueError(f"{name}: {len(edges)} edges; each node takes two, and there must be a node")
    checked = tuple(
        _check_edge(edge, place // 2 + 2, f"{name}, node {place // 2}, edge {place % 2}")
        for place, edge in enumerate(edges)
    )
    last = len(checked) // 2 + 1
    outputs = tuple(_integer(node) for node in concat)
    for node, number in zip(concat, outputs, strict=True):
        if number is None or not 2 <= number <= last:
            raise ValueError(f"{name}, {cell}_concat: node {reprlib.repr(node)} is not one of 2..{last}")
    if not outputs or len(set(outputs)) < len(outputs):
        raise ValueError(f"{name}, {cell}_concat: {list(outputs)} must name at least one node, each once")
    return checked, tuple(node for node in outputs if node is not None)


def validate(genotype: Any) -> Genotype:
    """The same genotype with tuples inside, after checking every edge and every concatenated node.

    Takes any four sequences (tuples, lists, ranges, NumPy arrays). ValueError names the cell, and the node
    and the edge counted from 0: "normal cell, node 2, edge 1: input 5 is not one of 0..3".
    """
    if not isinstance(genotype, tuple | list) or len(genotype) != len(FIELDS):
        raise ValueError(f"{reprlib.repr(genotype)} is not a genotype: it needs {', '.join(FIELDS)}")
    return Genotype(*_check_cell(genotype[:2], "normal"), *_check_cell(genotype[2:], "reduce"))


def to_dict(genotype: Genotype) -> dict[str, list[Any]]:
    """Lists and plain types only, as in `genotype.json`: {"normal": [["sep_conv_3x3", 0], ...], ...}."""
    checked = validate(genotype)
    return {
        "normal": [list(edge) for edge in checked.normal],
        "normal_concat": list(checked.normal_concat),
        "reduce": [list(edge) for edge in checked.reduce],
        "reduce_concat": list(checked.reduce_concat),
    }


def from_dict(fields: object) -> Genotype:
    """The inverse of `to_dict`. ValueError where a field is missing, unknown or wrong."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a genotype is an object with {', '.join(FIELDS)}, not {type(fields).__name__}")
    if missing := [field for field in FIELDS if field not in fields]:
        raise ValueError(f"the genotype lacks {', '.join(missing)}")
    if unknown := [str(field) for field in fields if field not in FIELDS]:
        raise ValueError(
            f"the genotype has the unknown field {reprlib.repr(unknown[0])}; known are {', '.join(FIELDS)}"
        )
    return validate([fields[field] for field in FIELDS])


def to_json(genotype: Genotype) -> str:
    """One compact line, without spaces and without a line end."""
    return json.dumps(to_dict(genotype), separators=(",", ":"))


def from_json(text: str | bytes) -> Genotype:
    """The inverse of `to_json`. ValueError where the text is not JSON or not a genotype."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no valid JSON ({error})") from None
    return from_dict(fields)
