"""benchmarks/mutations.py: damaged inputs are accepted or refused, and what is neither is told."""

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import mutate
import mutations

FEW = {"jpg": 40, "png": 40, "tif": 60, "webp": 40, "gif": 40, "json": 60, "csv": 40, "flags": 100}


@pytest.mark.parametrize("kind", FEW)
def test_a_damaged_input_is_accepted_or_refused_in_one_line(kind):
    found = mutations.campaign(kind, FEW[kind], seed=1)
    assert found["faults"] == []
    assert found["accepted"] + found["refused"] == FEW[kind]
    assert found["refused"] > 0
    assert found["most_megabytes"] < 1024


def two_lines():
    print("one\ntwo", file=sys.stderr)
    sys.exit(2)


def writes():
    Path("left").write_text("behind")
    print("refused", file=sys.stderr)
    sys.exit(2)


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (two_lines, "not one line"),
        (writes, "wrote"),
        (lambda: [][0], "IndexError"),
        (lambda: bytearray(4 << 30), "MemoryError"),
        (lambda: os.write(2, b"a library's words"), "accepted with words"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "the process ended with -11"),
    ],
)
def test_a_fault_is_found_and_the_next_input_goes_on(monkeypatch, work, fault):
    def case(kind, number, whole, draw):
        return "words", work if number == 1 else partial(mutations.as_script, lambda: None)

    monkeypatch.setattr(mutations, "cases", lambda kind: partial(case, kind))
    found = mutations.campaign("flags", 3, seed=0)
    assert [one["number"] for one in found["faults"]] == [1]
    assert fault in found["faults"][0]["fault"]
    assert found["accepted"] == 2


def test_damage_repeats_with_its_seed_and_changes_the_input():
    content = bytes(range(256))
    first = [mutate.damage(content, random.Random(seed)) for seed in range(50)]
    assert first == [mutate.damage(content, random.Random(seed)) for seed in range(50)]
    assert sum(one != content for one in first) > 40
