"""Several objectives: the front in the search, in the run folder, in --arch and in the report."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import TINY, Program, results

import genotypes
import visualize
from encoding import ChoiceSpace
from model_search import FullSize
from pair_predictor import PairPredictor
from search import finalists
from search.candidates import Task
from search.evaluated import Evaluated
from search.front import LIMITS, Costs, Front, undominated
from search.limits import costs_of
from search.paired_search import Outcome, PairedSearch, Settings
from search.record import statistics
from spaces import Space
from train_search import Config as SearchConfig

SPACE = ChoiceSpace([4] * 5)
PAIR = ["--objectives", "error", "parameters"]


def cost(architecture: tuple[int, ...]) -> tuple[float, ...]:
    return (float(sum(architecture)),)


def loss(architecture: tuple[int, ...]) -> float:
    """Falls with the cost, but only the first position pays in full."""
    return 10.0 - 2 * architecture[0] - 0.1 * sum(architecture[1:])


def play(search: PairedSearch) -> list[tuple[int, ...]]:
    """All that a search trained, in its order."""
    trained: list[tuple[int, ...]] = []
    while group := search.ask():
        for comparison in group:
            outcome = None
            if comparison.decided_by != "predictor":
                outcome = Outcome.exact(loss(comparison.a), loss(comparison.b))
                trained += [one for one in (comparison.a, comparison.b) if one not in trained]
            search.tell(comparison, outcome)
    return trained


def rows(*architectures: tuple[int, ...]) -> np.ndarray:
    return np.array(architectures)


def test_limits_reach_from_the_cheapest_to_the_most_expensive() -> None:
    front = Front(SPACE, cost, seed=0)
    assert front.limits.shape == (LIMITS, 1)
    assert 0 < front.limits.min() < 0.3
    assert 14.7 < front.limits.max() < 15
    assert front.keeps(rows((0,) * 5)).all()
    assert not front.keeps(rows((3,) * 5)).any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "x"])
def test_costs_that_are_no_finite_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be finite numbers"):
        Front(SPACE, lambda one: (float(one[0]), wrong), seed=0)
    with pytest.raises(ValueError, match="must be finite numbers"):
        Front(SPACE, lambda one: wrong, seed=0)
    with pytest.raises(ValueError, match="as many for each"):
        Front(SPACE, lambda one: (1.0,) * (1 + one[0] % 2), seed=0)


def test_two_costs_have_limits_of_their_own() -> None:
    front = Front(SPACE, lambda one: (float(one[0]), float(9 - one[1])), seed=0)
    assert np.abs(np.corrcoef(front.limits.T)[0, 1]) < 0.4
    assert front.limits.min(axis=0) == pytest.approx([0, 6], abs=0.1)


def test_the_chosen_are_the_best_under_some_limit() -> None:
    front = Front(SPACE, cost, seed=0)
    some = rows((3, 3, 3, 3, 3), (0, 0, 0, 0, 0), (3, 0, 0, 0, 0), (0, 3, 3, 3, 0), (2, 3, 3, 3, 3))
    quality = np.array([9.0, 0.0, 8.0, 1.0, 8.5])
    assert front.chosen(some, quality, 5)[0] == 0  # the best, whatever it costs
    assert set(front.chosen(some, quality, 5)) == {0, 2, 4}  # the cheapest one is as good as nothing
    assert front.chosen(some, quality, 2) == [0, 2]
    assert front.chosen(some[:0], quality[:0], 2) == []


def test_what_is_expected_to_gain_more_under_more_limits_is_worth_more() -> None:
    front, predictor = Front(SPACE, cost, seed=0), PairPredictor(space=SPACE)
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = (SPACE.decode(SPACE.sample(rng)) for _ in range(2))
        predictor.add(a, b, loss(a) - loss(b), 0.0, min(loss(a), loss(b)))
    known = rows((0, 0, 0, 0, 0), (3, 3, 3, 3, 3))
    asked = rows((3, 0, 0, 0, 0), (3, 3, 3, 0, 0), (0, 3, 0, 0, 0), (3, 3, 3, 3, 3))
    worth = front.improvement(predictor.posterior(), known)(asked)
    assert worth[0] == worth.max() > 0  # cheap and good
    assert worth[1] > worth[2]
    assert worth[3] == 0  # keeps to no limit


def test_a_search_for_a_front_covers_more_limits_than_one_for_the_least_error() -> None:
    def covered(seed: int, costs: Costs | None) -> float:
        """The mean over all limits of the least loss, of the first 24 that were trained."""
        settings = Settings(pop_size=8, generations=20, seed=seed, again=False)
        search = PairedSearch(space=SPACE, settings=settings, costs=costs)
        trained = play(search)[:24]
        return float(np.mean([min([loss(a) for a in trained if cost(a)[0] <= t] + [10]) for t in range(16)]))

    better = [covered(seed, cost) < covered(seed, None) for seed in range(4)]
    assert sum(better) >= 3


def test_finalists_are_a_front() -> None:
    search = PairedSearch(space=SPACE, settings=Settings(pop_size=8, generations=8), costs=cost)
    play(search)
    values = np.array([(loss(one), *cost(one)) for one in search.finalists(6)])
    assert undominated(values).sum() >= 4
    assert np.ptp(values[:, 1]) >= 6


def test_where_few_are_best_under_some_limit_finalists_are_the_best_of_the_others() -> None:
    front, evaluated = Front(SPACE, cost, seed=0), Evaluated(SPACE, None)
    losses = {(0, 0, 0, 0, 0): 1.0, (1, 0, 0, 0, 0): 3.0, (3, 0, 0, 0, 0): 2.0, (2, 0, 0, 0, 0): 4.0}
    for one, loss in losses.items():
        evaluated.add(one, loss)
    found = evaluated.finalists(4, front=front)
    assert found == [(0, 0, 0, 0, 0), (3, 0, 0, 0, 0), (1, 0, 0, 0, 0), (2, 0, 0, 0, 0)]
    assert evaluated.finalists(2, front=front) == found[:2]
    assert len(evaluated.finalists(9, front=front)) == 4


def test_of_a_pair_the_one_that_keeps_to_the_limit_is_fast() -> None:
    search = PairedSearch(space=SPACE, settings=Settings(pop_size=20, generations=1), costs=cost)
    cheaper = better = 0
    while group := search.ask():
        for comparison in group:
            a, b = comparison.a, comparison.b
            fast = search.tell(comparison, Outcome.exact(loss(a), loss(b)))
            winner, other = (a, b) if fast == "a" else (b, a)
            cheaper += cost(winner) < cost(other)
            better += loss(winner) < loss(other)
    assert cheaper >= 3
    assert better >= 3


def test_the_predictor_is_judged_by_losses_not_by_who_kept_to_a_limit() -> None:
    row = {"probability": 0.9, "decided_by": "audit", "trained": 2, "loss_a": 1.0, "loss_b": 2.0}
    known = statistics([row | {"difference": -1.0, "winner": "b"}])  # a lost less, but cost too much
    assert known["audit_accuracy"] == 1
    assert known["log_loss"] == pytest.approx(-np.log(0.9))
    diverged = statistics([row | {"difference": math.nan, "winner": "b", "loss_a": math.nan}])
    assert diverged["audit_accuracy"] == 0


def test_a_pair_that_the_predictor_decides_meets_under_a_limit_too() -> None:
    search = PairedSearch(
        space=SPACE, settings=Settings(pop_size=6, generations=30, seed=1, audit_share=0.0), costs=cost
    )
    dearer = 0
    while group := search.ask():
        for comparison in group:
            a, b = comparison.a, comparison.b
            decided = comparison.decided_by == "predictor" and a != b
            outcome = None if comparison.decided_by == "predictor" else Outcome.exact(loss(a), loss(b))
            fast = search.tell(comparison, outcome)
            if decided:
                foretold = "a" if comparison.probability >= 0.5 else "b"
                dearer += fast != foretold
    assert dearer > 0


def test_undominated() -> None:
    values = np.array([[1, 5], [2, 4], [2, 5], [3, 1], [3, 1], [4, 0]])
    assert undominated(values).tolist() == [True, True, False, True, True, True]


# ---- through the program


@pytest.fixture(scope="module")
def run(program: Program) -> Path:
    code, _, err = program.run(*TINY, *PAIR, "multiply_adds", "--finalists", 3, "--save", "front_run")
    assert code == 0, err
    return program.folder / "front_run"


def table(run: Path, name: str) -> list[dict[str, str]]:
    with open(run / f"{name}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_front_has_the_finalists_that_none_beats(run: Path) -> None:
    finalists, front = table(run, "finalists"), table(run, "front")
    assert [row["number"] for row in front] == [str(1 + place) for place in range(len(front))]
    assert front[0]["genotype"] == finalists[0]["genotype"]
    kept = {row["genotype"] for row in front}
    for row in finalists:
        cheaper = [
            other
            for other in finalists[: int(row["rank"]) - 1]
            if float(other["parameters"]) <= float(row["parameters"])
            and float(other["multiply_adds"]) <= float(row["multiply_adds"])
        ]
        assert (row["genotype"] in kept) == (not cheaper)


def test_a_cell_of_the_front_is_an_architecture(program: Program, run: Path) -> None:
    front = table(run, "front")
    last = f"{run}#{len(front)}"
    assert genotypes.to_json(genotypes.lookup(last)) == front[-1]["genotype"]
    with pytest.raises(ValueError, match="front_run#9: its front has "):
        genotypes.lookup(f"{run}#9")
    with pytest.raises(ValueError, match="front_run#: its front"):
        genotypes.lookup(f"{run}#")
    flags = "--epochs 1 --init_channels 4 --layers 3 --batch_size 256 --save front_trained"
    code, out, err = program.start("--arch", last, *flags.split(), script="train").wait()
    assert code == 0, err
    assert "--set is not given: digits" in out + err


def test_the_report_draws_the_front(run: Path) -> None:
    page = Path(visualize.write_report(run, overwrite=True)).read_text()
    assert "The front" in page
    assert "multiply-adds, millions" in page
    assert "#NUMBER" in page


def test_killed_and_in_two_processes_it_is_the_same(program: Program, run: Path) -> None:
    other = program.folder / "front_killed"
    flags = [*TINY, *PAIR, "multiply_adds", "--finalists", 3, "--save", other.name]
    assert program.start(*flags, die_at_checkpoint=4).wait()[0] < 0
    code, _, err = program.run_two("--resume", other.name)
    assert code == 0, err
    assert results(other) == results(run)
    assert (other / "front.csv").read_bytes() == (run / "front.csv").read_bytes()


def test_limits_of_a_front_stay_below_the_limit_of_the_search(tmp_path: Path) -> None:
    config = SearchConfig(objectives=("error", "parameters", "multiply_adds"), max_parameters=0.02)
    size = FullSize(C=4, num_classes=10, layers=3, image_size=8)
    found = costs_of(config, cast(Task, None), size, tmp_path)
    front = Front(Space().encoding(), found.values, 0)
    assert front.limits[:, 0].max() <= 0.02 < front.limits[:, 0].max() * 1.05
    assert front.limits[:, 1].max() > 0.9e-6 * size(Space().uniform("sep_conv_5x5"))[1]


def test_latency_is_an_objective_whose_table_a_stopped_run_keeps(program: Program, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    space = ["--space", "nasbench201", "--operations", "none", "nor_conv_3x3", "--full_channels", "2"]
    flags = [*TINY, *space, "--full_layers", "1", "--objectives", "error", "latency", "--finalists", "3"]
    code, _, err = program.start(*flags, "--save", "front_latency", environment=environment).wait()
    assert code == 0, err
    run = program.folder / "front_latency"
    assert [float(row["latency"]) for row in table(run, "front")] == sorted(
        (float(row["latency"]) for row in table(run, "front")), reverse=True
    )
    flags += ["--save", "front_latency_killed"]
    assert program.start(*flags, environment=environment, die_at_checkpoint=3).wait()[0] < 0
    for cached in (tmp_path / "pairnas").iterdir():
        cached.unlink()  # measured again, times would differ
    code, out, err = program.start("--resume", "front_latency_killed", environment=environment).wait()
    assert code == 0, err
    assert "measuring" not in out
    killed = program.folder / "front_latency_killed"
    assert results(killed) == results(run)
    assert (killed / "front.csv").read_bytes() == (run / "front.csv").read_bytes()


def test_random_cells_have_a_front_too(program: Program) -> None:
    flags = ["--strategy", "random", "--finalists", "3", "--save", "front_random"]
    code, _, err = program.run(*TINY, *PAIR, *flags)
    assert code == 0, err
    parameters = [int(row["parameters"]) for row in table(program.folder / "front_random", "front")]
    assert parameters == sorted(parameters, reverse=True)
    assert parameters


def test_a_finalist_that_diverged_is_in_no_front() -> None:
    run: Any = SimpleNamespace(config=SearchConfig(objectives=("error", "parameters")))
    losses = [1.0, 2.0, 3.0, math.nan]
    rows = [
        {"rank": place + 1, "genotype": str(place), "loss": loss, "parameters": size}
        for place, (loss, size) in enumerate(zip(losses, [30, 40, 20, 10], strict=True))
    ]
    assert [row["genotype"] for row in finalists.front(run, rows)] == ["0", "2"]


def test_a_search_with_one_objective_has_no_front(program: Program) -> None:
    code, _, err = program.run(*TINY, "--save", "no_front")
    assert code == 0, err
    assert not (program.folder / "no_front" / "front.csv").exists()
    with pytest.raises(ValueError, match=r"no_front#1: no front\.csv there"):
        genotypes.lookup(f"{program.folder / 'no_front'}#1")
