"""train_dense.py and test_dense.py as a user runs them, on a VOC tree of a few made-up images."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Program, epochs
from PIL import Image, ImageDraw

import genotypes
import test_dense
import train
import train_dense
import train_imagenet
import train_search
from common import checkpoint
from common.flags import parse
from dense import card, loop, models
from model import NetworkImageNet
from training.card import describe_network

NETWORK = "--init_channels 4 --layers 3 --warmup_steps 2 --workers 0 --learning_rate 0.02 --device cpu"
SMALL = f"{NETWORK} --batch_size 3 --epochs 2 --image_size 64"
BOXES = f"--model ssdlite --strides 8 16 32 {SMALL}"
MASKS = f"--model deeplabv3 --strides 16 {SMALL}"
KINDS = ("Main", "Segmentation")
OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
OBJECT += "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
COLOURS = {"cat": (220, 60, 40), "dog": (40, 80, 230)}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Rectangles for cats and dogs: 8 images train (batches of 3 do not divide them), 5 test."""
    root, random = tmp_path_factory.mktemp("VOCdevkit"), np.random.default_rng(0)
    folder = root / "VOC2007"
    for name in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (folder / name).mkdir(parents=True)
    for part, count in (("trainval", 8), ("test", 5)):
        names = [f"{part}{number}" for number in range(count)]
        for name in names:
            image, mask = Image.new("RGB", (90, 70), (20, 90, 30)), Image.new("L", (90, 70), 0)
            objects = ""
            for kind, label, x in (("cat", 8, 2), ("dog", 12, 50)):
                x1, y1 = int(x + random.integers(0, 8)), int(random.integers(2, 20))
                corners = (x1, y1, x1 + 25, y1 + 30)
                ImageDraw.Draw(image).rectangle(corners, COLOURS[kind])
                ImageDraw.Draw(mask).rectangle(corners, label)
                objects += OBJECT.format(
                    kind, int(name == "test0" and kind == "dog"), *(c + 1 for c in corners)
                )
            image.save(folder / "JPEGImages" / f"{name}.jpg")
            mask.save(folder / "SegmentationClass" / f"{name}.png")
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        for kind in KINDS:
            (folder / "ImageSets" / kind / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def parts(root):
    return f"--set voc --data {root} --train_parts 2007-trainval --test_parts 2007-test"


def weights(folder):
    return checkpoint.load(folder / "model.pt", card.KIND)["state_dict"]


def assert_same(folder, other):
    assert epochs(folder) == epochs(other)
    expected = weights(other)
    assert weights(folder).keys() == expected.keys()
    for name, value in weights(folder).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="module")
def finished(voc, program: Program):
    """An uninterrupted training of a detector."""
    code, _, err = program.start(*f"{parts(voc)} {BOXES} --save boxes".split(), script="train_dense").wait()
    assert code == 0, err
    return program.folder / "boxes"


def test_a_run_leaves_its_epochs_and_a_card(finished):
    assert [row["images"] for row in epochs(finished)] == ["8", "8"]
    assert {"loss", "classification", "bbox_regression"} <= set(epochs(finished)[0])
    written = json.loads((finished / "card.json").read_text())
    assert written["images"]["classes"][7] == "cat"
    assert written["model"]["strides"] == [8, 16, 32]
    assert written["result"]["test_images"] == 5
    assert set(written["result"]["test_ap50_of_class"]) == set(written["images"]["classes"])
    assert written["backbone_multiply_adds"] < written["multiply_adds"]
    words = shlex.split(written["command"])
    assert words[:4] == ["python", "train_dense.py", "--set", "voc"]
    again = parse(train_dense.Config, words[2:])
    assert again.strides == (8, 16, 32)
    assert dataclasses.asdict(again) | {"save": "boxes"} == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads((finished / "config.json").read_text()).items()
    }


@pytest.mark.parametrize("script", [train, train_imagenet, train_search])
def test_a_run_of_another_program_is_named(finished, tmp_path, run, script):
    program = Path(script.__file__).name
    code, _, err = run(script, "--resume", finished)
    assert (code, err) == (
        2,
        f"{program}: --resume {finished}: is a run of train_dense.py; "
        f"it goes on with: train_dense.py --resume {finished}\n",
    )
    settings = {field.name: field.default for field in dataclasses.fields(script.Config)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    code, _, err = run(train_dense, "--resume", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"is a run of {program}" in err


def test_killed_and_resumed_it_is_the_same_run(voc, finished, program: Program):
    flags = f"{parts(voc)} {BOXES} --checkpoint_steps 1 --save killed_dense".split()
    code, _, _ = program.start(*flags, script="train_dense", die_at_checkpoint=3).wait()
    assert code == -signal.SIGKILL
    code, _, err = program.start("--resume", "killed_dense", "--workers", 1, script="train_dense").wait()
    assert code == 0, err
    assert_same(program.folder / "killed_dense", finished)


def test_masks_stopped_in_mid_epoch_and_resumed(voc, tmp_path, run, monkeypatch):
    """The head draws dropout: what a step draws does not depend on the steps before it."""
    flags = f"{parts(voc)} {MASKS} --checkpoint_steps 1 --save"
    assert run(train_dense, flags, tmp_path / "whole")[0] == 0
    step, numbers = loop.train_step, []

    def stopped(*given, **more):
        numbers.append(0)
        if len(numbers) == 4:
            raise KeyboardInterrupt
        return step(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stopped)
        code, out, _ = run(train_dense, flags, tmp_path / "stopped")
    assert code == 130
    assert "go on with: python train_dense.py --resume" in out
    assert run(train_dense, "--resume", tmp_path / "stopped")[0] == 0
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    state = checkpoint.load(tmp_path / "whole" / "model.pt", card.KIND)
    assert 0 <= state["result"]["test_mean_iou"] <= 1
    known = state["result"]["test_iou_of_class"].items()
    assert {"background", "cat", "dog"} <= {name for name, value in known if value is not None}
    code, out, err = run(
        test_dense, "--model_path", tmp_path / "whole" / "model.pt", "--draw", tmp_path / "a.png"
    )
    assert code == 0, err
    assert f"mean IoU {state['result']['test_mean_iou']:.2%}" in out
    assert (tmp_path / "a.png").exists()


def test_the_test_finds_what_the_training_found(finished, tmp_path, run):
    code, out, err = run(
        test_dense, "--model_path", finished / "model.pt", "--json", tmp_path / "result.json"
    )
    assert code == 0, err
    found = json.loads((tmp_path / "result.json").read_text())
    told = checkpoint.load(finished / "model.pt", card.KIND)["result"]
    assert {name: found[name] for name in ("ap50", "coco_ap", "ap50_interval")} == {
        name: told[f"test_{name}"] for name in ("ap50", "coco_ap", "ap50_interval")
    }
    assert found["milliseconds"] > 0
    assert "M parameters" in out
    assert "ms for one image" in out


def test_images_of_different_sizes_are_not_drawn_side_by_side(voc, finished, tmp_path, run):
    shutil.copytree(voc, tmp_path / "voc")
    folder = tmp_path / "voc" / "VOC2007"
    Image.new("RGB", (50, 50)).save(folder / "JPEGImages" / "test2.jpg")
    (folder / "Annotations" / "test2.xml").write_text("<annotation/>")
    flags = ["--data", tmp_path / "voc", "--draw", tmp_path / "a.png", "--json", tmp_path / "a.json"]
    code, out, err = run(test_dense, "--model_path", finished / "model.pt", *flags)
    assert (code, out) == (2, "")  # before the test, whose result would be lost
    assert f"--draw {tmp_path / 'a.png'}: the images differ in size" in err
    assert not list(tmp_path.glob("a.*"))


def test_two_processes_find_the_same(finished, program: Program):
    flags = ["--model_path", finished / "model.pt", "--device", "cpu", "--json", "two.json"]
    code, _, err = program.run_two(*flags, script="test_dense")
    assert code == 0, err
    found = json.loads((program.folder / "two.json").read_text())
    assert found["ap50"] == checkpoint.load(finished / "model.pt", card.KIND)["result"]["test_ap50"]


def test_two_processes_train(voc, program: Program):
    boxes = BOXES.replace("--batch_size 3", "--batch_size 4")
    flags = f"{parts(voc)} {boxes} --epochs 1 --save two_dense".split()
    code, _, err = program.run_two(*flags, script="train_dense")
    assert code == 0, err
    assert [row["images"] for row in epochs(program.folder / "two_dense")] == ["8"]


def test_found_boxes_are_drawn(voc, finished, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = voc / "VOC2007" / "JPEGImages" / "test1.jpg"
    monkeypatch.setattr("dense.pictures.SCORE", 0.0)
    monkeypatch.setitem(models.RANKED, "score_thresh", 0.0)  # it has learned next to nothing
    code, out, err = run(test_dense, "--model_path", finished / "model.pt", "--predict", image)
    assert code == 0, err
    assert str(image) in out
    assert "% at " in out
    drawn = np.asarray(Image.open(tmp_path / "test1_found.png"))
    assert drawn.shape == (70, 90, 3)
    assert (drawn != np.asarray(Image.open(image))).any()
    code, _, err = run(test_dense, "--model_path", finished / "model.pt", "--predict", image)
    assert (code, "exists already" in err) == (2, True)


def test_held_out_images_are_measured_in_place_of_the_test_images(voc, tmp_path, run):
    flags = f"--set voc --data {voc} --train_parts 2007-trainval {BOXES} --epochs 1 --validate 0.25"
    assert run(train_dense, flags, "--save", tmp_path / "run")[0] == 0
    (row,) = epochs(tmp_path / "run")
    assert row["images"] == "6"
    result = checkpoint.load(tmp_path / "run" / "model.pt", card.KIND)["result"]
    assert result["validation_images"] == 2
    assert float(row["validation_ap50"]) == result["validation_ap50"]


@pytest.mark.parametrize("bare", [False, True])
def test_the_backbone_starts_from_a_classifier(voc, tmp_path, run, bare):
    torch.manual_seed(5)
    network = NetworkImageNet(4, 7, 3, True, genotypes.RelativeNAS)
    images = {"set": "folder", "classes": list("abcdefg"), "mean": [0.5] * 3, "std": [0.2] * 3}
    state = describe_network(network, images=images, recipe={}, result={})
    if bare:  # as published
        state = {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}
    checkpoint.save(tmp_path / "classifier.pt", state)
    flags = f"{parts(voc)} {BOXES} --epochs 1 --learning_rate 1e-30 --freeze_norm"
    code, _, err = run(
        train_dense, flags, "--weights", tmp_path / "classifier.pt", "--save", tmp_path / "run"
    )
    assert code == 0, err
    body = {
        name.removeprefix("backbone.network."): value for name, value in weights(tmp_path / "run").items()
    }
    kept = [name for name in network.state_dict() if name in body]
    assert len(kept) > 50
    assert all(torch.equal(body[name], network.state_dict()[name]) for name in kept)
    origin = checkpoint.load(tmp_path / "run" / "model.pt", card.KIND)["origin"]
    assert "classifier" in origin["drawn_anew"]


def test_coco_json_trains_in_lower_precision(voc, tmp_path, run):
    names = [f"../VOC2007/JPEGImages/trainval{i}.jpg" for i in range(4)]
    boxes = [{"image_id": i, "category_id": 4, "bbox": [2, 2, 30, 30]} for i in range(4)]
    content = {"categories": [{"id": 4, "name": "cat"}], "annotations": boxes}
    content["images"] = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (voc / "mine").mkdir()
    (voc / "mine" / "boxes.json").write_text(json.dumps(content))
    flags = f"--set coco --data {voc} --train_parts mine/boxes.json --test_parts mine/boxes.json {NETWORK}"
    flags += " --model fcos --head_channels 64 --image_size 64 --batch_size 2 --epochs 1 --precision bfloat16"
    code, _, err = run(train_dense, flags, "--save", tmp_path / "run")
    assert code == 0, err
    assert checkpoint.load(tmp_path / "run" / "model.pt", card.KIND)["images"]["classes"] == ["cat"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model yolo", ["--model", "ssdlite"]),
        (
            "--arch |none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|",
            ["--arch |none~0|", "NetworkImageNet needs"],
        ),
        ("--strides 16 8", ["--strides", "rise"]),
        ("--strides 5", ["--strides", "stride 5"]),
        ("--strides 8 16384", ["--strides", "stride 16384", "4096"]),
        ("--model lraspp --strides 8 8", ["--strides 8 8", "rise"]),
        ("--background_prior 0.9", ["--background_prior 0.9", "ssdlite"]),
        ("--model lraspp --background_prior 1", ["--background_prior 1.0", "at most 0.99"]),
        ("--model lraspp --strides 8", ["--strides 8", "2"]),
        ("--model lraspp --head_channels 64", ["--head_channels 64", "lraspp"]),
        ("--model fcos --head_channels 80", ["--head_channels 80", "multiple of 32"]),
        ("--model fcos --box_scales 0.1 0.2", ["--box_scales", "fcos"]),
        ("--box_scales 0.5 0.2", ["--box_scales"]),
        ("--freeze_norm", ["--freeze_norm", "--weights"]),
        ("--data here", ["--data", "digits"]),
        ("--batch_size 1", ["--batch_size 1", "at least 2"]),
        ("--batch_size 2000", ["--batch_size 2000", "1000"]),
        ("--image_size 8", ["--image_size 8"]),
        ("--learning_rate 0", ["--learning_rate 0"]),
        ("--set voc --data nowhere", ["--data nowhere"]),
        ("--set voc --train_parts 2007", ["2007", "YEAR-SET"]),
        ("--set coco --model lraspp", ["--set coco", "masks"]),
        ("--validate 0.1 --test_parts a", ["--test_parts", "--validate"]),
        ("--weights nowhere.pt", ["nowhere.pt"]),
        ("--resume nowhere", ["--resume nowhere"]),
    ],
)
def test_a_wrong_flag_gets_one_line(voc, tmp_path, run, flags, words):
    where = [] if "--resume" in flags else ["--save", tmp_path / "run"]
    data = ["--data", voc] if "--set voc" in flags and "--data" not in flags else []
    data += ["--data", voc] if "--set coco" in flags else []
    code, _, err = run(train_dense, flags, *data, *where)
    assert code == 2, err
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "words"), [("trainval", "no training image"), ("test", "no test image")])
def test_images_without_objects_get_one_line(voc, tmp_path, run, part, words):
    shutil.copytree(voc, tmp_path / "voc")
    for path in (tmp_path / "voc" / "VOC2007" / "Annotations").glob(f"{part}*"):
        path.write_text("<annotation/>")
    code, _, err = run(train_dense, f"{parts(tmp_path / 'voc')} {BOXES} --save", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(kind="network"), "not a checkpoint of dense, but of network; needed is"),
        (lambda state: state["model"].update(name="yolo"), "no checkpoint of a dense model"),
        (lambda state: state["model"].update(strides=[8, 16, 10**9]), "no checkpoint of a dense model"),
        (lambda state: state["network"].update(C=8), "another network"),
        (lambda state: state["model"].pop("classes"), "no checkpoint of a dense model"),
        (lambda state: state["recipe"].pop("data"), "no checkpoint of a network"),
        (lambda state: state["images"].update(set="imagenet"), "trained on 'imagenet'"),
    ],
)
def test_a_foreign_checkpoint_gets_one_line(finished, tmp_path, run, change, words):
    state = checkpoint.load(finished / "model.pt")
    change(state)
    checkpoint.save(tmp_path / "model.pt", state)
    code, _, err = run(test_dense, "--model_path", tmp_path / "model.pt")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert "model.pt" in err


def test_a_lack_of_memory_says_nothing_of_the_file(finished, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(card, "load_network_state", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        card.load(str(finished / "model.pt"))
