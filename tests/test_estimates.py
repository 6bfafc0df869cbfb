"""estimates.py: candidates that train alone are known after one training, and their losses compare."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY, Program, one_line, results, rows
from test_candidates import digits_task

from common import checkpoint
from common.run_folder import read_settings
from genotypes import DARTS, PDARTS, PC_DARTS_cifar, RelativeNAS
from search.candidates import Job, train_network
from search.estimates import Alone, SharedWeights, decided
from search.paired_search import Comparison
from train_search import Config as SearchConfig

ALONE = "--estimate alone --candidate_epochs 2"


def pair(number: int, a, b, generation: int = 0) -> Comparison:
    return Comparison(generation, number, a, b, "training", None)


def test_a_cell_trains_once_and_its_losses_stay() -> None:
    estimate = Alone(digits_task(estimate="alone", candidate_epochs=2))
    first = pair(0, DARTS, PDARTS)
    assert estimate.costs([first]) == {0: 2}
    a, b = estimate.measure([first], 0.0)[0]
    assert len(a) == len(b) == estimate.task.steps == 2  # of the second epoch: 80 images in batches of 40
    assert a.isfinite().all()
    job = Job(DARTS, ("alone",), estimate.schedule(0.0))
    _, steps = train_network(estimate.task, estimate.task.weight_set("alone"), job)
    assert torch.equal(a, steps[2:])
    assert not torch.equal(a, b)
    again = pair(3, RelativeNAS, DARTS, generation=7)
    assert estimate.costs([again]) == {3: 1}
    assert estimate.costs([again, pair(4, RelativeNAS, PC_DARTS_cifar)]) == {3: 1, 4: 1}, "each trains once"
    assert torch.equal(estimate.measure([again], 0.9)[3][1], a), "whenever a cell is met"
    assert estimate.costs([pair(0, DARTS, DARTS)]) == {0: 0}


def test_losses_do_not_depend_on_what_trained_before() -> None:
    def losses(*cells):
        estimate = Alone(digits_task(estimate="alone", candidate_epochs=1))
        return {cell: estimate.measure([pair(0, cell, cell)], 0.0)[0][0] for cell in cells}

    one, other = losses(DARTS, PDARTS), losses(PDARTS, DARTS)
    assert all(torch.equal(one[cell], other[cell]) for cell in one)


def test_a_diverging_cell_is_no_finite_loss_and_its_state_is_kept() -> None:
    estimate = Alone(digits_task(estimate="alone", candidate_epochs=2, learning_rate=1e30))
    found = estimate.measure([pair(0, DARTS, PDARTS)], 0.0)[0]
    assert not any(math.isfinite(losses.mean()) for losses in found)
    later = Alone(estimate.task)
    later.load_state_dict(estimate.state_dict())
    assert later.costs([pair(0, DARTS, PDARTS)]) == {0: 0}


def test_shared_weights_train_both_of_every_pair() -> None:
    estimate = SharedWeights(digits_task())
    assert estimate.costs([pair(0, DARTS, DARTS)]) == {0: 2}


def test_a_search_on_shared_weights_tells_its_predictor_how_old_they_were(program: Program) -> None:
    folder = program.folder / "aged"
    program.search("--save", "aged")
    state = checkpoint.load(folder / "checkpoint.pt", "search")
    ages = state["search"]["predictor"]["ages"]
    assert (ages[0] == 0).all(), "nothing had trained before the first pair"
    assert (ages[1:] > 0).any()
    assert ((ages >= 0) & (ages < 1)).all()


@pytest.mark.parametrize(
    ("images", "given", "came"),
    [
        (5000, ("auto", None), ("alone", 4)),
        (5001, ("auto", None), ("weight_set", 1)),
        (100, ("auto", 7), ("alone", 7)),
        (100, ("weight_set", None), ("weight_set", 1)),
        (50_000, ("alone", None), ("alone", 4)),
    ],
)
def test_few_images_let_candidates_train_alone(images, given, came) -> None:
    config = decided(SearchConfig(estimate=given[0], candidate_epochs=given[1]), images)
    assert (config.estimate, config.candidate_epochs) == came


def test_epochs_without_effect_are_refused_once_the_images_are_counted() -> None:
    with pytest.raises(ValueError, match="--candidate_epochs 3: no effect without --estimate alone"):
        decided(SearchConfig(candidate_epochs=3), 25_000)


def test_a_run_says_what_it_came_to_and_older_settings_mean_the_weight_set(program: Program) -> None:
    flags = [flag for flag in TINY if flag not in ("--estimate", "weight_set")]
    code, _, err = program.run(*flags, "--generations", 1, "--save", "by_itself")
    assert code == 0, err
    file = program.folder / "by_itself" / "config.json"
    settings = json.loads(file.read_text())
    assert (settings["estimate"], settings["candidate_epochs"]) == ("alone", 4)
    assert "candidates train alone, for 4 epochs" in (file.parent / "log.txt").read_text()
    older = {name: value for name, value in settings.items() if name not in ("estimate", "candidate_epochs")}
    file.write_text(json.dumps(older))
    read = read_settings(file.parent, SearchConfig)
    assert (read.estimate, read.candidate_epochs) == ("weight_set", 1)


@pytest.fixture(scope="module")
def alone(program: Program) -> Path:
    program.search(*ALONE.split(), "--save", "lone")
    return program.folder / "lone"


def test_a_search_of_lone_candidates_trains_no_cell_twice(alone: Path) -> None:
    history = rows(alone / "history.csv")
    cells = {row[f"genotype_{side}"] for row in history if row["loss_a"] for side in "ab"}
    assert sum(int(row["trained"]) for row in history) == len(cells)
    generations = rows(alone / "generations.csv")
    assert sum(int(row["trained"]) for row in generations) == len(cells)
    losses = {}
    for row in history:
        for side in "ab":
            if row["loss_a"]:
                assert losses.setdefault(row[f"genotype_{side}"], row[f"loss_{side}"]) == row[f"loss_{side}"]


def test_killed_and_resumed_it_gives_the_same(program: Program, alone: Path) -> None:
    run = program.folder / "killed_alone"
    flags: list[object] = [*TINY, *ALONE.split(), "--save", run]
    assert program.start(*flags, die_at_checkpoint=3).wait()[0] == -signal.SIGKILL
    code, _, err = program.run("--resume", run)
    assert code == 0, err
    assert results(run) == results(alone)


def test_two_processes_find_what_one_finds(program: Program, alone: Path) -> None:
    run = program.folder / "alone_in_two"
    code, _, err = program.run_two(*TINY, *ALONE.split(), "--save", run)
    assert code == 0, err
    assert results(run) == results(alone)


def test_searches_that_know_no_other_estimate_go_on_with_the_weight_set(program: Program) -> None:
    folder = program.folder / "old"
    assert program.start(*TINY, "--save", folder, die_at_checkpoint=3).wait()[0] == -signal.SIGKILL
    state = checkpoint.load(folder / "checkpoint.pt", "search")
    for name in ("estimate", "candidate_epochs"):
        del state["settings"][name]
    for row in state["history"]:
        del row["trained"]
    checkpoint.save(folder / "checkpoint.pt", state)
    code, _, err = program.run("--resume", folder)
    assert code == 0, err
    trained = [row["trained"] for row in rows(folder / "history.csv")]
    assert set(trained) <= {"0", "2"}
    assert "2" in trained


def test_epochs_of_a_candidate_need_an_estimate_that_has_them(program: Program) -> None:
    code, _, err = program.run(*TINY, "--candidate_epochs", 2)
    assert code == 2
    assert one_line(err) == "--candidate_epochs 2: no effect without --estimate alone"
