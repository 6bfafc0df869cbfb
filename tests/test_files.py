"""Files of data sets: IDX, CIFAR, class folders and their cache; missing, cut off and foreign files."""

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import files, sets

ROOT = Path(__file__).parent.parent


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(files, "DEBIAN_FASHION_MNIST", Path("/nowhere/fashion-mnist"))


def write_idx(path, array):
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder, suffix=".gz", count=7):
    images = np.arange(count * 28 * 28, dtype=np.uint8).reshape(count, 28, 28)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8))
    return images


@pytest.mark.parametrize(
    ("place", "suffix"), [("", ".gz"), ("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz")]
)
def test_fashion_mnist_is_read_from_both_layouts(tmp_path, offline, place, suffix):
    images = write_fashion(tmp_path / place, suffix)
    for part in ("train", "test"):
        found = sets.load("fashion_mnist", tmp_path, part)
        assert np.array_equal(found.images[:, 0].numpy(), images)
        assert found.labels.tolist() == list(range(7))
        assert found.classes[9] == "Ankle boot"


def test_damaged_fashion_mnist_files_are_named(tmp_path, offline):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    wrong = {
        "cut off": whole[: len(whole) // 2],
        "no gzip": b"<html>not found</html>",
        "no IDX": gzip.compress(b"\0\0\x08\x01" + bytes(100)),
        "announces": gzip.compress(gzip.decompress(whole)[:-1]),
    }
    for content in wrong.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz .*get it again"):
            sets.load("fashion_mnist", tmp_path)
    write_idx(path, np.zeros((3, 28, 28), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"has 3 images, but .* has 7 labels"):
        sets.load("fashion_mnist", tmp_path)
    write_idx(path, np.zeros((7, 28, 27), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"has images of 28x27, not 28x28: get it again"):
        sets.load("fashion_mnist", tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_without_network_one_line_says_what_is_missing(tmp_path, offline, capsys, name):
    folder = tmp_path / "absent"
    with pytest.raises(OSError, match="is not there") as caught:
        sets.load(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert "no network" in message or "mirror" in message
    assert not folder.exists()
    assert "downloading it into" in capsys.readouterr().out


def write_cifar(folder, monkeypatch, kind, classes, count=6):
    """Small files of the published format; torchvision's MD5 sums are set to theirs."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    unpacked = folder / dataset.base_folder
    unpacked.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = random.integers(0, len(classes), count).tolist()
    key = "labels" if kind == "CIFAR10" else "fine_labels"

    def write(name, content):
        (unpacked / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((unpacked / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        files = [
            [name, write(name, {"data": pixels, key: labels})] for name, _ in getattr(dataset, attribute)
        ]
        monkeypatch.setattr(dataset, attribute, files)
    meta = dataset.meta["filename"]
    sums = dataset.meta | {"md5": write(meta, {dataset.meta["key"]: list(classes)})}
    monkeypatch.setattr(dataset, "meta", sums)
    return unpacked, pixels, labels


@pytest.mark.parametrize(
    ("name", "kind", "batches"), [("cifar10", "CIFAR10", 5), ("cifar100", "CIFAR100", 1)]
)
def test_cifar_is_read_from_the_unpacked_archive(tmp_path, monkeypatch, offline, name, kind, batches):
    classes = tuple(f"class{i}" for i in range(10))
    unpacked, pixels, labels = write_cifar(tmp_path, monkeypatch, kind, classes)
    for place in (tmp_path, unpacked):
        train, test = sets.load(name, place), sets.load(name, place, "test")
        assert np.array_equal(test.images.flatten(1).numpy(), pixels)
        assert test.labels.tolist() == labels
        assert (len(train), train.classes, train.images.shape[1:]) == (6 * batches, classes, (3, 32, 32))


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_foreign_cifar_file_is_named_and_never_unpickled(tmp_path, monkeypatch, offline):
    unpacked, _, _ = write_cifar(tmp_path, monkeypatch, "CIFAR10", tuple("abcdefghij"))
    marker = tmp_path / "marker"
    for name in ("data_batch_2", "batches.meta"):
        whole = (unpacked / name).read_bytes()
        (unpacked / name).write_bytes(pickle.dumps(Marker(marker)))
        with pytest.raises(ValueError, match=f"{name} is cut off or not the published file"):
            sets.load("cifar10", tmp_path)
        (unpacked / name).write_bytes(whole)
    assert not marker.exists()
    (unpacked / "test_batch").write_bytes((unpacked / "test_batch").read_bytes()[:100])
    with pytest.raises(ValueError, match="test_batch is cut off"):
        sets.load("cifar10", tmp_path)


def write_tree(
    root, parts=("train", "test"), classes=("bird", "cat"), count=3, size=8, mode="RGB", suffix="png"
):
    random = np.random.default_rng(1)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
                image.save(root / part / name / f"{index:03}.{suffix}")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("test_name", ["test", "val"])
def test_class_folders_become_a_set(tmp_path, mode, channels, test_name):
    write_tree(tmp_path, parts=("train", test_name), mode=mode)
    for part, place in (("train", "train"), ("test", test_name)):
        found = sets.load("folder", tmp_path, part)
        assert found.classes == ("bird", "cat")
        assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.asarray(Image.open(tmp_path / place / "cat" / "001.png"))
        assert np.array_equal(found.images[4].permute(1, 2, 0).numpy().squeeze(), expected)
        assert found.channels == channels


def test_one_colour_image_makes_the_whole_folder_colour(tmp_path):
    write_tree(tmp_path, mode="L")
    grey = np.asarray(Image.open(tmp_path / "train" / "bird" / "000.png"))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "test" / "cat" / "001.png")
    train, test = sets.load("folder", tmp_path), sets.load("folder", tmp_path, "test")
    assert (train.channels, test.channels) == (3, 3)
    assert np.array_equal(train.images[0].numpy(), np.stack([grey] * 3))
    assert test.images[4, :, 0, 0].tolist() == [1, 2, 3]


def test_the_second_load_comes_from_the_cache(tmp_path, monkeypatch, capsys):
    write_tree(tmp_path)
    first = sets.load("folder", tmp_path)
    assert "decoding 12 images" in capsys.readouterr().out
    monkeypatch.setattr(files, "read_image", None)  # decoding again would fail
    assert np.array_equal(sets.load("folder", tmp_path).images, first.images)
    assert len(sets.load("folder", tmp_path, "test")) == 6
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "change", ["added", "removed", "rewritten", "touched", "new class", "cut cache", "damaged cache"]
)
def test_the_cache_notices_every_change(tmp_path, capsys, change):
    write_tree(tmp_path)
    sets.load("folder", tmp_path)
    capsys.readouterr()
    path = tmp_path / "train" / "bird" / "000.png"
    if change == "added":
        Image.new("RGB", (8, 8)).save(path.with_name("zzz.png"))
    elif change == "removed":
        path.unlink()
    elif change == "rewritten":
        Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "new class":
        for part in ("train", "test"):
            (tmp_path / part / "ant").mkdir()
            Image.new("RGB", (8, 8)).save(tmp_path / part / "ant" / "0.png")
    else:
        cache = tmp_path / files.CACHE_FOLDER / "original.npz"
        content = cache.read_bytes()
        entry = content.index(b"PK\x01\x02")  # of the archive's directory; its compression method
        method = entry + 10
        damaged = content[:method] + b"\x63" + content[method + 1 :]
        cache.write_bytes(content[:-200] if change == "cut cache" else damaged)
    found = sets.load("folder", tmp_path)
    assert "decoding" in capsys.readouterr().out
    assert len(found) == {"added": 7, "removed": 5, "new class": 7}.get(change, 6)
    if change == "rewritten":
        assert (found.images[0] == 9).all()


def test_two_processes_at_once_both_get_the_set(tmp_path):
    write_tree(tmp_path, count=200)
    program = "import sys, pathlib\nfrom images import files\n"
    program += "print(files.class_folders(pathlib.Path(sys.argv[1]), 'train').images.sum())"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [worker.communicate(timeout=60) for worker in workers]
    sums = [output.splitlines()[-1] for output, _ in outputs]
    assert sums[0] == sums[1] != ""
    assert sum(output.count("decoding") for output, _ in outputs) == 1
    left = sorted(path.name for path in (tmp_path / files.CACHE_FOLDER).iterdir())
    assert left == ["original.lock", "original.npz"]


@pytest.mark.parametrize("how", [KeyboardInterrupt, "killed"])
def test_a_cache_that_was_interrupted_leaves_nothing_behind(tmp_path, monkeypatch, how):
    write_tree(tmp_path)
    cache = tmp_path / files.CACHE_FOLDER
    if how == "killed":
        cache.mkdir()
        (cache / "original.1.part").write_bytes(b"half of a cache")
    else:
        monkeypatch.setattr(np, "savez", lambda file, **_: (_ for _ in ()).throw(how))
        with pytest.raises(how):
            sets.load("folder", tmp_path)
        assert [path.name for path in cache.iterdir()] == ["original.lock"]
        monkeypatch.undo()
    sets.load("folder", tmp_path)
    assert sorted(path.name for path in cache.iterdir()) == ["original.lock", "original.npz"]


def test_a_cache_that_cannot_be_written_is_said_and_costs_nothing(tmp_path, capsys):
    write_tree(tmp_path)
    (tmp_path / files.CACHE_FOLDER).write_text("a file where the folder should be")
    assert len(sets.load("folder", tmp_path)) == 6
    assert "could not be written" in capsys.readouterr().out


def test_image_size_scales_and_crops_the_middle(tmp_path):
    write_tree(tmp_path, size=16)
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "train" / "bird" / "000.png")
    found = sets.load("folder", tmp_path, image_size=10)
    assert found.images.shape == (6, 3, 10, 10)
    assert (found.images[0, :, :, 2:8] > 190).all()
    assert sets.load("folder", tmp_path, image_size=12).image_size == 12


def test_photographs_are_turned_upright(tmp_path):
    write_tree(tmp_path)
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 2))  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "train" / "bird" / "000.png", exif=exif)
    found = sets.load("folder", tmp_path).images[0, 0]
    assert found[-1].float().mean() > 200 > 50 > found[0].float().mean()


@pytest.mark.parametrize("damage", ["text", "short"])
def test_damaged_exif_data_leave_the_photograph_as_it_is(tmp_path, recwarn, damage):
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = exif.tobytes()
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 2))
    damaged = {"text": b"Exif\0\0nonsense", "short": whole[:12]}[damage]
    image.save(tmp_path / "image.jpg", exif=damaged, quality=100)
    found = files.read_image(tmp_path / "image.jpg")
    assert found[0].mean() > 200 > 50 > found[-1].mean()
    assert not recwarn.list


def test_class_folders_alone_give_every_fifth_image_as_test(tmp_path, capsys):
    write_tree(tmp_path, parts=("",), count=11)
    train, test = sets.load("folder", tmp_path), sets.load("folder", tmp_path, "test")
    assert "every fifth image" in capsys.readouterr().out
    assert (len(train), len(test)) == (18, 4)
    expected = np.asarray(Image.open(tmp_path / "bird" / "004.png")).transpose(2, 0, 1)
    assert np.array_equal(test.images[0].numpy(), expected)
    together = np.concatenate([train.images.flatten(1), test.images.flatten(1)])
    assert len(np.unique(together, axis=0)) == 22


def break_tree(root, wrong):
    path = root / "train" / "bird" / "001.png"
    if wrong == "unreadable":
        path.write_text("no image")
    elif wrong == "cut off":
        Image.effect_noise((8, 8), 100).convert("RGB").save(path.with_suffix(".jpg"))
        path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:-60])
    elif wrong == "sizes":
        Image.new("RGB", (9, 8)).save(path)
    elif wrong == "16 bits":
        Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(path)
    elif wrong == "empty class":
        for file in path.parent.iterdir():
            file.rename(file.with_suffix(".txt"))
    elif wrong == "one class":
        for part in ("train", "test"):
            (root / part / "cat").rename(root / part / ".cat")
    elif wrong == "other class":
        (root / "test" / "cat").rename(root / "test" / "dog")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("unreadable", r"001\.png cannot be read as an image"),
        ("cut off", r"001\.jpg cannot be read as an image"),
        ("sizes", r"001\.png is 9x8, but .*000\.png is 8x8: --image_size"),
        ("16 bits", r"001\.png cannot be read .*more than 8 bits"),
        ("empty class", r"bird holds no image"),
        ("one class", r"train has 1 class folders \(bird\)"),
        ("other class", r"class 'cat' is in only one of train/ and test/"),
    ],
)
def test_wrong_folders_are_refused_by_name(tmp_path, wrong, message):
    write_tree(tmp_path)
    break_tree(tmp_path, wrong)
    with pytest.raises(ValueError, match=message):
        sets.load("folder", tmp_path)
    cache = tmp_path / files.CACHE_FOLDER / "original.npz"
    assert not cache.exists()


def test_other_refusals_of_folders(tmp_path):
    with pytest.raises(OSError, match=r"absent: there is no such folder"):
        sets.load("folder", tmp_path / "absent")
    write_tree(tmp_path / "small", size=7)
    with pytest.raises(ValueError, match=r"7x7: allowed are 8 pixels or more"):
        sets.load("folder", tmp_path / "small")
    write_tree(tmp_path / "half", parts=("train",))
    with pytest.raises(ValueError, match=r"there is no test/ or val/"):
        sets.load("folder", tmp_path / "half", "test")
    write_tree(tmp_path / "few", parts=("",), count=4)
    with pytest.raises(ValueError, match=r"class 'bird' has 4 images"):
        sets.load("folder", tmp_path / "few")
    write_tree(tmp_path / "wide")
    for file in (tmp_path / "wide").rglob("*.png"):
        Image.new("RGB", (10, 8)).save(file)
    with pytest.raises(ValueError, match=r"10x8: images must be square"):
        sets.load("folder", tmp_path / "wide")
    Image.new("L", (10, 8)).save(tmp_path / "alone.png")
    assert files.read_image(tmp_path / "alone.png", 8).shape == (8, 8, 1)


@pytest.mark.skipif(
    not files.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist_is_whole(tmp_path):
    found = sets.load("fashion_mnist", tmp_path, "test")
    assert (len(found), found.labels.bincount().tolist()) == (10000, [1000] * 10)


def test_images_that_have_the_size_are_not_decoded_again(tmp_path, capfd):
    write_tree(tmp_path, size=16)
    first = files.class_folders(tmp_path, "train")
    capfd.readouterr()
    size = first.images.shape[1]
    again = files.class_folders(tmp_path, "train", image_size=size)
    assert np.array_equal(first.images, again.images)
    assert "decoding" not in "".join(capfd.readouterr())
    smaller = files.class_folders(tmp_path, "train", image_size=8)
    assert smaller.images.shape[1:3] == (8, 8)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128] + [255] * 254))
    assert files.read_image(tmp_path / "palette.png").shape == (8, 8, 3)
    assert not recwarn.list
