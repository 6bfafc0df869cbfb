"""benchmarks/gpu.py: refused where there is no GPU; its own code on the device that poses as one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rehearsal
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flags", ["", "--device cpu"])
def test_without_a_gpu_it_says_so_in_one_line(run: Callable[..., tuple], flags: str) -> None:
    code, printed, error = run(gpu, *flags.split())
    assert (code, printed) == (2, "")
    assert len(error.strip().splitlines()) == 1
    assert "--device" in error


@pytest.mark.skipif(rehearsal.missing() is not None, reason=str(rehearsal.missing()))
def test_it_checks_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    with rehearsal.in_place_of_the_cpu():
        gpu.main(gpu.Config(device="cpu", seconds=0.01, compile=False, tiny=True, json=str(path)))
    found = json.loads(path.read_text())
    assert found["checks"].pop("difference_to_the_cpu") < 1e-3
    assert found["checks"] == dict.fromkeys(("equal_to_the_cpu", "deterministic", "resumed_is_equal"), True)
    assert found["rows"].keys() == {"candidate, float32", "candidate, bfloat16"}
    assert all(row["step"] > 0 and row["evaluated_per_second"] > 0 for row in found["rows"].values())
    assert found["hours"]["search"] > 0
    assert "the published search would take" in capsys.readouterr().out
    assert not torch.are_deterministic_algorithms_enabled()
