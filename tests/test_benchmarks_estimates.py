"""image_table.py and estimates.py: a small table, resumed, and estimates with a known answer."""

import csv
import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import estimates  # noqa: E402
import image_table  # noqa: E402
import set_estimates  # noqa: E402
from estimates import (  # noqa: E402
    BEFORE,
    Trainings,
    gain,
    others,
    quality,
    with_fidelities,
    with_scores,
    within_ages,
    without,
)
from fidelity import Fidelities, standardised  # noqa: E402

from common.flags import parse  # noqa: E402
from encoding import CellSpace  # noqa: E402

PARTS = ("training", "validation")
SMALL = "--set digits --images 60 --no_named --epochs 2 --init_channels 2 --layers 1 --batch_size 15"


def run(script, *arguments):
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def lines(folder):
    rows = list(csv.DictReader((folder / "trainings.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "whole"
    done = run("image_table", "--out", folder, *SMALL.split(), "--cells", 3, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_line_is_a_training_with_all_its_epochs(table):
    rows = lines(table)
    assert [(row["kind"], row["repeat"]) for row in rows] == [("random", r) for _ in range(3) for r in "01"]
    assert len({row["arch"] for row in rows}) == 3
    for row in rows:
        assert len(row["arch"].split("-")) == 32
        assert 0 <= float(row["accuracy"]) <= 100
        assert float(row["training_loss_1"]) != float(row["training_loss_2"])
        assert 0 <= float(row["validation_error_2"]) <= 1
    assert len({row["training_loss_1"] for row in rows}) == 6, "repeats have other start values and batches"


def test_it_goes_on_with_more_and_gives_what_a_whole_run_gives(table):
    folder = table.parent / "parts"
    first = run("image_table", "--out", folder, *SMALL.split(), "--cells", 1, "--repeats", 1)
    assert first.returncode == 0, first.stderr
    more = run("image_table", "--out", folder, *SMALL.split(), "--cells", 3, "--repeats", 2, "--processes", 2)
    assert more.returncode == 0, more.stderr
    assert lines(folder) == lines(table)


def test_a_table_without_what_is_known_before_training_is_completed(table):
    folder = table.parent / "older"
    folder.mkdir()
    (folder / "settings.json").write_text((table / "settings.json").read_text())
    there = csv.DictReader((table / "trainings.csv").open())
    rows = [{key: value for key, value in row.items() if key not in BEFORE} for row in there]
    with open(folder / "trainings.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = run("image_table", "--out", folder, *SMALL.split(), "--cells", 3, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    assert lines(folder) == lines(table)
    assert all(float(row["parameters"]) > 0 and row["nwot"] for row in lines(folder))


def test_the_predictor_chooses_further_cells_and_goes_on(table):
    whole, parts = table.parent / "chosen", table.parent / "chosen_in_parts"
    flags = [*SMALL.split(), "--cells", 8, "--repeats", 1]
    assert run("image_table", "--out", whole, *flags, "--chosen", 3).returncode == 0
    for chosen in (1, 3):
        assert run("image_table", "--out", parts, *flags, "--chosen", chosen).returncode == 0
    assert [row["kind"] for row in lines(whole)] == ["random"] * 8 + ["chosen"] * 3
    assert len({row["arch"] for row in lines(whole)}) == 11
    assert lines(parts) == lines(whole)


def test_another_table_in_the_folder_is_refused(table):
    done = run("image_table", "--out", table, *SMALL.split(), "--cells", 3, "--seed", 1)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"image_table.py: --out {table}: holds a table made with other settings: --seed 0"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--images 999999", "--images 999999: the training images are only"),
        ("--image_size -3", "--image_size -3: must be at least 8, at most 1024"),
        ("--train_portion 7", "--train_portion 7.0: allowed are numbers between 0 and 1"),
        ("--set folder --data /nonexist", "/nonexist"),
        ("--batch_size 31", "--batch_size 31: 30 images train; give --batch_size 30 or less"),
    ],
)
def test_images_that_cannot_be_get_one_line_and_leave_no_folder(tmp_path, wrong, said):
    done = run("image_table", "--out", tmp_path / "table", *SMALL.split(), *wrong.split())
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def copy_with(folder, target, changed, name="settings.json"):
    """A folder's settings file, changed, in a copy of the folder."""
    shutil.copytree(folder, target)
    kept = json.loads((target / name).read_text())
    changed(kept)
    (target / name).write_text(json.dumps(kept))
    return target


def test_a_table_goes_on_with_its_own_images_only(table, tmp_path):
    other = copy_with(table, tmp_path / "other", lambda kept: kept.update(images="others"))
    older = copy_with(table, tmp_path / "older", lambda kept: kept.pop("images"))
    words = [*SMALL.split(), "--cells", "3", "--data", "elsewhere"]
    with pytest.raises(ValueError, match=rf"^--data elsewhere: holds other images than those of {other}/set"):
        image_table.open_folder(parse(image_table.Config, ["--out", str(other), *words]))
    for folder in (older, table):  # the same images lie somewhere else
        assert len(image_table.open_folder(parse(image_table.Config, ["--out", str(folder), *words]))[1]) == 6
    config = set_estimates.Config(table=str(other), out=str(tmp_path / "sets"), cells=3)
    with pytest.raises(ValueError, match=rf"^--data data: holds other images than those of {other}/set"):
        set_estimates.main(config)
    assert not (tmp_path / "sets").exists()


def test_sets_go_on_with_their_own_table_only(table, tmp_path):
    def opened(table, out):
        config = set_estimates.Config(table=str(table), out=str(out), cells=3)
        networks = set_estimates.networks_of(config)
        task, _ = set_estimates.load_task(networks, torch.device("cpu"))
        return set_estimates.open_folder(config, networks, task)

    sets, name = opened(table, tmp_path / "sets"), set_estimates.SETTINGS
    wider = copy_with(table, tmp_path / "wider", lambda kept: kept["settings"].update(init_channels=4))
    with pytest.raises(ValueError, match=rf"^--table {wider}: has other networks than the sets of {sets}"):
        opened(wider, sets)
    assert opened(shutil.copytree(table, tmp_path / "moved"), sets) == sets
    other = copy_with(sets, tmp_path / "other", lambda kept: kept.update(images="others"), name)
    with pytest.raises(ValueError, match=rf"^--data data: holds other images than those of {other}/sets_"):
        opened(table, other)
    older = copy_with(sets, tmp_path / "older", lambda kept: [kept.pop("images"), kept.pop("networks")], name)
    assert opened(wider, older) == older


def test_estimates_of_a_table(table, tmp_path):
    done = run(
        "estimates", "--table", table / "trainings.csv", "--short", table / "trainings.csv",
        "--resamples", 20, "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["estimates"]["training loss summed, on the way, 1"]["epochs"] == 1
    assert found["estimates"]["validation loss, annealed, 2"]["epochs"] == 2
    assert found["estimates"]["another full training"]["cells"] == 3
    assert "another full training" in done.stdout


def test_no_table_gets_one_line(tmp_path):
    (tmp_path / "a.csv").write_text("arch,accuracy\n0-0,1\n")
    done = run("estimates", "--table", tmp_path / "a.csv")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no table of image_table.py" in done.stderr


def without_column(name):
    """A mend of a table's rows, each a list of fields: the column is missing."""

    def changed(rows):
        place = rows[0].index(name)
        return [row[:place] + row[place + 1 :] for row in rows]

    return changed


def with_field(name, value):
    """Another value in the first training's field."""

    def changed(rows):
        place = rows[0].index(name)
        return [rows[0], [*rows[1][:place], value, *rows[1][place + 1 :]], *rows[2:]]

    return changed


def damaged(table, changed, target):
    rows = list(csv.reader((table / "trainings.csv").open()))
    with open(target, "w", newline="") as stream:
        csv.writer(stream).writerows(changed(rows))
    return target


DAMAGES = {
    "accuracy": (without_column("accuracy"), "no column accuracy"),
    "loss": (without_column("validation_loss_1"), "no column validation_loss_1"),
    "long": (lambda rows: [rows[0], [*rows[1], "7"], *rows[2:]], "line 2: more or fewer fields"),
    "cut": (lambda rows: [*rows[:-1], rows[-1][:5]], "line 7: more or fewer fields"),
    "repeat": (with_field("repeat", "-1"), "line 2: repeat -1 is below 0"),
    "arch": (with_field("arch", "-".join(["99"] * 32)), "line 2: arch has a choice"),
    "empty": (lambda rows: rows[:1], "it has no lines"),
}


@pytest.mark.parametrize(("changed", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_named(table, tmp_path, changed, said):
    file = damaged(table, changed, tmp_path / "trainings.csv")
    with pytest.raises(ValueError, match=rf"^{file}: no table of image_table\.py \(.*{said}"):
        estimates.read(str(file), random_only=True)
    shutil.copy(table / "settings.json", tmp_path)
    config = parse(image_table.Config, ["--out", str(tmp_path), *SMALL.split(), "--cells", "3"])
    with pytest.raises(ValueError, match=rf"^{file}: no table of image_table\.py \(.*{said}"):
        image_table.main(config)


def test_a_table_that_tells_nothing_of_another_is_named(table, tmp_path):
    whole, once = str(table / "trainings.csv"), tmp_path / "once.csv"
    damaged(table, lambda rows: [rows[0], *rows[1::2]], once)
    with pytest.raises(ValueError, match=rf"^{once}: each cell has 1 training"):
        estimates.measure_estimates(estimates.Config(table=str(once)))
    short = estimates.Config(table=whole, short=(str(once),), resamples=5)
    assert "validation loss, annealed, 2" in estimates.measure_estimates(short)["estimates"]
    uneven = damaged(table, lambda rows: rows[:3] + rows[3::2], tmp_path / "uneven.csv")
    with pytest.raises(ValueError, match=rf"^{uneven}: 1 cells have all of the 2 repeats"):
        estimates.measure_estimates(estimates.Config(table=str(uneven)))
    far = damaged(table, with_field("repeat", "1000000000"), tmp_path / "far.csv")
    with pytest.raises(ValueError, match=rf"^{far}: .*repeat 1000000000 among 6 trainings"):
        estimates.read(str(far), random_only=True)
    space = CellSpace()
    other = image_table.arch(space.decode(space.sample(np.random.default_rng(7))))
    strange = damaged(table, lambda rows: [rows[0], [other, *rows[1][1:]]], tmp_path / "strange.csv")
    with pytest.raises(ValueError, match=rf"^--short {strange}: shares 0 cells with --table"):
        estimates.measure_estimates(estimates.Config(table=whole, short=(str(strange),)))


def test_cells_that_diverged_tell_nothing():
    nothing = np.full((3, 2), math.nan)
    assert np.isnan(quality(nothing, nothing)).all()
    half = np.array([[math.nan, 1.0], [math.nan, 2.0]])
    assert quality(half, -half)[0] == 1.0


@pytest.mark.parametrize("text", ["{}", "[]", '{"settings": 1}', '{"settings": {', ""])
def test_a_damaged_settings_file_is_named(table, tmp_path, text):
    file = tmp_path / "settings.json"
    file.write_text(text)
    config = parse(image_table.Config, ["--out", str(tmp_path), *SMALL.split(), "--cells", "3"])
    with pytest.raises(ValueError, match=rf"^{file}: no settings file of a benchmark"):
        image_table.main(config)
    with pytest.raises(ValueError, match=rf"^--table {tmp_path}: no table of image_table\.py"):
        set_estimates.main(set_estimates.Config(table=str(tmp_path), out=str(tmp_path / "sets"), cells=3))
    file = file.rename(tmp_path / "sets_settings.json")
    with pytest.raises(ValueError, match=rf"^{file}: no settings file of a benchmark"):
        set_estimates.main(set_estimates.Config(table=str(table), out=str(tmp_path), cells=3))
    assert list(tmp_path.iterdir()) == [file]


def test_an_estimate_is_held_against_trainings_that_it_did_not_see():
    accuracy = np.array([[1.0, 5.0], [2.0, 4.0], [3.0, 9.0]])
    assert others(accuracy).tolist() == [[5.0, 1.0], [4.0, 2.0], [9.0, 3.0]]
    tau, first, tenth = quality(-accuracy, others(accuracy))
    assert tau == pytest.approx(1 / 3)
    assert first == tenth == pytest.approx((9 - 6 + 3 - 2) / 2)


def test_what_there_is_to_gain_is_what_was_put_in():
    rng = np.random.default_rng(0)
    cells, noise = 2.0 * rng.standard_normal((4000, 1)), rng.standard_normal((4000, 3))
    found = gain(50 + np.array([0.0, 3.0, -3.0]) + cells + noise)
    assert found["sd_between_cells"] == pytest.approx(2.0, rel=0.05)
    assert found["sd_of_a_training"] == pytest.approx(1.0, rel=0.05)
    assert found["best_of"]["25"] == pytest.approx(1.965 * 2.0, rel=0.05)  # expected largest of 25 normals
    assert math.isfinite(found["mean"])
    assert estimates.Config(table="a").random_only


def test_scores_are_joined_with_estimates_where_they_tell_more():
    rng = np.random.default_rng(0)
    columns = {name: np.exp(rng.standard_normal((80, 2))) for name in BEFORE}
    truth = np.log(columns["snip"]) + 0.1 * rng.standard_normal((80, 2))
    trainings = Trainings([str(i) for i in range(80)], columns, 1)
    useless = rng.standard_normal((80, 2))
    joined = with_scores(trainings, useless, truth)
    assert np.corrcoef(joined[:, 0], truth[:, 0])[0, 1] > 0.95
    assert np.isfinite(joined).all()


def cells_with_size(count):
    """Random cells, (count, positions), and how many of their operations are convolutions, standardised."""
    space, rng = CellSpace(), np.random.default_rng(0)
    rows = np.stack([space.read(space.sample(rng)) for _ in range(count)])
    texts = [str(space.architecture(row)) for row in rows]
    return rows, standardised(np.array([text.count("conv") for text in texts], dtype=float))


def test_ends_of_some_cells_tell_where_early_losses_of_all_mislead():
    rows, size = cells_with_size(60)
    rng = np.random.default_rng(1)
    early = rng.standard_normal((60, 2))
    known, asked = np.arange(0, 60, 2), np.arange(1, 60, 2)
    informed = Fidelities(rows, early, 10, known, size[known]).expected()
    assert np.corrcoef(informed[asked], size[asked])[0, 1] > 0.7
    blind = Fidelities(rows, early, 10, known[:0], size[:0]).expected()
    assert abs(np.corrcoef(blind[asked], size[asked])[0, 1]) < 0.4


def test_without_ends_a_cell_is_expected_where_its_losses_were():
    rows, size = cells_with_size(40)
    losses = np.stack([size, size], axis=1)
    expected = Fidelities(rows, losses, 4, np.arange(0), size[:0]).expected()
    assert np.corrcoef(expected, size)[0, 1] > 0.95


def test_cells_whose_end_the_kernel_knew_are_not_judged():
    rows, size = cells_with_size(24)
    columns = {f"{part}_loss_{epoch}": np.stack([size, size], 1) for part in PARTS for epoch in (1, 2, 3)}
    trainings = Trainings(["-".join(map(str, row)) for row in rows], columns, 3)
    found = with_fidelities(trainings)
    cost, expected = found["epoch as an input, ends of a quarter, 1"]
    _, itself = found["training loss, cells without an end, 1"]
    assert cost == round(1 + 0.25 * 2)
    assert np.isfinite(expected).sum(axis=0).tolist() == [18, 18]
    assert (np.isfinite(expected) == np.isfinite(itself)).all()
    assert not any(name.endswith("3") for name in found), "an end is no estimate of itself"


def test_weight_sets_judge_the_cells_of_a_table_and_go_on(table, tmp_path):
    ways = ("published", "short visits", "mean")
    whole = set_estimates.Config(table=str(table), out=str(tmp_path / "whole"), cells=3, budget=20, ways=ways)
    set_estimates.main(whole)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    set_estimates.main(dataclasses.replace(parts, ways=ways[:1]))
    set_estimates.main(parts)
    file = tmp_path / "whole" / "sets.csv"
    assert (tmp_path / "parts" / "sets.csv").read_bytes() == file.read_bytes()
    rows = list(csv.DictReader(file.open()))
    assert [row["way"] for row in rows] == [way for way in ways for _ in range(3)]
    assert {row["arch"] for row in rows} == {row["arch"] for row in lines(table)}
    assert len({row["as_it_is"] for row in rows}) == 9
    assert any(float(row["age"]) > 0 for row in rows)
    for row in rows:
        assert 0 <= float(row["trained_share"]) <= 1
        assert float(row["rate_validation_loss"]) != float(row["last_rate_validation_loss"])
    asked = estimates.Config(table=str(table / "trainings.csv"), sets=str(file), resamples=20)
    found = estimates.measure_estimates(asked)["estimates"]
    assert found["set mean: rate training loss"]["epochs"] == 1
    assert found["set mean: rate training loss"]["cells"] == 3
    with pytest.raises(ValueError, match="other settings"):
        set_estimates.main(dataclasses.replace(whole, rate=0.5))
    with pytest.raises(ValueError, match="3 random cells"):
        set_estimates.main(dataclasses.replace(whole, cells=4))
    file.write_text(file.read_text().replace("way,", "how,", 1))
    with pytest.raises(ValueError, match=rf"^{file}: no table of set_estimates\.py \(it has no column way"):
        set_estimates.main(whole)
    with pytest.raises(ValueError, match=rf"^--sets {file}: no table of set_estimates\.py"):
        estimates.measure_estimates(asked)


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (
            "set_estimates",
            ["--table", ".", "--out", "x", "--ways", "odd"],
            "--ways odd: allowed are",
        ),
        ("set_estimates", ["--table", "none", "--out", "x"], "--table none: no table of image_table.py"),
        ("estimates", ["--table", "TABLE", "--sets", "README.md"], "--sets README.md: no table of set_estim"),
    ],
)
def test_what_cannot_be_judged_gets_one_line(table, script, arguments, said):
    there = [str(table / "trainings.csv") if word == "TABLE" else word for word in arguments]
    done = run(script, *there)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_age_is_taken_out_of_what_weight_sets_say():
    rng = np.random.default_rng(0)
    quality_of, ages = rng.standard_normal((90, 1)), rng.standard_normal((90, 1))
    loss = -quality_of - 5 * ages
    left = without(loss, ages, ages**2)
    assert np.corrcoef(left[:, 0], -quality_of[:, 0])[0, 1] > 0.95
    assert abs(np.corrcoef(left[:, 0], ages[:, 0])[0, 1]) < 1e-9
    known = within_ages(loss, quality_of, ages)
    assert quality(loss, quality_of)[0] < known < quality(left, quality_of)[0]
