"""Files of data sets: IDX, CIFAR, class folders and their cache; missing, cut off and foreign files."""

import gzip
import hashlib
import os
import pickle
import struct
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


@pytest.mark.skipif(
    not files.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist_is_whole(tmp_path):
    found = sets.load("fashion_mnist", tmp_path, "test")
    assert (len(found), found.labels.bincount().tolist()) == (10000, [1000] * 10)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128] + [255] * 254))
    assert files.read_image(tmp_path / "palette.png").shape == (8, 8, 3)
    assert not recwarn.list


def test_only_the_documented_formats_are_opened_whatever_a_file_is_called(tmp_path, monkeypatch):
    (tmp_path / "evil.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    monkeypatch.setattr("subprocess.Popen", None)  # as which Ghostscript would start
    with pytest.raises(ValueError, match=r"evil\.png cannot be read as an image"):
        files.read_image(tmp_path / "evil.png")


@pytest.mark.parametrize("size", [(1000, 1001), (1000, 3000)])  # Pillow itself refuses the second
def test_an_image_of_too_many_pixels_is_named_with_the_flag_that_allows_it(tmp_path, monkeypatch, size):
    Image.new("1", size).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    files.limit_pixels(1)
    with pytest.raises(ValueError, match=r"large\.png .*; allowed are 1 megapixels, see --max_megapixels"):
        files.read_image(tmp_path / "large.png")
    files.limit_pixels(3)
    assert files.read_image(tmp_path / "large.png").shape == (*reversed(size), 1)


def test_a_damaged_tiff_is_refused_without_a_word_of_its_library(tmp_path, capfd):
    image = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
    image.save(tmp_path / "image.tif", compression="packbits")
    content = bytearray((tmp_path / "image.tif").read_bytes())
    start = content.index(bytes(range(16)))  # of the packed rows
    content[start - 1 : start + 900] = bytes([128]) * 901  # which packs nothing
    (tmp_path / "image.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"image\.tif cannot be read as an image"):
        files.read_image(tmp_path / "image.tif")
    assert capfd.readouterr() == ("", "")
