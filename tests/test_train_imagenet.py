"""train_imagenet.py and test_imagenet.py as a user runs them, on crops of two photographs."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT, TORCHRUN, Marker, epochs
from PIL import Image
from sklearn.datasets import load_sample_image

import test_imagenet
import train_imagenet
from common import checkpoint
from common.flags import parse

SMALL = (
    "--image_size 64 --init_channels 4 --layers 3 --batch_size 8 --epochs 2 --workers 0 --learning_rate 0.05"
)
SMALL += " --warmup_epochs 1 --device cpu"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Crops of two photographs: 28 train, 9 test, so that neither batches nor processes divide them."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    for part, counts in (("train", (14, 14)), ("val", (5, 4))):
        for name, count in zip(("flower", "china"), counts, strict=True):
            photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                x, y = (int(v) for v in random.integers(0, 300, 2))
                photograph.crop((x, y, x + 90, y + 70)).save(root / part / name / f"{index:02}.jpg")
    return root


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["--data", str(tree), "--save", str(folder), *SMALL.split()]
    train_imagenet.main(parse(train_imagenet.Config, arguments))
    return folder


def weights(folder):
    return checkpoint.load(folder / "model.pt", "network")["state_dict"]


def test_training_goes_on_from_the_weights_of_a_file(run, tree, finished, tmp_path):
    flags = f"{SMALL} --epochs 1 --warmup_epochs 0 --learning_rate 1e-30 --weights {finished / 'model.pt'}"
    assert run(train_imagenet, "--data", tree, flags, "--save", tmp_path / "run")[0] == 0
    before, after = weights(finished), weights(tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in after.items() if ".weight" in name)
    state = checkpoint.load(tmp_path / "run" / "model.pt", "network")
    assert state["origin"]["result"] == checkpoint.load(finished / "model.pt", "network")["result"]


def test_a_run_leaves_its_epochs_and_a_checkpoint_that_describes_itself(finished):
    assert [row["images"] for row in epochs(finished)] == ["28", "28"]
    assert [float(row["learning_rate"]) for row in epochs(finished)] == [0.025, 0.05]
    state = checkpoint.load(finished / "model.pt", "network")
    assert state["images"]["classes"] == ["china", "flower"]
    assert state["network"]["class"] == "NetworkImageNet"
    assert state["recipe"]["label_smoothing"] == 0.1
    assert state["result"]["test_images"] == 9


def test_killed_in_mid_epoch_and_resumed_it_is_the_same_run(tree, tmp_path, finished, run):
    folder = tmp_path / "run"
    flags = [*SMALL.replace("--workers 0", "--workers 2").split(), "--checkpoint_steps", "1"]
    command = [sys.executable, "train_imagenet.py", "--data", tree, "--save", folder, *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        wait_for(folder / "checkpoint.previous.pt", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state, _ = checkpoint.load_newest(folder / "checkpoint.pt", "train_imagenet")
    assert (state["epoch"], state["step"]) < (1, 3)
    code, _, error = run(train_imagenet, "--resume", folder, "--workers 0")  # at once: workers may still live
    assert code == 0, error
    assert epochs(folder) == epochs(finished)
    expected = weights(finished)
    for name, value in weights(folder).items():
        assert torch.equal(value, expected[name]), name


def wait_for(path, process):
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, "the training ended too early"
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_stopped_between_epochs_and_resumed_it_is_the_same_run(tree, tmp_path, finished, run, monkeypatch):
    folder = tmp_path / "run"
    end_epoch = train_imagenet.TrainingRun.end_epoch

    def stop(self, learning_rate):
        end_epoch(self, learning_rate)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_imagenet.TrainingRun, "end_epoch", stop)
        code, out, _ = run(train_imagenet, "--data", tree, "--save", folder, SMALL, "--checkpoint_steps 2")
    assert code == 130
    assert f"go on with: python train_imagenet.py --resume {folder}" in out
    good = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(good[: len(good) // 2])  # the one before is used, and named
    code, out, _ = run(train_imagenet, "--resume", folder)
    assert code == 0
    assert f"went on from {folder / 'checkpoint.previous.pt'}" in out
    assert epochs(folder) == epochs(finished)
    code, out, _ = run(train_imagenet, "--resume", folder)
    assert code == 0
    assert "the run is finished" in out


def test_two_processes_train_and_evaluate_exactly(tree, tmp_path, run):
    folder = tmp_path / "run"
    command = [*TORCHRUN, "train_imagenet.py", "--data", tree, "--save", folder, *SMALL.split()]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1
    assert [row["images"] for row in epochs(folder)] == ["28", "28"]
    result = checkpoint.load(folder / "model.pt", "network")["result"]
    code, _, error = run(
        test_imagenet,
        "--model_path",
        folder / "model.pt",
        "--data",
        tree,
        "--workers 0 --device cpu --json",
        tmp_path / "e",
    )
    assert code == 0, error
    alone = json.loads((tmp_path / "e").read_text())
    assert alone["test_images"] == result["test_images"] == 9
    assert alone["test_error"] == result["test_error"]
    assert alone["test_loss"] == pytest.approx(result["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data absent", "there is no folder absent/train"),
        ("--batch_size 29", "--batch_size 29: .*28 images"),
        ("--batch_size 4 --micro_batches 3", "need at least 6"),
        ("--arch Nobody", "Nobody"),
        ("--image_size 32", "32x32 is too small"),
        ("--no_auxiliary --auxiliary_weight 0.2", "--auxiliary_weight 0.2: no effect"),
        ("--warmup_epochs -1", "--warmup_epochs"),
        ("--colour", "colour"),
    ],
)
def test_wrong_flags_get_one_line_and_leave_nothing(tree, tmp_path, run, flags, message):
    folder = tmp_path / "run"
    code, _, error = run(train_imagenet, "--data", tree, "--save", folder, SMALL, flags)
    assert code == 2
    assert error.count("\n") == 1
    assert not folder.exists()
    assert re.search(message, error), error


def test_a_folder_in_use_and_other_settings_are_refused(tree, tmp_path, finished, run):
    code, _, error = run(train_imagenet, "--data", tree, "--save", finished, SMALL)
    assert (code, "exists already" in error) == (2, True)
    code, _, error = run(train_imagenet, "--resume", finished, "--learning_rate 0.1 --layers 4")
    assert (code, "--layers (was 3, now 4)" in error, "--learning_rate" in error) == (2, True, True)


def test_other_images_cannot_be_resumed_on(tree, tmp_path, finished, run):
    other = tmp_path / "other"
    for part in ("train", "val"):
        for name in ("china", "flower"):
            (other / part / name).mkdir(parents=True)
            for file in sorted((tree / part / name).iterdir())[1:]:
                (other / part / name / file.name).write_bytes(file.read_bytes())
    code, _, error = run(train_imagenet, "--resume", finished, "--data", other)
    assert (code, "other images" in error) == (2, True)
    (other / "val" / "flower").rename(other / "val" / "tower")
    code, _, error = run(train_imagenet, "--data", other, "--save", tmp_path / "run", SMALL)
    assert (code, "class 'flower' is in only one of train/ and val/" in error) == (2, True)


def test_a_diverging_training_stops_and_calls_no_spoilt_checkpoint_good(tree, tmp_path, run):
    folder = tmp_path / "run"
    flags = "--learning_rate 1e30 --checkpoint_steps 1"
    code, _, error = run(train_imagenet, "--data", tree, "--save", folder, SMALL, flags)
    assert code == 2
    assert "not finite in epoch 1, step 2; no checkpoint is surely good" in error
    assert checkpoint.load(folder / "checkpoint.pt", "train_imagenet")["step"] == 1
    assert not (folder / "model.pt").exists()


def test_evaluation_repeats_the_result_and_refuses_what_does_not_fit(tree, tmp_path, finished, run):
    model, image = finished / "model.pt", "--workers 0 --device cpu"
    result = checkpoint.load(model, "network")["result"]
    code, out, _ = run(test_imagenet, "--model_path", model, "--data", tree / "val", image, "--batch_size 4")
    assert code == 0
    assert f"top-1 error {result['test_error']:.2%}" in out
    (tmp_path / "there").write_text("kept")
    for flags, message in {
        "--layers 5": "--layers 5: the network in the file has 3",
        "--init_channels 46": "--init_channels 46: the network in the file has 4",
        "--arch DARTS": "--arch DARTS: the network in the file has another cell",
        f"--json {tmp_path / 'there'}": "exists already",
    }.items():
        code, _, error = run(test_imagenet, "--model_path", model, "--data", tree, image, flags)
        assert (code, error.count("\n"), message in error) == (2, 1, True), error
    assert (tmp_path / "there").read_text() == "kept"
    for name in ("a", "b", "c"):
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "others" / name / "0.png")
    code, _, error = run(test_imagenet, "--model_path", model, "--data", tmp_path / "others", image)
    assert (code, "class 'a' is one of the folder only" in error) == (2, True)


def test_images_are_named_and_the_network_exported(tree, tmp_path, finished, run):
    model, folder = finished / "model.pt", tree / "val" / "china"
    named = ("--model_path", model, "--predict", folder)
    code, out, error = run(test_imagenet, *named, "--json", tmp_path / "a")
    assert code == 0, error
    found = json.loads((tmp_path / "a").read_text())["predictions"]
    assert [entry["file"] for entry in found] == [str(folder / f"{i:02}.jpg") for i in range(4)]
    assert len(out.splitlines()) == 4
    assert {entry["class"] for entry in found[0]["classes"]} == {"china", "flower"}
    code, _, error = run(test_imagenet, *named, "--workers 2")
    assert (code, "--workers 2: has no effect with --predict" in error) == (2, True)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("torch", minversion="2.9")
    pytest.importorskip("onnxscript")
    code, out, error = run(test_imagenet, "--model_path", model, "--export", tmp_path / "network.onnx")
    assert code == 0, error
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert known["preparation"] == "scale the shorter side to 73 pixels and crop the middle 64x64"
    picture = Image.open(folder / "00.jpg").resize((90 * 73 // 70, 73), Image.Resampling.BILINEAR)
    left, top = round((picture.width - 64) / 2), round((73 - 64) / 2)
    pixels = np.asarray(picture.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)[None]
    (logits,) = session.run(["logits"], {"images": pixels})
    best = json.loads(known["classes"])[logits[0].argmax()]
    share = np.exp(logits[0].max()) / np.exp(logits[0]).sum()
    assert found[0]["classes"][0]["class"] == best
    assert found[0]["classes"][0]["probability"] == pytest.approx(share, abs=0.01)


def test_two_processes_evaluate_what_one_does(tree, tmp_path, finished, run, program):
    flags = [
        "--model_path",
        finished / "model.pt",
        "--data",
        tree,
        "--workers",
        0,
        "--batch_size",
        4,
        "--json",
    ]
    assert run(test_imagenet, *flags, tmp_path / "one.json")[0] == 0
    code, out, error = program.run_two(*flags, tmp_path / "two.json", script="test_imagenet")
    assert code == 0, error
    assert out.count("top-1 error") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for key in ("test_images", "test_error", "test_error_top5"):
        assert one[key] == two[key]
    assert one["test_loss"] == pytest.approx(two["test_loss"], rel=1e-6)


def test_an_image_that_only_the_second_process_reads_is_named(tree, tmp_path, finished, program):
    shutil.copytree(tree, tmp_path / "tree")
    broken = sorted((tmp_path / "tree" / "val" / "china").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:300])
    common = ["--data", tmp_path / "tree", "--workers", 0]
    training = [*common, *SMALL.replace("--epochs 2 --workers 0", "--epochs 1").split(), "--warmup_epochs", 0]
    pairs = [
        program.start_two(*common, "--model_path", finished / "model.pt", script="test_imagenet"),
        program.start_two(*training, "--save", tmp_path / "run", script="train_imagenet"),
    ]
    for first, second in pairs:
        code, _, error = second.wait()
        assert code == 2
        assert error.count("\n") == 1
        assert f"{broken} cannot be read as an image" in error
        code, out, error = first.wait()  # torchrun stops it, or it misses the other one
        assert code == 130
        assert "Traceback" not in out + error
    assert not (tmp_path / "run" / "model.pt").exists()


def test_bare_and_prefixed_state_dicts_are_evaluated(tree, tmp_path, finished, run):
    state = weights(finished)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "bare.pt")
    common = [
        "--model_path",
        tmp_path / "bare.pt",
        "--data",
        tree,
        "--workers 0 --device cpu --image_size 64",
    ]
    code, out, error = run(test_imagenet, *common, "--init_channels 4 --layers 3 --auxiliary")
    assert code == 0, error
    result = checkpoint.load(finished / "model.pt", "network")["result"]
    assert f"top-1 error {result['test_error']:.2%}" in out
    code, _, error = run(test_imagenet, *common, "--init_channels 5 --layers 3")
    assert (code, "belong to another network" in error) == (2, True)


def test_files_that_are_no_checkpoints_are_refused_and_never_run(tree, tmp_path, run):
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Marker(tmp_path / "marker"), protocol=2))
    torch.save({"state_dict": Marker(tmp_path / "marker")}, tmp_path / "object.pt")
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    torch.save({"kind": "network"}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("pickle.pt", "object.pt", "other.pt", "empty.pt", "text.pt", "absent.pt"):
        code, _, error = run(test_imagenet, "--model_path", tmp_path / name, "--data", tree)
        assert (code, error.count("\n"), name in error) == (2, 1, True), error
    assert not (tmp_path / "marker").exists()
