"""search/record.py: rows of the tables."""

from __future__ import annotations

import math

from conftest import random_cell

from genotypes import to_json
from search.paired_search import Comparison, Outcome
from search.record import Record


def comparison(pair: int, decided_by: str, probability: float | None) -> Comparison:
    return Comparison(0, pair, random_cell(2 * pair), random_cell(2 * pair + 1), decided_by, probability)


def test_a_row_has_what_is_known_and_blanks_for_the_rest() -> None:
    record = Record()
    record.add(comparison(0, "training", None), Outcome(1.0, 2.0, -1.0, 0.1), "a", 1.23456)
    record.add(comparison(1, "predictor", 0.99), None, "a", 0.0)
    record.add(comparison(2, "audit", 0.98), Outcome(math.nan, math.inf, math.nan, math.nan), None, 1.0)
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


def test_the_best_loss_before_any_is_infinite() -> None:
    assert Record().best_loss() == math.inf


def test_where_a_finalist_comes_from() -> None:
    record = Record()
    record.add(comparison(0, "training", None), Outcome(1.0, 2.0, -1.0, 0.1), "a", 1.0)
    record.add(comparison(1, "predictor", 0.99), None, "a", 0.0)
    assert record.origin(to_json(random_cell(1))) == "trained"
    assert record.origin(to_json(random_cell(2))) == "last population"
