"""Estimated latencies against whole networks: does the sum of edges rank cells, and how far is it off?

    python benchmarks/latency.py                                             # DARTS space, one CPU thread
    python benchmarks/latency.py --space nasbench201 --channels 16 --layers 15 --json latency.json
    python benchmarks/latency.py --device cuda --batch_size 64
    python benchmarks/latency.py --backend onnxruntime

The cells are random ones that took no part in the table. Reported with Kendall's and Spearman's rank
correlation is the relative error: of the estimate, and of the sum of edges alone, before whole networks
correct it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

import evidence
import numpy as np
import scipy.stats
import torch

from common import distributed
from common.flags import check_range, parse, run_script
from model_search import FullSize
from search.latency import Conditions, Latency, measured, random_cells, times_of_networks
from spaces import Space
from training.precision import choose_precision


@dataclass(frozen=True)
class Config:
    """Measure a table of edges, and whole networks beside it."""

    space: Literal["darts", "nasbench201"] = "darts"
    """whose cells"""
    networks: int = 30
    """whole networks that are measured"""
    channels: int = 36
    """of the first cell"""
    layers: int = 20
    """cells"""
    image_size: int = 32
    """rows and columns"""
    batch_size: int = 1
    """images at once"""
    seed: int = 1
    """of the random cells"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, else float32"""
    channels_last: bool = True
    """memory layout of images and weights"""
    threads: int = 1
    """CPU threads"""
    backend: Literal["torch", "onnxruntime"] = "torch"
    """what runs the networks"""
    json: str | None = None
    """write the result to this file, which must not exist"""

    def check(self) -> None:
        """Raise ValueError for values that cannot be measured."""
        check_range(self, "networks", 3)
        check_range(self, "seed", 1)  # 0 are the cells of the table
        check_range(self, "channels layers batch_size threads", 1, 10**4)
        check_range(self, "image_size", 8, 1024)
        evidence.check_output(self.json)


def compared(estimated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Rank correlations, and the mean and the largest relative error."""
    errors = np.abs(estimated / real - 1)
    return {
        "kendall_tau": float(scipy.stats.kendalltau(estimated, real).statistic),
        "spearman": float(scipy.stats.spearmanr(estimated, real).statistic),
        "mean_error": float(errors.mean()),
        "largest_error": float(errors.max()),
        "bias": float((estimated / real).mean() - 1),
    }


def measure_latencies(config: Config, device: torch.device) -> dict[str, Any]:
    """The table, the networks' times beside their estimates, and how well they agree."""
    space = Space(config.space)
    size = FullSize(C=config.channels, num_classes=10, layers=config.layers, image_size=config.image_size)
    precision = choose_precision(device, config.precision)
    conditions = Conditions(
        device, precision, config.channels_last, config.batch_size, config.threads, config.backend
    )
    conditions.check()
    begin = time.perf_counter()
    latency = Latency(size, measured(size, space, conditions))
    seconds = time.perf_counter() - begin
    cells = random_cells(space, config.networks, config.seed)
    real = np.array(times_of_networks(size, cells, conditions))
    estimated = np.array([latency(cell) for cell in cells])
    alone = np.array([latency.sum_of_edges(cell) for cell in cells])
    again = np.array(times_of_networks(size, cells, conditions))
    multiply_adds = np.array([size(cell)[1] for cell in cells], dtype=float)
    return {
        "seconds_of_the_table": seconds,
        "table": latency.table._asdict(),
        "milliseconds": {"whole": real.tolist(), "estimated": estimated.tolist(), "edges": alone.tolist()},
        "estimate": compared(estimated, real),
        "edges_alone": compared(alone, real),
        "measured_again": compared(again, real),
        "multiply_adds_tau": float(scipy.stats.kendalltau(multiply_adds, real).statistic),
    }


def main(config: Config) -> None:
    device = distributed.init(config.device)
    torch.set_num_threads(config.threads)
    found = measure_latencies(config, device)
    times = found["milliseconds"]["whole"]
    print(
        f"table: {len(found['table']['edges'])} edges in {found['seconds_of_the_table']:.0f} s; "
        f"whole networks {min(times):.1f} to {max(times):.1f} ms"
    )
    for name in ("estimate", "edges_alone", "measured_again"):
        row = found[name]
        print(
            f"{name:15} tau {row['kendall_tau']:.2f}, Spearman {row['spearman']:.2f}, "
            f"error {row['mean_error']:.1%} (largest {row['largest_error']:.1%}), bias {row['bias']:+.1%}"
        )
    print(f"multiply-adds alone: tau {found['multiply_adds_tau']:.2f}")
    evidence.write(config.json, evidence.provenance(asdict(config)) | found)
    distributed.close()


if __name__ == "__main__":
    run_script(main, parse(Config))
