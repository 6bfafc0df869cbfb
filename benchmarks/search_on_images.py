"""Searches of equal cost on real images, their winners trained from scratch in the same way and tested.

    python benchmarks/search_on_images.py --out runs/compared --set digits --pop_size 10 --budget 40
    torchrun --standalone --nproc_per_node 2 benchmarks/search_on_images.py --out runs/compared --json a.json

Every flag of train_search.py may be given. The candidates of each strategy train for as many epochs as those
of the others: the predictor of `ours` decides pairs without training, so that search goes on for more
generations. Finalists and winners, too, train equally long. Each search is a run folder in --out, so a
comparison that was stopped goes on when it is started again, and strategies or seeds may be shared out to
several commands.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import scipy.stats
import torch
import tyro
from baselines import BASELINES
from baselines import check as check_baseline
from estimates import gain, read
from searches import open_or_begin, random_cells, test_errors

import genotypes
from common import distributed
from common.flags import check_range, parse, run_script
from genotypes import AnyGenotype
from images import sets
from model import count
from search.finalists import train_finalists, winner
from search.record import Finalist
from search.run import SearchRun, open_search
from train_search import Config as SearchConfig
from utils import derive_seed, write_atomically

SET_HERE = "seed generations strategy rank screen decide save resume record baseline".split()  # noqa: SIM905
BOUNDS = "max_parameters max_multiply_adds max_latency max_memory objectives".split()  # noqa: SIM905
NO_PREDICTOR = {"rank": False, "screen": False, "decide": False}
ON_SET = {"estimate": "weight_set", "candidate_epochs": 1}
CHANCE = "chance"
STRATEGIES: dict[str, dict[str, Any]] = {  # what differs from the flags
    "ours": {},
    "ours_without_prior": {"prior": "none"},
    "slow_fast": NO_PREDICTOR | ON_SET,  # as published
    "slow_fast_same_estimate": NO_PREDICTOR,
    "random": NO_PREDICTOR | ON_SET | {"strategy": "random"},
    "random_same_estimate": NO_PREDICTOR | {"strategy": "random"},
    **dict.fromkeys(BASELINES, NO_PREDICTOR),
    "prior_only": {},
    CHANCE: NO_PREDICTOR,  # no search: as many random cells as a winner has trainings
}
UNBOUND = {*BASELINES, CHANCE}  # draw their cells without a look at BOUNDS
OURS = "ours"
COSTS = ("epochs_of_candidates", "epochs_of_finalists")


@dataclass(frozen=True)
class Config:
    """Compare searches of equal cost."""

    out: str
    """folder of the searches; what it holds already is not done again"""
    search: Annotated[SearchConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SearchConfig)
    """the flags of train_search.py"""
    strategies: tuple[str, ...] = ("ours", "slow_fast", "random")
    """ours; ours_without_prior; prior_only (the cells that its prior expects to be best train as finalists
    do); slow_fast (as published) and random (cells) with the published weight set;
    slow_fast_same_estimate, random_same_estimate, local, halving and largest (the random cells with most
    parameters) with the estimate of ours; finalists_only (random cells that train as finalists do); chance
    (random cells)"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one search of each strategy for each; a seed has its own images, split and start values"""
    budget: int = 200
    """epochs that the candidates of a search train; its finalists come on top"""
    repeats: int = 2
    """trainings of each winner for the test, from other start values than the finalists'"""
    test_images: int | None = None
    """use only so many of the test images"""
    table: str | None = None
    """trainings.csv of image_table.py in the same setting: of the gap between a random cell and the best of
    its random cells, the noise of training taken out, the share that each strategy closes"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        if self.table is not None and CHANCE not in self.strategies:
            raise ValueError(
                f"--table {self.table}: a gap is seen from a random cell; add --strategies chance"
            )
        self.search.check()
        check_range(self, "budget", self.search.pop_size * (self.search.candidate_epochs or 1))
        check_range(self, "repeats", 1)
        if self.search.pairs_per_sync > 1:
            raise ValueError(
                f"--pairs_per_sync {self.search.pairs_per_sync}: must be 1, or costs would differ"
            )
        check_range(self, "test_images", 2)
        for name in self.strategies:
            if name not in STRATEGIES:
                raise ValueError(f"--strategies {name}: allowed are {', '.join(STRATEGIES)}")
        for flag, values in (("strategies", self.strategies), ("seeds", self.seeds)):
            words = " ".join(map(str, values))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{flag} {words}: must be one or more, each once")
        if not (min(self.seeds) >= 0 and max(self.seeds) < 2**63):
            raise ValueError(f"--seeds {words}: must be from 0 to 2^63 - 1")
        for name in SET_HERE:
            if getattr(self.search, name) != getattr(SearchConfig, name):
                raise ValueError(f"--{name}: has no effect here, where the comparison sets it")
        for name in BOUNDS:
            value = getattr(self.search, name)
            if value != getattr(SearchConfig, name) and (unbound := UNBOUND & set(self.strategies)):
                given = " ".join(value) if isinstance(value, tuple) else value
                raise ValueError(f"--{name} {given}: {', '.join(sorted(unbound))} would not keep to it")
        evidence.check_output(self.json)

    def settings(self, strategy: str, seed: int) -> SearchConfig:
        """The settings of one search. Its generations are more than it can need: its budget ends it."""
        return dataclasses.replace(self.search, seed=seed, generations=self.budget, **STRATEGIES[strategy])


def check_strategies(config: Config, device: torch.device) -> None:
    """ValueError where a strategy would find, after hours of others, that it lacks what it needs."""
    for name in filter(BASELINES.__contains__, config.strategies):  # in one order in all processes
        run, _ = open_search(config.settings(name, config.seeds[0]), Path(config.out) / name, device)
        check_baseline(name, run)


def spent(run: SearchRun) -> int:
    """Epochs that the candidates of this search have trained."""
    return sum(row["trained"] for row in run.record.history) * run.config.candidate_epochs


def search_until(run: SearchRun, budget: int) -> None:
    """Search until so many epochs are spent; the schedules follow what is spent."""
    while (epochs := spent(run)) < budget and (group := run.ask()):
        run.compare_group(group, progress=epochs / budget)
        run.save()


def search_with(strategy: str, run: SearchRun, budget: int) -> tuple[list[AnyGenotype], int]:
    """The finalists, equally many for each strategy, and the epochs that their search took."""
    if strategy in BASELINES:
        return BASELINES[strategy](run, budget)
    search_until(run, budget)
    count = run.config.finalists
    cells = run.search.finalists(count)
    # The cell of lowest loss comes last, as one more, where the predictor did not choose it.
    return cells if len(cells) <= count else [*cells[: count - 1], cells[-1]], spent(run)


def result_of(config: Config, strategy: str, seed: int, device: torch.device) -> dict[str, Any]:
    """One search, its winner and the winner's test errors; read where it is done already."""
    path = Path(config.out) / f"{strategy}-{seed}"
    run, test = open_or_begin(config.settings(strategy, seed), path, device, config.test_images)
    done = path / "result.json"
    asked = {"repeats": config.repeats, "test_images": len(test)}
    try:
        if (known := kept_result(done, asked)) is not None:
            return known
        result = {"strategy": strategy, "seed": seed, **asked, **search_and_test(config, strategy, run, test)}
        if distributed.is_main():
            write_atomically(done, json.dumps(result, indent=1) + "\n")
    finally:
        run.folder.unlock()
    return result


def kept_result(path: Path, asked: dict[str, int]) -> dict[str, Any] | None:
    """What a search found earlier; None where it has not ended, or was asked for something else.

    ValueError where the file is damaged.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return result if {name: result[name] for name in asked} == asked else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path}: no result of a search; delete it, and it is made again") from None


def search_and_test(config: Config, strategy: str, run: SearchRun, test: sets.ImageSet) -> dict[str, Any]:
    """Go on with a search to its end, choose the winner, train it again from scratch and test it."""
    seed = run.config.seed
    log = run.folder.start_log()
    log.info(f"{run.folder.path}: {spent(run)} of {config.budget} epochs are trained")
    cells, found = random_cells(run.config, config.repeats, seed, "chance"), {}
    if strategy != CHANCE:
        finalists, epochs = search_with(strategy, run, config.budget)
        train_finalists(run, finalists)
        best = winner(run.record.finalists)
        cells, found = [best.genotype] * config.repeats, describe(run, best, epochs)
    errors = []
    for repeat, cell in enumerate(cells):
        task = run.task._replace(seed=derive_seed(seed, "test", repeat))
        errors += test_errors(task, test, [cell])
    log.info(f"test errors {', '.join(f'{error:.2%}' for error in errors)}")
    return {"test_error": statistics.mean(errors), "test_errors": errors, **found}


def describe(run: SearchRun, best: Finalist, epochs: int) -> dict[str, Any]:
    """What a search cost, in epochs of all training images and in images, and what it found."""
    decisions = dict.fromkeys(("training", "audit", "predictor"), 0)
    for row in run.record.history:
        decisions[row["decided_by"]] += 1
    finalists = len(run.record.finalists) * run.config.final_epochs
    return {
        "genotype": genotypes.to_dict(best.genotype),
        "validation_loss": best.trained.loss,
        "validation_error": best.trained.error,
        "epochs_of_candidates": epochs,
        "epochs_of_finalists": finalists,
        "images_trained_on": (epochs + finalists) * len(run.task.train),
        "generations": run.search.generation,
        "decided_by": decisions,
        "finalist_errors": [finalist.trained.error for finalist in run.record.finalists],
        "parameters": count(run.task.weight_set("size").network(best.genotype))[0],
    }


def difference(errors: list[float], others: list[float]) -> dict[str, Any]:
    """Paired differences, seed by seed, and the 95% interval of their mean (Student's t; None for one)."""
    found = evidence.spread([error - other for error, other in zip(errors, others, strict=True)])
    if found["n"] < 2:
        return found | {"interval": None}
    half = scipy.stats.t.ppf(0.975, found["n"] - 1) * found["sd"] / math.sqrt(found["n"])
    return found | {"interval": [found["mean"] - half, found["mean"] + half]}


def summarise(results: dict[str, list[dict[str, Any]]], gap: float | None = None) -> dict[str, Any]:
    """Test errors of each strategy over the seeds, and how much higher they are than those of ours.

    With a `gap`, by how much the best cell of a table is better than a random one, the share that is closed;
    its interval takes the gap as known.
    """
    errors = {name: [run["test_error"] for run in runs] for name, runs in results.items()}
    summary: dict[str, Any] = {name: {"test_error": evidence.spread(errors[name])} for name in results}
    for name in results.keys() - {OURS} if OURS in results else ():
        summary[name][f"difference_to_{OURS}"] = difference(errors[name], errors[OURS])
    if gap is not None:
        for name in results.keys() - {CHANCE}:
            closed = difference(errors[CHANCE], errors[name])
            summary[name]["share_of_gap"] = closed["mean"] / gap
            ends = closed["interval"]
            summary[name]["share_of_gap_interval"] = None if ends is None else [end / gap for end in ends]
    return summary


def table(results: dict[str, list[dict[str, Any]]], gap: float | None = None) -> str:
    """A line for each strategy; errors and shares in percent, costs in epochs of a search."""
    columns = (
        "test error",
        "sd",
        "n",
        f"minus {OURS}",
        "95% interval   ",
        "of the gap",
        "candidates",
        "finalists",
    )
    width = max(map(len, ("strategy", *results)))
    lines = ["  ".join((f"{'strategy':{width}}", *columns))]
    for name, entry in summarise(results, gap).items():
        error, minus = entry["test_error"], entry.get(f"difference_to_{OURS}", {})
        figures = [_percent(error["mean"]), _percent(error["sd"]), str(error["n"])]
        figures += [_percent(minus.get("mean"), sign="+")]
        figures += [" to ".join(_percent(end, sign="+") for end in minus.get("interval") or [None])]
        figures += [_percent(entry.get("share_of_gap"))]
        figures += [f"{statistics.mean(run.get(key, 0) for run in results[name]):.1f}" for key in COSTS]
        placed = [f"{text:>{len(title)}}" for text, title in zip(figures, columns, strict=True)]
        lines.append("  ".join([f"{name:{width}}", *placed]))
    return "\n".join(lines)


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def main(config: Config) -> None:
    device = distributed.init(config.search.device)
    torch.set_num_threads(config.search.threads)
    gap = None
    if config.table is not None:
        gap = gain(read(config.table, True).columns["accuracy"])["best_of"]["all"] / 100
    check_strategies(config, device)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config.strategies}
    for seed in config.seeds:
        for name in config.strategies:
            results[name].append(result_of(config, name, seed, device))
    if distributed.is_main():
        print(table(results, gap))
        found = {"strategies": summarise(results, gap), "gap": gap, "searches": results}
        evidence.write(config.json, evidence.provenance(asdict(config)) | found)
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
