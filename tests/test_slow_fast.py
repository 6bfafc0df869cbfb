"""The published rule, without its defects, and a state that resumes exactly."""

import json
import math

import numpy as np
import pytest

from encoding import CellSpace, ChoiceSpace
from search.slow_fast import MOVE, SlowFast
from utils import generator

LINE = ChoiceSpace([100, 100, 100])


def run(population, generations, loss):
    for _ in range(generations):
        for pair, members in enumerate(population.ask()):
            population.tell(pair, *(loss(population.positions[member]) for member in members))
    return population


def test_each_generation_pairs_every_member_once():
    population = SlowFast(space=CellSpace(), pop_size=20, seed=1)
    first = population.ask()
    assert sorted(member for pair in first for member in pair) == list(range(20))
    run(population, 1, lambda position: position.sum())
    assert population.generation == 1
    assert population.ask() != first


def test_the_move_is_the_published_equation():
    population = SlowFast(space=LINE, pop_size=2, seed=3)
    a, b = population.ask()[0]
    fast, slow = population.positions[a].copy(), population.positions[b].copy()
    r1, r2 = generator(3, MOVE, 0, 0, 0).random((2, 3))
    assert population.tell(0, 1.0, 2.0) == a
    np.testing.assert_allclose(population.positions[b], slow + r2 * (fast - slow))
    np.testing.assert_array_equal(population.positions[a], fast)
    velocity, slow = population.velocities[b].copy(), population.positions[b].copy()
    a_first = population.ask()[0][0] == a
    r1, r2 = generator(3, MOVE, 1, 0, 0).random((2, 3))
    population.tell(0, *((1.0, 2.0) if a_first else (2.0, 1.0)))
    expected = slow + r1 * velocity + r2 * (fast - slow)
    np.testing.assert_allclose(population.positions[b], np.clip(expected, 0, 100))


def test_the_rule_finds_the_lowest_corner():
    population = run(SlowFast(space=LINE, pop_size=20, seed=0), 60, lambda position: position.sum())
    start = SlowFast(space=LINE, pop_size=20, seed=0)
    assert population.positions.sum(axis=1).mean() < 0.7 * start.positions.sum(axis=1).mean()


def test_velocity_stops_at_a_bound_and_stays_bounded():
    population = SlowFast(space=LINE, pop_size=2, seed=0)
    a, b = population.ask()[0]
    population.positions[a], population.positions[b] = [100.0, 50.0, 0.0], [99.0, 50.0, 100.0]
    population.velocities[b] = [1e9, 0.0, -1e9]
    population.tell(0, 0.0, 1.0)
    assert population.positions[b][0] == 100.0
    assert population.velocities[b][0] == 0.0
    assert population.positions[b][2] == 0.0
    assert population.velocities[b][2] == -100.0, "from wall to wall, and no further"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_loses_on_either_side(bad):
    for losses, winner in (((bad, 5.0), 1), ((5.0, bad), 0)):
        population = SlowFast(space=LINE, pop_size=2, seed=0)
        pair = population.ask()[0]
        stays = population.positions[pair[winner]].copy()
        assert population.tell(0, *losses) == pair[winner]
        np.testing.assert_array_equal(population.positions[pair[winner]], stays)


def test_two_losses_that_are_no_numbers_start_both_anew():
    population = SlowFast(space=LINE, pop_size=4, seed=0)
    a, b = population.ask()[1]
    before = population.positions.copy()
    assert population.tell(1, math.nan, math.inf) is None
    changed = (population.positions != before).all(axis=1)
    assert sorted(np.flatnonzero(changed)) == sorted((a, b))
    assert np.isfinite(population.positions).all()


def test_draws_of_a_move_begin_with_the_published_one_and_the_chosen_one_is_taken():
    population = SlowFast(space=LINE, pop_size=4, seed=5)
    a, b = population.ask()[0]
    start = population.positions[a].copy()
    population.tell(0, 2.0, 1.0)
    moves = population.reconsider(a, 4)
    assert len(np.unique(moves, axis=0)) == 4
    np.testing.assert_array_equal(population.positions[a], moves[0])
    chosen = moves[3].copy()
    population.place(a, moves[3])
    np.testing.assert_array_equal(population.positions[a], chosen)
    np.testing.assert_allclose(population.velocities[a], chosen - start)
    population.positions[a] += 1
    np.testing.assert_array_equal(moves[3], chosen)  # the argument is the caller's
    with pytest.raises(ValueError, match="not moved"):
        population.reconsider(b, 2)


def test_unknown_or_repeated_answers_are_refused():
    population = SlowFast(space=LINE, pop_size=4, seed=0)
    population.tell(0, 2.0, 1.0)
    with pytest.raises(ValueError, match="told already"):
        population.tell(0, 1.0, 2.0)
    with pytest.raises(ValueError, match="pair 2: allowed are 0 to 1"):
        population.tell(2, 1.0, 2.0)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_an_odd_or_too_small_population_is_refused(size):
    with pytest.raises(ValueError, match=f"--pop_size {size}"):
        SlowFast(space=LINE, pop_size=size)


def test_state_resumes_exactly_even_within_a_generation_and_through_json():
    def loss(position):
        return float(np.cos(position).sum())

    whole = run(SlowFast(space=CellSpace(), pop_size=6, seed=2), 5, loss)
    half = run(SlowFast(space=CellSpace(), pop_size=6, seed=2), 2, loss)
    pairs = half.ask()
    half.tell(0, *(loss(half.positions[member]) for member in pairs[0]))
    text = json.dumps(
        {key: getattr(value, "tolist", lambda v=value: v)() for key, value in half.state_dict().items()}
    )
    other = SlowFast(space=CellSpace(), pop_size=6, seed=2)
    other.load_state_dict(json.loads(text))
    for pair in (1, 2):
        other.tell(pair, *(loss(other.positions[member]) for member in pairs[pair]))
    run(other, 2, loss)
    np.testing.assert_array_equal(other.positions, whole.positions)
    np.testing.assert_array_equal(other.velocities, whole.velocities)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match="positions"):
        SlowFast(space=LINE, pop_size=6).load_state_dict(SlowFast(space=LINE, pop_size=4).state_dict())
