"""The search: a population of slow and fast learners, guided by a predictor that learns from their pairs.

`ask` gives the next comparisons, `tell` takes their outcomes. What is trained, where, and how, is the
caller's: `train_search.py` trains networks, the table benchmarks look numbers up. Both run this very class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from encoding import Architecture, ChoiceSpace, Integers, Reals
from pair_predictor import PairPredictor
from search.evaluated import Evaluated
from search.front import LIMITS, Costs, Front
from search.screening import promising
from search.slow_fast import SlowFast
from search.trust import Trust
from utils import generator

STRATEGIES = ("slow_fast", "random")
SCREEN, AUDIT, FRESH, MEETING, CHILD = range(100, 105)  # what a number is for; SlowFast has small ones
TRIES = 1000  # fresh architectures, and then children, before none is called acceptable
FEW, KNOWN = 3, 5  # comparisons before the predictor chooses moves, and before it chooses first cells


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search goes.

    A group of `pairs_per_sync` pairs of one generation is asked before any of it is told. The predictor's
    jobs, each with a switch: `rank` (finalists), `screen` (a slow learner picks among `proposals` moves and
    as many children of the best), `decide` (pairs it is sure of, at least `confidence`, are not trained; a
    share `audit_share` of them is all the same). With all off this is the published search. `levels` lets the
    predictor compare losses of different pairs. `again` lets screening choose what was trained before, where
    the predictor still doubts it: not for losses that would be the same again. `strategy="random"` meets
    fresh random architectures in the same number of pairs, without screen, decide and levels.
    """

    pop_size: int = 20
    generations: int = 50
    seed: int = 0
    pairs_per_sync: int = 1
    strategy: str = "slow_fast"
    rank: bool = True
    screen: bool = True
    decide: bool = True
    audit_share: float = 0.1
    proposals: int = 16
    confidence: float = 0.97
    levels: bool = True
    again: bool = True

    def __post_init__(self) -> None:
        half = self.pop_size // 2
        for name, fits, allowed in (
            ("strategy", self.strategy in STRATEGIES, f"allowed are {', '.join(STRATEGIES)}"),
            ("generations", self.generations >= 1, "must be at least 1"),
            ("pop_size", self.pop_size >= 2 and self.pop_size % 2 == 0, "must be even, at least 2"),
            ("pairs_per_sync", 1 <= self.pairs_per_sync <= half, f"allowed are 1 to {half} (pop_size / 2)"),
            ("proposals", self.proposals >= 1, "must be at least 1"),
            ("confidence", 0.5 < self.confidence <= 1, "must be above 0.5, at most 1"),
            ("audit_share", 0 <= self.audit_share <= 1, "must be from 0 to 1"),
        ):
            if not fits:
                raise ValueError(f"--{name} {getattr(self, name)}: {allowed}")

    @property
    def random(self) -> bool:
        return self.strategy == "random"

    @property
    def guided(self) -> bool:
        """Whether the predictor takes part at all."""
        return self.rank or self.screen or self.decide


@dataclass(frozen=True)
class Comparison:
    """Two architectures that meet. `decided_by` is "training", "audit" (the predictor was sure; they train
    all the same) or "predictor" (they need not train). `probability` is P(a beats b) before the outcome;
    `ages` say how long the weights of both had trained.
    """

    generation: int
    pair: int
    a: Architecture
    b: Architecture
    decided_by: str
    probability: float | None
    ages: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """Mean losses of a and b, the mean of their paired difference a - b, and its standard error."""

    loss_a: float
    loss_b: float
    difference: float
    standard_error: float

    @classmethod
    def exact(cls, loss_a: float, loss_b: float) -> Outcome:
        """The outcome of two losses without noise."""
        return cls(loss_a, loss_b, loss_a - loss_b, 0.0)


class NoneAccepted(ValueError):
    """`accept` rejects everything that is proposed for a member."""


class PairedSearch:
    """Slow-fast learning with a paired predictor; NumPy only, resumable at every group of pairs.

    `accept` rejects architectures before they cost anything. Two equal architectures are a tie that `decide`
    settles without training; the first counts as fast. `age` says how long the weights that an architecture
    would start from have trained: what a loss owes to that is no quality. The predictor screens and decides
    only while its probabilities beat a coin; see `Trust`. `costs` are further objectives, known without
    training: then the search is for the best under every limit on them; see `Front`. `prior` says what
    quality is expected of rows of choices, (n,), before any comparison: more is better, with mean 0 and sd 1
    over random architectures.
    """

    def __init__(
        self,
        *,
        space: ChoiceSpace,
        settings: Settings | None = None,
        accept: Callable[[Architecture], bool] | None = None,
        age: Callable[[Architecture], float] | None = None,
        prior: Callable[[Integers], np.ndarray] | None = None,
        costs: Costs | None = None,
    ) -> None:
        settings = settings or Settings()
        self.space, self.settings, self.accept, self.age = space, settings, accept, age
        self.population = SlowFast(space=space, pop_size=settings.pop_size, seed=settings.seed)
        levels = settings.levels and not settings.random
        self.predictor = PairPredictor(space=space, levels=levels, prior=prior)
        self.trust = Trust()
        self.evaluated = Evaluated(space, self.predictor if settings.rank else None)
        self.front = None if costs is None else Front(space, costs, settings.seed)
        self.generation, self.pair = 0, 0  # of the next group's first pair
        self.group: list[Comparison] = []  # asked, not yet told, in pair order

    # ---- ask

    def ask(self) -> list[Comparison]:
        """The next group of comparisons (what is left of it, if some are told); [] when the search is over.

        Raises NoneAccepted, a ValueError, if `accept` rejects everything that is proposed for a member.
        """
        if self.group or self.generation >= self.settings.generations:
            return list(self.group)
        pairs = list(enumerate(self.population.ask()))[self.pair : self.pair + self.settings.pairs_per_sync]
        taken: list[Integers] = []
        screened: set[int] = set()  # members that stand where they do because the predictor wants to know
        for _, members in pairs:
            for member in members:
                if self._settle(member, taken):
                    screened.add(member)
                taken.append(self.space.read(self.population.positions[member]))
        begun = self.generation > 0
        self.group = [
            self._compare(pair, members, decidable=begun and screened.isdisjoint(members))
            for pair, members in pairs
        ]
        return list(self.group)

    def _compare(self, pair: int, members: tuple[int, int], decidable: bool) -> Comparison:
        a, b = (self.space.decode(self.population.positions[member]) for member in members)
        settings = self.settings
        ages = (0.0, 0.0) if self.age is None else (float(self.age(a)), float(self.age(b)))
        probability, sure = None, False
        if settings.guided and self.predictor.knows:
            probability = self.predictor.probability(a, b)
            sure = max(probability, 1 - probability) >= settings.confidence and self.trust.given
        decided_by = "training"
        if settings.decide and not settings.random:
            if a == b:
                decided_by = "predictor"
            elif decidable and sure:
                drawn = generator(settings.seed, AUDIT, self.generation, pair).random()
                decided_by = "audit" if drawn < settings.audit_share else "predictor"
        if probability is not None and decided_by != "predictor":  # of the outcome, to which ages belong
            probability = self.predictor.probability(a, b, ages)
        return Comparison(self.generation, pair, a, b, decided_by, probability, ages)

    def _settle(self, member: int, taken: list[Integers]) -> bool:
        """Choose, now that it is needed, where a moved or new member stands; whether it was screened."""
        population, new = self.population, self.generation == 0
        if self.settings.random:
            population.place(member, self._first_accepted(self._fresh(member)))
            return False
        known = len(self.predictor) if self.predictor.prior is None else math.inf
        ready = known >= FEW if population.moved(member) else new and known >= KNOWN
        if self.settings.screen and ready and self.trust.given:
            chosen = self._screen(member, taken)
            if chosen is not None:
                population.place(member, chosen)
                return True
        if self.accept is not None:
            population.place(member, self._first_accepted(self._plain(member, taken)))
        return False

    def _screen(self, member: int, taken: list[Integers]) -> Reals | None:
        """The acceptable vector of highest expected improvement that no other member holds."""
        moves = self._moves(member)
        others = (self.space.read(place) for place in np.delete(self.population.positions, member, axis=0))
        held = {tuple(row.tolist()) for row in (*others, *taken)}
        banned = held | (self.evaluated.exact if self.settings.again else self.evaluated.losses.keys())
        rng = generator(self.settings.seed, SCREEN, self.generation, member)
        posterior = self.predictor.posterior()
        known = self.evaluated.rows()
        for row in promising(self.space, posterior, moves, known, banned, rng, self.front):
            if self._accepts(self.space.architecture(row)):
                same = [vector for vector in moves if (self.space.read(vector) == row).all()]
                return same[0] if same else self.space.write(row)
        return None

    def _moves(self, member: int) -> Reals:
        """Where `member` may stand, (proposals, reals): draws of its move; of a new one, random starts."""
        proposals = self.settings.proposals
        if self.population.moved(member):
            return self.population.reconsider(member, proposals)
        fresh = islice(self._fresh(member), proposals - 1)
        return np.stack([self.population.positions[member], *fresh])

    def _plain(self, member: int, taken: list[Integers]) -> Iterator[Reals]:
        """The published move first, then other draws of it, fresh starts, and children of accepted ones."""
        yield self.population.positions[member]
        if self.population.moved(member):
            yield from self.population.reconsider(member, TRIES // 10)
        yield from self._fresh(member)
        parents = [*self.evaluated.rows(), *taken]
        rng = generator(self.settings.seed, CHILD, self.generation, member)
        for _ in range(TRIES if parents else 0):
            yield self.space.write(self.space.mutate(parents[rng.integers(len(parents))], rng))

    def _fresh(self, member: int) -> Iterator[Reals]:
        for attempt in range(TRIES):
            yield self.space.sample(generator(self.settings.seed, FRESH, self.generation, member, attempt))

    def _first_accepted(self, vectors: Iterable[Reals]) -> Reals:
        for vector in vectors:
            if self._accepts(self.space.decode(vector)):
                return vector
        raise NoneAccepted(f"no acceptable architecture among {TRIES} proposals")

    def _accepts(self, architecture: Architecture) -> bool:
        return self.accept is None or bool(self.accept(architecture))

    # ---- tell

    def tell(self, comparison: Comparison, outcome: Outcome | None) -> str | None:
        """The outcome of the group's next comparison; None where the predictor decides.

        Returns who is fast, "a" or "b"; None where neither loss is a finite number. Such a loss loses;
        to the predictor it is a large finite difference. Raises ValueError for a comparison that is not the
        next one of the group, or an outcome missing or given where none belongs.
        """
        if not self.group or comparison != self.group[0]:
            raise ValueError(
                f"pair {comparison.pair} of generation {comparison.generation} is not the next one to be told"
            )
        if (outcome is None) != (comparison.decided_by == "predictor"):
            raise ValueError(f"pair {comparison.pair}: decided by {comparison.decided_by}, outcome {outcome}")
        self.group.pop(0)
        if outcome is None:
            a_wins = comparison.probability is None or comparison.probability >= 0.5
            losses = (0.0, 1.0) if a_wins else (1.0, 0.0)
        else:
            losses = self._learn(comparison, outcome)
        if self.front is not None and all(map(math.isfinite, losses)):
            losses = self._under_a_limit(comparison, losses)
        members = self.population.ask()[comparison.pair]
        compared = self.population.positions[[*members]]
        fast = self.population.tell(comparison.pair, *losses)
        if self.settings.random:  # nobody moves: a move would count among the cells that were drawn
            self.population.positions[[*members]] = compared
        self.pair += 1
        if self.pair == self.settings.pop_size // 2:
            self.generation, self.pair = self.generation + 1, 0
        return None if fast is None else "ab"[members.index(fast)]

    def _learn(self, comparison: Comparison, outcome: Outcome) -> tuple[float, float]:
        """Remember both losses; the winner is the sign of the paired difference, not of two loose means."""
        exact = not outcome.standard_error > 0  # that of a loss which is no number is none either
        self.evaluated.add(comparison.a, outcome.loss_a, exact)
        self.evaluated.add(comparison.b, outcome.loss_b, exact)
        if not (math.isfinite(outcome.loss_a) and math.isfinite(outcome.loss_b)):
            self._learn_failure(comparison, outcome)
            return outcome.loss_a, outcome.loss_b
        if not (math.isfinite(outcome.difference) and math.isfinite(outcome.standard_error)):
            raise ValueError(f"pair {comparison.pair}: finite losses with {outcome}")
        if self.settings.guided and comparison.a != comparison.b:
            level = min(outcome.loss_a, outcome.loss_b)
            numbers = (outcome.difference, outcome.standard_error, level)
            self.predictor.add(comparison.a, comparison.b, *numbers, comparison.ages)
            if comparison.probability is not None and outcome.difference != 0:
                self.trust.add(comparison.probability, outcome.difference < 0)
        return outcome.difference, 0.0

    def _under_a_limit(self, comparison: Comparison, losses: tuple[float, float]) -> tuple[float, float]:
        """Who is fast under a limit of the pair's own: who keeps to it; of two that do, the lower loss."""
        assert self.front is not None
        rng = generator(self.settings.seed, MEETING, comparison.generation, comparison.pair)
        rows = np.stack([self.space.choices(one) for one in (comparison.a, comparison.b)])
        over_a, over_b = self.front.excess(rows, int(rng.integers(LIMITS))).tolist()
        return (over_a, over_b) if over_a != over_b else losses

    def _learn_failure(self, comparison: Comparison, outcome: Outcome) -> None:
        """One loss is no number: to the predictor it lost by as much as any so far, give or take half."""
        level = outcome.loss_a if math.isfinite(outcome.loss_a) else outcome.loss_b
        worst = float(np.abs(self.predictor.known.differences).max(initial=0.0))
        if self.settings.guided and math.isfinite(level) and worst > 0 and comparison.a != comparison.b:
            difference = -worst if math.isfinite(outcome.loss_a) else worst
            self.predictor.add(comparison.a, comparison.b, difference, 0.5 * worst, level, comparison.ages)

    # ---- results

    def architectures(self) -> list[Architecture]:
        """What the population decodes to now, by member."""
        return [self.space.decode(position) for position in self.population.positions]

    def best(self) -> Architecture | None:
        """The best of what was trained so far; None before the first finite loss."""
        return self.evaluated.best()

    def finalists(self, count: int) -> list[Architecture]:
        """The `count` best of everything trained and of the last population, and the lowest trained loss.

        Best first; without `rank` only trained architectures, by loss. No architecture comes twice. With
        `costs` they are, instead, those that together are the best under all limits, then of the others.
        """
        if count < 1:
            raise ValueError(f"{count} finalists: there must be one at least")
        population = [one for one in self.architectures() if self._accepts(one)]
        return self.evaluated.finalists(count, untrained=population, front=self.front)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain types and NumPy arrays. Only between groups.

        Raises ValueError while a group is asked and not wholly told.
        """
        if self.group:
            raise ValueError(f"{len(self.group)} comparisons are not told yet: save after the whole group")
        return {
            "generation": self.generation,
            "pair": self.pair,
            "population": self.population.state_dict(),
            "predictor": self.predictor.state_dict(),
            "trust": self.trust.state_dict(),
            **self.evaluated.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; the search goes on exactly as it would have.

        Raises ValueError where parts are missing.
        """
        needed = ("population", "predictor", "evaluated", "losses", "generation", "pair")
        if missing := [name for name in needed if name not in state]:
            raise ValueError(f"no state of a search: {', '.join(missing)} missing")
        self.population.load_state_dict(state["population"])
        self.predictor.load_state_dict(state["predictor"])
        if "trust" in state:  # searches of earlier versions have none
            self.trust.load_state_dict(state["trust"])
        self.evaluated.load_state_dict(state)
        self.generation, self.pair = int(state["generation"]), int(state["pair"])
        self.group = []
