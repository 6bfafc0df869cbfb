"""benchmarks/draw.py: every picture of the pages is made from records by a command that a page names."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from common.flags import parse

sys.path.insert(0, str(ROOT / "benchmarks"))
import draw

RECORDS = ROOT / "benchmarks" / "records"
SEARCHES = [RECORDS / "2026-11-24-search-tables" / f"{name}.json" for name in ("darts_ours", "darts_others")]
ESTIMATES = RECORDS / "2026-11-26-image-table" / "estimates.json"
TRAINING = RECORDS / "2026-11-24-trainings" / "digits-RelativeNAS"


def drawn(tmp_path: Path, *records: Path, name: str = "picture.svg") -> str:
    """The picture as text; in an SVG, each text is a comment before its outlines."""
    draw.main(parse(draw.Config, [*map(str, records), "--out", str(tmp_path / name), "--overwrite"]))
    return (tmp_path / name).read_text(errors="replace")


def test_all_strategies_of_a_table_share_a_panel(tmp_path: Path) -> None:
    noisy = RECORDS / "2026-11-24-search-tables" / "nasbench201_noisy.json"
    picture = drawn(tmp_path, *SEARCHES, noisy)
    assert picture == drawn(tmp_path, *SEARCHES, noisy)
    texts = re.findall(r"<!-- (.*?) -->", picture)
    assert texts.count("distinct architectures evaluated") == 2
    for name in ("ours", "slow fast", "random", "evolution", "local", "gaussian process"):
        assert texts.count(name) == 1  # in the legend of both panels
    assert "NAS-Bench-201, CIFAR-10 (12 epochs observed)" in texts
    assert "DARTS space, NAS-Bench-301" in texts


def test_the_other_kinds(tmp_path: Path) -> None:
    texts = re.findall(r"<!-- (.*?) -->", drawn(tmp_path, ESTIMATES))
    assert {"another full training", "best for its cost", "training loss, on the way"} <= set(texts)
    predictor = RECORDS / "2026-11-24-predictor-tables" / "predictor_darts.json"
    assert "after 20 pairs" in drawn(tmp_path, predictor)
    error = json.loads((TRAINING / "card.json").read_text())["result"]["test_error"]
    assert f"digits-RelativeNAS (test {error:.2%})" in drawn(tmp_path, TRAINING)
    drawn(tmp_path, TRAINING, name="picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_searches_on_images_stand_side_by_side(tmp_path: Path) -> None:
    record = sorted(RECORDS.glob("*-search-on-images/*jpeg.json"))[-1]
    found = json.loads(record.read_text())
    assert len(found["searches"]["ours"]) >= 2
    texts = re.findall(r"<!-- (.*?) -->", drawn(tmp_path, record))
    assert {"ours", "CIFAR-10 as JPEG files", "test error of the winner, %"} <= set(texts)
    assert len({name.partition("_")[0] for name in found["searches"]} & set(texts)) >= 2


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "other.json").write_text('{"rows": []}')
    (tmp_path / "half.json").write_text('{"estimates": {"a": {}}}')
    shutil.copytree(TRAINING, tmp_path / "training")
    (tmp_path / "training" / "card.json").write_text("{}")
    for records, message in (
        ([tmp_path / "damaged.json"], "damaged.json: no record"),
        ([tmp_path / "other.json"], "other.json: not a record"),
        ([tmp_path / "absent.json"], "absent.json: no such file"),
        ([tmp_path / "half.json"], "an entry is missing"),
        ([tmp_path / "training"], "an entry is missing"),
        ([ESTIMATES, TRAINING], "one picture is of one kind, and these are estimates, training"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(tmp_path, *records)
    (tmp_path / "mine.svg").write_text("mine")
    for given, message in (
        ([str(ESTIMATES), "--out", str(tmp_path / "mine.svg")], "exists"),
        ([str(ESTIMATES), "--out", str(tmp_path / "picture.jpg")], "must end in .svg, .png or .pdf"),
        (["--out", str(tmp_path / "picture.svg")], "at least one JSON file"),
    ):
        with pytest.raises(SystemExit):
            parse(draw.Config, given)
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine.svg").read_text() == "mine"
    assert not (tmp_path / "picture.svg").exists()
