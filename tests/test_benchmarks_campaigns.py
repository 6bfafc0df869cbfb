"""kills.py, disks.py, mutated_checkpoints.py: what they would take for a loss is one, and the rest is not."""

import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import disks  # noqa: E402
import kills  # noqa: E402
import mutated_checkpoints  # noqa: E402

from common import checkpoint  # noqa: E402


@pytest.fixture
def two_runs(tmp_path):
    """Folders of two equal runs that took different times."""
    folders = [tmp_path / "run", tmp_path / "reference"]
    for seconds, folder in enumerate(folders):
        folder.mkdir()
        checkpoint.save(folder / "model.pt", {"kind": "network", "state_dict": {"w": torch.arange(3.0)}})
        (folder / "epochs.csv").write_text(f"epoch,loss,seconds\n0,1.5,{seconds}\n")
        (folder / "genotype.json").write_text("{}")
    return folders


def test_equal_runs_do_not_differ_though_their_times_do(two_runs):
    assert kills.differences(*two_runs) == []


def test_whatever_a_kill_could_spoil_is_seen(two_runs):
    run, reference = two_runs
    checkpoint.save(
        run / "model.pt", {"kind": "network", "state_dict": {"w": torch.arange(3.0).nextafter(torch.ones(3))}}
    )
    assert kills.differences(run, reference) == ["weights"]
    (run / "epochs.csv").write_text("epoch,loss,seconds\n0,1.25,0\n")
    (run / "genotype.json").write_text("{ }")
    assert kills.differences(run, reference) == ["weights", "tables", "genotype.json"]
    (run / "genotype.json").unlink()
    with pytest.raises(FileNotFoundError):
        kills.differences(run, reference)


def test_a_worker_that_is_done_is_left_alone(monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    ) as one:
        monkeypatch.setattr(kills, "DONE", [0, one.pid])
        assert kills._is_done(one.pid)
        time.sleep(0.1)
        assert one.poll() is None
        assert "T" not in Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]
        monkeypatch.setattr(kills, "DONE", [0, 0])
        assert not kills._is_done(one.pid)
        one.kill()
        assert one.wait() == -signal.SIGKILL


def test_what_lies_about_is_seen(two_runs):
    run, reference = two_runs
    (run / "odd.txt").touch()
    assert kills.differences(run, reference) == ["files odd.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", ["alone", "group"])
def test_a_kill_meets_whom_it_is_meant_for_and_the_end_of_all_is_waited_for(victim):
    family = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    while len(kills.members(family.pid)) < 3:
        time.sleep(0.01)
    assert kills.wait(family.pid, 0.1) is None, "they still run"
    assert kills.kill(family.pid, victim, random.Random(0))
    if victim == "alone":  # the shell alone, first of its group; what it began still runs
        assert kills.wait(family.pid, 0.1) is None
        assert len(kills.members(family.pid)) == 2
        os.killpg(family.pid, signal.SIGKILL)
        while kills.members(family.pid):
            time.sleep(0.01)
    else:
        assert kills.wait(family.pid, 60) == -signal.SIGKILL
    assert not kills.kill(family.pid, victim, random.Random(0)), "nobody is left"


@pytest.mark.parametrize(
    ("code", "lines", "wrong"),
    [
        (0, [], 0),
        (0, ["a warning"], 0),
        (2, ["train.py: disk full"], 0),
        (2, [], 1),
        (1, ["Traceback"], 1),
        (-9, [], 2),
    ],
)
def test_a_disturbed_run_ends_with_one_line_and_exit_code_2(code, lines, wrong):
    assert len(disks.wrong_end(code, lines)) == wrong


@pytest.fixture
def good_file():
    buffer = io.BytesIO()
    torch.save({"weights": torch.arange(40.0), "deep": {"list": [1, 2, [3, "four"]]}}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", mutated_checkpoints.CHANGES)
def test_changes_come_from_the_seed_and_change_something(good_file, kind):
    change = mutated_checkpoints.CHANGES[kind]
    changed = [change(good_file, random.Random(seed)) for seed in range(20)]
    assert [change(good_file, random.Random(seed)) for seed in range(20)] == changed
    assert sum(one != good_file for one in changed) >= 18
    assert len(set(changed)) >= 10


def test_changed_pickles_are_in_archives_whose_checksums_are_right(good_file):
    for seed in range(20):
        changed = mutated_checkpoints.change_pickle(good_file, random.Random(seed))
        with zipfile.ZipFile(io.BytesIO(changed)) as archive:
            assert archive.testzip() is None


def test_replaced_values_are_read_by_torch(good_file):
    for seed in range(20):
        changed = mutated_checkpoints.change_value(good_file, random.Random(seed))
        assert torch.load(io.BytesIO(changed), weights_only=False).keys() == {"weights", "deep"}  # our own


@pytest.mark.parametrize(
    ("program", "flags", "said"),
    [
        (kills, {"kills": 0}, "--kills 0"),
        (mutated_checkpoints, {"mutations": 0}, "--mutations 0"),
        (mutated_checkpoints, {"minutes": -1.0}, "--minutes -1.0"),
        (disks, {"trials": 0}, "--trials 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(program, flags, said):
    with pytest.raises(ValueError, match=said):
        program.Config(folder="runs/nowhere", **flags).check()
