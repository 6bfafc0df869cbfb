"""--max_memory: what training takes is counted as it is, and what takes more is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Program
from torch.profiler import ProfilerActivity, profile

import genotypes
from model import NetworkCIFAR
from model_search import FullSize
from search.latency import random_cells
from search.memory import COUNTED, TrainingMemory, kept_bytes
from spaces import Space

SIZE = FullSize(C=8, layers=5, num_classes=10)


def peak(cell: genotypes.AnyGenotype, batch_size: int) -> int:
    """Bytes that a step allocates at most, as the profiler sees it, and weights, gradients and momentum."""
    network = NetworkCIFAR(SIZE.C, 10, SIZE.layers, False, cell).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.long)
    for _ in range(2):  # the second one has gradients and momentum already
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            optimizer.zero_grad()
            F.cross_entropy(network(images)[0], labels).backward()
            optimizer.step()
    now = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest + 3 * 4 * sum(tensor.numel() for tensor in network.parameters())


@pytest.mark.parametrize("name", ["RelativeNAS", "DARTS_V1", "PairNAS_digits"])
def test_the_count_is_what_a_step_allocates(name: str) -> None:
    cell = genotypes.lookup(name)
    assert TrainingMemory(SIZE, Space(), 24)(cell) == pytest.approx(peak(cell, 24), rel=0.06)


def test_twice_the_images_take_twice_the_memory_but_not_of_the_weights() -> None:
    cell = genotypes.lookup("RelativeNAS")
    some, more = (TrainingMemory(SIZE, Space(), count)(cell) for count in (100, 200))
    weights = 12 * SIZE(cell)[0]
    assert more - weights == pytest.approx(2 * (some - weights), rel=1e-3)


@pytest.mark.parametrize(("pixels", "times"), [(96, 4), ((128, 64), 4), (128, 16), (66, 1), (48, 1)])
def test_large_images_are_counted_by_smaller_ones(pixels: int | tuple[int, int], times: int) -> None:
    cell = genotypes.lookup("RelativeNAS")
    memory = TrainingMemory(FullSize(C=4, layers=5, num_classes=10, image_size=pixels), Space(), 10)
    network = NetworkCIFAR(4, 10, 5, False, cell, image_size=pixels)
    assert memory.pixels == times
    whole = kept_bytes(network) * 10 // COUNTED
    weights = 3 * 4 * sum(tensor.numel() for tensor in network.parameters())
    assert memory(cell) == pytest.approx(whole + weights, rel=2e-3)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_the_quick_answer_is_the_counted_one(space: str) -> None:
    memory = TrainingMemory(FullSize(C=4, layers=5, num_classes=10, image_size=16), Space(space), 50)
    cells = random_cells(Space(space), 40, 7)
    counted = sorted(memory(cell) for cell in cells)
    for limit in (counted[5], counted[20], counted[35]):
        assert [memory.within(cell, limit) for cell in cells] == [memory(cell) <= limit for cell in cells]


def test_a_search_refuses_cells_that_take_more(program: Program) -> None:
    flags = ["--full_channels", 8, "--full_layers", 5, "--memory_batch_size", 100, "--max_memory", 0.018]
    code, _, err = program.run(*TINY, *flags, "--save", "memory")
    assert code == 0, err
    size = FullSize(C=8, layers=5, num_classes=10, in_channels=1, image_size=8)
    memory = TrainingMemory(size, Space(), 100)
    taken = [memory(cell) / 2**30 for cell in cells(program, "memory")]
    assert max(taken) <= 0.018
    code, _, err = program.run(*TINY, "--save", "memory_free")
    assert code == 0, err
    assert max(memory(cell) for cell in cells(program, "memory_free")) / 2**30 > 0.018  # it did refuse some


def cells(program: Program, run: str) -> list[genotypes.AnyGenotype]:
    import csv

    with open(program.folder / run / "history.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [genotypes.from_dict(json.loads(row[f"genotype_{side}"])) for row in rows for side in "ab"]
