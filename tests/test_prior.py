"""prior.py: what a table of trainings tells a search, and that a search keeps it."""

from __future__ import annotations

import re
import signal

import numpy as np
import pytest
from conftest import TINY, Program, one_line, results

from encoding import CellSpace
from search import prior
from search.paired_search import PairedSearch, Settings

SPACE = CellSpace()
HEADER = "arch,kind,repeat,accuracy,training_loss_1,validation_loss_1,training_loss_2,validation_loss_2"
ALONE = [*TINY, "--estimate", "alone"]


def convolutions(row: np.ndarray) -> int:
    """Separable convolutions among the operations: what makes a cell good in these tests."""
    return int(np.isin(row[1::2], [3, 4]).sum())


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([SPACE.read(SPACE.sample(rng)) for _ in range(count)])


def table(count: int = 40, repeats: int = 2) -> str:
    """Trainings whose loss falls with the convolutions; another repeat's are all higher by 5."""
    lines = [HEADER]
    for row in random_rows(count):
        for repeat in range(repeats):
            loss = 3 - 0.1 * convolutions(row) + 5 * repeat
            lines.append(f"{'-'.join(map(str, row))},random,{repeat},50,9,9,{loss},{loss}")
    return "\n".join(lines) + "\n"


def test_it_expects_of_new_cells_what_the_table_shows() -> None:
    expected = prior.learn(table(), SPACE)
    rows = random_rows(400, seed=1)
    found = expected(rows)
    assert np.corrcoef(found, [convolutions(row) for row in rows])[0, 1] > 0.8
    assert abs(found.mean()) < 0.2
    assert found.std() == pytest.approx(1, abs=0.15)
    assert (expected(rows[:3]) == found[:3]).all()  # asked again, one by one or together


def test_scores_are_of_the_last_epoch_and_without_what_a_repeat_has_in_common() -> None:
    lines = table(repeats=2).splitlines()
    whole, scores = prior.read("\n".join(lines))
    assert scores.min() == 0
    one = lines[:1] + [line for line in lines[1:] if line.split(",")[2] == "0"]
    assert scores == pytest.approx(prior.read("\n".join(one))[1])
    some = [line for line in lines if line.split(",")[2] != "1" or line.split(",")[6] < "7.3"]
    assert 20 < len(some) < len(lines) - 1, "the second repeat has the good cells only"
    assert scores == pytest.approx(prior.read("\n".join(some))[1])
    diverged = [lines[0], lines[1].rsplit(",", 1)[0] + ",", *lines[3:]]  # both repeats of the first cell
    assert len(prior.read("\n".join(diverged))[0]) == len(whole) - 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no table"),
        ("a,b\n1,2\n", "no table"),
        (table().replace("random,1,50,9,9,", "random,1,50,9,9,x", 1), "no table"),
        (re.sub(r",[\d.]+$", ",inf", table(), count=1, flags=re.M), "huge one"),
        (HEADER + "\n1-2-3,random,0,50,9,9,1,1\n" * 20, "no table"),
        (HEADER + f"\n{'9-' * 31}9,random,0,50,9,9,1,1\n" * 20, "no table"),
        (HEADER + f"\n{'0-' * 39}0,random,0,50,9,9,1,1\n" * 20, "40 choices, not 32"),
        (HEADER + f"\n{'0-' * 31}0,random,0,50,9,9,,\n" * 20, "no training in it ended"),
        (table().replace(",50,9,9,", ",50,9,9,1,1,extra,"), "no training in it ended"),
        ("training_loss_1,validation_loss_1,repeat,arch\n1,1,0\n", "no table"),
        (re.sub(r",[\d.]+,[\d.]+$", ",1,1", table(), flags=re.M), "the same losses"),
        (re.sub(r",[\d.]+,[\d.]+$", ",1e307,1", table(), flags=re.M), "huge"),
        (table(count=7), "7 cells"),
    ],
)
def test_what_is_no_table_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prior.read(text)


def test_the_shipped_table_is_one() -> None:
    cells, scores = prior.read(prior.SHIPPED.read_text())
    assert len(cells) >= 150
    assert scores.std() > 0


def test_a_search_begins_where_the_prior_points() -> None:
    search = PairedSearch(space=SPACE, settings=Settings(seed=1), prior=prior.learn(table(), SPACE))
    plain = PairedSearch(space=SPACE, settings=Settings(seed=1))
    first, random = search.ask()[0], plain.ask()[0]
    found = [convolutions(SPACE.choices(cell)) for cell in (first.a, first.b)]
    assert min(found) > max(convolutions(SPACE.choices(cell)) for cell in (random.a, random.b))
    assert first.a != first.b
    assert first.probability is not None


@pytest.fixture(scope="module")
def trained(program: Program) -> str:
    """A file with a table, and a search that began with it."""
    (program.folder / "earlier.csv").write_text(table())
    code, _, err = program.run(*ALONE, "--prior", "earlier.csv", "--save", "prior_whole")
    assert code == 0, err
    return "prior_whole"


def kill_at_checkpoint(program: Program, table: str, name: str) -> None:
    started = program.start(*ALONE, "--prior", table, "--save", name, die_at_checkpoint=4)
    assert started.wait()[0] == -signal.SIGKILL


def test_a_killed_search_goes_on_with_the_table_that_it_kept(program: Program, trained: str) -> None:
    path = program.folder / "earlier_2.csv"
    path.write_text(table())
    run = program.folder / "prior_killed"
    kill_at_checkpoint(program, path.name, run.name)
    path.write_text("gone")
    code, _, err = program.run("--resume", run.name)
    assert code == 0, err
    assert results(run) == results(program.folder / trained)


def test_another_table_than_the_kept_one_is_refused(program: Program, trained: str) -> None:
    run = program.folder / "prior_other"
    kill_at_checkpoint(program, "earlier.csv", run.name)
    (run / prior.KEPT).write_text(table(30))
    code, _, err = program.run("--resume", run.name)
    assert code == 2
    assert one_line(err) == f"--resume {run.name}: prior.csv is not the table that the run began with"


def test_killed_before_the_table_was_kept_it_goes_on_all_the_same(program: Program, trained: str) -> None:
    run = program.folder / "prior_unkept"
    kill_at_checkpoint(program, "earlier.csv", run.name)
    for name in ("checkpoint.pt", "checkpoint.previous.pt", prior.KEPT):
        (run / name).unlink()
    started = program.start("--resume", run.name, die_at_checkpoint=2)
    assert started.wait()[0] == -signal.SIGKILL
    assert (run / prior.KEPT).read_text() == table()
    code, _, err = program.run("--resume", run.name)
    assert code == 0, err
    assert results(run) == results(program.folder / trained)


def test_two_processes_begin_with_the_same_and_find_the_same(program: Program, trained: str) -> None:
    code, _, err = program.run_two(*ALONE, "--prior", "earlier.csv", "--save", "prior_two")
    assert code == 0, err
    assert results(program.folder / "prior_two") == results(program.folder / trained)


def test_a_damaged_kept_table_is_named(program: Program, trained: str) -> None:
    run = program.folder / "prior_damaged"
    kill_at_checkpoint(program, "earlier.csv", run.name)
    (run / prior.KEPT).write_bytes(b"\xff\xfe\x00")
    code, _, err = program.run("--resume", run.name)
    assert code == 2
    assert "prior.csv: no text" in one_line(err)


def test_the_tables_of_a_folder_that_is_taken_are_not_read(program: Program, trained: str) -> None:
    code, _, err = program.run(*TINY, "--space", "nasbench201", "--save", trained)
    assert code == 2
    assert "exists already" in one_line(err)


def test_the_shipped_table_serves_lone_candidates_of_three_cells_only(program: Program) -> None:
    deeper = (*ALONE, "--layers", "4")
    for name, flags, kept in (
        ("prior_auto", ALONE, True),
        ("prior_set", TINY, False),
        ("prior_deeper", deeper, False),
    ):
        code, _, err = program.run(*flags, "--save", name)
        assert code == 0, err
        assert (program.folder / name / prior.KEPT).exists() == kept
        assert ("earlier trainings" in (program.folder / name / "log.txt").read_text()) == kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--prior missing.csv", "--prior missing.csv: No such file or directory"),
        ("--prior .", "--prior .: no file"),
        ("--prior ~nobody-here/x.csv", "--prior ~nobody-here/x.csv: No such file or directory"),
        ("--prior bad.csv", "--prior bad.csv: no table of image_table.py"),
        ("--prior bad.csv --strategy random", "--prior bad.csv: no effect without the predictor"),
        ("--prior bad.csv --no_rank --no_screen --no_decide", "no effect without the predictor"),
        ("--prior bad.csv --space nasbench201", "--prior bad.csv: a table is of the published space"),
        ("--prior bad.csv --nodes 3", "--prior bad.csv: a table is of the published space"),
    ],
)
def test_wrong_input_gets_one_line(program: Program, flags: str, words: str) -> None:
    (program.folder / "bad.csv").write_text("arch,repeat\n1,2\n")
    code, _, err = program.run(*ALONE, "--save", "prior_wrong", *flags.split())
    assert code == 2
    assert words in one_line(err)
    assert not (program.folder / "prior_wrong").exists()
