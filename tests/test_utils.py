"""utils.py: flags, failing with one line, seeds, and files that are written whole."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import utils


@dataclass(frozen=True)
class Config:
    set: Literal["digits", "cifar10"] = "cifar10"
    pop_size: int = 20
    rate: float = 0.5
    cutout: bool = True
    limit: float | None = None

    def check(self) -> None:
        utils.check_range(self, "pop_size", 2)
        utils.check_range(self, "rate limit", 0, 1, open_low=True)


def test_flags_are_parsed() -> None:
    parsed = utils.parse(Config, ["--set", "digits", "--pop_size", "4", "--no_cutout"])
    assert parsed == Config("digits", 4, 0.5, False)


def test_what_is_not_given_is_the_defaults() -> None:
    assert utils.parse(Config, ["--pop_size", "6"], default=Config("digits", 4, 0.25)) == Config(
        "digits", 6, 0.25
    )


@pytest.mark.parametrize(
    ("flags", "words"),
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
        (["--rate", ""], ["--rate"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        utils.parse(Config, flags)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    for word in words:
        assert word in printed.err


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        utils.parse(Config, ["--help"])
    assert stop.value.code in (0, None)
    assert "--pop_size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong\nvalue"), 2),
        (OSError("full"), 2),
        (MemoryError("99 GB"), 2),
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
        utils.run_script(main, Config)
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("script.py: ")


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(config: Config) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(KeyError):
        utils.run_script(main, Config)


def test_the_first_process_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = []
    monkeypatch.setattr(utils.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        utils.fail("no")  # nobody stopped it: the first process is well
    assert capsys.readouterr().err.endswith(": no (process 1)\n")
    assert waited, "torchrun would stop the first process before it can say anything"

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(utils.time, "sleep", stop)
    with pytest.raises(SystemExit):
        utils.fail("no")
    assert capsys.readouterr().err == ""


def test_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {
        utils.derive_seed(s, *p)
        for s in range(20)
        for p in [("a",), ("b",), ("a", 1), ("a", 11), ("a", 1, 1)]
    }
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert utils.derive_seed(3, "batches", 1, 2) == utils.derive_seed(3, "batches", 1, 2)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    utils.write_atomically(path, "old")
    utils.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    utils.write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"file\.txt: cannot be written: No space left"):
        utils.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        assert len(utils.temporary_files(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        utils.write_atomically(tmp_path / "file.txt", "new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/file\.txt: cannot be written: No such file"):
        utils.write_atomically(tmp_path / "nowhere" / "file.txt", "")
