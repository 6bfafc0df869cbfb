"""The cache of class folders: when it is used, and that nothing is lost with it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_folders import write_tree

from images import sets
from images.cache import CACHE_FOLDER, class_folders


def test_the_second_load_comes_from_the_cache(tmp_path, monkeypatch, capsys):
    write_tree(tmp_path)
    first = sets.load("folder", tmp_path)
    assert "decoding 12 images" in capsys.readouterr().out
    monkeypatch.setattr("images.folders.read_image", None)  # decoding again would fail
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
        cache = tmp_path / CACHE_FOLDER / "original.npz"
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
    program = "import sys, pathlib\nfrom images import cache\n"
    program += "print(cache.class_folders(pathlib.Path(sys.argv[1]), 'train').images.sum())"
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
    left = sorted(path.name for path in (tmp_path / CACHE_FOLDER).iterdir())
    assert left == ["original.npz"]


@pytest.mark.parametrize("how", [KeyboardInterrupt, "killed"])
def test_a_cache_that_was_interrupted_leaves_nothing_behind(tmp_path, monkeypatch, how):
    write_tree(tmp_path)
    cache = tmp_path / CACHE_FOLDER
    if how == "killed":
        cache.mkdir()
        (cache / "original.1.part").write_bytes(b"half of a cache")
    else:
        monkeypatch.setattr(np, "savez", lambda file, **_: (_ for _ in ()).throw(how))
        with pytest.raises(how):
            sets.load("folder", tmp_path)
        assert list(cache.iterdir()) == []
        monkeypatch.undo()
    sets.load("folder", tmp_path)
    assert [path.name for path in cache.iterdir()] == ["original.npz"]


def unwritable(root):
    """Leave no room for the cache in a folder. Permissions would not do, as tests may run as root."""
    (root / CACHE_FOLDER).write_text("a file where the folder should be")


def test_a_folder_that_cannot_be_written_is_decoded_once_into_the_users_own_cache(
    tmp_path, monkeypatch, capsys
):
    images = write_tree(tmp_path / "images")
    unwritable(images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    first = sets.load("folder", images)
    out = capsys.readouterr().out
    (cache,) = (tmp_path / "own" / "pairnas").glob("images-*/original.npz")
    assert f"kept in {cache}" in out
    assert f"{CACHE_FOLDER}/original.npz: " in out
    assert "File exists" in out
    monkeypatch.setattr("images.folders.read_image", None)  # decoding again would fail
    assert len(sets.load("folder", images, "test")) == 6
    assert np.array_equal(sets.load("folder", images).images, first.images)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("home", ["relative/path", "file"])
def test_where_no_cache_can_be_written_both_parts_are_decoded_at_once(tmp_path, monkeypatch, capsys, home):
    images = write_tree(tmp_path / "images")
    unwritable(images)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", home if "/" in home else str(tmp_path / home))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # where a relative path is not heeded
    assert len(sets.load("folder", images)) == 6
    out = capsys.readouterr().out
    assert "no cache could be written" in out
    assert "Not a directory" in out
    monkeypatch.setattr("images.folders.read_image", None)
    assert len(sets.load("folder", images, "test")) == 6
    assert not capsys.readouterr().out


def test_a_wrong_image_leaves_nothing_in_the_folder(tmp_path):
    images = write_tree(tmp_path / "images")
    (images / "train" / "cat" / "002.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"002\.png cannot be read as an image"):
        sets.load("folder", images)
    assert sorted(path.name for path in images.iterdir()) == ["test", "train"]


def test_images_that_have_the_size_are_not_decoded_again(tmp_path, capfd):
    write_tree(tmp_path, size=16)
    first = class_folders(tmp_path, "train")
    capfd.readouterr()
    size = first.images.shape[1]
    again = class_folders(tmp_path, "train", image_size=size)
    assert np.array_equal(first.images, again.images)
    assert "decoding" not in "".join(capfd.readouterr())
    smaller = class_folders(tmp_path, "train", image_size=8)
    assert smaller.images.shape[1:3] == (8, 8)
