"""baseline.py: random cells trained and tested as the winner is."""

from __future__ import annotations

import re
import signal

import pytest
from conftest import TINY, Program, rows

import genotypes
from search.record import baseline_in_words

BASELINE = ("--baseline", 3)


def test_random_cells_stand_beside_the_winner_and_a_killed_search_goes_on_with_them(program: Program) -> None:
    run = program.folder / "with_baseline"
    assert program.start(*TINY, *BASELINE, "--save", run, die_at_checkpoint=8).wait()[0] == -signal.SIGKILL
    code, out, err = program.run("--resume", run)
    assert code == 0, err
    found = rows(run / "baseline.csv")
    cells = [genotypes.from_json(row["genotype"]) for row in found]
    assert len(set(cells)) == 3
    assert all(0 <= float(row["test_error"]) <= 1 for row in found)
    assert [f"random cell {n}/3: test error {float(found[n - 1]['test_error']):.2%}" in out for n in (2, 3)]
    winner = float(rows(run / "finalists.csv")[0]["test_error"])
    below = sum(winner < float(row["test_error"]) for row in found)
    expected = f"the winner's {winner:.2%} is lower than that of {below} of them"
    assert expected in (run / "log.txt").read_text()


def test_the_interval_is_that_of_the_mean() -> None:
    words = baseline_in_words([{"test_error": error} for error in (0.1, 0.2, 0.3)], 0.15)
    low, high = map(float, re.findall(r"([\d.]+)% to ([\d.]+)%", words)[0])
    assert (low + high) / 2 == pytest.approx(22.42, abs=0.01)  # cut off at 0
    assert high == pytest.approx(20 + 100 * 4.3027 * 0.1 / 3**0.5, abs=0.01)
    assert "mean test error 20.00%" in words
    assert words.endswith("the winner's 15.00% is lower than that of 2 of them")
    assert "95%" not in baseline_in_words([{"test_error": 0.1}], 0.15)
