"""Cells of networks: the published ones, the found ones, and how they are read, checked and recorded.

A cell has two inputs (0 and 1, the outputs of the two cells before it) and a few nodes (2, 3, ...). A node
adds up two edges, each an operation applied to an earlier input or node; the cell's output concatenates some
of its nodes. A network is a stack of normal cells and reduction cells: a genotype describes one of each.
"""

import ast
import builtins
import contextlib
import difflib
import json
import keyword
import operator
import os
import reprlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
LARGEST_FILE = 1 << 20  # bytes; a genotype takes about one thousand

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


def names() -> list[str]:
    """The names of all cells in this file, in its order."""
    return [name for name, value in globals().items() if isinstance(value, Genotype)]


def _read(path: Path) -> Genotype:
    """The genotype in a JSON file; every ValueError names the file. Nothing in the file is executed."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: too large for a genotype's JSON file ({path.stat().st_size} bytes)")
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def lookup(arch: str | os.PathLike[str]) -> Genotype:
    """The genotype that `--arch` means: a name in this file, else a JSON file, else a run folder of a search.

    A `Path` is never taken for a name, as a folder may be called like a cell. ValueError names the file and
    what is wrong in it, or lists the known names and the closest one. OSError where a file cannot be read.
    """
    text = os.fspath(arch)
    if isinstance(arch, str) and text in names():
        return validate(globals()[text])
    if os.path.isdir(text):
        result = Path(text, "genotype.json")
        if not result.is_file():
            raise ValueError(f"{text}: this folder has no genotype.json, which a search writes at its end")
        return _read(result)
    if os.path.isfile(text):
        return _read(Path(text))
    if os.sep in text or text.endswith(".json"):
        raise ValueError(f"{text}: no such file or folder")
    lower = {name.lower(): name for name in names()}
    close = difflib.get_close_matches(text.lower(), lower, n=1)
    hint = f"; did you mean {lower[close[0]]}?" if close else ""
    raise ValueError(
        f"unknown architecture {text!r}: no such file or folder, nor one of {', '.join(names())}{hint}"
    )


def _used_names(source: str, file: Path) -> set[str]:
    """Every name that a file's code binds or reads, at any depth. ValueError where it is not valid Python."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file}: not valid Python, so nothing was recorded ({error})") from None
    # Where the syntax tree keeps names: variables, definitions and imports, arguments, renamed imports.
    fields = [getattr(node, field, None) for node in nodes for field in ("id", "name", "arg", "asname")]
    return {field.split(".")[0] for field in fields if isinstance(field, str)}


def check_new_name(name: str, file: str | os.PathLike[str] = __file__) -> None:
    """ValueError unless `record` would accept this name: to be called before a long search, not after it."""
    path = Path(file)
    _check_new_name(name, path.read_text(encoding="utf-8"), path)


def _check_new_name(name: str, source: str, file: Path) -> None:
    reserved = keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name)
    # Letters beyond ASCII are refused: Python reads several spellings of them as the same name.
    if not (name.isascii() and name.isidentifier()) or name.startswith("_") or reserved:
        raise ValueError(
            f"cannot record a cell as {name!r}: a name begins with a letter, has letters, digits and _ only, "
            "and is no word of Python's"
        )
    used = _used_names(source, file)
    if "Genotype" not in used:
        raise ValueError(f"{file}: a cell can only be recorded where Genotype is defined or imported")
    if name in used:
        raise ValueError(f"cannot record a cell as {name!r}: {file.name} has that name; choose another")


def to_source(name: str, genotype: Genotype) -> str:
    """The statement that defines a cell, laid out as those below: two nodes, that is four edges, a line."""
    lines = [f"{name} = Genotype("]
    for field, values in to_dict(genotype).items():
        if field in CELLS:
            edges = [f'("{operation}", {source}),' for operation, source in values]
            rows = [" ".join(edges[start : start + 4]) for start in range(0, len(edges), 4)]
            lines += [f"    {field}=(", *(f"        {row}" for row in rows), "    ),"]
        else:
            lines.append(f"    {field}=({', '.join(map(str, values))}{',' * (len(values) == 1)}),")
    return "\n".join([*lines, ")"]) + "\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes that record in this folder waiting, where the system can (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def record(name: str, genotype: Genotype, file: str | os.PathLike[str] = __file__) -> None:
    """Appends a found cell to a file of cells (this one by default), which is replaced in one step.

    ValueError where the cell is wrong or the name is taken, used by the file's code, or no plain identifier;
    OSError where the file cannot be written. Either way the file stays as it was. Its permissions are kept.
    """
    checked = validate(genotype)
    path = Path(file).resolve()  # a link stays a link, and its target is replaced
    with _locked(path.parent):
        source = path.read_bytes().decode("utf-8")
        _check_new_name(name, source, path)
        line_end = "\r\n" if "\r\n" in source else "\n"
        addition = ("\n" + to_source(name, checked)).replace("\n", line_end)
        text = source.rstrip() + line_end + addition
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(text.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, path.stat().st_mode & 0o7777)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    if path == Path(__file__).resolve():
        globals()[name] = checked


# fmt: off
# The cells, two nodes a line. First the published ones, then those that `record` appends.

# Zoph et al. 2018, arXiv 1707.07012.
NASNet = Genotype(
    normal=(
        ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
    ),
    normal_concat=(2, 3, 4, 5, 6),
    reduce=(
        ("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1), ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(4, 5, 6),
)

# Real et al. 2019, arXiv 1802.01548: AmoebaNet-A.
AmoebaNet = Genotype(
    normal=(
        ("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("avg_pool_3x3", 3), ("sep_conv_3x3", 1), ("skip_connect", 1),
        ("skip_connect", 0), ("avg_pool_3x3", 1),
    ),
    normal_concat=(4, 5, 6),
    reduce=(
        ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
    ),
    reduce_concat=(3, 4, 6),
)

# Liu et al. 2019, arXiv 1806.09055: first order.
DARTS_V1 = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
        ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Liu et al. 2019, arXiv 1806.09055: second order.
DARTS_V2 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)

DARTS = DARTS_V2

# Xu et al. 2020, arXiv 1907.05737: searched on CIFAR-10.
PC_DARTS_cifar = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Xu et al. 2020, arXiv 1907.05737: searched on ImageNet.
PC_DARTS_image = Genotype(
    normal=(
        ("skip_connect", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("skip_connect", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("dil_conv_5x5", 4),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 2), ("max_pool_3x3", 1),
        ("sep_conv_3x3", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_3x3", 3),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Chen et al. 2019, arXiv 1904.12760.
PDARTS = Genotype(
    normal=(
        ("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
    ),
    reduce_concat=(2, 3, 4, 5),
)

# Tan et al. 2021, arXiv 2009.06193.
RelativeNAS = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("dil_conv_5x5", 1), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("sep_conv_5x5", 1), ("skip_connect", 0), ("sep_conv_3x3", 0),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("avg_pool_3x3", 1), ("max_pool_3x3", 1), ("dil_conv_5x5", 1), ("max_pool_3x3", 1),
        ("avg_pool_3x3", 3), ("skip_connect", 1), ("dil_conv_5x5", 3), ("sep_conv_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)

PairNAS_cifar10_jpeg = Genotype(
    normal=(
        ("sep_conv_5x5", 0), ("dil_conv_3x3", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 0),
        ("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 1), ("sep_conv_5x5", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 1), ("sep_conv_3x3", 2),
        ("skip_connect", 1), ("sep_conv_5x5", 1), ("dil_conv_5x5", 0), ("dil_conv_3x3", 2),
    ),
    reduce_concat=(2, 3, 4, 5),
)

PairNAS_fashion_mnist = Genotype(
    normal=(
        ("sep_conv_5x5", 1), ("dil_conv_5x5", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 0),
        ("dil_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 4), ("sep_conv_3x3", 4),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0), ("sep_conv_3x3", 2), ("dil_conv_3x3", 1), ("avg_pool_3x3", 4),
    ),
    reduce_concat=(2, 3, 4, 5),
)

PairNAS_digits = Genotype(
    normal=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 0), ("skip_connect", 0), ("skip_connect", 0),
        ("dil_conv_5x5", 2), ("dil_conv_5x5", 2), ("sep_conv_5x5", 2), ("sep_conv_5x5", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("sep_conv_5x5", 0), ("max_pool_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 0),
        ("sep_conv_5x5", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0),
    ),
    reduce_concat=(2, 3, 4, 5),
)
