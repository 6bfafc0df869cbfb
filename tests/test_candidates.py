"""candidates.py: both networks of a pair see the same, are compared image by image, and may diverge."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import random_cell
from hypothesis import given, settings
from hypothesis import strategies as st

import model
from genotypes import DARTS, PDARTS
from images import sets
from search import candidates
from search.candidates import Job, Task, compare, load_task, train_all, train_candidate
from train_search import Config


def digits_task(**flags: object) -> Task:
    config = Config(set="digits", images=160, batch_size=40, init_channels=4, layers=3, **flags)
    return load_task(config, torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def task() -> Task:
    return digits_task()


def job(cell, learning_rate: float = 0.05, drop_path_prob: float = 0.0, pair: int = 0) -> Job:
    return Job(cell, (0, pair), [(learning_rate, drop_path_prob)])


def test_both_networks_of_a_pair_see_the_same_batches(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []
    real = candidates.loop.train_one_epoch

    def spy(network, optimizer, batches, **more):
        kept = [(images.clone(), labels) for images, labels in batches]
        seen.append([images for images, _ in kept])
        return real(network, optimizer, kept, **more)

    monkeypatch.setattr(candidates.loop, "train_one_epoch", spy)
    weight_set = task.weight_set("test")
    train_all(task, weight_set, [job(DARTS), job(PDARTS), job(DARTS, pair=1)])
    first, second, other_pair = seen
    assert len(first) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other_pair, strict=True))


def test_both_networks_of_a_pair_drop_the_same_paths(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[torch.Tensor]] = []
    real = model.Network._begin

    def spy(self, x, factors):
        masks = real(self, x, factors)
        if masks[0] is not None:
            drawn[-1] += masks
        return masks

    monkeypatch.setattr(model.Network, "_begin", spy)
    weight_set = task.weight_set("test")
    for this in (job(DARTS, 0.05, 0.3), job(PDARTS, 0.05, 0.3), job(DARTS, 0.05, 0.3, pair=1)):
        drawn.append([])
        train_candidate(task, weight_set, this)
    first, second, other_pair = drawn
    assert len(first) == 6, "three cells, two steps"
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other_pair, strict=True))


def test_they_are_compared_on_the_same_clean_images(task: Task) -> None:
    once, twice = (torch.cat([images for images, _ in task.clean(task.validation)]) for _ in range(2))
    assert torch.equal(once, twice)
    assert torch.allclose(once, sets.normalise(task.validation.images, task.statistics), atol=1e-6)


def test_training_again_gives_the_same_and_leaves_the_weight_set(task: Task) -> None:
    weight_set = task.weight_set("test")
    first = train_candidate(task, weight_set, job(DARTS, drop_path_prob=0.2))
    kept = {key: tensor.clone() for key, tensor in weight_set.tensors.items()}
    torch.manual_seed(12345)
    second = train_candidate(task, weight_set, job(DARTS, drop_path_prob=0.2))
    assert torch.equal(first.losses, second.losses)
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)
    assert all(torch.equal(kept[key], weight_set.tensors[key]) for key in kept)
    assert not torch.equal(first.weights["stem.0.weight"], kept["stem.0.weight"]), "it has learnt nothing"
    assert first.losses.shape == first.correct.shape == (80,)


def test_training_learns(task: Task) -> None:
    # So few steps leave batch-norm's running statistics behind.
    task = task._replace(config=dataclasses.replace(task.config, recalibrate=2, init_channels=8))
    weight_set = task.weight_set("test")
    schedule = [(0.05, 0.0)] * 12
    trained = train_candidate(task, weight_set, Job(DARTS, (0,), schedule))
    untrained = train_candidate(task, weight_set, Job(DARTS, (0,), []))
    assert trained.loss < untrained.loss
    assert trained.error < 0.7 < untrained.error


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 200), scale=st.floats(1e-3, 1e3))
def test_the_paired_difference_and_its_standard_error(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.exponential(scale, count).astype(np.float32), rng.exponential(scale, count).astype(np.float32)
    outcome = compare(torch.from_numpy(a), torch.from_numpy(b))
    difference = a.astype(np.float64) - b.astype(np.float64)
    assert math.isclose(outcome.loss_a, a.astype(np.float64).mean(), rel_tol=1e-9)
    assert math.isclose(outcome.loss_b, b.astype(np.float64).mean(), rel_tol=1e-9)
    assert math.isclose(outcome.difference, difference.mean(), rel_tol=1e-6, abs_tol=1e-9 * scale)
    assert math.isclose(outcome.standard_error, difference.std(ddof=1) / math.sqrt(count), rel_tol=1e-6)


def test_pairing_cancels_what_both_share() -> None:
    hardness = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 10
    outcome = compare(hardness + 0.01, hardness)
    assert outcome.standard_error < 1e-5 < 0.01
    assert math.isclose(outcome.difference, 0.01, rel_tol=1e-3)


def test_a_single_step_is_compared_without_an_error_of_its_own() -> None:
    outcome = compare(torch.tensor([1.0]), torch.tensor([0.75]))
    assert (outcome.loss_a, outcome.loss_b, outcome.difference, outcome.standard_error) == (
        1.0,
        0.75,
        0.25,
        0.0,
    )


def test_a_diverging_candidate_has_no_finite_loss(task: Task) -> None:
    weight_set = task.weight_set("test")
    good, bad = train_all(task, weight_set, [job(DARTS), job(DARTS, learning_rate=1e30)])
    assert good.finite
    assert not bad.finite
    outcome = compare(good.losses, bad.losses)
    assert math.isfinite(outcome.loss_a)
    assert not math.isfinite(outcome.loss_b)
    assert all(tensor.isfinite().all() for tensor in weight_set.tensors.values())


def test_recalibration_replaces_the_running_statistics(task: Task) -> None:
    weight_set = task.weight_set("test")
    plain = train_candidate(task, weight_set, job(DARTS))
    again = train_candidate(digits_task(recalibrate=2), weight_set, job(DARTS))
    assert torch.equal(plain.weights["stem.0.weight"], again.weights["stem.0.weight"])
    assert not torch.equal(plain.weights["stem.1.running_mean"], again.weights["stem.1.running_mean"])


def test_other_seeds_and_purposes_see_other_batches(task: Task) -> None:
    def first(task: Task, *purpose: int) -> torch.Tensor:
        return next(iter(task.batches(*purpose)))[0]

    assert torch.equal(first(task, 0, 1), first(task, 0, 1))
    assert not torch.equal(first(task, 0, 1), first(task, 0, 2))
    assert not torch.equal(first(task, 0, 1), first(task._replace(seed=1), 0, 1))


def test_the_full_size_is_of_these_images(task: Task) -> None:
    cell = random_cell(3)
    config = dataclasses.replace(task.config, full_channels=4, full_layers=3)
    parameters, _ = task._replace(config=config).full_size()(cell)
    network = task.weight_set("test").network(cell)
    assert parameters == sum(parameter.numel() for parameter in network.parameters())
