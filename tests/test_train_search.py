"""train_search.py as a user runs it: to the end, killed, interrupted, resumed, in two processes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, TINY, TORCHRUN, Program, one_line, results, rows
from test_report import Page
from test_test import script as test_script

import genotypes
import operations
import train
import train_search
import visualize
from common import checkpoint
from common.flags import parse
from model import NetworkCIFAR
from search.limits import FullSizeCosts
from search.run import definitions, make_search


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- what a run leaves


def test_a_run_leaves_everything_it_promises(finished_run: Path) -> None:
    files = {path.name for path in finished_run.iterdir()}
    assert files == {
        *("config.json", "log.txt", "history.csv", "generations.csv", "finalists.csv", "genotype.json"),
        *("model.pt", "checkpoint.pt", "checkpoint.previous.pt", "report.html"),
    }
    history = rows(finished_run / "history.csv")
    assert [(row["generation"], row["pair"]) for row in history] == [
        (str(g), str(p)) for g in range(3) for p in range(3)
    ]
    for row in history:
        genotypes.from_json(row["genotype_a"])
        if row["decided_by"] != "predictor":
            difference = float(row["loss_a"]) - float(row["loss_b"])
            assert abs(difference - float(row["difference"])) < 1e-6
            assert row["winner"] == ("a" if difference <= 0 else "b")
            assert float(row["standard_error"]) > 0
    generations = rows(finished_run / "generations.csv")
    assert [row["generation"] for row in generations] == ["0", "1", "2"]
    for row in generations:
        for kind in ("normal", "reduce"):
            assert sum(int(row[f"{kind}_{name}"]) for name in genotypes.PRIMITIVES) == 6 * 8
    assert float(generations[0]["learning_rate"]) == 0.1 > float(generations[2]["learning_rate"])


def test_the_winner_is_the_best_finalist_and_loads(finished_run: Path) -> None:
    cell = genotypes.lookup(finished_run)
    finalists = rows(finished_run / "finalists.csv")
    assert genotypes.from_json(finalists[0]["genotype"]) == cell
    assert [row["winner"] for row in finalists] == ["1"] + ["0"] * (len(finalists) - 1)
    losses = [float(row["loss"]) for row in finalists]
    scores = [float(row["loss"]) + float(row["training_loss"]) for row in finalists]
    assert scores == sorted(scores)
    state = checkpoint.load(finished_run / "model.pt", "network")
    network = NetworkCIFAR(4, 10, 3, False, cell, in_channels=1, image_size=8)
    network.load_state_dict(state["state_dict"])
    assert state["result"]["validation_loss"] == losses[0]
    assert state["result"]["test_images"] == 355


def test_the_next_steps_take_the_winner(run, finished_run: Path, tmp_path: Path) -> None:
    code, _, err = run(
        test_script, "--model_path", finished_run / "model.pt", "--json", tmp_path / "tested.json"
    )
    assert code == 0, err
    tested = json.loads((tmp_path / "tested.json").read_text())
    result = checkpoint.load(finished_run / "model.pt", "network")["result"]
    assert tested["test_error"] == result["test_error"]
    assert tested["test_loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    flags = "--set digits --init_channels 2 --layers 1 --batch_size 721 --epochs 1 --device cpu"
    code, _, err = run(train, flags, "--arch", finished_run, "--save", tmp_path / "trained")
    assert code == 0, err
    trained = checkpoint.load(tmp_path / "trained" / "model.pt", "network")
    assert genotypes.from_dict(trained["network"]["genotype"]) == genotypes.lookup(finished_run)
    found = checkpoint.load(finished_run / "model.pt", "network")["found"]
    assert trained["found"] == {"search": finished_run.name} | found
    assert json.loads((tmp_path / "trained" / "card.json").read_text())["found"] == trained["found"]


def test_the_report_shows_the_finalists_and_every_plot(finished_run: Path) -> None:
    page = Page(finished_run / "report.html")
    titles = "The winner|Where the winner came from|Finalists|Course of the search"
    titles += "|Operations in the population|Predictor|Settings"
    assert re.findall(r"<h2>(.*?)</h2>", page.source) == titles.split("|")
    plots = ("losses", "diversity", "normal-counts", "reduce-counts", "calibration")
    assert all(f'id="{plot}-' in page.source for plot in plots)
    cell = genotypes.lookup(finished_run)
    assert page.source.count("<svg") == len({cell[:2], cell[2:]}) + len(plots)  # equal cells are drawn once
    winner, *others = rows(finished_run / "finalists.csv")
    for row in (winner, *others):
        assert f"{float(row['loss']):.4g}{float(row['error']):.2%}" in page.text
        assert row["origin"] in page.text
    found = checkpoint.load(finished_run / "model.pt", "network")["found"]
    assert found["origin"] == winner["origin"]
    assert f"where it came from: {winner['origin']} (of " in (finished_run / "log.txt").read_text()
    assert f"winner's test error{float(winner['test_error']):.2%}" in page.text
    assert winner["genotype"] in page.text


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(
    program: Program, finished_run: Path
) -> None:
    program.search("--save", "again")
    assert results(program.folder / "again") == results(finished_run)
    program.search("--save", "seed1", "--seed", 1)
    assert results(program.folder / "seed1")[0] != results(finished_run)[0]


def test_the_predictor_has_one_thread_whatever_is_set(tmp_path: Path) -> None:
    """NumPy's and SciPy's linear algebra alike: their sums depend on the number of threads."""
    code = """
import sys, threadpoolctl, train_search
from common import flags
def show(run):
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    print(len(pools), {pool["num_threads"] for pool in pools})
train_search.search_cells, train_search.finish = show, lambda *_: None
flags.run_script(train_search.main, flags.parse(train_search.Config))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    outcome = subprocess.run(
        [sys.executable, "-c", code, *TINY, "--save", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    pools, threads = outcome.stdout.splitlines()[-1].split(maxsplit=1)
    assert int(pools) >= 2, "NumPy and SciPy bring their own"
    assert threads == "{1}"


def test_the_script_itself_runs(program: Program, finished_run: Path, tmp_path: Path) -> None:
    """In a copy of the repository, as --record writes there."""
    for module in (*ROOT.glob("*.py"), *ROOT.glob("*/__init__.py")):
        folder = module.parent if module.name == "__init__.py" else module
        (shutil.copytree if folder.is_dir() else shutil.copy)(folder, tmp_path / folder.name)
    # The folder has the name of a cell, which is not the one that is recorded.
    flags = [*TINY, "--generations", "1", "--save", "DARTS", "--record", "Found"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    outcome = python("train_search.py", *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert "recorded in genotypes.py as Found" in outcome.stdout
    found = python("-c", "import genotypes; print(genotypes.to_json(genotypes.Found))")
    assert found.stdout == (tmp_path / "DARTS" / "genotype.json").read_text()
    source = (tmp_path / "genotypes.py").read_text()
    again = python(
        "train_search.py", "--resume", "DARTS"
    )  # finished: says so, and does not stumble over its own record
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    taken = python("train_search.py", *flags[:-3], "other", "--record", "Found")
    assert taken.returncode == 2
    assert "Found" in one_line(taken.stderr)
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "genotypes.py").read_text() == source


# ---- stopped and taken up


def test_killed_at_any_moment_and_resumed_it_gives_the_same(program: Program, finished_run: Path) -> None:
    rng = random.Random(20261124)
    run = program.folder / "killed"
    flags: list[str] = [*TINY, "--save", str(run)]
    for checkpoints in (0, 1, 0, 2, 1, 3):  # so many new ones, and then at any moment
        started = program.start(*flags)
        for _ in range(checkpoints):
            before = written(run)
            wait_for(lambda before=before: written(run) != before or (run / "genotype.json").exists())
        time.sleep(rng.uniform(0.0, 0.3))
        started.send(signal.SIGKILL)
        code, _, err = started.wait()
        assert code == -signal.SIGKILL or (run / "genotype.json").exists(), err
        if (run / "config.json").exists():
            flags = ["--resume", str(run)]
    code, _, err = program.run(*flags)
    assert code == 0, err
    assert results(run) == results(finished_run)
    assert not [path for path in run.iterdir() if path.name.startswith(".")], "leftovers of a killed program"


def written(run: Path) -> int:
    path = run / "checkpoint.pt"
    return path.stat().st_ino if path.exists() else 0


def test_killed_while_it_writes_it_gives_the_same(program: Program, finished_run: Path) -> None:
    """Killed in the middle of a checkpoint: it is written, but not yet in its place."""
    run = program.folder / "killed_writing"
    flags: list[str] = [*TINY, "--save", str(run)]
    for number in (1, 3, 2):
        started = program.start(*flags, die_at_checkpoint=number)
        assert started.wait()[0] == -signal.SIGKILL
        assert list(run.glob(".checkpoint*")), "it was killed elsewhere"
        flags = ["--resume", str(run)]
    code, _, err = program.run(*flags)
    assert code == 0, err
    assert results(run) == results(finished_run)


@pytest.mark.parametrize("moment", ["generation 1/3", "from scratch for"])
def test_ctrl_c_says_how_to_go_on(program: Program, finished_run: Path, moment: str) -> None:
    run = program.folder / f"interrupted_{moment.replace(' ', '_')}"
    log = run / "log.txt"
    started = program.start(*TINY, "--save", run)
    wait_for(lambda: log.exists() and moment in log.read_text())
    started.send(signal.SIGINT)
    code, out, err = started.wait()
    assert code == 130
    assert err == "", "it was said"
    assert out.count("stopped") == 1
    line = out.strip().splitlines()[-1]
    assert line == f"stopped; go on with: python train_search.py --resume {run}"
    code, _, err = program.run(*line.split()[-2:])
    assert code == 0, err
    assert results(run) == results(finished_run)


def test_a_finished_run_is_left_alone(program: Program, finished_run: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.iterdir() if path.name != "log.txt"}
    times = {path: path.stat().st_mtime_ns for path in before if path.suffix in (".pt", ".json", ".html")}
    code, out, _ = program.run("--resume", finished_run)
    assert code == 0
    assert "finished already; winner: " + (finished_run / "genotype.json").read_text().strip() in out
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_winner_without_a_report_is_completed(program: Program, finished_run: Path) -> None:
    run = program.folder / "no_report"
    shutil.copytree(finished_run, run)
    (run / "report.html").unlink()
    (run / "genotype.json").unlink()
    code, out, err = program.run("--resume", run)
    assert code == 0, err
    assert "generation 1/" not in out, "it searched again"
    assert results(run) == results(finished_run)
    assert (run / "report.html").exists()


# ---- processes and switches


def test_two_processes_find_what_one_finds(program: Program, finished_run: Path) -> None:
    run = program.folder / "two"
    command = [*TORCHRUN, ROOT / "train_search.py", *TINY, "--save", run]
    outcome = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=150)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert results(run) == results(finished_run)
    assert outcome.stdout.count("winner: ") == 1


def test_begun_alone_two_processes_find_what_one_finds(program: Program) -> None:
    flags = [*TINY, "--pairs_per_sync", "2", "--save"]
    code, _, err = program.run(*flags, "alone")
    assert code == 0, err
    assert program.start(*flags, "begun", die_at_checkpoint=2).wait()[0] == -signal.SIGKILL
    code, out, err = program.run_two("--resume", "begun")
    assert code == 0, err
    assert out.count("winner: ") == 1
    assert results(program.folder / "begun") == results(program.folder / "alone")


def test_switches_make_other_searches(program: Program, finished_run: Path) -> None:
    small = ["--generations", "2", "--pop_size", "4"]
    program.search(*small, "--strategy", "random", "--save", "random")
    history = rows(program.folder / "random" / "history.csv")
    cells = [row[f"genotype_{side}"] for row in history for side in "ab"]
    assert len(set(cells)) == 8, "every cell is a fresh one"
    assert {row["decided_by"] for row in history} == {"training"}

    program.search(*small, "--no_rank", "--no_screen", "--no_decide", "--save", "published")
    history = rows(program.folder / "published" / "history.csv")
    assert {row["decided_by"] for row in history} == {"training"}
    assert {row["probability"] for row in history} == {""}
    first, second = ([row for row in history if row["generation"] == g] for g in "01")
    fast = {row[f"genotype_{row['winner']}"] for row in first}
    assert fast <= {row[f"genotype_{side}"] for row in second for side in "ab"}, "fast learners stay"


SMALLEST = [
    *("--set", "digits", "--images", "40", "--pop_size", "4", "--generations", "2", "--finalists", "2"),
    *("--init_channels", "2", "--layers", "1", "--batch_size", "10", "--final_epochs", "1", "--no_screen"),
    *("--max_parameters", "9", "--full_channels", "2", "--full_layers", "1", "--estimate", "weight_set"),
]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory):
    """history.csv and finalists.csv of the smallest search with these flags; no report is drawn."""

    def start(*flags: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        run = tmp_path_factory.mktemp("smallest") / "run"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(visualize, "write_report", lambda _: None)
            train_search.main(parse(train_search.Config, [*SMALLEST, "--save", str(run), *flags]))
        return rows(run / "history.csv"), rows(run / "finalists.csv")

    return start


@pytest.fixture(scope="module")
def plain(search):
    return search()


@pytest.mark.parametrize(
    ("flags", "first"),  # and the first generation that they change
    [
        ("--train_portion 0.75", 0),
        ("--no_cutout", 0),
        ("--learning_rate 0.05", 0),
        ("--momentum 0.5", 0),
        ("--weight_decay 0.01", 0),
        ("--grad_clip 0.1", 0),
        ("--recalibrate 1", 0),
        ("--precision bfloat16", 0),
        ("--learning_rate_min 0.05", 1),
        ("--drop_path_prob 0.9", 1),
        ("--screen", 1),
    ],
)
def test_a_flag_changes_the_search(search, plain, flags: str, first: int) -> None:
    both = zip(search(*flags.split())[0], plain[0], strict=True)
    assert min(int(row["generation"]) for row, changed in both if row != changed) == first


@pytest.mark.parametrize(
    "flags", ["--final_learning_rate 0.1", "--no_rank", "--full_channels 3", "--full_layers 2"]
)
def test_a_flag_changes_the_finals_alone(search, plain, flags: str) -> None:
    history, finalists = search(*flags.split())
    assert history == plain[0]
    assert finalists != plain[1]


def test_distinct_inputs_hold_in_every_cell(search, plain) -> None:
    def repeats(tables: tuple[list[dict[str, str]], ...]) -> int:
        """How many nodes have the same input twice."""
        texts = [
            value for table in tables for row in table for name, value in row.items() if "genotype" in name
        ]
        cells = [genotypes.from_json(text) for text in texts]
        inputs = [source for cell in cells for _, source in cell.normal + cell.reduce]
        return sum(first == second for first, second in zip(inputs[::2], inputs[1::2], strict=True))

    assert repeats(plain) > 0
    assert repeats(search("--distinct_inputs")) == 0


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--no_decide", "decide", False),
        ("--audit_share 0.5", "audit_share", 0.5),
    ],
)
def test_flags_that_need_a_sure_predictor_reach_it(flags: str, name: str, value: object) -> None:
    def made(*flags: str):
        return make_search(parse(train_search.Config, flags), FullSizeCosts(None, {}, {}, ())).settings

    assert getattr(made(*flags.split()), name) == value != getattr(made(), name)


def test_limits_hold_for_every_cell_that_trains(program: Program) -> None:
    program.search("--max_parameters", "2.5", "--max_multiply_adds", "20", "--save", "limited")
    from model_search import FullSize

    full_size = FullSize(C=36, num_classes=10, layers=20, in_channels=1, image_size=8)
    history = rows(program.folder / "limited" / "history.csv")
    cells = {row[f"genotype_{side}"] for row in history for side in "ab"}
    cells |= {row["genotype"] for row in rows(program.folder / "limited" / "finalists.csv")}
    for cell in cells:
        parameters, multiply_adds = full_size(genotypes.from_json(cell))
        assert parameters <= 2.5e6
        assert multiply_adds <= 20e6


def test_divergence_is_survived_and_logged(program: Program) -> None:
    """A learning rate at which training explodes: candidates lose, and nothing of them is kept."""
    flags = ["--learning_rate", "1e30", "--generations", "1", "--save", "diverged"]
    code, out, err = program.run(*TINY, *flags)
    assert "diverged" in out
    assert code == 2
    assert "--learning_rate" in one_line(err)
    state = checkpoint.load(program.folder / "diverged" / "checkpoint.pt", "search")
    parts = [part for name, part in state["weights"].items() if name != "visits"]
    assert all(torch.isfinite(part["values"]).all() for part in parts)
    assert state["weights"]["visits"]["names"] == []
    history = rows(program.folder / "diverged" / "history.csv")
    assert {row["winner"] for row in history} == {""}


@pytest.mark.parametrize("changed", ["groups", "activation"])
def test_an_operation_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    def operation(C: int, stride: int, affine: bool) -> torch.nn.Module:
        groups = 2 if changed == "groups" and found else 1
        after = torch.nn.GELU() if changed == "activation" and found else torch.nn.ReLU()
        return torch.nn.Sequential(torch.nn.Conv2d(C, C, 1, stride, groups=groups), after)

    found: list[dict[str, str]] = []
    monkeypatch.setitem(operations.OPS, "own", operation)
    config = train_search.Config(operations=("own", "skip_connect"))
    found.append(definitions(config))
    found.append(definitions(config))
    assert found[0].keys() == {"own", "skip_connect"}
    assert found[0]["own"] != found[1]["own"]
    assert found[0]["skip_connect"] == found[1]["skip_connect"]


def test_a_run_goes_on_with_the_operations_that_it_began_with(program: Program, finished_run: Path) -> None:
    run = program.folder / "other_operations"
    shutil.copytree(finished_run, run)
    state = checkpoint.load(run / "checkpoint.pt", "search")
    state["operations"]["sep_conv_3x3"] = "another"
    checkpoint.save(run / "checkpoint.pt", state)
    before = results(run)
    code, _, err = program.run("--resume", run.name)
    assert code == 2
    words = f"--resume {run.name}: sep_conv_3x3 in operations.py is defined otherwise than when the run began"
    assert one_line(err).endswith(words)
    assert results(run) == before
    del state["operations"]  # runs of earlier versions
    checkpoint.save(run / "checkpoint.pt", state)
    assert program.run("--resume", run.name)[0] == 0


def test_settings_are_kept_as_given(finished_run: Path) -> None:
    settings = json.loads((finished_run / "config.json").read_text())
    assert (settings["pop_size"], settings["set"], settings["learning_rate"]) == (6, "digits", 0.1)
    log = (finished_run / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d .*search on digits", log)
