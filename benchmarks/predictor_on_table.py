"""How well the paired predictor ranks architectures it has never seen, and how honest its probabilities are.

    python benchmarks/predictor_on_table.py --table nasbench201_cifar10.csv --json predictor.json
    python benchmarks/predictor_on_table.py --surrogate nasbench301_surrogate.onnx \
        --encoding nasbench301_encoding.json --labelled 50 100 200 400 --json predictor.json

`--labelled n`: n architectures with known losses; the predictor is told how each compares with the median
one, from which every pair among them follows. `--pairs n`: n comparisons of 2n different architectures, told
as a search tells them (the difference, and the lower loss of each). `differences`: the same without the
losses, as if nothing could be compared between comparisons. Calibration is measured on random pairs of unseen
architectures.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import draw
import evidence
import numpy as np
from scipy.stats import kendalltau
from tables import Problem, Source, open_problem, opened, start

from common.flags import check_range, parse, run_script
from encoding import Architecture, Features
from pair_predictor import PairPredictor
from utils import write_atomically

BINS = 10  # of predicted probabilities, for the calibration error
SURE = 0.95  # a confident decision


@dataclass(frozen=True)
class Config(Source):
    """Kendall's tau and calibration of the paired predictor."""

    labelled: tuple[int, ...] = (39, 78, 156, 469)
    """numbers of labelled architectures"""
    pairs: tuple[int, ...] = (20, 40, 80, 160, 320)
    """numbers of disjoint pair outcomes"""
    without: tuple[str, ...] = ()
    """blocks of features that are left out, one after the other; "all" leaves out all but the edges"""
    unseen: int = 2000
    """architectures to be ranked (as many as there are, in a small table)"""
    seeds: int = 10
    """draws of architectures"""

    def check(self) -> None:
        """ValueError names the flag, its value and what is allowed."""
        super().check()
        check_range(self, "seeds", 1)
        check_range(self, "unseen", 2)
        for name, low in (("labelled", 4), ("pairs", 3)):
            for number in getattr(self, name):
                if number < low:
                    raise ValueError(f"--{name} {number}: must be at least {low}")


def block_names(problem: Problem) -> list[str]:
    """Every block of features that the predictor may see of this space, under any reading."""
    readings = [Features(problem.space, reading) for reading in problem.space.readings]
    return list(dict.fromkeys(name for features in readings for name in features.names()))


def train(problem: Problem, known: list[Architecture], how: str, without: tuple[str, ...]) -> PairPredictor:
    """A predictor that was told comparisons of `known`, in one of the three ways."""
    losses = [problem.loss(architecture) for architecture in known]
    if how == "labelled":
        middle = int(np.argsort(losses)[len(losses) // 2])
        met = [(middle, other) for other in range(len(known)) if other != middle]
    else:
        met = [(first, first + 1) for first in range(0, len(known), 2)]
    predictor = PairPredictor(space=problem.space, without=without)
    for a, b in met:
        level = 0.0 if how == "differences" else min(losses[a], losses[b])
        predictor.add(known[a], known[b], losses[a] - losses[b], 0.0, level)
    return predictor


def measure_one(task: tuple[str, tuple[str, ...], int, int, int]) -> dict[str, Any]:
    """Tau, and probabilities with outcomes of random unseen pairs, for one draw."""
    how, without, number, unseen, seed = task
    problem = opened()
    rng = np.random.default_rng(seed)
    count = number if how == "labelled" else 2 * number
    drawn: dict[Architecture, None] = {}
    while len(drawn) < min(count + unseen, problem.size):
        architecture = problem.space.decode(problem.space.sample(rng))
        if problem.holds(architecture):
            drawn[architecture] = None
    known, rest = list(drawn)[:count], list(drawn)[count:]
    predictor = train(problem, known, how, without)
    truth = [problem.accuracy(architecture) for architecture in rest]
    tau = float(kendalltau(predictor.quality(rest), truth).statistic)
    a, b = rest[: len(rest) // 2], rest[len(rest) // 2 : len(rest) // 2 * 2]
    claims = predictor.probabilities(a, b)
    gaps = np.array([problem.loss(second) - problem.loss(first) for first, second in zip(a, b, strict=True)])
    kept = gaps != 0  # equal losses have no winner
    return {"tau": tau, "claims": claims[kept].tolist(), "wins": (gaps[kept] > 0).tolist()}


def calibration(claims: np.ndarray, wins: np.ndarray) -> dict[str, Any]:
    """Expected calibration error, the reliability curve, and what confident decisions are worth."""
    places = np.minimum((claims * BINS).astype(int), BINS - 1)
    curve = [
        [float(claims[places == k].mean()), float(wins[places == k].mean()), int((places == k).sum())]
        for k in range(BINS)
        if (places == k).any()
    ]
    error = sum(abs(claim - won) * size for claim, won, size in curve) / len(claims)
    sure = np.maximum(claims, 1 - claims) >= SURE
    right = float(((claims > 0.5) == wins)[sure].mean()) if sure.any() else None
    return {
        "expected_calibration_error": float(error),
        "accuracy": float(((claims > 0.5) == wins).mean()),
        "confident_share": float(sure.mean()),
        "confident_accuracy": right,
        "reliability": curve,
    }


def collect(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Tau over the draws, calibration of all their pairs together."""
    claims, wins = (np.concatenate([one[key] for one in found]) for key in ("claims", "wins"))
    return {"tau": evidence.spread([one["tau"] for one in found]), **calibration(claims, wins.astype(bool))}


def main(config: Config) -> None:
    """Measure every size in every way; print, write, draw."""
    problem = open_problem(config)
    if problem is None:
        return
    sizes = {"labelled": config.labelled, "pairs": config.pairs, "differences": config.pairs}
    names = block_names(problem)
    choices = {name: (name,) for name in names} | {"all": tuple(names)}
    for name in config.without:
        if name not in choices:
            raise ValueError(f"--without {name}: allowed are {', '.join(choices)}")
    needed = max([*config.labelled, *(2 * number for number in config.pairs)], default=0)
    if needed + 2 > problem.size:
        raise ValueError(f"--labelled, --pairs: {needed} architectures, but the table has {problem.size}")
    left_out = {"": ()} | {f" without {name}": choices[name] for name in config.without}
    kinds = [(how, suffix) for suffix in left_out for how in sizes]
    tasks = [
        (how, left_out[suffix], number, config.unseen, seed)
        for how, suffix in kinds
        for number in sizes[how]
        for seed in range(config.seeds)
    ]
    with ProcessPoolExecutor(config.processes, initializer=start, initargs=(config,)) as pool:
        finished = dict(zip(tasks, pool.map(measure_one, tasks), strict=True))
    results: dict[str, dict[str, Any]] = {}
    for how, suffix in kinds:
        results[how + suffix] = {}
        for number in sizes[how]:
            draws = [(how, left_out[suffix], number, config.unseen, seed) for seed in range(config.seeds)]
            results[how + suffix][str(number)] = result = collect([finished[task] for task in draws])
            sd = result["tau"]["sd"]
            print(
                f"{how + suffix:12} {number:5}: tau {result['tau']['mean']:.3f} "
                + ("" if sd is None else f"(sd {sd:.3f}), ")
                + f"calibration error {result['expected_calibration_error']:.3f}, sure of "
                f"{result['confident_share']:.0%}, of those right "
                + ("-" if result["confident_accuracy"] is None else f"{result['confident_accuracy']:.1%}")
            )
    if config.json is None:
        return
    record = {"table": problem.name, **results, **evidence.provenance(asdict(config))}
    write_atomically(config.json, json.dumps(record, indent=1) + "\n")
    write_atomically(Path(config.json).with_suffix(".png"), draw.draw([("predictor", record)], "png"))


if __name__ == "__main__":
    run_script(main, parse(Config))
