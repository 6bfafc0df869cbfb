"""pictures/comparison.py and `visualize.py RUN RUN ...`: runs side by side."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_report import Page, make_run

import visualize
from common.flags import parse
from pictures import comparison, tables

RECORDS = ROOT / "benchmarks" / "records"
TRAININGS = [RECORDS / "2026-11-24-trainings" / name for name in ("cifar-found", "cifar-relative")]


def seeded(folder: Path, seed: int, generations: int = 3, **settings: object) -> Path:
    """A search like the others but for its seed and these settings, its losses raised by the seed."""
    run = make_run(folder, generations=generations)
    config = json.loads((run / "config.json").read_text()) | {"seed": seed, **settings}
    (run / "config.json").write_text(json.dumps(config))
    rows = list(csv.DictReader((run / "generations.csv").open()))
    for place, row in enumerate(rows):
        row |= {"best_loss": 3.0 - place + seed, "mean_loss": 4.0 - place + seed}
    with (run / "generations.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return run


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [seeded(folder / f"guided{seed}", seed, generations=3 + seed) for seed in (0, 1)]
    return [*runs, seeded(folder / "plain", 0, strategy="random")]


def compared(*folders: Path, out: Path) -> Page:
    given = [*map(str, folders), "--out", str(out)]
    visualize.main(parse(visualize.Config, given))
    return Page(out / "comparison.html")


def test_searches_side_by_side(searches: list[Path], tmp_path: Path) -> None:
    page = compared(*searches, out=tmp_path)
    assert page.open == []
    assert page.loads == []
    assert "http" not in page.source
    identifiers = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(identifiers) == len(set(identifiers))
    assert page.source.count("<figure") == 3 + 2 * 3  # curves, two cells for each run
    for text in (
        "3 searches compared",
        "strategy slow_fast (n 2)",
        "mean of strategy slow_fast (n 2)",
        # in the first generation the lowest losses are 3 and 4: mean 3.5, sd 0.7071
        "strategy slow_fast (n 2), generation 1: 3.5 (sd 0.7071 over 2)",
        "plain, generation 3: 1",
        "Bands: one standard deviation over seeds.",
    ):
        assert text in page.text, text
    assert "(n 2), generation 4" not in page.text  # only one of the two has got there
    first = (tmp_path / "comparison.html").read_bytes()
    compared(*searches, out=tmp_path)  # its own file is replaced
    assert (tmp_path / "comparison.html").read_bytes() == first


def test_runs_that_differ_in_seed_and_place_alone_are_one_group(searches: list[Path]) -> None:
    runs = [comparison.of_search(path.name, tables.read_run(path)) for path in searches]
    assert [len(group) for group in comparison.groups(runs).values()] == [2, 1]
    assert comparison.differences(runs) == ["strategy"]
    assert list(comparison.groups(runs[:2])) == ["guided0 and others (n 2)"]
    np.testing.assert_array_equal(runs[0].curves["lowest loss"], [3, 2, 1])


def test_trainings_side_by_side(tmp_path: Path) -> None:
    page = compared(*TRAININGS, out=tmp_path)
    for text in ("2 trainings compared", "9.83%", "9.97%", "training error, %", "cifar-found, epoch 17: 5.4"):
        assert text in page.text, text
    going = tmp_path / "going"  # not finished: no card yet, and only some epochs
    going.mkdir()
    lines = (TRAININGS[0] / "epochs.csv").read_text().splitlines()
    (going / "epochs.csv").write_text("\n".join(lines[:4]) + "\n")
    (going / "config.json").write_text(json.dumps({"arch": "DARTS", "epochs": 17, "seed": 0}))
    page = compared(TRAININGS[0], going, out=tmp_path)
    assert ">DARTS<" in page.source  # a row of the settings that differ
    assert "going, epoch 3" in page.text
    assert "going, epoch 4" not in page.text


def test_what_cannot_be_compared_is_one_line(
    searches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folders, message in (
        ((searches[0], TRAININGS[0]), "each is the folder of a search, or each is that of a training"),
        ((searches[0], tmp_path / "absent"), "absent: several are compared where"),
        ((Path("DARTS"), Path("PDARTS")), "DARTS, PDARTS: several are compared where"),
    ):
        with pytest.raises(ValueError, match=message):
            compared(*folders, out=tmp_path)
    with pytest.raises(ValueError, match="--format png: no effect"):
        visualize.main(visualize.Config(str(searches[0]), (str(searches[1]),), format="png"))
    (tmp_path / "comparison.html").write_text("mine")
    with pytest.raises(ValueError, match=r"comparison\.html: exists and was not written"):
        compared(*searches, out=tmp_path)
    assert (tmp_path / "comparison.html").read_text() == "mine"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "epochs.csv").write_text("epoch,loss,error\n0,1.0,0.5\n")
    for content, message in (
        ("[]", "card.json: not an object"),
        ("{}", ""),
        ('{"network": 1}', "not the card"),
    ):
        (damaged / "card.json").write_text(content)
        if message:
            with pytest.raises(ValueError, match=message):
                tables.read_training(damaged)
    assert capsys.readouterr().out == ""


def test_names_are_broken_within_a_word_on_phones_alone(searches: list[Path], tmp_path: Path) -> None:
    source = compared(*searches[1:], out=tmp_path).source
    rules = re.findall(r"td\.left \{[^}]*overflow-wrap: ([\w-]+)", source)
    assert rules == ["break-word", "anywhere"]  # "anywhere" lets a column be as narrow as one letter
    assert source.index("overflow-wrap: break-word") < source.index("@media screen")
    assert source.rindex("td.left { overflow-wrap: anywhere") > source.index("@media screen")
    run = seeded(tmp_path / "a_long_name", 0)
    assert ">a_<wbr>long_<wbr>name</td>" in compared(run, searches[0], out=tmp_path).source


def test_names_of_runs(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert comparison.names(folders) == [str(folders[0]), str(folders[1]), "c"]
