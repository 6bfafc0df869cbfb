"""Latency from measured edges: what is added up, what is kept, and the limit in a search."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Program, one_line, results, rows

import genotypes
from model import Edges, NetworkCIFAR
from model_search import FullSize
from search import latency
from search.latency import Conditions, Latency, Table
from spaces import Space

HERE = Conditions(torch.device("cpu"), "float32", channels_last=True, batch_size=1, threads=1)
SMALL = ["--space", "nasbench201", "--operations", "none", "nor_conv_3x3", "--full_channels", "2"]
SMALL += ["--full_layers", "1", "--max_latency"]


class Named(dict):
    """A table in which an edge's time is drawn from its name."""

    def __missing__(self, key: str) -> float:
        return float(np.random.default_rng(list(key.encode())).random())


@pytest.mark.parametrize("name", ["DARTS_V1", "RelativeNAS", "NASNet"])
def test_the_sum_is_over_all_edges_at_the_sizes_that_the_network_has(name: str) -> None:
    cell = genotypes.lookup(name)
    size, times = FullSize(C=4, num_classes=10, layers=5, image_size=18), Named()
    network, expected = NetworkCIFAR(4, 10, 5, False, cell, image_size=18).eval(), 0.0
    shapes = [(4, 18), (8, 9), (8, 9), (16, 5), (16, 5)]  # channels and rows of each cell; 1 and 3 reduce
    for number, module in enumerate(network.cells):
        assert isinstance(module, Edges)
        C, rows_here = shapes[number]
        for operation, source in cell.reduce if number in (1, 3) else cell.normal:
            halves = number in (1, 3) and source < 2
            before = shapes[number - 1][1] if halves else rows_here
            expected += times[f"{operation} {C} {before}x{before} {1 + halves}"]
    found = Latency(size, Table(times, 1.0, 0.0))
    assert found.sum_of_edges(cell) == pytest.approx(expected)
    assert Latency(size, Table(times, 2.0, 3.0))(cell) == pytest.approx(2 * expected + 3)


def test_edges_that_a_complete_cell_leaves_out_cost_nothing() -> None:
    cell = genotypes.lookup("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|")
    size = FullSize(C=4, num_classes=10, layers=3, image_size=8)
    names = ["nor_conv_3x3 4 8x8 1", "nor_conv_3x3 8 4x4 1", "nor_conv_3x3 16 2x2 1"]
    assert latency.Latency(size, Table(dict.fromkeys(names, 1.0), 1.0, 0.5))(cell) == 2 * 3 + 0.5


def test_whole_networks_correct_the_sum() -> None:
    assert latency.fitted([1.0, 2.0, 4.0], [5.0, 7.0, 11.0]) == pytest.approx((2.0, 3.0))
    assert latency.fitted([2.0, 2.01], [3.0, 3.01]) == pytest.approx((1.0, 1.0))
    factor, rest = latency.fitted([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])  # a straight line would begin below 0
    assert factor > 0
    assert rest == 0


def test_a_measured_table_has_every_edge_and_tells_a_convolution_from_an_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.002)
    monkeypatch.setattr(latency, "NETWORKS", 3)
    size = FullSize(C=32, num_classes=10, layers=3, image_size=8)
    space = Space(operations=("sep_conv_5x5", "skip_connect"), nodes=2)
    before = torch.random.get_rng_state()
    table = latency.measured(size, space, HERE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(0 < time < 1e4 for time in table.edges.values())
    assert table.edges["sep_conv_5x5 32 8x8 1"] > 2 * table.edges["skip_connect 32 8x8 1"]
    for cell in latency.random_cells(space, 20, 1):
        assert 0 < Latency(size, table)(cell) < 1e4


def test_exported_networks_are_measured_by_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "SECONDS", 0.002)
    monkeypatch.setattr(latency, "NETWORKS", 3)
    sessions: list[int] = []
    real = latency.onnxruntime_session

    def session(content: bytes, threads: int) -> Any:
        sessions.append(threads)
        return real(content, threads)

    monkeypatch.setattr(latency, "onnxruntime_session", session)
    size = FullSize(C=16, num_classes=10, layers=1, image_size=16)
    space = Space("nasbench201", operations=("nor_conv_3x3", "skip_connect"))
    table = latency.measured(size, space, dataclasses.replace(HERE, backend="onnxruntime"))
    assert sessions == [1] * (2 + 3)  # each operation once, and whole networks
    assert table.edges["nor_conv_3x3 32 8x8 1"] > table.edges["skip_connect 32 8x8 1"] > 0


@pytest.mark.parametrize(
    ("wrong", "word"), [({"precision": "bfloat16"}, "bfloat16"), ({"device": torch.device("meta")}, "meta")]
)
def test_what_the_other_engine_cannot_run_is_named(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"--latency_backend onnxruntime: needs .*, not .*{word}"):
        dataclasses.replace(HERE, backend="onnxruntime", **wrong).check()


def test_a_table_is_measured_once_for_the_same_machine_and_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Table] = []

    def measured(*given: object) -> Table:
        made.append(Table({"a": float(len(made))}, 1.0, 0.0))
        return made[-1]

    monkeypatch.setattr(latency, "measured", measured)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    size = FullSize(C=4, num_classes=10, layers=3, image_size=8)
    first = latency.table_for(size, Space(), HERE)
    assert latency.table_for(size, Space(), HERE) == first
    assert len(made) == 1
    (file,) = (tmp_path / "pairnas").iterdir()
    assert json.loads(file.read_text())["facts"]["torch"] == str(torch.__version__)
    for other in (
        (FullSize(C=5, num_classes=10, layers=3, image_size=8), Space(), HERE),
        (size, Space(nodes=3), HERE),
        (size, Space(), dataclasses.replace(HERE, batch_size=2)),
        (size, Space(), dataclasses.replace(HERE, backend="onnxruntime")),
    ):
        assert latency.table_for(*other) != first
    for damaged in ('{"facts": ', "{}", "[]", "null", "1"):
        file.write_text(damaged)
        assert latency.table_for(size, Space(), HERE) == made[-1]
    assert len(made) == 10


def test_a_kept_table_is_taken_if_it_has_every_edge(tmp_path: Path) -> None:
    size, kept = FullSize(C=4, num_classes=10, layers=3, image_size=8), tmp_path / "kept.json"
    table = Table(dict.fromkeys(latency._edges(size, Space()), 1.0), 1.0, 0.0)
    latency.write(kept, table, {})
    assert latency.table_for(size, Space(), HERE, kept) == table
    lost = min(table.edges)
    latency.write(kept, table._replace(edges={name: 1.0 for name in table.edges if name != lost}), {})
    with pytest.raises(ValueError, match=rf"kept\.json: .* {lost} is missing"):
        latency.table_for(size, Space(), HERE, kept)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"edges": {"a": "x"}}', '{"edges": {"a": NaN}, "factor": 1, "rest": 0}']
)
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(ValueError, match=r"latency\.json: no table of measured edges"):
        latency.read(tmp_path / "latency.json")


def test_the_limit_holds_from_a_kept_table_and_after_a_stop(program: Program, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}

    def start(*flags: object, **more: int) -> tuple[int, str, str]:
        return program.start(*flags, environment=environment, **more).wait()

    code, out, err = start(*TINY, *SMALL, 1e9, "--generations", 1, "--save", "measured_latency")
    assert code == 0, err
    assert "measuring how long edges take" in out
    table = latency.read(program.folder / "measured_latency" / "latency.json")
    assert set(table.edges) == {f"{name} 4 4x4 1" for name in ("none", "nor_conv_3x3")}
    assert float(rows(program.folder / "measured_latency" / "finalists.csv")[0]["latency"]) > 0

    (cached,) = (tmp_path / "pairnas").iterdir()
    known = json.loads(cached.read_text())["facts"]
    latency.write(cached, Table({"none 4 4x4 1": 0.0, "nor_conv_3x3 4 4x4 1": 100.0}, 1.0, 10.0), known)
    code, out, err = start(*TINY, *SMALL, 9.0, "--save", "refused_latency")
    assert code == 2
    assert "--max_latency" in one_line(err)
    assert not (program.folder / "refused_latency").exists()

    code, out, err = start(*TINY, *SMALL, 220.0, "--save", "limited_latency")
    assert code == 0, err
    assert "measuring" not in out
    history = rows(program.folder / "limited_latency" / "history.csv")
    cells = {row[f"genotype_{side}"] for row in history for side in "ab"}
    assert max(cell.count("nor_conv_3x3") for cell in cells) == 2
    code, *_ = start(*TINY, *SMALL, 220.0, "--save", "killed_limited", die_at_checkpoint=4)
    assert code == -signal.SIGKILL
    kept = program.folder / "killed_limited" / "latency.json"
    kept.rename(program.folder / "kept.json")
    code, out, err = start("--resume", "killed_limited")
    assert (code, "latency.json is missing" in one_line(err)) == (2, True)
    (program.folder / "kept.json").rename(kept)
    text = kept.read_text()
    kept.write_text(text.replace("100.0", "90.0"))
    code, out, err = start("--resume", "killed_limited")
    assert (code, "latency.json is not the table that the run began with" in one_line(err)) == (2, True)
    kept.write_text(text)
    cached.unlink()  # and the run's own table is what it goes on with
    code, out, err = start("--resume", "killed_limited")
    assert code == 0, err
    assert "measuring" not in out
    assert results(program.folder / "killed_limited") == results(program.folder / "limited_latency")
