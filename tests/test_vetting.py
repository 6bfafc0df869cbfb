"""vetting.py: files that would take more memory than they have bytes are refused before they do."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import checkpoint, vetting


def rewritten(path: Path, pickled: bytes | Callable[[bytes], bytes]) -> Path:
    """A checkpoint of one tensor of four numbers whose pickle is another one."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                content = pickled if isinstance(pickled, bytes) else pickled(content)
            target.writestr(name, content)
    return path


def call(name: str) -> bytes:
    """The pickle of name(10**9)."""
    return f"\x80\x02c{name}\nJ".encode("latin1") + struct.pack("<i", 10**9) + b"\x85R."


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", ["builtins\nbytearray", "torch\nTensor", "torch.storage\nUntypedStorage"])
@pytest.mark.parametrize("old", [False, True])
def test_constructors_of_any_size_are_not_called(tmp_path: Path, name: str, old: bool) -> None:
    path = tmp_path / "bomb.pt"
    if old:  # the format before torch 1.6
        torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(
            path.read_bytes().replace(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", call(name))
        )
    else:
        rewritten(path, call(name))
    before = peak()
    with pytest.raises(ValueError, match=rf"bomb\.pt: damaged, or no checkpoint: refused.*{name.split()[1]}"):
        checkpoint.load(path)
    assert peak() - before < 100 * 2**20


def test_an_object_that_stands_in_many_places_counts_in_all(tmp_path: Path) -> None:
    nested: list = ["x" * 100]
    for _ in range(30):
        nested = [nested, nested]
    torch.save({"rows": nested}, tmp_path / "many.pt")
    with pytest.raises(ValueError, match=r"many\.pt: damaged, or no checkpoint: it claims to hold far more"):
        checkpoint.load(tmp_path / "many.pt")
    tensor = torch.zeros(10**5)
    torch.save({str(number): tensor for number in range(20)}, tmp_path / "tensors.pt")
    with pytest.raises(ValueError, match="it claims to hold far more"):
        checkpoint.load(tmp_path / "tensors.pt")
    torch.save({"wide": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="it claims to hold far more"):
        checkpoint.load(tmp_path / "wide.pt")


def test_what_checkpoints_hold_is_let_through(tmp_path: Path) -> None:
    rows = [{"epoch": i, "loss": 0.1 * i, "error": 0.5, "images": 1442, "seconds": 0.1} for i in range(1000)]
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).half()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    kinds = {str(kind): torch.ones(2, dtype=kind) for kind in (torch.bool, torch.int8, torch.bfloat16)}
    state = {
        "rows": rows,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "kinds": kinds,
    }
    for old in (False, True):
        path = tmp_path / f"{old}.pt"
        torch.save(state | {"parameter": network[0].weight}, path, _use_new_zipfile_serialization=not old)
        loaded = checkpoint.load(path)
        assert loaded["rows"] == rows
        assert torch.equal(loaded["network"]["0.weight"], network[0].weight)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "two.pt", lambda pickled: pickled)
    with zipfile.ZipFile(path) as archive:
        name, content = next((name, archive.read(name)) for name in archive.namelist() if "pkl" in name)
    size = path.stat().st_size
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)
    assert path.stat().st_size > size
    with pytest.raises(ValueError, match="two of its entries have one name"):
        vetting.check_file(path)
