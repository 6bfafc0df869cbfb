"""The benchmarks of networks: both paths compute the same, every step runs, a failure is not waited for."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import epochs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import candidate  # noqa: E402
import dense_backbone  # noqa: E402
import network  # noqa: E402
import plain  # noqa: E402
import scaling  # noqa: E402
import timing  # noqa: E402

import genotypes  # noqa: E402
from model import NetworkCIFAR  # noqa: E402
from training.run import TrainingRun  # noqa: E402

CANDIDATE = candidate.Config(init_channels=4, layers=3, image_size=8, batch_size=4)
NETWORK = network.Config(init_channels=4, layers=3, batch_size=8, evaluation_batch_size=8)


@pytest.mark.parametrize("name", ["RelativeNAS", "DARTS_V2", "PDARTS"])
def test_the_plain_path_computes_the_same_in_training_and_evaluation(name):
    torch.manual_seed(0)
    ours = NetworkCIFAR(4, 10, 3, False, genotypes.lookup(name), image_size=16)
    theirs = plain.PlainNetwork(ours, everything=True)
    images = torch.randn(8, 3, 16, 16)
    logits = [path.train()(images)[0] for path in (ours, theirs)]
    assert torch.allclose(*logits, atol=1e-5)
    for values in logits:
        values.square().sum().backward()
    assert torch.allclose(ours.stem[0].weight.grad, theirs.stem[0].weight.grad, rtol=1e-3, atol=1e-3)
    assert torch.allclose(ours.eval()(images)[0], theirs.eval()(images)[0], atol=1e-5)


def test_the_plain_candidate_builds_every_operation_of_the_space():
    cell = plain.PlainCell(NetworkCIFAR(4, 10, 1, False, candidate.CELL).cells[0], everything=True)
    assert len(cell.unused) == 14 * len(genotypes.PRIMITIVES)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", ["plain", "project"])
@pytest.mark.parametrize(("benchmark", "config"), [(candidate, CANDIDATE), (network, NETWORK)])
def test_every_kind_of_step_runs(benchmark, config, path, precision, monkeypatch):
    kept = []
    monkeypatch.setattr(benchmark, "keep_memory", lambda: kept.append(1))  # not in the process of the tests
    work = benchmark.prepare(config, path, precision)
    assert len(kept) == (path == "project")
    assert {name: step() for name, step in work.steps.items()} == {"training": 4, "evaluating": 4}


def test_an_engine_is_measured_evaluating_alone(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(network, "keep_memory", lambda: None)
    work = network.prepare(NETWORK, "onnxruntime", "float32")
    assert {name: step() for name, step in work.steps.items()} == {"evaluating": 4}
    chosen = network.Config(backends=("onnxruntime", "openvino"), precisions=("bfloat16",))
    assert list(network.variants(chosen)) == ["plain bfloat16", "project bfloat16", "openvino bfloat16"]


def test_paths_that_differ_are_not_timed(monkeypatch):
    assert candidate.check_equal(CANDIDATE) <= 1e-4
    assert max(network.largest_differences(NETWORK).values()) <= 1e-4
    relu = plain.PlainCell.forward
    monkeypatch.setattr(plain.PlainCell, "forward", lambda self, s0, s1: 1.01 * relu(self, s0, s1))
    with pytest.raises(ValueError, match="differ"):
        candidate.check_equal(CANDIDATE)
    with pytest.raises(ValueError, match="differ"):
        network.largest_differences(NETWORK)


def test_two_processes_that_train_one_network():
    config = scaling.Config(init_channels=2, layers=1, batch_size=4)
    found = timing.in_processes(scaling.prepare, (config, True), 2, 1, count=2)
    assert found["training"] > 0


def fail() -> timing.Prepared:
    raise OSError("no such thing")


def test_a_process_that_fails_ends_the_measurement():
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="a process of the benchmark failed"):
        timing.in_processes(fail, (), 2, 1)
    assert time.monotonic() - begin < 60


def test_backbones_of_a_detector_are_compared_and_stopped_trainings_go_on(tmp_path, monkeypatch, run):
    monkeypatch.setattr("dense.digits.COUNTS", {"train": 16, "test": 8})
    flags = f"--out {tmp_path / 'out'} --seeds 1 --epochs 2"
    end, ended = TrainingRun.end_epoch, []

    def stop_after_the_third(self, *given, **more):
        ended.append(end(self, *given, **more))
        if len(ended) == 3:
            raise KeyboardInterrupt
        return ended[-1]

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "end_epoch", stop_after_the_third)
        assert run(dense_backbone, flags)[0] == 130
    assert (tmp_path / "out" / "cell-0" / "result.json").exists()
    code, _, err = run(dense_backbone, flags, "--json", tmp_path / "out.json")
    assert code == 0, err
    found = json.loads((tmp_path / "out.json").read_text())["backbones"]
    assert list(found) == ["cell", "mobilenet_v2"]
    costs = [found[name]["costs"]["backbone_multiply_adds"] for name in found]
    assert 0.9 < costs[0] / costs[1] < 1.1
    assert [len(epochs(tmp_path / "out" / f"{name}-0")) for name in found] == [2, 2]
    assert all(found[name]["ap50"]["n"] == 1 for name in found)
    code, _, err = run(dense_backbone, f"{flags} --epochs 3")
    assert (code, "other settings" in err) == (2, True)
