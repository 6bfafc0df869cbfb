"""test.py as a user runs it. (The script at the root is test.py; this file tests it.)"""

import importlib.util
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TORCHRUN, Marker
from PIL import Image
from sklearn.datasets import load_digits

import train
from common import checkpoint
from common.flags import parse
from model import count

# By its path, as Python's standard library has a package `test` too.
specification = importlib.util.spec_from_file_location("pairnas_test_script", ROOT / "test.py")
script = importlib.util.module_from_spec(specification)
sys.modules["pairnas_test_script"] = script
specification.loader.exec_module(script)

NETWORK = "--init_channels 4 --layers 3"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network trained on the digits for two epochs."""
    folder = tmp_path_factory.mktemp("model") / "run"
    flags = f"--set digits {NETWORK} --auxiliary --epochs 2 --batch_size 64 --learning_rate 0.1 --device cpu"
    train.main(parse(train.Config, [*flags.split(), "--drop_path_prob", "0", "--save", str(folder)]))
    return folder / "model.pt"


@pytest.fixture
def run(run):
    return partial(run, script)


def digit_folder(root, classes=range(10), size=8):
    """A few of the digits as class folders of image files."""
    digits = load_digits()
    for label in classes:
        (root / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:3]:
            image = Image.fromarray((digits.images[index] * 255 / 16).astype("uint8"))
            image.resize((size, size)).save(root / str(label) / f"{index}.png")
    return root


def test_the_path_is_enough_and_gives_the_cards_figures(run, model, tmp_path):
    code, out, _ = run("--model_path", model, "--json", tmp_path / "result.json")
    assert code == 0
    assert f"{model}: trained on digits; tested on 355 images of digits" in out
    assert "95% confidence" in out
    assert "images/s" in out
    result = json.loads((tmp_path / "result.json").read_text())
    card = json.loads((model.parent / "card.json").read_text())
    assert result["test_error"] == card["result"]["test_error"] < 0.8
    assert result["test_error_top5"] == card["result"]["test_error_top5"] < result["test_error"]
    assert result["test_loss"] == pytest.approx(card["result"]["test_loss"], rel=1e-5)
    assert (result["parameters"], result["multiply_adds"]) == (card["parameters"], card["multiply_adds"])
    low, high = result["test_interval"]
    assert low < result["test_error"] < high
    code, plain, _ = run("--model_path", model, "--no_fold", "--auxiliary", NETWORK, "--arch RelativeNAS")
    assert code == 0
    assert plain.splitlines()[1] == out.splitlines()[1]


def test_two_processes_count_every_image_once(run, model, tmp_path):
    run("--model_path", model, "--json", tmp_path / "one.json")
    command = [*TORCHRUN, "test.py", "--model_path", model, "--json", tmp_path / "two.json"]
    subprocess.run([*command, "--batch_size", "100"], cwd=ROOT, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for key in ("test_images", "test_error", "test_error_top5"):
        assert one[key] == two[key]
    assert one["test_loss"] == pytest.approx(two["test_loss"], rel=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_state_dicts_need_the_flags_only(run, model, tmp_path, prefix):
    state = checkpoint.load(model)["state_dict"]
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "bare.pt")
    for auxiliary in ("--auxiliary", ""):  # asked for or not, the head that is there does no harm
        code, out, err = run("--model_path", tmp_path / "bare.pt", "--set digits", NETWORK, auxiliary)
        assert code == 0, err
        assert "trained on images that the file does not name; tested on 355 images of digits" in out


def test_other_images_with_the_same_classes_are_evaluated_and_both_sets_named(run, model, tmp_path):
    folder = digit_folder(tmp_path / "test")
    digit_folder(tmp_path / "train")
    code, out, err = run("--model_path", model, "--set folder --data", folder.parent)
    assert code == 0, err
    assert "trained on digits; tested on 30 images of folder" in out


def test_labels_follow_the_names_of_the_classes(run, tmp_path):
    for part in ("train", "test"):
        source = digit_folder(tmp_path / part, range(3))
        for label, name in enumerate("abc"):
            (source / str(label)).rename(source / name)
    flags = f"--set folder {NETWORK} --epochs 1 --batch_size 4 --device cpu --data {tmp_path}"
    train.main(parse(train.Config, [*flags.split(), "--save", str(tmp_path / "run")]))
    mine = tmp_path / "run" / "model.pt"
    state = checkpoint.load(mine)
    weights = {  # the same network, which numbers its classes the other way round
        key: value.flip(0) if "classifier" in key else value for key, value in state["state_dict"].items()
    }
    images = state["images"] | {"classes": ["c", "b", "a"]}
    checkpoint.save(tmp_path / "turned.pt", state | {"state_dict": weights, "images": images})
    found = []
    for file in (mine, tmp_path / "turned.pt"):
        assert run("--model_path", file, "--json", tmp_path / f"{file.stem}.json")[0] == 0
        found.append(json.loads((tmp_path / f"{file.stem}.json").read_text()))
    assert found[0]["test_error"] == found[1]["test_error"]
    assert found[0]["test_loss"] == pytest.approx(found[1]["test_loss"], rel=1e-5)
    for part in ("train", "test"):
        (tmp_path / part / "b").rename(tmp_path / part / "emu")
    code, _, err = run("--model_path", mine)
    assert code == 2
    assert "class 'b' is one of the network only" in err


def test_other_names_in_another_set_are_matched_by_number_and_a_line_says_so(run, model, tmp_path):
    for part in ("train", "test"):
        source = digit_folder(tmp_path / part)
        (source / "9").rename(source / "nine")
    code, out, _ = run("--model_path", model, "--set folder --data", tmp_path)
    assert code == 0
    assert "folder has other classes than the network ('9', ...): matched by number" in out


def test_predict_names_the_classes_of_images_of_any_size_and_colour(run, model, tmp_path):
    digits = load_digits()
    grey = Image.fromarray((digits.images[0] * 255 / 16).astype("uint8"))
    grey.save(tmp_path / "grey.png")
    grey.resize((64, 48)).convert("RGB").save(tmp_path / "colour.png")
    code, out, _ = run("--model_path", model, "--predict", tmp_path / "grey.png", tmp_path / "colour.png")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith(f"{tmp_path}/grey.png: ")
    assert second.startswith(f"{tmp_path}/colour.png: ")
    assert first.count("%") == 3


def test_predict_takes_folders_and_a_bad_file_does_not_lose_the_others(run, model, tmp_path):
    photos = digit_folder(tmp_path / "photos", [3, 7])
    (photos / "3" / "notes.txt").write_text("no image, and passed over")
    (photos / "7" / "broken.png").write_bytes(b"no image")
    given = ["--predict", photos, tmp_path / "none.png", photos / "3"]
    code, out, err = run("--model_path", model, *given, "--batch_size 4 --json", tmp_path / "out.json")
    assert code == 2
    assert err.startswith("test.py: --predict: 2 of 11 files left out; the first: ")
    assert err.count("\n") == 1
    lines = out.splitlines()
    files = sorted((photos / "3").glob("*.png"))
    assert (
        [line.split(": ")[0] for line in lines[:3]]
        == [str(file) for file in files]
        == [line.split(": ")[0] for line in lines[-3:]]
    )
    assert sum("cannot be read as an image" in line for line in lines) == 2
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["model_path"] == str(model)
    assert len(found["predictions"]) == len(lines) == 11
    first = found["predictions"][0]
    assert first["file"] == str(files[0])
    shares = [entry["probability"] for entry in first["classes"]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    best = first["classes"][0]
    assert lines[0].startswith(f"{files[0]}: {best['class']} {best['probability']:.1%}, ")
    errors = [entry["error"] for entry in found["predictions"] if "error" in entry]
    assert len(errors) == 2
    assert "broken.png" in errors[0]
    (tmp_path / "empty").mkdir()
    code, out, err = run("--model_path", model, "--predict", tmp_path / "empty")
    assert (code, out) == (2, "")
    assert "--predict" in err
    assert "holds no image" in err


def test_the_checkpoint_of_a_training_that_is_not_finished_is_one_of_a_network(run, tmp_path, monkeypatch):
    flags = f"--set digits {NETWORK} --epochs 2 --batch_size 64 --ema 0.9 --device cpu"
    config = parse(train.Config, [*flags.split(), "--save", str(tmp_path / "run")])
    with monkeypatch.context() as patched:
        patched.setattr(train.loop, "finish", lambda *given: False)  # as if it were killed here
        train.main(config)
    file = tmp_path / "run" / "checkpoint.pt"
    code, out, err = run("--model_path", file, "--json", tmp_path / "out.json")
    assert code == 0, err
    assert "trained on digits (after 2 of 2 epochs); tested on 355 images of digits" in out
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(tmp_path / "run")])
    train.main(parse(train.Config))
    result = checkpoint.load(tmp_path / "run" / "model.pt")["result"]
    assert json.loads((tmp_path / "out.json").read_text())["test_error"] == result["test_error"]
    state = checkpoint.load(file)
    checkpoint.save(tmp_path / "old.pt", {key: state[key] for key in state if key != "description"})
    code, _, err = run("--model_path", tmp_path / "old.pt")
    assert code == 2
    assert "old.pt: of an older version, which does not describe its network" in err


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_another_engine_finds_the_same_errors(run, model, tmp_path, backend):
    pytest.importorskip("torch", minversion="2.9")
    pytest.importorskip("onnxscript")
    pytest.importorskip(backend)
    run("--model_path", model, "--json", tmp_path / "torch.json")
    code, out, err = run("--model_path", model, "--backend", backend, "--json", tmp_path / "other.json")
    assert code == 0, err
    assert f"{backend} float32: ready after " in out
    ours, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("torch", "other"))
    assert (other["backend"], other["test_error"]) == (backend, ours["test_error"])
    assert other["test_loss"] == pytest.approx(ours["test_loss"], rel=1e-4)


def test_predict_from_a_bare_state_dict_takes_the_figures_of_the_set(run, model, tmp_path):
    torch.save(checkpoint.load(model)["state_dict"], tmp_path / "bare.pt")
    file = next((digit_folder(tmp_path / "images", [3]) / "3").iterdir())
    code, bare, err = run("--model_path", tmp_path / "bare.pt", "--set digits", NETWORK, "--predict", file)
    assert code == 0, err
    _, described, _ = run("--model_path", model, "--predict", file, file, file, "--batch_size 2")
    assert bare.replace("class ", "") == described.splitlines(keepends=True)[0]
    assert len(set(described.splitlines())) == 1
    code, _, err = run("--model_path", tmp_path / "bare.pt", NETWORK, "--predict", file)
    assert code == 2
    assert "--set cifar10: 3 channels, but the network was made for 1" in err


def test_a_network_of_no_numbers_is_named(run, model, tmp_path):
    state = checkpoint.load(model)
    state["state_dict"]["classifier.weight"].fill_(float("nan"))
    checkpoint.save(tmp_path / "nan.pt", state)
    code, _, err = run("--model_path", tmp_path / "nan.pt", "--json", tmp_path / "out.json")
    assert code == 2
    assert "nan.pt: the network's outputs are not finite" in err
    assert not (tmp_path / "out.json").exists()
    file = next((digit_folder(tmp_path / "images", [3]) / "3").iterdir())
    code, _, err = run("--model_path", tmp_path / "nan.pt", "--predict", file)
    assert code == 2
    assert "nan.pt: the network's outputs are not finite" in err


def test_export_writes_a_network_and_never_over_a_file(run, model, tmp_path):
    pytest.importorskip("torch", minversion="2.9")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    code, out, err = run("--model_path", model, "--export", tmp_path / "digits.onnx")
    assert code == 0, err
    assert "differ from PyTorch's by at most" in out
    session = sys.modules["onnxruntime"].InferenceSession(tmp_path / "digits.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == list("0123456789")
    assert json.loads(known["card"])["result"] == checkpoint.load(model)["result"]
    content = (tmp_path / "digits.onnx").read_bytes()
    code, _, err = run("--model_path", model, "--export", tmp_path / "digits.onnx")
    assert code == 2
    assert "exists already" in err
    assert (tmp_path / "digits.onnx").read_bytes() == content


def test_a_pickled_object_never_runs(run, tmp_path):
    marker = tmp_path / "marker"
    torch.save({"kind": "network", "state_dict": Marker(marker)}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Marker(marker)))
    pickle.loads(pickle.dumps(Marker(tmp_path / "proof")))
    assert (tmp_path / "proof").exists(), "the file would do harm"
    for name in ("evil.pt", "raw.pt"):
        code, _, err = run("--model_path", tmp_path / name)
        assert code == 2
        assert name in err
        assert err.count("\n") == 1
        assert not marker.exists()


def damaged(model, tmp_path, how):
    path = tmp_path / f"{how}.pt"
    content = model.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_text("this is no checkpoint")
    elif how == "list":
        torch.save([1, 2], path)
    elif how == "numbers":
        torch.save({"a": 1}, path)
    elif how in ("complex", "sparse", "channels"):
        state = checkpoint.load(model)
        weight = state["state_dict"]["classifier.weight"]
        state["state_dict"]["classifier.weight"] = {"complex": weight + 1j, "sparse": weight.to_sparse()}.get(
            how, weight
        )
        if how == "channels":
            state["images"]["mean"] = [0.5, 0.5]
        torch.save(state, path)
    elif how == "half":
        torch.save({"kind": "network", "network": {"C": 4}}, path)
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    return path


@pytest.mark.parametrize(
    "how", ["missing", "cut", "text", "list", "numbers", "half", "flipped", "complex", "sparse", "channels"]
)
def test_what_is_no_checkpoint_is_one_line(run, model, tmp_path, how):
    path = damaged(model, tmp_path, how)
    code, out, err = run("--model_path", path, "--json", tmp_path / "result.json")
    assert code == 2
    assert path.name in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--arch DARTS_V2", ["--arch DARTS_V2", "another cell"]),
        ("--init_channels 5", ["--init_channels 5", "has 4"]),
        ("--layers 4", ["--layers 4", "has 3"]),
        ("--set fashion_mnist --data /usr/share/datasets", ["--set fashion_mnist", "28 pixels", "8 pixels"]),
        ("--json /nowhere/result.json", ["--json /nowhere/result.json", "no folder"]),
        ("--predict a.png --export b.onnx", ["--predict", "--export"]),
        ("--export a.onnx --json b.json", ["--json", "no effect with --export"]),
        ("--predict a.png --backend openvino", ["--backend openvino", "no effect with --predict"]),
        ("--pixels float32", ["--pixels float32", "no effect without --export"]),
        ("--predict a.png --precision bfloat16", ["--precision bfloat16", "no effect with --predict"]),
        ("--export a.onnx --batch_size 4", ["--batch_size 4", "no effect with --export"]),
        ("--export a.onnx --no_channels_last", ["--channels_last False", "no effect with --export"]),
        ("--batch_size 0", ["--batch_size 0"]),
        ("--predict", ["--predict: no image file is given"]),
        (f"--json {'x' * 300}", ["--json xxx", "File name too long"]),
        ("--set digits --predict a.png", ["--set digits", "no effect"]),
    ],
)
def test_contradictions_are_named(run, model, flags, words):
    if "fashion" in flags and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    code, _, err = run("--model_path", model, flags)
    assert code == 2
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_other_numbers_of_classes_are_named(run, model, tmp_path):
    digit_folder(tmp_path / "test", range(4))
    digit_folder(tmp_path / "train", range(4))
    code, _, err = run("--model_path", model, "--set folder --data", tmp_path)
    assert code == 2
    assert "4 classes, but the network has 10" in err


def test_weights_of_another_network_name_the_first_keys(run, model, tmp_path):
    torch.save(checkpoint.load(model)["state_dict"], tmp_path / "bare.pt")
    code, _, err = run("--model_path", tmp_path / "bare.pt", "--set digits", NETWORK, "--arch DARTS_V2")
    assert code == 2
    assert "bare.pt" in err
    assert "cells.0._ops" in err


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10"])
def test_a_shipped_checkpoint_is_what_its_card_says(name):
    file = ROOT / "trained_model" / f"{name}_model.pt"
    state, card = checkpoint.load(file, "network"), json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size < 8_000_000
    assert state["result"] == card["result"]
    assert state["network"] == card["network"]
    assert ("JPEG" in card["images"]["description"]) == (name == "cifar10")
    network = script.load(script.Config(str(file))).network
    assert count(network) == (card["parameters"], card["multiply_adds"])


def test_the_shipped_digits_checkpoint_reproduces_its_card(run, tmp_path):
    file = ROOT / "trained_model" / "digits_model.pt"
    code, _, err = run("--model_path", file, "--auxiliary", "--json", tmp_path / "out.json")
    assert code == 0, err
    result, card = (
        json.loads(path.read_text()) for path in (tmp_path / "out.json", file.with_suffix(".json"))
    )
    assert result["test_error"] == card["result"]["test_error"]


def test_a_long_evaluation_says_how_far_it_is(run, monkeypatch):
    monkeypatch.setattr("common.words.OFTEN", 0.0)
    code, out, _ = run("--batch_size 200 --model_path", ROOT / "trained_model" / "digits_model.pt")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines() if " of 355 images, " in line] == [
        "200 of 355 images",
        "355 of 355 images",
    ]
    assert "images/s, about " in out
