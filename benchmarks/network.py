"""Speed of a full-size network, beside the plain path.

    python benchmarks/network.py
    python benchmarks/network.py --processes 1 --threads 2 --json result.json

RelativeNAS at 36 channels and 20 layers. The input is one batch of random images, made beforehand.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import plain
import timing
import torch
from torch import nn

import genotypes
from common import checkpoint
from common.flags import check_range, parse, run_script
from model import NetworkCIFAR, load_network_state
from training import evaluation, loop
from training.inference import fold_batch_norm
from training.precision import grad_scaler

TRAINED = Path(__file__).resolve().parent.parent / "trained_model" / "cifar10_model.pt"


@dataclass(frozen=True)
class Config:
    """Images per second of training and evaluating a full-size network."""

    init_channels: int = 36
    """Channels of the first cell."""
    layers: int = 20
    """Cells."""
    batch_size: int = 32
    """Images per step."""
    processes: int = 2
    """Processes at once, each with its own network."""
    threads: int = 1
    """CPU threads of each process."""
    seconds: float = 5.0
    """How long each kind of step is timed in a round."""
    repeats: int = 3
    """Rounds; the variants take turns in each."""
    json: str | None = None
    """Write the result to this file, which must not exist."""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "init_channels layers processes threads repeats", 1)
        check_range(self, "batch_size", 2)
        check_range(self, "seconds", 0, open_low=True)
        evidence.check_output(self.json)


def prepare(config: Config, path: str) -> timing.Prepared:
    """The two kinds of steps of one network."""
    torch.manual_seed(0)
    cell = genotypes.lookup("RelativeNAS")
    ours = NetworkCIFAR(config.init_channels, 10, config.layers, False, cell)
    network: nn.Module = ours if path == "project" else plain.PlainNetwork(ours, everything=False)
    evaluated: nn.Module = fold_batch_norm(ours) if path == "project" else network
    if path == "project":
        network.to(memory_format=torch.channels_last)
        evaluated.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=3e-4)
    scaler = grad_scaler(torch.device("cpu"), "float32")
    batch = (torch.randn(config.batch_size, 3, 32, 32), torch.arange(config.batch_size) % 10)

    def train() -> int:
        loop.train_one_epoch(network, optimizer, [batch], scaler=scaler)
        return config.batch_size

    def evaluate() -> int:
        evaluation.evaluate(evaluated, [batch])
        return config.batch_size

    return timing.Prepared({"training": train, "evaluating": evaluate}, {})


def largest_differences(config: Config) -> dict[str, float]:
    """The largest differences of the two paths' logits in evaluation; ValueError if one is above 1e-4.

    In float64 for the network that is timed: its random weights amplify the rounding of float32, in any
    path, to more than that. In float32, which has ways of its own, for a trained network.
    """
    torch.manual_seed(0)
    timed = NetworkCIFAR(config.init_channels, 10, config.layers, False, genotypes.lookup("RelativeNAS"))
    images = torch.randn(config.batch_size, 3, 32, 32)
    evaluation.recalibrate_batch_norm(timed, [(images, torch.empty(0))])  # else the logits are all but equal
    state = checkpoint.load(TRAINED, "network")
    facts, cell = state["network"], genotypes.from_dict(state["network"]["genotype"])
    trained = NetworkCIFAR(facts["C"], facts["num_classes"], facts["layers"], False, cell)
    load_network_state(trained, state["state_dict"])
    found = {}
    for name, network, x in [("float64", timed.double(), images.double()), ("float32", trained, images)]:
        with torch.no_grad():
            expected = plain.PlainNetwork(network, everything=False).to(x.dtype).eval()(x)[0]  # (N, 10)
            logits = fold_batch_norm(network)(x)[0]
        found[name] = (logits - expected).abs().max().item()
        spread = expected.std(0).min().item()  # images must get different logits, or nothing is compared
        if not (found[name] <= 1e-4 and spread >= 1e-2):
            raise ValueError(f"{name}: the two paths differ by {found[name]:.1e}, images by {spread:.1e}")
    return found


def main(config: Config) -> None:
    origin = evidence.provenance(asdict(config))
    differences = largest_differences(config)
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(config.repeats):
        for path in ("plain", "project"):
            found = timing.in_processes(
                prepare, (config, path), config.processes, config.threads, config.seconds
            )
            results.setdefault(path, []).append(found)
    for kind in ("training", "training" + timing.CPU, "evaluating", "evaluating" + timing.CPU):
        rates = {path: [found[kind] for found in rounds] for path, rounds in results.items()}
        print(f"{kind}, {config.processes} x {config.threads} threads")
        print(timing.table(rates, "plain"))
    flops = origin["hardware"]["gflops_float32_matrix_product"]
    print(f"2048-cube matrix product: {flops} GFLOP/s; largest differences of the logits: ", end="")
    print(", ".join(f"{name} {difference:.1e}" for name, difference in differences.items()))
    evidence.write(config.json, origin | {"largest_differences": differences, "rounds": results})


if __name__ == "__main__":
    run_script(main, parse(Config))
