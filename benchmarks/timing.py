"""How the benchmarks of speed measure: by turns in one process, or in fresh processes, several at once."""

import multiprocessing
import os
import queue
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import torch

Measured = tuple[dict[str, float], dict[str, float]]  # rates, and what the process noted
CPU = ", per CPU second"  # one core's rate, which hardly depends on what else the machine does


def alternate(variants: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Images per second of each variant, `repeats` times, by turns: a busy moment then hits all of them.

    A variant processes some images and returns how many. One round before the first is not counted.
    """
    for run in variants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - start))
    return rates


def table(rates: Mapping[str, list[float]], baseline: str) -> str:
    """Median, smallest and largest rate of each variant, and the median of the ratios within each round."""
    width = max(len(name) for name in rates)
    lines = [f"{'images/s':{width}}  {'median':>9}  {'smallest':>9}  {'largest':>9}  times {baseline!r}"]
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[baseline], strict=True))
        figures = "  ".join(f"{x:9,.0f}" for x in (statistics.median(values), min(values), max(values)))
        lines.append(f"{name:{width}}  {figures}  {ratio:8.2f}")
    return "\n".join(lines)


class Prepared(NamedTuple):
    """What a process prepares: `steps` by name, each one step that returns its images; and what it noted."""

    steps: dict[str, Callable[[], int]]
    notes: dict[str, float]


def memory() -> float:
    """The most memory that this process has taken, in MiB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


def in_processes(
    prepare: Callable[..., Prepared],
    arguments: tuple[Any, ...],
    processes: int,
    threads: int,
    seconds: float = 0.0,
    count: int = 0,
) -> dict[str, float]:
    """Images per second of all processes together for each kind of step, and the notes of the first process.

    Beside each rate stands the mean rate per second of CPU time. Every process calls `prepare(*arguments)`,
    does two steps that do not count, waits for the others, and steps for `seconds` then, or `count` times
    where the processes work together. They find each other through the variables that torchrun sets.
    RuntimeError where a process fails.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        context.Process(
            target=_work,
            args=(prepare, arguments, (rank, processes, port), threads, (seconds, count), barrier, results),
        )
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = _collect(workers, results)
    rates = {name: sum(one[0][name] for one in found) for name in found[0][0]}
    for name in rates:
        if name.endswith(CPU):
            rates[name] /= processes
    return rates | found[0][1]


def _collect(workers: list[SpawnProcess], results: "Queue[Measured]") -> list[Measured]:
    """What each worker measured. RuntimeError where one fails; the others, who would wait for it, end too."""
    found: list[Measured] = []
    while len(found) < len(workers):
        try:
            found.append(results.get(timeout=0.2))
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                break
    if len(found) < len(workers):
        for worker in workers:
            worker.terminate()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process of the benchmark failed")
    return found


def _work(
    prepare: Callable[..., Prepared],
    arguments: tuple[Any, ...],
    place: tuple[int, int, int],
    threads: int,
    length: tuple[float, int],
    barrier: Barrier,
    results: "Queue[Measured]",
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT")
    os.environ |= {name: str(value) for name, value in zip(names, place, strict=True)}
    torch.set_num_threads(threads)
    before = memory()
    work = prepare(*arguments)
    rates = {}
    for name, step in work.steps.items():
        step()
        step()
        barrier.wait(timeout=300)
        begin, begin_cpu, images, steps = time.perf_counter(), time.process_time(), 0, 0
        while steps < length[1] or time.perf_counter() - begin < length[0]:
            images, steps = images + step(), steps + 1
        rates[name] = images / (time.perf_counter() - begin)
        rates[name + CPU] = images / (time.process_time() - begin_cpu)
    results.put((rates, work.notes | {"peak memory beyond the libraries (MiB)": memory() - before}))
