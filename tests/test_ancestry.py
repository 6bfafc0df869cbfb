"""pictures/ancestry.py: where a cell came from, read off history.csv."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, random_cell

from encoding import CellSpace
from genotypes import Genotype, to_json
from pictures import ancestry
from pictures.tables import read_run
from search.paired_search import Outcome, PairedSearch, Settings
from search.record import Record

SEARCH = ROOT / "benchmarks" / "records" / "2026-11-24-search-digits"


def searched(strategy: str = "slow_fast", diverge: int = -1) -> tuple[list[dict], dict[str, Any], dict]:
    """A search by made-up losses: its history, its settings, and which cell each member had, by generation.

    In generation `diverge` no loss is a number.
    """
    config = {"pop_size": 8, "seed": 5, "strategy": strategy}
    settings = Settings(generations=6, decide=False, **config)
    search, record = PairedSearch(space=CellSpace(), settings=settings), Record()
    rng, seen = np.random.default_rng(0), {}
    while group := search.ask():
        for told in group:
            members = search.population.ask()[told.pair]
            for member, cell in zip(members, (told.a, told.b), strict=True):
                seen[told.generation, member] = to_json(cell)
            a, b = (np.nan, np.nan) if told.generation == diverge else rng.random(2)
            outcome = Outcome(a, b, a - b, 0.01)
            record.add(told, outcome, search.tell(told, outcome), 2, 1.0)
    return record.history, config, seen


def test_a_line_is_the_cells_that_one_member_had() -> None:
    history, config, seen = searched()
    for member in range(8):
        had = [seen[generation, member] for generation in range(6)]
        line = ancestry.line(history, had[-1], config)
        assert [one.cell for one in line] == list(dict.fromkeys(had))
        assert line[0].slower == ""
        for before, one in pairwise(line):
            assert one.slower == before.cell
            lost = next(
                r
                for r in history
                if before.cell in (r["genotype_a"], r["genotype_b"])
                and r["generation"] < one.generation
                and r["winner"]
                and r[f"genotype_{r['winner']}"] == one.faster
            )
            assert lost[f"genotype_{lost['winner']}"] != before.cell
        moves = len(line) - 1
        words = f"after {moves} move{'s' if moves > 1 else ''}" if moves else "first population"
        assert ancestry.origin(history, had[-1], config) == f"generation {line[-1].generation + 1}, {words}"


def test_a_line_begins_anew_where_both_diverged() -> None:
    history, config, seen = searched(diverge=2)
    line = ancestry.line(history, seen[3, 0], config)
    assert [one.generation for one in line] == [3]
    assert ancestry.origin(history, seen[3, 0], config) == "generation 4, drawn anew"


def test_cells_without_a_line() -> None:
    history, config, seen = searched()
    assert ancestry.origin(history, to_json(random_cell(0)), config) == "last population"
    moved = next(row for row in seen if row[0] and seen[row] not in [seen[0, member] for member in range(8)])
    for unknown in ({}, config | {"seed": 6}, config | {"pop_size": 6}):  # another seed has other pairs
        assert len(ancestry.line(history, seen[moved], unknown)) == 1
        assert ancestry.origin(history, seen[moved], unknown).endswith("line not known")
    history, config, seen = searched("random")
    assert ancestry.origin(history, seen[2, 0], config) == "generation 3, drawn at random"


def test_the_recorded_search_on_the_digits() -> None:
    run = read_run(SEARCH)
    assert run.cell is not None
    found = ancestry.description(run.history, to_json(run.cell), run.config)
    assert found["origin"] == "generation 8, after 5 moves"
    assert [one["generation"] for one in found["line"]] == [1, 2, 3, 5, 7, 8]
    assert found["line"][-1]["cell"] == to_json(run.cell)


def cell(*normal: tuple[str, int]) -> str:
    reduce = (("skip_connect", 0),) * 8
    return to_json(Genotype(normal, (2, 3, 4, 5), reduce, (2, 3, 4, 5)))


def test_edges_of_a_moved_cell() -> None:
    slow = (("sep_conv_3x3", 0), ("skip_connect", 1))
    fast = (("max_pool_3x3", 0), ("max_pool_3x3", 0))
    child = (("max_pool_3x3", 0), ("skip_connect", 1))  # one of each
    other = (("max_pool_3x3", 0), ("dil_conv_3x3", 0))  # one of the faster one, one new
    moved = ancestry.Ancestor(
        cell(*child, *other, *slow, *fast), 1, 0, "1.0", cell(*slow * 4), cell(*fast * 4)
    )
    assert ancestry.shares(moved) == (1 + 0 + 2 + 0 + 8, 1 + 1 + 0 + 2, 1)


@pytest.mark.parametrize("name", ["cifar10-jpeg", "fashion-mnist"])
def test_older_records_have_a_line(name: str) -> None:
    run = read_run(Path(str(SEARCH).replace("digits", name)))
    assert run.cell is not None
    line = ancestry.line(run.history, to_json(run.cell), run.config)
    assert len(line) == {"cifar10-jpeg": 1, "fashion-mnist": 4}[name]
