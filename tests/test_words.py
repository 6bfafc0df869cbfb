"""common/words.py: numbers in words."""

import pytest

from common import words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.00 M"),
        (46, "4.6e-05 M"),
        (2_534, "0.0025 M"),
        (190_000, "0.19 M"),
        (3.35e6, "3.35 M"),
        (5.3e8, "530 M"),
    ],
)
def test_no_size_that_is_not_0_is_shown_as_0(count, text):
    assert words.in_millions(count) == text


def test_one_is_not_many():
    assert [words.counted(n, "epoch") for n in (0, 1, 2, 1000)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "1,000 epochs",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3590, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (86_400, "24 h"),
        (183_600, "2 d 3 h"),
    ],
)
def test_times(seconds, text):
    assert words.in_hours(seconds) == text


def test_what_was_done_before_does_not_count_for_the_rate(monkeypatch):
    now = 50.0
    monkeypatch.setattr(words.time, "monotonic", lambda: now)
    progress = words.Progress(100, done=40)
    assert progress.left(40) == ""  # nothing tells
    assert not progress.is_due()
    now = 650.0  # 20 pieces in 600 s
    assert progress.is_due()
    assert progress.left(60) == "about 20 min left"
    assert progress.rate(60) == pytest.approx(1 / 30)
    assert not progress.is_due()
    assert progress.left(100) == "done"
