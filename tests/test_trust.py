"""search/trust.py: when the predictor is believed."""

from __future__ import annotations

import json

import pytest

from search.trust import WINDOW, Trust


def after(*outcomes: tuple[float, bool]) -> Trust:
    trust = Trust()
    for probability, a_won in outcomes:
        trust.add(probability, a_won)
    return trust


def test_it_is_believed_from_the_start_and_survives_a_few_surprises() -> None:
    assert Trust().given
    assert after((0.9999, False)).given, "one surprise"
    assert after(*[(0.8, True), (0.8, True), (0.8, True), (0.8, False)] * 20).given


def test_probabilities_that_a_coin_beats_are_not_believed_until_they_beat_it_again() -> None:
    wrong = [(0.8, False)] * 6
    assert not after(*wrong).given
    assert not after(*[(0.8, True), (0.8, False)] * 20).given, "right as often as wrong, but sure"
    assert after(*wrong, *[(0.2, False)] * WINDOW).given


def test_it_is_the_same_for_both_sides_and_resumes() -> None:
    one, other = after((0.7, True), (0.1, True)), after((0.3, False), (0.9, False))
    assert one.gains.tolist() == pytest.approx(other.gains.tolist())
    copy = Trust()
    copy.load_state_dict(json.loads(json.dumps({"gains": one.state_dict()["gains"].tolist()})))
    assert copy.gains.tolist() == one.gains.tolist()
