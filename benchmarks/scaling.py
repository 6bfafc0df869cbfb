"""Efficiency of data-parallel training: images per second of two processes against one.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 2 --json result.json

Every process has the same share of images per step, so perfect scaling is twice the rate. "alone" are as many
processes that do not exchange gradients: what lies between it and 1 is the machine, the rest is the exchange.
"""

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import timing
import torch

import genotypes
from common import distributed
from common.flags import check_range, parse, run_script
from model import NetworkCIFAR
from training import loop
from training.precision import grad_scaler


@dataclass(frozen=True)
class Config:
    """Efficiency of several processes against one, on the CPU with gloo."""

    init_channels: int = 16
    """Channels of the first cell."""
    layers: int = 8
    """Cells."""
    batch_size: int = 64
    """Images per step of each process."""
    processes: int = 2
    """Processes, of one thread each."""
    steps: int = 6
    """Steps that are timed in a round."""
    repeats: int = 3
    """Rounds; the variants take turns in each."""
    json: str | None = None
    """Write the result to this file, which must not exist."""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "init_channels layers steps repeats", 1)
        check_range(self, "batch_size processes", 2)
        evidence.check_output(self.json)


def prepare(config: Config, together: bool) -> timing.Prepared:
    """Training steps of a network whose gradients are summed over the processes, if `together`."""
    if together:
        distributed.init("cpu")
    torch.manual_seed(0)
    network = NetworkCIFAR(config.init_channels, 10, config.layers, False, genotypes.lookup("RelativeNAS"))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=3e-4)
    scaler = grad_scaler(torch.device("cpu"), "float32")
    inputs, labels = torch.randn(config.batch_size, 3, 32, 32), torch.arange(config.batch_size) % 10
    total = config.batch_size * distributed.world_size()
    network.train()

    def step() -> int:
        loop.train_step(network, optimizer, inputs, labels, images=total, scaler=scaler)
        return config.batch_size

    return timing.Prepared({"training": step}, {})


def main(config: Config) -> None:
    origin = evidence.provenance(asdict(config))
    rates: dict[str, list[float]] = {}
    variants = {"one": (1, False), "alone": (config.processes, False), "together": (config.processes, True)}
    for _ in range(config.repeats):
        for name, (processes, together) in variants.items():
            found = timing.in_processes(prepare, (config, together), processes, 1, count=config.steps)
            rates.setdefault(name, []).append(found["training"])
    print(timing.table(rates, "one"))
    for name in ("alone", "together"):
        ratios = [a / b for a, b in zip(rates[name], rates["one"], strict=True)]
        efficiency = statistics.median(ratios) / config.processes
        print(f"efficiency of {config.processes} processes {name}: {efficiency:.2f}")
    evidence.write(config.json, origin | {"images_per_second": rates})


if __name__ == "__main__":
    run_script(main, parse(Config))
