"""run_folder.py: made once, owned by one program, taken up with its own settings."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ROOT

from common import checkpoint, run_folder
from common.flags import parse
from common.run_folder import RunFolder


@dataclass(frozen=True)
class Config:
    pop_size: int = 20
    rate: float = 0.5
    limit: float | None = None
    names: tuple[str, ...] | None = None
    data: str = "data"
    save: str | None = None
    resume: str | None = None

    def check(self) -> None:
        if self.limit is not None and self.names is None:
            raise ValueError("--limit: no effect without --names")
        if self.data == "":
            raise ValueError("--data: needs a folder")


def test_a_new_folder_holds_the_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.create(Config(pop_size=4, limit=1e-3))
    assert run_folder.read_settings(folder.path, Config) == Config(pop_size=4, limit=1e-3)


def test_a_folder_that_holds_anything_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    RunFolder(tmp_path).create(Config())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"--save .*: exists already; go on with --resume"):
        RunFolder(tmp_path).create(Config(pop_size=6))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_program_killed_before_its_settings_were_whole_does_not_keep_the_folder(tmp_path: Path) -> None:
    code = f"""
import os
from dataclasses import dataclass
os.replace = lambda *names: os._exit(9)  # killed between the new file and its name
from common.run_folder import RunFolder
@dataclass
class Config:
    seed: int = 0
RunFolder({str(tmp_path / "run")!r}).create(Config())
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    assert len(list((tmp_path / "run").iterdir())) == 1
    folder = RunFolder(tmp_path / "run")
    folder.check_free()
    folder.create(Config())
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_one_program_at_a_time(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.create(Config())
    first.lock()  # again: it is ours
    with pytest.raises(ValueError, match="another program works in this folder"):
        RunFolder(tmp_path / "run").lock()
    first.unlock()
    RunFolder(tmp_path / "run").lock()


def test_what_a_killed_program_left_is_swept_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(Config())
    folder.unlock()
    (folder.path / ".history.csv.abc.part").write_text("half a f")
    folder.lock()
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_a_damaged_checkpoint_is_renamed_and_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(2):
        folder.checkpoint.write_text(f"damaged {number}")
        checkpoint.previous(folder.checkpoint).write_text(f"good {number}")
        kept = tmp_path / f"checkpoint.damaged{number + 1}.pt"
        assert folder.fall_back("bad") == f"bad; the damaged file is kept as {kept}"
        assert kept.read_text() == f"damaged {number}"
        assert folder.checkpoint.read_text() == f"good {number}"
    folder.checkpoint.rename(checkpoint.previous(folder.checkpoint))  # killed between the two renamings
    assert folder.fall_back("bad") == "bad"
    assert folder.checkpoint.read_text() == "good 1"


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Stopped:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    names = []
    for _ in range(3):
        names.append(run_folder.new_name("digits"))
        Path(names[-1]).mkdir(parents=True)
    first = "runs/digits-20260102-030405"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_a_table_keeps_every_digit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_table(
        "t.csv", [{"x": 0.1 + 0.2, "cell": '{"a":1}', "y": ""}, {"x": 1, "cell": "b,c", "y": 2}]
    )
    text = (tmp_path / "t.csv").read_bytes()
    assert text == b'x,cell,y\n0.30000000000000004,"{""a"":1}",\n1,"b,c",2\n'


def test_resume_takes_the_stored_settings_and_names_all_that_differ(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    RunFolder(path).create(Config(pop_size=4))
    given = Config(resume=path)
    settings = run_folder.resume(given, ("data",), ["--resume", path, "--data", "elsewhere"])
    assert (settings.pop_size, settings.data, settings.resume) == (4, "elsewhere", path)
    assert run_folder.resume(given, (), ["--resume", path, "--pop_size", "4"]).pop_size == 4
    with pytest.raises(ValueError, match="other settings") as error:
        run_folder.resume(given, (), ["--resume", path, "--pop_size", "20", "--rate", "0.25"])
    assert "--pop_size (was 4, now 20), --rate (was 0.5, now 0.25)" in str(error.value)


def test_flags_are_checked_with_the_runs_settings_and_not_with_the_defaults(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    RunFolder(path).create(Config(limit=0.5, names=("a b", "c")))

    def resumed(*words: str) -> Config:
        words = ("--resume", path, *words)
        return run_folder.resume(parse(Config, words), ("data",), words)

    assert resumed("--limit", "0.5").names == ("a b", "c")
    with pytest.raises(ValueError, match=r"settings than the run's: --limit \(was 0\.5, now 0\.25\)$"):
        resumed("--limit", "0.25")
    with pytest.raises(ValueError, match=r"--names \(was 'a b' c, now d\)$"):
        resumed("--names", "d")
    with pytest.raises(ValueError, match=f"--resume {path}: --data: needs a folder"):
        resumed("--data", "")
    RunFolder(tmp_path / "other").create(Config())
    path = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"--limit \(was not given, now 0\.25\)$"):
        resumed("--limit", "0.25")


def test_a_file_in_place_of_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("")
    with pytest.raises(ValueError, match=f"--save {file}: is a file"):
        RunFolder(file).create(Config())
    with pytest.raises(ValueError, match=f"--resume {file}: is a file, not the folder of a run"):
        run_folder.read_settings(file, Config)
    assert file.read_text() == ""


@pytest.mark.parametrize(
    "stored",
    [{"pop_size": "4"}, {"pop_size": True}, {"pop_size": 1.5}, {"data": None}, {"limit": [1]}, {"new": 1}],
)
def test_settings_of_another_kind_are_refused(tmp_path: Path, stored: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=next(iter(stored))):
        run_folder.read_settings(tmp_path, Config)


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(Config())
    (folder.path / "log.txt").symlink_to("/dev/full")
    log = folder.start_log()
    with pytest.raises(OSError, match="cannot be written: No space left"):
        log.info("hello")
    log.handlers = []


def test_a_reader_that_left_does_not_stop_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(Config())
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(OSError), open(writing, "w") as gone:  # closing it fails, too
        folder.start_log().handlers[-1].setStream(gone)  # type: ignore[attr-defined]
        folder.log.info("nobody reads this")
    folder.unlock()
    assert capfd.readouterr().err == ""
    assert (tmp_path / "run" / "log.txt").read_text().endswith("nobody reads this\n")
