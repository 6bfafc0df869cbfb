"""What every benchmark leaves: its values and where they were measured, in JSON that is never overwritten."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's modules, from any folder

from common.flags import check_new_file
from utils import write_atomically

ROOT = Path(__file__).resolve().parent.parent


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sd (None for a single value), n and the values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": list(values)}


def matrix_product(size: int = 2048) -> float:
    """GFLOP/s of a square float32 matrix product with all threads, to compare machines by."""
    import torch  # here and below: the searches on tables do without

    a = torch.rand(size, size)
    a @ a
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Command, settings, commit, versions and hardware of a measurement, as plain types."""
    import torch

    from training.card import processor

    return {
        "command": " ".join(["python", *sys.argv]),
        "config": dict(config),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gflops_float32_matrix_product": round(matrix_product(), 1),
            "load_average": os.getloadavg()[0],  # what else the machine was doing
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or a copy without its history
    return result.stdout.strip()


def check_output(path: str | None) -> None:
    """Refuse, before anything is measured, to overwrite a file or to write where no folder is."""
    check_new_file("json", path)


def write(path: str | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all, unless no file was asked for. FileExistsError where it is
    there already.
    """
    if path is not None:
        write_atomically(path, json.dumps(result, indent=1) + "\n", new=True)
