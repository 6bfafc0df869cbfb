"""The search as its caller sees it: groups, switches, limits, bad losses, exact resumption."""

import contextlib
import json
import math
from itertools import chain

import numpy as np
import pytest

from encoding import CellSpace, ChoiceSpace
from search.paired_search import KNOWN, NoneAccepted, Outcome, PairedSearch, Settings
from search.slow_fast import SlowFast

SPACE = ChoiceSpace([5] * 6)
OFF = {"rank": False, "screen": False, "decide": False}
WEIGHTS = np.random.default_rng(7).normal(size=(6, 5))


def make(space=SPACE, accept=None, **settings):
    return PairedSearch(space=space, settings=Settings(**settings), accept=accept)


def loss(architecture):
    return float(sum(WEIGHTS[at, value] for at, value in enumerate(architecture)))


def outcome(comparison, judge=loss):
    if comparison.decided_by == "predictor":
        return None
    a, b = judge(comparison.a), judge(comparison.b)
    return Outcome(a, b, a - b, 0.01)


def play(search, groups=10**9, judge=loss):
    history = []
    while groups and (group := search.ask()):
        groups -= 1
        for comparison in group:
            told = outcome(comparison, judge)
            search.tell(comparison, told)
            history.append((comparison, told))
    return history


def plain(value):
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_a_search_has_the_comparisons_it_was_asked_for():
    search = make(pop_size=6, generations=4, seed=0, pairs_per_sync=2)
    sizes = []
    while group := search.ask():
        sizes.append(len(group))
        for comparison in group:
            search.tell(comparison, outcome(comparison))
    assert sizes == [2, 1] * 4
    assert search.ask() == []


def test_with_all_jobs_off_it_is_the_published_search():
    search = make(space=CellSpace(), pop_size=8, generations=5, seed=3, pairs_per_sync=2, **OFF)

    def judge(genotype):
        return float(sum(source for _, source in genotype.normal))

    history = play(search, judge=judge)
    population, expected = SlowFast(space=CellSpace(), pop_size=8, seed=3), []
    for _ in range(5):
        for pair, members in enumerate(population.ask()):
            a, b = (population.space.decode(population.positions[member]) for member in members)
            expected.append((a, b))
            population.tell(pair, judge(a), judge(b))
    assert [(comparison.a, comparison.b) for comparison, _ in history] == expected
    assert all(c.decided_by == "training" and c.probability is None for c, _ in history)
    np.testing.assert_array_equal(search.population.positions, population.positions)


def test_the_first_population_is_the_published_one_until_the_predictor_knows_enough():
    """Nothing is decided before every first cell was trained; without screening all of them are random."""
    settings = {"pop_size": 20, "generations": 1, "seed": 5, "confidence": 0.51}
    published = [(c.a, c.b) for c, _ in play(make(**settings, **OFF))]
    history = play(make(**settings))
    met = [(c.a, c.b) for c, _ in history]
    assert met[:KNOWN] == published[:KNOWN]
    assert not set(chain(*met[KNOWN:])) & set(chain(*published))
    assert {c.decided_by for c, _ in history} == {"training"}
    unscreened = play(make(**settings, screen=False))
    assert [(c.a, c.b) for c, _ in unscreened] == published


def test_the_predictor_helps_within_the_first_generation():
    gains = []
    for seed in range(6):
        ours, published = (make(generations=1, seed=seed, **switches) for switches in ({}, OFF))
        play(ours), play(published)
        gains.append(loss(published.best()) - loss(ours.best()))
    assert np.mean(gains) > 0.5


def test_a_cell_that_was_chosen_to_be_tried_is_trained_however_sure_the_predictor_is():
    search = make(pop_size=10, generations=8, seed=5, confidence=0.51, audit_share=0.0)
    trained: set = set()
    decided = 0
    for comparison, told in play(search):
        pair = {comparison.a, comparison.b}
        if told is None:
            decided += 1
            assert pair <= trained
        trained |= pair
    assert decided > 5


def test_asking_again_gives_the_same_and_telling_out_of_order_is_refused():
    search = make(pop_size=6, generations=2, seed=0, pairs_per_sync=3)
    group = search.ask()
    assert search.ask() == group
    with pytest.raises(ValueError, match="not the next"):
        search.tell(group[1], outcome(group[1]))
    search.tell(group[0], outcome(group[0]))
    assert search.ask() == group[1:]
    with pytest.raises(ValueError, match="not the next"):
        search.tell(group[0], outcome(group[0]))
    with pytest.raises(ValueError, match="outcome None"):
        search.tell(group[1], None)


def test_the_whole_group_is_asked_before_any_of_it_is_told():
    one = make(pop_size=8, generations=6, seed=1, pairs_per_sync=4)
    play(one, groups=5)
    group = one.ask()
    assert [comparison.pair for comparison in group] == [0, 1, 2, 3]
    one.tell(group[0], outcome(group[0]))
    assert one.ask() == group[1:]


@pytest.mark.parametrize("switches", [{}, OFF, {"screen": False}, {"strategy": "random"}])
def test_killed_at_any_group_boundary_it_continues_exactly(switches):
    def fresh():
        return make(pop_size=6, generations=6, seed=4, pairs_per_sync=2, confidence=0.8, **switches)

    whole = fresh()
    expected = play(whole)
    for groups in (1, 3, 4, 8, 11):
        first = fresh()
        history = play(first, groups=groups)
        state = json.loads(json.dumps(plain(first.state_dict())))
        second = fresh()
        second.load_state_dict(state)
        assert history + play(second) == expected
        assert second.finalists(3) == whole.finalists(3)
        assert plain(second.state_dict()) == plain(whole.state_dict())


def test_state_within_a_group_is_refused():
    search = make(pop_size=4, generations=1)
    search.ask()
    with pytest.raises(ValueError, match="not told"):
        search.state_dict()


def test_the_predictor_finds_better_cells_than_the_published_search_with_the_same_comparisons():
    gains = []
    for seed in range(4):
        ours = make(pop_size=10, generations=5, seed=seed)
        published = make(pop_size=10, generations=5, seed=seed, **OFF)
        play(ours), play(published)
        gains.append(loss(published.best()) - loss(ours.best()))
    assert np.mean(gains) > 0.5


def test_sure_pairs_are_decided_without_training_and_some_are_audited():
    search = make(pop_size=10, generations=12, seed=0, screen=False, confidence=0.8, audit_share=0.3)
    history = play(search)
    kinds = [comparison.decided_by for comparison, _ in history]
    assert {"training", "audit", "predictor"} <= set(kinds)
    for comparison, told in history:
        assert (told is None) == (comparison.decided_by == "predictor")
        if comparison.decided_by != "training" and comparison.a != comparison.b:
            assert max(comparison.probability, 1 - comparison.probability) >= 0.8
    audits = [c for c, _ in history if c.decided_by == "audit"]
    right = [(c.probability > 0.5) == (loss(c.a) < loss(c.b)) for c in audits]
    assert np.mean(right) > 0.8


def test_the_other_of_a_pair_wins_where_the_expected_loser_diverges():
    expected = {"rank": False, "screen": False, "confidence": 0.8, "audit_share": 0.5}
    search = make(pop_size=10, generations=12, seed=0, **expected)
    seen = 0
    while group := search.ask():
        for comparison in group:
            told = outcome(comparison)
            if comparison.decided_by == "audit":
                seen += 1
                a_wins = comparison.probability >= 0.5
                losses = (1.0, math.nan) if a_wins else (math.nan, 1.0)
                told = Outcome(*losses, math.nan, math.nan)
                assert search.tell(comparison, told) == ("a" if a_wins else "b")
            else:
                search.tell(comparison, told)
    assert seen


def test_equal_architectures_are_a_tie_that_costs_no_training_unless_published():
    lone = ChoiceSpace([1, 1])
    ours = play(make(space=lone, pop_size=4, generations=2), judge=lambda _: 1.0)
    published = play(make(space=lone, pop_size=4, generations=2, **OFF), judge=lambda _: 1.0)
    assert {comparison.decided_by for comparison, _ in ours} == {"predictor"}
    assert {comparison.decided_by for comparison, _ in published} == {"training"}


@pytest.mark.parametrize("switches", [{}, OFF, {"strategy": "random"}])
def test_what_accept_rejects_is_never_asked_for(switches):
    def acceptable(architecture):
        return architecture[0] != 0 and architecture[1] < 3

    search = make(pop_size=6, generations=6, seed=0, accept=acceptable, **switches)
    for comparison, _ in play(search):
        for architecture in (comparison.a, comparison.b):
            assert architecture[0] != 0
            assert architecture[1] < 3
    assert all(arch[0] != 0 and arch[1] < 3 for arch in search.finalists(20))


def test_a_predictor_that_a_coin_beats_neither_screens_nor_decides():
    """Where sure predictions fail, the search goes on as the published one."""
    settings = {"pop_size": 10, "generations": 12, "seed": 0, "confidence": 0.6, "audit_share": 0.0}
    search = make(**settings)
    search.trust.gains = np.full(30, -1.0)
    published = make(**settings, **OFF)
    for _ in range(KNOWN + 2):
        (comparison,), (expected,) = search.ask(), published.ask()
        assert (comparison.a, comparison.b) == (expected.a, expected.b)
        search.tell(comparison, outcome(comparison)), published.tell(expected, outcome(expected))
        search.trust.gains = np.full(30, -1.0)

    rng = np.random.default_rng(0)

    def judge(comparison):
        if comparison.decided_by == "predictor":
            return None
        wrong = (comparison.probability or 0.5) > 0.5
        a, b = (1.0, 0.0) if wrong else (0.0, 1.0)
        return Outcome(a, b, a - b + 0.1 * rng.normal(), 0.1)

    search = make(**settings)
    asked = []
    while group := search.ask():
        asked.append((search.trust.given, group[0]))
        search.tell(group[0], judge(group[0]))
    assert all(c.decided_by == "training" or c.a == c.b for given, c in asked if not given)
    assert sum(not given for given, _ in asked) > 10


def test_one_unlucky_loss_does_not_ban_a_cell_unless_it_would_be_the_same_again():
    def trainings(again, error):
        rng = np.random.default_rng(3)
        search, count = make(pop_size=10, generations=12, seed=0, again=again), {}
        while group := search.ask():
            (comparison,) = group
            if comparison.decided_by == "predictor":
                search.tell(comparison, None)
                continue
            members = search.population.ask()[comparison.pair]
            for member, cell in zip(members, (comparison.a, comparison.b), strict=True):
                if search.population.moved(member):
                    count[cell] = count.get(cell, 0) + (cell in search.evaluated)
            a, b = (loss(cell) + error * rng.normal() for cell in (comparison.a, comparison.b))
            search.tell(comparison, Outcome(a, b, a - b, error))
        return sum(count.values())

    assert trainings(True, 1.0) > 0
    assert trainings(False, 1.0) == trainings(True, 0.0) == 0


def test_ages_of_weights_are_asked_for_and_told_to_the_predictor():
    search = PairedSearch(
        space=SPACE, settings=Settings(pop_size=6, generations=3), age=lambda one: one[0] / 5
    )
    for comparison, _ in play(search):
        assert comparison.ages == (comparison.a[0] / 5, comparison.b[0] / 5)
    assert search.predictor.known.ages.any()


def test_when_nothing_is_acceptable_one_error_says_so():
    search = make(pop_size=4, accept=lambda _: False)
    with pytest.raises(ValueError, match="no acceptable architecture"):
        search.ask()


@pytest.mark.parametrize("switches", [{}, OFF])
def test_bad_losses_lose_and_never_poison_the_search(switches):
    def judge(architecture):
        return math.nan if architecture[0] == 2 else math.inf if architecture[1] == 0 else loss(architecture)

    search = make(pop_size=10, generations=10, seed=2, **switches)
    history = play(search, judge=judge)
    assert any(told and math.isnan(told.loss_a + told.loss_b) for _, told in history)
    assert math.isfinite(judge(search.best()))
    assert all(c.probability is None or math.isfinite(c.probability) for c, _ in history)
    assert np.isfinite(search.predictor.known.differences).all()
    last = [judge(architecture) for architecture in search.architectures()]
    assert np.mean(np.isfinite(last)) > 0.7


def test_random_meets_fresh_architectures_all_the_time():
    search = make(space=CellSpace(), pop_size=6, generations=5, seed=0, strategy="random")
    history = play(search, judge=lambda genotype: float(genotype.normal[0][1]))
    met = [architecture for comparison, _ in history for architecture in (comparison.a, comparison.b)]
    assert len(set(met)) == len(met) == 30
    assert all(comparison.decided_by == "training" for comparison, _ in history)
    assert set(search.architectures()) | set(search.finalists(8)) <= set(met), "nobody moves"


def test_where_few_are_acceptable_children_of_those_are_met():
    """One architecture in 1,300 at random; the first one is found by chance, or the search does not begin."""

    def acceptable(architecture):
        return architecture[:4] == (0, 1, 2, 3) and architecture[4:] != (0, 0)

    for seed in range(20):
        search = make(pop_size=6, generations=4, seed=seed, accept=acceptable)
        with contextlib.suppress(NoneAccepted):
            search.ask()
            break
    assert all(acceptable(one) for comparison, _ in play(search) for one in (comparison.a, comparison.b))
    assert search.generation == 4


def test_finalists_are_distinct_best_first_and_include_the_best_trained():
    search = make(pop_size=10, generations=6, seed=1)
    history = play(search)
    finalists = search.finalists(4)
    assert len(set(finalists)) == len(finalists)
    trained = {arch for c, told in history if told for arch in (c.a, c.b)}
    assert min(trained, key=loss) in finalists
    assert search.best() in trained
    order = search.predictor.rank(finalists[:4])
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("rank", [True, False])
def test_the_last_population_reaches_the_finals_by_its_rank_alone(rank):
    search = make(pop_size=10, generations=6, seed=1, rank=rank)
    trained = {arch for c, told in play(search) if told for arch in (c.a, c.b)}
    untrained = set(search.architectures()) - trained
    assert untrained
    assert set(search.finalists(10**6)) == (trained | untrained if rank else trained)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pop_size": 5}, "--pop_size 5"),
        ({"generations": 0}, "--generations 0"),
        ({"pairs_per_sync": 11}, "--pairs_per_sync 11"),
        ({"strategy": "best"}, "--strategy best"),
        ({"confidence": 0.2}, "--confidence 0.2"),
        ({"audit_share": 2.0}, "--audit_share 2.0"),
        ({"proposals": 0}, "--proposals 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
