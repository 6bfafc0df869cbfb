"""Tables of trained networks, and a surrogate of one, as problems to search: what the table benchmarks
share."""

import csv
import json
import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from table_space import TableSpace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

from common.flags import check_new_file, check_range
from encoding import Architecture, CellSpace, ChoiceSpace, Integers
from genotypes import Genotype

PREFIX = "NetworkSelectorDatasetInfo_COLON_darts_COLON_"
EPOCH = 98.0  # the surrogate's input for a fully trained network
EDGE_STARTS = (0, 2, 5, 9)  # the first edge of each intermediate node


class Table:
    """A CSV file: `arch` (integers joined by -), then columns of numbers, of which higher is better.

    `observe` is the column a search sees, `truth` the one that counts (the first two defaults are the first
    column). Raises ValueError that names the file and line where it is not such a table.
    """

    def __init__(self, file: str, observe: str | None = None, truth: str | None = None) -> None:
        self.name = Path(file).stem
        rows, columns, header = _read(file)
        self.observe = observe or header[0]
        self.truth = truth or self.observe
        for flag, column in (("observe", self.observe), ("truth", self.truth)):
            if column not in header:
                raise ValueError(f"--{flag} {column}: {file} has the columns {', '.join(header)}")
        self.space: ChoiceSpace = TableSpace((rows.max(axis=0) + 1).tolist())
        self.rows: Integers = rows
        keys = [tuple(row) for row in rows.tolist()]
        seen = columns[:, header.index(self.observe)].tolist()
        real = columns[:, header.index(self.truth)].tolist()
        self._observed = dict(zip(keys, seen, strict=True))
        self._true = dict(zip(keys, real, strict=True))
        if len(self._true) < len(rows):
            raise ValueError(f"{file}: an architecture is listed twice")

    @property
    def size(self) -> float:
        """How many architectures there are."""
        return len(self._true)

    @property
    def accept(self) -> Callable[[Architecture], bool] | None:
        """What a search must be told to avoid what the table lacks; None where it lists every combination."""
        return None if len(self._true) == math.prod(self.space.counts.tolist()) else self.holds

    def holds(self, architecture: Architecture) -> bool:
        """Whether the table has this architecture."""
        return architecture in self._true

    def loss(self, architecture: Architecture) -> float:
        """What a search sees: minus the observed column."""
        return -self._observed[architecture]

    def accuracy(self, architecture: Architecture) -> float:
        """What counts."""
        return self._true[architecture]


def _read(file: str) -> tuple[Integers, np.ndarray, list[str]]:
    with open(file, newline="") as stream:
        lines = list(csv.reader(stream))
    if len(lines) < 2 or lines[0][:1] != ["arch"] or len(lines[0]) < 2:
        raise ValueError(f"{file}: the first line must be `arch` and columns of numbers, then one line each")
    choices, numbers = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            choices.append([int(part) for part in line[0].split("-")])
            numbers.append([float(part) for part in line[1:]])
        except (ValueError, IndexError):
            raise ValueError(f"{file}, line {number}: not integers joined by - and numbers") from None
        if len(choices[-1]) != len(choices[0]) or len(line) != len(lines[0]):
            raise ValueError(f"{file}, line {number}: as many choices and columns as in the first lines")
        if not all(math.isfinite(value) for value in numbers[-1]):
            raise ValueError(f"{file}, line {number}: a number is not finite")
    return np.array(choices, dtype=np.int64), np.array(numbers), lines[0][1:]


class Surrogate:
    """NAS-Bench-301 as an ONNX model: the predicted CIFAR-10 accuracy of any DARTS cell with distinct
    inputs."""

    def __init__(self, file: str, encoding: str) -> None:
        import onnxruntime

        self.name = Path(file).stem
        self.space: ChoiceSpace = CellSpace(distinct_inputs=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._codes: dict[str, dict[str, int]] = json.loads(Path(encoding).read_text(encoding="utf-8"))
        cells = ("normal", "reduce")
        names = [f"edge_{cell}_{edge}" for cell in cells for edge in range(14)]
        names += [f"inputs_node_{cell}_{node}" for cell in cells for node in (3, 4, 5)]
        self._columns = [PREFIX + name for name in names]
        missing = [column for column in self._columns if column not in self._codes]
        if missing:
            raise ValueError(f"{encoding}: {missing[0]} is missing")
        self._known: dict[Genotype, float] = {}

    size = math.inf
    accept: Callable[[Architecture], bool] | None = None

    def holds(self, architecture: Architecture) -> bool:
        """Every cell of the space can be scored."""
        return True

    def accuracy(self, architecture: Architecture) -> float:
        """Predicted accuracy in percent after full training."""
        if architecture not in self._known:
            self._known[architecture] = self._predict(architecture)
        return self._known[architecture]

    def loss(self, architecture: Architecture) -> float:
        """What a search sees: minus the accuracy."""
        return -self.accuracy(architecture)

    def _predict(self, genotype: Genotype) -> float:
        values = dict.fromkeys(self._columns, "#na#")
        for cell in ("normal", "reduce"):
            edges = getattr(genotype, cell)
            for node in range(4):
                pair = edges[2 * node : 2 * node + 2]
                for operation, source in pair:
                    values[f"{PREFIX}edge_{cell}_{EDGE_STARTS[node] + source}"] = operation
                if node:
                    inputs = "_".join(str(source) for source in sorted(source for _, source in pair))
                    values[f"{PREFIX}inputs_node_{cell}_{node + 2}"] = inputs
        codes = np.array([[self._codes[column][values[column]] for column in self._columns]], dtype=np.int32)
        feed = {"x_cat": codes, "x_cont": np.array([[EPOCH]], dtype=np.float32)}
        output: Any = self._session.run(None, feed)[0]
        return float(output[0, 0])


Problem = Table | Surrogate


@dataclass(frozen=True)
class Source:
    """The flags of every benchmark on a table: what is searched, and where the result goes."""

    table: str | None = None
    """CSV file: arch (integers joined by -), then columns of numbers"""
    observe: str | None = None
    """column that is learned from (default: the first)"""
    truth: str | None = None
    """column that counts in the end (default: the observed one)"""
    surrogate: str | None = None
    """NAS-Bench-301 as an ONNX file, instead of a table"""
    encoding: str | None = None
    """JSON file with the integer of each value of the surrogate's inputs"""
    processes: int = 1
    """seeds at the same time; the result does not depend on it"""
    json: str | None = None
    """write the result here, and its picture beside it as PNG"""
    overwrite: bool = False
    """replace these files if they are there"""

    def check(self) -> None:
        """Refuse, before anything is computed, a result that could not be written."""
        check_range(self, "processes", 1)
        for path in [] if self.json is None else [Path(self.json), Path(self.json).with_suffix(".png")]:
            if not path.is_file():
                check_new_file("json", str(path))
            elif not self.overwrite:
                raise ValueError(f"--json {self.json}: {path} exists; name another file or give --overwrite")


@dataclass(frozen=True)
class Runs(Source):
    """The flags of benchmarks that run strategies, each with some seeds, up to some budgets."""

    budgets: tuple[int, ...] = (20, 50, 100, 200)
    """report after so many trainings"""
    seeds: int = 20
    """runs of each strategy"""
    first_seed: int = 0
    """of the first run; 100 and up were used to choose settings"""

    def check_runs(self, strategies: Sequence[str], known: Collection[str]) -> None:
        """ValueError for what cannot be run: a strategy that is not known, no budget, a bad seed."""
        check_range(self, "seeds", 1)
        check_range(self, "first_seed", 0)
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"--budgets {' '.join(map(str, self.budgets))}: at least one, each at least 1")
        unknown = [name for name in strategies if name not in known]
        if unknown or not strategies:
            name = unknown[0] if unknown else "(none)"
            raise ValueError(f"--strategies {name}: allowed are {', '.join(known)}")


_problem: Problem | None = None  # of this process


def start(config: Source) -> None:
    """Prepare a process: open the problem once, one thread for the linear algebra."""
    global _problem
    threadpoolctl.threadpool_limits(1)
    _problem = open_problem(config)


def opened() -> Problem:
    """The problem of a process that `start` prepared."""
    assert _problem is not None
    return _problem


def open_problem(config: Source) -> Problem | None:
    """The problem that --table, or --surrogate and --encoding, name; None, after one line, where it is
    absent.

    Raises ValueError for a wrong combination of these flags.
    """
    if (config.table is None) == (config.surrogate is None):
        raise ValueError("give either --table FILE or --surrogate FILE --encoding FILE")
    if (config.surrogate is None) != (config.encoding is None):
        raise ValueError("--surrogate and --encoding belong together")
    files = [file for file in (config.table, config.surrogate, config.encoding) if file is not None]
    absent = next((file for file in files if not Path(file).is_file()), None)
    if absent is not None:
        print(f"skipped: {absent} is not there")
        return None
    if config.surrogate is not None and config.encoding is not None:
        if config.observe is not None or config.truth is not None:
            raise ValueError("--observe and --truth name columns of a --table; a surrogate has none")
        return Surrogate(config.surrogate, config.encoding)
    assert config.table is not None
    return Table(config.table, config.observe, config.truth)
