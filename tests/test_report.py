"""The report, its tables and plots: a run at any moment has one, damaged files are named."""

import csv
import io
import json
import os
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, random_cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import genotypes
import train
import visualize
from common.flags import parse
from genotypes import PRIMITIVES
from pictures import looks, plots, report, tables, words


@pytest.fixture(autouse=True)
def without_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program dot, whether or not this machine has it: every test is the same everywhere."""
    monkeypatch.setattr(visualize.shutil, "which", lambda program: None)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "digits")


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
        if tag not in ("meta", "wbr"):
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
    assert looks.INK not in page.source
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


def with_front(run: Path) -> Path:
    """A run of make_run, of two objectives: the front has the first and the third finalist."""
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"objectives": ["error", "parameters"]}))
    rows = list(csv.DictReader((run / "finalists.csv").open()))
    for row, parameters in zip(rows, (9e6, 9.5e6, 4e6, 8e6), strict=True):
        row["parameters"] = parameters
    write_csv(run / "finalists.csv", rows)
    columns = ("genotype", "score", "loss", "error", "parameters")
    front = [{name: row[name] for name in columns if name in row} for row in rows[::2]]
    write_csv(run / "front.csv", [{"number": number} | row for number, row in enumerate(front, start=1)])
    return run


def field(column: str, text: str) -> Callable[[str], str]:
    """What puts a text in place of a column of the first row of a CSV table."""

    def change(content: str) -> str:
        first, *others = csv.DictReader(io.StringIO(content))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows([first | {column: text}, *others])
        return stream.getvalue()

    return change


COMPLETE = genotypes.to_json(
    genotypes.from_arch_string(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|skip_connect~2|"
    )
)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("front.csv", field("error", "abc"), "damaged: row 1, error: 'abc' is no number"),
        ("front.csv", field("error", "nan"), "damaged: row 1, error: nan, and a front has finite numbers"),
        ("front.csv", field("parameters", ""), "damaged: row 1, parameters: nothing, and a front has"),
        ("front.csv", field("genotype", "{"), "damaged: row 1: no valid JSON"),
        ("front.csv", field("number", "2"), "damaged: row 1 has the number 2"),
        ("front.csv", field("genotype", COMPLETE), "damaged: row 1: its cell is none of finalists.csv"),
        ("front.csv", lambda text: text[:90], "damaged: a row is cut off"),
        ("front.csv", lambda text: text.splitlines()[0], "damaged: it has no rows"),
        ("front.csv", lambda text: "", "not a table of a search: it lacks the column number"),
        ("finalists.csv", field("loss", "0,2"), "damaged: row 1, loss: '0,2' is no number"),
        ("finalists.csv", lambda text: text[:200], "damaged: a row is cut off"),
        ("generations.csv", field("diversity", "x"), "damaged: row 1, diversity: 'x' is no number"),
        ("history.csv", field("loss_b", "x"), "damaged: row 1, loss_b: 'x' is no number"),
        ("genotype.json", lambda text: COMPLETE, "one complete cell (NAS-Bench-201), and the search of"),
    ],
)
def test_a_damaged_file_leaves_the_old_report(
    tmp_path: Path, file: str, damage: Callable[[str], str], message: str
) -> None:
    run = with_front(make_run(tmp_path / "run", generations=1))
    before = visualize.write_report(run).read_bytes()
    (run / file).write_text(damage((run / file).read_text()))
    with pytest.raises(ValueError, match=re.escape(f"{run / file}: {message}")) as raised:
        visualize.main(visualize.Config(str(run)))
    assert "\n" not in str(raised.value)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.svg"))


def test_a_cell_of_another_space_is_none_of_the_search(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=1)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"space": "nasbench201"}))
    with pytest.raises(ValueError, match=r"genotype\.json: a normal and a reduction cell, and the search of"):
        visualize.write_report(run)
    (run / "genotype.json").write_text(COMPLETE)
    assert Page(visualize.write_report(run)).source.count('id="cell-') > 0


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
    assert words.short(value) == text


def test_duration() -> None:
    assert [words.duration(s) for s in (41.6, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 05 min"]


def given(arch: str, **settings: object) -> train.Config:
    """What train.py makes of the command that a search of these settings suggests."""
    words = shlex.split(report.training_command(arch, settings))
    assert words[:2] == ["python", "train.py"]
    return parse(train.Config, words[2:])


def test_the_suggested_command_trains_on_the_images_of_the_search(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run; of mine")
    (run / "genotype.json").write_text(genotypes.to_json(random_cell(0)))
    found = given(str(run), set="digits", data="data", init_channels=8, layers=3, batch_size=64)
    assert (found.arch, found.set, found.data, found.batch_size) == (str(run), "digits", "data", 64)
    assert (found.init_channels, found.layers) == (18, 8)
    found = given("DARTS", set="folder", data="my photos", image_size=32, batch_size=256)
    assert (found.set, found.data, found.image_size, found.batch_size) == ("folder", "my photos", 32, 128)
    published = given("DARTS", set="cifar10", data="data", init_channels=16, layers=8, batch_size=256)
    assert published == train.Config(arch="DARTS", set="cifar10", auxiliary=True, cutout=True)
    limited = given("DARTS", set="digits", layers=3, max_parameters=1.0, full_channels=20, full_layers=11)
    assert (limited.init_channels, limited.layers) == (20, 11)


@pytest.mark.parametrize(
    ("counts", "batch_size"), [("14 images train, 14", 28), ("900 images train, 800", 128)]
)
def test_the_reports_command_has_a_batch_that_the_images_fill(
    tmp_path: Path, counts: str, batch_size: int
) -> None:
    run = make_run(tmp_path / "run")
    (run / "genotype.json").write_text(genotypes.to_json(random_cell(0)))
    (run / "config.json").write_text(json.dumps({"pop_size": 4, "batch_size": 256, "set": "digits"}))
    (run / "log.txt").write_text(f"{run}: search on digits, 1 x cpu; {counts} compare, 10 test\n")
    page = report.page(tables.read_run(run), {})
    (command,) = re.findall(r"<code>python train\.py (.*?)</code>", page)
    words = shlex.split(re.sub("<.*?>", "", command))
    assert parse(train.Config, words).batch_size == batch_size
    for flag in words[::2]:  # lines do not break inside
        assert f'<span class="flag">{flag}</span> ' in command


RECORDED = ROOT / "benchmarks" / "records" / "2026-11-24-search-digits"


def test_the_report_of_the_recorded_search_tells_its_story(tmp_path: Path) -> None:
    page = Page(visualize.write_report(RECORDED, tmp_path))
    for text in (
        "winner met first ingeneration 8, after 5 moves",
        "9 kept, 4 of the faster one, 3 new",
        "Its favourites won 45% of 47 trained pairs (95% interval 31% to 59%): no better than a coin here.",
        "It decided no pair without training.",
        "generation 8: diversity 0.389",
        "slow learner of pair 0 in generation 1: ",
    ):
        assert text in page.text, text
    assert "generation 0" not in page.text
    assert 'id="decisions-' not in page.source  # a flat line says nothing
    first, rest = page.text.partition("Settings")[2].split(" at their defaults")
    assert "pop_size12" in first
    assert "pop_size" not in rest
    assert "momentum0.9" in rest


def test_the_verdict_on_the_predictor(tmp_path: Path) -> None:
    run = tables.read_run(make_run(tmp_path / "run", generations=1, finished=False))
    row = next(row for row in run.history if row["decided_by"] != "predictor")
    good, bad = (
        row | {"probability": p, "difference": "-1", "winner": "a", "decided_by": "training"}
        for p in ("0.9", "0.2")
    )
    audited = good | {"decided_by": "audit"}
    for rows, text in (
        (
            [good] * 20 + [audited] * 10,
            "won 100% of 30 trained pairs (95% interval 89% to 100%): better than a",
        ),
        ([bad] * 30, "won 0% of 30 trained pairs (95% interval 0% to 11%): worse than a coin"),
        (
            [good] * 5 + [bad] * 5,
            "won 50% of 10 trained pairs (95% interval 24% to 76%): no better than a coin",
        ),
        (
            [audited, good | {"decided_by": "predictor"}],
            "decided 1 of 2 pairs without training, and was right ",
        ),
        ([row | {"probability": ""}], "No prediction was made so far"),
    ):
        run.history = rows
        assert text in words.verdict(run)


@pytest.mark.parametrize("count", [4, 10, 14])
def test_a_predictor_that_was_always_right_has_its_plot(tmp_path: Path, count: int) -> None:
    run = make_run(tmp_path / "run", generations=1, predictor=False)
    row = next(csv.DictReader((run / "history.csv").open()))
    right = row | {"winner": "a", "difference": -1.0, "probability": 0.9}
    write_csv(run / "history.csv", [right | {"pair": pair} for pair in range(count)])
    assert f"won 100% of {count} pairs" in Page(visualize.write_report(run)).text


@pytest.mark.parametrize(
    "values", [(0.75, 0.75, 0.74), (0.9, 0.1), (0.0, 0.0, 1e-3), (0.0, float("nan")), (0.3,)]
)
def test_the_line_of_diversity_is_clear_of_the_upper_edge(values: tuple[float, ...]) -> None:
    axes = Figure().add_subplot()
    rows = [{"generation": str(place), "diversity": str(value)} for place, value in enumerate(values)]
    assert plots.diversity(axes, rows) is not None
    low, high = axes.get_ylim()
    assert low == 0
    assert high >= 1.05 * np.nanmax(values)
    assert high > 0


def test_what_was_measured_of_the_winner_has_its_unit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=1)
    page = Page(visualize.write_report(run))
    assert "latency" not in page.text
    assert "memory" not in page.text
    rows = list(csv.DictReader((run / "finalists.csv").open()))
    write_csv(run / "finalists.csv", [row | {"latency": 12.25, "memory": 3.5} for row in rows])
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"latency_batch_size": 8}))
    page = Page(visualize.write_report(run))
    assert "latency at full size12.25 ms, batch of 8" in page.text
    assert "memory of training at full size3.5 GiB" in page.text
    for name, value in (("latency, ms", "12.25"), ("memory, GiB", "3.5")):
        assert f"<th>{name}</th>" in page.source
        assert page.source.count(f'data-name="{name}">{value}</td>') == 4


def test_one_cell_for_both_kinds_is_drawn_once_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=1)
    cell = random_cell(0)
    one = genotypes.to_json(cell._replace(reduce=cell.normal, reduce_concat=cell.normal_concat))
    (run / "genotype.json").write_text(one)
    rows = list(csv.DictReader((run / "finalists.csv").open()))
    write_csv(run / "finalists.csv", [row | {"genotype": one} for row in rows])
    generations = list(csv.DictReader((run / "generations.csv").open()))
    kept = [{name: row[name] for name in row if not name.startswith("reduce_")} for row in generations]
    write_csv(run / "generations.csv", kept)
    page = Page(visualize.write_report(run))
    assert page.source.count("0 · cell k−2") == 1
    assert "Normal cell = reduction cell" in page.text
    assert "which the reduction cell equals" not in page.text  # one such winner says nothing of the others
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"cells": "normal"}))
    page = Page(visualize.write_report(run))
    assert "of its edges, the normal one first, which the reduction cell equals." in page.text
    assert "Operations in the normal cells; the reduction cells are the same." in page.text
    visualize.write_comparison([run, run], tmp_path)
    assert Page(tmp_path / "comparison.html").text.count("normal cell = reduction cell") == 2
    written = visualize.draw(genotypes.from_json(one), tmp_path / "mine")
    assert [path.name for path in written] == ["mine_normal.svg", "mine_reduction.svg"]
    assert all("mine · normal cell = reduction cell" in path.read_text() for path in written)


def drawn_front(run: tables.RecordedRun) -> tuple[Axes, np.ndarray, np.ndarray]:
    """The plot of a front over parameters: axes, points of all finalists and of the front, (n, 2)."""
    axes = Figure().add_subplot()
    assert plots.front(axes, run.finalists, run.front, "parameters") is not None
    finalists, front = (line.get_xydata() for line in axes.get_lines())
    return axes, finalists, front


@pytest.mark.parametrize(
    ("training_losses", "label"),
    [
        ((0.30, 0.32, 0.30, 0.35), "score (validation + training loss)"),
        ((0, 0, 0, 0), "score (validation loss)"),
    ],
)
def test_no_point_of_a_front_is_dominated_by_another(
    tmp_path: Path, training_losses: tuple[float, ...], label: str
) -> None:
    run = make_run(tmp_path / "run", generations=1)
    rows = list(csv.DictReader((run / "finalists.csv").open()))
    errors = (0.30, 0.10, 0.20, 0.25)  # by these the first of the front is beaten by the other
    scored = [
        {"rank": row["rank"], "score": float(row["loss"]) + loss, **row, "error": error}
        for row, loss, error in zip(rows, training_losses, errors, strict=True)
    ]
    diverged = scored[-1] | {"score": "nan", "loss": "nan", "error": "nan", "parameters": 1}
    write_csv(run / "finalists.csv", scored)
    with_front(run)
    rows = list(csv.DictReader((run / "finalists.csv").open()))
    write_csv(run / "finalists.csv", [*rows, {**diverged, "rank": 5}])
    axes, finalists, front = drawn_front(tables.read_run(run))
    assert axes.get_ylabel() == label
    assert (len(finalists), len(front)) == (4, 2)
    np.testing.assert_allclose(front[:, 1], [scored[0]["score"], scored[2]["score"]])
    for point in front:
        better = (finalists <= point).all(1) & (finalists < point).any(1)
        assert not better.any(), point
    page = Page(visualize.write_report(run))
    assert f"cell 1: score {scored[0]['score']:.4g}, validation error 30.00%" in page.text
    assert ("by its score, validation plus training loss" in page.text) == (training_losses[0] > 0)
    assert ("<th>score</th>" in page.source) == (training_losses[0] > 0)


def test_the_front_of_an_earlier_run_is_drawn_by_error(tmp_path: Path) -> None:
    run = tables.read_run(with_front(make_run(tmp_path / "run", generations=1)))
    axes, _, front = drawn_front(run)
    assert axes.get_ylabel() == "validation error, %"
    np.testing.assert_allclose(front, [[9.0, 5.125], [4.0, 7.125]])


def test_a_candidate_that_trains_alone_counts_once() -> None:
    counts = [{"trained": "2"}, {"trained": "1"}, {"trained": ""}, {}]  # the last two are of earlier versions
    rows = [{"decided_by": "training"} | one for one in counts] + [{"decided_by": "predictor"}]
    assert tables.candidates_trained(rows) == 2 + 1 + 2 + 2


def test_random_cells_stand_beside_the_winner(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=1)
    assert "random cells" not in Page(visualize.write_report(run)).text
    rows = [
        {"genotype": genotypes.to_json(random_cell(seed)), "loss": 0.5, "error": 0.1, "test_error": error}
        for seed, error in enumerate((0.0500, 0.0700, 0.0900))
    ]
    write_csv(run / "baseline.csv", rows)
    text = Page(visualize.write_report(run)).text
    assert "random cells beside it7.00% ± 2.00% (n 3)" in text
    assert "The winner's test error, 6.25%, is below that of 2 of 3 random cells" in text
    assert text.count("random cell") - text.count("random cells") == 3
    (run / "baseline.csv").write_text("genotype,loss\n")
    with pytest.raises(
        ValueError, match=r"baseline\.csv: not a table of a search: it lacks the column error"
    ):
        visualize.write_report(run)


def test_tiles_stand_in_whole_rows(tmp_path: Path) -> None:
    for finished, columns, count in ((True, 3, 9), (False, 4, 4)):
        run = make_run(tmp_path / str(finished), generations=1, finished=finished)
        facts = re.search(r'<dl class="facts".*?</dl>', visualize.write_report(run).read_text(), re.DOTALL)
        assert facts is not None
        assert f"--columns:{columns}" in facts.group()
        assert facts.group().count("<dt>") == count
