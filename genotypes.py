"""Cells of networks: the published ones and the found ones, by name; looking them up and recording new ones.

    genotypes.RelativeNAS.normal                 # ((operation, input), ...), two edges for each node
    genotypes.lookup("runs/first")               # a name below, a file that holds a cell, or a run's folder
    genotypes.record("MyCell", genotype)         # appended below

What a genotype is, and when it is valid, is in `cells.py`.
"""

import ast
import builtins
import csv
import difflib
import json
import keyword
import os
from pathlib import Path
from typing import Any

from cells import (  # noqa: F401  DARTS keeps all of them here, so they can be imported from here
    CELLS,
    FIELDS,
    NAMES,
    NASBENCH201,
    OPERATIONS,
    PRIMITIVES,
    AnyGenotype,
    CompleteCell,
    Edge,
    Genotype,
    cells_of,
    difference,
    edges_of,
    from_arch_string,
    from_dict,
    from_json,
    to_dict,
    to_json,
    validate,
    without_path,
)
from utils import locked, write_atomically

LARGEST_FILE = 1 << 20  # bytes; a genotype takes about one thousand
CHECKPOINTS = (".pt", ".pth")
RESULTS = ("genotype.json", "card.json")  # of a search, and of a training


def names() -> list[str]:
    """The names of all cells in this file, in its order."""
    return [name for name, value in globals().items() if isinstance(value, Genotype | CompleteCell)]


def _read(path: Path) -> AnyGenotype:
    """The genotype in a file: its JSON, a card, or a checkpoint of a network. Nothing in it is executed.

    Every ValueError names the file.
    """
    if path.suffix in CHECKPOINTS:
        return _read_checkpoint(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: too large for a genotype's JSON file ({path.stat().st_size} bytes)")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        kind = "" if path.suffix == ".json" else "a file, but "  # where somebody may have meant a folder
        raise ValueError(f"{path}: {kind}no valid JSON ({error})") from None
    try:
        network = fields.get("network") if isinstance(fields, dict) else None  # of a card
        return from_dict(network.get("genotype") if isinstance(network, dict) else fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_checkpoint(path: Path) -> AnyGenotype:
    """The cell of the network in a checkpoint, of a finished training or not."""
    from common import checkpoint  # here, as it needs torch, which takes seconds to import

    state = checkpoint.load(path)
    network = state.get("network")
    described = network.get("genotype") if isinstance(network, dict) else None
    try:
        return from_dict(described or state["genotype"])
    except KeyError:
        raise ValueError(f"{path}: no checkpoint that names its cell") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def lookup(arch: str | os.PathLike[str]) -> AnyGenotype:
    """The genotype that `--arch` means: a name in this file, else a file, else the folder of a run.
    RUN#3 is the third cell of a search's front; |nor_conv_3x3~0|+|... is a cell as NAS-Bench-201 writes it.

    A file is JSON, a card or a checkpoint; the folder is that of a search, or of a finished training. A
    `Path` is never taken for a name, as a folder may be called like a cell. ValueError names the file and
    what is wrong in it, or lists the known names and the closest one. OSError where a file cannot be read.
    """
    text = os.fspath(arch)
    if isinstance(arch, str) and text in names():
        return validate(globals()[text])
    if text.startswith("|"):
        return from_arch_string(text)
    if (run := run_of(text)) != Path(text):
        return _of_front(run, text.rpartition("#")[2])
    if os.path.isdir(text):
        results = [file for name in RESULTS if (file := Path(text, name)).is_file()]
        if not results:
            raise ValueError(
                f"{text}: this folder has no genotype.json, which a search writes at its end, nor a card.json"
            )
        return _read(results[0])
    if os.path.isfile(text):
        return _read(Path(text))
    if os.sep in text or text.endswith((".json", *CHECKPOINTS)):
        raise ValueError(f"{text}: no such file or folder")
    lower = {name.lower(): name for name in names()}
    close = difflib.get_close_matches(text.lower(), lower, n=1)
    hint = f"; did you mean {lower[close[0]]}?" if close else ""
    raise ValueError(
        f"unknown architecture {text!r}: no such file or folder, nor one of {', '.join(names())}{hint}"
    )


def run_of(arch: str | os.PathLike[str]) -> Path:
    """The path that `--arch` names, without the number of a cell of a run's front."""
    text = os.fspath(arch)
    run, sign, _ = text.rpartition("#")
    return Path(run if sign and os.path.isdir(run) and not os.path.exists(text) else text)


def _of_front(run: Path, number: str) -> AnyGenotype:
    """A cell of the front of a search by its number; ValueError where there is none."""
    file = run / "front.csv"
    if file.is_dir():
        raise ValueError(f"{run}#{number}: {file} is a folder, not the table of a front")
    if not file.is_file():
        raise ValueError(
            f"{run}#{number}: no front.csv there; a search with --objectives writes it at its end"
        )
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            cells = {row["number"]: row["genotype"] for row in csv.DictReader(stream)}
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"{file}: damaged: no table of numbered genotypes") from None
    if number not in cells:
        known = {0: "has no cell", 1: "has one cell, 1"}.get(len(cells), f"has the cells 1 to {len(cells)}")
        hint = "" if number.isdecimal() else "; behind the # stands the number of one"
        raise ValueError(f"{run}#{number}: its front {known}{hint}")
    try:
        return from_json(cells[number] or "")
    except ValueError as error:
        raise ValueError(f"{file}: cell {number}: {error}") from None


def check_arch(config: Any) -> None:
    """Raise ValueError that names --arch where it is no cell; None is a flag that was not given."""
    try:
        if config.arch is not None:
            lookup(config.arch)
    except ValueError as error:
        raise ValueError(f"--arch: {error}") from None


def check_path(config: Any) -> None:
    """Raise ValueError where nothing gets through the cell of --arch, as in some of NAS-Bench-201.

    A network of it gives the same logits for every image, so training it cannot be meant.
    """
    found = without_path(lookup(config.arch))
    if found and found != ["reduce"]:  # networks have a way around reduction cells: the cell before them
        raise ValueError(
            f"--arch {config.arch}: its {NAMES[found[0]]} has no path from input to output, so nothing can "
            "be learnt from images"
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


def _check_new_name(name: str, source: str, file: Path, kind: str = "Genotype") -> None:
    reserved = keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name)
    # Letters beyond ASCII are refused: Python reads several spellings of them as the same name.
    if not (name.isascii() and name.isidentifier()) or name.startswith("_") or reserved:
        raise ValueError(
            f"cannot record a cell as {name!r}: a name begins with a letter, has letters, digits and _ only, "
            "and is no word of Python's"
        )
    if name == file.stem:
        raise ValueError(f"cannot record a cell as {name!r}: this is the name of the file; choose another")
    used = _used_names(source, file)
    if kind not in used:
        raise ValueError(f"{file}: a cell can only be recorded where {kind} is defined or imported")
    if name in used:
        raise ValueError(f"cannot record a cell as {name!r}: {file.name} has that name; choose another")


def to_source(name: str, genotype: AnyGenotype) -> str:
    """The statement that defines a cell, laid out as those below: two nodes, that is four edges, a line."""
    lines = [f"{name} = {type(genotype).__name__}("]
    for field, values in to_dict(genotype).items():
        if field in cells_of(genotype):
            edges = [f'("{operation}", {source}),' for operation, source in values]
            rows = [" ".join(edges[start : start + 4]) for start in range(0, len(edges), 4)]
            lines += [f"    {field}=(", *(f"        {row}" for row in rows), "    ),"]
        else:
            lines.append(f"    {field}=({', '.join(map(str, values))}{',' * (len(values) == 1)}),")
    return "\n".join([*lines, ")"]) + "\n"


def record(name: str, genotype: AnyGenotype, file: str | os.PathLike[str] = __file__) -> None:
    """Appends a found cell to a file of cells (this one by default), which is replaced in one step.

    ValueError where the cell is wrong or the name is taken, used by the file's code, or no plain identifier;
    OSError where the file cannot be written. Either way the file stays as it was. Its permissions are kept.
    """
    checked = validate(genotype)
    path = Path(file).resolve()  # a link stays a link, and its target is replaced
    with locked(path.parent):  # other processes that record in this folder wait
        source = path.read_bytes().decode("utf-8")
        _check_new_name(name, source, path, type(checked).__name__)
        line_end = "\r\n" if "\r\n" in source else "\n"
        addition = ("\n" + to_source(name, checked)).replace("\n", line_end)
        write_atomically(path, source.rstrip() + line_end + addition, path.stat().st_mode & 0o7777)
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

# Of the search's random first population; no move has changed it.
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

# Generation 5 of 8, after 3 moves.
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

# Generation 8 of 8, after 5 moves.
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
