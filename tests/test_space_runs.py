"""Searches of other spaces from beginning to end, an operation of one's own, and the search in a notebook."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, Program, one_line, results, rows
from test_test import script as test_script
from torch import nn

import genotypes
import operations
import train
import train_search
import visualize
from cells import to_arch_string
from common import checkpoint
from genotypes import CompleteCell, edges_of
from model_search import FullSize

sys.path.insert(0, str(ROOT / "benchmarks"))

import found_in_table

GRAPH = ["--space", "nasbench201"]
OWN = ["--nodes", "2", "--cells", "normal", "--operations", "none", "sep_conv_5x5", "nor_conv_3x3"]
OWN += ["--max_parameters", "0.8", "--distinct_inputs"]


@pytest.fixture(scope="module")
def graph_run(program: Program) -> Path:
    """The folder of a tiny search of NAS-Bench-201; read only."""
    program.search(*GRAPH, "--save", "graph")
    return program.folder / "graph"


def cells_of_run(run: Path) -> list[genotypes.AnyGenotype]:
    texts = [row[f"genotype_{side}"] for row in rows(run / "history.csv") for side in "ab"]
    return [genotypes.from_json(text) for text in texts]


def test_a_search_of_nasbench201_is_drawn_tested_and_trained(graph_run: Path, run, tmp_path: Path) -> None:
    cell = genotypes.lookup(graph_run)
    assert isinstance(cell, CompleteCell)
    assert {type(one) for one in cells_of_run(graph_run)} == {CompleteCell}
    row = rows(graph_run / "generations.csv")[0]
    assert sum(int(row[f"cell_{name}"]) for name in genotypes.NASBENCH201) == 6 * 6
    page = (graph_run / "report.html").read_text()
    assert "<h3>Cell</h3>" in page
    assert "Operations in the cells." in page
    assert "nor_conv_3x3" in page
    assert "normal cells" not in page
    code, out, err = run(test_script, "--model_path", graph_run / "model.pt")
    assert code == 0, err
    assert "top-1 error" in out
    code, _, err = run(test_script, "--model_path", graph_run / "model.pt", "--arch DARTS")
    assert code == 2
    assert f"--model_path {graph_run / 'model.pt'}: --arch DARTS: the network in the file has another" in err
    assert "one complete cell (NAS-Bench-201), not a normal and a reduction cell" in err
    small = "--set digits --init_channels 4 --layers 3 --epochs 1 --batch_size 64"
    code, _, err = run(train, "--arch", graph_run, small, "--save", tmp_path / "trained")
    assert code == 0, err
    card = json.loads((tmp_path / "trained" / "card.json").read_text())
    assert (card["network"]["class"], card["network"]["layers"]) == ("NetworkNASBench201", 3)
    weights = tmp_path / "trained" / "model.pt"
    code, out, err = run(test_script, "--model_path", weights, "--export", tmp_path / "network.onnx")
    assert code == 0, err
    code, out, err = run(visualize, to_arch_string(cell), "--out", tmp_path)
    assert out == f"wrote {tmp_path / 'nasbench201_cell.svg'}\n", err


def test_a_search_of_nasbench201_goes_on_to_the_bit(graph_run: Path, program: Program) -> None:
    code, *_ = program.start(*TINY, *GRAPH, "--save", "killed_graph", die_at_checkpoint=5).wait()
    assert code == -9
    code, _, err = program.run("--resume", "killed_graph")
    assert code == 0, err
    assert results(program.folder / "killed_graph") == results(graph_run)


def test_a_space_with_limits_of_ones_own(program: Program) -> None:
    code, _, err = program.run_two(*TINY, *OWN, "--save", "own")
    assert code == 0, err
    full_size = FullSize(num_classes=10, in_channels=1, image_size=8)
    for cell in cells_of_run(program.folder / "own"):
        assert cell.normal == cell.reduce
        assert (len(cell.normal), cell.normal_concat) == (4, (2, 3))
        assert {name for name, _ in cell.normal} <= {"none", "sep_conv_5x5", "nor_conv_3x3"}
        assert all(a[1] != b[1] for a, b in zip(cell.normal[::2], cell.normal[1::2], strict=True))
        assert full_size(cell)[0] <= 0.8e6
    row = rows(program.folder / "own" / "generations.csv")[0]
    assert [name for name in row if name.startswith("normal_")] == [f"normal_{name}" for name in OWN[5:8]]
    assert not any(name.startswith("reduce_") for name in row)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nodes 3", "--nodes (was not given, now 3)"),
        ("--space darts", "--space (was nasbench201, now darts)"),
        ("--operations none nor_conv_3x3", "--operations (was not given, now none nor_conv_3x3)"),
    ],
)
def test_a_run_of_another_space_is_not_gone_on_with(
    graph_run: Path, program: Program, flags: str, words: str
) -> None:
    code, _, err = program.run("--resume", graph_run, *flags.split())
    assert code == 2
    assert words in one_line(err)


def test_flags_of_another_space_do_not_hide_what_the_run_was(program: Program) -> None:
    """Checked with the defaults in place of the run's settings they would be refused for the wrong reason."""
    own = ["--nodes", "3", "--objectives", "error", "parameters", "--max_parameters", "9"]
    program.search(*own, "--full_layers", "5", "--save", "three")
    for flags, words in (
        ("--space nasbench201", "--space (was darts, now nasbench201)"),
        ("--full_layers 8", "--full_layers (was 5, now 8)"),
        ("--objectives error", "--objectives (was error parameters, now error)"),
    ):
        code, _, err = program.run("--resume", "three", *flags.split())
        assert code == 2
        assert one_line(err) == f"--resume three: other settings than the run's: {words}"


def test_a_run_from_before_there_were_spaces_goes_on_in_that_of_darts(
    finished_run: Path, program: Program
) -> None:
    """Its settings name no space, and the published full size, which is now what no number means."""
    folder = program.folder / "before"
    assert program.start(*TINY, "--save", folder, die_at_checkpoint=3).wait()[0] == -9
    state = checkpoint.load(folder / "checkpoint.pt", "search")
    settings = json.loads((folder / "config.json").read_text())
    for old in (state["settings"], settings):
        for name in ("space", "operations", "nodes", "cells"):
            del old[name]
        old |= {"full_channels": 36, "full_layers": 20}
    checkpoint.save(folder / "checkpoint.pt", state)
    (folder / "config.json").write_text(json.dumps(settings))
    code, _, err = program.run("--resume", folder)
    assert code == 0, err
    assert results(folder) == results(finished_run)


def test_a_checkpoint_of_another_space_says_how_it_differs(
    graph_run: Path, finished_run: Path, program: Program
) -> None:
    copy = program.folder / "copied"
    copy.mkdir()
    (copy / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    (copy / "checkpoint.pt").write_bytes((graph_run / "checkpoint.pt").read_bytes())
    code, _, err = program.run("--resume", copy)
    assert code == 2
    assert "--space (nasbench201, not darts)" in one_line(err)


def test_what_was_found_is_looked_up_in_the_table(graph_run: Path, run, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = ["arch,accuracy"]
    for arch in itertools.product(range(5), repeat=6):  # edges 0-1, 0-2, 0-3, 1-2, 1-3, 2-3
        accuracy = sum(choice * 10.0 ** (at - 5) for at, choice in enumerate(arch))
        lines.append(f"{'-'.join(map(str, arch))},{accuracy:.5f}")
    table.write_text("\n".join(lines))
    out = tmp_path / "found.json"
    code, said, err = run(found_in_table, "--table", table, "--runs", graph_run, "--json", out)
    assert code == 0, err
    (found,) = json.loads(out.read_text())["runs"]
    cell = genotypes.lookup(graph_run)
    by_edge = {
        (source, node): genotypes.NASBENCH201.index(name) for name, source, node in edges_of(cell, "cell")
    }
    digits = [by_edge[edge] for edge in sorted(by_edge)]
    assert found["winner_accuracy"] == pytest.approx(sum(d * 10.0 ** (at - 5) for at, d in enumerate(digits)))
    assert found["trained_cells"] == len(set(cells_of_run(graph_run)))
    assert f"winner {found['winner_accuracy']:.2f}" in said


def test_the_best_of_random_cells_is_that_of_drawing_them() -> None:
    truths = np.random.default_rng(0).normal(size=50)
    drawn = np.random.default_rng(1).choice(truths, (20000, 7)).max(axis=1).mean()
    assert found_in_table.best_of(truths, 7) == pytest.approx(drawn, abs=0.02)
    assert found_in_table.best_of(truths, 1) == pytest.approx(truths.mean())


def test_a_run_of_darts_is_not_in_the_table(finished_run: Path, run, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["arch,accuracy", "4-4-4-4-4-4,1.0", "0-0-0-0-0-0,2.0"]))
    code, _, err = run(found_in_table, "--table", table, "--runs", finished_run)
    assert code == 2
    assert "no cell of table" in err


def blocks_of_the_page() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "spaces.md").read_text(), re.M | re.S)


@pytest.fixture
def own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may add operations; they are gone after it."""
    monkeypatch.setattr(operations, "OPS", dict(operations.OPS))
    for name in ("model", "skeletons"):
        monkeypatch.setattr(sys.modules[name], "OPS", operations.OPS)


def test_the_operation_of_the_page_is_searched_trained_tested_drawn_and_exported(
    run, own_operations: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = "--operations group_conv_3x3 max_pool_3x3"
    code, _, err = run(train_search, " ".join(TINY), wanted)
    assert code == 2
    assert "'group_conv_3x3' is not one of max_pool_3x3" in err
    exec(blocks_of_the_page()[0], vars(operations))
    smaller = "--pop_size 4 --generations 2 --max_parameters 9"
    code, _, err = run(train_search, " ".join(TINY), wanted, smaller, "--save run")
    assert code == 0, err
    cell = genotypes.lookup("run")
    assert {name for name, _ in cell.normal + cell.reduce} == {"group_conv_3x3", "max_pool_3x3"}
    assert "group_conv_3x3" in (tmp_path / "run" / "report.html").read_text()
    small = "--set digits --init_channels 4 --layers 3 --epochs 1 --batch_size 64"
    code, _, err = run(train, "--arch run", small, "--save trained")
    assert code == 0, err
    code, _, err = run(test_script, "--model_path trained/model.pt --export network.onnx")
    assert code == 0, err
    assert (tmp_path / "network.onnx").stat().st_size > 1000


def lazy(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.LazyConv2d(C, 1, stride)


def test_an_operation_that_cannot_be_trained_is_named_before_anything_is_written(
    run, own_operations: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations.OPS["lazy"] = lazy
    operations.OPS["bare"] = lambda C, stride, affine: lambda x: x[:, :, ::stride, ::stride]
    cell = genotypes.DARTS._replace(reduce=(("lazy", 0), *genotypes.DARTS.reduce[1:]))
    (tmp_path / "cell.json").write_text(genotypes.to_json(cell))
    monkeypatch.chdir(tmp_path)
    for name in ("lazy", "bare"):
        code, _, err = run(train_search, " ".join(TINY), f"--operations sep_conv_3x3 {name} --save run")
        assert (code, err.count("\n")) == (2, 1)
        assert f"operation {name} does not work: " in err
    code, _, err = run(train, "--arch cell.json --set digits --init_channels 4 --layers 3 --save run")
    assert code == 2
    assert "--arch cell.json: operation lazy does not work: LazyConv2d has" in err
    assert list(tmp_path.iterdir()) == [tmp_path / "cell.json"]


def test_an_operation_that_is_gone_is_named_with_its_file(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import NetworkCIFAR
    from training.card import describe_network

    described = describe_network(
        NetworkCIFAR(4, 10, 3, False, genotypes.DARTS, in_channels=1, image_size=8),
        images={"set": "digits", "classes": list("0123456789"), "mean": [0.5], "std": [0.2]},
        recipe={},
        result={},
    )
    described["network"]["genotype"]["normal"][0][0] = "gone"
    checkpoint.save(tmp_path / "model.pt", described)
    code, _, err = run(test_script, "--model_path", tmp_path / "model.pt")
    assert code == 2
    assert (
        f"--model_path {tmp_path / 'model.pt'}: normal cell, node 0, edge 0: operation 'gone' is not" in err
    )


NO_PATH = "|none~0|+|none~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"


def test_a_cell_without_a_path_is_drawn_and_not_trained(run, tmp_path: Path) -> None:
    code, _, err = run(visualize, NO_PATH, "--out", tmp_path)
    assert code == 0, err
    code, _, err = run(train, "--arch", NO_PATH, "--set digits --save", tmp_path / "run")
    assert code == 2
    assert (
        err
        == f"train.py: --arch {NO_PATH}: its cell has no path from input to output, so nothing can be "
        + ("learnt from images\n")
    )
    assert not (tmp_path / "run").exists()


def test_no_auxiliary_head_for_a_complete_cell(run, tmp_path: Path) -> None:
    code, out, err = run(train, "--arch |nor_conv_3x3~0| --set digits --auxiliary --save", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--auxiliary: --arch |nor_conv_3x3~0| is a cell of NAS-Bench-201" in err
    assert not (tmp_path / "run").exists()


def test_the_search_of_the_page_finds_the_best_of_a_toy_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(architecture: tuple[int, ...]) -> float:
        return float(sum((choice - 1) ** 2 for choice in architecture))

    (block,) = (block for block in blocks_of_the_page() if "PairedSearch" in block)
    code = [line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 10, "ten lines are promised"
    said: dict = {"loss": loss, "print": lambda *found: said.update(found=found)}
    exec(block, said)
    best, finalists = said["found"]
    assert best == (1,) * 6
    assert best in finalists

    def on(search, generations: int) -> list[tuple]:
        seen = []
        while search.generation < generations and (pairs := search.ask()):
            for pair in pairs:
                known = pair.decided_by == "predictor"
                search.tell(pair, None if known else said["Outcome"].exact(loss(pair.a), loss(pair.b)))
                seen.append((pair.a, pair.b))
        return seen

    def new():
        settings = said["Settings"](pop_size=10, generations=12)
        return said["PairedSearch"](space=said["ChoiceSpace"]([5, 5, 3, 3, 2, 8]), settings=settings)

    first, again = new(), new()
    on(first, 6)
    again.load_state_dict(first.state_dict())
    (on_disk,) = (block for block in blocks_of_the_page() if "checkpoint.save" in block)
    monkeypatch.chdir(tmp_path)
    loaded = new()
    exec(on_disk, {"state": first.state_dict(), "search": loaded})
    assert on(first, 12) == on(again, 12) == on(loaded, 12) != []


def test_the_functions_of_the_page_get_and_return_what_it_says() -> None:
    from encoding import ChoiceSpace
    from search.paired_search import NoneAccepted, Outcome, PairedSearch, Settings

    asked: dict[str, list] = {"accept": [], "costs": [], "prior": []}

    def accept(architecture: tuple[int, ...]) -> bool:
        asked["accept"].append(architecture)
        return architecture[0] > 0

    def costs(architecture: tuple[int, ...]) -> list[float]:
        asked["costs"].append(architecture)
        return [sum(architecture), architecture[0]]

    def prior(rows: np.ndarray) -> np.ndarray:
        asked["prior"].append(rows.shape[1:])
        return (rows.sum(axis=1) - 6.0) / 2.0

    space, settings = ChoiceSpace([5, 5, 3, 3]), Settings(pop_size=6, generations=4)
    search = PairedSearch(space=space, settings=settings, accept=accept, costs=costs, prior=prior)
    while pairs := search.ask():
        for pair in pairs:
            assert pair.a[0] > 0
            assert pair.b[0] > 0
            known = pair.decided_by == "predictor"
            losses = (-float(sum(one)) for one in (pair.a, pair.b))
            search.tell(pair, None if known else Outcome.exact(*losses))
    assert {type(one) for one in asked["accept"] + asked["costs"]} == {tuple}
    assert set(asked["prior"]) == {(4,)}
    with pytest.raises(NoneAccepted):
        PairedSearch(space=space, settings=settings, accept=lambda architecture: False).ask()


def test_stages_are_as_the_page_says() -> None:
    from skeletons import NetworkNASBench201

    cell = genotypes.lookup("|nor_conv_3x3~0|")
    network = NetworkNASBench201(4, 10, 8, False, cell, in_channels=1, image_size=8)
    channels = [len(cell._ops[0].op[1].weight) for cell in network.cells]
    assert channels == [4] * 2 + [8] * 3 + [16] * 3


def test_bad_spaces_get_one_line_before_anything_is_written(program: Program) -> None:
    for flags, words in (
        ("--operations skip_connect max_pool_3x3", "none of them has weights"),
        ("--operations sep_conv_3x3 magic", "'magic' is not one of max_pool_3x3"),
        ("--operations sep_conv_3x3", "too few"),
        ("--space nasbench201 --max_parameters 0.0001", "--max_parameters"),
        ("--space nasbench202", "nasbench201"),
        ("--nodes 99", "--nodes 99: allowed are 1 to 16"),
    ):
        code, _, err = program.run(*TINY, *flags.split(), "--save", "refused")
        assert code == 2, err
        assert words in one_line(err)
        assert not (program.folder / "refused").exists()


def test_images_of_imagenets_size_take_no_complete_cell(run, tmp_path: Path) -> None:
    from PIL import Image

    import train_imagenet

    for part, name in itertools.product(("train", "val"), "ab"):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((70, 70, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    small = (
        "--image_size 64 --init_channels 4 --layers 3 --batch_size 4 --epochs 1 --warmup_epochs 0 --workers 0"
    )
    flags = ["--arch", "|nor_conv_3x3~0|", "--data", tmp_path, small, "--workers 0 --save", tmp_path / "run"]
    code, _, err = run(train_imagenet, *flags)
    assert code == 2
    assert "--arch |nor_conv_3x3~0|: NetworkImageNet needs a normal and a reduction cell" in err
    assert not (tmp_path / "run").exists()
