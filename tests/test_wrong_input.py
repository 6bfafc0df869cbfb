"""What bad input gets: one line on stderr, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Program, one_line, results
from PIL import Image

from common import checkpoint


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt"
    }


def refused(program: Program, *flags: object, largest_file: int = 0) -> str:
    """The one line that a wrong command line gets; fails if it wrote anything."""
    before = {path for path in program.folder.rglob("*") if path.suffix not in (".out", ".err")}
    code, _, err = program.run(*flags, largest_file=largest_file)
    assert code == 2, err
    assert {path for path in program.folder.rglob("*") if path.suffix not in (".out", ".err")} == before
    return one_line(err)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--popsize 4", ["--popsize", "--pop_size"]),
        ("--set mnist", ["--set", "mnist", "digits"]),
        ("--pop_size 5", ["--pop_size 5", "even"]),
        ("--pop_size 0", ["--pop_size 0", "at least 2"]),
        ("--pop_size 99999999999", ["--pop_size", "at most"]),
        ("--images 1", ["--images 1", "at least 4"]),
        ("--images 1443", ["--images 1443", "1442"]),
        ("--train_portion 1", ["--train_portion 1"]),
        ("--train_portion nan", ["--train_portion nan"]),
        ("--train_portion 0.001", ["--train_portion 0.001"]),
        ("--images 4 --train_portion 0.9", ["--train_portion 0.9", "3 images", "1 compare"]),
        ("--image_size 4", ["--image_size 4", "at least 8"]),
        ("--learning_rate nan", ["--learning_rate nan"]),
        ("--final_learning_rate 1e39", ["--final_learning_rate 1e+39", "at most 1e+38"]),
        ("--learning_rate -1", ["--learning_rate -1"]),
        ("--seed -1", ["--seed -1", "at least 0"]),
        ("--seed 99999999999999999999", ["--seed", "at most"]),
        ("--init_channels 100000", ["--init_channels 100000", "at most"]),
        ("--pairs_per_sync 4", ["--pairs_per_sync 4", "3"]),
        ("--max_parameters 0.01", ["--max_parameters"]),
        ("--max_parameters nan", ["--max_parameters nan"]),
        ("--record DARTS", ["DARTS"]),
        ("--record genotypes", ["genotypes", "name of the file"]),
        ("--finalists 25", ["--finalists 25", "--pop_size 6", "--generations 3", "at most 24"]),
        ("--batch_size 101", ["--batch_size 101", "100 images train", "give --batch_size 100 or less"]),
        ("--record 2fast", ["2fast"]),
        ("--device tpu", ["--device", "tpu", "cuda"]),
        ("--resume nowhere", ["--resume nowhere", "no run"]),
        ("--set folder --data nowhere", ["nowhere"]),
        ("--audit_share 0.5 --no_decide", ["--audit_share 0.5", "--no_decide"]),
        (
            "--objectives error memory",
            ["--objectives error memory: no measure memory; there are error, param"],
        ),
        ("--objectives parameters", ["--objectives parameters: error must be among them"]),
        ("--objectives", ["--objectives: error must be among them"]),
        ("--max_latency inf", ["--max_latency inf: must be above 0, and finite"]),
        ("--max_parameters few", ["--max_parameters few: must be a number"]),
        ("--objectives error parameters parameters", ["parameters is there twice"]),
        (
            "--full_layers 8",
            ["--full_layers 8: no effect without a limit (--max_parameters, --max_mul", "--objectives"],
        ),
        ("--objectives error parameters --latency_batch_size 2", ["--latency_batch_size 2: no effect"]),
        ("--max_memory 0", ["--max_memory 0"]),
        ("--memory_batch_size 64", ["--memory_batch_size 64: no effect without --max_memory"]),
        (
            "--max_memory 0.001",
            ["--max_memory 0.001: no cell was found", "cells of the lightest operation take"],
        ),
    ],
)
def test_a_wrong_flag(program: Program, flags: str, words: list[str]) -> None:
    line = refused(program, *TINY, *flags.split())
    for word in words:
        assert word in line


@pytest.mark.parametrize("flag", ["--save", "--resume", "--data", "--record", "--device", "--set"])
def test_an_empty_value(program: Program, flag: str) -> None:
    assert flag.strip("-") in refused(program, *TINY, flag, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(program: Program) -> None:
    assert "--device cuda" in refused(program, *TINY, "--device", "cuda")


def test_an_existing_folder_is_not_touched(program: Program, finished_run: Path) -> None:
    before = listing(finished_run)
    line = refused(program, *TINY, "--save", finished_run)
    assert f"--resume {finished_run}" in line
    assert listing(finished_run) == before
    (program.folder / "file").write_text("mine")
    assert "--save file: is a file" in refused(program, *TINY, "--save", "file")
    assert "cannot be made" in refused(program, *TINY, "--save", "file/run")
    assert "cannot be made" in refused(program, *TINY, "--save", "/proc/run")


def test_resume_with_other_settings_names_them(program: Program, finished_run: Path) -> None:
    before = listing(finished_run)
    line = refused(program, "--resume", finished_run, "--pop_size", 8, "--no_cutout", "--generations", 3)
    assert "--pop_size (was 6, now 8)" in line
    assert "--cutout (was True, now False)" in line
    assert "--generations" not in line
    assert listing(finished_run) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged"),
        ("[1]", "holds a list"),
        ("{}", "another program"),
        ('{"pop_size": "six"}', "pop_size cannot be"),
        ('{"epochs_of_another_program": 1}', "epochs_of_another_program"),
        ('{"set": "mnist"}', "set cannot be"),
        ("\udcff", "damaged"),
    ],
)
def test_damaged_settings(program: Program, tmp_path: Path, content: str, words: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    line = refused(program, "--resume", run)
    assert words in line
    assert "config.json" in line
    assert len(list(run.iterdir())) == 1


def copy_of(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    program: Program, finished_run: Path, tmp_path: Path
) -> None:
    run = copy_of(finished_run, tmp_path)
    for name in ("genotype.json", "report.html", "model.pt"):
        (run / name).unlink()
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    code, out, err = program.run("--resume", run)
    assert code == 0, err
    assert f"{path}: damaged" in out
    assert "checkpoint.previous.pt" in out
    assert results(run) == results(finished_run)


def test_two_damaged_checkpoints_are_an_error(program: Program, finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run / name).write_bytes(b"no checkpoint at all")
    before = listing(run)
    assert "checkpoint.pt" in refused(program, "--resume", run)
    assert listing(run) == before


def test_the_checkpoint_of_something_else(program: Program, finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    (run / "checkpoint.previous.pt").unlink()
    shutil.copy(run / "model.pt", run / "checkpoint.pt")
    assert "not a checkpoint of search, but of network" in refused(program, "--resume", run)
    state = checkpoint.load(finished_run / "checkpoint.pt")
    checkpoint.save(run / "checkpoint.pt", state | {"settings": state["settings"] | {"seed": 7}})
    assert "other settings" in refused(program, "--resume", run)
    search = dict(state["search"])
    del search["population"]
    checkpoint.save(run / "checkpoint.pt", state | {"search": search})
    line = refused(program, "--resume", run)
    assert "no checkpoint of this version (" in line
    assert "population" in line
    history = [state["history"][0] | {"loss_a": torch.zeros(2)}, *state["history"][1:]]
    checkpoint.save(run / "checkpoint.pt", state | {"history": history})
    assert "a table holds other things than numbers and words" in refused(program, "--resume", run)
    del state["weights"]
    checkpoint.save(run / "checkpoint.pt", state)
    assert "weights missing" in refused(program, "--resume", run)


def test_a_full_disk(program: Program, finished_run: Path) -> None:
    """No file may grow beyond 100 kB, so the first checkpoint fails; with room again it goes on."""
    code, _, err = program.run(*TINY, "--save", "full", largest_file=100_000)
    assert code == 2
    line = one_line(err)
    assert "checkpoint.pt: cannot be written" in line
    run = program.folder / "full"
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "log.txt"]
    assert program.run("--resume", run)[0] == 0
    assert results(run) == results(finished_run)


def test_two_programs_in_one_folder(program: Program, finished_run: Path) -> None:
    run = program.folder / "shared"
    first = program.start(*TINY, "--save", run)
    while not (run / "log.txt").exists():
        os.sched_yield()
    assert "another program works in this folder" in refused_while_running(program, "--resume", run)
    code, _, err = first.wait()
    assert code == 0, err
    assert results(run) == results(finished_run)


def refused_while_running(program: Program, *flags: object) -> str:
    code, _, err = program.run(*flags)
    assert code == 2
    return one_line(err)


def class_folders(root: Path, classes: int, size: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    return root


FOLDER = ["--set", "folder", "--pop_size", "2", "--generations", "1", "--init_channels", "2", "--layers", "3"]
FOLDER += ["--batch_size", "8"]


def test_wrong_class_folders(program: Program, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "one", 1)
    assert "class" in refused(program, *FOLDER, "--data", root)
    root = class_folders(tmp_path / "small", 2, size=6)
    assert "6" in refused(program, *FOLDER, "--data", root)
    root = class_folders(tmp_path / "bad", 2)
    (root / "class1" / "7.png").write_bytes(b"\x89PNG\r\n and then nothing")
    err = program.run(*FOLDER, "--data", root)[2].strip().splitlines()
    assert "7.png" in err[-1]
    assert not any("Traceback" in line for line in err)
    assert "--image_size" in refused(program, *FOLDER, "--data", root, "--image_size", "4")


def test_other_settings_than_the_run_began_with(program: Program, finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    settings = json.loads((run / "config.json").read_text()) | {"images": 198}
    (run / "config.json").write_text(json.dumps(settings))
    assert "other settings" in refused(program, "--resume", run)


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_images_than_the_run_began_with(program: Program, tmp_path: Path, part: str) -> None:
    for each in ("train", "test"):
        class_folders(tmp_path / "images" / each, 2)
    run = tmp_path / "run"
    code, _, err = program.run(
        *FOLDER, "--data", tmp_path / "images", "--final_epochs", 1, "--finalists", 1, "--save", run
    )
    assert code == 0, err
    changed = tmp_path / "images" / part / "class1" / "3.png"
    changed.write_bytes((changed.parent / "4.png").read_bytes())
    before = listing(run)
    assert "other images than the run began with" in refused(program, "--resume", run)
    assert listing(run) == before
