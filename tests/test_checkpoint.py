"""checkpoint.py: what is saved comes back, and nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Marker
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes
from common import checkpoint

STATE = {"kind": "search", "weights": {"a": torch.arange(6.0).reshape(2, 3)}, "generation": 3}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"a": np.arange(3), "b": {"c": [np.array([True]), (np.array([0.5]), "x")]}, "d": 1}
    checkpoint.save(tmp_path / "state.pt", state)
    found = checkpoint.arrays(checkpoint.load(tmp_path / "state.pt"))
    assert str(found) == str(state)
    assert found["a"].dtype == np.int64


def test_nested_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = STATE | {"array": np.array([1.5, np.nan]), "number": np.float64(0.1), "rows": [(1, "x", None)]}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path, "search")
    assert torch.equal(loaded["weights"]["a"], STATE["weights"]["a"])
    assert loaded["array"][0] == 1.5
    assert loaded["array"].isnan().tolist() == [False, True]
    assert loaded["number"] == 0.1
    assert loaded["rows"] == [(1, "x", None)]
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_named_tuple_needs_no_class_to_load(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"cell": genotypes.DARTS})
    assert checkpoint.load(tmp_path / "c.pt")["cell"] == tuple(genotypes.DARTS)


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "checkpoint.pt"
    for generation in range(3):
        checkpoint.save(path, STATE | {"generation": generation}, keep_previous=True)
    assert checkpoint.load(path)["generation"] == 2
    assert checkpoint.load(checkpoint.previous(path))["generation"] == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_costs_no_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links) -> None:
    def full_copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(28, "No space left on device")

    if not links:
        monkeypatch.setattr(os, "link", full_copy)
        monkeypatch.setattr(checkpoint.shutil, "copyfile", full_copy)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE, keep_previous=True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, STATE | {"generation": 4}, keep_previous=True)
    assert checkpoint.load(path)["generation"] == 3
    monkeypatch.undo()
    checkpoint.save(path, STATE | {"generation": 4}, keep_previous=True)  # both names are of one file before
    assert checkpoint.load(path)["generation"] == 4
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.previous.pt", "checkpoint.pt"]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "text":
        content = bytearray(b"this is no checkpoint\n")
    else:
        number = torch.tensor([5.0]).numpy().tobytes()  # a weight's bytes: only the checksum can tell
        position = content.index(number)
        content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "one bit"])
def test_a_damaged_file_is_named_and_the_one_before_used(tmp_path: Path, how: str) -> None:
    path = tmp_path / "checkpoint.pt"
    for generation in range(2):
        checkpoint.save(path, STATE | {"generation": generation}, keep_previous=True)
    damage(path, how)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: (damaged|refused)") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)
    found = checkpoint.load_newest(path, "search")
    assert found is not None
    state, problem = found
    assert state["generation"] == 0
    assert problem is not None
    assert str(path) in problem
    assert str(checkpoint.previous(path)) in problem
    damage(checkpoint.previous(path), "truncated")
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        checkpoint.load_newest(path, "search")


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch, failure: Exception) -> None:
    path = tmp_path / "checkpoint.pt"
    for generation in range(2):
        checkpoint.save(path, STATE | {"generation": generation}, keep_previous=True)

    def fail(*_, **__) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(torch, "load", fail)
        with pytest.raises(MemoryError, match=r"checkpoint\.pt"):
            checkpoint.load_newest(path, "search")
    found = checkpoint.load_newest(path, "search")
    assert found is not None
    assert found[0]["generation"] == 1


def test_a_drive_that_fails_says_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    for generation in range(2):
        checkpoint.save(path, STATE | {"generation": generation}, keep_previous=True)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fail)
    with pytest.raises(OSError, match=r"checkpoint\.pt: cannot be read: Input/output error"):
        checkpoint.load_newest(path, "search")


def test_compressed_entries_are_refused_unread(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    checkpoint.save(plain, {"kind": "network", "zeros": torch.zeros(10**6)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(ValueError, match=r"bomb\.pt: damaged, or no checkpoint: its entries are compressed"):
        checkpoint.load(bomb)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60), head=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"{'a': 1}"]))
def test_any_bytes_are_an_error_in_one_line(content: bytes, head: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "noise.pt"
    path.write_bytes(head + content)
    with pytest.raises(ValueError, match=r"noise\.pt"):
        checkpoint.load(path)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_code_in_a_file_is_never_run(tmp_path: Path, writer: str) -> None:
    path, marker = tmp_path / "bad.pt", tmp_path / "executed"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"kind": "search", "x": Marker(marker)}))
    else:
        torch.save({"kind": "search", "x": Marker(marker)}, path)
    with pytest.raises(ValueError, match=r"bad.pt: (refused|damaged)"):
        checkpoint.load(path)
    assert not marker.exists()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    checkpoint.save(tmp_path / "network.pt", {"kind": "network"})
    with pytest.raises(ValueError, match="not a checkpoint of search, but of network"):
        checkpoint.load(tmp_path / "network.pt", "search")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoint.load(tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"some\.zip: damaged, or no checkpoint"):
        checkpoint.load(tmp_path / "some.zip")
    with pytest.raises(ValueError, match="a folder, no checkpoint"):
        checkpoint.load(tmp_path)
