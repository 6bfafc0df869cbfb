"""How long a full-size network takes on this machine: the sum of its edges, each measured once.

    conditions = Conditions(device, "float32", channels_last=True, batch_size=1, threads=1)
    latency = Latency(full_size, measured(full_size, space, conditions))
    latency(genotype)                                   # milliseconds for a batch, nothing is run

An edge's time depends on its operation, channels, image size and stride. Each such operation is measured
alone. A few whole networks then say what a network takes besides its edges, and by what factor edges side by
side differ from edges alone: time = factor * sum of the edges + rest. Networks are those that test.py runs:
for evaluation, batch-norm folded into the convolutions, by PyTorch or, exported, by ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from cells import AnyGenotype, cells_of
from model import Edges, Network
from model_search import FullSize, bare, empty_network
from operations import OPS
from spaces import Space
from training.backends import ONNX, onnxruntime_session
from training.card import processor
from training.evaluation import recalibrate_batch_norm
from training.export import Logits, check_packages, to_onnx
from training.inference import fold_batch_norm
from training.precision import autocast
from training.weights import place
from utils import derive_seed, say, write_atomically

ROUNDS = 3  # measurements of everything, one after the other; the shortest time counts
SECONDS = 0.03  # at least, of each measurement
NETWORKS = 8  # whole networks that correct the sum of the edges
CODE = (  # a change makes old tables void
    *("operations.py", "model.py", "skeletons.py", "common/kernels.py"),
    *("search/latency.py", "training/inference.py"),
)

Times = dict[str, float]  # milliseconds of an operation at some size


@dataclass(frozen=True)
class Conditions:
    """Where and how a network runs: `batch_size` images at once, on so many CPU `threads`.

    `backend` is "torch", or "onnxruntime", which computes on the CPU in float32.
    """

    device: torch.device
    precision: str
    channels_last: bool
    batch_size: int
    threads: int
    backend: str = "torch"

    def check(self) -> None:
        """Raise ValueError where the backend cannot run so, or its packages are missing."""
        if self.backend == "torch":
            return
        if self.device.type != "cpu" or self.precision != "float32":
            where = f"--device {self.device} --precision {self.precision}"
            raise ValueError(
                f"--latency_backend {self.backend}: needs --device cpu --precision float32, not {where}"
            )
        check_packages(f"--latency_backend {self.backend}", *ONNX, self.backend)


class Table(NamedTuple):
    """What was measured: each operation at each size, and what makes a network's time of their sum."""

    edges: Times
    factor: float
    rest: float  # milliseconds


class Place(NamedTuple):
    """One cell of a network: its kind and channels, and the image sizes at its inputs and nodes."""

    kind: str
    C: int
    inputs: tuple[int, int]
    nodes: tuple[int, int]

    def edge(self, at_input: bool) -> tuple[tuple[int, int], int]:
        """Image size at the beginning of an edge, and the stride of its operation."""
        return (self.inputs, 1 + (self.inputs != self.nodes)) if at_input else (self.nodes, 1)

    def key(self, operation: str, at_input: bool) -> str:
        """The name in the table of an operation on one of its edges."""
        (rows, columns), stride = self.edge(at_input)
        return f"{operation} {self.C} {rows}x{columns} {stride}"


class Latency:
    """Milliseconds that a batch takes in the full-size network of a genotype, from a table."""

    def __init__(self, size: FullSize, table: Table) -> None:
        self.size, self.table = size, table
        self.places: dict[AnyGenotype, list[Place]] = {}  # by the shape of the cells
        self.sums: dict[AnyGenotype, dict[tuple[str, str, bool], float]] = {}  # of an edge over all its cells

    def __call__(self, genotype: AnyGenotype) -> float:
        """The estimate; KeyError for an operation that was not measured."""
        return self.table.factor * self.sum_of_edges(genotype) + self.table.rest

    def sum_of_edges(self, genotype: AnyGenotype) -> float:
        """The time of its edges, each measured alone."""
        shape, total = bare(genotype), 0.0
        if shape not in self.places:
            self.places[shape], self.sums[shape] = places(self.size, shape), {}
        sums = self.sums[shape]
        for kind in cells_of(genotype):
            for operation, source in getattr(genotype, kind):
                key = (kind, operation, from_input(kind, source))
                if key not in sums:
                    sums[key] = self._edge(shape, *key)
                total += sums[key]
        return total

    def _edge(self, shape: AnyGenotype, kind: str, operation: str, at_input: bool) -> float:
        if (kind, operation) == ("cell", "none"):  # such a cell leaves it out
            return 0.0
        cells = [place for place in self.places[shape] if place.kind == kind]
        return sum(self.table.edges[place.key(operation, at_input)] for place in cells)


def from_input(kind: str, source: int) -> bool:
    """Whether an edge begins at an input of its cell."""
    return source < (1 if kind == "cell" else 2)


def places(size: FullSize, shape: AnyGenotype) -> list[Place]:
    """The cells of the full-size network of a `bare` genotype, whose edges all begin at input 0."""
    network, found = empty_network(size, shape).eval(), []

    def seen(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append((given[0].shape, out.shape))

    cells = [cell for cell in network.cells if isinstance(cell, Edges)]
    for cell in cells:
        cell._ops[0].register_forward_hook(seen)
    rows, columns = network.image_size
    network(torch.empty(1, network.in_channels, rows, columns, device="meta"))
    return [
        Place(str(cell.kind), given[1], (given[2], given[3]), (out[2], out[3]))
        for cell, (given, out) in zip(cells, found, strict=True)
    ]


def measured(size: FullSize, space: Space, conditions: Conditions) -> Table:
    """Measure every operation of the space at every size, and whole networks that correct their sum."""
    cells = random_cells(space, NETWORKS, 0)
    runs = {key: _edge_run(*edge, conditions) for key, edge in _edges(size, space).items()}
    times = milliseconds(runs, conditions)
    whole = times_of_networks(size, cells, conditions)
    alone = Latency(size, Table(times, 1.0, 0.0))
    return Table(times, *fitted([alone(cell) for cell in cells], whole))


def _edges(size: FullSize, space: Space) -> dict[str, tuple[Place, str, bool]]:
    """All that a table has times of: an operation in a cell, at one of its inputs or not; by name."""
    shapes = places(size, bare(random_cells(space, 1, 0)[0]))
    edges = [(cell, name, at) for cell in shapes for name in space.searched for at in (True, False)]
    return {cell.key(name, at): (cell, name, at) for cell, name, at in edges}


def random_cells(space: Space, count: int, seed: int) -> list[AnyGenotype]:
    """Cells drawn uniformly from the space."""
    encoding, rng = space.encoding(), np.random.default_rng(derive_seed(seed, "latency") % 2**32)
    return [encoding.decode(encoding.sample(rng)) for _ in range(count)]


def fitted(sums: Sequence[float], whole: Sequence[float]) -> tuple[float, float]:
    """Factor and rest, neither negative, that make the sums of edges the times of whole networks.

    The squares of relative errors are least. Sums that hardly differ cannot tell a factor: then it is 1.
    """
    x, y = np.array(sums), np.array(whole)
    if x.max() < 1.05 * x.min():
        return 1.0, max(0.0, float((y - x).mean()))
    (factor, rest), _ = nnls(np.stack([x / y, 1 / y], axis=1), np.ones_like(y))
    return float(factor), float(rest)


def _edge_run(cell: Place, operation: str, at_input: bool, conditions: Conditions) -> Callable[[], Any]:
    """A function that runs one operation on a batch, as an edge of such a cell."""
    size, stride = cell.edge(at_input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = fold_batch_norm(cast(Network, nn.Sequential(OPS[operation](cell.C, stride, True))))
        images = torch.randn(conditions.batch_size, cell.C, *size)
    return _run(module, images, conditions)


def _run(module: nn.Module, images: Tensor, conditions: Conditions) -> Callable[[], Any]:
    """A function that computes a module that takes and returns one tensor."""
    if conditions.backend == "onnxruntime":
        # Three images: with one the exporter would take the number of images for a constant.
        session = onnxruntime_session(to_onnx(module, torch.zeros(3, *images.shape[1:])), conditions.threads)
        given = images.numpy()
        return lambda: session(given)
    module = place(module, conditions.channels_last, conditions.device)
    layout = torch.channels_last if conditions.channels_last else torch.contiguous_format
    images = images.to(conditions.device, memory_format=layout)

    def run() -> None:
        with torch.no_grad(), autocast(conditions.device, conditions.precision):
            module(images)

    return run


def times_of_networks(
    size: FullSize, cells: Sequence[AnyGenotype], conditions: Conditions, rounds: int = ROUNDS
) -> list[float]:
    """Milliseconds that a batch takes in the full-size network of each cell, run whole."""
    runs = {str(number): _network_run(size, cell, conditions) for number, cell in enumerate(cells)}
    return list(milliseconds(runs, conditions, rounds).values())


def _network_run(size: FullSize, cell: AnyGenotype, conditions: Conditions) -> Callable[[], Any]:
    """A function that runs the network of a cell, with random weights, on a batch."""
    kind = type(empty_network(size, cell))
    more = {"in_channels": size.in_channels, "image_size": size.image_size}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = kind(size.C, size.num_classes, size.layers, False, cell, **more)  # type: ignore[arg-type]
        images = torch.randn(max(2, conditions.batch_size), network.in_channels, *network.image_size)
        # Else the values would fade from layer to layer, to numbers with which a processor is slow.
        recalibrate_batch_norm(network, [(images, torch.empty(0))])
    return _run(Logits(fold_batch_norm(network)), images[: conditions.batch_size], conditions)


def milliseconds(
    runs: Mapping[str, Callable[[], Any]], conditions: Conditions, rounds: int = ROUNDS
) -> dict[str, float]:
    """The shortest time of each function, by turns: a busy moment hits one round, and all of them.

    With one CPU thread it is the thread's own time, which other programs hardly disturb.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would warn of no compiler
    from torch.utils.benchmark import Timer

    own = conditions.device.type == "cpu" and conditions.threads == 1
    clock: dict[str, Any] = {"timer": time.thread_time} if own else {}
    found = dict.fromkeys(runs, math.inf)
    for _ in range(rounds):
        for name, run in runs.items():
            timer = Timer("run()", globals={"run": run}, num_threads=conditions.threads, **clock)
            taken = timer.blocked_autorange(min_run_time=SECONDS).median
            found[name] = min(found[name], 1e3 * taken)
    return found


def facts(size: FullSize, space: Space, conditions: Conditions) -> dict[str, Any]:
    """All that a table depends on, as plain types: the machine, the code, the networks, how they run."""
    device, root = conditions.device, Path(__file__).resolve().parent.parent
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    network = ("C", "num_classes", "layers", "in_channels", "image_size")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": str(torch.__version__),
        "engine": None if conditions.backend == "torch" else version(conditions.backend),
        "code": hashlib.sha256(b"".join((root / name).read_bytes() for name in CODE)).hexdigest(),
        **{name: getattr(size, name) for name in network},
        "space": asdict(space),
        **asdict(conditions) | {"device": str(device)},
    }


def table_for(size: FullSize, space: Space, conditions: Conditions, kept: Path | None = None) -> Table:
    """The table in the file `kept`, else that of the user's cache, else measured now, and then cached.

    ValueError where `kept` is damaged, or where the backend cannot run so.
    """
    if kept is not None and kept.is_file():
        table = read(kept)
        if missing := _edges(size, space).keys() - table.edges.keys():
            raise ValueError(f"{kept}: no table of this network's edges: {min(missing)} is missing")
        return table
    conditions.check()
    known = json.loads(json.dumps(facts(size, space, conditions)))
    name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairnas"
    cache = folder / f"latency-{name}.json"
    with suppress(ValueError, LookupError, TypeError, OSError):  # a damaged one is measured again
        if cache.is_file() and json.loads(cache.read_text())["facts"] == known:
            return read(cache)
    say("measuring how long edges take on this machine (once, for minutes; the table is kept)")
    table = measured(size, space, conditions)
    with suppress(OSError):  # without a cache every search measures
        cache.parent.mkdir(parents=True, exist_ok=True)
        write(cache, table, known)
    return table


def write(path: Path, table: Table, known: Mapping[str, Any]) -> None:
    """A table as JSON."""
    write_atomically(path, json.dumps(table._asdict() | {"facts": known}, indent=1) + "\n")


def read(path: Path) -> Table:
    """A table from JSON; ValueError names the file where it is none."""
    try:
        state = json.loads(path.read_text())
        edges = {str(name): float(value) for name, value in state["edges"].items()}
        table = Table(edges, float(state["factor"]), float(state["rest"]))
        if not all(math.isfinite(value) for value in (*edges.values(), table.factor, table.rest)):
            raise ValueError("a time is no finite number")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: no table of measured edges ({error})") from None
    return table
