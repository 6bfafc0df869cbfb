"""train.py as a user runs it, on the 8x8 digits."""

import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, TORCHRUN, epochs

import genotypes
import train
import train_imagenet
import train_search
from common import checkpoint
from common.flags import parse, run_script
from training import card, loop

SHIPPED = ROOT / "trained_model" / "digits_model.pt"
SMALL = "--set digits --init_channels 4 --layers 3 --device cpu --batch_size 360 --epochs 2"


@pytest.fixture
def run(run):
    return partial(run, train)


def same_weights(a, b):
    a, b = (checkpoint.load(folder / "model.pt", "network")["state_dict"] for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


RECIPE = "--auxiliary --cutout --ema 0.9 --drop_path_prob 0.3 --checkpoint_steps 1 --label_smoothing 0.1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run with everything random in it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.main(parse(train.Config, [*SMALL.split(), *RECIPE.split(), "--save", str(folder)]))
    return folder


def test_killed_and_resumed_is_the_same_to_the_bit(finished, tmp_path):
    command = [sys.executable, "train.py", *SMALL.split(), *RECIPE.split(), "--save", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "checkpoint.previous.pt").exists():  # after the second step of ten
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "model.pt").exists(), "it was killed too late to show anything"
    subprocess.run(
        [sys.executable, "train.py", "--resume", str(tmp_path / "run")], cwd=ROOT, env=ENVIRONMENT, check=True
    )
    assert same_weights(finished, tmp_path / "run")
    assert epochs(finished) == epochs(tmp_path / "run")


def test_the_checkpoint_describes_itself(finished):
    state = checkpoint.load(finished / "model.pt", "network")
    assert state["network"]["C"] == 4
    assert state["network"]["auxiliary"]
    assert state["images"]["set"] == "digits"
    assert len(state["images"]["mean"]) == 1
    assert state["recipe"]["ema"] == 0.9
    assert state["result"]["test_images"] == 355
    card = json.loads((finished / "card.json").read_text())
    assert card["result"]["test_error"] == state["result"]["test_error"]
    words = shlex.split(card["command"])
    assert words[:2] == ["python", "train.py"]
    assert parse(train.Config, words[2:]) == train.Config(**state["recipe"])
    assert card["parameters"] > 1000
    assert "state_dict" not in card


@pytest.mark.parametrize("flip", [True, False, None])
def test_the_command_on_a_card_is_one_that_can_be_given(flip):
    config = train.Config(set="digits", flip=flip, channels_last=False, description="two words")
    assert parse(train.Config, shlex.split(card.command("train.py", config))[2:]) == config


TINY = (
    "--set digits --init_channels 2 --layers 1 --device cpu --batch_size 721 --epochs 3 --learning_rate 0.1"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run that each flag of a recipe is held against."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train.main(parse(train.Config, [*TINY.split(), "--auxiliary", "--save", str(folder)]))
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        "--auxiliary_weight 0.2",
        "--cutout",
        "--flip True",
        "--drop_path_prob 0.6",
        "--label_smoothing 0.2",
        "--grad_clip 0.1",
        "--momentum 0.5",
        "--weight_decay 0.01",
        "--schedule linear",
        "--warmup_epochs 1",
        "--micro_batches 2",
        "--precision bfloat16",
        "--seed 1",
    ],
)
def test_a_flag_changes_what_is_learned(run, plain, tmp_path, flags):
    assert run(TINY, "--auxiliary", flags, "--save", tmp_path / "run")[0] == 0
    assert not same_weights(plain, tmp_path / "run")


def test_other_flags_change_nothing(run, plain, tmp_path):
    flags = "--flip False --checkpoint_steps 1 --description digits"
    assert run(TINY, "--auxiliary", flags, "--save", tmp_path / "run")[0] == 0
    assert same_weights(plain, tmp_path / "run")
    assert epochs(plain) == epochs(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ("", [0.1, 0.075, 0.025]),
        ("--schedule linear", [0.1, 0.2 / 3, 0.1 / 3]),
        ("--warmup_epochs 1", [0.05, 0.1, 0.05]),
        ("--schedule linear --warmup_epochs 2", [0.1 / 3, 0.2 / 3, 0.1]),
    ],
)
def test_the_learning_rate_of_each_epoch_and_the_rise_of_drop_path(run, tmp_path, monkeypatch, flags, rates):
    step, seen = loop.train_step, []

    def watched(network, optimizer, *arguments, **more):
        seen.append((optimizer.param_groups[0]["lr"], network.drop_path_prob))
        return step(network, optimizer, *arguments, **more)

    monkeypatch.setattr(loop, "train_step", watched)
    assert run(TINY, flags, "--drop_path_prob 0.6 --save", tmp_path / "run")[0] == 0
    assert [float(row["learning_rate"]) for row in epochs(tmp_path / "run")] == pytest.approx(rates)
    used, dropped = zip(*seen[::2], strict=True)  # two steps an epoch
    assert used == pytest.approx(rates)
    assert dropped == pytest.approx([0, 0.2, 0.4])


def test_the_average_takes_up_the_weights_of_every_step(run, tmp_path, monkeypatch):
    step, weights = loop.train_step, []

    def watched(network, *arguments, **more):
        weights.append(network.classifier.weight.detach().clone())
        return step(network, *arguments, **more)

    monkeypatch.setattr(loop, "train_step", watched)
    assert run(TINY, "--ema 0.25 --save", tmp_path / "run")[0] == 0
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "train")
    average, *later = (*weights, state["network"]["classifier.weight"])
    for place, new in enumerate(later):
        decay = min(0.25, (1 + place) / (10 + place))  # from the third step on it is 0.25
        average = decay * average + (1 - decay) * new
    assert torch.allclose(state["average"]["classifier.weight"], average, atol=1e-6)
    assert not torch.allclose(average, weights[0], atol=1e-3)


def test_averaged_weights_are_kept_beside_the_trained_ones(finished):
    state = checkpoint.load(finished / "checkpoint.pt", "train")
    model = checkpoint.load(finished / "model.pt", "network")["state_dict"]
    key = "classifier.weight"
    assert torch.equal(model[key], state["average"][key])
    assert not torch.equal(model[key], state["network"][key])


def test_training_starts_from_the_weights_of_a_file(run, plain, tmp_path, monkeypatch):
    step, seen = loop.train_step, []

    def watched(network, *arguments, **more):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        if len(seen) == 2:
            raise KeyboardInterrupt
        return step(network, *arguments, **more)

    start = tmp_path / "start.pt"
    shutil.copy(plain / "model.pt", start)
    flags = f"{TINY} --auxiliary --epochs 1 --ema 0.9 --checkpoint_steps 1 --weights {start} --save"
    code, out, _ = run(flags, tmp_path / "whole")
    assert code == 0
    assert f"weights from {start}\n" in out
    monkeypatch.setattr(loop, "train_step", watched)
    assert run(flags, tmp_path / "run")[0] == 130
    monkeypatch.undo()
    origin = checkpoint.load(start, "network")
    for name, value in origin["state_dict"].items():
        assert torch.equal(seen[0][name], value), name
    moved, trained = (
        checkpoint.load(tmp_path / "run" / "checkpoint.pt")[key] for key in ("average", "network")
    )
    key = "classifier.weight"  # of the first step the average takes 9/10
    first = origin["state_dict"][key]
    assert torch.allclose(moved[key], 0.1 * first + 0.9 * trained[key], atol=1e-6)

    checkpoint_at_start = tmp_path / "run" / "checkpoint.previous.pt"
    assert checkpoint.load(checkpoint_at_start)["steps"] == 0
    checkpoint_at_start.replace(tmp_path / "run" / "checkpoint.pt")  # as if killed before the first step
    start.unlink()  # the run does not need it any more
    assert run("--resume", tmp_path / "run")[0] == 0
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    known = checkpoint.load(tmp_path / "run" / "model.pt", "network")["origin"]
    assert known["recipe"] == origin["recipe"]
    assert known["result"] == origin["result"]
    assert json.loads((tmp_path / "run" / "card.json").read_text())["origin"] == known


def test_two_processes_and_micro_batches_follow_one_process(run, tmp_path):
    flags = f"{SMALL} --drop_path_prob 0 --batch_size 361"
    run(flags, "--save", tmp_path / "one")
    run(flags, "--micro_batches 2 --save", tmp_path / "parts")
    command = [*TORCHRUN, "train.py", *flags.split(), "--save", str(tmp_path / "two")]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    one, parts, two = (epochs(tmp_path / name) for name in ("one", "parts", "two"))
    for other in (parts, two):
        # Batch-norm sees half of the batch, so the curves are close, not equal.
        assert [row["images"] for row in other] == [row["images"] for row in one]
        losses = [float(row["loss"]) for row in one]
        assert [float(row["loss"]) for row in other] == pytest.approx(losses, rel=0.01)
        assert other != one


def test_two_processes_stopped_in_mid_epoch_and_resumed_end_the_same_to_the_bit(program, tmp_path):
    flags = [*TINY.split(), *RECIPE.split(), "--batch_size", "361", "--epochs", "2", "--save"]
    code, _, err = program.run_two(*flags, tmp_path / "whole", script="train")
    assert code == 0, err
    code, _, _ = program.run_two(*flags, tmp_path / "run", script="train", die_at_checkpoint=8)
    assert code == -signal.SIGKILL
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "train")
    assert (state["epoch"], state["step"]) == (1, 2)
    code, _, err = program.run_two("--resume", tmp_path / "run", script="train")
    assert code == 0, err
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "run")


def test_validation_images_are_held_out_and_the_test_set_is_not_read(run, tmp_path, monkeypatch):
    asked = []
    load = train.sets.load
    monkeypatch.setattr(train.sets, "load", lambda *args: asked.append(args[2]) or load(*args))
    code, out, _ = run(SMALL, "--validate 0.2 --save", tmp_path / "run")
    assert code == 0
    assert asked == ["train"]
    assert "validation: top-1 error" in out
    assert "1153 images train, 289 held out" in out
    assert [int(row["images"]) for row in epochs(tmp_path / "run")] == [1153, 1153]
    result = checkpoint.load(tmp_path / "run" / "model.pt", "network")["result"]
    assert result["validation_images"] == 289
    assert float(epochs(tmp_path / "run")[-1]["validation_error"]) == result["validation_error"]


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    code, _, err = run(SMALL, "--learning_rate 1e30 --grad_clip 1e30 --save", tmp_path / "run")
    assert code == 2
    assert "not finite in epoch" in err
    assert "--learning_rate" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "model.pt").exists()


def test_weights_that_diverge_in_the_last_step_are_not_kept(run, tmp_path):
    flags = "--epochs 1 --batch_size 1442 --learning_rate 1e38 --grad_clip 1e30"  # its only loss is finite
    code, _, err = run(SMALL, flags, "--save", tmp_path / "run")
    assert code == 2
    assert "loss of the trained network is not finite; no checkpoint is surely good" in err
    assert not (tmp_path / "run" / "model.pt").exists()
    assert not (tmp_path / "run" / "card.json").exists()


def test_the_last_good_checkpoint_is_one_that_a_finite_loss_followed(run, tmp_path, monkeypatch):
    step, numbers = loop.train_step, itertools.count(1)

    def sixth_diverges(*arguments, **more):
        return step(*arguments, **more) + (math.nan if next(numbers) == 6 else 0)

    monkeypatch.setattr(loop, "train_step", sixth_diverges)
    code, _, err = run(SMALL, "--batch_size 100 --checkpoint_steps 2 --save", tmp_path / "run")
    assert code == 2
    good = tmp_path / "run" / "checkpoint.previous.pt"  # no loss was looked at since the fourth step
    assert f"step 6; the last good checkpoint is {good};" in err
    assert checkpoint.load(good)["steps"] == 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_resumed_to_the_bit(run, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(train, "choose_precision", lambda device, precision, new: precision)  # as on a GPU
    flags = f"{SMALL} --layers 2 --precision {precision} --checkpoint_steps 1"
    assert run(flags, "--save", tmp_path / "whole")[0] == 0
    step, numbers = loop.train_step, itertools.count(1)

    def stopped(*arguments, **more):
        if next(numbers) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **more)

    monkeypatch.setattr(loop, "train_step", stopped)
    assert run(flags, "--save", tmp_path / "run")[0] == 130
    assert run("--resume", tmp_path / "run")[0] == 0
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    losses = [float(row["loss"]) for row in epochs(tmp_path / "run")]
    assert losses[1] < losses[0]


def test_a_run_of_earlier_versions_in_float16_on_the_cpu_goes_on(run, tmp_path, monkeypatch):
    flags = f"{SMALL} --layers 1 --epochs 1 --precision float16 --save"
    with monkeypatch.context() as earlier:
        earlier.setattr(train, "choose_precision", lambda device, precision, new: precision)
        assert run(flags, tmp_path / "run")[0] == 0
    (tmp_path / "run" / "model.pt").unlink()
    assert run("--resume", tmp_path / "run")[0] == 0
    code, _, err = run(flags, tmp_path / "new")
    assert code == 2
    assert "--precision float16: needs a GPU" in err
    assert not (tmp_path / "new").exists()


def test_a_full_disk_at_the_end_leaves_no_card_without_its_network(run, tmp_path, monkeypatch):
    save = checkpoint.save

    def full(path, *state, **more):
        if path.name == "model.pt":
            raise OSError(f"{path}: cannot be written: No space left on device")
        save(path, *state, **more)

    monkeypatch.setattr(checkpoint, "save", full)
    code, _, err = run(f"{SMALL} --layers 1 --epochs 1 --save", tmp_path / "run")
    assert code == 2
    assert err.endswith("model.pt: cannot be written: No space left on device\n")
    assert not (tmp_path / "run" / "card.json").exists()
    monkeypatch.undo()
    assert run("--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "card.json").exists()


@pytest.mark.parametrize("module", [train_search, train_imagenet])
def test_a_run_of_another_program_is_named_with_what_goes_on_with_it(finished, capsys, monkeypatch, module):
    monkeypatch.setattr(sys, "argv", ["script.py", "--resume", str(finished)])
    with pytest.raises(SystemExit) as stop:
        run_script(module.main, parse(module.Config))
    assert stop.value.code == 2
    how = f"is a run of train.py; it goes on with: train.py --resume {finished}\n"
    assert capsys.readouterr().err.endswith(how)


def test_weights_that_are_no_checkpoint_are_one_line_of_words(run, tmp_path):
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n" * 20)
    code, _, err = run(SMALL, "--weights", tmp_path / "passwd", "--save", tmp_path / "run")
    assert (code, err) == (2, f"train.py: {tmp_path / 'passwd'}: damaged, or no checkpoint\n")
    assert not (tmp_path / "run").exists()


def test_the_log_tells_the_time_left_in_long_epochs_too(run, tmp_path, monkeypatch):
    flags = f"{SMALL} --layers 1 --batch_size 10 --save"
    assert run(flags, tmp_path / "short")[0] == 0
    log = (tmp_path / "short" / "log.txt").read_text()
    assert log.count(" left") == 1  # at the end of the first epoch
    assert re.search(r"epoch 1/2: .* images/s, about \d+ s left", log)
    monkeypatch.setattr("common.words.OFTEN", 0.0)
    assert run(flags, tmp_path / "long")[0] == 0
    log = (tmp_path / "long" / "log.txt").read_text()
    assert log.count("epoch 1/2, loss ") == 144 // loop.LOOK
    assert re.search(r"epoch 1/2, loss \d\.\d+, \d+ images/s, about \d+ s left", log)
    assert same_weights(tmp_path / "short", tmp_path / "long")


def test_a_compiled_network_leaves_plain_names(run, tmp_path, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend="eager"))
    flags = f"{SMALL} --layers 1 --epochs 1"
    assert run(flags, "--compile --save", tmp_path / "compiled")[0] == 0
    assert run(flags, "--save", tmp_path / "plain")[0] == 0
    one, two = (checkpoint.load(tmp_path / name / "model.pt")["state_dict"] for name in ("compiled", "plain"))
    assert one.keys() == two.keys()
    assert torch.allclose(one["classifier.weight"], two["classifier.weight"], atol=1e-4)


def test_a_network_that_cannot_be_compiled_is_one_line(run, tmp_path, monkeypatch):
    compiled = torch.compile

    def no_compiler(graph, inputs):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=no_compiler))
    code, _, err = run(SMALL, "--layers 1 --epochs 1 --compile --save", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert "--compile: the network cannot be compiled here" in err
    assert "no C++ compiler" in err


def test_epochs_for_tensorboard(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(SMALL, "--layers 1 --tensorboard --save", tmp_path / "run")[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = [scalar.value for scalar in events.Scalars("loss")]
    assert written == pytest.approx([float(row["loss"]) for row in epochs(tmp_path / "run")])


def test_without_tensorboard_nothing_is_begun(run, tmp_path, monkeypatch):
    monkeypatch.setattr("common.flags.find_spec", lambda name: None)
    code, _, err = run(SMALL, "--tensorboard --save", tmp_path / "run")
    assert code == 2
    assert "--tensorboard: the package is missing" in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the run that lacks its last step: the test."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("model.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).unlink()
    return tmp_path / "run"


def test_a_cell_that_changed_is_not_trained_on(run, tmp_path):
    file, cell = tmp_path / "cell.json", genotypes.lookup("RelativeNAS")
    file.write_text(json.dumps(genotypes.to_dict(cell)))
    assert run(SMALL, "--epochs 1 --arch", file, "--save", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "model.pt").unlink()
    (operation, place), *rest = cell.normal
    moved = cell._replace(normal=((operation, 1 - place), *rest))  # the weights would fit
    file.write_text(json.dumps(genotypes.to_dict(moved)))
    code, _, err = run("--resume", tmp_path / "run")
    assert code == 2
    assert "--arch is another cell now than the run began with" in err


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("changed", ["images", "labels", "classes"])
def test_images_that_changed_are_not_trained_on(run, unfinished, monkeypatch, part, changed):
    load = train.sets.load

    def other(name, folder, wanted, *more):
        images = load(name, folder, wanted, *more)
        if wanted == part and changed == "classes":
            images.classes = (*images.classes[:-1], "nine")
        elif wanted == part:
            getattr(images, changed)[0] += 1
        return images

    monkeypatch.setattr(train.sets, "load", other)
    code, _, err = run("--resume", unfinished)
    assert code == 2
    assert "--data holds other images than the run began with" in err


def test_settings_that_were_edited_are_one_line(run, unfinished):
    settings = json.loads((unfinished / "config.json").read_text())
    (unfinished / "config.json").write_text(json.dumps(settings | {"init_channels": 6}))
    code, _, err = run("--resume", unfinished)
    assert code == 2
    assert err.count("\n") == 1
    assert "checkpoint.pt: does not fit the settings of its run" in err
    assert len(err) < 500


@pytest.mark.parametrize(
    "changed",
    [
        *({"epoch": "1"}, {"steps": -1}, {"seconds": None}, {"processes": 1.5}, {"rows": [{}]}),
        *({"sums": [1.0]}, {"network": 3}, {"optimizer": {"state": {}}}, {"origin": torch.zeros(2)}),
    ],
)
def test_a_checkpoint_that_holds_something_else_is_one_line(run, unfinished, changed):
    state = checkpoint.load(unfinished / "checkpoint.pt")
    checkpoint.save(unfinished / "checkpoint.pt", state | changed)
    code, _, err = run("--resume", unfinished)
    assert code == 2
    assert err.count("\n") == 1
    assert "checkpoint.pt: does not fit the settings of its run" in err


def test_momenta_of_another_network_are_refused(run, unfinished):
    state = checkpoint.load(unfinished / "checkpoint.pt")
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    checkpoint.save(unfinished / "checkpoint.pt", state)
    code, _, err = run("--resume", unfinished)
    assert code == 2
    assert "the optimiser's state is of another network" in err


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(run, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    newest, older = tmp_path / "run" / "checkpoint.pt", tmp_path / "run" / "checkpoint.previous.pt"
    good = older.read_bytes()
    newest.write_bytes(newest.read_bytes()[:5000])
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: torch.tensor([math.nan, 0, 1]))
    code, out, err = run("--resume", tmp_path / "run")
    assert code == 2
    assert "damaged" in out
    assert "no checkpoint is surely good" in err
    assert newest.read_bytes() == good
    assert (tmp_path / "run" / "checkpoint.damaged1.pt").stat().st_size == 5000, "kept, under another name"


def test_another_number_of_processes_is_said(run, unfinished):
    state = checkpoint.load(unfinished / "checkpoint.pt")
    checkpoint.save(unfinished / "checkpoint.pt", state | {"processes": 2})
    code, out, _ = run("--resume", unfinished)
    assert code == 0
    assert "made by 2 processes, goes on with 1" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--arch NoSuchCell", ["NoSuchCell", "RelativeNAS"]),
        ("--layers 0", ["--layers 0", "at least 1"]),
        ("--batch_size 1", ["--batch_size 1"]),
        ("--batch_size 5000", ["--batch_size 5000", "1442 training images", "--batch_size 1442"]),
        ("--batch_size 4 --micro_batches 4", ["--batch_size 4", "at least 8"]),
        ("--auxiliary_weight 0.2", ["--auxiliary_weight", "--auxiliary"]),
        ("--warmup_epochs 2", ["--warmup_epochs 2", "--epochs 2"]),
        ("--image_size 4", ["--image_size 4", "at least 8"]),
        ("--set folder --data /nowhere", ["/nowhere"]),
        ("--set imagenet", ["--set", "digits"]),
        ("--no_such_flag 1", ["no_such_flag"]),
        ("--resume /nowhere", ["--resume /nowhere"]),
        ("--seed 18446744073709551616 --validate 0.2", ["--seed 18446744073709551616"]),
        ("--init_channels 1000000000", ["--init_channels 1000000000", "at most 1024"]),
        ("--precision int8", ["--precision"]),
        ("--learning_rate nan", ["--learning_rate nan"]),
        ("--learning_rate 1e39", ["--learning_rate 1e+39", "at most 1e+38"]),
        ("--weights /nowhere/model.pt", ["/nowhere/model.pt: no such checkpoint"]),
        (
            f"--weights {SHIPPED}",
            [f"--weights {SHIPPED}", "--init_channels 4: the network in the file has 16"],
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_writes_nothing(run, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(SMALL, flags)
    assert code == 2
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--save", "--resume", "--weights"])
def test_an_empty_name_starts_nothing(run, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL.split(), flag, ""])
    with pytest.raises(SystemExit) as stop:
        run_script(train.main, parse(train.Config))
    assert stop.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_stays_on_its_device(run, unfinished, monkeypatch):
    init, asked = train.distributed.init, []
    monkeypatch.setattr(train.distributed, "init", lambda device: asked.append(device) or init(device))
    assert run("--resume", unfinished)[0] == 0
    assert asked == ["cpu"]


def test_any_name_of_a_folder_can_be_logged(run, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    code, out, err = run(SMALL, "--epochs 1 --save", folder)
    assert (code, err) == (0, "")
    for text in (out, (folder / "log.txt").read_text()):
        assert r"caf\udce9/model.pt" in text


def test_a_finished_run_is_not_repeated_and_others_are_refused(run, finished):
    before = (finished / "model.pt").read_bytes()
    code, out, _ = run("--resume", finished)
    assert code == 0
    assert "is finished" in out
    code, _, err = run(SMALL, RECIPE, "--save", finished)
    assert code == 2
    assert "exists already" in err
    code, _, err = run("--resume", finished, "--learning_rate 0.1")
    assert code == 2
    assert "--learning_rate (was 0.025, now 0.1)" in err
    assert (finished / "model.pt").read_bytes() == before


def test_more_epochs_are_a_new_run_from_the_weights_with_a_command_that_works(
    run, finished, unfinished, tmp_path, monkeypatch
):
    code, _, err = run("--resume", finished, "--epochs 3")
    assert code == 2
    assert "--epochs (was 2, now 3)" in err
    assert err.count("\n") == 1
    words = shlex.split(err.partition("for 1 epoch more, in a new run: ")[2])
    assert words[:2] == ["python", "train.py"]
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words[2:])
    assert code == 0, err
    assert f"weights from {finished / 'model.pt'}" in out
    folder = next((tmp_path / "runs").iterdir())
    assert len(epochs(folder)) == 1
    assert float(epochs(folder)[0]["loss"]) < float(epochs(finished)[-1]["loss"])
    stored = train.Config(**json.loads((finished / "config.json").read_text()))
    told = parse(train.Config, words[2:])
    assert told == dataclasses.replace(stored, weights=str(finished / "model.pt"), epochs=1, save=None)
    code, _, err = run("--resume", unfinished, "--epochs 30")
    assert code == 2
    assert err.endswith("let the run end, then train on from its weights\n")


def searched(folder, **settings):
    """What a search leaves that a training reads: the winner, and the settings."""
    folder.mkdir()
    (folder / "genotype.json").write_text(genotypes.to_json(genotypes.lookup("DARTS")))
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_without_a_set_the_images_are_those_of_the_search(run, tmp_path):
    search = searched(tmp_path / "a search", set="digits", data="data", image_size=None)
    size = "--init_channels 2 --layers 1 --device cpu --batch_size 721 --epochs 1 --validate 0.3"
    code, out, err = run("--arch", Path(search), size, "--save", tmp_path / "run")
    assert code == 0, err
    assert f"--set is not given: digits, as the run {search} had" in out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["set"] == "digits"
    code, out, err = run("--resume", tmp_path / "run")
    assert code == 0, err


def test_a_search_takes_no_images_from_a_flag_that_is_given(tmp_path):
    search = searched(tmp_path / "search", set="folder", data="photos", image_size=32)
    found = train.with_set(train.Config(arch=search))
    assert (found.set, found.data, found.image_size) == ("folder", "photos", 32)
    found = train.with_set(train.Config(arch=search, data="others", image_size=64))
    assert (found.set, found.data, found.image_size) == ("folder", "others", 64)
    assert train.with_set(train.Config(arch=search, set="digits")).set == "digits"
    assert train.with_set(train.Config(arch="DARTS")).set == "cifar10"
    for content in ("{", "[]", '{"set": "mnist", "data": "data", "image_size": null}'):
        (tmp_path / "search" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: does not say .*; give --set"):
            train.with_set(train.Config(arch=search))


def test_a_batch_larger_than_the_set_says_what_to_give(run, tmp_path):
    code, _, err = run("--set digits --device cpu --batch_size 4000", "--save", tmp_path / "run")
    assert code == 2
    assert err == (
        "train.py: --batch_size 4000: there are 1442 training images; give --batch_size 1442 or less\n"
    )
    assert not (tmp_path / "run").exists()
