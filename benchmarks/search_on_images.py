"""Searches of equal cost on real images, their winners trained from scratch in the same way and tested.

    python benchmarks/search_on_images.py --out runs/compared --set digits --pop_size 10 --trainings 40
    torchrun --standalone --nproc_per_node 2 benchmarks/search_on_images.py --out runs/compared --json a.json

Every flag of train_search.py may be given. Each strategy has as many candidate trainings as the others: the
predictor of `ours` decides pairs without training, so that search goes on for more generations. Finalists and
winners, too, train equally long. Each search is a run folder in --out, so a comparison that was stopped goes
on when it is started again, and strategies or seeds may be shared out to several commands.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import torch
import tyro
from searches import open_or_begin, random_cells, test_errors

import genotypes
from common import distributed
from common.flags import check_range, parse, run_script
from genotypes import Genotype
from images import sets
from model import count
from search.finalists import train_finalists, winner
from search.run import SearchRun
from train_search import Config as SearchConfig
from utils import derive_seed, write_atomically

SET_HERE = "seed generations strategy rank screen decide save resume record".split()  # noqa: SIM905
NO_PREDICTOR = {"rank": False, "screen": False, "decide": False}
STRATEGIES: dict[str, dict[str, Any]] = {  # what differs from the flags
    "ours": {},
    "slow_fast": NO_PREDICTOR,  # as published
    "random": NO_PREDICTOR | {"strategy": "random"},
    "random_alone": NO_PREDICTOR | {"strategy": "random", "estimate": "alone"},
    "alone": NO_PREDICTOR | {"strategy": "random"},  # no weight set: see `cells_to_train`
}
BASELINE = "slow_fast"
COSTS = ("trainings", "epochs_of_finalists")


@dataclass(frozen=True)
class Config:
    """Compare searches of equal cost."""

    out: str
    """folder of the searches; what it holds already is not done again"""
    search: Annotated[SearchConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SearchConfig)
    """the flags of train_search.py"""
    strategies: tuple[str, ...] = ("ours", "slow_fast", "random")
    """ours, slow_fast (as published), random, alone (random cells trained from scratch, no weight set)"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one search of each strategy for each; a seed has its own images, split and start values"""
    trainings: int = 200
    """candidate trainings, each an epoch, of a search"""
    repeats: int = 2
    """trainings of each winner for the test, from other start values than the finalists'"""
    test_images: int | None = None
    """use only so many of the test images"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        self.search.check()
        check_range(self, "trainings", self.search.pop_size)
        check_range(self, "repeats", 1)
        if self.trainings % 2:
            raise ValueError(f"--trainings {self.trainings}: candidates train in pairs, so it must be even")
        if self.search.pairs_per_sync > 1:
            raise ValueError(
                f"--pairs_per_sync {self.search.pairs_per_sync}: must be 1, or costs would differ"
            )
        check_range(self, "test_images", 2)
        for name in self.strategies:
            if name not in STRATEGIES:
                raise ValueError(f"--strategies {name}: allowed are {', '.join(STRATEGIES)}")
        if not self.strategies or not self.seeds or min(self.seeds) < 0:
            raise ValueError("--strategies, --seeds: at least one of each, seeds from 0")
        for name in SET_HERE:
            if getattr(self.search, name) != getattr(SearchConfig, name):
                raise ValueError(f"--{name}: has no effect here, where the comparison sets it")
        evidence.check_output(self.json)

    def settings(self, strategy: str, seed: int) -> SearchConfig:
        """The settings of one search. Its generations are more than it can need: its trainings end it."""
        return dataclasses.replace(self.search, seed=seed, generations=self.trainings, **STRATEGIES[strategy])


def trained_candidates(run: SearchRun) -> int:
    """How many candidates this search has trained."""
    return sum(row["trained"] for row in run.record.history)


def search_until(run: SearchRun, limit: int) -> None:
    """Search until so many candidates are trained; the schedules follow what is spent."""
    while (spent := trained_candidates(run)) < limit and (group := run.search.ask()):
        run.compare_group(group, progress=spent / limit)
        run.save()


def cells_to_train(config: Config, strategy: str, run: SearchRun) -> list[Genotype]:
    """The finalists, equally many for each strategy.

    Without a weight set (`alone`) all are random, and the epochs of the search train more of them.
    """
    count = run.config.finalists
    if strategy == "alone":
        more = config.trainings // run.config.final_epochs
        return random_cells(run.config, count + more, run.config.seed, "alone")
    cells = run.search.finalists(count)
    # The cell of lowest loss comes last, as one more, where the predictor did not choose it.
    return cells if len(cells) <= count else [*cells[: count - 1], cells[-1]]


def result_of(config: Config, strategy: str, seed: int, device: torch.device) -> dict[str, Any]:
    """One search, its winner and the winner's test errors; read where it is done already."""
    path = Path(config.out) / f"{strategy}-{seed}"
    run, test = open_or_begin(config.settings(strategy, seed), path, device, config.test_images)
    done = path / "result.json"
    asked = {"repeats": config.repeats, "test_images": len(test)}
    try:
        if done.exists():
            result: dict[str, Any] = json.loads(done.read_text())
            if {name: result[name] for name in asked} == asked:
                return result
        result = {"strategy": strategy, "seed": seed, **asked, **search_and_test(config, strategy, run, test)}
        if distributed.is_main():
            write_atomically(done, json.dumps(result, indent=1) + "\n")
    finally:
        run.folder.unlock()
    return result


def search_and_test(config: Config, strategy: str, run: SearchRun, test: sets.ImageSet) -> dict[str, Any]:
    """Go on with a search to its end, choose the winner, train it again from scratch and test it."""
    seed = run.config.seed
    log = run.folder.start_log()
    log.info(f"{run.folder.path}: {trained_candidates(run)} of {config.trainings} candidates are trained")
    if strategy != "alone":
        search_until(run, config.trainings)
    train_finalists(run, cells_to_train(config, strategy, run))
    best = winner(run.record.finalists)
    errors = []
    for repeat in range(config.repeats):
        task = run.task._replace(seed=derive_seed(seed, "test", repeat))
        errors += test_errors(task, test, [best.genotype])
    log.info(f"test errors {', '.join(f'{error:.2%}' for error in errors)}")
    return {
        "test_error": statistics.mean(errors),
        "test_errors": errors,
        "validation_loss": best.trained.loss,
        "validation_error": best.trained.error,
        **describe(run, best.genotype),
    }


def describe(run: SearchRun, cell: Genotype) -> dict[str, Any]:
    """What a search cost and found."""
    history = run.record.history
    decisions = dict.fromkeys(("training", "audit", "predictor"), 0)
    for row in history:
        decisions[row["decided_by"]] += 1
    return {
        "genotype": genotypes.to_dict(cell),
        "trainings": trained_candidates(run),
        "epochs_of_finalists": len(run.record.finalists) * run.config.final_epochs,
        "generations": run.search.generation,
        "decided_by": decisions,
        "finalist_errors": [finalist.trained.error for finalist in run.record.finalists],
        "parameters": count(run.task.weight_set("size").network(cell))[0],
    }


def summarise(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Test errors of each strategy over the seeds, and their differences to the published search's."""
    summary: dict[str, Any] = {}
    for name, runs in results.items():
        errors = [run["test_error"] for run in runs]
        summary[name] = {"test_error": evidence.spread(errors)}
        if name != BASELINE and BASELINE in results:
            pairs = zip(errors, (run["test_error"] for run in results[BASELINE]), strict=True)
            summary[name][f"difference_to_{BASELINE}"] = evidence.spread(
                [error - other for error, other in pairs]
            )
    return summary


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each strategy; errors in percent, costs in epochs of a search."""
    columns = ("test error", "sd", "n", f"minus {BASELINE}", "sd", "trainings", "finalists", "predicted")
    lines = ["  ".join(("strategy", *columns))]
    for name, entry in summarise(results).items():
        runs, error = results[name], entry["test_error"]
        minus = entry.get(f"difference_to_{BASELINE}", {"mean": None, "sd": None})
        figures = [_percent(x) for x in (error["mean"], error["sd"])] + [str(error["n"])]
        figures += [_percent(minus["mean"], sign="+"), _percent(minus["sd"])]
        figures += [f"{statistics.mean(run[key] for run in runs):.1f}" for key in COSTS]
        pairs = sum(sum(run["decided_by"].values()) for run in runs)
        figures.append(f"{sum(run['decided_by']['predictor'] for run in runs) / max(1, pairs):.0%}")
        placed = [f"{text:>{len(title)}}" for text, title in zip(figures, columns, strict=True)]
        lines.append("  ".join([f"{name:{len('strategy')}}", *placed]))
    return "\n".join(lines)


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def main(config: Config) -> None:
    device = distributed.init(config.search.device)
    torch.set_num_threads(config.search.threads)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config.strategies}
    for seed in config.seeds:
        for name in config.strategies:
            results[name].append(result_of(config, name, seed, device))
    if distributed.is_main():
        print(table(results))
        found = {"strategies": summarise(results), "searches": results}
        evidence.write(config.json, evidence.provenance(asdict(config)) | found)
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
