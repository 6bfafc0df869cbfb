"""The table benchmarks on small tables made here: every strategy, every refusal, the skip."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from looks import Looks, SharedWeights  # noqa: E402
from predictor_speed import Config, main, seconds  # noqa: E402
from strategies import COMPARED, STRATEGIES  # noqa: E402
from tables import Table  # noqa: E402


def write_table(path, keep=1.0):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3))
    lines = ["arch,accuracy,early"]
    for row in product(range(3), repeat=4):
        if rng.random() < keep or row == (2, 2, 2, 2):
            value = sum(weights[at, choice] for at, choice in enumerate(row))
            lines.append(f"{'-'.join(map(str, row))},{90 + value:.4f},{80 + value + rng.normal():.4f}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(script, *flags):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", [*COMPARED, "ours_without_levels"])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_every_strategy_spends_its_budget_within_the_table(tmp_path, name, keep):
    problem = Table(write_table(tmp_path / "t.csv", keep))
    evaluated = []

    def loss(architecture):
        evaluated.append(architecture)
        return Table.loss(problem, architecture)

    problem.loss = loss
    returned = STRATEGIES[name](Looks(problem), 25, 1)
    distinct = list(dict.fromkeys(evaluated))
    assert len(distinct) in (25, 26)  # a pair may go one over
    assert len(returned) == len(distinct)
    assert all(chosen in distinct[: k + 1] for k, chosen in enumerate(returned)), "chosen before it was seen"
    assert returned == STRATEGIES[name](Looks(problem), 25, 1)


def test_a_guided_search_finds_the_best_of_a_small_table(tmp_path):
    problem = Table(write_table(tmp_path / "t.csv"))
    best = max(problem._true.values())
    found = [problem.accuracy(STRATEGIES["ours"](Looks(problem), 40, seed)[34]) for seed in range(5)]
    assert min(found) == best  # random search: one time in seventy


@pytest.mark.parametrize("name", [*COMPARED, "ours_without_age", "unpaired_without_age"])
def test_on_shared_weights_every_look_is_a_training(tmp_path, name):
    problem = Table(write_table(tmp_path / "t.csv"))
    looks = SharedWeights(problem, seed=1, drift=1.0, age=1.0, noise=0.3)
    returned = STRATEGIES[name](looks, 25, 1)
    assert looks.trainings in (25, 26)
    assert len(returned) == looks.trainings
    again = SharedWeights(problem, seed=1, drift=1.0, age=1.0, noise=0.3)
    assert returned == STRATEGIES[name](again, 25, 1)


def test_losses_on_shared_weights_fall_shrink_and_favour_what_was_trained(tmp_path):
    problem = Table(write_table(tmp_path / "t.csv"))
    best, worst = (pick(problem._true, key=problem._true.get) for pick in (max, min))

    def gap_and_mean(looks):
        (low, high), error = looks.together(best, worst)
        return high - low, (low + high) / 2, error

    looks = SharedWeights(problem, seed=0, drift=1.0, age=0.0, noise=0.0)
    early = gap_and_mean(looks)
    for _ in range(200):
        looks.together(best)
    late = gap_and_mean(looks)
    assert early[0] > 2 * late[0] > 0
    assert early[1] > late[1] + 5
    looks = SharedWeights(problem, seed=0, drift=0.0, age=1.0, noise=0.0)
    before = gap_and_mean(looks)[0]
    for _ in range(10):
        looks.together(worst)
    assert looks.age(worst) > looks.age(best) > 0
    assert gap_and_mean(looks)[0] < before
    losses = [SharedWeights(problem, 0, 0.0, 0.0, 1.0).together(best, worst) for _ in range(2)]
    assert losses[0] == losses[1]


def test_an_exact_loss_is_paid_once(tmp_path):
    looks = Looks(Table(write_table(tmp_path / "t.csv")))
    assert looks.together((0, 0, 0, 0), (0, 0, 0, 1)) == looks.together((0, 0, 0, 0), (0, 0, 0, 1))
    assert looks.trainings == 2


def test_the_columns_that_are_seen_and_that_count(tmp_path):
    file = write_table(tmp_path / "t.csv")
    problem = Table(file, observe="early", truth="accuracy")
    assert problem.loss((0, 0, 0, 0)) < -70
    assert problem.accuracy((0, 0, 0, 0)) == Table(file).accuracy((0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"--observe late: .* accuracy, early"):
        Table(file, observe="late")


@pytest.mark.parametrize(
    "text", ["", "arch\n0-1\n", "arch,x\n0-1,a\n", "arch,x\n0-1,1\n0-1-2,1\n", "arch,x\n0-1,nan\n"]
)
def test_a_file_that_is_no_such_table_is_named(tmp_path, text):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.csv"):
        Table(str(tmp_path / "bad.csv"))


def test_search_on_table_writes_every_seed_and_refuses_to_overwrite(tmp_path):
    flags = ["--table", write_table(tmp_path / "t.csv"), "--strategies", "random", "ours"]
    flags += ["--budgets", "5", "20", "--seeds", "2", "--json", str(tmp_path / "out.json")]
    first = run("search_on_table.py", *flags)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["strategies"]) == {"random", "ours"}
    entry = result["strategies"]["ours"]["20"]
    assert len(entry["values"]) == 2
    assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    again = run("search_on_table.py", *flags)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_predictor_on_table_measures_tau_and_calibration(tmp_path):
    flags = ["--table", write_table(tmp_path / "t.csv"), "--labelled", "10", "30", "--pairs", "5", "15"]
    flags += ["--without", "counts", "--seeds", "2", "--json", str(tmp_path / "out.json")]
    done = run("predictor_on_table.py", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["labelled"]["30"]["tau"]["mean"] > 0.6
    assert result["pairs"]["15"]["expected_calibration_error"] < 0.3
    assert result["labelled without counts"]["30"]["tau"]["mean"] != result["labelled"]["30"]["tau"]["mean"]


def test_an_unknown_block_of_features_is_refused(tmp_path):
    done = run("predictor_on_table.py", "--table", write_table(tmp_path / "t.csv"), "--without", "colour")
    assert done.returncode == 2
    assert "--without colour: allowed are edges, counts" in done.stderr


@pytest.mark.parametrize("script", ["search_on_table.py", "predictor_on_table.py"])
def test_an_absent_table_is_skipped_with_one_line(tmp_path, script):
    done = run(script, "--table", str(tmp_path / "none.csv"))
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategies", "best"], "--strategies best"),
        (["--budgets", "0"], "--budgets 0"),
        (["--seeds", "0"], "--seeds 0"),
        (["--surrogate", "a.onnx"], "--table"),
        (["--noise", "-1"], "--noise -1"),
        (["--budgets", "500"], "--budgets 500: the table has 81"),
    ],
)
def test_wrong_flags_get_one_line(tmp_path, flags, message):
    done = run("search_on_table.py", "--table", write_table(tmp_path / "t.csv"), *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("what", ["fit", "refit", "more", "search"])
def test_the_predictors_speed_is_taken(what):
    assert 0 < seconds((what, 12)) < 60


def test_the_predictors_speed_is_compared_with_that_of_another_copy(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"--against .*: no copy of the project"):
        Config(against=str(tmp_path)).check()
    flags = {"comparisons": (), "searches": (3,), "repeats": 1, "json": str(tmp_path / "speed.json")}
    main(Config(against=str(ROOT), **flags))
    found = json.loads((tmp_path / "speed.json").read_text())["seconds"]["search 3"]
    assert found["ratio"] == found["other"]["mean"] / found["this"]["mean"] > 0
    assert "times as long" in capsys.readouterr().out


def test_fronts_on_a_table_have_growing_hypervolumes(tmp_path):
    pytest.importorskip("pymoo")
    lines = ["arch,accuracy"]
    for row in product(range(5), repeat=6):  # more 3x3 convolutions, which cost most, are better
        lines.append(f"{'-'.join(map(str, row))},{80 + 2 * row.count(3) + row.count(1) - row.count(0):.1f}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    flags = ["--table", str(tmp_path / "table.csv"), "--seeds", "2", "--budgets", "10", "30"]
    found = run("front_on_table.py", *flags, "--json", str(tmp_path / "front.json"))
    assert found.returncode == 0, found.stderr
    volumes = json.loads((tmp_path / "front.json").read_text())["hypervolume"]
    assert set(volumes) == {"ours", "nsga2", "random", "single"}
    for strategy in volumes.values():
        values = [strategy[budget]["mean"] for budget in ("10", "30")]
        assert 0 < values[0] <= values[1] <= 1
    assert volumes["ours"]["30"]["mean"] > volumes["random"]["30"]["mean"]


def test_a_front_needs_the_error_and_a_cost(tmp_path):
    for objectives, words in (("error", "error first, then of"), ("parameters error", "error first")):
        found = run(
            "front_on_table.py",
            "--table",
            write_table(tmp_path / "t.csv"),
            "--objectives",
            *objectives.split(),
        )
        assert found.returncode == 2
        assert f"--objectives {objectives}: {words}" in found.stderr
