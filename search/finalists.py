"""The end of a search: finalists train from scratch, are compared on the validation half, and one wins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import genotypes
import visualize
from common import checkpoint, distributed
from common.words import Progress, counted, in_millions
from genotypes import AnyGenotype
from images import sets
from model import Network
from pictures import ancestry, report
from search.candidates import Job, Task, compare, train_all
from search.front import undominated
from search.limits import COUNTED, UNITS
from search.record import Finalist, baseline_in_words
from search.run import SearchRun
from training import card
from training.evaluation import Evaluation, evaluate
from training.schedule import cosine
from utils import write_atomically


def train_from_scratch(task: Task, cells: Sequence[AnyGenotype]) -> list[Finalist]:
    """Train each cell alone as the config's finalists, the learning rate falling to 0; no drop path.

    All cells see the same batches, and equal modules start from equal weights: only the cells differ.
    The cells are spread over the processes.
    """
    epochs, start = task.config.final_epochs, task.config.final_learning_rate
    schedule = [(cosine(epoch / epochs, start, 0.0), 0.0) for epoch in range(epochs)]
    jobs = [Job(cell, ("finalist",), schedule) for cell in cells]
    trained = train_all(task, task.weight_set("finalists"), jobs)
    return [Finalist(cell, result) for cell, result in zip(cells, trained, strict=True)]


def winner(finalists: Sequence[Finalist]) -> Finalist:
    """The finalist of lowest score. Raises ValueError where every training diverged."""
    finite = [finalist for finalist in finalists if finalist.trained.finite]
    if not finite:
        raise ValueError("no finalist's training converged: choose a lower --final_learning_rate")
    return min(finite, key=lambda finalist: finalist.score)


def trained_network(task: Task, finalist: Finalist) -> Network:
    """The finalist as a network with its trained weights."""
    weight_set = task.weight_set("finalists")
    weight_set.absorb(finalist.trained.weights)
    return weight_set.network(finalist.genotype)


def train_finalists(run: SearchRun, cells: Sequence[AnyGenotype]) -> None:
    """Train the cells that the record does not hold yet, with a checkpoint after each round of processes."""
    config, record, log = run.config, run.record, run.folder.log
    verb = "trains" if len(cells) == 1 else "train"
    epochs = counted(config.final_epochs, "epoch")
    log.info(f"{counted(len(cells), 'finalist')} {verb} from scratch for {epochs}")
    progress = Progress(len(cells), len(record.finalists))
    while waiting := cells[len(record.finalists) :]:
        record.finalists += train_from_scratch(run.task, waiting[: distributed.world_size()])
        run.save()
        trained = record.finalists[-1].trained
        log.info(
            f"finalist {len(record.finalists)}/{len(cells)}: validation loss {trained.loss:.4f}, "
            f"error {trained.error:.2%}, {progress.left(len(record.finalists))}"
        )


def finish(run: SearchRun, test: sets.ImageSet) -> None:
    """Train the finalists from scratch, choose one, test it, write it down and record it."""
    task = run.task
    cells = run.search.finalists(run.config.finalists)
    if not cells:
        raise ValueError("every candidate's training diverged: choose a lower --learning_rate")
    train_finalists(run, cells)
    best = winner(run.record.finalists)
    network = trained_network(task, best)
    tested = evaluate(network, task.clean(test.to(task.device)), task.precision)
    if distributed.is_main():
        write_winner(run, best, network, tested)
        record_winner(run)


def record_winner(run: SearchRun) -> None:
    """Record the winner under `--record`, if it is not, and say how to go on."""
    name = run.config.record
    if name and not is_recorded(run):
        genotypes.record(name, genotypes.lookup(run.folder.path))
        run.folder.log.info(f"recorded in genotypes.py as {name}")
    place = run.folder.path
    if str(place) in genotypes.names():
        place = place / "genotype.json"
    images = len(run.task.train) + len(run.task.validation)
    command = report.training_command(name or place, dataclasses.asdict(run.config), images)
    run.folder.log.info(f"go on with: {command}")


def is_recorded(run: SearchRun) -> bool:
    """Whether `--record NAME` names this run's winner already."""
    name, file = run.config.record, run.folder.path / "genotype.json"
    if name not in genotypes.names() or not file.is_file():
        return False
    return genotypes.lookup(name) == genotypes.lookup(file)


def check_recordable(run: SearchRun) -> None:
    """Raise ValueError where the winner could not be recorded under `--record`."""
    if run.config.record and distributed.is_main() and not is_recorded(run):
        genotypes.check_new_name(run.config.record)


def finished_before(run: SearchRun) -> bool:
    """Whether the run has its winner; if so it is named, and recorded if `--record` asks for it."""
    files = [run.folder.path / name for name in ("genotype.json", "report.html")]  # the last two written
    if not distributed.broadcast_object(all(file.is_file() for file in files)):
        return False
    if distributed.is_main():
        run.folder.log.info(f"finished already; winner: {genotypes.to_json(genotypes.lookup(files[0]))}")
        record_winner(run)
    return True


def write_winner(run: SearchRun, best: Finalist, network: Network, tested: Evaluation) -> None:
    """genotype.json, finalists.csv, front.csv, baseline.csv, model.pt and report.html."""
    folder, task, log = run.folder, run.task, run.folder.log
    images = {"set": run.config.set, "classes": task.train.classes, **task.statistics._asdict()}
    result = {
        "validation_loss": best.trained.loss,
        "validation_error": best.trained.error,
        "validation_images": len(task.validation),
        "test_loss": tested.loss,
        "test_error": tested.error,
        "test_images": len(tested.correct),
    }
    recipe = dataclasses.asdict(run.config)
    cell = genotypes.to_json(best.genotype)
    found = ancestry.description(run.record.history, cell, recipe)
    state = card.describe_network(network, images=images, recipe=recipe, result=result) | {"found": found}
    checkpoint.save(folder.path / "model.pt", state)
    rows = table(run, tested.error)
    folder.write_table("finalists.csv", rows)
    if run.search.front is not None:
        kept = front(run, rows)
        folder.write_table("front.csv", kept)
        how = f"take one as --arch '{folder.path}#NUMBER'"
        log.info(f"front: {counted(len(kept), 'cell')} in front.csv; {how}")
    folder.write_table("baseline.csv", run.record.baseline)
    write_atomically(folder.path / "genotype.json", cell + "\n")
    describe_winner(run, best, tested.error, found["origin"])
    try:
        log.info(f"  report: {visualize.write_report(folder.path)}")
    except (ValueError, OSError) as error:  # the search is done all the same
        log.warning(f"  no report: {error}; write it later with: visualize.py {folder.path}")


def describe_winner(run: SearchRun, best: Finalist, test_error: float, origin: str) -> None:
    """Log the winner: where it came from, how good it is, what it costs."""
    log, costs, cell = run.folder.log, run.costs, best.genotype
    parameters, multiply_adds = costs.full_size(cell)
    log.info(f"winner: {genotypes.to_json(cell)}")
    log.info(f"  where it came from: {origin} (of {run.config.generations} generations)")
    log.info(
        f"  trained from scratch: validation error {best.trained.error:.2%}, test error {test_error:.2%}"
    )
    if run.record.baseline:
        log.info(f"  {baseline_in_words(run.record.baseline, test_error)}")
    log.info(
        f"  at full size, {costs.full_size.C} channels and {costs.full_size.layers} cells: "
        f"{in_millions(parameters)} parameters, {in_millions(multiply_adds)} multiply-adds"
    )
    if costs.latency is not None:
        images = run.config.latency_batch_size
        log.info(f"  about {costs.latency(cell):.1f} ms on this machine for a batch of {images}")
    if costs.memory is not None:
        taken, images = costs.measures["memory"](cell), run.config.memory_batch_size
        log.info(f"  training it takes about {taken:.3g} GiB with {images} images a step")
    log.info(f"  peak memory of this process: {distributed.peak_memory(run.task.device) / 2**20:.0f} MiB")


def front(run: SearchRun, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of front.csv: the finalists that no other one beats in score and all costs, best score first."""
    finite = [row for row in rows if math.isfinite(row["loss"])]
    costs = [name for name in run.config.objectives if name != "error"]
    # The rows are in order of the scores.
    values = np.array([[row["rank"], *(row[name] for name in costs)] for row in finite], dtype=np.float64)
    kept = [row for row, stays in zip(finite, undominated(values), strict=True) if stays]
    columns = ("genotype", "score", "loss", "error", "training_loss", *UNITS)
    return [
        {"number": number, **{name: row[name] for name in columns if name in row}}
        for number, row in enumerate(kept, start=1)
    ]


def table(run: SearchRun, test_error: float) -> list[dict[str, Any]]:
    """Rows of finalists.csv in order of their scores; difference and standard error are those to the winner.

    `test_error` is the winner's: no other finalist sees the test images.
    """
    finalists, settings = run.record.finalists, dataclasses.asdict(run.config)
    best = winner(finalists)
    measured = {name: one for name, one in run.costs.measures.items() if name not in COUNTED}
    rows: list[dict[str, Any]] = []
    for finalist in sorted(finalists, key=lambda one: (not one.trained.finite, one.score)):
        outcome = compare(finalist.trained.losses, best.trained.losses)
        cell = genotypes.to_json(finalist.genotype)
        parameters, multiply_adds = run.costs.full_size(finalist.genotype)
        rows.append(
            {
                "rank": len(rows) + 1,
                "genotype": cell,
                "origin": ancestry.origin(run.record.history, cell, settings),
                "score": finalist.score,
                "loss": finalist.trained.loss,
                "error": finalist.trained.error,
                "training_loss": finalist.trained.training_loss,
                "difference": outcome.difference,
                "standard_error": outcome.standard_error,
                "test_error": test_error if finalist is best else "",
                "parameters": parameters,
                "multiply_adds": multiply_adds,
                **{name: measure(finalist.genotype) for name, measure in measured.items()},
                "winner": int(finalist is best),
            }
        )
    return rows
