"""flags.py: flags, and failing with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from conftest import ROOT

from common import flags


@dataclass(frozen=True)
class Config:
    set: Literal["digits", "cifar10"] = "cifar10"
    pop_size: int = 20
    rate: float = 0.5
    cutout: bool = True
    limit: float | None = None
    nodes: int | None = None
    budget: float | None = None
    sizes: tuple[int, ...] = ()
    shares: tuple[float, ...] | None = None

    def check(self) -> None:
        flags.check_range(self, "pop_size", 2)
        flags.check_range(self, "budget", 0, open_low=True)
        flags.check_range(self, "rate limit", 0, 1, open_low=True)


def test_flags_are_parsed() -> None:
    parsed = flags.parse(Config, ["--set", "digits", "--pop_size", "4", "--no_cutout"])
    assert parsed == Config("digits", 4, 0.5, False)


def test_numbers_that_may_be_none_and_many_numbers_are_parsed() -> None:
    parsed = flags.parse(Config, ["--limit", "1e-3", "--nodes", "3", "--sizes", "4", "8", "--shares", "0.5"])
    assert (parsed.limit, parsed.nodes, parsed.sizes, parsed.shares) == (1e-3, 3, (4, 8), (0.5,))
    parsed = flags.parse(Config, ["--nodes", "None", "--sizes"], default=parsed)
    assert (parsed.limit, parsed.nodes, parsed.sizes, parsed.shares) == (1e-3, None, (), (0.5,))


def test_what_is_not_given_is_the_defaults() -> None:
    assert flags.parse(Config, ["--pop_size", "6"], default=Config("digits", 4, 0.25)) == Config(
        "digits", 6, 0.25
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--popsize", "4"], ["--popsize", "--pop_size"]),
        (["--set", "mnist"], ["mnist", "digits", "cifar10"]),
        (["--pop_size", "many"], ["--pop_size", "many"]),
        (["--pop_size"], ["--pop_size"]),
        (["stray"], ["stray"]),
        (["--pop_size", "1"], ["--pop_size 1", "at least 2"]),
        (["--pop_size", "-4"], ["--pop_size -4", "at least 2"]),
        (["--rate", "nan"], ["--rate nan", "above 0", "at most 1"]),
        (["--rate", "0"], ["--rate 0.0", "above 0"]),
        (["--limit", "inf"], ["--limit inf", "at most 1"]),
        (["--rate", ""], ["--rate '': must be a number"]),
        (["--pop_size", "1.5"], ["--pop_size 1.5: must be a whole number"]),
        (["--nodes", "x"], ["--nodes x: must be a whole number"]),
        (["--nodes", "1.5"], ["--nodes 1.5: must be a whole number"]),
        (["--limit", "much of it"], ["--limit 'much of it': must be a number"]),
        (["--sizes", "4", "x"], ["--sizes x: must be a whole number"]),
        (["--shares", "0.5", "x"], ["--shares x: must be a number"]),
        (["--budget", "inf"], ["--budget inf: must be above 0, and finite"]),
        (["--budget", "nan"], ["--budget nan: must be above 0, and finite"]),
        (["--budget", "0"], ["--budget 0.0: must be above 0\n"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    given: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        flags.parse(Config, given)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert "---" not in printed.err  # of a frame around it
    for word in words:
        assert word in printed.err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--help"], 0, "--help"),
        (["--nonsense", "1"], 2, "--nonsense"),
        (["--batch_size", "0"], 2, "--batch_size 0: must be at least"),
        (["--arch", "DARTZ"], 2, "did you mean DARTS?"),
    ],
)
@pytest.mark.parametrize("script", ["train_search", "train", "train_imagenet", "test", "test_imagenet"])
def test_flags_are_checked_before_what_takes_seconds(
    script: str, given: list[str], code: int, words: str
) -> None:
    if script == "train_search" and "--arch" in given:
        given, words = ["--record", "DARTS"], "genotypes.py has that name"
    needed = ["--model_path", "model.pt"] if script.startswith("test") else []
    outcome = subprocess.run(
        [sys.executable, "-X", "importtime", f"{script}.py", *needed, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    imported = {line.split("|")[-1].strip() for line in outcome.stderr.splitlines() if "|" in line}
    assert outcome.returncode == code
    assert words in outcome.stdout + outcome.stderr
    assert "common.flags" in imported
    assert not imported & {"torch", "scipy", "sklearn", "matplotlib", "filelock"}


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        flags.parse(Config, ["--help"])
    assert stop.value.code in (0, None)
    assert "--pop_size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong\nvalue"), 2),
        (OSError("full"), 2),
        (MemoryError("99 GB"), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_script_fails_in_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Config) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as stop:
        flags.run_script(main, flags.parse(Config))
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("script.py: ")


def test_a_lost_process_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Config) -> None:
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setattr("common.distributed.world_size", lambda: 2)
    with pytest.raises(SystemExit) as stop:
        flags.run_script(main, flags.parse(Config))
    assert stop.value.code == 130
    assert capsys.readouterr().err == "script.py: stopped\n"


@pytest.mark.parametrize("defect", [KeyError("ours"), RuntimeError("shapes differ")])
def test_a_defect_of_ours_is_not_hidden(defect: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(config: Config) -> None:
        raise defect

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(type(defect)):
        flags.run_script(main, flags.parse(Config))


def test_the_first_process_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = []
    monkeypatch.setattr(flags.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        flags.fail("no")  # nobody stopped it: the first process is well
    assert capsys.readouterr().err.endswith(": no (process 1)\n")
    assert waited, "torchrun would stop the first process before it can say anything"

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flags.time, "sleep", stop)
    with pytest.raises(SystemExit):
        flags.fail("no")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("given", [["train.py", "--help"], ["visualize.py", "--help"]])
def test_nobody_reads_the_help(given: list[str]) -> None:
    assert unread(given) == (0, "")


def test_nobody_reads_the_result_which_is_written_all_the_same(tmp_path: Path) -> None:
    given = ["test.py", "--model_path", "trained_model/digits_model.pt", "--json", str(tmp_path / "x.json")]
    assert unread(given) == (0, "")
    assert json.loads((tmp_path / "x.json").read_text())["test_images"] == 355


def unread(given: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a script whose stdout is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        outcome = subprocess.run(
            [sys.executable, *given], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True
        )
    return outcome.returncode, outcome.stderr


def test_a_stop_that_was_said_is_not_said_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Config) -> None:
        raise KeyboardInterrupt(flags.SAID)

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as stop:
        flags.run_script(main, flags.parse(Config))
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""
