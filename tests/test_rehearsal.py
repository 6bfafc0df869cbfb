"""Every script on a device that is not the CPU: same results, no waiting within a step, few launches.

The CPU computes by PyTorch's own functions here (`operations.quick` is off), with the fused optimiser, as
other devices do. Both then run the same kernels in the same order, and must agree to the bit.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rehearsal
import torch
from conftest import ENVIRONMENT, ROOT, Program, epochs, random_cell, results, rows
from PIL import Image

import genotypes
import model
import operations
import test as test_script
import test_dense
import test_imagenet
import train
import train_dense
import train_imagenet
import train_search
from common import checkpoint, flags, kernels
from images import sets
from model import Network, NetworkCIFAR, NetworkImageNet
from training import loop, optimizer
from training.precision import forward

sys.path.insert(0, str(ROOT / "benchmarks"))

import launches

if (reason := rehearsal.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

DEVICE = "rehearsal:0"

# What a step or an evaluation batch asks for today. Each figure should fall; none may rise without a reason.
UPLOADS_PER_LARGE_BATCH = 2  # decoded images and their labels, the only ones that grow with the steps
LAUNCHES = {  # of a candidate of three cells
    ("plain", "float32", "step"): 341,
    ("plain", "float32", "batch"): 146,
    ("plain", "bfloat16", "step"): 453,
    ("plain", "bfloat16", "batch"): 204,
    ("project", "float32", "step"): 310,
    ("project", "float32", "batch"): 131,
    ("project", "bfloat16", "step"): 320,
    ("project", "bfloat16", "batch"): 133,
}

SEARCH = "--set digits --images 200 --estimate weight_set --pop_size 4 --generations 3 --finalists 2"
SEARCH += " --init_channels 4 --layers 3 --batch_size 50 --final_epochs 1 --recalibrate 1 --device cpu"
RANDOM = f"{SEARCH} --strategy random --no_rank --generations 1 --recalibrate 0"
TRAIN = "--set digits --init_channels 4 --layers 3 --batch_size 360 --device cpu"
RECIPE = f"{TRAIN} --epochs 2 --auxiliary --cutout --ema 0.9 --label_smoothing 0.1 --micro_batches 2"
DENSE = "--init_channels 4 --layers 3 --image_size 32 --batch_size 8 --epochs 1 --warmup_steps 1 --device cpu"
LARGE = "--image_size 64 --init_channels 4 --layers 3 --batch_size 4 --workers 0 --device cpu"
LARGE_RECIPE = f"{LARGE} --epochs 2 --warmup_epochs 1 --learning_rate 0.05 --micro_batches 2"


@contextlib.contextmanager
def plain_cpu() -> Iterator[None]:
    """The CPU without the functions that are for it alone."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (kernels, operations, model):
            patch.setattr(module, "quick", lambda x: False)
        patch.setattr(kernels, "rounds_products", lambda x: False)
        patch.setattr(optimizer, "fuses", lambda device: True)
        yield


WHERE = {"cpu": plain_cpu, "rehearsal": rehearsal.in_place_of_the_cpu}


def start(where: str, script: ModuleType, *given: object) -> rehearsal.Count:
    """Run a script's `main` on a device; what it asked of the rehearsal device."""
    words = [str(word) for flag in given for word in (flag.split() if isinstance(flag, str) else [flag])]
    with pytest.MonkeyPatch.context() as patch, WHERE[where](), rehearsal.count() as counted:
        patch.setattr(sys, "argv", [Path(script.__file__).name, *words])  # which --resume reads
        script.main(flags.parse(script.Config, words))
    return counted


class Killed(BaseException):
    """Nothing of the program runs after it."""


@contextlib.contextmanager
def killed_at_checkpoint(number: int) -> Iterator[None]:
    """Stop a program when this checkpoint is written but has not got its name yet."""
    replace, names = os.replace, []

    def replace_or_die(source: str, target: str | Path) -> None:
        names.append(Path(target).name)
        if names[-1] == "checkpoint.pt" and names.count("checkpoint.pt") == number:
            raise Killed
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"it ended before checkpoint {number}")


def assert_equal_networks(first: Path, second: Path) -> None:
    """Fails unless both runs ended with the same weights, to the bit."""
    assert_equal_weights(
        *(checkpoint.load(run / "model.pt", "network")["state_dict"] for run in (first, second))
    )


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# ---- the device itself


@pytest.fixture
def on_device() -> Iterator[None]:
    with rehearsal.in_place_of_the_cpu():
        yield


@pytest.mark.parametrize("training", [True, False])
def test_a_network_computes_what_it_computes_on_the_cpu(on_device: None, training: bool) -> None:
    network = NetworkCIFAR(4, 10, 3, True, random_cell(1), image_size=16).train(training)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    network.drop_path_prob = 0.3
    gradients = []
    for device in ("cpu", DEVICE):
        network.to(device).zero_grad()
        network.drop_path_generator = torch.Generator(device).manual_seed(3)
        logits, logits_aux = network(images.to(device))
        total = logits if logits_aux is None else logits + logits_aux
        torch.nn.functional.cross_entropy(total, labels.to(device)).backward()
        gradients.append([p.grad.cpu().clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 50
    for cpu, other in zip(*gradients, strict=True):
        assert torch.allclose(cpu, other, rtol=1e-3, atol=1e-5 * float(cpu.abs().max()) + 1e-7)


MISTAKES = {
    "add": lambda x: x + torch.ones(3),
    "mm": lambda x: x[None] @ torch.ones(3, 3),
    "cat": lambda x: torch.cat([x, torch.ones(3)]),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "add_": lambda x: torch.zeros(()).add_(x.sum()),
    "foreach_add_": lambda x: torch._foreach_add_([x], [torch.ones(3)]),
    "rand": lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "uniform_": lambda x: x.uniform_(generator=torch.Generator()),
    "mul": lambda x: x * x.to("rehearsal:1"),
    "convolution": lambda x: torch.nn.Conv1d(3, 1, 1)(x[None, :, None]),
}


@pytest.mark.parametrize("operation", MISTAKES)
def test_two_devices_are_an_error_that_names_the_operation(on_device: None, operation: str) -> None:
    with pytest.raises(
        rehearsal.WrongDevice, match=rf"{operation}\S* at tests/test_rehearsal.py:\d+: .* on "
    ):
        MISTAKES[operation](torch.ones(3, device=DEVICE))
    with pytest.raises(TypeError, match="tensor of rehearsal:0 to numpy"):
        torch.ones(3, device=DEVICE).numpy()


def test_what_cuda_allows_is_allowed(on_device: None) -> None:
    x = torch.arange(3.0, device=DEVICE)
    assert (x * torch.tensor(2.0) + 1).tolist() == [1, 3, 5]
    assert torch.where(x > 1, x, torch.tensor(0.0)).tolist() == [0, 0, 2]
    with rehearsal.count() as counted:
        assert x[torch.tensor([2, 0])].cpu().tolist() == [2, 0]
    assert (len(counted.uploads), len(counted.reads)) == (1, 1)


READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 1).any()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(force=True),
    "copy_": lambda x: torch.empty(3).copy_(x),
    "equal": lambda x: torch.equal(x, x.clone()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "save": lambda x: torch.save(x, io.BytesIO()),
}


@pytest.mark.parametrize("how", READS)
def test_a_read_by_the_host_is_counted(on_device: None, how: str) -> None:
    x = torch.arange(3.0, device=DEVICE)
    with rehearsal.count() as counted:
        READS[how](x)
    assert len(counted.reads) == 1
    assert "at tests/test_rehearsal.py:" in counted.reads[0]


def test_launches_and_copies_are_counted(on_device: None) -> None:
    x = torch.ones(4, 5)
    with rehearsal.count() as counted:
        y = x.to(DEVICE)
        y.view(20)[3:].detach().unsqueeze(0).expand(2, 17)
        torch.empty(3, device=DEVICE)
    assert counted.launches == 0
    assert (len(counted.uploads), counted.uploaded, counted.pageable) == (1, 80, 1)
    with rehearsal.count() as counted:
        y.mul_(2).half().float().half()
        x.pin_memory().to(DEVICE, non_blocking=True)
        torch._foreach_add_([y] * 111, 1.0)
        y.to("cpu", non_blocking=True)
    assert dict(counted.operations) == {"mul_": 1, "_to_copy": 3, "_foreach_add_": 2}
    assert (counted.casts, counted.pageable, counted.downloaded, counted.reads) == (3, 0, 80, [])


def test_a_mistake_in_a_script_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "scale_and_shift", lambda *x: (torch.ones(8), torch.ones(8)))
    with pytest.raises(
        rehearsal.WrongDevice, match=r"addcmul\S* at images/sets.py:\d+: a tensor \(8,\) is on cpu"
    ):
        start("rehearsal", train, TRAIN, "--save", tmp_path / "run")


# ---- searches


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same search on the CPU and on the device, and on the device with two kills."""
    root = tmp_path_factory.mktemp("searches")
    for where in WHERE:
        start(where, train_search, SEARCH, "--save", root / where)
    return {where: root / where for where in WHERE}


def test_a_search_is_that_of_the_cpu(searches: dict[str, Path]) -> None:
    assert results(searches["rehearsal"]) == results(searches["cpu"])
    assert len(rows(searches["cpu"] / "history.csv")) == 6
    assert all(math.isfinite(float(row["loss_a"])) for row in rows(searches["cpu"] / "history.csv"))
    assert_equal_networks(searches["rehearsal"], searches["cpu"])


def test_a_search_goes_on_in_the_middle_and_in_the_finals(searches: dict[str, Path], tmp_path: Path) -> None:
    with killed_at_checkpoint(4):
        start("rehearsal", train_search, SEARCH, "--save", tmp_path / "run")
    with killed_at_checkpoint(5):  # the sixth comparison's was the third, the first finalist's the fourth
        start("rehearsal", train_search, "--resume", tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "search")
    assert (len(state["history"]), len(state["finalists"])) == (6, 1)
    start("rehearsal", train_search, "--resume", tmp_path / "run")
    assert results(tmp_path / "run") == results(searches["rehearsal"])
    assert_equal_networks(tmp_path / "run", searches["rehearsal"])


@pytest.fixture(scope="module")
def random_searches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same search among random cells on the CPU and on the device."""
    root = tmp_path_factory.mktemp("random")
    for where in WHERE:
        start(where, train_search, RANDOM, "--save", root / where)
    return {where: root / where for where in WHERE}


def test_a_random_search_is_that_of_the_cpu(random_searches: dict[str, Path]) -> None:
    assert results(random_searches["rehearsal"]) == results(random_searches["cpu"])
    assert_equal_networks(random_searches["rehearsal"], random_searches["cpu"])


def in_two_processes(folder: Path, script: str, *given: object) -> str:
    """Run a script on the device in two processes, as torchrun does; what the first one prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    words = [str(word) for flag in given for word in (flag.split() if isinstance(flag, str) else [flag])]
    command = [sys.executable, str(ROOT / "tests" / "rehearsal.py"), script, *words]
    both = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT | together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        printed = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], printed
    return printed[0][0]


def test_two_processes_search_as_one_does(random_searches: dict[str, Path], tmp_path: Path) -> None:
    printed = in_two_processes(tmp_path, "train_search", RANDOM, "--save", tmp_path / "run")
    assert results(tmp_path / "run") == results(random_searches["rehearsal"])
    assert_equal_networks(tmp_path / "run", random_searches["rehearsal"])
    assert int(printed.split()[-2]) > 0, "no messages"


# ---- trainings


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training on the CPU and on the device."""
    root = tmp_path_factory.mktemp("trainings")
    for where in WHERE:
        start(where, train, RECIPE, "--save", root / where)
    return {where: root / where for where in WHERE}


def test_a_training_is_that_of_the_cpu(trainings: dict[str, Path]) -> None:
    assert epochs(trainings["rehearsal"]) == epochs(trainings["cpu"])
    assert_equal_networks(trainings["rehearsal"], trainings["cpu"])
    found = [checkpoint.load(run / "model.pt", "network")["result"] for run in trainings.values()]
    assert found[0] == found[1]


def test_a_training_goes_on(trainings: dict[str, Path], tmp_path: Path) -> None:
    with killed_at_checkpoint(3):
        start("rehearsal", train, RECIPE, "--checkpoint_steps 2 --save", tmp_path / "run")
    start("rehearsal", train, "--resume", tmp_path / "run")
    assert epochs(tmp_path / "run") == epochs(trainings["rehearsal"])
    assert_equal_networks(tmp_path / "run", trainings["rehearsal"])


def test_a_training_starts_from_weights(trainings: dict[str, Path], tmp_path: Path) -> None:
    weights = trainings["cpu"] / "model.pt"
    for where in WHERE:
        words = f"{TRAIN} --epochs 1 --validate 0.3 --weights {weights}"
        start(where, train, words, "--save", tmp_path / where)
    assert_equal_networks(tmp_path / "rehearsal", tmp_path / "cpu")
    assert epochs(tmp_path / "rehearsal") == epochs(tmp_path / "cpu")


@pytest.mark.parametrize("model", ["ssdlite", "lraspp"])
def test_a_dense_training_is_that_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr("dense.digits.COUNTS", {"train": 16, "test": 8})
    for where in WHERE:
        counted = start(where, train_dense, f"{DENSE} --model {model} --save", tmp_path / where)
        assert (counted.operations["_fused_sgd_"] > 0) == (where == "rehearsal")
        start(where, test_dense, "--device cpu --model_path", tmp_path / where / "model.pt")
    assert epochs(tmp_path / "rehearsal") == epochs(tmp_path / "cpu")
    first, second = (checkpoint.load(tmp_path / where / "model.pt", "dense") for where in WHERE)
    assert_equal_weights(first["state_dict"], second["state_dict"])
    assert first["result"] == second["result"]


def test_two_processes_train_as_two_on_the_cpu(tmp_path: Path, program: Program) -> None:
    words = [*TRAIN.split(), "--epochs", "1", "--save"]
    code, _, error = program.run_two(*words, tmp_path / "cpu", script="train")
    assert code == 0, error
    in_two_processes(tmp_path, "train", *words, tmp_path / "rehearsal")
    losses = [float(epochs(tmp_path / where)[0]["loss"]) for where in WHERE]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # that CPU used its own functions


def test_an_evaluation_is_that_of_the_cpu(
    trainings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "picture.png")
    model_path = f"--device cpu --model_path {trainings['cpu'] / 'model.pt'}"
    printed = []
    for where in WHERE:
        start(where, test_script, model_path, "--predict", tmp_path / "picture.png")
        printed.append(capsys.readouterr().out)
        start(where, test_script, model_path)
        printed.append(capsys.readouterr().out.splitlines()[1])
    assert printed[:2] == printed[2:]
    assert "picture.png: " in printed[0]
    assert "top-1 error" in printed[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training images and 5 others in two classes."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    for part, counts in (("train", (7, 7)), ("val", (3, 2))):
        for name, amount in zip(("a", "b"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for index in range(amount):
                pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def test_a_training_on_large_images_is_that_of_the_cpu(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for where in WHERE:
        start(where, train_imagenet, LARGE_RECIPE, "--data", tree, "--save", tmp_path / where)
        words = f"--model_path {tmp_path / where / 'model.pt'} --workers 0 --device cpu"
        capsys.readouterr()
        start(where, test_imagenet, words, "--data", tree)
        printed.append(capsys.readouterr().out.splitlines()[1])
    assert epochs(tmp_path / "rehearsal") == epochs(tmp_path / "cpu")
    assert_equal_networks(tmp_path / "rehearsal", tmp_path / "cpu")
    assert printed[0] == printed[1]
    with killed_at_checkpoint(4):  # two after each epoch's third and last step
        words = f"{LARGE_RECIPE} --checkpoint_steps 3"
        start("rehearsal", train_imagenet, words, "--data", tree, "--save", tmp_path / "run")
    start("rehearsal", train_imagenet, "--resume", tmp_path / "run")
    assert_equal_networks(tmp_path / "run", tmp_path / "cpu")


# ---- what waits, and what is launched


def in_loops(places: list[str]) -> list[str]:
    """Without what depends on the number of tensors: checkpoints, and start values of weights."""
    return [place for place in places if not re.search(r"common/checkpoint.py|model_search.py", place)]


def assert_nothing_waits(few: rehearsal.Count, many: rehearsal.Count, uploads: int) -> None:
    """Fails if more steps mean more reads, or more `uploads` than so many."""
    assert len(in_loops(many.reads)) == len(in_loops(few.reads)), many.reads
    assert len(in_loops(many.uploads)) - len(in_loops(few.uploads)) <= uploads, many.uploads
    assert few.uploads, "nothing was counted"
    assert few.reads, "nothing was counted"


def test_a_search_waits_for_nothing_between_batches(tmp_path: Path) -> None:
    few, many = (
        start(
            "rehearsal",
            train_search,
            RANDOM,
            f"--pop_size 2 --batch_size {size} --save {tmp_path / str(size)}",
        )
        for size in (50, 25)
    )
    assert_nothing_waits(few, many, uploads=0)


def test_a_training_waits_for_nothing_between_batches(tmp_path: Path) -> None:
    few, many = (
        start("rehearsal", train, f"{TRAIN} --epochs 1 --batch_size {size} --save {tmp_path / str(size)}")
        for size in (360, 120)
    )
    assert_nothing_waits(few, many, uploads=0)


def test_a_training_on_large_images_waits_for_nothing_between_batches(tree: Path, tmp_path: Path) -> None:
    words = f"{LARGE} --epochs 1 --warmup_epochs 0 --data {tree}"
    few, many = (
        start("rehearsal", train_imagenet, words, f"--batch_size {size} --save {tmp_path / str(size)}")
        for size in (4, 2)
    )
    assert_nothing_waits(few, many, UPLOADS_PER_LARGE_BATCH * ((7 - 4) + (3 - 2)))


def test_launches_of_a_candidate(
    run: Callable[..., tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "SUBJECTS", {"candidate": ("plain", "project")})
    code, printed, error = run(launches, "--layers 3 --json", tmp_path / "launches.json")
    assert code == 0, error
    found = {
        tuple(row[key] for key in ("path", "precision", "part")): row
        for row in json.loads((tmp_path / "launches.json").read_text())["rows"]
    }
    assert len(found) == 16
    for (path, precision, part), row in found.items():
        assert re.search(
            rf"candidate, {path}, {precision}, {part} +{row['launches']} +{row['casts']} ", printed
        )
        if part in ("step", "batch"):
            assert row["reads"] == row["downloads"] == 0
            assert row["launches"] <= LAUNCHES[path, precision, part]
            if path == "plain":
                assert (row["casts"] > 50) == (precision == "bfloat16")
            else:
                assert row["casts"] < 10
    assert found["plain", "float32", "step"]["uploaded"] == 2 * (3 * 16 * 16 * 4 + 8)


def test_launches_do_not_depend_on_the_batch() -> None:
    with rehearsal.in_place_of_the_cpu():
        few, many = (
            launches.count(launches.Config(batch_size=size, layers=3), "network", "project", "float32")
            for size in (2, 3)
        )
    for part, found in few.items():
        assert found | {"uploaded": 0} == many[part] | {"uploaded": 0}
    assert many["step"]["uploaded"] == few["step"]["uploaded"] == 0
    assert many["once an epoch"]["uploaded"] > few["once an epoch"]["uploaded"] > 0


# ---- other precisions, and compiled


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_training_in_mixed_precision(trainings: dict[str, Path], tmp_path: Path, precision: str) -> None:
    words = f"{RECIPE} --epochs 1 --precision {precision}"
    counted = start("rehearsal", train, words, "--save", tmp_path / "run")
    assert counted.operations["_foreach_copy_"] > counted.casts / 10, "weights are lowered all at once"
    assert 0 < counted.casts < 100
    row, exact = epochs(tmp_path / "run")[0], epochs(trainings["cpu"])[0]
    assert float(row["loss"]) == pytest.approx(float(exact["loss"]), rel=0.02)
    assert row["loss"] != exact["loss"]
    state = checkpoint.load(tmp_path / "run" / "model.pt", "network")["state_dict"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    scaler = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "train")["scaler"]
    assert (precision == "float16") == (scaler.get("scale", 0) >= 2**10)


def test_a_step_whose_gradients_overflow_is_skipped(on_device: None) -> None:
    network = NetworkCIFAR(4, 10, 3, False, random_cell(1), image_size=16).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    scaler = torch.amp.GradScaler(DEVICE.split(":")[0], init_scale=2.0**40, backoff_factor=2.0**-30)
    images, labels = torch.randn(4, 3, 16, 16, device=DEVICE), torch.arange(4, device=DEVICE)
    weights, scales = [network.classifier.weight.tolist()], [scaler.get_scale()]
    for _ in range(2):
        loop.train_step(network, optimizer, images, labels, images=4, scaler=scaler, precision="float16")
        weights.append(network.classifier.weight.tolist())
        scales.append(scaler.get_scale())
    assert weights[0] == weights[1] != weights[2]
    assert scales == [2.0**40, 2.0**10, 2.0**10]


SMALL_CELL = (("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 0), ("max_pool_3x3", 2))
SMALL = genotypes.Genotype(SMALL_CELL, (2, 3), SMALL_CELL, (2, 3))


@pytest.fixture
def fresh_compiler() -> None:
    """Nothing is left of what other tests compiled: after a ragged batch sizes would be symbols."""
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("kind", "size"), [(NetworkCIFAR, 16), (NetworkImageNet, 64)])
def test_a_network_is_one_graph_to_a_compiler(kind: type[Network], size: int) -> None:
    network = kind(4, 10, 3, True, SMALL, image_size=size)
    network.drop_path_prob = 0.3
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images, found = torch.randn(3, 3, size, size), []
    with plain_cpu():
        for one in (network, compiled):
            torch.manual_seed(1)
            network.zero_grad()
            logits, logits_aux = one(images)
            (logits + logits_aux).square().sum().backward()
            found.append([logits, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 40
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(ours.detach().abs().max()) + 1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_graphs_of_a_training_with_drop_path() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Callable:
        graphs.append(graph)
        return graph.forward

    network = NetworkCIFAR(4, 10, 3, False, SMALL, image_size=16)
    network.drop_path_generator = torch.Generator()
    compiled = torch.compile(network, backend=keep, fullgraph=True)
    for network.drop_path_prob in (0.3, 0.4, 0.5):  # a later epoch needs no other graph
        forward(compiled, torch.randn(2, 3, 16, 16), "float32", {})
    assert len(graphs) == 1
