"""utils.py: seeds, and files that are written whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import utils


def test_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {
        utils.derive_seed(s, *p)
        for s in range(20)
        for p in [("a",), ("b",), ("a", 1), ("a", 11), ("a", 1, 1)]
    }
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert utils.derive_seed(3, "batches", 1, 2) == utils.derive_seed(3, "batches", 1, 2)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    utils.write_atomically(path, "old")
    utils.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    utils.write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"file\.txt: cannot be written: No space left"):
        utils.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        assert len(utils.temporary_files(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        utils.write_atomically(tmp_path / "file.txt", "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "file.txt"
    utils.write_atomically(path, "first", new=True)
    with pytest.raises(FileExistsError) as refused:
        utils.write_atomically(path, "second", new=True)
    assert str(refused.value) == f"[Errno 17] File exists: '{path}'"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file.txt"]
    assert path.stat().st_nlink == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/file\.txt: cannot be written: No such file"):
        utils.write_atomically(tmp_path / "nowhere" / "file.txt", "")


def test_wilson_interval() -> None:
    # Newcombe 1998, Table I: 81 of 263 and 0 of 20.
    assert utils.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert utils.wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_wilson_interval_contains_the_share() -> None:
    for count in range(1, 301):
        assert utils.wilson(0.0, count)[0] == 0.0, count
        assert utils.wilson(1.0, count)[1] == 1.0, count
        for wins in (0, 1, count // 2, count):
            low, high = utils.wilson(wins / count, count)
            assert 0 <= low <= wins / count <= high <= 1, (wins, count)


def test_a_new_file_is_as_readable_as_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        utils.write_atomically(tmp_path / "a", "x")
        utils.write_atomically(tmp_path / "b", "x", mode=0o604)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o604]
