"""training/schedule.py: the learning rate over a training."""

import math

import pytest

from training import schedule


def test_the_cosine_falls_from_start_to_end():
    values = [schedule.cosine(i / 10, 0.1, 0.001) for i in range(11)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0.1
    assert math.isclose(values[10], 0.001)
    assert math.isclose(values[5], (0.1 + 0.001) / 2)


def test_schedules():
    assert schedule.factor(0, 10, 0, "cosine") == 1
    assert schedule.factor(5, 10, 0, "cosine") == pytest.approx(0.5)
    assert schedule.factor(5, 10, 0, "linear") == 0.5
    assert [schedule.factor(e, 10, 2, "linear") for e in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert 0 < schedule.factor(9, 10, 2, "cosine") < 0.1
