"""search/record.py: rows of the tables."""

from __future__ import annotations

import math

import pytest
from conftest import random_cell

from encoding import CellSpace
from genotypes import PRIMITIVES, to_json
from pictures.plots import foretold
from search.paired_search import Comparison, Outcome, PairedSearch, Settings
from search.record import Record, statistics


def comparison(pair: int, decided_by: str, probability: float | None) -> Comparison:
    return Comparison(0, pair, random_cell(2 * pair), random_cell(2 * pair + 1), decided_by, probability)


def test_a_row_has_what_is_known_and_blanks_for_the_rest() -> None:
    record = Record()
    record.add(comparison(0, "training", None), Outcome(1.0, 2.0, -1.0, 0.1), "a", 2, 1.23456)
    record.add(comparison(1, "predictor", 0.99), None, "a", 0, 0.0)
    record.add(comparison(2, "audit", 0.98), Outcome(math.nan, math.inf, math.nan, math.nan), None, 2, 1.0)
    trained, predicted, diverged = record.history
    assert (trained["loss_a"], trained["difference"], trained["winner"], trained["probability"]) == (
        1.0,
        -1.0,
        "a",
        "",
    )
    assert trained["seconds"] == 1.235
    assert trained["genotype_b"] == to_json(random_cell(1))
    assert (predicted["loss_a"], predicted["standard_error"], predicted["probability"]) == ("", "", 0.99)
    assert diverged["winner"] == ""
    assert record.best_loss() == 1.0
    assert list(trained) == list(predicted) == list(diverged)


def test_a_generation_is_summed_up_from_its_comparisons() -> None:
    space = CellSpace()
    search = PairedSearch(space=space, settings=Settings(pop_size=6, rank=False, screen=False, decide=False))
    record = Record()
    for generation in range(2):
        for number in range(3):
            (told,) = search.ask()
            losses = (math.nan, 2.0) if number == 0 else (1.0 + generation, 3.0)
            outcome = Outcome(*losses, losses[0] - losses[1], 0.1)
            record.add(told, outcome, search.tell(told, outcome), 2, 0.5)
        row = record.end_generation(search, 0.1, 0.0)
        assert (row["generation"], row["comparisons"], row["trained"]) == (generation, 3, 6)
        assert (row["predicted_share"], row["audits"], row["audit_accuracy"]) == (0, 0, "")
        assert row["best_loss"] == 1.0 + generation
        assert row["mean_loss"] == pytest.approx((2 + 2 * (1 + generation) + 2 * 3) / 5)
        assert row["seconds"] == 1.5
        assert 0 < row["diversity"] <= 1
        assert (row["log_loss"], row["trusted"]) == ("", 1)
        assert sum(row[f"normal_{name}"] for name in PRIMITIVES) == 6 * 8
    assert record.generations[1] is row


def test_audits_count_as_right_where_the_expected_one_won_or_the_other_diverged() -> None:
    record = Record()
    record.add(comparison(0, "audit", 0.98), Outcome(1.0, math.nan, math.nan, math.nan), "a", 2, 0.0)
    record.add(comparison(1, "audit", 0.02), Outcome(2.0, 1.0, 1.0, 0.1), "b", 2, 0.0)
    record.add(comparison(2, "predictor", 0.99), None, "a", 0, 0.0)
    assert statistics(record.history)["audit_accuracy"] == 1.0
    record.add(comparison(3, "audit", 0.98), Outcome(2.0, 1.0, 1.0, 0.1), "b", 2, 0.0)
    row = statistics(record.history)
    assert (row["audits"], row["audit_accuracy"]) == (3, pytest.approx(2 / 3))
    assert (row["comparisons"], row["trained"], row["predicted_share"]) == (4, 6, 0.25)
    assert statistics(record.history[2:3])["mean_loss"] == ""


def test_the_log_loss_is_that_of_probabilities_which_an_outcome_tested() -> None:
    record = Record()
    told = Outcome(1.0, 2.0, -1.0, 0.1)
    record.add(comparison(0, "training", 0.8), told, "a", 2, 0.0)
    record.add(comparison(1, "audit", 0.9), Outcome(2.0, 1.0, 1.0, 0.1), "b", 2, 0.0)
    record.add(comparison(2, "predictor", 0.99), None, "a", 0, 0.0)
    record.add(comparison(3, "training", None), told, "a", 2, 0.0)
    assert statistics(record.history)["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2)


def test_equal_losses_tell_nothing_of_a_probability() -> None:
    record = Record()
    record.add(comparison(0, "audit", 0.9), Outcome(2.0, 2.0, 0.0, 0.0), "a", 2, 0.0)
    row = statistics(record.history)
    assert (row["audits"], row["audit_accuracy"], row["log_loss"]) == (0, "", "")
    probability, _ = foretold([{name: str(value) for name, value in one.items()} for one in record.history])
    assert len(probability) == 0


def test_the_best_loss_before_any_is_infinite() -> None:
    assert Record().best_loss() == math.inf
