"""search/limits.py: what costs how much, what is refused, and what is said where nothing is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
from conftest import TINY, Program, one_line

import genotypes
from model_search import FullSize
from search.candidates import Task
from search.limits import FullSizeCosts, costs_of
from train_search import Config

SIZE = FullSize(C=36, num_classes=10, layers=20)
DARTS = genotypes.lookup("DARTS_V2")


def made(**flags: object) -> FullSizeCosts:
    return costs_of(Config(**flags), cast(Task, None), SIZE, Path())  # type: ignore[arg-type]


def test_limits_are_in_millions_and_inclusive() -> None:
    parameters, multiply_adds = (number / 1e6 for number in SIZE(DARTS))
    assert made().accepts(DARTS)
    assert made(max_parameters=parameters, max_multiply_adds=multiply_adds).accepts(DARTS)
    assert not made(max_parameters=parameters - 1e-6).accepts(DARTS)
    assert not made(max_multiply_adds=multiply_adds - 1e-6).accepts(DARTS)


def test_a_limit_on_memory_is_in_gib() -> None:
    taken = made(max_memory=100.0).measures["memory"](DARTS)
    assert 1 < taken < 20  # 128 images of 32 pixels
    assert made(max_memory=taken).accepts(DARTS)
    assert not made(max_memory=0.999 * taken).accepts(DARTS)


def test_objectives_come_in_the_order_of_the_flag() -> None:
    multiply_adds = SIZE(DARTS)[1] / 1e6
    found = made(objectives=("multiply_adds", "error", "parameters"), max_parameters=3.0)
    assert found.values(DARTS) == [multiply_adds, 3.0]  # of what is refused the limit


@pytest.mark.parametrize(
    ("flags", "costs"),
    [
        (["--max_parameters", 0.0001], r"1\.\d+ million"),
        (["--max_multiply_adds", 0.5, "--max_parameters", 5], r"\S+ million, \S+ million"),
    ],
)
def test_limits_that_nothing_meets_are_named_with_what_there_is(
    program: Program, flags: list[object], costs: str
) -> None:
    code, _, err = program.run(*TINY, *flags, "--save", "nothing_meets")
    assert code == 2
    limits = sorted(zip(flags[::2], flags[1::2], strict=True), key=lambda one: "multiply" in str(one[0]))
    words = " ".join(f"{name} {value}" for name, value in limits)
    pattern = rf"{words}: no cell was found .*36 --full_layers 20; .* cheapest takes {costs}$"
    assert re.search(pattern, one_line(err)), err
    assert not (program.folder / "nothing_meets").exists()
