"""What a genotype is: the operations of its edges, its checks, and its form as plain types and as JSON.

A cell has two inputs (0 and 1, the outputs of the two cells before it) and a few nodes (2, 3, ...). A node
adds up two edges, each an operation applied to an earlier input or node; the cell's output concatenates some
of its nodes. A network is a stack of normal cells and reduction cells: a genotype describes one of each. The
genotypes that have a name are in `genotypes.py`.
"""

import json
import math
import operator
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

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
# Those of NAS-Bench-201, in the order of its tables.
NASBENCH201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# What `operations.py` has; operations of your own stand there alone.
OPERATIONS = (*PRIMITIVES, "none", "sep_conv_7x7", "conv_7x1_1x7", "nor_conv_1x1", "nor_conv_3x3")

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


class CompleteCell(NamedTuple):
    """The one cell of a network of NAS-Bench-201 (arXiv 2001.00326). Edges are (operation, input), by node:
    one from 0 to node 1, then those from 0 and 1 to node 2, and so on; the last node is the output.
    """

    cell: tuple[Edge, ...]


AnyGenotype = Genotype | CompleteCell
NAMES = {"normal": "normal cell", "reduce": "reduction cell", "cell": "cell"}
IN_WORDS = {Genotype: "a normal and a reduction cell", CompleteCell: "one complete cell (NAS-Bench-201)"}


def cells_of(genotype: AnyGenotype) -> tuple[str, ...]:
    """The names of the fields that hold edges: ("normal", "reduce"), or ("cell",)."""
    return CELLS if isinstance(genotype, Genotype) else CompleteCell._fields


def edges_of(genotype: AnyGenotype, cell: str) -> list[tuple[str, int, int]]:
    """The edges of one cell as (operation, input, node), in their order."""
    edges: tuple[Edge, ...] = getattr(genotype, cell)
    if isinstance(genotype, Genotype):
        return [(operation, source, place // 2 + 2) for place, (operation, source) in enumerate(edges)]
    nodes = [(math.isqrt(8 * place + 1) + 1) // 2 for place in range(len(edges))]
    return [(operation, source, node) for (operation, source), node in zip(edges, nodes, strict=True)]


def known_operations() -> tuple[str, ...]:
    """The names of all operations, your own too. Loads torch, which takes seconds."""
    from operations import OPS

    return (*OPERATIONS, *(name for name in OPS if name not in OPERATIONS))


def _integer(value: object) -> int | None:
    """An int from anything that is exactly one (NumPy's too), else None. A truth value is no number here."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _where(cell: str, node: int, edge: int) -> str:
    """An edge in words; nodes and edges are counted from 0, in a complete cell the node 0 is the input."""
    return f"{NAMES[cell]}, node {node}, edge {edge}"


def _check_edge(edge: Any, inputs: int, where: str) -> Edge:
    """One edge as (operation, input), the input below `inputs`; ValueError begins with `where`."""
    if isinstance(edge, str | Mapping) or not hasattr(edge, "__len__") or len(edge) != 2:
        raise ValueError(f"{where}: {reprlib.repr(edge)} is not an (operation, input) pair")
    operation, source = edge
    if operation not in OPERATIONS and operation not in (known := known_operations()):
        raise ValueError(f"{where}: operation {reprlib.repr(operation)} is not one of {', '.join(known)}")
    number = _integer(source)
    if number is None or not 0 <= number < inputs:
        raise ValueError(f"{where}: input {reprlib.repr(source)} is not one of 0..{inputs - 1}")
    return operation, number


def _check_cell(fields: Sequence[Any], cell: str) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """The edges and the concatenated nodes of one cell as tuples; ValueError says which edge is wrong."""
    edges, concat = fields
    name = NAMES[cell]
    for field, value in ((cell, edges), (f"{cell}_concat", concat)):
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
            raise ValueError(f"{name}: {field} is {reprlib.repr(value)}, not a list")
    if len(edges) == 0 or len(edges) % 2:
        raise ValueError(f"{name}: {len(edges)} edges; each node takes two, and there must be a node")
    checked = tuple(
        _check_edge(edge, place // 2 + 2, _where(cell, place // 2, place % 2))
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


def _check_complete_cell(edges: Any) -> CompleteCell:
    """The cell with tuples inside; ValueError says which edge is wrong."""
    if isinstance(edges, str | bytes | Mapping) or not hasattr(edges, "__len__"):
        raise ValueError(f"cell is {reprlib.repr(edges)}, not a list")
    last = (math.isqrt(8 * len(edges) + 1) - 1) // 2
    if not len(edges) or last * (last + 1) // 2 != len(edges):
        raise ValueError(
            f"cell: {len(edges)} edges; every node takes one from each before it: 1, 3, 6, 10, ..."
        )
    checked: list[Edge] = []
    for node in range(1, last + 1):
        for source in range(node):
            where = _where("cell", node, source)
            edge = _check_edge(edges[len(checked)], node, where)
            if edge[1] != source:
                raise ValueError(f"{where}: input {edge[1]}; the edges of a node take its inputs in order")
            checked.append(edge)
    return CompleteCell(tuple(checked))


@overload
def validate(genotype: CompleteCell) -> CompleteCell: ...
@overload
def validate(genotype: Genotype | Sequence[Any]) -> Genotype: ...
def validate(genotype: Any) -> AnyGenotype:
    """The same genotype with tuples inside, after checking every edge and every concatenated node.

    Takes a `CompleteCell`, or any four sequences (tuples, lists, ranges, NumPy arrays). ValueError names the
    cell, and the node and the edge counted from 0: "normal cell, node 2, edge 1: input 5 is not one of 0..3".
    """
    if isinstance(genotype, CompleteCell):
        return _check_complete_cell(genotype.cell)
    if not isinstance(genotype, tuple | list) or len(genotype) != len(FIELDS):
        raise ValueError(f"{reprlib.repr(genotype)} is not a genotype: it needs {', '.join(FIELDS)}")
    return Genotype(*_check_cell(genotype[:2], "normal"), *_check_cell(genotype[2:], "reduce"))


def to_dict(genotype: AnyGenotype) -> dict[str, list[Any]]:
    """Lists and plain types only, as in `genotype.json`: {"normal": [["sep_conv_3x3", 0], ...], ...}, or of a
    `CompleteCell` {"cell": [["nor_conv_3x3", 0], ...]}.
    """
    checked = validate(genotype)
    if isinstance(checked, CompleteCell):
        return {"cell": [list(edge) for edge in checked.cell]}
    return {
        "normal": [list(edge) for edge in checked.normal],
        "normal_concat": list(checked.normal_concat),
        "reduce": [list(edge) for edge in checked.reduce],
        "reduce_concat": list(checked.reduce_concat),
    }


def from_dict(fields: object) -> AnyGenotype:
    """The inverse of `to_dict`. ValueError where a field is missing, unknown or wrong."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a genotype is an object with {', '.join(FIELDS)}, not {type(fields).__name__}")
    expected = CompleteCell._fields if "cell" in fields else FIELDS
    if missing := [field for field in expected if field not in fields]:
        raise ValueError(f"the genotype lacks {', '.join(missing)}")
    if unknown := [str(field) for field in fields if field not in expected]:
        raise ValueError(
            f"the genotype has the unknown field {reprlib.repr(unknown[0])}; known are {', '.join(expected)}"
        )
    if "cell" in fields:
        return _check_complete_cell(fields["cell"])
    return validate([fields[field] for field in FIELDS])


def to_json(genotype: AnyGenotype) -> str:
    """One compact line, without spaces and without a line end."""
    return json.dumps(to_dict(genotype), separators=(",", ":"))


def from_json(text: str | bytes) -> AnyGenotype:
    """The inverse of `to_json`. ValueError where the text is not JSON or not a genotype."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no valid JSON ({error})") from None
    return from_dict(fields)


def to_arch_string(cell: CompleteCell) -> str:
    """A cell as NAS-Bench-201 writes it: |nor_conv_3x3~0|+|skip_connect~0|none~1|+ and so on."""
    nodes: dict[int, list[str]] = {}
    for operation, source, node in edges_of(cell, "cell"):
        nodes.setdefault(node, []).append(f"{operation}~{source}")
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes.values())


def from_arch_string(text: str) -> CompleteCell:
    """The inverse of `to_arch_string`. ValueError where the text is no such cell."""
    edges = re.findall(r"([^|~+]+)~(\d+)", text)
    cell = _check_complete_cell([(operation, int(source)) for operation, source in edges])
    if to_arch_string(cell) != text:
        raise ValueError(
            f"{reprlib.repr(text)} is no cell as NAS-Bench-201 writes it: |skip_connect~0|+|...|"
        )
    return cell


def without_path(genotype: AnyGenotype) -> list[str]:
    """The names of the cells of `cells_of` in which nothing gets from the input to the output."""
    found = []
    for cell in cells_of(genotype):
        edges = edges_of(genotype, cell)
        if isinstance(genotype, Genotype):
            reached, outputs = {0, 1}, set(getattr(genotype, f"{cell}_concat"))
        else:
            reached, outputs = {0}, {edges[-1][2]}
        for operation, source, node in edges:  # in the order of their nodes
            if operation != "none" and source in reached:
                reached.add(node)
        if not reached & outputs:
            found.append(cell)
    return found


def difference(cell: AnyGenotype, other: AnyGenotype) -> str:
    """What `cell` is that `other` is not, in words: their spaces, or the first edge that differs."""
    if isinstance(cell, CompleteCell) != isinstance(other, CompleteCell):
        return f"{IN_WORDS[type(cell)]}, not {IN_WORDS[type(other)]}"
    for kind in cells_of(cell):
        mine, theirs = edges_of(cell, kind), edges_of(other, kind)
        if len(mine) != len(theirs):
            return f"{NAMES[kind]} of {len(mine)} edges, not {len(theirs)}"
        for place, (edge, another) in enumerate(zip(mine, theirs, strict=True)):
            if edge != another:
                where = (
                    _where(kind, place // 2, place % 2) if kind in CELLS else _where(kind, edge[2], edge[1])
                )
                return f"{where}: {edge[0]} of input {edge[1]}, not {another[0]} of input {another[1]}"
        if isinstance(cell, Genotype) and isinstance(other, Genotype):
            concat = [list(getattr(each, f"{kind}_concat")) for each in (cell, other)]
            if concat[0] != concat[1]:
                return f"{NAMES[kind]}, {kind}_concat: {concat[0]}, not {concat[1]}"
    raise ValueError("the cells are equal")
