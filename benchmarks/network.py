"""Speed of a full-size network, beside the plain path.

    python benchmarks/network.py
    python benchmarks/network.py --backends onnxruntime openvino --json result.json

RelativeNAS at 36 channels and 20 layers, with the batches that train.py and test.py have by default, in
float32 and bfloat16. The input is one batch of random images, made beforehand.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import plain
import timing
import torch
from torch import Tensor, nn

import genotypes
from common import checkpoint
from common.flags import check_range, parse, run_script
from common.kernels import keep_memory
from model import NetworkCIFAR, load_network_state
from training import evaluation, loop
from training.backends import Engine
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
    batch_size: int = 128
    """Images per training step, of all processes together as in train.py."""
    evaluation_batch_size: int = 256
    """Images per step of evaluating, of all processes together as in test.py."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions of both paths."""
    backends: tuple[Literal["onnxruntime", "openvino"], ...] = ()
    """Engines that evaluate too, as by test.py --backend."""
    processes: int = 2
    """Processes at once, each with its own network and its share of a batch."""
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
        check_range(self, "batch_size evaluation_batch_size", 2 * self.processes)
        check_range(self, "seconds", 0, open_low=True)
        evidence.check_output(self.json)


def variants(config: Config) -> dict[str, tuple[str, str]]:
    """What is measured: path and precision by name, the plain path in float32 first."""
    found: dict[str, tuple[str, str]] = {
        f"{path} {name}": (path, name) for name in config.precisions for path in ("plain", "project")
    }
    engines = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}
    return found | {
        f"{backend} {name}": (backend, name)
        for backend in config.backends
        for name in engines[backend]
        if name in config.precisions
    }


def prepare(config: Config, path: str, precision: str) -> timing.Prepared:
    """The two kinds of steps of one network; an engine has that of evaluating alone."""
    torch.manual_seed(0)
    cell = genotypes.lookup("RelativeNAS")
    ours = NetworkCIFAR(config.init_channels, 10, config.layers, False, cell)
    network: nn.Module = plain.PlainNetwork(ours, everything=False) if path == "plain" else ours
    evaluated: nn.Module = network
    if path != "plain":
        keep_memory()
        network.to(memory_format=torch.channels_last)
        evaluated = fold_batch_norm(ours)
    if path in ("onnxruntime", "openvino"):
        # Else all logits are equal, and nothing is compared.
        evaluation.recalibrate_batch_norm(ours, [random_batch(8, True)])
        evaluated = Engine(fold_batch_norm(ours), path, precision)
        # Random weights amplify rounding so much that bfloat16 cannot be checked with them, as test.py does.
        evaluated.checked = precision == "bfloat16"
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=3e-4)
    scaler = grad_scaler(torch.device("cpu"), precision)
    batch = random_batch(config.batch_size // config.processes, path != "plain")
    larger = random_batch(config.evaluation_batch_size // config.processes, path != "plain")

    def train() -> int:
        loop.train_one_epoch(network, optimizer, [batch], scaler=scaler, precision=precision)
        return len(batch[1])

    def evaluate() -> int:
        evaluation.evaluate(evaluated, [larger], precision)
        return len(larger[1])

    steps = {"training": train, "evaluating": evaluate}
    return timing.Prepared(steps if path in ("plain", "project") else {"evaluating": evaluate}, {})


def random_batch(count: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32), in channels_last or contiguous memory, and labels."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(count, 3, 32, 32).contiguous(memory_format=layout), torch.arange(count) % 10


def largest_differences(config: Config) -> dict[str, float]:
    """The largest differences of the two paths' logits in evaluation; ValueError if one is above 1e-4.

    In float64 for the network that is timed: its random weights amplify the rounding of float32, in any
    path, to more than that. In float32, which has ways of its own, for a trained network.
    """
    torch.manual_seed(0)
    timed = NetworkCIFAR(config.init_channels, 10, config.layers, False, genotypes.lookup("RelativeNAS"))
    images = torch.randn(min(32, config.batch_size), 3, 32, 32)
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
        for name, (path, precision) in variants(config).items():
            found = timing.in_processes(
                prepare, (config, path, precision), config.processes, config.threads, config.seconds
            )
            results.setdefault(name, []).append(found)
    baseline = next(iter(results))
    for kind in ("training", "training" + timing.CPU, "evaluating", "evaluating" + timing.CPU):
        rates = {
            name: [found[kind] for found in rounds] for name, rounds in results.items() if kind in rounds[0]
        }
        print(f"{kind}, {config.processes} x {config.threads} threads")
        print(timing.table(rates, baseline))
    flops = origin["hardware"]["gflops_float32_matrix_product"]
    print(f"2048-cube matrix product: {flops} GFLOP/s; largest differences of the logits: ", end="")
    print(", ".join(f"{name} {difference:.1e}" for name, difference in differences.items()))
    evidence.write(config.json, origin | {"largest_differences": differences, "rounds": results})


if __name__ == "__main__":
    run_script(main, parse(Config))
