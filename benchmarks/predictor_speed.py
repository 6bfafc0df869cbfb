"""How long the paired predictor takes: to learn from all comparisons, from a tenth more, from one more; and a
whole search without trainings.

    python benchmarks/predictor_speed.py --json predictor_speed.json
    python benchmarks/predictor_speed.py --against ../pairnas-before --json predictor_speed.json

Losses are additive in the choices of a cell, with noise. Seconds are those of the process on its core, which
depend little on what else the machine does. `--against` names another copy of the project, measured by turns
with this one, each time in a fresh process; the ratio is that of both in the same round.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import threadpoolctl

from common.flags import check_range, parse, run_script

NOISE = 0.3


@dataclass(frozen=True)
class Config:
    """Time the paired predictor."""

    comparisons: tuple[int, ...] = (100, 500, 1000)
    """learning from so many comparisons"""
    searches: tuple[int, ...] = (100, 500)
    """searches of so many comparisons"""
    against: str | None = None
    """another copy of the project, to compare with"""
    repeats: int = 3
    """rounds"""
    json: str | None = None
    """write the result here"""

    def check(self) -> None:
        """ValueError names the flag, its value and what is allowed."""
        check_range(self, "repeats", 1)
        for name in ("comparisons", "searches"):
            for number in getattr(self, name):
                if number < 3:
                    raise ValueError(f"--{name} {number}: must be at least 3")
        if self.against is not None and not (Path(self.against) / "pair_predictor.py").is_file():
            raise ValueError(f"--against {self.against}: no copy of the project (no pair_predictor.py in it)")
        evidence.check_output(self.json)


def use(root: str) -> None:
    """Prepare a process: the modules of the copy in `root`, one thread for the linear algebra."""
    sys.path.insert(0, root)
    import pair_predictor  # noqa: F401  # SciPy's library too is limited only once it is loaded

    threadpoolctl.threadpool_limits(1)


def seconds(task: tuple[str, int]) -> float:
    """CPU seconds of a "fit", a "refit", one "more" or a "search" with so many comparisons."""
    from encoding import CellSpace

    what, number = task
    space, rng = CellSpace(), np.random.default_rng(0)
    weights = rng.normal(size=space.features(space.read(space.sample(rng))).shape[1])

    def compare(a: Any, b: Any) -> tuple[float, float, float]:
        losses = [float(space.features(space.choices(one))[0] @ weights) for one in (a, b)]
        return losses[0], losses[1], losses[0] - losses[1] + NOISE * float(rng.normal())

    if what == "search":
        return _search(space, number, compare)
    before = {"fit": 0, "refit": number * 10 // 11, "more": number - 1}[what]
    return _learn(space, number, before, rng, compare)


def _learn(space: Any, number: int, before: int, rng: np.random.Generator, compare: Any) -> float:
    """Of a question after so many comparisons, when there was one `before` the last of them."""
    from pair_predictor import PairPredictor

    predictor = PairPredictor(space=space)
    for place in range(number):
        if place and place == before:
            predictor.posterior()
        a, b = (space.decode(space.sample(rng)) for _ in range(2))
        loss_a, loss_b, difference = compare(a, b)
        predictor.add(a, b, difference, NOISE, min(loss_a, loss_b))
    begin = time.process_time()
    predictor.posterior()
    return time.process_time() - begin


def _search(space: Any, number: int, compare: Any) -> float:
    from search.paired_search import Outcome, PairedSearch, Settings

    begin = time.process_time()
    search = PairedSearch(space=space, settings=Settings(generations=10**9, decide=False))
    for _ in range(number):
        (comparison,) = search.ask()
        if comparison.decided_by == "predictor":
            search.tell(comparison, None)
            continue
        loss_a, loss_b, difference = compare(comparison.a, comparison.b)
        search.tell(comparison, Outcome(loss_a, loss_b, difference, NOISE))
    return time.process_time() - begin


def measure(root: Path, task: tuple[str, int]) -> float:
    """`seconds` in a fresh process with the copy of the project in `root`."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=use, initargs=(str(root),)) as pool:
        return pool.submit(seconds, task).result()


def main(config: Config) -> None:
    """Measure by turns; print, write."""
    roots = {"this": evidence.ROOT}
    if config.against is not None:
        roots["other"] = Path(config.against).resolve()
    tasks = [(what, number) for what in ("fit", "refit", "more") for number in config.comparisons]
    tasks += [("search", number) for number in config.searches]
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        rounds = [{name: measure(root, task) for name, root in roots.items()} for _ in range(config.repeats)]
        entry: dict[str, Any] = {name: evidence.spread([one[name] for one in rounds]) for name in roots}
        line = f"{task[0]:8}{task[1]:6}: {entry['this']['mean']:8.3f} s"
        if "other" in roots:
            ratio = statistics.median(one["other"] / one["this"] for one in rounds)
            entry["ratio"] = ratio
            line += f"; other {entry['other']['mean']:8.3f} s, {ratio:.1f} times as long"
        found[f"{task[0]} {task[1]}"] = entry
        print(line, flush=True)
    evidence.write(config.json, {"seconds": found, **evidence.provenance(asdict(config))})


if __name__ == "__main__":
    run_script(main, parse(Config))
