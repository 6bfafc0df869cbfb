"""train_search.py as a user runs it: to the end, killed, interrupted, resumed, in two processes."""

from __future__ import annotations

import csv
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
from conftest import ROOT, TINY, Program, one_line, results

import checkpoint
import genotypes
from model import NetworkCIFAR


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    assert losses == sorted(losses)
    state = checkpoint.load(finished_run / "model.pt", "network")
    network = NetworkCIFAR(4, 10, 3, False, cell, in_channels=1, image_size=8)
    network.load_state_dict(state["state_dict"])
    assert state["result"]["validation_loss"] == losses[0]
    assert 0 <= state["result"]["test_error"] <= 1
    assert state["result"]["test_images"] == 355


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(
    program: Program, finished_run: Path
) -> None:
    program.search("--save", "again")
    assert results(program.folder / "again") == results(finished_run)
    program.search("--save", "seed1", "--seed", 1)
    assert results(program.folder / "seed1")[0] != results(finished_run)[0]


def test_the_script_itself_runs(program: Program, finished_run: Path, tmp_path: Path) -> None:
    """In a copy of the repository, as --record writes there."""
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    flags = [*TINY, "--generations", "1", "--save", "run", "--record", "Found"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    outcome = python("train_search.py", *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert "recorded in genotypes.py as Found" in outcome.stdout
    found = python("-c", "import genotypes; print(genotypes.to_json(genotypes.Found))")
    assert found.stdout == (tmp_path / "run" / "genotype.json").read_text()
    source = (tmp_path / "genotypes.py").read_text()
    again = python(
        "train_search.py", "--resume", "run"
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


@pytest.mark.parametrize("moment", ["generation 1/3", "train from scratch"])
def test_ctrl_c_says_how_to_go_on(program: Program, finished_run: Path, moment: str) -> None:
    run = program.folder / f"interrupted_{moment.replace(' ', '_')}"
    log = run / "log.txt"
    started = program.start(*TINY, "--save", run)
    wait_for(lambda: log.exists() and moment in log.read_text())
    started.send(signal.SIGINT)
    code, out, err = started.wait()
    assert code == 130
    assert one_line(err) == "stopped"
    line = out.strip().splitlines()[-1]
    assert line == f"stopped; go on with: train_search.py --resume {run}"
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
    assert "generation " not in out, "it searched again"
    assert results(run) == results(finished_run)
    assert (run / "report.html").exists()


# ---- processes and switches


@pytest.mark.parametrize("pairs_per_sync", [1, 2])
def test_two_processes_find_what_one_finds(program: Program, finished_run: Path, pairs_per_sync: int) -> None:
    flags = ["--pairs_per_sync", str(pairs_per_sync)]
    alone = finished_run
    if pairs_per_sync > 1:
        program.search(*flags, "--save", "alone2")
        alone = program.folder / "alone2"
    run = program.folder / f"two{pairs_per_sync}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    outcome = subprocess.run(
        [*torchrun, str(ROOT / "train_search.py"), *TINY, *flags, "--save", str(run)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert results(run) == results(alone)
    assert outcome.stdout.count("winner: ") == 1


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
    assert all(torch.isfinite(tensor).all() for tensor in state["weights"].values())
    history = rows(program.folder / "diverged" / "history.csv")
    assert {row["winner"] for row in history} == {""}


def test_settings_are_kept_as_given(finished_run: Path) -> None:
    settings = json.loads((finished_run / "config.json").read_text())
    assert (settings["pop_size"], settings["set"], settings["learning_rate"]) == (6, "digits", 0.1)
    log = (finished_run / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d .*search on digits", log)
