"""The benchmarks on real images, on the 8x8 digits: each runs once as its user would."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import baselines  # noqa: E402
import found_cell  # noqa: E402
import search_on_images  # noqa: E402
import weight_set  # noqa: E402
from baselines import BASELINES  # noqa: E402
from search_on_images import Config, difference, kept_result, result_of, summarise, table  # noqa: E402
from searches import draw_test_images, open_or_begin, random_cells  # noqa: E402

import genotypes  # noqa: E402
from common.flags import parse, run_script  # noqa: E402
from images import sets  # noqa: E402
from model import count  # noqa: E402

SMALL = (
    "--set digits --images 40 --estimate weight_set --pop_size 2 --init_channels 2 --layers 1 --batch_size 20"
)
FLAGS = f"{SMALL} --budget 4 --seeds 0 --repeats 1 --finalists 2 --final_epochs 1 --test_images 50"


def run(script, *arguments):
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder of two searches, and the result of the benchmark that made them."""
    folder = tmp_path_factory.mktemp("images")
    arguments = ["--out", folder / "searches", *FLAGS.split(), "--strategies", "ours", "slow_fast"]
    done = run("search_on_images", *arguments, "--json", folder / "a.json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "a.json").read_text())


def test_strategies_spend_the_same_and_differences_are_those_of_the_seeds(searched):
    folder, result = searched
    searches = {name: runs[0] for name, runs in result["searches"].items()}
    assert {search["epochs_of_candidates"] for search in searches.values()} == {4}
    assert {search["epochs_of_finalists"] for search in searches.values()} == {2}
    assert {search["images_trained_on"] for search in searches.values()} == {6 * 20}
    history = list(csv.DictReader((folder / "searches" / "ours-0" / "history.csv").open()))
    assert 2 * sum(row["loss_a"] != "" for row in history) == 4
    errors = {name: entry["test_error"]["values"] for name, entry in result["strategies"].items()}
    difference = result["strategies"]["slow_fast"]["difference_to_ours"]
    assert difference["values"] == [errors["slow_fast"][0] - errors["ours"][0]]
    assert (difference["n"], difference["interval"]) == (1, None)
    assert errors["ours"] == [searches["ours"]["test_error"]]


def test_what_was_done_is_not_done_again_and_a_lost_result_is_the_same_again(searched):
    folder, result = searched
    config = parse(Config, ["--out", str(folder / "searches"), *FLAGS.split()])
    first, second = (folder / "searches" / name for name in ("ours-0", "slow_fast-0"))
    before = (first / "log.txt").read_text()
    assert result_of(config, "ours", 0, torch.device("cpu")) == result["searches"]["ours"][0]
    assert (first / "log.txt").read_text() == before
    (second / "result.json").unlink()
    assert result_of(config, "slow_fast", 0, torch.device("cpu")) == result["searches"]["slow_fast"][0]
    with pytest.raises(ValueError, match="other settings"):
        open_or_begin(config.settings("slow_fast", 0), first, torch.device("cpu"))


@pytest.mark.parametrize("text", ["{}", '{"strategy": "ou', "[]", "\xff"])
def test_a_damaged_result_is_named(text, tmp_path):
    file = tmp_path / "result.json"
    assert kept_result(file, {"repeats": 1}) is None
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"result\.json: no result of a search; delete it"):
        kept_result(file, {"repeats": 1})


def test_the_interval_of_a_difference_is_that_of_paired_values():
    found = difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    low, high = found["interval"]
    assert found["mean"] == pytest.approx(0.2)
    assert high - found["mean"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # t table, 2 degrees
    assert found["mean"] - low == pytest.approx(high - found["mean"])


def test_the_share_of_a_gap_is_counted_from_a_random_cell():
    errors = {"ours": [0.50, 0.54], "halving": [0.56, 0.56], "chance": [0.55, 0.57]}
    results = {name: [{"test_error": error} for error in values] for name, values in errors.items()}
    found = summarise(results, gap=0.05)
    assert found["ours"]["share_of_gap"] == pytest.approx(0.8)
    assert found["halving"]["share_of_gap"] == pytest.approx(0)
    low, high = found["ours"]["share_of_gap_interval"]
    assert high - 0.8 == pytest.approx(12.7062 * 0.01 / 0.05, rel=1e-4)  # t table, 1 degree
    assert low + high == pytest.approx(2 * 0.8)
    assert "share_of_gap" not in found["chance"]
    assert " 80.00 " in table(results, gap=0.05)


LONE = "--estimate alone --candidate_epochs 2 --images 80 --budget 16 --finalists 2 --final_epochs 2"


@pytest.mark.parametrize("name", ["local", "halving", "largest", "finalists_only"])
def test_baselines_spend_their_budget_and_begin_again_from_what_is_trained(name, tmp_path):
    config = parse(Config, ["--out", str(tmp_path), *f"{SMALL} {LONE}".split()])
    run, _ = open_or_begin(config.settings(name, 3), tmp_path / "a", torch.device("cpu"))
    cells, epochs = BASELINES[name](run, config.budget)
    trained = {"local": 8 * 2, "halving": 16, "largest": 8 * 2, "finalists_only": 0}
    assert epochs == trained[name]
    assert len(cells) == (2 + 8 if name == "finalists_only" else 2)
    run.save()
    run.folder.unlock()
    again, _ = open_or_begin(config.settings(name, 3), tmp_path / "a", torch.device("cpu"))
    known = len(again.estimate.known)
    assert BASELINES[name](again, config.budget) == (cells, epochs)
    assert len(again.estimate.known) == known, "nothing was trained again"


@pytest.mark.parametrize("budget", [6, 9, 16, 23])
def test_halving_never_spends_more_than_its_budget(budget, tmp_path):
    flags = f"{SMALL} {LONE} --finalists 3".split()
    config = parse(
        Config, ["--out", str(tmp_path), *flags, "--candidate_epochs", "1", "--budget", str(budget)]
    )
    run, _ = open_or_begin(config.settings("halving", 0), tmp_path / "a", torch.device("cpu"))
    _, epochs = BASELINES["halving"](run, budget)
    assert budget - 6 < epochs <= budget


def test_a_cell_that_diverged_does_not_win_a_local_search(tmp_path, monkeypatch):
    config = parse(Config, ["--out", str(tmp_path), *f"{SMALL} {LONE}".split()])
    run, _ = open_or_begin(config.settings("local", 0), tmp_path / "a", torch.device("cpu"))
    losses = iter([float("nan"), 3.0, 2.0, 1.0, float("nan"), 5.0, 6.0, 7.0])
    met = {}

    def judged(cells):
        met[cells[0]] = next(losses)
        return [torch.tensor([met[cells[0]]])]

    monkeypatch.setattr(run.estimate, "losses", judged)
    cells, _ = BASELINES["local"](run, config.budget)
    assert [met[cell] for cell in cells] == [1.0, 2.0]


def test_local_search_keeps_the_lowest_losses(tmp_path):
    config = parse(Config, ["--out", str(tmp_path), *f"{SMALL} {LONE}".split()])
    run, _ = open_or_begin(config.settings("local", 0), tmp_path / "a", torch.device("cpu"))
    cells, _ = BASELINES["local"](run, config.budget)
    losses = {cell: losses.mean() for cell, losses in run.estimate.known.items()}
    assert cells == sorted(losses, key=losses.__getitem__)[:2]


def test_the_largest_of_the_drawn_cells_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "DRAWS", 20)
    config = parse(Config, ["--out", str(tmp_path), *f"{SMALL} {LONE}".split()])
    run, _ = open_or_begin(config.settings("largest", 0), tmp_path / "a", torch.device("cpu"))
    cells, _ = BASELINES["largest"](run, config.budget)
    size = run.task.size(run.config.init_channels, run.config.layers)
    assert size(cells[0])[0] == count(run.task.weight_set("size").network(cells[0]))[0]
    drawn = random_cells(run.config, 20 * 8, 0, "largest")
    trained = sorted(size(cell)[0] for cell in run.estimate.known)
    assert trained == sorted(size(cell)[0] for cell in drawn)[-8:]


@pytest.mark.parametrize(
    ("strategies", "message"),
    [("ours local", "--estimate: local, halving"), ("ours prior_only", "--prior: prior_only")],
)
def test_what_a_strategy_lacks_is_said_before_another_one_trains(strategies, message, tmp_path):
    flags = [*SMALL.split(), "--budget", "8", "--strategies", *strategies.split()]
    with pytest.raises(ValueError, match=message):
        search_on_images.main(parse(Config, ["--out", str(tmp_path / "out"), *flags]))
    assert not (tmp_path / "out").exists()


def test_all_processes_check_strategies_in_one_order(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(search_on_images, "check_baseline", lambda name, run: checked.append(name))
    monkeypatch.setattr(search_on_images, "open_search", lambda settings, path, device: (None, None))
    asked = ["prior_only", "ours", "largest", "local", "chance", "halving"]
    flags = [*SMALL.split(), "--budget", "8", "--strategies", *asked]
    search_on_images.check_strategies(parse(Config, ["--out", str(tmp_path), *flags]), torch.device("cpu"))
    assert checked == ["prior_only", "largest", "local", "halving"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0 1 0", "--seeds 0 1 0: must be one or more, each once"),
        ("--strategies ours chance ours", "--strategies ours chance ours: must be"),
        ("--seeds 9223372036854775808", "must be from 0 to 2^63 - 1"),
        ("--baseline 2", "--baseline: has no effect here"),
        (
            "--strategies ours local chance --max_parameters 3",
            "--max_parameters 3.0: chance, local would not keep",
        ),
        (
            "--strategies largest --objectives error parameters",
            "--objectives error parameters: largest would not",
        ),
    ],
)
def test_what_would_spoil_a_comparison_is_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(Config, ["--out", str(tmp_path / "out"), *SMALL.split(), *flags.split()])
    assert message in capsys.readouterr().err


def test_some_test_images_are_of_all_classes_wherever_they_stand():
    labels = torch.arange(5).repeat_interleave(40)  # as class folders list them
    test = sets.ImageSet(torch.zeros(200, 1, 8, 8, dtype=torch.uint8), labels, tuple("abcde"))
    assert draw_test_images(test, 50, seed=0).labels.bincount(minlength=5).min() >= 4
    assert draw_test_images(test, None, seed=0).labels.bincount().tolist() == [40] * 5


def test_more_test_images_than_there_are_are_refused_before_anything_is_made(tmp_path):
    config = parse(Config, ["--out", str(tmp_path / "out"), *FLAGS.split(), "--test_images", "356"])
    with pytest.raises(ValueError, match="--test_images 356: there are only 355"):
        result_of(config, "ours", 0, torch.device("cpu"))
    assert not (tmp_path / "out").exists()


def test_a_found_cell_is_tested_beside_random_ones(finished_run, tmp_path, capsys):
    found_cell.main(found_cell.Config(str(finished_run), cells=2, seeds=1, json=str(tmp_path / "out.json")))
    result = json.loads((tmp_path / "out.json").read_text())
    assert genotypes.from_dict(result["genotype"]) == genotypes.lookup(finished_run)
    assert [len(result["test_error"][name]) for name in ("found", "random")] == [1, 2]
    assert f"found: test error {result['test_error']['found'][0]:.2%}, sd -, n 1" in capsys.readouterr().out


def test_a_found_cell_is_tested_beside_known_ones(finished_run, tmp_path, capsys):
    flags = {"cells": 0, "beside": ("RelativeNAS", str(finished_run)), "seeds": 2}
    found_cell.main(found_cell.Config(str(finished_run), **flags, json=str(tmp_path / "out.json")))
    errors = json.loads((tmp_path / "out.json").read_text())["test_error"]
    assert {name: len(values) for name, values in errors.items()} == {
        "found": 2,
        "RelativeNAS": 2,
        str(finished_run): 2,
    }
    assert "seed 1: found" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--beside: found and random"):
        found_cell.Config(str(finished_run), beside=("random",)).check()


def test_a_run_that_is_not_there_is_named_by_its_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["weight_set.py", "--run", "/nowhere"])
    with pytest.raises(SystemExit, match="2"):
        run_script(weight_set.main, parse(weight_set.Config))
    assert "--run /nowhere: no run is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seed 3", "--seed: has no effect here"),
        ("--no_decide", "--decide: has no effect here"),
        ("--strategies best", "--strategies best: allowed are ours"),
        ("--table t.csv", "--table t.csv: a gap is seen from a random cell; add --strategies chance"),
        ("--pop_size 4 --budget 2", "--budget 2: must be at least 4"),
        ("--pop_size 4 --estimate alone --candidate_epochs 3 --budget 8", "--budget 8: must be at least 12"),
        ("--pop_size 4 --budget 8 --pairs_per_sync 2", "--pairs_per_sync 2: must be 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(Config, ["--out", str(tmp_path), *flags.split()])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weight_set_correlates_every_estimate_and_leaves_the_run_alone(searched):
    folder, _ = searched
    search = folder / "searches" / "ours-0"
    before = {path.name: path.read_bytes() for path in search.iterdir()}
    arguments = ["--run", search, "--cells", 3, "--repeats", 2, "--recalibrate", 1, "--test_images", 50]
    done = run("weight_set", *arguments, "--resamples", 20, "--json", folder / "c.json")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in search.iterdir()} == before
    result = json.loads((folder / "c.json").read_text())
    assert [cell["group"] for cell in result["cells"]] == ["random"] * 3 + ["good"] * 3
    losses = [tuple(cell["losses"].values()) for cell in result["cells"]]
    assert all(len(set(values)) == 4 for values in losses), "four different estimates of each cell"
    kendall = result["correlations"]["all"]["epoch"]["kendall"]
    assert -1 <= kendall["low"] <= kendall["value"] <= kendall["high"] <= 1
