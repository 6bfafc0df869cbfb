"""Class folders of large images: the order of an epoch, what each image gets, and what is refused."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from images import large
from images.large import LargeImages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Crops of two photographs, of many sizes: 11 + 10 images."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    for name, count in (("flower", 11), ("china", 10)):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (root / name).mkdir()
        for index in range(count):
            width, height = (int(x) for x in random.integers(40, 90, 2))
            photograph.crop((10 * index, 0, 10 * index + width, height)).save(root / name / f"{index:02}.jpg")
    return root


def epoch(images, number=0, batch_size=8, **keywords):
    images.epoch = number
    return list(images.batches(batch_size, CPU, **{"shuffled": True} | keywords))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_an_epoch_is_every_image_once_and_repeats_with_the_seed(tree):
    images = LargeImages(tree, 16, training=True, seed=1)
    first = epoch(images)
    assert images.classes == ("china", "flower")
    assert [len(y) for _, y in first] == [8, 8, 5]
    assert torch.cat([y for _, y in first]).bincount().tolist() == [10, 11]
    assert first[0][0].shape == (8, 3, 16, 16)
    assert same(first, epoch(images))
    assert not same(first, epoch(images, number=1))
    assert not same(first, epoch(LargeImages(tree, 16, training=True, seed=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_taken_up_again_neither_repeats_nor_loses_an_image(tree, workers):
    images = LargeImages(tree, 16, training=True)
    whole = epoch(images, number=3)
    assert same(whole[:1] + epoch(images, number=3, first=1, workers=workers), whole)
    assert epoch(images, number=3, first=3) == []


def test_processes_share_the_batches_of_one(tree):
    images = LargeImages(tree, 16, training=True)
    whole = epoch(images)
    for rank in range(2):
        share = epoch(images, shard=(rank, 2))
        assert same(share, [(x[rank::2], y[rank::2]) for x, y in whole])


def test_evaluation_counts_every_image_once_whatever_the_processes(tree):
    images = LargeImages(tree, 16, training=False)
    whole = epoch(images, shuffled=False, batch_size=20)
    assert [len(y) for _, y in whole] == [20, 1]
    shares = [epoch(images, shuffled=False, batch_size=20, shard=(rank, 3)) for rank in range(3)]
    labels = torch.cat([y for share in shares for _, y in share])
    assert labels.bincount().tolist() == [10, 11]
    assert [len(share) for share in shares] == [2, 1, 1]
    shares = [epoch(images, shuffled=False, batch_size=2, shard=(rank, 3)) for rank in range(3)]
    assert [sum(len(y) for _, y in share) for share in shares] == [11, 10, 0]


def test_evaluation_is_the_middle_of_the_scaled_image(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture = np.zeros((32, 96, 3), dtype=np.uint8)
        picture[:, 32:64] = (255, 0, 0)
        Image.fromarray(picture).save(tmp_path / name / "0.png")
    images = LargeImages(tmp_path, 28, training=False)
    picture, label = images[0]
    assert (picture.shape, label) == ((28, 28, 3), 0)
    assert (picture == torch.tensor([255, 0, 0])).all()
    values = epoch(images, shuffled=False)[0][0]
    assert values[0, :, 5, 5].tolist() == pytest.approx(
        [0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-5
    )


def test_the_global_generator_neither_matters_nor_moves(tree):
    images = LargeImages(tree, 16, training=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = epoch(images)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert same(first, epoch(images))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_that_names_it(tree, tmp_path, workers):
    for folder in tree.iterdir():
        (tmp_path / folder.name).mkdir()
        for file in folder.iterdir():
            (tmp_path / folder.name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "china" / "03.jpg").write_bytes((tree / "china" / "03.jpg").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"03\.jpg cannot be read as an image") as caught:
        epoch(LargeImages(tmp_path, 16, training=True), workers=workers)
    assert "\n" not in str(caught.value)


def test_a_worker_that_is_killed_is_one_line(tree, monkeypatch):
    monkeypatch.setattr(LargeImages, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ValueError, match=r"^--workers 1: DataLoader worker ") as caught:
        epoch(LargeImages(tree, 16, training=True), workers=1)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_that_of_the_files_wherever_they_lie(tree, tmp_path):
    before = LargeImages(tree, 16, training=True).fingerprint
    moved = tmp_path / "moved"
    tree.rename(moved)
    try:
        assert LargeImages(moved, 16, training=True).fingerprint == before
        (moved / "china" / "03.jpg").rename(moved / "china" / "zz.jpg")
        assert LargeImages(moved, 16, training=True).fingerprint != before
        (moved / "china" / "zz.jpg").rename(moved / "china" / "03.jpg")
    finally:
        moved.rename(tree)


def test_folders_without_classes_are_refused(tmp_path):
    with pytest.raises(OSError, match="there is no folder"):
        LargeImages(tmp_path / "absent", 16, training=True)
    with pytest.raises(ValueError, match="has 0 class folders"):
        LargeImages(tmp_path, 16, training=True)


def test_a_photograph_is_turned_upright(tmp_path):
    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    for name, picture in (("a", photograph), ("b", photograph.rotate(180))):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png", exif=exif if name == "b" else None)
    upright, turned = (LargeImages(tmp_path, 32, training=False)[index][0] for index in (0, 1))
    assert torch.equal(upright, turned)


def _hang(path):
    time.sleep(600)


def test_a_worker_that_hangs_is_named_and_ended(tree, monkeypatch):
    monkeypatch.setattr("images.files.open_image", _hang)
    monkeypatch.setattr("images.large.PATIENCE", 1.0)
    begin = time.monotonic()
    with pytest.raises(ValueError, match="--workers 1: none gave a batch within 1 s"):
        epoch(LargeImages(tree, 16, training=True), workers=1)
    assert time.monotonic() - begin < 60
    assert not multiprocessing.active_children()


def test_a_worker_that_was_told_to_stop_stops_the_program():
    def batches():
        yield 1
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Terminated. ")

    with pytest.raises(KeyboardInterrupt):
        list(large._named_by_flag(batches(), 2))
