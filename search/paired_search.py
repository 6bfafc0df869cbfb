"""The search: a population of slow and fast learners, guided by a predictor that learns from their
comparisons.

`ask` gives the next comparisons, `tell` takes their outcomes. What is trained, where, and how, is the
caller's: `train_search.py` trains networks, the table benchmarks look numbers up. Both run this very class.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoding import Architecture, ChoiceSpace, Integers, Reals
from search.slow_fast import SlowFast, generator

STRATEGIES = ("slow_fast", "random")
SCREEN, AUDIT, FRESH = range(100, 103)  # what a random number is for; SlowFast has the small ones
TRIES = 1000


@dataclass(frozen=True)
class Comparison:
    """Two architectures that meet. `decided_by` is "training", "audit" (the predictor was sure; they train
    all the same) or "predictor" (they need not train). `probability` is P(a beats b) before the outcome.
    """

    generation: int
    pair: int
    a: Architecture
    b: Architecture
    decided_by: str
    probability: float | None


@dataclass(frozen=True)
class Outcome:
    """Mean losses of a and b, the mean of their paired difference a - b, and its standard error."""

    loss_a: float
    loss_b: float
    difference: float
    standard_error: float


class PairedSearch:
    """Slow-fast learning with a paired predictor; NumPy only, resumable at every group of pairs.

    A group of `pairs_per_sync` pairs of one generation is asked before any of it is told. The predictor's
    jobs, each with a switch: `rank` (finalists), `screen` (a slow learner picks among possible moves),
    `decide` (pairs it is sure of, at least `confidence`, are not trained; a share `audit_share` of them is
    all the same). With all off this is the published search. `accept` rejects architectures before they cost
    anything. `strategy="random"` meets fresh random architectures in the same number of pairs, without screen
    and decide. Two equal architectures are a tie that `decide` settles without training; the first counts as
    fast.
    """

    def __init__(
        self,
        *,
        space: ChoiceSpace,
        pop_size: int = 20,
        generations: int = 50,
        seed: int = 0,
        pairs_per_sync: int = 1,
        strategy: str = "slow_fast",
        accept: Callable[[Architecture], bool] | None = None,
        rank: bool = True,
        screen: bool = True,
        decide: bool = True,
        proposals: int = 16,
        confidence: float = 0.97,
        audit_share: float = 0.1,
        maximum_velocity: float = 1.0,
        mixed_pairs: bool = False,
        levels: bool = True,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"--strategy {strategy}: allowed are {', '.join(STRATEGIES)}")
        if generations < 1:
            raise ValueError(f"--generations {generations}: must be at least 1")
        if not 1 <= pairs_per_sync <= pop_size // 2:
            raise ValueError(
                f"--pairs_per_sync {pairs_per_sync}: allowed are 1 to {pop_size // 2} (pop_size / 2)"
            )
        if proposals < 1:
            raise ValueError(f"--proposals {proposals}: must be at least 1")
        if not 0.5 < confidence <= 1:
            raise ValueError(f"--confidence {confidence}: must be above 0.5, at most 1")
        if not 0 <= audit_share <= 1:
            raise ValueError(f"--audit_share {audit_share}: must be from 0 to 1")
        self.space, self.pop_size, self.generations, self.seed = space, pop_size, generations, seed
        self.pairs_per_sync, self.strategy, self.accept = pairs_per_sync, strategy, accept
        self.use_rank, self.use_screen, self.use_decide = rank, screen, decide
        self.guided = rank or screen or decide  # whether the predictor takes part at all
        self.proposals, self.confidence, self.audit_share = proposals, confidence, audit_share
        self.population = SlowFast(
            space=space,
            pop_size=pop_size,
            seed=seed,
            maximum_velocity=maximum_velocity,
            mixed_pairs=mixed_pairs and screen and strategy != "random",
        )
        from pair_predictor import PairPredictor  # here, as SciPy's import would make --help wait

        self.predictor = PairPredictor(space=space, levels=levels and strategy != "random")
        self.generation, self.pair = 0, 0  # of the next group's first pair
        self.group: list[Comparison] = []  # asked, not yet told, in pair order
        self.evaluated: dict[tuple[int, ...], float] = {}  # choices -> loss when last trained
        self.log: list[dict[str, float]] = []  # the comparisons of this generation
        self.last_summary: dict[str, float] = {}

    # ---- ask

    def ask(self) -> list[Comparison]:
        """The next group of comparisons (what is left of it, if some are told); [] when the search is over.

        Raises ValueError if `accept` rejects everything that is proposed for a member.
        """
        if self.group or self.generation >= self.generations:
            return list(self.group)
        last = min(self.pair + self.pairs_per_sync, self.pop_size // 2)
        pairs = self.population.ask()
        taken: list[Integers] = []
        screened: set[int] = set()  # members that stand where they do because the predictor wants to know
        for pair in range(self.pair, last):
            for member in pairs[pair]:
                if self._settle(member, taken):
                    screened.add(member)
                taken.append(self.space.read(self.population.positions[member]))
        begun = self.generation > 0
        self.group = [
            self._compare(pair, *pairs[pair], decidable=begun and screened.isdisjoint(pairs[pair]))
            for pair in range(self.pair, last)
        ]
        return list(self.group)

    def _compare(self, pair: int, member_a: int, member_b: int, decidable: bool) -> Comparison:
        a, b = (self.space.decode(self.population.positions[member]) for member in (member_a, member_b))
        probability = self.predictor.probability(a, b) if self.guided and len(self.predictor) else None
        sure = probability is not None and max(probability, 1 - probability) >= self.confidence
        decided_by = "training"
        if self.use_decide and self.strategy != "random":
            if a == b:
                decided_by = "predictor"
            elif decidable and sure:
                drawn = generator(self.seed, AUDIT, self.generation, pair).random()
                decided_by = "audit" if drawn < self.audit_share else "predictor"
        return Comparison(self.generation, pair, a, b, decided_by, probability)

    def _settle(self, member: int, taken: list[Integers]) -> bool:
        """Choose, now that it is needed, where a moved or new member stands; whether it was screened."""
        if self.strategy == "random":
            draws = (self._fresh(member, attempt) for attempt in range(TRIES))
            self.population.place(member, self._first_accepted(draws))
            return False
        moved = bool(self.population.stamps[member, 0] >= 0)
        if self.use_screen and moved and len(self.predictor) >= 3:
            chosen = self._screen(member, taken)
            if chosen is not None:
                self.population.place(member, chosen)
                return True
        if self.accept is not None and (
            moved or not self._accepts(self.space.read(self.population.positions[member]))
        ):
            self.population.place(member, self._first_accepted(self._plain(member, moved)))
        return False

    def _plain(self, member: int, moved: bool) -> Any:
        """The published move first, then other draws of it, then fresh starts."""
        yield self.population.positions[member]
        if moved:
            yield from self.population.reconsider(member, TRIES // 10)
        for attempt in range(TRIES):
            yield self._fresh(member, attempt)

    def _fresh(self, member: int, attempt: int) -> Reals:
        return self.space.sample(generator(self.seed, FRESH, self.generation, member, attempt))

    def _first_accepted(self, draws: Any) -> Reals:
        for vector in draws:
            if self._accepts(self.space.read(vector)):
                return vector
        raise ValueError(
            f"no acceptable architecture among {TRIES} proposals: "
            "loosen --max_parameters or --max_multiply_adds"
        )

    def _accepts(self, choices: Integers) -> bool:
        return self.accept is None or bool(self.accept(self.space.architecture(choices)))

    # ---- screening

    def _screen(self, member: int, taken: list[Integers]) -> Reals | None:
        """The vector of highest expected improvement over the best, among moves and their relatives."""
        rng = generator(self.seed, SCREEN, self.generation, member)
        vectors = list(self.population.reconsider(member, self.proposals))
        known = np.array(list(self.evaluated))
        best = known[np.argsort(-self.predictor.posterior().mean(known), kind="stable")[:10]]
        rows = [self.space.read(vector) for vector in vectors]
        for _ in range(self.proposals):
            first, second = (best[rng.integers(len(best))] for _ in range(2))
            rows.append(self.space.mutate(self.space.cross(first, second, rng), rng))
        banned = {*self.evaluated, *(tuple(row.tolist()) for row in taken)}
        found = self._climb(np.array(rows), best[0], banned)
        for row in found:
            if self._accepts(row):
                same = [vector for vector in vectors if (self.space.read(vector) == row).all()]
                return same[0] if same else self.space.write(row)
        return None

    def _climb(self, rows: Integers, incumbent: Integers, banned: set[tuple[int, ...]]) -> list[Integers]:
        """Rows and steps uphill from the best of them, best expected improvement first; none `banned`."""
        posterior = self.predictor.posterior()
        scores: dict[tuple[int, ...], float] = {}

        def score(candidates: Integers) -> None:
            values = posterior.improvement(candidates, incumbent)
            for row, value in zip(candidates.tolist(), values.tolist(), strict=True):
                if tuple(row) not in banned:
                    scores[tuple(row)] = value

        score(rows)
        for start in sorted(scores, key=scores.__getitem__, reverse=True)[:3]:
            here = start
            while True:
                around = self.space.neighbours(np.array(here))
                score(around)
                better = [tuple(row) for row in around.tolist() if tuple(row) in scores]
                top = max(better, key=scores.__getitem__, default=here)
                if scores[top] <= scores[here]:
                    break
                here = top
        return [np.array(row) for row in sorted(scores, key=scores.__getitem__, reverse=True)[:TRIES]]

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
        members = self.population.ask()[comparison.pair]
        fast = self.population.tell(comparison.pair, *losses)
        self._note(comparison, outcome, fast == members[0])
        self.pair += 1
        if self.pair == self.pop_size // 2:
            self.last_summary = self._summarise()
            self.log = []
            self.generation, self.pair = self.generation + 1, 0
        return None if fast is None else "ab"[members.index(fast)]

    def _learn(self, comparison: Comparison, outcome: Outcome) -> tuple[float, float]:
        """Remember both losses; the winner is the sign of the paired difference, not of two loose means."""
        for architecture, loss in ((comparison.a, outcome.loss_a), (comparison.b, outcome.loss_b)):
            self.evaluated[tuple(self.space.choices(architecture).tolist())] = loss
        if not (math.isfinite(outcome.loss_a) and math.isfinite(outcome.loss_b)):
            self._learn_failure(comparison, outcome)
            return outcome.loss_a, outcome.loss_b
        if not (math.isfinite(outcome.difference) and math.isfinite(outcome.standard_error)):
            raise ValueError(f"pair {comparison.pair}: finite losses with {outcome}")
        if self.guided and comparison.a != comparison.b:
            level = min(outcome.loss_a, outcome.loss_b)
            numbers = (outcome.difference, outcome.standard_error, level)
            self.predictor.add(comparison.a, comparison.b, *numbers)
        return outcome.difference, 0.0

    def _learn_failure(self, comparison: Comparison, outcome: Outcome) -> None:
        """One loss is no number: to the predictor it lost by as much as any so far, give or take half of
        that."""
        level = outcome.loss_a if math.isfinite(outcome.loss_a) else outcome.loss_b
        worst = float(np.abs(self.predictor.differences).max(initial=0.0))
        if self.guided and math.isfinite(level) and worst > 0 and comparison.a != comparison.b:
            difference = -worst if math.isfinite(outcome.loss_a) else worst
            self.predictor.add(comparison.a, comparison.b, difference, 0.5 * worst, level)

    def _note(self, comparison: Comparison, outcome: Outcome | None, a_won: bool) -> None:
        entry = {"trained": float(outcome is not None), "audit": float(comparison.decided_by == "audit")}
        if comparison.decided_by == "audit" and comparison.probability is not None:
            entry["right"] = float((comparison.probability >= 0.5) == a_won)
        if outcome is not None:
            entry["loss_a"], entry["loss_b"] = outcome.loss_a, outcome.loss_b
        self.log.append(entry)

    # ---- results

    def architectures(self) -> list[Architecture]:
        """What the population decodes to now, by member."""
        return [self.space.decode(position) for position in self.population.positions]

    def ranking(self) -> list[Architecture]:
        """Everything trained, best first: by the predictor, or by the loss it had where `rank` is off."""
        finite = {row: loss for row, loss in self.evaluated.items() if math.isfinite(loss)}
        rows = sorted(finite, key=finite.__getitem__)
        found = [self.space.architecture(np.array(row)) for row in rows]
        if self.use_rank and len(self.predictor):
            return [found[index] for index in self.predictor.rank(found)]
        return found

    def best(self) -> Architecture | None:
        """The best of what was trained so far; None before the first finite loss."""
        return next(iter(self.ranking()), None)

    def finalists(self, count: int) -> list[Architecture]:
        """The `count` best of everything trained and of the last population, and the lowest trained loss.

        Best first; without `rank` only trained architectures, by loss. No architecture comes twice.
        """
        trained = self.ranking()
        pool = trained
        if self.use_rank and len(self.predictor):
            seen = set(self.evaluated)
            last = dict.fromkeys(self.architectures())
            pool = trained + [
                arch
                for arch in last
                if tuple(self.space.choices(arch).tolist()) not in seen
                and (self.accept is None or self.accept(arch))
            ]
            pool = [pool[index] for index in self.predictor.rank(pool)]
        chosen = pool[:count]
        finite = {row: loss for row, loss in self.evaluated.items() if math.isfinite(loss)}
        if finite:
            lowest = self.space.architecture(np.array(min(finite, key=finite.__getitem__)))
            if lowest not in chosen:
                chosen.append(lowest)
        return chosen

    def summary(self) -> dict[str, float]:
        """Numbers of the last finished generation; {} before. NaN where there is nothing to average.

        diversity: mean share of choices in which two members differ. trained: networks trained.
        audit_accuracy: how often the predictor, sure of a pair, was right.
        """
        return dict(self.last_summary)

    def _summarise(self) -> dict[str, float]:
        losses = [entry[key] for entry in self.log for key in ("loss_a", "loss_b") if key in entry]
        finite = [loss for loss in losses if math.isfinite(loss)]
        rights = [entry["right"] for entry in self.log if "right" in entry]
        rows = np.stack([self.space.read(position) for position in self.population.positions])
        differ = (rows[:, None] != rows[None]).mean(axis=2)
        return {
            "generation": float(self.generation),
            "diversity": float(differ.sum() / (self.pop_size * (self.pop_size - 1))),
            "trained": float(len(losses)),
            "comparisons": float(len(self.log)),
            "predicted_share": 1.0 - sum(entry["trained"] for entry in self.log) / len(self.log),
            "audits": sum(entry["audit"] for entry in self.log),
            "audit_accuracy": float(np.mean(rights)) if rights else math.nan,
            "mean_loss": float(np.mean(finite)) if finite else math.nan,
            "best_loss": min(finite, default=math.nan),
        }

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain types and NumPy arrays. Only between groups.

        Raises ValueError while a group is asked and not wholly told.
        """
        if self.group:
            raise ValueError(f"{len(self.group)} comparisons are not told yet: save after the whole group")
        rows = np.array(list(self.evaluated), dtype=np.int64).reshape(-1, self.space.positions)
        return {
            "generation": self.generation,
            "pair": self.pair,
            "population": self.population.state_dict(),
            "predictor": self.predictor.state_dict(),
            "evaluated": rows,
            "losses": np.array(list(self.evaluated.values()), dtype=np.float64),
            "log": [dict(entry) for entry in self.log],
            "summary": dict(self.last_summary),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; the search goes on exactly as it would have."""
        self.population.load_state_dict(state["population"])
        self.predictor.load_state_dict(state["predictor"])
        self.generation, self.pair = int(state["generation"]), int(state["pair"])
        rows = np.array(state["evaluated"], dtype=np.int64).reshape(-1, self.space.positions)
        losses = np.array(state["losses"], dtype=np.float64)
        self.evaluated = {tuple(row): float(loss) for row, loss in zip(rows.tolist(), losses, strict=True)}
        self.log = [dict(entry) for entry in state["log"]]
        self.last_summary = dict(state["summary"])
        self.group = []
