"""distributed.py: alone, and in two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, TORCHRUN

from common import distributed

TWO = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from common import distributed, flags
from images import sets
from search.candidates import Job, train_all
from test_candidates import digits_task
from genotypes import DARTS, PDARTS, RelativeNAS
from utils import say

device = distributed.init("cpu")
rank = distributed.rank()
assert distributed.world_size() == 2 and distributed.is_main() == (rank == 0)
say("only once")
assert distributed.broadcast_object(f"from {rank}") == "from 0"
assert distributed.broadcast_object(f"from {rank}", 1) == "from 1"

assert distributed.from_main(lambda: f"read by {rank}") == "read by 0"


def fails():
    raise ValueError(f"cannot be read by {rank}")


for expected, call in (
    ("cannot be read by 0", lambda: distributed.from_main(fails)),
    ("process 1 has other images than the first one (1, not 0)",
     lambda: distributed.check_equal(images=rank)),
):
    try:
        call()
    except ValueError as error:
        assert expected in str(error), error
    else:
        raise AssertionError(expected)
distributed.check_equal(images="same", steps=3)

tensors = [torch.full((2, 3), float(rank)), torch.tensor(rank), torch.full((4,), rank, dtype=torch.uint8).t()]
distributed.broadcast_(tensors, source=1)
assert all((tensor == 1).all() for tensor in tensors), tensors
means = [torch.tensor([rank, 2.0]), torch.tensor([[4.0 * rank]])]
distributed.average_(means)
assert [mean.tolist() for mean in means] == [[0.5, 2.0], [[2.0]]]
tensor = torch.full((2,), rank + 1.0)
distributed.sum_([tensor])
assert tensor.tolist() == [3.0, 3.0]

from test_loop import gradients, some_batches
images, labels = some_batches(sizes=(5,))[0]
shared = gradients(images[rank::2], labels[rank::2], 5)  # shares of three and two images
exchange, distributed.sum_gradients = distributed.sum_gradients, lambda parameters: None
alone = gradients(images, labels, 5)
distributed.sum_gradients = exchange
assert torch.allclose(shared[:-3], alone[:-3], atol=1e-6), (shared, alone)

torch.set_num_threads(1)
task = digits_task()
jobs = [Job(cell, (0, 0), [(0.05, 0.1)]) for cell in (DARTS, PDARTS, RelativeNAS)]
results = train_all(task, task.weight_set("test"), jobs)
if rank == int(sys.argv[2]):
    torch.save([(r.losses, r.correct, r.weights) for r in results], sys.argv[3])
distributed.barrier()
distributed.close()
assert distributed.world_size() == 1
flags.leave_torchrun()
"""


def test_alone_everything_is_the_identity() -> None:
    assert distributed.init("cpu") == torch.device("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    tensor = torch.ones(2)
    distributed.broadcast_([tensor], 0)
    distributed.sum_([tensor])
    distributed.barrier()
    assert tensor.tolist() == [1.0, 1.0]
    assert distributed.peak_memory(torch.device("cpu")) > 50 * 2**20
    distributed.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("device", ["tpu", "", "cuda:x", "meta", "cuda:-1"])
def test_a_wrong_device_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=r"--device .*: allowed are auto, cpu, cuda and cuda:N"):
        distributed.init(device)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(device: str) -> None:
    with pytest.raises(ValueError, match=f"--device {device}: PyTorch sees no CUDA device here"):
        distributed.init(device)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_lost_connection_means_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert distributed.stopped(KeyboardInterrupt())
    assert not distributed.stopped(lost), "there is no other process"
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.stopped(lost)
    assert not distributed.stopped(RuntimeError("shape mismatch"))
    assert distributed.stopped(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    assert distributed.stopped(RuntimeError("[pair.cc] writev: Broken pipe"))


def test_two_processes_get_what_one_gets(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    outcome = subprocess.run(
        [*TORCHRUN, script, ROOT / "tests", "1", tmp_path / "results.pt"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert outcome.stdout.count("only once") == 1

    from test_candidates import digits_task

    from genotypes import DARTS, PDARTS, RelativeNAS
    from search.candidates import Job, train_all

    task = digits_task()
    jobs = [Job(cell, (0, 0), [(0.05, 0.1)]) for cell in (DARTS, PDARTS, RelativeNAS)]
    expected = train_all(task, task.weight_set("test"), jobs)
    found = torch.load(tmp_path / "results.pt", weights_only=True)
    for one, (losses, correct, weights) in zip(expected, found, strict=True):
        assert torch.equal(one.losses, losses)
        assert torch.equal(one.correct, correct)
        assert all(torch.equal(one.weights[key], weights[key]) for key in one.weights)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_processes_end_with_a_torchrun_that_is_killed() -> None:
    child = (
        "import time; from common import distributed; distributed.init('cpu'); print('ready', flush=True); "
    )
    child += "time.sleep(99)"
    agent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"  # torchrun's part
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", agent, child]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.kill()
        started.communicate(timeout=20)  # its output ends when the child, too, is gone
